"""``batch`` in several processes of this machine: the same bytes, and what is left after kills."""

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from batch_world import users_of, write_export, write_users
from conftest import refused
from processes import (
    is_running,
    killed_when,
    processes,
    work_killed_while_counting,
    work_long,
    work_short,
)

from newsrec import on_processes
from newsrec.__main__ import main
from newsrec.aside import stopped_by_signals
from newsrec.errors import UserError
from newsrec.files import file_hash
from newsrec.on_processes import run_in_processes
from newsrec.serving import batch_engines, batch_run
from newsrec.serving.batch_run import run_batch

OURS = "multiprocessing.spawn"
"""What the command line of a process that scores has in it."""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    write_export(root / "export")
    write_users(root / "users", sizes=(120, 80))
    return root


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """An export that takes its time, and users enough for two processes."""
    root = tmp_path_factory.mktemp("many")
    write_export(root / "export", news=20_000)
    write_users(root / "users", sizes=(6000,), news=20_000)
    words = ["batch", str(root / "export"), "--users", str(root / "users"), "-k", "7",
             "--users_per_part", "300", "--workers", "2"]  # fmt: skip
    main([*words, "--output", str(root / "whole"), "--workers", "1"])
    return words, {path.name: file_hash(path) for path in (root / "whole").glob("part-*")}


def words_of(world, output, *more):
    return ["batch", f"{world / 'export'}", "--users", f"{world / 'users'}", "--output",
            f"{output}", "-k", "5", "--users_per_part", "110", "--workers", "5", *more]  # fmt: skip


def test_processes_write_the_bytes_of_one_process_and_count_all_users(world, tmp_path, monkeypatch):
    counted, threads = [], []

    def run(*given, advance, **more):
        threads.append(more["threads"])
        return on_processes.run_in_processes(
            *given, advance=lambda n: (counted.append(n), advance(n)), **more
        )

    main(words_of(world, tmp_path / "one"))  # too few users for more
    assert not threads
    monkeypatch.setattr(batch_engines, "USERS_PER_PROCESS", 1)
    monkeypatch.setattr(batch_engines, "run_in_processes", run)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    main(words_of(world, tmp_path / "two"))
    assert threads == [2]  # five workers are two processes of two threads
    assert sum(counted) == 200
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert not multiprocessing.active_children()
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_users_in_the_memory_of_this_process_are_scored_in_it(world, tmp_path, monkeypatch):
    fsspec = pytest.importorskip("fsspec")
    monkeypatch.setattr(batch_engines, "USERS_PER_PROCESS", 1)
    fsspec.filesystem("memory").put(str(world / "users"), "/on_processes/users", recursive=True)
    for users, output in (
        ("memory://on_processes/users", str(tmp_path / "out")),
        (str(world / "users"), "memory://on_processes/out"),
    ):
        found = run_batch(world / "export", users, output, k=5, users_per_part=110, workers=2)
        assert found["counts"]["users"] == 200


def begin(folder, number, advance):
    """Work that writes a file whole or not at all, which takes long; but for the first part."""
    (folder / str(number)).touch()
    with stopped_by_signals():
        time.sleep(60 if number else 0)


def test_processes_that_are_writing_take_no_other_part_when_they_are_stopped(tmp_path):
    """They would go on in place of ending, as whoever writes a file undoes it at a SIGTERM."""
    parts = on_processes.run_in_processes(begin, tmp_path, [0, 1, 2, 3, 4, 5], 2, killed="killed")
    next(parts)
    while len(list(tmp_path.iterdir())) < 3:
        time.sleep(0.01)
    parts.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2"]
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_a_script_without_a_main_guard_may_use_processes(world, tmp_path):
    (tmp_path / "script.py").write_text(
        "from newsrec.serving import batch_engines\n"
        "from newsrec.serving.batch_run import run_batch\n"
        "print('once')\n"
        "batch_engines.USERS_PER_PROCESS = 1\n"
        f"run_batch({str(world / 'export')!r}, {str(world / 'users')!r}, 'out', k=5, workers=2,\n"
        "          users_per_part=110)\n"
    )
    command = [sys.executable, "script.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "once\n", "")
    assert len(list((tmp_path / "out").glob("part-*"))) == 2


def test_a_daemonic_process_which_may_start_no_other_scores_alone(world, tmp_path, monkeypatch):
    monkeypatch.setattr(batch_engines, "USERS_PER_PROCESS", 1)
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)
    found = run_batch(world / "export", world / "users", tmp_path / "out", k=5, users_per_part=110)
    assert found["counts"]["users"] == 200


@pytest.mark.slow
def test_a_bad_row_in_a_part_of_another_process_is_named(world, tmp_path, monkeypatch, capsys):
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.setattr(batch_engines, "USERS_PER_PROCESS", 1)
    users = users_of(0, 200)
    history = users["history"].to_pylist()
    history[150] = None
    column = pa.array(history, pa.list_(pa.string()))
    (tmp_path / "users").mkdir()
    pq.write_table(users.set_column(1, "history", column), tmp_path / "users" / "a.parquet")
    (tmp_path / "export").symlink_to(world / "export")
    said = refused(capsys, *words_of(tmp_path, tmp_path / "out"))
    assert "a.parquet, row 150, column history: null; write an empty list" in said
    assert "keeps 1 of 2 parts" in said
    main(words_of(tmp_path, tmp_path / "out", "--resume", "--on_bad_line", "drop"))
    assert len(pq.read_table(tmp_path / "out")) == 199


@pytest.mark.slow
@pytest.mark.parametrize("kept", [0, 2])
def test_a_killed_process_ends_the_command_which_can_be_continued(many, tmp_path, capsys, kept):
    words, whole = many
    words = [*words, "--output", str(tmp_path / "out")]
    work = tmp_path / "out.unfinished"

    def begun():
        some = list(work.glob(".part-*")) if not kept else list(work.glob("part-*"))
        return len(some) >= max(kept, 1)

    with killed_when(begun, OURS):
        said = refused(capsys, *words)
    assert "A process that scored users was killed, perhaps because the memory was full" in said
    assert "--resume, and with fewer than --workers 2." in said
    assert not multiprocessing.active_children()
    assert not list(tmp_path.rglob(".*"))  # no half part
    assert work.exists() == bool(list(work.glob("part-*")))
    main([*words, "--resume"])
    assert {path.name: file_hash(path) for path in (tmp_path / "out").glob("part-*")} == whole


@pytest.mark.slow
@pytest.mark.parametrize("to", [os.kill, os.killpg])  # a terminal stops the whole group
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_no_process_outlives_a_stopped_command(many, tmp_path, sent, to):
    words, whole = many
    words = [*words, "--output", str(tmp_path / "out")]
    work = tmp_path / "out.unfinished"
    line = [sys.executable, "-m", "newsrec", *words]
    options = {"stderr": subprocess.PIPE, "text": True, "start_new_session": True}

    def default():  # signals may be ignored here, as below nohup
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)

    with subprocess.Popen(line, preexec_fn=default, **options) as command:
        while not list(work.glob("part-*")):
            assert command.poll() is None
            time.sleep(0.01)
        below = processes(command.pid, OURS)
        assert len(below) >= 2
        to(command.pid, sent)
        said = command.communicate(timeout=30)[1]
    assert command.returncode == (-9 if sent == signal.SIGKILL else 128 + sent)
    end = time.monotonic() + 20
    while any(map(is_running, below)):
        assert time.monotonic() < end
        time.sleep(0.1)
    if sent != signal.SIGKILL:
        assert "The same command with --resume continues." in said
        assert "Traceback" not in said
        assert not list(work.glob(".part-*"))
    main([*words, "--resume"])
    assert {path.name: file_hash(path) for path in (tmp_path / "out").glob("part-*")} == whole


def test_an_engine_is_closed_when_a_part_fails(world, tmp_path, monkeypatch):
    """Its processes would otherwise write on while the folder is looked through."""
    closed = []

    def engine(*given):
        try:
            yield {"number": 0, "error": "no."}
        finally:
            closed.append(True)

    monkeypatch.setattr(batch_run, "make_engine", lambda *given: engine)
    with pytest.raises(UserError, match="no"):
        run_batch(world / "export", world / "users", tmp_path / "out", k=5)
    assert closed
    assert not list(tmp_path.iterdir())


def test_a_process_that_is_ended_by_a_signal_is_told_as_a_killed_one():
    """The pool would take the end of the work for a result, and let the process go on."""

    def end_one(amount):
        for worker in processes(os.getpid(), OURS)[:1]:
            os.kill(worker, signal.SIGTERM)

    with pytest.raises(UserError, match="It was killed"):
        list(run_in_processes(work_long, None, [0, 1], 2, killed="It was killed.", advance=end_one))
    assert not multiprocessing.active_children()


def test_a_process_that_is_killed_while_it_counts_is_told_as_any_other():
    """It leaves the counter locked."""
    with pytest.raises(UserError, match="It was killed"):
        list(run_in_processes(work_killed_while_counting, None, [0], 1, killed="It was killed."))


@pytest.mark.parametrize("which", [0, 1])
def test_processes_that_are_killed_after_their_last_part_are_not_waited_for(which):
    """One of the two waits for a next part, and the other for its turn to wait."""
    results = run_in_processes(work_short, None, [0, 1], 2, killed="")
    assert [next(results), next(results)] == [0, 1]
    time.sleep(0.5)
    os.kill(sorted(processes(os.getpid(), OURS))[which], signal.SIGKILL)
    assert not list(results)
    assert not multiprocessing.active_children()


def test_a_second_ctrl_c_does_not_keep_processes(monkeypatch):
    end = on_processes._end

    def ctrl_c(*given):
        os.kill(os.getpid(), signal.SIGINT)
        if given[0] != 1:  # the first time it is what advance does
            end(*given)

    monkeypatch.setattr(on_processes, "_end", ctrl_c)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored here
    try:
        with pytest.raises(KeyboardInterrupt):
            list(run_in_processes(work_long, None, [0], 1, killed="", advance=ctrl_c))
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("where", "error", "said"),
    [
        (on_processes.SpawnProcess, OSError(errno.EMFILE, "Too many open files"), "Too many open"),
        (threading.Thread, RuntimeError("can't start new thread"), "can't start new thread"),
    ],
)
def test_processes_that_cannot_be_started_are_a_message(monkeypatch, where, error, said):
    def start(*given):
        raise error

    monkeypatch.setattr(where, "start", start)
    with pytest.raises(UserError, match=rf"9 processes could not be started \({said}.*fewer"):
        list(run_in_processes(work_long, None, [0], 9, killed=""))
    assert not multiprocessing.active_children()


def test_threads_that_start_processes_at_once_leave_the_script_in_its_place():
    main_module, inside, leave = sys.modules["__main__"], threading.Event(), threading.Event()

    def start():
        with on_processes.without_main():
            inside.set()
            leave.wait(10)

    other = threading.Thread(target=start)
    with on_processes.without_main():
        other.start()
        assert not inside.wait(0.05)
    leave.set()
    other.join()
    assert sys.modules["__main__"] is main_module
