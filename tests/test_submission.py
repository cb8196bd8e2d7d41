import zipfile

import numpy as np
import pytest

from newsrec.data.ragged import to_offsets
from newsrec.evaluation import submission
from newsrec.evaluation.submission import write_predictions


def lines_of(path):
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["prediction.txt"]
        return archive.read("prediction.txt").decode()


def test_a_line_is_the_id_and_the_ranks_in_brackets(tmp_path):
    path = tmp_path / "prediction.zip"
    write_predictions(path, np.array([7, 3]), np.array([2, 1, 3, 1]), np.array([0, 3, 4]))
    assert lines_of(path) == "7 [2,1,3]\n3 [1]\n"


@pytest.mark.parametrize("chunk", [1, 7, 100, 1000])
def test_chunks_change_nothing(tmp_path, monkeypatch, chunk):
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 30, 100)
    offsets = to_offsets(lengths)
    ranks = np.concatenate([rng.permutation(n) + 1 for n in lengths])
    ids = rng.permutation(100) + 1
    monkeypatch.setattr(submission, "CHUNK", chunk)
    write_predictions(tmp_path / "prediction.zip", ids, ranks, offsets)
    expected = "".join(
        f"{number} [{','.join(str(r) for r in ranks[a:b])}]\n"
        for number, a, b in zip(ids, offsets[:-1], offsets[1:], strict=True)
    )
    assert lines_of(tmp_path / "prediction.zip") == expected


def test_an_impression_longer_than_a_chunk_and_an_empty_one_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr(submission, "CHUNK", 2)
    path = tmp_path / "prediction.zip"
    write_predictions(path, np.array([9, 8, 7]), np.array([3, 1, 2, 1]), np.array([0, 3, 3, 4]))
    assert lines_of(path) == "9 [3,1,2]\n8 []\n7 [1]\n"
    write_predictions(path, np.array([], int), np.array([], int), np.array([0]))
    assert lines_of(path) == ""


def test_the_same_ranks_give_the_same_bytes(tmp_path):
    for name in ("a.zip", "b.zip"):
        write_predictions(tmp_path / name, np.array([1]), np.array([1, 2]), np.array([0, 2]))
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
