"""Several processes: started by Lightning, by torchrun, on two machines; killed and resumed."""

import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
from lightning import Callback
from resuming import assert_same, last
from test_resume import logged
from warm import Process, run

from newsrec.__main__ import main

pytestmark = pytest.mark.slow


class Die(Callback):
    """Ends its process at a step, as the kernel does that has no memory left."""

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == 9:
            os.kill(os.getpid(), signal.SIGKILL)


def dying():
    main(sys.argv[1:], [Die()])


@pytest.fixture
def options(mind_dir, plm_dir):
    return [
        "fit",
        f"--data.root={mind_dir}",
        f"--model.plm={plm_dir}",
        "--model.dim=16",
        "--model.tune_layers=1",
        "--model.plm_lr=1e-3",
        "--model.news={heads: 2, ffn: 16}",
        "--model.user={heads: 2, ffn: 16}",
        "--data.max_tokens=12",
        "--data.batch_size=4",
        "--model.precision=fp32",
        "--threads=1",
        "--trainer.accelerator=cpu",
        "--trainer.max_epochs=3",
        "--trainer.log_every_n_steps=1",
        "--trainer.enable_progress_bar=false",
        "--baselines=false",
    ]


def torchrun(nodes=1, node=0, port=0, processes=2):
    """Return the options of torchrun that start ``processes`` on a machine."""
    own = [f"--nproc-per-node={processes}"]
    if nodes == 1:
        return [*own, "--standalone"]
    own += [f"--nnodes={nodes}", f"--node-rank={node}", "--master-addr=127.0.0.1"]
    return [*own, f"--master-port={port}"]


@pytest.mark.parametrize("processes", [1, 2])
def test_kill_9_in_an_epoch_and_on_bit_for_bit(options, tmp_path, processes):
    launch = {"torchrun": torchrun(processes=processes) if processes > 1 else None}
    # As in the presets for one device: torchrun's number of processes is the one that counts.
    options = [*options, "--save_every=2", "--trainer.devices=1"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run([*options, f"--output={whole}"], **launch).returncode == 0
    assert last(whole)["MindDataModule"]["world_size"] == processes
    assert run([*options, f"--output={killed}"], dying, **launch).returncode != 0
    assert last(killed)["global_step"] == 8
    on = run(["fit", f"--output={killed}", "--ckpt_path=last"], **launch)
    assert on.returncode == 0, on.stderr
    assert_same(last(whole), last(killed))
    assert logged(whole) == logged(killed)


@pytest.mark.parametrize("loss", ["cross_entropy", "in_batch", "impression"])
def test_half_a_batch_in_each_of_two_processes_is_a_whole_one(options, plm_dir, tmp_path, loss):
    plm = shutil.copytree(plm_dir, tmp_path / "plm")
    config = json.loads((plm / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (plm / "config.json").write_text(json.dumps(config))
    options = [o.replace("ffn: 16", "ffn: 16, dropout: 0.0") for o in options]
    options += [f"--model.plm={plm}", f"--model.loss={loss}"]
    losses = {}
    for processes, size in ((1, 8), (2, 4)):
        output = tmp_path / str(processes)
        done = run([
            *options, f"--output={output}",
            f"--trainer.devices={processes}", f"--data.batch_size={size}", "--data.val=none",
            "--trainer.strategy=ddp", "--model.precision=fp32",
            # An odd sample is left over where two share.
            f"--trainer.limit_train_batches={4 if loss == 'impression' else 6}",
        ], torchrun=torchrun(processes=processes))  # fmt: skip
        assert done.returncode == 0, done.stderr
        with (output / "metrics.csv").open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["train/loss"]]
        losses[processes] = [float(row["train/loss"]) for row in rows]
    assert len(losses[1]) == len(losses[2]) > 10
    assert losses[2] == pytest.approx(losses[1], abs=1e-5)
    assert losses[1][-1] < losses[1][0]


def test_two_machines_train_one_model(options, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [*options, "--trainer.devices=1", f"--output={tmp_path / 'run'}"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    first, other = (torchrun(nodes=2, node=node, port=port, processes=1) for node in (0, 1))
    agent = subprocess.Popen(  # as a shell starts it
        [sys.executable, "-m", "torch.distributed.run", *first, "-m", "newsrec", *options],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    done = run(options, torchrun=other, env=env)
    said = [agent.communicate(timeout=240)[0], done.stdout + done.stderr]
    assert [agent.returncode, done.returncode] == [0, 0], said
    assert "Best checkpoint" in said[0]
    assert "Best checkpoint" not in said[1]
    assert "samples: " in said[0]
    assert "samples: " not in said[1]
    assert "divided over 2 processes of 2 machines, which share that folder" in said[0]
    assert last(tmp_path / "run")["epoch"] == 2


def test_a_signal_to_one_of_two_processes_stops_both_at_one_step(options, tmp_path):
    output = tmp_path / "run"
    more = [f"--output={output}", "--save_every=1", "--trainer.max_epochs=500"]
    ddp = ["--trainer.devices=2", "--trainer.strategy=ddp"]
    process = Process([*options, *more, *ddp], env=os.environ | {"OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    while not (output / "checkpoints" / "last.ckpt").is_file() and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    done = process.finish(timeout=60)
    assert done.returncode == 143, done.stderr
    assert "Traceback" not in done.stderr
    steps = last(output)["global_step"]
    assert f"Stopped by SIGTERM after {steps:,} steps" in done.stderr
