"""The whole step on a GPU that is not there: shapes, types and devices, and nobody waits."""

import inspect
import json
import re
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from fake_gpu import NAME, FakeGpu, cuda_kernels, failure_of
from torch import nn
from torch.nn import functional as F
from transformers.initialization import no_init_weights

from newsrec.data.batch import Batch, Catalogue, EvalBatch, SharedClicks
from newsrec.data.datamodule import MindDataModule
from newsrec.data.states import TokenStates
from newsrec.model.fastformer import FastformerConfig
from newsrec.model.plm.load import build_plm
from newsrec.model.plm.sizes import plm_sizes
from newsrec.model.recommender import NewsRecommender
from newsrec.training.catalogue import encode_catalogue
from newsrec.training.losses import LOSSES
from newsrec.training.module import RecommenderModule
from newsrec.training.optimizer import parameter_groups

BERT = plm_sizes("thenlper/gte-base")[0]
ROBERTA = BERT | {"model_type": "roberta", "vocab_size": 50265, "max_position_embeddings": 514,
                  "pad_token_id": 1}  # fmt: skip
MPNET = BERT | {"model_type": "mpnet", "vocab_size": 30527, "max_position_embeddings": 514,
                "pad_token_id": 1}  # fmt: skip
MODERNBERT = BERT | {"model_type": "modernbert", "vocab_size": 50368, "num_hidden_layers": 22,
                     "intermediate_size": 1152, "max_position_embeddings": 8192}  # fmt: skip

CONFIGS = Path(__file__).parent.parent / "configs"
PRESETS = ["demo", *sorted(path.stem for path in CONFIGS.glob("mind_*.yaml"))]


def preset(name):
    """Return the sizes in a preset's files, and the defaults of what they leave out."""
    path = CONFIGS / f"{name}.yaml"
    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    found = {}
    for part, kind in (("model", RecommenderModule), ("data", MindDataModule)):
        options = given[part]
        if isinstance(options, str):
            options = yaml.safe_load((CONFIGS / options).read_text(encoding="utf-8"))
        defaults = inspect.signature(kind).parameters
        found[part] = {key: value.default for key, value in defaults.items()} | options
    model, data = found["model"], found["data"]
    plm, _ = plm_sizes(model["plm"], model["plm_layers"])
    heads = model["news"]["heads"]
    assert heads == model["user"]["heads"]
    return (
        plm, plm["num_hidden_layers"], model["tune_layers"], model["dim"], heads,
        data["max_tokens"], data["max_history"], data["batch_size"],
    )  # fmt: skip


SHAPES = {
    # name: PLM, layers, tuned layers, dim, heads, tokens, history, batch
    **{name: preset(name) for name in PRESETS},
    "base of MPNet's family": (MPNET, 12, -1, 256, 16, 48, 50, 64),
    "base of RoBERTa's family": (ROBERTA, 12, -1, 256, 16, 48, 50, 64),
    "base of ModernBERT's family": (MODERNBERT, 4, 2, 256, 16, 48, 50, 64),
}
"""Sizes of the presets' models and batches, and of families that may stand in a PLM's place."""
DEPTH, WORDS = 3, 64
"""Layers and words of a PLM that are built, and one layer below those that are tuned: all layers
run the same code. One way to run builds them all."""


RECOMPUTED = {"checkpoint_activations": True}


def made_model(name, encoder="fastformer", whole=False, **options):
    """The model with weights that nobody has drawn; nothing is computed with them."""
    plm, layers, tune_layers, dim, heads, tokens, history, _ = SHAPES[name]
    depth = min(layers, max(DEPTH, tune_layers + 1))
    small = {} if whole else {"num_hidden_layers": depth, "vocab_size": WORDS}
    small |= {k: 0 for k in ("cls_token_id", "sep_token_id") if plm["model_type"] == "modernbert"}
    with no_init_weights():
        lm = build_plm({"pad_token_id": 0} | plm | small)
    shape = FastformerConfig(heads=heads, ffn=dim, encoder=encoder)
    user = FastformerConfig(heads=heads, ffn=dim, encoder=encoder, positions="recency")
    return NewsRecommender(lm, dim, tune_layers, shape, user, tokens, history, **options)


def made_batch(plm, tokens, history, size, news=300, states=False):
    """A batch of a preset's shape; users without history and padded candidates are among them."""
    rng = np.random.default_rng(0)
    lengths = np.sort(rng.integers(3, tokens + 1, news))
    lengths = np.concatenate([np.zeros(2, np.int64), lengths])
    given = torch.zeros(int(lengths.sum()), plm["hidden_size"], dtype=torch.bfloat16)
    return Batch(
        token_ids=torch.zeros(news + 2, tokens, dtype=torch.int32),
        token_lengths=lengths,
        token_states=given if states else None,
        history=torch.zeros(size - 5, history, dtype=torch.int64),
        user=torch.zeros(size, dtype=torch.int64),
        candidates=torch.zeros(size, 5, dtype=torch.int64),
        labels=torch.zeros(size, 5, dtype=torch.int64),
        shared=SharedClicks(
            torch.zeros(size, dtype=torch.int64),
            torch.zeros(size),
            torch.zeros(size, dtype=torch.int64),
            torch.zeros(size, history + 5, dtype=torch.int64),
        ),
    )


def made_catalogue(tokens, news=1500):
    """Two blocks of news; every tenth has the tokens of the one before."""
    lengths = torch.arange(news) % tokens + 1
    lengths[:2] = 0
    first = torch.arange(news)
    first[10::10] -= 1
    lengths = lengths[first]
    return Catalogue(torch.zeros(news, tokens, dtype=torch.int32), lengths, first)


def made_states(catalogue, hidden):
    """Kept states in two parts, as those of a run whose folder got more news."""
    total = int(catalogue.token_lengths.sum())
    parts = [torch.zeros(total, hidden, dtype=torch.bfloat16) for _ in range(2)]
    starts = catalogue.token_lengths.cumsum(0) - catalogue.token_lengths
    part = (torch.arange(len(starts)) % 2)[catalogue.first]
    return TokenStates(parts, part, starts, catalogue.token_lengths)


def made_eval_batch(history, impressions=64, candidates=1500):
    return EvalBatch(
        history=torch.zeros(impressions // 2, history, dtype=torch.int64),
        user=torch.zeros(impressions, dtype=torch.int64),
        candidates=torch.zeros(candidates, dtype=torch.int64),
        offsets=torch.zeros(impressions + 1, dtype=torch.int64),
        labels=None,
        row=torch.zeros(impressions, dtype=torch.int64),
    )


def step(gpu, model, batch, dtype):
    """Do what a training step does: forward, loss, backward, clipping, optimizer."""
    module = RecommenderModule.__new__(RecommenderModule)
    nn.Module.__init__(module)
    module.recommender = model
    module.log = lambda *args, **kwargs: None
    groups = parameter_groups(model, 1e-4, 1e-5, 1e-2, 0.01)
    optimizer = torch.optim.AdamW(groups, fused=True)
    for name in LOSSES:  # from the second on with the optimizer's state
        module.loss = name
        loss = module.training_step(batch, 0)
        assert loss.dtype == torch.float32
        assert loss.device.type == NAME
        loss.backward()
        trained = [p for p in model.parameters() if p.requires_grad]
        assert all(p.grad is not None and p.grad.device.type == NAME for p in trained)
        assert not [p for p in model.parameters() if not p.requires_grad and p.grad is not None]
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()


def run_preset(name, dtype, states, encoder, whole=False, options=None):
    plm, _, _, dim, _, tokens, history, size = SHAPES[name]
    model = made_model(name, encoder, whole, **(options or {}))
    catalogue = made_catalogue(tokens)
    kept = made_states(catalogue, plm["hidden_size"]) if states else None
    batch = made_batch(plm, tokens, history, size, states=states)
    evaluated = made_eval_batch(history)
    with FakeGpu() as gpu:
        gpu.move(model, dtype)
        model.train()
        step(gpu, model, gpu.to(batch), dtype)
        model.eval()
        with torch.no_grad():  # the catalogue's vectors, then scores
            vectors = encode_catalogue(model, catalogue, kept)
            assert vectors.shape == (len(catalogue.first), dim)
            assert vectors.dtype == torch.float32
            scores = model.score(vectors.float(), gpu.to(evaluated))
    assert scores.shape == (len(evaluated.candidates),)
    assert scores.dtype == torch.float32
    assert scores.device.type == vectors.device.type == NAME


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def ways_to_run(name):
    """Return by name what ``run_preset`` takes; one process runs all, since it is slow to begin."""
    states = SHAPES[name][2] >= 0
    found = {kind: (dtype, states, "fastformer") for kind, dtype in DTYPES.items()}
    if SHAPES[name][2] != 0:
        found["recomputed"] = (torch.bfloat16, states, "fastformer", False, RECOMPUTED)
    if name == "mind_large_leaderboard":
        found["all layers and words"] = (torch.bfloat16, states, "fastformer", True)
    if name == "demo":
        for head in ("late", "interests"):
            found[head] = (torch.bfloat16, True, "fastformer", False, {"matching": head})
    if name == "mind_small_top2":
        for kind, dtype in DTYPES.items():
            found[f"softmax twin without states, {kind}"] = (dtype, False, "transformer")
    return found


def run_in_every_way(name):
    for way, options in ways_to_run(name).items():
        try:
            run_preset(name, *options)
        except Exception as error:
            raise AssertionError(f"{name}, {way}") from error


def test_the_shapes_are_those_of_the_presets():
    assert len(PRESETS) == 1 + len(list(CONFIGS.glob("mind_*.yaml")))
    sizes = {name: (plm["hidden_size"], *rest) for name, (plm, *rest) in SHAPES.items()}
    assert sizes["mind_small_top2"] == (384, 6, 2, 256, 16, 32, 50, 64)
    assert sizes["mind_large_leaderboard"] == (768, 8, -1, 256, 16, 32, 100, 42)
    assert {SHAPES[name][0]["model_type"] for name in PRESETS} == {"bert"}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_a_presets_step_and_scores_run_on_a_gpu_and_nobody_waits(name):
    assert failure_of(run_in_every_way, name) is None


def planted(name):
    fault = RIGHT[name] if name in RIGHT else FAULTS[name][0]
    with FakeGpu() as gpu:
        here = gpu.to(torch.zeros(3, 4))
        weight = gpu.to(nn.Parameter(torch.zeros(4, 4)))
        fault(here)
        (here @ weight).sum().backward()
    assert weight.grad.device.type == NAME


FAULTS = {
    "a sum with the CPU's": (lambda x: x + torch.zeros(3, 4), "DeviceMismatch"),
    "words of the CPU": (lambda x: F.embedding(torch.zeros(2, dtype=torch.int64), x), "DeviceMis"),
    "a value read": (lambda x: x.sum().item(), "DataDependentOutput"),
    "a decision on a value": (lambda x: 1 if x.sum() > 0 else 2, "DataDependentOutput"),
    "a shape by values": (lambda x: x[x > 0], "DynamicOutputShape"),
    "repeats by values": (lambda x: x.repeat_interleave(x[:, 0].long(), 0), "DynamicOutputShape"),
    "back to the CPU": (lambda x: x.cpu(), "Waits: _to_copy to the CPU"),
    "a blocking copy": (lambda x: torch.zeros(3, 4).to(x.device), "Waits: .* without non_blocking"),
    "indices of the CPU": (lambda x: x[torch.tensor([0, 1])], "Waits: index by indices"),
    "a kernel that CUDA lacks": (lambda x: torch.histogram(x, 4), "CpuOnly: histogram.bin_ct"),
}  # fmt: skip


RIGHT = {
    "a copy that nobody waits for": lambda x: torch.zeros(3, 4).to(x.device, non_blocking=True) + x,
    "repeats of a known number": lambda x: x.repeat_interleave(x[:, 0].long(), 0, output_size=9),
}


def all_planted():
    """Plant every fault, and what is none; raise what each of them raised, as one text."""
    raised = {}
    for name in (*FAULTS, *RIGHT):
        try:
            planted(name)
        except Exception:
            raised[name] = traceback.format_exc()
    raise AssertionError(json.dumps(raised))


@pytest.fixture(scope="module")
def raised():
    return json.loads(failure_of(all_planted).split("AssertionError: ", 1)[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name, raised):
    assert re.search(FAULTS[name][1], raised[name])


@pytest.mark.slow
def test_what_is_right_on_a_gpu_is_not_taken_for_a_fault(raised):
    assert raised.keys() == FAULTS.keys()
    known, able = cuda_kernels()
    assert {"mm", "_fused_adamw_", "embedding"} <= able < known
