"""End of ``fit``: report the best checkpoint on the split that chose it."""

import json
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.profilers import PassThroughProfiler
from rich.console import Console

from newsrec.data.datamodule import MindDataModule
from newsrec.data.splits import LAST_DAY
from newsrec.evaluation.baselines import scores_beside
from newsrec.evaluation.explained import explainer
from newsrec.evaluation.names import BASELINE_NAMES
from newsrec.evaluation.plm_means import record_means, vectors_before_training
from newsrec.evaluation.scoring import score_split
from newsrec.evaluation.submission import zip_name
from newsrec.files import write_text
from newsrec.report.evaluate import measure_split
from newsrec.report.examples import choose_examples, examples_of
from newsrec.report.page import html_page
from newsrec.report.terminal import (
    PAGE_FILE,
    page_link,
    print_comparison,
    read_ceiling,
    read_config,
    read_curves,
)
from newsrec.report.tracking import log_report
from newsrec.training.checkpoint.read import read_checkpoint
from newsrec.training.module import RecommenderModule
from newsrec.training.processes.together import fail_together
from newsrec.training.processes.waiting import wait_for_all
from newsrec.training.progress.curves import draw_curves
from newsrec.training.progress.ending import how_it_ended
from newsrec.training.run import Run
from newsrec.training.sharding import load_weights
from newsrec.training.trained_run import TrainedRun

SUMMARY_FILE = "summary.json"


def close_run(run: Run, trainer: Any, baselines: bool) -> None:
    """Print a run's speed, compare its best checkpoint with the baselines, and print next commands.

    Every process calls this.
    """
    with fail_together(trainer):
        _close(run, trainer, baselines)


def _close(run: Run, trainer: Any, baselines: bool) -> None:
    module, data, first = run.model, run.datamodule, trainer.is_global_zero
    speed, parts = run.throughput.describe(trainer), run.parts.describe(trainer)
    trainer.profiler = PassThroughProfiler()
    best = run.best.best_model_path
    if trainer.interrupted:
        return
    if first:
        print()
        if parts is not None:
            Console().print(parts)
        if speed is not None:
            print(f"{speed}\n")
    if not best:
        if first:
            print(how_it_ended(trainer, run.last))
        return
    if Path(best).is_dir():
        if first:
            one = Path(best).with_name(f"{Path(best).stem}-whole.ckpt")
            print(
                f"\nBest checkpoint: {best}, a folder of parts. Next:\n  python -m newsrec "
                f"convert-checkpoint {best} --output {one}"
            )
        return
    if data.selected_on is not None:
        # Machines may share no disk, so only the first process is sure to have the file.
        read = read_checkpoint(best) if first else {}
        kept = {name: read.get(name) for name in ("state_dict", "newsrec")}
        wait_for_all()
        checkpoint = trainer.strategy.broadcast(kept)
        load_weights(module, checkpoint["state_dict"])
        if data.states is not None and not data.states.exact:
            data.use_states(None)  # score as evaluate does, which has none
        speeds = run.throughput.summary()
        trained = TrainedRun(Path(best), checkpoint, data)
        compare_best(trainer, module, trained, run.output, baselines, speeds)
    if not first:
        return
    best = os.path.relpath(best) if Path(best).is_relative_to(Path.cwd()) else best
    chosen = "Best" if data.selected_on else "Last"
    named = {"Curves": "curves.png", "Page": PAGE_FILE, "Summary": SUMMARY_FILE}
    files = {what: run.output / name for what, name in named.items()}
    files = {what: path for what, path in files.items() if path.is_file()}
    log_report(trainer.loggers, [*files.values()], run.output / SUMMARY_FILE)
    print(f"\n{chosen} checkpoint: {best}")
    print("".join(f"{what}: {path}\n" for what, path in files.items()))
    print(f"Next:\n{next_commands(data, best, run.output.name)}")
    if "Page" in files:
        print(f"\n{page_link(files['Page'])}")


def compare_best(
    trainer: Any,
    module: RecommenderModule,
    trained: TrainedRun,
    output: Path,
    baselines: bool,
    speed: dict[str, Any],
) -> None:
    """Compare a run's best checkpoint with the baselines in fp32; print and save the results.

    Writes ``report.html`` and ``summary.json`` into the run folder. The summary has the fields of
    ``evaluate``'s ``metrics.json``, the run's steps and ``speed``. Every process calls this, with a
    Trainer that has a ``ScoreCollector``, and the model with the weights of the checkpoint.
    """
    datamodule, path = trained.data, trained.path
    split = datamodule.selected_on
    assert split is not None
    with in_fp32(trainer), record_means(module) as noted:
        scores = score_split(trainer, module, datamodule, split)
    vectors = None
    if baselines:  # all processes share this work
        place = (trainer.strategy.root_device, trainer.global_rank, trainer.world_size)
        vectors = vectors_before_training(module, datamodule, noted, *place)
    if scores is None:  # not the first process
        return
    data = datamodule.data
    others = {}
    if baselines:
        others = scores_beside(data, split, news_vectors=vectors)
    results, _, worst = measure_split(data, split, scores, others, vectors, scores)
    metrics = results.metrics
    metrics |= trained.provenance("fp32")
    run = {
        "checkpoint": f"{path.parent.name}/{path.name}",
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        **speed,
    }
    ceiling = read_ceiling(data.root, split)
    curves = read_curves(path)
    explain = explainer(module, datamodule.max_history)
    examples = choose_examples(data, split, scores, results, explain)
    losses = examples_of(data, split, scores, results, worst, explain)
    config = read_config(path)
    page = html_page(str(path), metrics, ceiling, examples, curves, losses=losses, config=config)
    write_text(output / SUMMARY_FILE, json.dumps(metrics | {"run": run}, indent=1) + "\n")
    write_text(output / PAGE_FILE, page)
    best = max(metrics.get("baselines", {}).items(), key=lambda row: row[1]["auc"], default=None)
    if (output / "metrics.csv").is_file():
        line = None if best is None else (BASELINE_NAMES.get(best[0], best[0]), best[1]["auc"])
        draw_curves(output / "metrics.csv", output / "curves.png", line)
    print_comparison(metrics, ceiling)


@contextmanager
def in_fp32(trainer: Any) -> Iterator[None]:
    """Compute in fp32, the default of ``evaluate``, whatever precision an idle Trainer has."""
    strategy = trainer.strategy
    trained_in = strategy.precision_plugin
    strategy.precision_plugin = Precision()
    try:
        yield
    finally:
        strategy.precision_plugin = trained_in


def next_commands(datamodule: MindDataModule, path: str, name: str) -> str:
    """Return the commands that usually follow a run called ``name``; labelled splits come first."""
    data = datamodule.data
    known = [s for s in ("dev", LAST_DAY, "test") if s in data.splits]
    labelled = [s for s in known if data.split(s).labels is not None]
    hidden = [s for s in ("test",) if s in data.splits and s not in labelled]
    ckpt, root = ["--ckpt_path", path], ["--data.root", str(datamodule.root)]
    commands = [
        ["evaluate", *ckpt, *root, "--split", split, "--output", f"results/{name}-{split}"]
        for split in (*labelled, *hidden)
    ]
    for split in hidden:
        submission = f"results/{name}-{split}/{zip_name(data.submission)}"
        commands.append(["check-submission", submission, *root, "--split", split])
    commands.append(["export", *ckpt, *root, "--output", f"exports/{name}"])
    commands.append(["serve", f"exports/{name}", *root])
    return "\n".join(f"  python -m newsrec {shlex.join(command)}" for command in commands)
