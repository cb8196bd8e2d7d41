"""Processes with one fate, machines without a shared disk, children that end with their parent."""

import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from forks import started
from resuming import assert_same, last
from test_processes import options as options
from test_processes import torchrun
from warm import Process, run

from newsrec import parent
from newsrec.errors import UserError
from newsrec.training.checkpoint.saving import Stopped
from newsrec.training.processes import share_folder, together
from newsrec.training.processes.launch import connection_mistakes
from newsrec.training.processes.run_lock import RunLock
from newsrec.training.processes.together import fail_together

FAILING = """
import sys
from lightning import Callback
from newsrec.__main__ import main
from newsrec.errors import UserError

class Fail(Callback):
    def on_train_batch_start(self, trainer, *args):
        if trainer.global_step == 3 and trainer.global_rank == 1:
            raise UserError("no room on this disk")

main(sys.argv[1:], [Fail()])
"""
PATIENT = {"OMP_NUM_THREADS": "1"}


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def on_two_machines(options, folders, stop=None):
    """Run on two agents, each in a folder, a home and an environment of its own; return both.

    Machine ``stop`` gets a SIGTERM once there is a checkpoint.
    """
    port = free_port()
    agents = [
        Process(options, torchrun=torchrun(nodes=2, node=node, port=port, processes=1),
                env=os.environ | {"HOME": str(folder)}, cwd=folder)
        for node, folder in enumerate(folders)
    ]  # fmt: skip
    deadline = time.monotonic() + 120
    while stop is not None and time.monotonic() < deadline:
        if (folders[0] / "run" / "checkpoints" / "last.ckpt").is_file():
            agents[stop].send_signal(signal.SIGTERM)
            break
        time.sleep(0.1)
    return ended(agents)


def ended(processes):
    """Wait for processes; return their exit codes, and what each said."""
    done = [process.finish() for process in processes]
    return [each.returncode for each in done], [each.stdout + each.stderr for each in done]


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
    with pytest.raises(UserError, match="as it is"), fail_together(SimpleNamespace(world_size=1)):
        raise UserError("as it is")


def test_a_failure_reaches_the_others_through_the_store(monkeypatch):
    store = torch.distributed.HashStore()
    monkeypatch.setattr(together, "connect_store", lambda: store)
    monkeypatch.setattr(together, "GRACE", 0.0)
    monkeypatch.setattr(together, "POLL", 0.01)
    ended = []
    monkeypatch.setattr(together.os, "_exit", lambda code: ended.append(code) or sys.exit())
    other = together._Watch(rank=0)
    other.start()
    failing = SimpleNamespace(world_size=2, global_rank=1)
    with pytest.raises(UserError), fail_together(failing):
        raise UserError("disk full")
    other.join(10)
    assert ended == [2]


def test_a_process_killed_before_its_first_look_ends_the_others(monkeypatch):
    store = torch.distributed.HashStore()
    monkeypatch.setattr(together, "connect_store", lambda: store)
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    with monkeypatch.context() as patch:
        patch.setattr(together.os, "getpid", lambda: killed.pid)
        together._Watch(rank=1, world_size=2).connect()
    ended = []
    monkeypatch.setattr(together, "POLL", 0.01)
    monkeypatch.setattr(together.os, "_exit", lambda code: ended.append(code) or sys.exit())
    other = together._Watch(rank=0, world_size=2)
    other.start()
    other.join(10)
    assert ended == [1]
    assert b"process 1" in store.get(together.KEY)


def test_a_run_that_a_signal_stops_is_no_failure(monkeypatch):
    store = torch.distributed.HashStore()
    monkeypatch.setattr(together, "connect_store", lambda: store)
    with pytest.raises(Stopped), fail_together(SimpleNamespace(world_size=2, global_rank=1)):
        raise Stopped(signal.SIGTERM)
    assert not store.check([together.KEY])


def test_each_of_three_machines_gets_the_files_of_the_first(monkeypatch, tmp_path):
    content = os.urandom(50_500)  # of 51 pieces
    monkeypatch.setattr(share_folder, "CHUNK", 1000)
    store = torch.distributed.HashStore()
    monkeypatch.setattr(torch.distributed, "TCPStore", lambda *_, **__: store)
    monkeypatch.setattr(share_folder, "os", SimpleNamespace(environ=(place := Environment())))
    (tmp_path / "0" / "checkpoints").mkdir(parents=True)
    (tmp_path / "0" / "checkpoints" / "last.ckpt").write_bytes(content)
    failed = []

    def start(machine):
        place.machine.number = machine
        try:
            share_folder.share_run_folder(tmp_path / str(machine))
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=start, args=(machine,)) for machine in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failed == []
    for machine in (1, 2):
        assert (tmp_path / str(machine) / "checkpoints" / "last.ckpt").read_bytes() == content


def test_a_run_in_the_folder_of_another_machine_is_not_overwritten(monkeypatch, tmp_path):
    monkeypatch.setattr(share_folder, "os", SimpleNamespace(environ=(place := Environment())))
    place["GROUP_WORLD_SIZE"] = "2"
    store = torch.distributed.HashStore()
    monkeypatch.setattr(torch.distributed, "TCPStore", lambda *_, **__: store)
    for machine, content in enumerate((b"first", b"of another run")):
        (tmp_path / str(machine) / "checkpoints").mkdir(parents=True)
        (tmp_path / str(machine) / "checkpoints" / "last.ckpt").write_bytes(content)
    other = RunLock(tmp_path / "1")
    other.take()
    failed = {}

    def start(machine):
        place.machine.number = machine
        try:
            share_folder.share_run_folder(tmp_path / str(machine))
        except UserError as error:
            failed[machine] = str(error)

    threads = [threading.Thread(target=start, args=(machine,)) for machine in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    other.release()
    assert failed.keys() == {0, 1}
    assert all(f"{socket.gethostname()} (machine 1): Another run is" in s for s in failed.values())
    assert (tmp_path / "1" / "checkpoints" / "last.ckpt").read_bytes() == b"of another run"


@pytest.mark.parametrize(
    ("own", "theirs", "expected"),
    [
        (b"a", b"a", True),
        (None, None, False),
        (None, b"a", "does not have the first process's"),
        (b"b", b"a", "does not have the first process's"),
        (b"a", None, "which the first process does not have"),
    ],
)
def test_auto_goes_on_everywhere_or_nowhere(monkeypatch, tmp_path, own, theirs, expected):
    monkeypatch.setenv("RANK", "1")
    if own is not None:
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "checkpoints" / "last.ckpt").write_bytes(own)
    said = "none" if theirs is None else hashlib.sha256(theirs).hexdigest()
    monkeypatch.setattr(share_folder, "decided_by_first", lambda name, decide, num_nodes: said)
    if isinstance(expected, bool):
        assert share_folder.is_resumed(tmp_path, 2) is expected
        return
    with pytest.raises(
        UserError, match=f"{re.escape(socket.gethostname())} .*{expected}.*torchrun"
    ):
        share_folder.is_resumed(tmp_path, 2)


def test_what_each_machine_needs_on_its_disk_is_said_in_sizes(tmp_path):
    said = share_folder.needs_on_disk(tmp_path / "mind", tmp_path / "run", 3 << 30, 1 << 29)
    assert f"the data at {tmp_path / 'mind'}, and room for 3.0 GiB of states" in said
    assert "two checkpoints of 0.5 GiB" in said


def by_slurm(argv, folders):
    """Run two processes as srun would, each in a folder of its own; return codes and words."""
    port = str(free_port())
    slurm = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1", "SLURM_NNODES": "2",
             "SLURM_JOB_NAME": "x", "SLURM_JOB_ID": "1", "SLURM_LOCALID": "0",
             "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # fmt: skip
    return ended([
        Process(argv, cwd=folder, env=os.environ | slurm
                | {"SLURM_PROCID": str(number), "SLURM_NODEID": str(number)})
        for number, folder in enumerate(folders)
    ])  # fmt: skip


@pytest.mark.slow
def test_slurm_without_a_shared_disk_ends_with_the_host_that_lacks_the_files(private):
    options, folders = private
    options += ["--threads=1", "--ckpt_path=auto", "--baselines=false", "--trainer.num_nodes=2"]
    options += ["--trainer.strategy=ddp"]
    codes, said = by_slurm([*options, "--trainer.max_epochs=1"], folders)
    assert codes == [0, 0], said
    assert "disks: each machine needs the data at mind" in said[0]
    codes, said = by_slurm([*options, "--trainer.max_epochs=2"], folders)
    assert codes == [2, 2], said
    assert f"{socket.gethostname()} does not have the first process's run" in said[0], said
    assert "start the run with torchrun" in said[1]


@pytest.mark.slow
def test_evaluate_ends_on_all_processes_where_one_lacks_the_checkpoint(private):
    options, folders = private
    train = [*options, "--trainer.max_epochs=1", "--threads=1", "--baselines=false"]
    done = run(train, cwd=folders[0])
    assert done.returncode == 0, done.stderr
    codes, said = by_slurm([
        "evaluate", "--ckpt_path=run/checkpoints/best.ckpt", "--data.root=mind", "--split=dev",
        "--output=results", "--trainer.accelerator=cpu", "--trainer.devices=1",
        "--trainer.num_nodes=2", "--trainer.strategy=ddp",
    ], folders)  # fmt: skip
    assert codes == [2, 2], said
    assert "newsrec: error: process 1 on" in said[0], said
    assert "best.ckpt" in said[0]


class Environment(dict):
    """torchrun's variables of a machine with one process, where a thread is a machine."""

    def __init__(self):
        super().__init__(
            GROUP_WORLD_SIZE="3", TORCHELASTIC_USE_AGENT_STORE="True", LOCAL_RANK="0",
            TORCHELASTIC_RESTART_COUNT="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="1",
        )  # fmt: skip
        self.machine = threading.local()

    def __getitem__(self, name):
        if name in ("RANK", "GROUP_RANK"):
            return str(self.machine.number)
        return super().__getitem__(name)


def test_gloo_that_finds_no_way_names_the_variable_that_helps():
    said = "Gloo connectFullMesh failed with [127.0.1.1]: Connection refused"
    with pytest.raises(UserError, match="GLOO_SOCKET_IFNAME"), connection_mistakes():
        raise RuntimeError(said)
    with pytest.raises(RuntimeError, match="shapes"), connection_mistakes():
        raise RuntimeError("shapes")


def leave_a_child(says, when, how):
    """Start a child that ends with this process, and end before or after it looks."""
    if how == "portable":
        sys.platform = "darwin"  # no prctl
    os.environ |= {"LOCAL_RANK": "1", parent.STARTER: str(os.getpid())}
    if os.fork() == 0:
        if when == "late":
            time.sleep(1)
        says.send(os.getpid())
        parent.end_with_parent()
        time.sleep(600)
    time.sleep(0.5 if when == "late" else 600)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("when", ["early", "late"])
@pytest.mark.parametrize("how", ["prctl", "portable"])
def test_a_child_ends_though_its_parent_ended_before_it_looked(when, how):
    first, hears = started(leave_a_child, when, how)
    child = hears.recv()
    if when == "early":
        time.sleep(0.3)
        assert is_alive(child)
        first.kill()
    first.join()
    deadline = time.monotonic() + 20
    while is_alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(child)


def test_a_process_that_nobody_of_ours_started_is_left_alone(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    for name in ("TORCHELASTIC_RUN_ID", parent.STARTER):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(parent, "watch", lambda number: pytest.fail("watches its shell"))
    parent.end_with_parent()
    assert os.environ[parent.STARTER] == str(os.getpid())


@pytest.mark.slow
def test_what_one_machine_lacks_ends_the_others_before_they_have_met(private):
    options, folders = private
    (folders[0] / "shape.yaml").write_text("heads: 2")
    codes, said = on_two_machines([*options, "--model.news=shape.yaml"], folders)
    assert 0 not in codes
    assert "newsrec: error: process 1 on" in said[0], said
    assert "shape.yaml" in said[0]


@pytest.mark.slow
def test_the_failure_of_a_process_ends_all_with_its_message(options, tmp_path):
    script = tmp_path / "failing.py"
    script.write_text(FAILING)
    command = [sys.executable, str(script), *options, f"--output={tmp_path / 'run'}"]
    command += ["--trainer.devices=2", "--trainer.strategy=ddp"]
    done = subprocess.run(command, env=os.environ | PATIENT, capture_output=True, text=True)
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
        assert "disks: each machine needs the data at mind" in said[0]
        assert ("on each of 2 machines, since they share no" in said[0]) is (epochs == 1)
    assert (folders[1] / "run" / "checkpoints" / "last.ckpt").is_file()  # from the first machine
    whole = tmp_path / "whole"
    done = run([
        *options, f"--data.root={folders[0] / 'mind'}", f"--output={whole}",
        "--trainer.max_epochs=2", "--trainer.devices=2",
    ], torchrun=torchrun())  # fmt: skip
    assert done.returncode == 0, done.stderr
    for part in ("state_dict", "optimizer_states"):
        assert_same(last(whole)[part], last(folders[0] / "run")[part])


@pytest.mark.slow
def test_a_signal_to_one_machine_without_a_shared_disk_stops_both_and_auto_goes_on(
    private, tmp_path
):
    options, folders = private
    options += ["--ckpt_path=auto", "--save_every=1", "--baselines=false"]
    codes, said = on_two_machines([*options, "--trainer.max_epochs=5000"], folders, stop=1)
    assert "Stopped by SIGTERM after" in said[0], said
    assert not any("error:" in text for text in said), said
    step = last(folders[0] / "run")["global_step"]
    assert step > 0
    assert not (folders[1] / "run" / "checkpoints").exists()
    limit = f"--trainer.max_steps={step + 3}"
    codes, said = on_two_machines([*options, "--trainer.max_epochs=5000", limit], folders)
    assert codes == [0, 0], said
    whole = tmp_path / "whole"
    done = run([
        *options, f"--data.root={folders[0] / 'mind'}", f"--output={whole}",
        "--trainer.max_epochs=5000", limit, "--trainer.devices=2",
    ], torchrun=torchrun())  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert last(whole)["global_step"] == last(folders[0] / "run")["global_step"] == step + 3
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
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("after", [0.0, 3.0, "first checkpoint"])
def test_children_end_with_their_parent(options, tmp_path, after):
    output = tmp_path / "run"
    more = (f"--output={output}", "--save_every=1", "--trainer.max_epochs=500")
    ddp = ("--trainer.devices=2", "--trainer.strategy=ddp")
    parent = Process([*options, *more, *ddp], env=os.environ | PATIENT)
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
    parent.process.join()
    deadline = time.monotonic() + 30
    while any(map(is_alive, children)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(is_alive, children))


def test_what_another_machine_says_cannot_act_on_the_terminal(capsys, monkeypatch):
    said = b"1\n2\nprocess 1 on \x1b]0;title\x07host: no room\x1b[2J"
    store = SimpleNamespace(check=lambda _: True, get=lambda _: said, set=lambda *_: None)
    left = []
    monkeypatch.setattr(together, "connect_store", lambda: store)
    monkeypatch.setattr(together, "POLL", 0.01)
    watch = together._Watch(0)

    def leave(code):
        left.append(code)
        watch.stopped.set()

    monkeypatch.setattr(together.os, "_exit", leave)
    watch.run()
    assert left == [2]
    assert capsys.readouterr().err == "newsrec: error: process 1 on ]0;titlehost: no room[2J\n"
