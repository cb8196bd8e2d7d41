"""What auto chooses, what it remembers, and what a run keeps of it."""

import functools
import json
import logging
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from conftest import fit_options, tiny_behaviors, tiny_news, write_mind
from lightning import Trainer
from torch import nn
from transformers import AutoConfig
from warm import Process

from newsrec.__main__ import main
from newsrec.errors import UserError
from newsrec.model.plm.load import load_plm
from newsrec.model.recommender import NewsRecommender
from newsrec.parent import STARTER
from newsrec.report import closing
from newsrec.report.closing import in_fp32
from newsrec.training.hardware import machine, precision, probe, threads
from newsrec.training.hardware.precision import (
    Choice,
    choose_auto,
    decide,
    trainer_device,
    trainer_precision,
    warn_of_slow_bf16,
)
from newsrec.training.hardware.probe import (
    LinearMap,
    Rates,
    interleave,
    linear_maps,
    measure,
    rates,
)
from newsrec.training.module import RecommenderModule
from newsrec.training.processes import agreement
from newsrec.training.processes.agreement import decided_by_first

CPU = torch.device("cpu")
MAPS = [LinearMap(16, 16, 1, 32, True), LinearMap(16, 8, 2, 32, False)]
FASTER, SLOWER = Rates(fp32=100e9, bf16=230e9, ratio=2.3), Rates(fp32=147e9, bf16=80e9, ratio=0.54)
CHOICES = {"bf16": FASTER, "fp32": SLOWER}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A folder of measurements for each test."""
    monkeypatch.setenv("NEWSREC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def probes(monkeypatch):
    """Set what the probe finds; returns the list of what it was asked."""

    def inject(found):
        asked = []

        def measured(maps, device):
            asked.append((list(maps), device))
            if isinstance(found, Exception):
                raise found
            return found

        monkeypatch.setattr(precision, "measure", measured)
        return asked

    return inject


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ([1.3] * 5, "bf16"),  # exactly the threshold
        ([1.2999] * 5, "fp32"),
        ([1.4, 1.4, 0.01, 1.4, 1.4], "bf16"),  # one outlier
        ([1.2, 1.2, 50.0, 1.2, 1.2], "fp32"),
        ([0.5] * 5, "fp32"),
    ],
)
def test_bf16_is_taken_where_the_median_round_is_so_much_faster(ratios, expected):
    found = rates([(ratio, 1.0) for ratio in ratios], flop=1e9)
    assert decide(found) == expected


def test_rates_are_the_operations_of_a_step_over_the_median_round():
    found = rates([(2.0, 1.0), (4.0, 1.0), (2.0, 8.0)], flop=8e9)
    assert found == Rates(fp32=4e9, bf16=8e9, ratio=2.0)


def test_two_things_are_timed_in_turns_and_the_first_round_does_not_count():
    calls = []

    def timed(name, seconds):
        def run():
            calls.append(name)
            return 99.0 if calls.count(name) == 1 else seconds

        return run

    rounds = interleave(timed("a", 1.0), timed("b", 2.0))
    assert set(rounds) == {(1.0, 2.0)}
    assert calls == ["a", "b"] * (len(rounds) + 1)
    assert probe.FEWEST <= len(rounds) <= probe.MOST


def test_measuring_multiplies_in_both_precisions_and_leaves_random_numbers_as_they_were():
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    found = measure(MAPS, CPU)
    assert min(found) > 0
    assert torch.equal(state, torch.random.get_rng_state())
    assert threads == torch.get_num_threads()


@pytest.mark.parametrize("tune", [0, 1, -1])
@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("encoder", ["fastformer", "transformer"])
def test_linear_maps_are_those_of_the_model_that_is_built(plm_dir, tune, kept, encoder):
    shape = {"heads": 2, "ffn": 24, "layers": 2, "encoder": encoder}
    options = {"dim": 16, "tune_layers": tune, "news": shape, "user": shape, "max_tokens": 12}
    module = RecommenderModule(plm=str(plm_dir), **options)
    found = linear_maps(module, AutoConfig.from_pretrained(plm_dir), batch_size=4, kept_states=kept)

    model = NewsRecommender(load_plm(str(plm_dir)), **options)
    expected: Counter = Counter()
    for name, part in model.named_modules():
        if not isinstance(part, nn.Linear) or part.out_features < 16:
            continue  # one number or one a head for each vector: next to nothing
        plm = ".plm." in name
        trained = part.weight.requires_grad
        if trained or not kept:
            assert plm or trained
            expected[part.in_features, part.out_features, trained] += 1
    counted: Counter = Counter()
    for each in found:
        counted[each.inputs, each.outputs, each.backward] += each.number
    assert counted == expected
    clicks = {each.rows for each in found}
    assert clicks == {4 * 50, 4 * 25 * 6}  # histories; half of them, of titles half as long


def test_scoring_needs_no_gradients_and_goes_through_frozen_layers(plm_dir):
    module = RecommenderModule(plm=str(plm_dir), dim=16, news={"heads": 2}, user={"heads": 2})
    config = AutoConfig.from_pretrained(plm_dir)
    found = linear_maps(module, config, 4, kept_states=False, training=False)
    assert not any(each.backward for each in found)
    assert any(each.inputs == 64 for each in found)  # the PLM's second map of each layer


@pytest.mark.parametrize("expected", CHOICES)
def test_what_was_measured_is_said_and_kept_for_the_next_run(probes, expected):
    found = CHOICES[expected]
    asked = probes(found)
    choice = choose_auto(CPU, lambda: MAPS)
    assert choice.precision == expected
    assert f"{found.bf16 / 1e9:g} GFLOP/s in bf16 and {found.fp32 / 1e9:g} in fp32" in choice.why
    assert machine.this_machine(CPU).name in choice.why
    assert "measured earlier" not in choice.why
    again = choose_auto(CPU, lambda: MAPS)
    assert again.precision == expected
    assert "measured earlier" in again.why
    assert len(asked) == 1


def test_other_shapes_threads_machines_and_versions_are_measured_anew(probes, monkeypatch):
    asked = probes(FASTER)
    choose_auto(CPU, lambda: MAPS)
    choose_auto(CPU, lambda: MAPS[:1])
    assert len(asked) == 2
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    choose_auto(CPU, lambda: MAPS)
    assert len(asked) == 3
    monkeypatch.setattr(precision, "this_machine", lambda device: machine.Machine("a", "b"))
    choose_auto(CPU, lambda: MAPS)
    assert len(asked) == 4
    monkeypatch.setattr(torch, "__version__", "9.9")
    choose_auto(CPU, lambda: MAPS)
    choose_auto(CPU, lambda: MAPS)
    assert len(asked) == 5


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"\xff\xfe", b"[]", b"null", b'{"format": 1}', b'{"format": 0, "measured": {}}',
        b'{"format": 1, "measured": []}',
    ],
)  # fmt: skip
def test_a_cache_that_cannot_be_read_is_measured_anew_and_replaced(probes, cache, content):
    cache.mkdir()
    (cache / "machine.json").write_bytes(content)
    asked = probes(FASTER)
    assert choose_auto(CPU, lambda: MAPS).precision == "bf16"
    assert "measured earlier" in choose_auto(CPU, lambda: MAPS).why
    assert len(asked) == 1


@pytest.mark.parametrize("value", ["fast", None, -1, 0, float("nan"), [1]])
def test_a_measurement_that_makes_no_sense_is_made_anew(probes, cache, value):
    asked = probes(FASTER)
    choose_auto(CPU, lambda: MAPS)
    kept = json.loads((cache / "machine.json").read_text())
    (entry,) = kept["measured"].values()
    entry["ratio"] = value
    (cache / "machine.json").write_text(json.dumps(kept))
    choose_auto(CPU, lambda: MAPS)
    assert len(asked) == 2


def test_a_cache_that_cannot_be_written_costs_a_measurement_each_time(probes, cache):
    cache.write_text("a file where the folder should be")
    asked = probes(FASTER)
    for _ in range(2):
        assert choose_auto(CPU, lambda: MAPS).precision == "bf16"
    assert len(asked) == 2


def test_the_cache_holds_the_newest_measurements_and_is_readable_by_others(cache):
    for number in range(machine.KEPT + 5):
        machine.remember(f"key {number}", {"gain": 1.5})
    assert machine.recall("key 4", ["gain"]) is None
    assert machine.recall("key 5", ["gain"]) == {"gain": 1.5}
    assert stat.S_IMODE((cache / "machine.json").stat().st_mode) == 0o644
    assert [path.name for path in cache.iterdir()] == ["machine.json"]


def test_a_device_that_cannot_multiply_in_bf16_computes_in_fp32(probes, cache):
    probes(RuntimeError('"addmm_impl_cpu_" not implemented for BFloat16\nand more'))
    choice = choose_auto(CPU, lambda: MAPS)
    assert choice.precision == "fp32"
    assert (
        choice.why == 'cpu cannot multiply in bf16: "addmm_impl_cpu_" not implemented for BFloat16'
    )
    assert not cache.exists()  # it may have been for want of memory


def test_a_gpu_without_native_bf16_computes_in_fp32_unmeasured(monkeypatch, probes):
    asked = probes(FASTER)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    choice = choose_auto(torch.device("cuda", 0), lambda: MAPS)
    assert choice == Choice("fp32", "Tesla T4 has no native bf16")
    assert not asked


def test_a_gpu_with_native_bf16_is_measured(monkeypatch, probes):
    asked = probes(FASTER)
    gpu = SimpleNamespace(name="H100", major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    choice = choose_auto(torch.device("cuda", 0), lambda: MAPS)
    assert choice.precision == "bf16"
    assert "(H100)" in choice.why
    assert asked == [(MAPS, torch.device("cuda", 0))]


def test_an_accelerator_that_is_not_there_computes_in_fp32_unmeasured(probes):
    asked = probes(FASTER)
    assert choose_auto(None, lambda: MAPS).precision == "fp32"
    assert not asked


@pytest.mark.parametrize(
    ("cuda", "mps", "options", "expected"),
    [
        (False, False, {"accelerator": "auto"}, "cpu"),
        (False, False, {"accelerator": "cpu"}, "cpu"),
        (False, False, {"accelerator": "gpu"}, None),
        (False, False, {"accelerator": "tpu"}, None),
        (True, False, {"accelerator": "auto"}, "cuda:0"),
        (True, False, {"accelerator": "gpu", "devices": [2, 3]}, "cuda:2"),
        (True, False, {"accelerator": "cpu"}, "cpu"),
        (False, True, {"accelerator": "auto"}, "mps"),
        (False, True, {"accelerator": "mps"}, "mps"),
    ],
)
def test_the_device_is_the_one_that_the_trainer_would_take(
    monkeypatch, cuda, mps, options, expected
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    found = trainer_device(options)
    assert (None if found is None else str(found)) == expected


@pytest.mark.parametrize(
    ("written", "chosen", "expected"),
    [("16-mixed", "fp32", "16-mixed"), (None, "bf16", "bf16-mixed"), (None, "fp32", "32-true")],
)
def test_the_trainers_own_precision_counts_before_the_models(
    monkeypatch, written, chosen, expected
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    options = {"precision": written, "accelerator": "gpu"}
    assert trainer_precision(options, chosen) == expected
    with pytest.raises(UserError, match="rounds the weights"):
        trainer_precision({"precision": "bf16-true", "accelerator": "cpu"}, chosen)


def test_bf16_that_is_asked_for_and_known_to_be_slower_is_remarked_on(probes, caplog):
    caplog.set_level(logging.INFO, "newsrec")
    warn_of_slow_bf16(CPU, lambda: MAPS)
    assert not caplog.messages  # nothing is known
    probes(SLOWER)
    choose_auto(CPU, lambda: MAPS)
    warn_of_slow_bf16(CPU, lambda: MAPS)
    assert ["slower than fp32 here" in message for message in caplog.messages] == [True]
    assert "80 GFLOP/s in bf16 and 147 in fp32" in caplog.text


def checkpoint_of(folder: Path, name: str = "last") -> dict:
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)


@pytest.mark.parametrize("expected", CHOICES)
def test_a_run_of_auto_trains_in_what_was_chosen_and_keeps_it(
    mind_dir, plm_dir, tmp_path, probes, caplog, expected
):
    caplog.set_level(logging.INFO, "newsrec")
    run = tmp_path / "run"
    options = [*fit_options(mind_dir, plm_dir, run), "--baselines=false", "--threads=1"]
    probes(CHOICES[expected])
    main([*options, "--model.precision=auto", "--trainer.max_steps=2"])
    assert f"precision: {expected} (model.precision auto)" in caplog.text
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["precision"] == expected
    kept = checkpoint_of(run)
    assert kept["hyper_parameters"]["precision"] == expected
    assert kept["newsrec"]["auto_precision"] == expected

    (other,) = set(CHOICES) - {expected}  # as if it went on where the other one is faster
    asked = probes(CHOICES[other])
    caplog.clear()
    again = ["fit", f"--output={run}"]  # options from config.yaml, or all of them written again
    again = again if expected == "bf16" else [*options, "--model.precision=auto"]
    main([*again, "--ckpt_path=last", "--trainer.max_steps=3"])
    assert f"precision: {expected}, as auto chose when this run began" in caplog.text
    assert checkpoint_of(run)["newsrec"]["auto_precision"] == expected
    assert not asked


@pytest.mark.slow
def test_a_run_of_auto_that_goes_on_elsewhere_ends_as_if_never_stopped(
    mind_dir, plm_dir, tmp_path, probes, cache
):
    ends = {}
    for name, measured in (("whole", [FASTER]), ("parts", [FASTER, SLOWER]), ("fp32", [SLOWER])):
        run = tmp_path / name
        options = [*fit_options(mind_dir, plm_dir, run), "--baselines=false", "--threads=1"]
        options += ["--model.precision=auto", "--data.batch_size=8"]
        options += ["--model.schedule=constant", "--model.warmup=0"]
        for part, found in enumerate(measured):
            probes(found)
            shutil.rmtree(cache, ignore_errors=True)
            last = part + 1 == len(measured)
            is_resumed = ["--ckpt_path=last"] * bool(part)
            main([*options, *is_resumed, f"--trainer.max_epochs={2 if last else 1}"])
        ends[name] = checkpoint_of(run)["state_dict"]
    whole, parts, fp32 = ends.values()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert not all(torch.equal(whole[name], fp32[name]) for name in whole)


def test_two_runs_of_the_demos_preset_are_equal_bit_for_bit(mind_dir, plm_dir, tmp_path, probes):
    asked = probes(FASTER)
    kept = []
    for run in (tmp_path / "a", tmp_path / "b"):
        options = [f"--data.root={mind_dir}", f"--model.plm={plm_dir}", f"--output={run}"]
        options += ["--trainer.max_steps=3", "--trainer.enable_progress_bar=false", "--threads=1"]
        options += ["--model.dim=16"]
        main(["fit", "--config=configs/demo.yaml", *options, "--baselines=false"])
        assert yaml.safe_load((run / "config.yaml").read_text())["model"]["precision"] == "fp32"
        kept.append(checkpoint_of(run))
    one, two = (checkpoint["state_dict"] for checkpoint in kept)
    assert all(torch.equal(one[name], two[name]) for name in one)
    one, two = (checkpoint["optimizer_states"][0]["state"] for checkpoint in kept)
    assert all(torch.equal(one[number]["exp_avg"], two[number]["exp_avg"]) for number in one)
    assert not asked


def test_a_run_by_anothers_config_computes_with_its_threads_and_is_equal(
    mind_dir, plm_dir, tmp_path, monkeypatch
):
    for name in threads.SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "usable_cores", lambda: 2)
    before = torch.get_num_threads()
    kept = []
    try:
        for run, gain, config in (("a", 1.9, "configs/demo.yaml"), ("b", 0.1, "a/config.yaml")):
            monkeypatch.setenv("NEWSREC_CACHE", str(tmp_path / f"cache-{run}"))
            monkeypatch.setattr(
                threads, "one_thread_and_many", lambda maps, number, g=gain: [(g, 1.0)] * 2
            )
            options = [f"--data.root={mind_dir}", f"--model.plm={plm_dir}", "--model.dim=16"]
            options += ["--trainer.max_steps=3", "--trainer.enable_progress_bar=false"]
            config = config if config.startswith("configs") else tmp_path / config
            main(["fit", f"--config={config}", *options, f"--output={tmp_path / run}",
                  "--baselines=false"])  # fmt: skip
            kept.append(checkpoint_of(tmp_path / run))
    finally:
        torch.set_num_threads(before)
    one, two = kept
    assert one["newsrec"]["threads"] == two["newsrec"]["threads"] == 2
    assert all(torch.equal(one["state_dict"][name], two["state_dict"][name])
               for name in one["state_dict"])  # fmt: skip


def each_chooses_another():
    """Train where each process would choose another precision, and say in which it trains."""
    plain = Trainer.fit

    @functools.wraps(plain)  # its signature is read for the options
    def fit(self, *args, **options):
        print(f"trains in {self.precision}", file=sys.stderr)
        plain(self, *args, **options)

    Trainer.fit = fit
    ratio = 2.0 if agreement.is_first_process() else 0.5
    precision.measure = lambda maps, device: Rates(1e9, ratio * 1e9, ratio)
    precision.recall_rates = lambda device, maps: None
    main(sys.argv[1:])


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["lightning", "torchrun", "slurm"])
def test_the_first_process_chooses_for_all(mind_dir, plm_dir, tmp_path, launcher):
    run = tmp_path / "run"
    options = [*fit_options(mind_dir, plm_dir, run), "--model.precision=auto", "--baselines=false"]
    options += ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.max_steps=1"]
    environ = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environ |= LEFT_OVER
    port = str(free_port())
    slurm = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1",
             "SLURM_JOB_NAME": "x", "SLURM_JOB_ID": "1",
             "SLURM_NODEID": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # fmt: skip
    each: list[dict[str, str]] = [{}]
    if launcher == "slurm":
        each = [slurm | {"SLURM_PROCID": n, "SLURM_LOCALID": n} for n in "01"]
    if launcher == "lightning":  # which starts the script again
        script = tmp_path / "each.py"
        script.write_text("import test_precision as t; t.each_chooses_another()")
        environ["PYTHONPATH"] = os.pathsep.join(sys.path)
        command = [sys.executable, str(script), *options]
        done = [subprocess.run(command, env=environ, capture_output=True, text=True)]
    else:
        torchrun = ["--nproc-per-node=2", f"--master-port={port}"]
        launch = torchrun if launcher == "torchrun" else None
        started = [Process(options, each_chooses_another, launch, environ | own) for own in each]
        done = [process.finish() for process in started]
    said = [each.stderr for each in done]
    assert [each.returncode for each in done] == [0] * len(done), said
    assert checkpoint_of(run)["hyper_parameters"]["precision"] == "bf16"
    assert sum(text.count("(model.precision auto)") for text in said) == 1
    assert "bfloat16 Automatic Mixed Precision" in said[0]
    assert "".join(said).count("trains in bf16-mixed") == 2, said


def test_no_test_but_those_for_gpus_sees_one():
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert trainer_device({"accelerator": "auto"}) == CPU
    assert not torch.backends.mps.is_available()


def store_with(decision):
    store = torch.distributed.HashStore()
    store.set("newsrec/precision/0", decision)
    return store


LEFT_OVER = {"NEWSREC_PRECISION": "1:fp32", "NEWSREC_LAST_CHECKPOINT": "1:none"}
"""What an older run has left in the environment."""


@pytest.mark.parametrize("left_over", ["fp32", "1:fp32", "{own}:fp32", None])
def test_the_store_counts_and_not_what_an_older_run_left(monkeypatch, left_over):
    monkeypatch.setenv("RANK", "1")
    if left_over is None:
        monkeypatch.delenv("NEWSREC_PRECISION", raising=False)
    else:
        monkeypatch.setenv("NEWSREC_PRECISION", left_over.format(own=os.getpid()))
    monkeypatch.setattr(agreement, "_meeting_place", lambda num_nodes: ("host", 1, True))
    monkeypatch.setattr(agreement, "_store", lambda *place: store_with("bf16"))
    assert decided_by_first("precision", lambda: "fp32") == "bf16"


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"NEWSREC_PRECISION": "{parent}:bf16"}, "bf16"),
        ({"NEWSREC_PRECISION": "7:bf16", STARTER: "7"}, "bf16"),
        ({"NEWSREC_PRECISION": "7:bf16", STARTER: "8"}, "fp32"),
        ({"NEWSREC_PRECISION": "bf16"}, "fp32"),
    ],
)
def test_a_process_that_lightning_starts_inherits_from_its_starter_alone(
    monkeypatch, variables, expected
):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.delenv(STARTER, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(parent=os.getppid()))
    monkeypatch.setattr(agreement, "_meeting_place", lambda num_nodes: None)
    assert decided_by_first("precision", lambda: "fp32") == expected


def test_a_process_that_hears_of_a_failure_says_so(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.delenv("NEWSREC_PRECISION", raising=False)
    monkeypatch.setattr(agreement, "_meeting_place", lambda num_nodes: ("host", 1, True))
    monkeypatch.setattr(agreement, "_store", lambda *place: store_with(agreement.FAILED))
    with pytest.raises(UserError, match="first process failed before it chose the precision"):
        decided_by_first("precision", lambda: "fp32")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_the_final_comparison_and_evaluate_agree_on_a_run_in_bf16(
    mind_dir, plm_dir, tmp_path, capsys, monkeypatch
):
    closed = []

    def measure(data, split, scores, *args):
        closed.append(scores)
        return measure_split(data, split, scores, *args)

    measure_split = closing.measure_split
    monkeypatch.setattr(closing, "measure_split", measure)
    run, results = tmp_path / "run", tmp_path / "results"
    options = fit_options(mind_dir, plm_dir, run)
    main([*options, "--model.precision=bf16", "--trainer.max_epochs=1", "--model.lr=0.01"])
    summary = json.loads((run / "summary.json").read_text())
    assert "in fp32" in capsys.readouterr().out
    best = f"--ckpt_path={run}/checkpoints/best.ckpt"
    scored = ["evaluate", best, f"--data.root={mind_dir}", "--split=dev", "--baselines=false"]
    main([*scored, "--trainer.accelerator=cpu", f"--output={results}", "--scores=true"])
    assert ", in fp32." in capsys.readouterr().out
    metrics = json.loads((results / "metrics.json").read_text())
    for name in ("auc", "mrr", "ndcg@5", "ndcg@10"):
        assert f"{summary[name]:.4f}" == f"{metrics[name]:.4f}"
    assert summary["precision"] == metrics["precision"] == "fp32"
    assert not metrics["precision_by_auto"]
    lists = pq.read_table(results / "scores.parquet")["scores"]
    scores = np.concatenate(lists.to_pylist())
    np.testing.assert_allclose(closed[0], scores, rtol=1e-5, atol=1e-5)


def test_closing_in_fp32_gives_the_trainer_its_precision_back():
    trainer = Trainer(accelerator="cpu", precision="bf16-mixed", logger=False, barebones=True)
    with in_fp32(trainer):
        assert trainer.precision == "32-true"
        with trainer.precision_plugin.forward_context():
            assert torch.ones(2, 2).mm(torch.ones(2, 2)).dtype == torch.float32
            assert not torch.is_autocast_enabled("cpu")
    assert trainer.precision == "bf16-mixed"


@pytest.fixture(scope="module")
def trained(plm_dir, tmp_path_factory):
    """A run, and the folder of data that it was trained on."""
    folder = tmp_path_factory.mktemp("trained")
    root = write_mind(folder / "mind", tiny_news(), tiny_behaviors())
    options = [*fit_options(root, plm_dir, folder / "run"), "--trainer.max_steps=2", "--threads=1"]
    main([*options, "--trainer.max_epochs=1", "--baselines=false"])
    return root, folder / "run" / "checkpoints" / "last.ckpt"


@pytest.mark.parametrize("expected", CHOICES)
def test_evaluate_scores_in_what_auto_chose_and_says_so_everywhere(
    trained, tmp_path, probes, caplog, capsys, expected
):
    root, checkpoint = trained
    caplog.set_level(logging.INFO, "newsrec")
    asked = probes(CHOICES[expected])
    output = tmp_path / "results"
    main(["evaluate", f"--ckpt_path={checkpoint}", f"--data.root={root}", "--split=dev",
          f"--output={output}", "--precision=auto", "--trainer.accelerator=cpu",
          "--baselines=false"])  # fmt: skip
    assert f"precision: {expected} (--precision auto)" in caplog.text
    metrics = json.loads((output / "metrics.json").read_text())
    assert (metrics["precision"], metrics["precision_by_auto"]) == (expected, True)
    assert f", in {expected}." in capsys.readouterr().out
    page = (output / "report.html").read_text()
    assert f", in {expected}</h1>" in page
    assert f"<dd>{expected}, chosen by auto</dd>" in page
    ((maps, device),) = asked
    assert device == CPU
    assert not any(each.backward for each in maps)
