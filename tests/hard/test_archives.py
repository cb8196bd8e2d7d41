"""MIND's zips that were damaged on their way, and what was compiled from them."""

import random
import shutil
import zipfile

import pytest
from conftest import tiny_behaviors, tiny_news, write_mind

from hard import TIMES
from newsrec.data.dataset import open_mind
from newsrec.data.readers.mind_files import find_splits
from newsrec.data.readers.official import check
from newsrec.data.store import recheck
from newsrec.errors import UserError

MUTATIONS = 500 * TIMES

SIGNATURES = [b"PK\1\2", b"PK\3\4", b"PK\5\6"]
METHODS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]


def content(root):
    """Return all that a folder's arrays hold."""
    data = open_mind(root)
    arrays = {name: array.tolist() for name, array in data.arrays.items()}
    return data.news.to_pydict(), data.users.to_pylist(), arrays, [*data.splits]


def mutate(whole, rng):
    """Return other bytes, and say what was done: mostly in the headers, which name places."""
    data = bytearray(whole)
    kind = rng.choice(
        ["bit", "header", "header", "field", "field", "zeros", "cut", "hole", "twice"]
    )
    at = rng.randrange(len(data))
    if kind in ("header", "field"):
        start = data.index(rng.choice(SIGNATURES))
        at = min(start + rng.randrange(4, 46), len(data) - 4)
    if kind in ("bit", "header"):
        for _ in range(rng.choice([1, 1, 3])):
            data[at] ^= 1 << rng.randrange(8)
    elif kind == "field":
        size = rng.choice([2, 4])
        value = rng.choice([0, 1, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, len(whole)])
        data[at : at + size] = value.to_bytes(8, "little")[:size]
    elif kind == "zeros":
        data[at : at + 64] = bytes(len(data[at : at + 64]))
    elif kind == "cut":
        del data[at:]
    elif kind == "hole":
        del data[at : at + rng.randrange(1, 200)]
    else:
        data[at:at] = data[: rng.randrange(1, 400)]
    return bytes(data), f"{kind} at {at}"


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """The tiny MIND's train as a zip of each method, and what is in it."""
    news, behaviors = ({"train": rows["train"]} for rows in (tiny_news(), tiny_behaviors()))
    folder = tmp_path_factory.mktemp("packed")
    expected = content(write_mind(folder / "mind", news, behaviors))
    zips = []
    for method in METHODS:
        path = folder / f"{method}.zip"
        with zipfile.ZipFile(path, "w", method) as archive:
            for name in ("news.tsv", "behaviors.tsv"):
                archive.write(folder / "mind" / "train" / name, name)
        zips.append(path.read_bytes())
    return zips, expected


@pytest.mark.slow
def test_a_damaged_zip_gives_all_its_rows_or_is_refused_by_name(packed, tmp_path):
    zips, expected = packed
    wrong, refused = {}, 0
    for seed in range(MUTATIONS):
        rng = random.Random(f"zip {seed}")
        root = tmp_path / str(seed)
        root.mkdir()
        path = root / "MINDsmall_train.zip"
        damaged, how = mutate(zips[seed % len(zips)], rng)
        path.write_bytes(damaged)
        try:
            if content(root) != expected:
                wrong[seed] = how, "other rows"
        except UserError as error:
            refused += 1
            if str(path) not in str(error):
                wrong[seed] = how, str(error)
        except BaseException as error:
            wrong[seed] = how, repr(error)
        shutil.rmtree(root)
    assert not wrong
    assert refused > MUTATIONS / 2  # else the mutations would be no test


@pytest.mark.slow
def test_the_check_of_a_download_refuses_what_is_damaged(packed, tmp_path, monkeypatch):
    zips, _ = packed
    path = tmp_path / "MINDsmall_train.zip"
    path.write_bytes(zips[1])
    lines = tuple(sum(1 for _ in file.open()) for file in find_splits(tmp_path)["train"])
    monkeypatch.setattr("newsrec.data.readers.official.LINES", {"MINDsmall_train": lines})
    assert check(tmp_path, "MINDsmall_train") == path
    wrong, refused = {}, 0
    for seed in range(MUTATIONS):
        damaged, how = mutate(zips[seed % len(zips)], random.Random(f"download {seed}"))
        path.write_bytes(damaged)
        try:
            check(tmp_path, "MINDsmall_train")
        except UserError:
            refused += 1
        except BaseException as error:
            wrong[seed] = how, repr(error)
    assert not wrong
    assert refused > MUTATIONS / 2


@pytest.mark.slow
@pytest.mark.parametrize("large", [False, True])
def test_a_flipped_bit_among_the_compiled_arrays_is_mended_or_refused(
    packed, tmp_path, monkeypatch, large
):
    """Opening checks of large arrays only what it reads; ``prepare --check`` does the rest."""
    zips, expected = packed
    (tmp_path / "MINDsmall_train.zip").write_bytes(zips[1])
    content(tmp_path)
    cache = tmp_path / ".newsrec"
    shutil.copytree(cache, tmp_path / "kept")
    names = [
        p.relative_to(cache)
        for p in sorted(cache.rglob("*"))
        if p.stat().st_size > 0 and p.is_file()
    ]
    assert len(names) > 12
    if large:
        monkeypatch.setattr("newsrec.data.cache.SMALL_BYTES", 0)
    wrong = {}
    for seed in range(150 * TIMES):
        rng = random.Random(f"bit {seed}")
        name = names[seed % len(names)]
        data = bytearray((cache / name).read_bytes())
        at = rng.randrange(len(data))
        data[at] ^= 1 << rng.randrange(8)
        (cache / name).write_bytes(data)
        try:
            same = content(tmp_path) == expected
        except UserError as error:
            same = large and "prepare --check" in str(error)
        except BaseException as error:
            wrong[seed] = str(name), at, repr(error)
            same = True
        if not same and not large:
            wrong[seed] = str(name), at, "other numbers"
        recheck(tmp_path)
        if content(tmp_path) != expected:
            wrong[seed] = str(name), at, "not mended by a check"
        shutil.rmtree(cache)
        shutil.copytree(tmp_path / "kept", cache)
    assert not wrong
