"""What a model learns in a world with a known answer.

data/demo, dev: the ceiling's AUC is .799 and the best baseline's (recent) .630, as the last lines
of the README's first command print them. Half of the way from .5 to the ceiling is .649.
"""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

DEMO = Path(__file__).parent.parent / "data" / "demo"
BEST_BASELINE = 0.6303


def shuffle_labels(root, seed):
    """Deal each impression's labels out anew, so that nothing is left to learn."""
    rng = np.random.default_rng(seed)
    for split in ("train", "dev"):
        path = root / split / "behaviors.tsv"
        lines = []
        for line in path.read_text().splitlines():
            *head, candidates = line.split("\t")
            words = candidates.split(" ")
            labels = rng.permutation([word[-1] for word in words])
            shuffled = [f"{w[:-2]}-{y}" for w, y in zip(words, labels, strict=True)]
            lines.append("\t".join([*head, " ".join(shuffled)]))
        path.write_text("\n".join(lines) + "\n")


def train(root, output, monkeypatch, *options):
    """Train the demo's model; return the best AUC on dev."""
    from newsrec.__main__ import main

    monkeypatch.setenv("MIND_ROOT", str(root))
    config = DEMO.parent.parent / "configs" / "demo.yaml"
    main(["fit", f"--config={config}", f"--output={output}", "--baselines=false",
          "--trainer.enable_progress_bar=false", *options])  # fmt: skip
    with (output / "metrics.csv").open() as file:
        return max(float(row["val/auc"]) for row in csv.DictReader(file) if row["val/auc"])


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    ignore = shutil.ignore_patterns(".newsrec")
    return Path(shutil.copytree(DEMO, tmp_path_factory.mktemp("demo") / "demo", ignore=ignore))


@pytest.mark.slow
def test_fastformer_learns_what_its_softmax_twin_learns(demo, tmp_path, monkeypatch):
    """One seed: both beat the best baseline and go half of the way from chance to the ceiling."""
    ceiling = json.loads((DEMO / "world.json").read_text())["ceiling"]["dev"]["auc"]
    auc = {}
    for encoder in ("fastformer", "transformer"):
        options = [f"--model.{part}.encoder={encoder}" for part in ("news", "user")]
        options.append("--trainer.max_epochs=1")
        auc[encoder] = train(demo, tmp_path / encoder, monkeypatch, *options)
        assert auc[encoder] > max(BEST_BASELINE, 0.5 + 0.5 * (ceiling - 0.5))
    assert auc["fastformer"] == pytest.approx(auc["transformer"], abs=0.02)


@pytest.mark.slow
def test_shuffled_labels_teach_nothing(demo, tmp_path, monkeypatch):
    root = Path(shutil.copytree(demo, tmp_path / "demo"))  # with states, if they are there
    shuffle_labels(root, seed=0)
    auc = train(root, tmp_path / "run", monkeypatch, "--trainer.max_epochs=1")
    assert 0.45 < auc < 0.55
