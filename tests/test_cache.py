import errno
import hashlib
import json
import os
import re
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from newsrec.data.cache import (
    build_lock,
    building,
    cache_folders,
    changed_files,
    digest,
    find_or_build,
    is_intact,
    is_whole,
    seal,
    writable_folder,
)
from newsrec.errors import UserError
from newsrec.files import publish, require_empty, write_text


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


@pytest.mark.parametrize("error", [OSError("4096 requested and 7 written"), RuntimeError("zip")])
def test_a_full_disk_is_told_from_other_errors(tmp_path, monkeypatch, error):
    """Of libraries that write by themselves: numpy's error has no number, others have their own."""

    def build(folder):
        raise error

    def free(number):
        monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=number))

    free(4095)
    with pytest.raises(UserError, match=rf"arrays: nothing was written.*full \({error}\)"):
        publish(tmp_path / "arrays", build)
    free(2**30)
    with pytest.raises(type(error), match=str(error)):
        publish(tmp_path / "arrays", build)
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", [".", "link", "mount"])
def test_a_folder_that_cannot_be_replaced_is_refused_before_the_work(tmp_path, monkeypatch, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    (tmp_path / "mount").mkdir()
    monkeypatch.chdir(tmp_path / "empty" if name == "." else tmp_path)
    if name == "mount":

        def busy(path):
            raise OSError(errno.EBUSY, "Device or resource busy")

        monkeypatch.setattr(Path, "rmdir", busy)
    with pytest.raises(UserError, match=rf"^{re.escape(name)} cannot be repl.*new\.$"):
        publish(Path(name), lambda folder: pytest.fail("built for nothing"))
    assert names(tmp_path) == ["empty", "link", "mount"]


def test_a_rename_that_fails_is_no_other_process_that_won(tmp_path, monkeypatch):
    (tmp_path / "arrays").mkdir()

    def busy(path, target):
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(Path, "rename", busy)
    with pytest.raises(OSError, match="busy"):
        publish(tmp_path / "arrays", lambda folder: None)
    assert names(tmp_path) == ["arrays"]


def test_an_empty_folder_is_filled_and_outlives_a_build_that_raises(tmp_path):
    (tmp_path / "arrays").mkdir()
    with pytest.raises(ZeroDivisionError):
        publish(tmp_path / "arrays", lambda folder: 1 / 0)
    assert names(tmp_path) == ["arrays"]
    publish(tmp_path / "arrays", write("one"))
    assert names(tmp_path / "arrays") == ["a.txt"]


def test_where_no_folder_can_be_made_the_place_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/new: no folder can be made in .*file \(.*--output"):
        publish(tmp_path / "file" / "new", lambda folder: pytest.fail("built for nothing"))
    assert names(tmp_path) == ["file"]


def test_digests_tell_values_apart():
    parts = [(), (1,), ("1",), (1, 2), ([1, 2],), ({"a": 1},), ({"a": 2},), (None,), (Path("1a"),)]
    assert len({digest(*part) for part in parts}) == len(parts)
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest("a") == hashlib.sha256(b'["a"]').hexdigest()[:16]


def write(text):
    """Return a build that writes one file."""
    return lambda folder: (folder / "a.txt").write_text(text)


def test_a_folder_is_built_once(tmp_path):
    built = find_or_build(tmp_path, "arrays-1", write("one"))
    assert built == tmp_path / ".newsrec" / "arrays-1"
    assert find_or_build(tmp_path, "arrays-1", write("two")) == built
    assert (built / "a.txt").read_text() == "one"
    assert find_or_build(tmp_path, "arrays-2", write("two")) != built
    assert names(tmp_path / ".newsrec") == ["arrays-1", "arrays-2", "lock"]
    assert built.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("damage", ["cut", "gone", "seal gone", "seal cut", "seal odd"])
def test_a_folder_that_is_not_whole_is_built_again(tmp_path, damage):
    built = find_or_build(tmp_path, "arrays", write("one"))
    path = built / ("seal.json" if "seal" in damage else "a.txt")
    if "gone" in damage:
        path.unlink()
    else:
        path.write_text("[1]" if "odd" in damage else path.read_text()[:-1])
    assert not is_whole(built)
    find_or_build(tmp_path, "arrays", write("two"))
    assert (built / "a.txt").read_text() == "two"


def test_bytes_that_changed_in_place_are_found_by_hashing(tmp_path):
    built = find_or_build(tmp_path, "arrays", write("one"))
    assert changed_files(built) == []
    (built / "a.txt").write_text("eno")
    assert is_whole(built)
    assert changed_files(built) == ["a.txt"]


def test_what_a_killed_build_left_is_removed_by_the_next(tmp_path):
    left = tmp_path / ".newsrec" / ".building-killed"
    left.mkdir(parents=True)
    (left / "half.npy").write_text("half")
    find_or_build(tmp_path, "arrays", write("one"))
    assert not left.exists()


def test_a_build_waits_for_another_one(tmp_path, caplog):
    order = []
    with build_lock(tmp_path):
        thread = threading.Thread(target=lambda: _lock(tmp_path, order))
        thread.start()
        thread.join(timeout=0.3)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def _lock(base, order):
    with build_lock(base):
        order.append("second")


def test_a_file_system_without_locks_is_no_hindrance(tmp_path, monkeypatch):
    def refuse(self, **kwargs):
        raise NotImplementedError("no flock here")

    monkeypatch.setattr("newsrec.data.cache.FileLock.acquire", refuse)
    left = tmp_path / ".newsrec" / ".building-of-another"
    left.mkdir(parents=True)
    find_or_build(tmp_path, "arrays", write("one"))
    assert left.exists()  # it may be at work


def test_the_first_of_two_builds_without_a_lock_wins(tmp_path):
    with building(tmp_path) as slow, building(tmp_path) as fast:
        write("slow")(slow)
        write("fast")(fast)
        seal(fast, tmp_path / "arrays")
        seal(slow, tmp_path / "arrays")
    assert (tmp_path / "arrays" / "a.txt").read_text() == "fast"
    assert names(tmp_path) == ["arrays"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_said_and_nothing_is_left(tmp_path, number):
    def build(folder):
        write("half")(folder)
        raise OSError(number, os.strerror(number))

    with pytest.raises(UserError, match=r"\.newsrec: .*; nothing was kept. Free some space"):
        find_or_build(tmp_path, "arrays", build)
    assert names(tmp_path / ".newsrec") == ["lock"]


def test_another_error_of_the_system_is_not_called_a_full_disk(tmp_path):
    def build(folder):
        raise PermissionError(errno.EACCES, "no")

    with pytest.raises(PermissionError):
        find_or_build(tmp_path, "arrays", build)


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
    assert writable_folder(tmp_path) == cache_folders(tmp_path)[0] == tmp_path / ".newsrec"
    assert (tmp_path / ".newsrec").is_dir()


def test_read_only_data_has_its_arrays_in_the_users_cache(tmp_path, monkeypatch):
    one, two, home = (tmp_path / name for name in ("one", "two", "home"))
    for folder in (one, two):
        (folder / ".newsrec").mkdir(parents=True)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).is_relative_to(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    assert writable_folder(one).parent == home / "newsrec"
    assert writable_folder(one) == cache_folders(one)[1]
    assert writable_folder(one) != writable_folder(two)
    monkeypatch.chdir(tmp_path)
    assert writable_folder(Path("one")) == writable_folder(one)
    monkeypatch.setenv("HOME", str(home))
    for ignored in ("", "relative", "./relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert writable_folder(one).parent == home / ".cache" / "newsrec"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert writable_folder(one).parent == home / ".cache" / "newsrec"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match="XDG_CACHE_HOME"):
        writable_folder(one)


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


def test_a_full_disk_is_found_out_where_the_library_does_not_say_so(tmp_path, monkeypatch):
    """As numpy's error of a short write, which has no number."""
    usage = SimpleNamespace(free=100)
    monkeypatch.setattr("newsrec.files.shutil.disk_usage", lambda folder: usage)
    short = "4000 requested and 0 written"
    with pytest.raises(UserError, match=f"{short}; nothing was kept"), building(tmp_path):
        raise OSError(short)
    usage.free = 1 << 30
    with pytest.raises(OSError, match=f"^{short}$"), building(tmp_path):
        raise OSError(short)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../outside", "{absolute}", "link"])
def test_a_seal_that_names_a_file_elsewhere_is_none(tmp_path, name):
    outside, folder = tmp_path / "outside", tmp_path / "arrays"
    outside.write_text("x")
    folder.mkdir()
    (folder / "link").symlink_to(outside)
    (folder / "own").write_text("x")
    for names, whole in ((["own"], True), (["own", name.format(absolute=outside)], False)):
        (folder / "seal.json").write_text(json.dumps({name: [1, "hash"] for name in names}))
        assert is_whole(folder) is whole


def test_a_small_file_that_changed_in_place_is_made_anew_when_it_is_opened(tmp_path, caplog):
    built = find_or_build(tmp_path, "arrays", write("one"))
    (built / "a.txt").write_text("eno")
    assert is_whole(built)
    assert not is_intact(built)
    assert find_or_build(tmp_path, "arrays", write("two")) == built
    assert (built / "a.txt").read_text() == "two"
    assert f"{built} was damaged" in caplog.text


def test_a_large_file_is_hashed_by_a_check_alone(tmp_path, monkeypatch):
    built = find_or_build(tmp_path, "arrays", write("one"))
    (built / "a.txt").write_text("eno")
    monkeypatch.setattr("newsrec.data.cache.SMALL_BYTES", 2)
    assert is_intact(built)
    assert changed_files(built) == ["a.txt"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_the_lock_follows_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        for _ in range(2):
            with build_lock(tmp_path):
                assert (tmp_path / "lock").stat().st_mode & 0o777 == mode
    finally:
        os.umask(before)
