"""Two real processes against one: states, waits past the time-out, and a killed process."""

import csv
import json
import os
import shutil
import signal
import time
from datetime import timedelta

import pytest
import torch
from conftest import tiny_behaviors, tiny_news, write_mind
from test_processes import torchrun
from test_team import content
from test_together import free_port
from warm import Process, newsrec, run

from newsrec.__main__ import main
from newsrec.data import states
from newsrec.data.datamodule import MindDataModule
from newsrec.model.plm.cut import CutPlm
from newsrec.training import module
from newsrec.training.checkpoint.saving import AtomicCheckpointIO
from newsrec.training.processes import share_folder

pytestmark = pytest.mark.slow

TIME_OUT = 4.0
"""Seconds after which a collective operation ends the run, in ``slowly``."""


def small_blocks():
    """Compute states in many blocks."""
    states.NEWS_PER_PASS = 2


def slowed(owner, name, rank):
    """Make the first call of a method on process ``rank`` take longer than the time-out."""
    whole, calls = getattr(owner, name), []

    def slow(*args, **options):
        if os.environ.get("RANK") == str(rank) and not calls:
            calls.append(name)
            time.sleep(1.5 * TIME_OUT)
        return whole(*args, **options)

    setattr(owner, name, slow)


def slowly():
    """Run ``newsrec`` with a short time-out, and with processes that are slower than it."""
    join = torch.distributed.init_process_group

    def impatient(*args, **options):
        join(*args, **options | {"timeout": timedelta(seconds=TIME_OUT)})

    torch.distributed.init_process_group = impatient
    small_blocks()
    slowed(MindDataModule, "prepare_data", rank=0)  # before the processes form their group
    slowed(module, "load_plm", rank=1)  # as if another machine were still downloading it
    slowed(CutPlm, "below", rank=1)
    slowed(AtomicCheckpointIO, "save_checkpoint", rank=0)
    newsrec()


def dying():
    """Run ``newsrec``, and kill it while it computes states, as if memory had run out."""
    whole, calls = CutPlm.below, []

    def below(*args):
        calls.append(1)
        if len(calls) == 3 and os.environ["SLURM_PROCID"] == os.environ["DIES"]:
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(*args)

    CutPlm.below = below
    small_blocks()
    newsrec()


@pytest.fixture(scope="module")
def fit(plm_dir, tmp_path_factory):
    """Return a function that gives the options of a run, and its data folder."""
    place = tmp_path_factory.mktemp("ranks")
    plm = shutil.copytree(plm_dir, place / "plm")
    config = json.loads((plm / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (plm / "config.json").write_text(json.dumps(config))

    def options(name, batch_size):
        root = write_mind(place / name / "mind", tiny_news(), tiny_behaviors())
        return root, [
            "fit", f"--data.root={root}", f"--output={place / name / 'run'}", f"--model.plm={plm}",
            "--model.dim=16", "--model.tune_layers=1", "--model.precision=fp32", "--threads=1",
            "--model.news={heads: 2, ffn: 16, dropout: 0.0}", "--data.frozen_states=fp32",
            "--model.user={heads: 2, ffn: 16, dropout: 0.0}", "--data.max_tokens=12",
            f"--data.batch_size={batch_size}", "--trainer.accelerator=cpu", "--baselines=false",
            "--trainer.max_epochs=1", "--trainer.limit_train_batches=5", "--trainer.devices=1",
            "--trainer.log_every_n_steps=1", "--trainer.enable_progress_bar=false",
        ]  # fmt: skip

    return options


def losses(root):
    with (root.parent / "run" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [float(row[name]) for row in rows for name in ("train/loss", "val/auc") if row[name]]


@pytest.fixture(scope="module")
def one(fit):
    """The data folder of a run of one process."""
    root, options = fit("one", 8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(states, "NEWS_PER_PASS", 2)
        main(options)
    return root


def kept(root):
    return {
        name: text for name, text in content(root / ".newsrec").items() if name.startswith("states")
    }


def test_two_processes_store_the_same_states_and_wait_past_the_time_out(fit, one):
    root, options = fit("two", 4)
    done = run([*options, "--trainer.strategy=ddp"], slowly, torchrun=torchrun())
    assert done.returncode == 0, done.stderr
    assert "divided over 2 processes" in done.stderr
    assert len(kept(one)) > 4
    assert kept(root) == kept(one)
    assert losses(root) == pytest.approx(losses(one), abs=1e-5)
    assert len(losses(root)) == 6


def by_slurm(killed, options, work):
    """Start two processes as srun would, of which ``killed`` is to die."""
    slurm = {
        "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1", "DIES": str(killed),
        "SLURM_JOB_NAME": "x", "SLURM_JOB_ID": "1", "SLURM_NODEID": "0",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
    }  # fmt: skip
    return [
        Process(
            [*options, "--trainer.devices=2", "--trainer.strategy=ddp"], work,
            env=os.environ | slurm | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
        )
        for rank in (0, 1)
    ]  # fmt: skip


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_the_other_and_the_next_run_continues(fit, one, killed):
    root, options = fit(f"killed {killed}", 4)
    processes = by_slurm(killed, options, dying)
    dead, other = processes[killed], processes[1 - killed]
    assert dead.finish().returncode == -signal.SIGKILL
    start = time.monotonic()
    left = other.finish()
    assert time.monotonic() - start < 20
    assert left.returncode in (1, 2)
    assert "was killed, perhaps because memory ran out" in left.stderr
    assert "Traceback" not in left.stderr
    _, options = fit(f"killed {killed}", 8)
    main(options)
    assert losses(root) == pytest.approx(losses(one), abs=1e-5)
    assert not list((root / ".newsrec").glob(".building-*"))


def dying_early():
    """Run ``newsrec``, and kill it before the processes form their group."""
    owner, name = ((share_folder, "_hash"), (MindDataModule, "prepare_data"))[
        int(os.environ["DIES"])
    ]
    whole = getattr(owner, name)

    def work(*args):
        if os.environ["SLURM_PROCID"] == os.environ["DIES"]:
            time.sleep(5)  # the other one has found the store meanwhile
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(*args)

    setattr(owner, name, work)
    newsrec()


@pytest.mark.parametrize("killed", [0, 1])
def test_a_process_killed_before_the_group_forms_ends_the_other(fit, killed):
    _, options = fit(f"killed early {killed}", 4)
    both = by_slurm(killed, [*options, "--ckpt_path=auto"], dying_early)
    assert both[killed].finish().returncode == -signal.SIGKILL
    start = time.monotonic()
    left = both[1 - killed].finish()
    assert time.monotonic() - start < 60
    assert left.returncode in (1, 2), left.stderr
    assert "process" in left.stderr.splitlines()[-1]
    assert "Traceback" not in left.stderr
