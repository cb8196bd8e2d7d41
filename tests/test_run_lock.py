"""One run at a time in a run folder; what killed runs left is cleared by the next."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import fit_options, refused
from forks import started
from warm import Process

from newsrec.__main__ import main
from newsrec.errors import UserError
from newsrec.training.checkpoint.saving import AtomicCheckpointIO
from newsrec.training.processes import run_lock
from newsrec.training.processes.run_lock import HOLDER, LOCK, RunLock


def hold(says, run):
    lock = RunLock(run)
    lock.take()
    says.send("taken")
    time.sleep(600)


def test_a_second_run_is_refused_in_a_sentence_and_changes_nothing(
    mind_dir, plm_dir, tmp_path, capsys
):
    run = tmp_path / "run"
    lock = RunLock(run)
    lock.take()
    before = {path: path.read_bytes() for path in run.iterdir()}
    said = refused(capsys, *fit_options(mind_dir, plm_dir, run))
    assert f"Another run is running in {run} (process {os.getpid()} on" in said
    assert {path: path.read_bytes() for path in run.iterdir()} == before
    lock.release()
    main([*fit_options(mind_dir, plm_dir, run), "--baselines=false"])
    assert (run / "checkpoints" / "best.ckpt").is_file()
    assert not (run / HOLDER).exists()


def test_the_lock_of_a_killed_process_is_free_at_once(tmp_path):
    run = tmp_path / "run"
    process, hears = started(hold, run)
    assert hears.recv() == "taken"
    with pytest.raises(UserError, match=f"process {process.pid} on"):
        RunLock(run).take()
    process.kill()
    process.join()
    lock = RunLock(run)
    lock.take()
    assert json.loads((run / HOLDER).read_text())["pid"] == os.getpid()
    lock.release()


def test_parts_that_killed_runs_left_are_removed_by_the_next(tmp_path):
    checkpoints = tmp_path / "run" / "checkpoints"
    checkpoints.mkdir(parents=True)
    for name in (".last.ckpt-1-ab.part", ".best.ckpt-2-cd.part", "last.ckpt"):
        (checkpoints / name).write_bytes(b"x")
    lock = RunLock(tmp_path / "run")
    lock.take()
    assert [path.name for path in checkpoints.iterdir()] == ["last.ckpt"]
    assert not lock.made
    lock.release()


def test_two_writers_of_one_checkpoint_never_share_a_part(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("torch.save", lambda content, file: seen.append(file.name))
    for _ in range(3):
        AtomicCheckpointIO().save_checkpoint({}, tmp_path / "last.ckpt")
    assert len(set(seen)) == 3


def test_a_start_that_fails_removes_only_the_folder_that_it_made(
    mind_dir, plm_dir, tmp_path, capsys
):
    own, others = tmp_path / "own", tmp_path / "others"
    others.mkdir()
    for run in (own, others):
        refused(capsys, *fit_options(mind_dir, plm_dir, run), "--data.train=nowhere")
    assert not own.exists()
    assert others.is_dir()


def test_a_start_that_fails_leaves_what_somebody_put_into_its_folder(tmp_path):
    for name in ("config.yaml", "notes.txt"):
        lock = RunLock(tmp_path / name)
        lock.take()
        (lock.folder / name).write_text("x")
        lock.discard({"config.yaml", LOCK, HOLDER})
        lock.release()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert os.listdir(tmp_path / "notes.txt") == ["notes.txt"]


def test_on_windows_the_lock_is_given_back_before_its_file_goes(tmp_path, monkeypatch):
    lock, plain = RunLock(tmp_path / "run"), Path.unlink

    def unlink(path, *args, **options):
        if path.name == LOCK and lock._lock.is_locked:
            raise PermissionError("the file is open")
        plain(path, *args, **options)

    monkeypatch.setattr(Path, "unlink", unlink)
    monkeypatch.setattr(run_lock, "sys", SimpleNamespace(platform="win32"))
    lock.take()
    lock.discard({LOCK, HOLDER})
    lock.release()
    assert not lock.folder.exists()


def test_a_file_system_without_locks_costs_a_warning(tmp_path, monkeypatch, caplog):
    (tmp_path / "checkpoints").mkdir()
    part = tmp_path / "checkpoints" / ".last.ckpt-1-ab.part"
    part.write_bytes(b"perhaps of a run that lives")
    lock = RunLock(tmp_path)

    def refuse():
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock._lock, "acquire", refuse)
    lock.take()
    lock.release()
    assert "do not start a second run" in caplog.text
    assert part.is_file()


@pytest.mark.slow
def test_of_two_runs_started_at_once_one_trains_and_one_is_refused(mind_dir, plm_dir, tmp_path):
    run = tmp_path / "run"
    options = [*fit_options(mind_dir, plm_dir, run), "--baselines=false", "--ckpt_path=auto"]
    options += ["--trainer.max_epochs=60", "--save_every=1"]
    both = [Process(options) for _ in range(2)]
    done = sorted([process.finish() for process in both], key=lambda each: each.returncode)
    assert [each.returncode for each in done] == [0, 2], done
    assert "Another run is running in" in done[1].stderr
    assert "Traceback" not in done[1].stderr
    assert (run / "summary.json").is_file()
    assert not list((run / "checkpoints").glob(".*"))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "killpg"), reason="Windows has no groups of processes")
def test_a_signal_to_all_processes_of_a_run_saves_and_loses_no_worker(mind_dir, plm_dir, tmp_path):
    run = tmp_path / "run"
    command = [
        sys.executable, "-m", "newsrec", *fit_options(mind_dir, plm_dir, run),
        "--data.num_workers=2", "--save_every=1", "--trainer.max_epochs=500", "--baselines=false",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    last = run / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 120
    while not last.is_file() and time.monotonic() < deadline:
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 143, said
    assert "Stopped by SIGTERM" in said
    assert "Traceback" not in said
    main(["fit", "--ckpt_path=last", f"--output={run}", "--trainer.max_steps=3"])
