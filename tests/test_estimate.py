"""What ``fit --dry_run`` says is what a step takes, and what the presets' headers say."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from test_benchmarks import measure

from newsrec.__main__ import main
from newsrec.data.datamodule import MindDataModule
from newsrec.data.mind_statistics import NAMES, mentions, text_lengths
from newsrec.model.plm.sizes import KNOWN
from newsrec.training.estimate.live_bytes import LiveBytes, as_on, without_values
from newsrec.training.estimate.step_memory import (
    Shape,
    StepCost,
    batch_of,
    build,
    packable,
    step_cost,
)
from newsrec.training.losses import LOSSES
from newsrec.training.module import RecommenderModule

CONFIGS = Path(__file__).parent.parent / "configs"
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TINY = {"vocab_size": 90, "intermediate_size": 64, **SIZES}
SHAPE = Shape(np.repeat(np.arange(3, 13), 4), users=6, history=8, samples=8, candidates=3)


def dry_run(capsys, *options):
    with pytest.raises(SystemExit) as stop:
        main(["fit", *options, "--dry_run"])
    assert not stop.value.code
    return capsys.readouterr().out


def tiny_module(**options):
    return RecommenderModule(dim=16, news={"heads": 2}, user={"heads": 2}, **options)


def test_bytes_that_live_and_die_are_counted_as_by_hand():
    with without_values():
        x = torch.zeros(1000, requires_grad=True)
        with LiveBytes() as count:
            y = x.exp()  # kept for the backward pass
            assert count.live == 4000
            z = y * 2
            assert (count.live, count.kernels) == (8000, 2)
            total = z.sum()
            del z
            assert (count.live, count.peak) == (4004, 8004)
            total.backward()
            del y, total
            assert count.live == 4000  # the gradient
    assert x.grad.shape == x.shape


def test_a_view_of_what_was_there_before_counts_as_nothing():
    with without_values():
        weight, x = torch.zeros(20, 10, requires_grad=True), torch.zeros(5, 10)
        with LiveBytes() as count:
            y = torch.nn.functional.linear(x, weight)  # keeps a transposed view of the weight
            view = weight.t()
            assert count.live == count.peak == 4 * 5 * 20
            y.sum().backward()
            del y
            assert count.live == 4 * 20 * 10  # the gradient
    assert view.shape == (10, 20)


def test_dropout_keeps_a_byte_an_element_as_on_cuda_and_a_number_as_on_a_cpu():
    kept = {}
    for device in ("cuda", "cpu"):
        with without_values(), as_on(device, autocast=False):
            x = torch.zeros(1000, requires_grad=True)
            with LiveBytes() as count:
                y = torch.nn.Dropout(0.1)(x)
                kept[device] = count.live - y.untyped_storage().nbytes()
    assert kept == {"cuda": 1000, "cpu": 4000}


@pytest.mark.parametrize(
    ("family", "tune_layers", "matching", "rank"),
    [
        ("bert", -1, "dot", 0),
        ("bert", 0, "interests", 0),
        ("bert", 1, "dot", 2),
        ("mpnet", 1, "late", 0),
        pytest.param("mpnet", -1, "interests", 2, marks=pytest.mark.slow),
    ],
)
def test_activations_are_what_autograd_saves_in_a_real_step(family, tune_layers, matching, rank):
    plm = {"model_type": family, **TINY}
    module = tiny_module(tune_layers=tune_layers, matching=matching, lora={"rank": rank})
    states = None if tune_layers == -1 else torch.float32
    cost = step_cost(module, plm, SHAPE, "cpu", False, states)
    model = build(module, plm, packable(plm))
    batch = batch_of(SHAPE, 32, states)
    given = {x.untyped_storage().data_ptr() for x in (*model.parameters(), *model.buffers())}
    given |= {x.untyped_storage().data_ptr() for x in batch if isinstance(x, torch.Tensor)}
    saved = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in given:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        scores = model(batch)
    assert scores.requires_grad
    # What the forward pass has in hand at its end besides counts, too.
    assert sum(saved.values()) <= cost.activations < 1.1 * sum(saved.values())
    assert cost.trained == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert cost.peak > cost.weights + cost.optimizer + cost.gradients


@pytest.mark.slow
def test_recomputing_and_bf16_lower_what_a_step_keeps():
    plm = {"model_type": "bert", **TINY}
    plain = step_cost(tiny_module(tune_layers=-1), plm, SHAPE, "cuda", False, None)
    bf16 = step_cost(tiny_module(tune_layers=-1), plm, SHAPE, "cuda", True, None)
    again = tiny_module(tune_layers=-1, checkpoint_activations=True)
    recomputed = step_cost(again, plm, SHAPE, "cuda", True, None)
    assert recomputed.activations < bf16.activations < plain.activations
    assert recomputed.kernels > bf16.kernels


@pytest.mark.slow
def test_a_step_of_every_loss_has_a_cost():
    plm = {"model_type": "bert", **TINY}
    costs = {
        loss: step_cost(tiny_module(loss=loss), plm, SHAPE, "cuda", True, None) for loss in LOSSES
    }
    assert costs["in_batch"].activations > costs["cross_entropy"].activations
    excluded = SHAPE.samples * (SHAPE.history + SHAPE.candidates) * 8
    more = costs["in_batch"].batch - costs["cross_entropy"].batch
    assert more == excluded + SHAPE.samples * (8 + 4 + 8)
    assert costs["impression"].batch == costs["cross_entropy"].batch


@pytest.mark.slow
def test_a_dry_run_without_data_counts_impressions_where_they_are_the_samples(
    capsys, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    found = {}
    for loss in ("cross_entropy", "impression"):
        said = dry_run(
            capsys, "--data.root=mind", f"--model.loss={loss}", "--trainer.accelerator=cpu"
        )
        found[loss] = int(re.search(r"epoch +([\d,]+) samples,", said)[1].replace(",", ""))
        news = int(re.search(r"64 samples, ([\d,]+) distinct", said)[1].replace(",", ""))
        assert (news > 2000) == (loss == "impression")
    assert found == {"cross_entropy": 237_017, "impression": 156_965}


def test_a_batch_of_mind_mentions_what_was_counted():
    assert mentions(32, 50, 5, "random").distinct == pytest.approx(822, rel=0.01)
    assert mentions(168, 50, 5, "random").distinct == pytest.approx(3012, rel=0.01)
    assert mentions(512, 100, 5, "user").distinct == pytest.approx(5150, rel=0.01)
    alone, together = (mentions(60, 50, 5, batches) for batches in ("random", "impression"))
    assert (alone.users, together.users) == (60, 40)
    assert (
        0.7 < together.distinct / alone.distinct < 0.8
    )  # 40 histories of 25.5 clicks, 300 candidates
    assert mentions(1, 50, 5, "impression").users == 1
    lengths = text_lengths(["title"], 48, 1000)
    assert (np.diff(lengths) >= 0).all()
    assert lengths.mean() == pytest.approx(15.9, abs=0.3)
    assert text_lengths(["title"], 16, 1000).max() == 16


def test_a_dry_run_of_a_folder_counts_its_batches_and_writes_no_run(
    mind_dir, plm_dir, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    said = dry_run(
        capsys,
        f"--data.root={mind_dir}",
        f"--model.plm={plm_dir}",
        "--model.dim=16",
        "--trainer.accelerator=cpu",
        "--data.batch_size=8",
        "--model.precision=fp32",
    )
    samples, batches = map(int, re.search(r"(\d+) samples, (\d+) batches", said).groups())
    assert batches == -(-samples // 8)
    assert "Nothing is trained" in said
    assert "its config.json" in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("exists", [True, False], ids=["folder", "published"])
def test_a_dry_run_counts_the_vectors_of_categories(
    exists, mind_dir, plm_dir, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    options = (
        f"--data.root={mind_dir if exists else 'absent'}",
        f"--model.plm={plm_dir}",
        "--model.dim=16",
        "--trainer.accelerator=cpu",
        "--model.precision=fp32",
    )
    trained = {}
    for kind in ("none", "both"):
        said = dry_run(capsys, *options, f"--data.categories={kind}")
        trained[kind] = int(re.search(r"([\d,]+) trained", said)[1].replace(",", ""))
    counts = NAMES
    if exists:
        data = MindDataModule(str(mind_dir), str(plm_dir), categories="both")
        data.setup("fit")
        counts = {field: len(values) for field, values in data.known_categories().items()}
    assert trained["both"] - trained["none"] == 16 * (1 + sum(counts.values()))


def test_a_dry_run_takes_what_auto_can_choose(mind_dir, plm_dir, capsys, monkeypatch):
    asked = set()

    def cost(module, plm, shape, device, bf16, states):
        asked.add((device, bf16))
        return StepCost(*range(1, 10))

    monkeypatch.setattr("newsrec.training.estimate.dry_run.step_cost", cost)
    monkeypatch.setattr("newsrec.training.estimate.dry_run.step_flop", lambda *_: 1e9)
    on_gpu, on_cpu = "On a GPU, bf16-mixed:", "On a CPU, 32-true:"
    for accelerator, heads in (("auto", [on_gpu, on_cpu]), ("gpu", [on_gpu]), ("cpu", [on_cpu])):
        said = dry_run(
            capsys,
            f"--data.root={mind_dir}",
            f"--model.plm={plm_dir}",
            "--model.dim=16",
            f"--trainer.accelerator={accelerator}",
            "--data.batch_size=8",
            "--model.precision=auto",
        )
        assert [line for line in said.splitlines() if line.startswith("On a ")] == heads
    assert asked == {("cuda", True), ("cpu", False)}


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(CONFIGS.glob("mind_*.yaml")), ids=lambda path: path.stem)
def test_a_presets_header_says_what_the_estimator_says(path, capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("MIND_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)  # where there is no data
    said = dry_run(capsys, f"--config={path}")
    assert "published sizes of MIND-" + path.stem.split("_")[1] in said
    lines = re.findall(r"For a preset's header: (.*)", said)
    assert lines
    header = path.read_text()
    for line in lines:
        assert line in header
        assert "fits 24 GB" in line or "fits 8 GB" in line or "besides Python's own" in line


def test_every_presets_plm_has_known_sizes_and_packs():
    for path in CONFIGS.glob("mind_large_*.yaml"):
        plm = KNOWN[re.search(r"plm: (\S+)", path.read_text())[1]]
        assert packable(plm | {"hidden_size": 24, "intermediate_size": 24, "vocab_size": 99})


@pytest.mark.slow
def test_the_estimate_is_near_what_a_process_takes(monkeypatch, capsys):
    names = ["tiny-full-fp32", "tiny-recomputed-fp32", "tiny-lora8-fp32"]
    cases = measure(monkeypatch, capsys, "memory.py", "--cases", *names)["cases"]
    assert all(0.75 < case["ratio"] < 1.25 for case in cases)
