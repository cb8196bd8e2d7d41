import shutil
import zipfile

import pytest

from newsrec.data.dataset import open_mind
from newsrec.data.readers.mind_files import find_splits
from newsrec.errors import UserError


def pack(mind_dir, split, wrapper="", extra=()):
    """Turn a split's folder into a zip as it is handed out."""
    path = mind_dir / f"MINDsmall_{split}.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("news.tsv", "behaviors.tsv", *extra):
            source = mind_dir / split / name
            archive.writestr(wrapper + name, source.read_bytes() if source.exists() else b"")
    shutil.rmtree(mind_dir / split)
    return path


def content(root):
    """Return all that a folder's arrays hold, and the splits' fingerprints."""
    data = open_mind(root)
    return (
        data.news.to_pydict(),
        data.users.to_pylist(),
        {
            name: (
                split.fingerprint,
                split.impression_id.tolist(),
                split.history.tolist(),
                split.histories.values.tolist(),
                split.candidates.values.tolist(),
                None if split.labels is None else split.labels.tolist(),
            )
            for name, split in data.splits.items()
        },
    )


@pytest.mark.parametrize("wrapper", ["", "MINDsmall_train/", "data/MINDsmall_train/"])
def test_a_zip_is_read_as_the_folder_it_holds(mind_dir, wrapper):
    before = content(mind_dir)
    shutil.rmtree(mind_dir / ".newsrec")
    pack(mind_dir, "train", wrapper)
    pack(mind_dir, "test")
    assert content(mind_dir) == before
    assert {p.name for p in mind_dir.iterdir()} == {
        "MINDsmall_train.zip",
        "MINDsmall_test.zip",
        "dev",
        ".newsrec",
    }


def test_what_archivers_add_is_not_read(mind_dir):
    extra = ("__MACOSX/._news.tsv", "__MACOSX/MINDsmall_train/news.tsv", ".git/news.tsv", "x.vec")
    pack(mind_dir, "train", extra=extra)
    assert find_splits(mind_dir)["train"].news.member == "news.tsv"
    open_mind(mind_dir)


def test_a_zip_is_compiled_once_and_again_when_it_changes(mind_dir):
    path = pack(mind_dir, "train")
    first = open_mind(mind_dir)
    assert open_mind(mind_dir).cache == first.cache
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    files["behaviors.tsv"] = b"\n".join(files["behaviors.tsv"].split(b"\n")[1:])
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    second = open_mind(mind_dir)
    assert second.cache != first.cache
    assert len(second.split("train").history) == len(first.split("train").history) - 1


def test_a_folder_goes_before_the_zip_that_it_came_from(mind_dir):
    shutil.copytree(mind_dir / "train", mind_dir / "kept")
    pack(mind_dir, "train")
    (mind_dir / "kept").rename(mind_dir / "MINDsmall_train")
    assert find_splits(mind_dir)["train"].news.member is None


def test_files_may_sit_in_a_folder_of_the_folder(mind_dir):
    wrapper = mind_dir / "MINDsmall_train"
    wrapper.mkdir()
    (wrapper / "__MACOSX").mkdir()
    (wrapper / "__MACOSX" / "news.tsv").write_text("")
    (mind_dir / "train").rename(wrapper / "MINDsmall_train")
    assert find_splits(mind_dir)["train"].news.path == wrapper / "MINDsmall_train" / "news.tsv"


def assert_refused(root, *parts):
    with pytest.raises(UserError) as error:
        open_mind(root)
    for part in parts:
        assert part in str(error.value)


def test_two_zips_for_one_split_are_refused(mind_dir):
    path = pack(mind_dir, "train")
    shutil.copy(path, mind_dir / "MINDlarge_train.zip")
    assert_refused(mind_dir, "MINDlarge_train.zip and MINDsmall_train.zip", "which is train?")


def test_a_file_that_a_zip_holds_twice_is_refused(mind_dir):
    pack(mind_dir, "train", extra=("other/news.tsv",))
    assert_refused(mind_dir, "MINDsmall_train.zip, news.tsv and", "other/news.tsv. Keep one")


def test_a_zip_without_a_file_is_refused(mind_dir):
    path = pack(mind_dir, "train")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("news.tsv", "")
    assert_refused(mind_dir, f"{path} has no behaviors.tsv")


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.99])
def test_a_zip_that_was_cut_off_is_refused(mind_dir, kept):
    path = pack(mind_dir, "train")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if kept < 1 else kept])
    assert_refused(mind_dir, f"{path} cannot be read as a zip", "download it again")


def test_damage_inside_a_zip_is_refused(mind_dir):
    path = pack(mind_dir, "train")
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("behaviors.tsv").header_offset + 100
    whole = bytearray(path.read_bytes())
    whole[start : start + 20] = bytes(20)
    path.write_bytes(whole)
    assert_refused(mind_dir, f"{path}, behaviors.tsv", "ownload")
    assert not list(mind_dir.glob(".newsrec/mind-*"))


def test_an_encrypted_zip_is_refused(mind_dir):
    path = pack(mind_dir, "train")
    data = bytearray(path.read_bytes())
    at = 0
    while (at := data.find(b"PK\1\2", at)) >= 0:  # the flags in the directory's entries
        data[at + 8] |= 1
        at += 4
    path.write_bytes(data)
    assert_refused(mind_dir, f"{path} is encrypted. Unpack it")
