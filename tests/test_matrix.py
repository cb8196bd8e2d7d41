"""What changes a training step, in every pair of values: three steps, a validation, a checkpoint.

``python -m pytest -m slow tests/test_matrix.py`` trains each run of the cover; the default suite
takes one step of six of them. With ``-m gpu`` a GPU trains a cover that has fp16 as well.
"""

import itertools
import json
import logging
import math
import shutil

import numpy as np
import pytest
import torch
from conftest import refused, tiny_behaviors, tiny_news, write_mind
from lightning import Callback
from resuming import assert_same, last, run_killed

from newsrec.__main__ import main
from newsrec.model.matching import match_all
from newsrec.serving.recommend import Recommender
from newsrec.training.module import RecommenderModule

FACTORS = {
    "precision": ("32-true", "bf16-mixed"),
    "clipping": ("norm", "value", "off"),
    "accumulation": (1, 2),
    "tune_layers": (0, 1, -1),
    "frozen_states": ("bf16", "fp32", "none"),
    "recompute": (False, True),
    "encoder": ("fastformer", "transformer"),
    "loss": ("cross_entropy", "in_batch", "impression"),
    "matching": ("dot", "late", "interests"),
    "lora": (0, 2),
}
ON_A_GPU = FACTORS | {"precision": ("32-true", "bf16-mixed", "16-mixed")}
IGNORED = {
    (("tune_layers", -1), ("frozen_states", "bf16")): {"frozen_states": "none"},
    (("tune_layers", -1), ("frozen_states", "fp32")): {"frozen_states": "none"},
    (("tune_layers", 0), ("recompute", True)): {"recompute": False},
}
"""Pairs of which the second value does nothing, by its --help, and what they are the same as."""
REFUSED = {(("tune_layers", 0), ("lora", 2))}
"""Pairs that contradict each other."""
CLIP_AT = 1e-2
SAMPLES = {"cross_entropy": 16, "in_batch": 16, "impression": 8}
"""Samples of a step; three steps of whole impressions are less than the tiny data have."""


def pairs(run):
    """Return the pairs of (factor, value) in a run."""
    return set(itertools.combinations(run.items(), 2))


def cover(factors):
    """Return few runs that have every pair of values but the ignored and the refused ones.

    Each run is, of all that are possible, the one with most pairs that the earlier ones lack.
    """
    products = itertools.product(*factors.values())
    possible = [dict(zip(factors, values, strict=True)) for values in products]
    possible = [
        (run, pairs(run)) for run in possible if not pairs(run) & (IGNORED.keys() | REFUSED)
    ]
    missing = set().union(*(there for _, there in possible))
    runs = []
    while missing:
        best, there = max(possible, key=lambda run: len(run[1] & missing))
        runs.append(best)
        missing -= there
    return runs


def name_of(run):
    words = [str(v) for name, v in run.items() if name not in ("recompute", "lora")]
    return "-".join([*words, *(name for name in ("recompute", "lora") if run[name])])


RUNS = cover(FACTORS)
DEEP, EXPORTED = RUNS[:6], RUNS[:3]
"""Runs that are killed, resumed and evaluated as well, and those of them that are exported, which
takes longer than all else; in both, one run has each value."""


def parameters(runs):
    return [pytest.param(run, id=name_of(run)) for run in runs]


@pytest.mark.parametrize("factors", [FACTORS, ON_A_GPU])
def test_every_pair_of_values_is_in_a_run_or_known_to_be_ignored(factors):
    runs = cover(factors)
    assert len(runs) <= 30
    for (one, one_values), (other, other_values) in itertools.combinations(factors.items(), 2):
        for a, b in itertools.product(one_values, other_values):
            met = any(run[one] == a and run[other] == b for run in runs)
            pair = (one, a), (other, b)
            assert met != (pair in IGNORED or pair in REFUSED), pair


@pytest.mark.parametrize("runs", [DEEP, EXPORTED], ids=["deep", "exported"])
def test_the_deep_runs_and_those_that_are_exported_have_every_value(runs):
    for factor, values in FACTORS.items():
        assert {run[factor] for run in runs} == set(values)


class Watch(Callback):
    """Keeps losses, gradients before and after clipping, and which layers of the PLM moved.

    The optimizer takes no step in those of ``left_out``, as after an overflow in fp16.
    """

    def __init__(self, left_out=()):
        self.left_out = set(left_out)
        self.losses, self.before, self.after, self.moved = [], [], [], set()

    def on_train_start(self, trainer, pl_module):
        self.weights = {n: p.detach().clone() for n, p in pl_module.named_parameters()}
        self.states = trainer.datamodule.states
        self.precision = trainer.precision

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if trainer.global_step in self.left_out:
            for parameter in pl_module.parameters():
                parameter.grad = None
            return
        gradients = self._gradients(pl_module)
        if trainer.precision == "16-mixed" and not gradients.isfinite().all():
            self.left_out.add(trainer.global_step)  # the scaler halves its scale and goes on
        else:
            self.before.append(gradients)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))
        if len(self.after) < len(self.before):
            self.after.append(self._gradients(pl_module))

    def on_train_end(self, trainer, pl_module):
        named = pl_module.named_parameters()
        self.moved = {n for n, p in named if not torch.equal(p, self.weights[n])}
        self.metrics = {n: float(value) for n, value in trainer.callback_metrics.items()}

    @staticmethod
    def _gradients(module):
        return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])

    def layers(self):
        """Return which parts of the PLM moved: its layers' numbers, and the embeddings."""
        parts = [n.partition("news_encoder.plm.")[2].split(".") for n in self.moved]
        return {p[2] if p[0] == "encoder" else p[0] for p in parts if p[0]}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_mind(tmp_path_factory.mktemp("matrix") / "mind", tiny_news(), tiny_behaviors())


@pytest.fixture(scope="module")
def still_plm(plm_dir, tmp_path_factory):
    """The tiny PLM without dropout, so that runs of different options have the same losses."""
    folder = shutil.copytree(plm_dir, tmp_path_factory.mktemp("still") / "plm")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture
def fit(root, plm_dir, still_plm, tmp_path, monkeypatch):
    """Return a function that trains one run of a cover and returns what ``Watch`` saw."""
    # Lightning's handler keeps the stderr that pytest had when it was imported.
    monkeypatch.setattr(logging, "raiseExceptions", False)
    count = itertools.count()

    def train(run, *options, output=None, steps=3, dropout=0.0, kill=None, device="cpu", out=()):
        output = output or tmp_path / f"run-{next(count)}"
        stack = f"heads: 2, ffn: 16, dropout: {dropout}, encoder: {run['encoder']}"
        clipping = {
            "norm": [f"--trainer.gradient_clip_val={CLIP_AT}"],
            "value": [f"--trainer.gradient_clip_val={CLIP_AT}",
                      "--trainer.gradient_clip_algorithm=value"],
            "off": ["--trainer.gradient_clip_val=null"],
        }  # fmt: skip
        lora = [f"--model.lora.rank={run['lora']}", "--model.lora.learning_rate=1e-3",
                f"--model.lora.dropout={dropout}"]  # fmt: skip
        given = [
            "fit",
            f"--data.root={root}",
            f"--model.plm={plm_dir if dropout else still_plm}",
            f"--output={output}",
            "--model.dim=16",
            f"--model.news={{{stack}}}",
            f"--model.user={{{stack}}}",
            f"--model.matching={run['matching']}",
            "--model.plm_lr=1e-3",
            "--model.lr=1e-3",
            f"--model.tune_layers={run['tune_layers']}",
            *(lora if run["lora"] else []),
            f"--model.checkpoint_activations={str(run['recompute']).lower()}",
            f"--data.frozen_states={run['frozen_states']}",
            f"--data.batch_size={SAMPLES[run['loss']] // run['accumulation']}",
            f"--model.loss={run['loss']}",
            "--data.max_tokens=12",
            f"--trainer.precision={run['precision']}",
            f"--trainer.accumulate_grad_batches={run['accumulation']}",
            *clipping[run["clipping"]],
            f"--trainer.accelerator={device}",
            "--trainer.devices=1",
            f"--trainer.limit_train_batches={steps * run['accumulation']}",
            "--trainer.max_epochs=1",
            "--trainer.log_every_n_steps=1",
            "--trainer.enable_progress_bar=false",
            "--trainer.num_sanity_val_steps=0",
            "--save_every=1",
            "--baselines=false",
            *options,
        ]
        if kill is not None:
            run_killed(given, kill)
            return None
        watch = Watch(out)
        main(given, [watch])
        watch.output = output
        return watch

    return train


def assert_trained_as_asked(watch, run, steps):
    """Check gradients, weights, states and metrics of a run against its options."""
    assert watch.precision == run["precision"]
    assert len(watch.losses) == steps * run["accumulation"]
    assert all(map(math.isfinite, watch.losses))
    assert (watch.states is not None) == (
        run["frozen_states"] != "none" and run["tune_layers"] != -1
    )
    for before, after in zip(watch.before, watch.after, strict=True):
        expected = before.clone()
        if run["clipping"] == "norm":
            expected *= min(1.0, CLIP_AT / (float(before.norm()) + 1e-6))
        elif run["clipping"] == "value":
            expected = before.clamp(-CLIP_AT, CLIP_AT)
        torch.testing.assert_close(after, expected)
    tuned = {0: set(), 1: {"1"}, -1: {"0", "1"} | (set() if run["lora"] else {"embeddings"})}
    assert watch.layers() == tuned[run["tune_layers"]]
    of_plm = {name for name in watch.moved if ".plm." in name}
    assert {name for name in of_plm if "lora_" in name} == (of_plm if run["lora"] else set())
    assert len(watch.moved - {n for n in watch.moved if "plm." in n}) > 10  # both stacks, too


@pytest.mark.parametrize("run", parameters(DEEP))
def test_one_step_of_six_runs_is_as_asked(fit, run):
    watch = fit(run, "--data.val=none", steps=1)
    assert_trained_as_asked(watch, run, steps=1)


PLAIN = {"precision": "32-true", "frozen_states": "none", "recompute": False, "accumulation": 1}
"""These factors change how a step is computed, none of them what is computed."""


def losses_of_steps(watch, run):
    """Return the loss of each step; Lightning has divided those of its parts by their number."""
    return np.reshape(watch.losses, (-1, run["accumulation"])).sum(axis=1)


def assert_losses_of_the_plain_way(fit, watch, run, device="cpu"):
    """Compare with fp32 through the whole PLM, all activations kept, a batch in one piece."""
    rounded = run["precision"] != "32-true" or run["frozen_states"] == "bf16"
    plain = run | PLAIN
    if run["loss"] == "in_batch":  # each accumulated batch has its own negatives
        plain["accumulation"] = run["accumulation"]
    expected = losses_of_steps(fit(plain, device=device, out=watch.left_out), plain)
    found = losses_of_steps(watch, run)
    # After two AdamW steps the order of sums shows: 0, 2e-6 and 1.5e-5 were seen in three steps.
    exact = 3e-5 if run["loss"] == "in_batch" or run["matching"] == "interests" else 1e-5
    np.testing.assert_allclose(found, expected, atol=1e-2 if rounded else exact, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("run", parameters(RUNS))
def test_three_steps_have_the_losses_of_the_plain_way(fit, run):
    watch = fit(run)
    assert_trained_as_asked(watch, run, steps=3)
    assert_losses_of_the_plain_way(fit, watch, run)
    assert 0 <= watch.metrics["val/auc"] <= 1
    checkpoint = last(watch.output)
    assert checkpoint["global_step"] == 3
    best = RecommenderModule.load_from_checkpoint(watch.output / "checkpoints" / "best.ckpt")
    for name, value in best.state_dict().items():
        assert torch.equal(value, checkpoint["state_dict"][name])


@pytest.mark.slow
@pytest.mark.parametrize("run", parameters(DEEP))
def test_a_killed_run_goes_on_bit_for_bit_and_is_evaluated_and_exported(fit, run, root, tmp_path):
    whole = fit(run, dropout=0.3)
    killed = tmp_path / "killed"
    third_step = ("on_train_batch_start", 2 * run["accumulation"] + 1)
    fit(run, dropout=0.3, output=killed, kill=third_step)
    assert last(killed)["global_step"] == 2
    fit(run, "--ckpt_path=last", dropout=0.3, output=killed)
    assert_same(last(whole.output), last(killed))

    best = killed / "checkpoints" / "best.ckpt"
    main(["evaluate", f"--ckpt_path={best}", f"--data.root={root}", "--split=dev",
          f"--output={tmp_path / 'dev'}", "--trainer.accelerator=cpu", "--baselines=false",
          f"--precision={'fp32' if run['precision'] == '32-true' else 'bf16'}"])  # fmt: skip
    metrics = json.loads((tmp_path / "dev" / "metrics.json").read_text(encoding="utf-8"))
    # The validation within training read frozen states that are rounded; evaluate has none.
    tolerance = 0.05 if run["frozen_states"] == "bf16" else 1e-6
    assert metrics["auc"] == pytest.approx(whole.metrics["val/auc"], abs=tolerance)

    if run not in EXPORTED:
        return
    served = tmp_path / "served"
    main(["export", f"--ckpt_path={best}", f"--data.root={root}", f"--output={served}"])
    assert_served(served, best)


def assert_served(folder, best):
    """Compare an export's scores with those that PyTorch makes of the checkpoint."""
    model = RecommenderModule.load_from_checkpoint(best).recommender
    recommender = Recommender.load(folder)
    clicked, shown = ["N3", "N1", "N16"], ["N2", "N3", "N4", "N5"]
    row_of = {
        news_id: row + 2 for row, news_id in enumerate(recommender.news["news_id"].to_pylist())
    }
    vectors = torch.from_numpy(recommender.news_vectors.copy())
    for history in (clicked, clicked[:1], []):
        rows = torch.tensor([[row_of[news_id] for news_id in history]]).long()
        candidates = vectors[[row_of[news_id] for news_id in shown]]
        assert candidates.abs().sum(dim=1).min() > 0
        with torch.no_grad():
            expected = match_all(model.users(vectors, rows), candidates)[0]
        found = recommender.rank(history, shown).candidate_scores
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("precision", ["16-mixed", "16"])
def test_fp16_is_refused_on_a_cpu_with_what_to_choose(root, still_plm, tmp_path, capsys, precision):
    said = refused(capsys, "fit", f"--data.root={root}", f"--model.plm={still_plm}",
                   f"--output={tmp_path / 'run'}", "--trainer.accelerator=cpu",
                   f"--trainer.precision={precision}")  # fmt: skip
    assert f"trainer.precision is {precision}, in which a CPU cannot train" in said
    assert "32-true or bf16-mixed" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("pair", IGNORED, ids=lambda pair: "-".join(str(v) for _, v in pair))
def test_an_ignored_value_trains_what_its_absence_trains_bit_for_bit(fit, pair):
    run = RUNS[0] | dict(pair)
    same = run | IGNORED[pair]
    assert run != same
    assert_same(*(last(fit(r, dropout=0.3).output)["state_dict"] for r in (run, same)))


def test_help_says_which_values_are_ignored(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "runs the whole PLM in every step. Ignored when all layers are tuned." in said
    assert "the same gradients. Ignored when no layer is tuned." in said


@pytest.mark.gpu
@pytest.mark.parametrize("run", parameters(cover(ON_A_GPU)))
def test_three_steps_on_a_gpu_have_the_losses_of_the_plain_way(only_cuda, fit, run):
    watch = fit(run, device="gpu")
    assert_trained_as_asked(watch, run, steps=3)
    assert_losses_of_the_plain_way(fit, watch, run, device="gpu")
