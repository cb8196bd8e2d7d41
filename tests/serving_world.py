"""One small model through fit, evaluate and export, for all tests of what is exported."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import fit_options, tiny_behaviors, tiny_news, write_mind
from torch import nn

from newsrec.__main__ import main
from newsrec.serving.manifest import (
    CONFIG,
    NEWS_ENCODER,
    PROGRAM,
    TOKENIZER,
    USER_ENCODER,
    WEIGHTS,
)

ENCODERS = (CONFIG, WEIGHTS, TOKENIZER, USER_ENCODER, PROGRAM, NEWS_ENCODER)
"""The files of an export that the model alone decides."""


def write_served(root: Path, plm_dir: Path) -> None:
    """Write a run of the splits with labels, its scores of dev by evaluate, and its export."""
    news, behaviors = tiny_news(), tiny_behaviors()
    write_mind(root / "mind", news, behaviors)
    two = [{split: of[split] for split in ("train", "dev")} for of in (news, behaviors)]
    without_test = write_mind(root / "without_test", *two)
    recency = "--model.user={heads: 2, ffn: 16, positions: recency}"
    main([*fit_options(without_test, plm_dir, root / "run"), recency, "--data.max_history=20"])
    best = root / "run" / "checkpoints" / "best.ckpt"
    give_each_part_a_say(best)
    data = f"--data.root={without_test}"
    with pytest.MonkeyPatch.context() as patch:
        import newsrec.report.evaluate as module

        noted = []
        compute = module.compute_results
        patch.setattr(
            module, "compute_results", lambda *a, **k: noted.append(a[2]) or compute(*a, **k)
        )
        main(["evaluate", f"--ckpt_path={best}", data, "--split=dev",
              f"--output={root / 'dev'}", "--trainer.accelerator=cpu"])  # fmt: skip
    np.save(root / "scores.npy", noted[0])
    main(["export", f"--ckpt_path={best}", f"--output={root / 'export'}", data])
    (root / "encoders").mkdir()
    for path in (root / "export").iterdir():
        if path.name in ENCODERS:
            shutil.copy(path, root / "encoders")


def give_each_part_a_say(checkpoint: Path) -> None:
    """Change a checkpoint's weights so that the order, every click and an empty history count."""
    content = torch.load(checkpoint, weights_only=True)
    drawn = torch.Generator().manual_seed(0)
    for name, weights in content["state_dict"].items():
        if name.endswith("encoder.gate"):
            nn.init.constant_(weights, 0.7)
        elif name.endswith("user_encoder.empty"):
            nn.init.normal_(weights, generator=drawn)
        elif ".user_encoder.fastformer." in name:
            nn.init.normal_(weights, std=0.3, generator=drawn)
    torch.save(content, checkpoint)


def read_served(root: Path) -> SimpleNamespace:
    """Return where the parts lie, the scores of dev and its rows."""
    return SimpleNamespace(
        best=root / "run" / "checkpoints" / "best.ckpt", export=root / "export",
        encoders=root / "encoders", mind=root / "mind", without_test=root / "without_test",
        dev=root / "dev", scores=np.load(root / "scores.npy"), behaviors=tiny_behaviors()["dev"],
    )  # fmt: skip
