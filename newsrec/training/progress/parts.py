"""Times the parts of a training step: data, PLM, Fastformer, backward pass, optimizer."""

from collections.abc import Callable
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import PassThroughProfiler, Profiler, SimpleProfiler
from rich.table import Table
from torch import nn

from newsrec.training.lightning_internals import LOADING

PLM, FASTFORMER, OPTIMIZER = "[newsrec]PLM", "[newsrec]Fastformer", "[newsrec]optimizer"
STEP = "run_training_batch"


class StepParts(Callback):
    """Adds the model's parts to the profile of ``--trainer.profiler``; does nothing without one.

    On a GPU each timer waits for the device before it starts and stops; it would otherwise only
    time the launches.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add timers to the parts, unless there is no profiler."""
        if isinstance(profiler_of(trainer), PassThroughProfiler):
            return
        recommender: Any = pl_module.recommender
        news, user = recommender.news_encoder, recommender.user_encoder
        for name, modules in (
            (PLM, [news.plm]),
            (FASTFORMER, [news.project, news.fastformer, news.pooling, user]),
        ):
            for module in modules:
                self._hook(trainer, name, module)
        for optimizer in trainer.optimizers:
            optimizer.register_step_post_hook(lambda *_: self._stop(trainer, OPTIMIZER))

    def on_before_optimizer_step(self, trainer: Trainer, *_: Any) -> None:
        """Start the optimizer's timer, which includes clipping."""
        if not isinstance(profiler_of(trainer), PassThroughProfiler):
            self._start(trainer, OPTIMIZER)

    def describe(self, trainer: Trainer) -> Table | None:
        """Return a table of the parts; None unless the profiler is ``simple``."""
        profiler = profiler_of(trainer)
        if not isinstance(profiler, SimpleProfiler):
            return None
        seconds = {k: sum(v) for k, v in profiler.recorded_durations.items()}
        names = {"data": LOADING, "PLM, forward": PLM, "Fastformer, forward": FASTFORMER}
        rows = {row: seconds.get(name, 0.0) for row, name in names.items()}
        rows["backward"] = sum(v for name, v in seconds.items() if name.endswith(".backward"))
        rows["optimizer"] = seconds.get(OPTIMIZER, 0.0)
        total = rows["data"] + seconds.get(STEP, 0.0)
        rows["rest of the step"] = max(total - sum(rows.values()), 0.0)
        table = Table(title="Training steps", title_justify="left")
        table.add_column("")
        for heading in ("seconds", "share"):
            table.add_column(heading, justify="right")
        for name, value in rows.items():
            table.add_row(name, f"{value:.2f}", f"{value / total:.1%}" if total else "")
        return table

    def _hook(self, trainer: Trainer, name: str, module: nn.Module) -> None:
        def when_training(act: Callable[[Trainer, str], None]) -> Callable[..., None]:
            return lambda *_: act(trainer, name) if trainer.training else None

        module.register_forward_pre_hook(when_training(self._start))
        module.register_forward_hook(when_training(self._stop), always_call=True)

    def _start(self, trainer: Trainer, name: str) -> None:
        self._wait(trainer)
        profiler_of(trainer).start(name)

    def _stop(self, trainer: Trainer, name: str) -> None:
        self._wait(trainer)
        profiler_of(trainer).stop(name)

    @staticmethod
    def _wait(trainer: Trainer) -> None:
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()


def profiler_of(trainer: Trainer) -> Profiler:
    """Return a Trainer's profiler, an attribute that its class does not declare."""
    return trainer.profiler  # type: ignore[attr-defined]
