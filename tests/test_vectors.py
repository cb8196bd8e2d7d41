"""News vectors in float16 and int8: what they round, how they are scored, kept and refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from newsrec.__main__ import main
from newsrec.errors import UserError
from newsrec.files import file_hash
from newsrec.serving import Recommender
from newsrec.serving import vectors as module
from newsrec.serving.folder import StoredNews, write_news
from newsrec.serving.manifest import MATCHING_FORMAT, read_manifest, settings_hash
from newsrec.serving.search import search
from newsrec.serving.vectors import Packed, decode, pack, products

SMALLER = ("float16", "int8")


def rewrite(folder, **changes):
    """Write the manifest anew, with the hash of every file as it is now."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    names = sorted(file.name for file in folder.iterdir() if file != path)
    manifest["files"] = {name: file_hash(folder / name) for name in names}
    manifest |= changes
    manifest["settings_hash"] = settings_hash(manifest)
    path.write_text(json.dumps(manifest))


@pytest.fixture(scope="module")
def packed_exports(served, tmp_path_factory):
    """The export of ``served`` with its vectors in each smaller type."""
    found = {}
    for kind in SMALLER:
        folder = tmp_path_factory.mktemp("packed") / kind
        shutil.copytree(served.export, folder)
        news = Recommender.load(folder, threads=1).stored_news
        write_news(StoredNews(news.table, pack(news.vectors, kind)), folder)
        rewrite(folder, format=4, vectors=kind)
        found[kind] = folder
    return found


@pytest.fixture(params=SMALLER)
def packed_export(request, packed_exports):
    return packed_exports[request.param]


def test_every_float16_becomes_the_same_number_in_float32():
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    every = every[np.isfinite(every)]
    found = np.empty(len(every), np.float32)
    decode(every, found)
    assert found.tobytes() == every.astype(np.float32).tobytes()  # -0 too


NUMBERS = st.one_of(
    st.floats(-65504, 65504, width=32), st.sampled_from([0.0, -0.0, 1e-45, -1e-38, 3e-39, 1.0])
)


@settings(max_examples=200, deadline=None)
@given(hnp.arrays(np.float32, st.tuples(st.integers(0, 5), st.integers(1, 9)), elements=NUMBERS))
def test_int8_is_half_a_scale_from_the_number_it_stands_for(vectors):
    packed = pack(vectors, "int8")
    assert np.abs(packed.values.astype(int)).max(initial=0) <= 127
    largest = np.abs(vectors).max(axis=1, initial=0).astype(np.float64)
    allowed = largest / 127 / 2 * (1 + 1e-4) + 2e-36  # numbers too small to divide by become 0
    assert (np.abs(np.asarray(packed, np.float64) - vectors) <= allowed[:, None]).all()
    again = pack(np.asarray(packed), "int8")
    np.testing.assert_array_equal(again.values, packed.values)


def test_numbers_too_large_for_float16_are_refused():
    with pytest.raises(UserError, match=r"holds 7e\+04, and float16 ends at 65,504\. Choose --v"):
        pack(np.array([[1, -70_000]], np.float32), "float16")


@pytest.mark.parametrize("kind", SMALLER)
def test_vectors_of_a_type_are_read_like_an_array(kind):
    vectors = np.random.default_rng(0).standard_normal((7, 5)).astype(np.float32)
    packed = pack(vectors, kind)
    whole = np.asarray(packed)
    assert whole.dtype == np.float32
    assert packed.shape == whole.shape
    for rows in (3, [4, 1, 1], np.array([6, 0]), slice(2, 5), [[0, 1], [2, 3]]):
        np.testing.assert_array_equal(packed[rows], whole[rows])
    np.testing.assert_array_equal(packed.part(slice(2, None))[1], whole[3])


@pytest.mark.parametrize("kind", SMALLER)
@pytest.mark.parametrize("interests", [1, 3])
def test_blocks_are_scored_as_the_decoded_vectors(kind, interests, monkeypatch):
    monkeypatch.setattr(module, "NUMBERS_AT_ONCE", 40)
    rng = np.random.default_rng(0)
    news = pack(rng.standard_normal((61, 8)).astype(np.float32), kind)
    users = rng.standard_normal((4, interests, 8)).astype(np.float32)
    expected = np.einsum("uid,nd->uin", users, np.asarray(news))
    np.testing.assert_allclose(products(users[:, 0], news), expected[:, 0], atol=1e-5)
    best = expected.max(axis=1)
    for user, (rows, scores) in enumerate(search(users, news, 5)):
        np.testing.assert_array_equal(rows, np.argsort(-best[user], kind="stable")[:5])
        np.testing.assert_allclose(scores, best[user][rows], atol=1e-5)


def test_a_smaller_folder_recommends_by_the_vectors_it_stores(packed_export, served):
    whole, smaller = (Recommender.load(path, threads=1) for path in (served.export, packed_export))
    vectors = smaller.news_vectors
    np.testing.assert_allclose(vectors, whole.news_vectors, atol=np.abs(vectors).max() / 250)
    ids = smaller.news["news_id"].to_pylist()
    history = ids[:6]
    user = smaller.user_vector(history)
    np.testing.assert_allclose(user, whole.user_vector(history), rtol=0.05, atol=0.05)
    best = smaller.recommend(history, k=9)
    allowed = [row for row in range(2, len(vectors)) if ids[row - 2] not in history]
    expected = sorted((vectors[row] @ user for row in allowed), reverse=True)[:9]
    np.testing.assert_allclose(best.scores, expected, atol=1e-4 * abs(expected[0]))
    ranked = smaller.rank(history, best.news_ids)
    assert ranked.ranked_ids == best.news_ids
    np.testing.assert_allclose(ranked.ranked_scores, best.scores, rtol=1e-5)
    assert smaller.recommend(history, k=5, skip_repeats=0.999, diversity=0.1).news_ids


def test_added_news_keep_the_type_and_leave_the_others_alone(packed_export, tmp_path, served):
    recommender = Recommender.load(packed_export, threads=1)
    before = recommender.stored_news.vectors
    columns = [["Rain over the hills"], ["weather"], ["storms"], ["It rained."]]
    recommender.add_news(["X1"], *columns)
    after = recommender.stored_news.vectors
    assert isinstance(after, Packed)
    assert after.values.dtype == before.values.dtype
    np.testing.assert_array_equal(after.values[2:-1], before.values[2:])
    (expected,) = recommender.encode_news(*columns)
    np.testing.assert_allclose(after[-1], expected, atol=np.abs(expected).max() / 250)
    mean = recommender.news_vectors[2:].mean(axis=0)
    np.testing.assert_allclose(after[1], mean, atol=np.abs(mean).max() / 250)

    news = tmp_path / "news.tsv"
    news.write_text("X1\tweather\tstorms\tRain over the hills\tIt rained.\t\t\t\n")
    main(["encode-news", str(packed_export), f"--news={news}", f"--output={tmp_path / 'new'}"])
    again = Recommender.load(tmp_path / "new", threads=1)
    assert read_manifest(tmp_path / "new")["vectors"] == before.values.dtype.name
    np.testing.assert_array_equal(again.stored_news.vectors.values, after.values)
    np.testing.assert_array_equal(again.news_vectors, recommender.news_vectors)


def test_a_folder_without_news_starts_in_its_type(packed_export, tmp_path):
    folder = Path(shutil.copytree(packed_export, tmp_path / "bare"))
    for name in ("news_vectors.npy", "news_scales.npy", "news.parquet"):
        (folder / name).unlink(missing_ok=True)
    rewrite(folder)
    recommender = Recommender.load(folder, threads=1)
    recommender.add_news(["X1"], ["Rain"], ["weather"], ["storms"], ["It rained."])
    assert recommender.stored_news.vectors.values.dtype == packed_export.name
    assert recommender.recommend([], k=1).news_ids == ["X1"]


@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        ("news_scales.npy", lambda old: np.append(old[:-1], np.nan).astype(np.float32),
         r"news_scales\.npy: row \d+ holds NaN or infinity"),
        ("news_scales.npy", lambda old: -old, r"it should hold float32 \[\d+\], 0 or more"),
        ("news_scales.npy", lambda old: old[:-1], r"news_scales\.npy holds float32 \[\d+\]; it sh"),
        ("news_scales.npy", lambda old: old.astype(np.float64), r"scales\.npy holds float64"),
        ("news_scales.npy", lambda old: old[:, None], r"holds float32 \[\d+, 1\]"),
        ("news_vectors.npy", lambda old: old.astype(np.float32), r"holds float32 .* ask for int8"),
        ("news_vectors.npy", lambda old: old.view(np.uint8), "holds uint8 .* ask for int8"),
        ("news_vectors.npy", lambda old: old[:, :-1], "ask for int8"),
        ("news_vectors.npy", lambda old: old[1:], "ask for int8|has .* lines"),
        ("news_vectors.npy", lambda old: np.int8(3), "news.parquet has .* lines|ask for int8"),
    ],
)  # fmt: skip
def test_arrays_that_do_not_fit_are_refused(packed_exports, tmp_path, name, array, words):
    folder = Path(shutil.copytree(packed_exports["int8"], tmp_path / "export"))
    np.save(folder / name, array(np.load(folder / name)))
    rewrite(folder)
    with pytest.raises(UserError, match=words):
        Recommender.load(folder)


def test_infinity_in_float16_is_refused(packed_exports, tmp_path):
    folder = Path(shutil.copytree(packed_exports["float16"], tmp_path / "export"))
    vectors = np.load(folder / "news_vectors.npy")
    vectors[3, 1] = -np.inf
    np.save(folder / "news_vectors.npy", vectors)
    rewrite(folder)
    with pytest.raises(UserError, match=r"news_vectors\.npy: row 3 holds NaN or infinity"):
        Recommender.load(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vectors": "int4"}, "vectors is 'int4', and should be one of float32, float16, int8"),
        ({"vectors": ["int8"]}, "vectors is "),
        ({"vectors": "float16"}, r"must name news_scales\.npy if vectors are int8, and only then"),
        ({"vectors": "float32"}, "must name news_scales"),
        ({"format": MATCHING_FORMAT}, "has format 3, matching is dot, vectors are int8"),
    ],
)
def test_a_manifest_that_names_another_type_is_refused(packed_exports, tmp_path, changes, words):
    folder = Path(shutil.copytree(packed_exports["int8"], tmp_path / "export"))
    rewrite(folder, **changes)
    with pytest.raises(UserError, match=words):
        Recommender.load(folder)


def test_a_changed_type_is_noticed(packed_exports, tmp_path):
    folder = Path(shutil.copytree(packed_exports["float16"], tmp_path / "export"))
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"vectors": "float16"', '"vectors": "int8"'))
    with pytest.raises(UserError, match=r"must name news_scales|not as it was written"):
        Recommender.load(folder)


def test_vectors_stay_in_the_file(packed_export):
    vectors = Recommender.load(packed_export, threads=1).stored_news.vectors
    base = vectors.values
    while base.base is not None and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)
    assert base.mode == "r"
