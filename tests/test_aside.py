import os
import signal
import time
from pathlib import Path

import pytest
from forks import started

from newsrec import aside
from newsrec.aside import MARK, STOPS, file_aside, folder_aside, remove_left_overs
from newsrec.files import publish, write_bytes


def build_slowly(says, target):
    for number in STOPS:  # nohup, for one, hands SIGHUP on as ignored
        signal.signal(number, signal.SIG_DFL)

    def build(folder):
        (folder / "half").write_text("half")
        says.send("building")
        time.sleep(120)

    publish(target, build)


def building(target):
    """A process in the midst of building ``target``."""
    process, hears = started(build_slowly, target)
    assert hears.recv() == "building"
    return process


def end(process, number):
    os.kill(process.pid, number)
    process.join()
    return process.exitcode


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, *((signal.SIGHUP,) if hasattr(signal, "SIGHUP") else ())]
)
def test_a_signal_takes_away_what_was_built(tmp_path, number):
    process = building(tmp_path / "new")
    assert len(names(tmp_path)) == 1
    assert end(process, number) == 128 + number
    assert names(tmp_path) == []


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="has no SIGHUP")
@pytest.mark.parametrize("numbers", [STOPS, STOPS[::-1]])
def test_a_signal_of_the_other_kind_does_not_disturb_what_the_first_one_undoes(numbers):
    """A closed terminal sends SIGHUP, and a service manager SIGTERM."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in numbers}
    undone = []

    def build():
        with aside.stopped_by_signals():
            try:
                signal.raise_signal(numbers[0])
            finally:
                signal.raise_signal(numbers[1])
                undone.append(True)

    try:
        with pytest.raises(SystemExit) as stop:
            build()
        assert [signal.getsignal(number) for number in numbers] == [signal.SIG_DFL] * 2
    finally:
        for number, action in before.items():
            signal.signal(number, action)
    assert undone
    assert stop.value.code == 128 + numbers[0]


def test_what_a_killed_process_left_goes_with_the_next_one_for_the_same_target(tmp_path):
    killed, living = building(tmp_path / "new"), building(tmp_path / "new")
    other = building(tmp_path / "newer")
    assert end(killed, signal.SIGKILL) == -signal.SIGKILL
    assert end(other, signal.SIGKILL) == -signal.SIGKILL
    assert len(names(tmp_path)) == 3
    seen = []
    publish(tmp_path / "new", lambda folder: seen.extend(names(tmp_path)))
    assert len([name for name in seen if name.startswith(".new.")]) == 2  # the living one, and own
    (left,) = (name for name in names(tmp_path) if name.startswith(".new."))
    assert (tmp_path / left / "half").is_file()
    assert len([name for name in names(tmp_path) if name.startswith(".newer.")]) == 1
    end(living, signal.SIGTERM)
    assert [name.split(".building-")[0] for name in names(tmp_path)] == [".newer", "new"]


def test_a_killed_writer_of_a_file_leaves_nothing_for_long(tmp_path):
    left = tmp_path / f".curves.png{MARK}abcd1234"
    left.write_bytes(b"half")
    write_bytes(tmp_path / "curves.png", b"whole")
    assert names(tmp_path) == ["curves.png"]
    assert (tmp_path / "curves.png").read_bytes() == b"whole"
    assert (tmp_path / "curves.png").stat().st_mode & 0o777 == 0o644


def test_what_is_not_ours_stays(tmp_path):
    mine = [".new-backup", ".new.building-", ".new.building-2024", ".new.building-ABCDEFGH"]
    mine.append("new.x")
    for name in mine:
        (tmp_path / name).mkdir()
    (tmp_path / ".new.building-aaaaaaaa").symlink_to(tmp_path / "new.x")
    remove_left_overs(tmp_path / "new")
    assert names(tmp_path) == sorted([*mine, ".new.building-aaaaaaaa"])


def test_where_there_are_no_locks_nothing_is_taken_away(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(aside.fcntl, "flock", none)
    left = tmp_path / ".new.building-abcd1234"
    left.mkdir()
    publish(tmp_path / "new", lambda folder: (folder / "a").touch())
    assert names(tmp_path) == [left.name, "new"]


def test_what_is_taken_away_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    flock, taken = aside._flock, []

    def taken_away(handle, wait=True):
        if not taken:
            taken.extend(tmp_path.iterdir())
            taken[0].rmdir()
        flock(handle, wait)

    monkeypatch.setattr(aside, "_flock", taken_away)
    with folder_aside(tmp_path / "new") as folder:
        assert folder.is_dir()
        assert folder != taken[0]
    assert names(tmp_path) == []


def test_a_handler_that_somebody_set_is_left_alone(tmp_path):
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append("theirs"))
    try:
        with file_aside(tmp_path / "new"):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0)
        assert seen == ["theirs"]
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with file_aside(tmp_path / "new"):
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)
    assert Path(tmp_path).is_dir()


def test_a_file_that_windows_holds_for_a_moment_is_replaced(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("new")
    target, replace, tries = tmp_path / "b", Path.replace, []

    def held(path, to):
        tries.append(path)
        if len(tries) < 3:
            raise PermissionError(13, "is used by another process")
        return replace(path, to)

    monkeypatch.setattr(Path, "replace", held)
    monkeypatch.setattr(aside, "PAUSES", (0.0, 0.0))
    monkeypatch.setattr(aside.sys, "platform", "win32")
    aside.put(tmp_path / "a", target)
    assert target.read_text() == "new"
    monkeypatch.setattr(aside.sys, "platform", "linux")
    tries.clear()
    with pytest.raises(PermissionError):
        aside.put(target, tmp_path / "c")
    assert len(tries) == 1


def test_a_folder_is_built_where_none_can_be_opened_or_replaced(tmp_path, monkeypatch):
    """As on Windows, which has no flock, opens no folder and renames onto none."""
    opened, rename = os.open, Path.rename

    def open_files(path, *args, **kwargs):
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied")
        return opened(path, *args, **kwargs)

    def onto_nothing(path, to):
        if Path(to).exists():
            raise FileExistsError(17, "exists already")
        return rename(path, to)

    monkeypatch.setattr(aside, "fcntl", None)
    monkeypatch.setattr(aside.os, "open", open_files)
    monkeypatch.setattr(Path, "rename", onto_nothing)
    (tmp_path / "empty").mkdir()
    for target in (tmp_path / "new", tmp_path / "empty"):
        publish(target, lambda folder: (folder / "x").write_text("1"))
        assert (target / "x").read_text() == "1"
    assert sorted(os.listdir(tmp_path)) == ["empty", "new"]
