"""Processes with one fate, machines without a shared disk, children that end with their parent."""

import os
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from resuming import assert_same, last
from test_processes import options as options
from test_processes import run, torchrun

from newsrec.errors import UserError
from newsrec.training import together
from newsrec.training.together import one_fate

FAILING = """
import sys
from lightning import Callback
from newsrec import cli
from newsrec.__main__ import main
from newsrec.errors import UserError

class Fail(Callback):
    def describe(self, trainer): return None
    def on_train_batch_start(self, trainer, *args):
        if trainer.global_step == 3 and trainer.global_rank == 1:
            raise UserError("no room on this disk")

cli.StepParts = Fail
main(sys.argv[1:])
"""
PATIENT = {"OMP_NUM_THREADS": "1"}


def free_port():
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def on_two_machines(options, folders, *more):
    """Run on two agents, each in a folder, a home and an environment of its own; return both."""
    port = free_port()
    agents = [
        subprocess.Popen(
            [*torchrun("-m", "newsrec", nodes=2, node=node, port=port, processes=1), *options],
            env=os.environ | PATIENT | {"HOME": str(folder), "PYTHONPATH": os.getcwd()},
            cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for node, folder in enumerate(folders)
    ]  # fmt: skip
    said = [agent.communicate(timeout=240)[0] for agent in agents]
    return [agent.returncode for agent in agents], said


@pytest.fixture
def private(options, mind_dir, tmp_path):
    """Options with relative paths, and two folders that each have a copy of the data."""
    folders = [tmp_path / "one", tmp_path / "other"]
    for folder in folders:
        shutil.copytree(mind_dir, folder / "mind")
    kept = [o for o in options if not o.startswith(("--data.root", "--trainer.max_epochs"))]
    return [
        *kept, "--data.root=mind", "--output=run", "--trainer.devices=1",
        "--model.schedule=constant", "--model.warmup=0", "--model.precision=fp32",
    ], folders  # fmt: skip


def test_one_process_needs_no_watch():
    with pytest.raises(UserError, match="as it is"), one_fate(SimpleNamespace(world_size=1)):
        raise UserError("as it is")


def test_a_failure_reaches_the_others_through_the_store(monkeypatch):
    store = torch.distributed.HashStore()
    monkeypatch.setattr(together, "_connect", lambda: store)
    monkeypatch.setattr(together, "HEARD", 0.0)
    monkeypatch.setattr(together, "POLL", 0.01)
    ended = []
    monkeypatch.setattr(together.os, "_exit", lambda code: ended.append(code) or sys.exit())
    other = together._Watch(rank=0)
    other.start()
    failing = SimpleNamespace(world_size=2, global_rank=1)
    with pytest.raises(UserError), one_fate(failing):
        raise UserError("disk full")
    other.join(10)
    assert ended == [2]


@pytest.mark.slow
def test_the_failure_of_a_process_ends_all_with_its_message(options, tmp_path):
    script = tmp_path / "failing.py"
    script.write_text(FAILING)
    command = [sys.executable, str(script), *options, f"--output={tmp_path / 'run'}"]
    done = run([*command, "--trainer.devices=2", "--trainer.strategy=ddp"])
    assert done.returncode != 0
    assert "newsrec: error:" in done.stderr
    assert "no room on this disk" in done.stderr


@pytest.mark.slow
def test_machines_without_a_shared_disk_train_stop_and_go_on_as_with_one(private, tmp_path):
    options, folders = private
    for epochs in (1, 2):
        more = [f"--trainer.max_epochs={epochs}", "--ckpt_path=auto"]
        codes, said = on_two_machines([*options, *more], folders)
        assert codes == [0, 0], "\n=====\n".join(said)
        assert "Best checkpoint" in said[0]
    assert (folders[1] / "run" / "checkpoints" / "last.ckpt").is_file()  # from the first machine
    whole = tmp_path / "whole"
    done = run([
        *torchrun("-m", "newsrec", processes=2), *options, f"--data.root={folders[0] / 'mind'}",
        f"--output={whole}", "--trainer.max_epochs=2", "--trainer.devices=2",
    ])  # fmt: skip
    assert done.returncode == 0, done.stderr
    for part in ("state_dict", "optimizer_states"):
        assert_same(last(whole)[part], last(folders[0] / "run")[part])


@pytest.mark.slow
def test_machines_with_different_data_are_refused_by_name(private):
    options, folders = private
    news = folders[1] / "mind" / "train" / "behaviors.tsv"
    news.write_text(news.read_text().replace("U1", "U9"))
    codes, said = on_two_machines([*options, "--trainer.max_epochs=1"], folders)
    assert 0 not in codes
    assert "Copy the same files to all machines" in said[0]


def children_of(pid):
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(word) for word in found.stdout.split()]


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("after", [0.0, 3.0, "first checkpoint"])
def test_children_end_with_their_parent(options, tmp_path, after):
    output = tmp_path / "run"
    command = [sys.executable, "-m", "newsrec", *options, f"--output={output}", "--save_every=1"]
    command += ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.max_epochs=500"]
    parent = subprocess.Popen(command, env=os.environ | PATIENT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    children = []
    while not children and time.monotonic() < deadline:
        children = children_of(parent.pid)
        time.sleep(0.05)
    if isinstance(after, float):
        time.sleep(after)
    while isinstance(after, str) and time.monotonic() < deadline:
        if (output / "checkpoints" / "last.ckpt").is_file():
            break
        time.sleep(0.1)
    children = {*children, *children_of(parent.pid)}
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 30
    while any(map(is_alive, children)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(is_alive, children))
