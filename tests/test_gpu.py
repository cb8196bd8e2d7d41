"""What only a GPU can show: `pytest -m gpu` on a machine with one, with no other set-up.

`pytest -m gpu --device cpu tests/test_gpu.py` rehearses on a CPU what does not need the hardware,
and so shows that a failure on a GPU is the GPU's. The pairwise cover on a GPU is in
``test_matrix.py``; speed, memory and MFU are measured by ``tests/benchmarks/gpu.py``.
"""

import copy
import csv
import itertools
import json
import logging
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from conftest import fit_options, refused, tiny_behaviors, tiny_news, write_mind
from lightning import Callback, Trainer
from resuming import last, run_killed
from test_benchmarks import measure
from torch import nn

from newsrec.__main__ import main
from newsrec.data.datamodule import MindDataModule
from newsrec.metrics import METRICS
from newsrec.training.callbacks import FrozenStates
from newsrec.training.module import RecommenderModule

pytestmark = pytest.mark.gpu

SMALL = {"heads": 2, "ffn": 16, "dropout": 0.0}
TOLERANCE = {"32-true": 1e-3, "bf16-mixed": 5e-2, "16-mixed": 2e-2}
"""Largest difference of a loss from the CPU's in float32, over 20 steps."""
NOT_FOR_CPU = {"16-mixed"}


@pytest.fixture(autouse=True)
def lightning_keeps_the_stderr_of_its_import(monkeypatch):
    monkeypatch.setattr(logging, "raiseExceptions", False)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_mind(tmp_path_factory.mktemp("gpu") / "mind", tiny_news(), tiny_behaviors())


class Losses(Callback):
    """Keeps every step's loss on the device, and asks for them when the run is over."""

    def __init__(self):
        self.kept = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.kept.append(outputs["loss"].detach())

    def values(self):
        return torch.stack(self.kept).float().cpu().numpy()


class Scales(Callback):
    """Keeps the scale of fp16's losses at the start of each step."""

    def __init__(self):
        self.kept = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        self.kept.append(1.0 if scaler is None else scaler.get_scale())

    def left_out(self):
        """Return the steps after which the scale was halved, for gradients that overflowed."""
        return {step for step, (a, b) in enumerate(itertools.pairwise(self.kept)) if b < a}


class LeavesOut(Callback):
    """Takes no optimizer step in some steps, as fp16's scaler does after an overflow."""

    def __init__(self, steps):
        self.steps = steps

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if trainer.global_step in self.steps:
            for parameter in pl_module.parameters():
                parameter.grad = None


def train(root, plm_dir, accelerator, precision, *callbacks, steps=20, start=None, **options):
    """Train for some steps without dropout; return the losses, the module and the Trainer."""
    torch.manual_seed(0)
    options = {"dim": 16, "news": SMALL, "user": SMALL, "lr": 3e-3, "plm_lr": 1e-4} | options
    module = RecommenderModule(plm=str(plm_dir), **options)
    data = MindDataModule(
        str(root), plm=str(plm_dir), batch_size=8, seed=42, val="none", frozen_states="fp32"
    )
    module.configure_model()
    if start is not None:
        module.load_state_dict(start)
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    losses = Losses()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(
            accelerator=accelerator,
            devices=1,
            precision=precision,
            max_steps=steps,
            max_epochs=-1,
            gradient_clip_val=1.0,
            callbacks=[FrozenStates(), losses, *callbacks],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        trainer.fit(module, datamodule=data)
    return losses.values(), module, trainer


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("tune_layers", [0, 1, -1])
def test_losses_of_twenty_steps_are_those_of_the_cpu_in_float32(
    root, plm_dir, device, tune_layers, precision
):
    if device == "cpu" and precision in NOT_FOR_CPU:
        pytest.skip("a CPU does not train in fp16")
    expected, module, _ = train(root, plm_dir, "cpu", "32-true", tune_layers=tune_layers, steps=1)
    start = copy.deepcopy(module.state_dict())  # the skip path is fitted once, on one device
    options = {"tune_layers": tune_layers, "start": start}
    losses, _, trainer = train(root, plm_dir, device, precision, scales := Scales(), **options)
    left_out = scales.left_out()
    assert len(left_out) <= (5 if precision == "16-mixed" else 0)
    expected, *_ = train(root, plm_dir, "cpu", "32-true", LeavesOut(left_out), **options)
    assert trainer.strategy.root_device.type == device
    assert len(losses) == 20
    np.testing.assert_allclose(losses, expected, atol=TOLERANCE[precision], rtol=0)
    assert losses[-4:].mean() < losses[:4].mean()


def fit(root, plm_dir, output, device, *options):
    given = fit_options(root, plm_dir, output)
    given = [o for o in given if not o.startswith("--trainer.accelerator")]
    accelerator = f"--trainer.accelerator={'gpu' if device == 'cuda' else 'cpu'}"
    return [*given, accelerator, "--baselines=false", "--data.batch_size=8", *options]


def logged_losses(output):
    with (output / "metrics.csv").open(newline="") as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


def test_all_devices_together_train_what_one_does(root, plm_dir, device, tmp_path):
    number = torch.cuda.device_count() if device == "cuda" else 2
    if number == 1:
        pytest.skip("one GPU: there is nothing to compare with")
    still = "{heads: 2, ffn: 16, dropout: 0.0}"
    losses = {}
    for devices in (1, number):
        output = tmp_path / f"on-{devices}"
        command = fit(
            root, plm_dir, output, device, f"--model.news={still}", f"--model.user={still}",
            f"--trainer.devices={devices}", f"--data.batch_size={8 * number // devices}",
            "--trainer.strategy=ddp", "--model.precision=fp32", "--data.val=none",
            "--trainer.log_every_n_steps=1", "--trainer.limit_train_batches=3",
        )  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "newsrec", *command],
            capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        losses[devices] = logged_losses(output)
    assert losses[number] == pytest.approx(losses[1], abs=1e-4)
    assert len(losses[1]) == 6


@pytest.mark.parametrize("precision", TOLERANCE)
def test_a_killed_run_goes_on_to_the_same_weights(
    root, plm_dir, device, tmp_path, monkeypatch, precision
):
    if device == "cpu" and precision in NOT_FOR_CPU:
        pytest.skip("a CPU does not train in fp16")
    # Sums of gradients by atomic additions differ in the last bits from run to run on a GPU.
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    options = (
        "--save_every=2", f"--trainer.precision={precision}", "--model.tune_layers=1",
        "--trainer.deterministic=warn", "--trainer.max_epochs=3",
    )  # fmt: skip
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    main(fit(root, plm_dir, whole, device, *options))
    run_killed(fit(root, plm_dir, killed, device, *options), ("on_train_batch_end", 8))
    assert last(killed)["global_step"] < last(whole)["global_step"]
    main(fit(root, plm_dir, killed, device, *options, "--ckpt_path=last"))
    for name, tensor in last(whole)["state_dict"].items():
        other = last(killed)["state_dict"][name]
        torch.testing.assert_close(other, tensor, rtol=1e-5, atol=1e-6, msg=name)
    if precision == "16-mixed":  # the scaler's scale and its count of good steps
        name = "MixedPrecision"
        assert last(whole)[name] == last(killed)[name]


def test_evaluate_and_export_on_the_device_agree_with_the_cpu(root, plm_dir, device, tmp_path):
    run = tmp_path / "run"
    main(fit(root, plm_dir, run, device, "--model.precision=bf16", "--model.tune_layers=1"))
    best = run / "checkpoints" / "best.ckpt"
    found = {}
    for name, accelerator in (("here", device), ("cpu", "cpu")):
        output = tmp_path / name
        accelerator = "gpu" if accelerator == "cuda" else "cpu"
        main([
            "evaluate", f"--ckpt_path={best}", f"--data.root={root}", "--split=dev",
            f"--output={output}", "--baselines=false", f"--trainer.accelerator={accelerator}",
            "--trainer.devices=1",
        ])  # fmt: skip
        found[name] = json.loads((output / "metrics.json").read_text())
    for metric in METRICS:
        assert found["here"][metric] == pytest.approx(found["cpu"][metric], abs=1e-4)
    # Export holds its answers against PyTorch and dev's AUC against the graph's, or refuses.
    main(["export", f"--ckpt_path={best}", f"--data.root={root}", f"--output={tmp_path / 'out'}"])
    assert (tmp_path / "out" / "user_encoder.onnx").is_file()


def test_a_compiled_model_has_the_losses_of_the_plain_one(root, plm_dir, device, only_cuda):
    plain, *_ = train(root, plm_dir, device, "32-true", tune_layers=1, steps=8)
    compiled, *_ = train(
        root, plm_dir, device, "32-true", tune_layers=1, steps=8, torch_compile=True
    )
    np.testing.assert_allclose(compiled, plain, atol=1e-3, rtol=0)


def test_too_little_memory_names_the_options_that_lower_it(
    root, plm_dir, device, only_cuda, tmp_path, capsys
):
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(max(2**23 / total, 1e-4))
    try:
        said = refused(capsys, *fit(root, plm_dir, tmp_path / "run", device, "--model.dim=32"))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "data.batch_size" in said
    assert "model.precision bf16" in said


@pytest.mark.parametrize(
    "case",
    [
        *("tiny-full-fp32", "tiny-top1-fp32", "tiny-recomputed-fp32"),
        *("mini-full-fp32", "mini-full-bf16", "mini-top2-bf16", "mini-recomputed-bf16"),
        *("bertbase-full-bf16", "mpnetbase-full-bf16", "robertabase-full-bf16"),
    ],
)
def test_the_peak_memory_of_a_step_is_near_the_estimate(device, case, monkeypatch, capsys):
    if device == "cpu" and not case.startswith("tiny"):
        pytest.skip("takes minutes on a CPU")
    options = ("--device", device, "--cases", case)
    (found,) = measure(monkeypatch, capsys, "memory.py", *options)["cases"]
    assert found["ratio"] == pytest.approx(1, abs=0.2), found


class NoWaiting(Callback):
    """Has every wait for the device raise, from the third step to the last but one."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        mode = "error" if 2 <= trainer.global_step < 9 else "default"
        torch.cuda.set_sync_debug_mode(mode)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("tune_layers", [0, 1, -1])
def test_a_training_step_does_not_wait_for_the_device(
    root, plm_dir, device, only_cuda, tune_layers, precision
):
    try:
        losses, *_ = train(
            root, plm_dir, device, precision, NoWaiting(), tune_layers=tune_layers, steps=10
        )
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert np.isfinite(losses).all()
