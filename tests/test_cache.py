import hashlib
import json
import os
import threading
from pathlib import Path

import pytest

from newsrec.data import cache
from newsrec.data.cache import (
    cache_folder,
    content_hashes,
    digest,
    publish,
    require_empty,
    write_text,
)
from newsrec.errors import UserError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_published_folder_appears_with_all_its_files(tmp_path):
    target = tmp_path / "new" / "arrays"

    def build(folder):
        (folder / "a.txt").write_text("a")
        assert not target.exists()
        (folder / "b.txt").write_text("b")

    publish(target, build)
    assert names(target) == ["a.txt", "b.txt"]
    assert names(target.parent) == ["arrays"]
    assert target.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_build_that_raises_leaves_nothing(tmp_path, error):
    def build(folder):
        (folder / "half.txt").write_text("half")
        raise error

    with pytest.raises(error):
        publish(tmp_path / "arrays", build)
    assert names(tmp_path) == []


def test_the_first_to_finish_wins(tmp_path):
    target = tmp_path / "arrays"

    def slow(folder):
        (folder / "who").write_text("slow")
        publish(target, lambda other: (other / "who").write_text("fast"))

    publish(target, slow)
    assert (target / "who").read_text() == "fast"
    assert names(tmp_path) == ["arrays"]


def test_a_file_in_the_way_is_an_error(tmp_path):
    (tmp_path / "arrays").write_text("not a folder")
    with pytest.raises(OSError, match="arrays"):
        publish(tmp_path / "arrays", lambda folder: None)
    assert names(tmp_path) == ["arrays"]


def test_digests_tell_values_apart():
    parts = [(), (1,), ("1",), (1, 2), ([1, 2],), ({"a": 1},), ({"a": 2},), (None,), (Path("1a"),)]
    assert len({digest(*part) for part in parts}) == len(parts)
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest("a") == hashlib.sha256(b'["a"]').hexdigest()[:16]


def test_hashes_are_remembered_by_size_and_time(tmp_path, monkeypatch):
    path, index = tmp_path / "news.tsv", tmp_path / "files.json"
    path.write_text("one")
    first = content_hashes([path], index)
    assert first == {path: hashlib.sha256(b"one").hexdigest()}

    hashed = []
    file_hash = cache.file_hash
    monkeypatch.setattr(cache, "file_hash", lambda p: hashed.append(p) or file_hash(p))
    assert content_hashes([path], index) == first
    assert hashed == []
    os.utime(path, (1, 1))
    assert content_hashes([path], index) == first
    path.write_text("two")
    os.utime(path, (2, 2))
    assert content_hashes([path], index) == {path: hashlib.sha256(b"two").hexdigest()}
    path.write_text("three")
    os.utime(path, (2, 2))
    assert content_hashes([path], index) == {path: hashlib.sha256(b"three").hexdigest()}
    assert hashed == [path] * 3


def test_a_file_that_changes_while_it_is_hashed_is_hashed_again(tmp_path, monkeypatch):
    path, index = tmp_path / "news.tsv", tmp_path / "files.json"
    path.write_text("one")
    os.utime(path, (1, 1))

    def hash_and_change(path):
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        path.write_text("two")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(cache, "file_hash", hash_and_change)
        content_hashes([path], index)
    assert content_hashes([path], index) == {path: hashlib.sha256(b"two").hexdigest()}


def test_an_index_remembers_files_that_were_not_asked_for(tmp_path):
    index = tmp_path / "files.json"
    for name in "ab":
        (tmp_path / name).write_text(name)
        content_hashes([tmp_path / name], index)
    assert sorted(Path(name).name for name in json.loads(index.read_text())) == ["a", "b"]


@pytest.mark.parametrize("damage", ["", "{", '{"news.tsv": [1', "\0\0\0"])
def test_a_damaged_index_is_made_anew(tmp_path, damage):
    path, index = tmp_path / "news.tsv", tmp_path / "files.json"
    path.write_text("one")
    index.write_text(damage)
    assert content_hashes([path], index) == {path: hashlib.sha256(b"one").hexdigest()}
    assert list(json.loads(index.read_text())) == [str(path)]


def test_text_is_whole_whoever_writes_it(tmp_path):
    path = tmp_path / "files.json"
    texts = [str(i) * 100_000 for i in range(4)]
    threads = [threading.Thread(target=write_text, args=(path, text)) for text in texts * 5]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert not path.exists() or path.read_text() in texts
    assert path.read_text() in texts
    assert names(tmp_path) == ["files.json"]


def test_arrays_live_beside_the_data(tmp_path):
    assert cache_folder(tmp_path) == tmp_path / ".newsrec"
    assert cache_folder(tmp_path).is_dir()


def test_read_only_data_has_its_arrays_in_the_users_cache(tmp_path, monkeypatch):
    one, two, home = (tmp_path / name for name in ("one", "two", "home"))
    for folder in (one, two):
        (folder / ".newsrec").mkdir(parents=True)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    assert cache_folder(one).parent == home / "newsrec"
    assert cache_folder(one).is_dir()
    assert cache_folder(one) != cache_folder(two)
    monkeypatch.chdir(tmp_path)
    assert cache_folder(Path("one")) == cache_folder(one)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(home))
    assert cache_folder(one).parent == home / ".cache" / "newsrec"


def test_only_an_absent_or_empty_folder_may_be_written(tmp_path):
    require_empty(tmp_path / "absent")
    require_empty(tmp_path)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match=f"{tmp_path} is not empty. Choose another"):
        require_empty(tmp_path)
    with pytest.raises(UserError, match="is not empty"):
        require_empty(tmp_path, "Go on.")
    with pytest.raises(UserError, match="is a file"):
        require_empty(tmp_path / "mine.txt", "Go on.")
