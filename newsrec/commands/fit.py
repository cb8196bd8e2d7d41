"""The command ``fit``: LightningCLI with a run folder, and a summary at the end."""

import logging
import os
import sys
from argparse import ArgumentError
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any

import jsonargparse
import yaml
from lightning import Trainer
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.profilers import PassThroughProfiler
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from transformers.utils.logging import disable_progress_bar

from newsrec.commands import bugs
from newsrec.commands.options import Written, explain, written_options
from newsrec.console import is_first_process
from newsrec.data.datamodule import MindDataModule
from newsrec.errors import UserError
from newsrec.files import require_writable
from newsrec.report.closing import PAGE_FILE, SUMMARY_FILE, close_run, next_commands
from newsrec.training.callbacks import FrozenStates, RunCsv, ScoreCollector
from newsrec.training.checkpoint.read import (
    BEGUN,
    check_run_folder,
    check_same_options,
    hyper_parameters,
    plain,
    read_checkpoint,
    resolve_checkpoint,
)
from newsrec.training.checkpoint.saving import AtomicCheckpointIO, LastCheckpoint, Stopped
from newsrec.training.estimate.dry_run import dry_run
from newsrec.training.guards import FiniteLoss, out_of_memory
from newsrec.training.hardware.settle import keep_hardware, settle_hardware
from newsrec.training.lightning_internals import known_options, trainer_options
from newsrec.training.mistakes import check_seed, check_trainer, late_mistakes, trainer_mistakes
from newsrec.training.module import RecommenderModule
from newsrec.training.processes.launch import (
    connection_mistakes,
    refuse_lonely,
    started_by_torchrun,
)
from newsrec.training.processes.run_lock import RunLock
from newsrec.training.processes.share_folder import share_run_folder
from newsrec.training.processes.together import SameData, one_fate, one_fate_from_the_start
from newsrec.training.progress.bar import EpochLine, SpeedBar
from newsrec.training.progress.curves import Curves
from newsrec.training.progress.ending import how_it_ended, say_if_finished
from newsrec.training.progress.parts import StepParts
from newsrec.training.progress.throughput import Throughput

log = logging.getLogger(__name__)

LINKS = {
    "data.plm": "model.plm",
    "model.max_tokens": "data.max_tokens",
    "model.max_history": "data.max_history",
}
"""Values that two rooms share: the second key owns it, the first is filled in from it."""

FREE_ON_RESUME = ("root", "num_workers", "prefetch_factor", "pin_memory", "eval_batch_size")
"""Data options that may change when a run goes on: none of them moves a number."""


class FitCLI(LightningCLI):
    """``fit`` and nothing else; see ``python -m newsrec fit --help``."""

    output: Path
    steps_done = 0
    """Steps of the run that goes on."""
    auto_chose = False
    """Whether that run's precision was chosen by auto."""
    threads_typed = False
    """Whether the command line itself says how many threads."""
    written: set[str]
    """Options that the command line or a file sets."""
    places: str
    """Where they are set: names of files, mostly."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Offer ``fit`` alone; ``evaluate`` rebuilds a model from its checkpoint."""
        return {"fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run folder and link what two rooms share."""
        parser.add_argument(
            "--output",
            type=str | None,
            default=None,
            help="run folder; default: runs/, the config's name and the time",
        )
        parser.add_argument(
            "--save_every",
            type=int | None,
            default=1000,
            help="steps between two writes of last.ckpt within an epoch; null: at its end alone",
        )
        parser.add_argument(
            "--patience",
            type=int | None,
            default=None,
            help="stop early, after so many validations without a better val/auc",
        )
        parser.add_argument(
            "--baselines",
            type=bool,
            default=True,
            help="compare with the baselines at the end; costs a PLM pass if the PLM is tuned",
        )
        parser.add_argument(
            "--threads",
            type=int | None,
            default=None,
            help="threads of a process; default: what OMP_NUM_THREADS says, else the cores divided "
            "by the processes, or 1 where more are measured to be no faster. Where others "
            "compute as well, set OMP_WAIT_POLICY=PASSIVE in the environment, or threads spin",
        )
        parser.add_argument(
            "--dry_run",
            type=bool,
            nargs="?",
            const=True,
            default=False,
            help="print an estimate of the memory, disk and time that the run needs; train nothing",
        )
        for target, source in LINKS.items():
            parser.link_arguments(source, target)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse, after refusing what a link would silently drop."""
        given = [str(a) for a in args] if isinstance(args, list) else sys.argv[1:]
        written = written_options(given)
        self.written = {option.key for option in written}
        self.threads_typed = "threads" in self.written
        values = {option.key: option.value for option in written}
        if values.get("ckpt_path") in ("last", "best", "auto") and "output" in values:
            share_run_folder(Path(values["output"]))
        self.places = " ".join(sorted({option.place for option in written}))
        base = _run_config(given, written)
        if base is not None:
            log.info("options that are not given are those of %s", base)
            args = given = [given[0], f"--config={base}", *given[1:]]
            written = written_options(given)
            self.written = {option.key for option in written}
        for key, place, _ in written:
            if key in LINKS:
                raise UserError(f"{place}: {key} follows {LINKS[key]}. Set {LINKS[key]} instead.")
        try:
            super().parse_arguments(parser, args)
        except (ArgumentError, OmegaConfBaseException) as error:
            known = known_options(self, parser)
            raise UserError(explain(str(error), written, known)) from error
        check_seed(self.config.get("fit", {}).get("seed_everything"))

    def _dump_config(self) -> None:
        """Write the options down, those too that Lightning's classes have as members of an enum."""
        try:
            super()._dump_config()
        except ValueError:
            _name_members(self.config)
            super()._dump_config()

    def _parse_ckpt_path(self) -> None:
        """Find the checkpoint to go on from, and refuse options that contradict it.

        Lightning would take the checkpoint's options over the given ones without a word.
        """
        if not self.subcommand_config:
            return
        config = self.subcommand_config
        self.output = _run_folder(config)
        require_writable(self.output)
        if config.ckpt_path == "auto":
            last = self.output / "checkpoints" / "last.ckpt"
            config.ckpt_path = "last" if last.is_file() else None
        if config.ckpt_path is None:
            if is_first_process():  # the others come after it
                check_run_folder(self.output)
            return
        config.ckpt_path = str(resolve_checkpoint(config.ckpt_path, self.output))
        checkpoint = read_checkpoint(config.ckpt_path)
        self.steps_done = checkpoint["global_step"]
        self._take_unwritten(checkpoint)
        self.auto_chose = keep_hardware(config, checkpoint)
        given = {part: config[part].as_dict() for part in ("model", "data")}
        given["data"] = {k: v for k, v in given["data"].items() if k not in FREE_ON_RESUME}
        if given["data"]["seed"] is None:
            del given["data"]["seed"]
        del given["model"]["precision"]  # a run may go on in another
        check_same_options(checkpoint, given, config.ckpt_path)
        self._report_trainer_changes()

    def _report_trainer_changes(self) -> None:
        """Say which of the Trainer's options are others than in the run so far."""
        path = self.output / "config.yaml"
        if not path.is_file():
            return
        before = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("trainer", {})
        for name, value in self.subcommand_config.trainer.items():
            if isinstance(value, str | int | float | None) and before.get(name, value) != value:
                log.info("trainer.%s is %s, %s in the run so far", name, value, before[name])

    def _take_unwritten(self, checkpoint: dict[str, Any]) -> None:
        """Give options that nobody wrote the values of the run that goes on; say which differ."""
        config = self.subcommand_config
        for part in ("model", "data"):
            for name, stored in hyper_parameters(checkpoint, part).items():
                key = f"{part}.{name}"
                if name not in config[part] or key in LINKS or self._is_written(key):
                    continue
                shape = isinstance(stored, dict)
                now = config[part][name].as_dict() if shape else config[part][name]
                if plain(now) == plain(now | stored if shape else stored):
                    continue
                log.info("%s is %s, as in the run that goes on", key, stored)
                config[part][name] = jsonargparse.Namespace(**now | stored) if shape else stored
        for target, source in LINKS.items():
            config[target] = config[source]

    def _is_written(self, key: str) -> bool:
        return any(f"{option}.".startswith(f"{key}.") for option in self.written)

    @property
    def subcommand_config(self) -> Any:
        """The options of ``fit``."""
        return self.config.get("fit")

    def instantiate_classes(self) -> None:
        """Build model, data module and Trainer; name a package that one of them lacks."""
        try:
            super().instantiate_classes()
        except Exception as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, ModuleNotFoundError):
                cause = cause.__cause__ or cause.__context__
            if cause is None or isinstance(error, UserError):
                raise
            said = " ".join(str(cause).split())
            raise UserError(f"trainer: a package is missing: {said}. Install it.") from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the Trainer with the run folder's logs, checkpoints and curves."""
        if self.subcommand is None:
            return super().instantiate_trainer(**kwargs)
        if self.subcommand_config.dry_run:
            print(dry_run(self))
            sys.exit(0)
        output = self.output
        csv = RunCsv(output)
        # What a run killed between checkpoints has shown is hidden, where it is shown again.
        folder: dict[str, Any] = {
            "name": "tensorboard",
            "version": "",
            "purge_step": self.steps_done,
        }
        loggers: list[Any] = [csv, TensorBoardLogger(str(output), **folder)]
        wanted = trainer_options(self)
        check_trainer(wanted)
        more = wanted["logger"]
        if more not in (None, True, False):
            loggers += more if isinstance(more, list) else [more]
        files: dict[str, Any] = {"dirpath": output / "checkpoints", "enable_version_counter": False}
        monitor = None if self.datamodule.selected_on is None else "val/auc"
        self.checkpoints = ModelCheckpoint(filename="best", monitor=monitor, mode="max", **files)
        self.throughput, self.parts = Throughput(), StepParts()
        self.last = output / "checkpoints" / "last.ckpt"
        guard = FiniteLoss(self.last)
        save_every = self.subcommand_config.save_every
        self.trainer_defaults["callbacks"] = [
            SameData(),
            FrozenStates(),
            ScoreCollector(),
            self.throughput,
            self.parts,
            guard,
            Curves(csv, output / "curves.png"),
            LearningRateMonitor("step"),
            EpochLine(),
            *self._early_stopping(monitor),
            self.checkpoints,
            LastCheckpoint(self.last, save_every, guard.check_weights),
        ]
        if wanted["enable_progress_bar"] is not False:
            self.trainer_defaults["callbacks"].append(SpeedBar())
        plugins = wanted["plugins"] or []
        plugins = [*plugins] if isinstance(plugins, list) else [plugins]
        kwargs |= {"logger": loggers, "default_root_dir": str(output)}
        kwargs |= started_by_torchrun(wanted)
        kwargs["plugins"] = [AtomicCheckpointIO(), *plugins]
        self.model.auto_chose = self.auto_chose
        config, typed = self.subcommand_config, self.threads_typed
        kwargs["precision"] = settle_hardware(config, wanted, self.model, self.datamodule, typed)
        with trainer_mistakes():
            trainer = super().instantiate_trainer(use_distributed_sampler=False, **kwargs)
        refuse_lonely(trainer)
        return trainer

    def _early_stopping(self, monitor: str | None) -> list[EarlyStopping]:
        patience = self.subcommand_config.patience
        if patience is None:
            return []
        if patience < 1 or monitor is None:
            raise UserError(
                f"--patience is {patience} with data.val {self.datamodule.val}: it counts the "
                "validations, at least 1, that data.val must bring."
            )
        return [EarlyStopping(monitor, mode="max", patience=patience)]

    def fit(self, **kwargs: Any) -> None:
        """Train; a start that fails leaves no run folder behind, and never another run's."""
        first = self.trainer.is_global_zero
        self.lock = RunLock(self.output)
        bugs.run_folder = self.output
        if first:
            self.lock.take()
        try:
            if first:  # mistakes in the data show before anything slow
                if self.subcommand_config.ckpt_path is None:
                    check_run_folder(self.output)  # another run may have ended here meanwhile
                self.datamodule.prepare_data()
                self.datamodule.setup("fit")
                log.info("%s", self.datamodule.describe())
                self._log_options()
                say_if_finished(self.trainer, self.subcommand_config.ckpt_path)
            remedies = out_of_memory(self.model, self.datamodule, self.trainer)
            with one_fate(self.trainer), remedies, late_mistakes(), connection_mistakes():
                self.trainer.fit(**kwargs)
        except BaseException as error:
            begun = self.trainer.global_step or (self.output / "checkpoints").exists()
            if first and not begun:
                self.lock.discard(BEGUN)
            self.lock.release()
            if not isinstance(error, Stopped):
                raise
            if not first:
                sys.exit(0)  # whoever started this process would take another code for a crash
            print(
                f"\nStopped by {error} after {self.trainer.global_step:,} steps. Go on by\n"
                f"  python -m newsrec fit --ckpt_path last --output {self.output}",
                file=sys.stderr,
            )
            sys.exit(128 + error.number)

    def _log_options(self) -> None:
        """Give every logger the options, as nested plain values, which they flatten."""
        options = self.subcommand_config.as_dict()
        kept = {name: plain(options[name]) for name in ("model", "data", "trainer")}
        kept["seed_everything"] = options["seed_everything"]
        for logger in self.trainer.loggers:
            logger.log_hyperparams(kept)

    def after_fit(self) -> None:
        """Compare the best checkpoint with the baselines and name the next commands."""
        try:
            with one_fate(self.trainer):
                self._close()
        finally:
            self.lock.release()

    def _close(self) -> None:
        trainer, module, data = self.trainer, self.model, self.datamodule
        speed, parts = self.throughput.describe(trainer), self.parts.describe(trainer)
        trainer.profiler = PassThroughProfiler()  # type: ignore[attr-defined]
        best = self.checkpoints.best_model_path
        if trainer.interrupted:
            return
        if trainer.is_global_zero:
            print()
            _print_speed(speed, parts)
        if not best:
            if trainer.is_global_zero:
                print(how_it_ended(trainer, self.last))
            return
        if data.selected_on is not None:
            # The first process alone is sure to have the file: machines may share no disk.
            read = read_checkpoint(best) if trainer.is_global_zero else {}
            kept = {name: read.get(name) for name in ("state_dict", "newsrec")}
            checkpoint = trainer.strategy.broadcast(kept)
            module.load_state_dict(checkpoint["state_dict"])
            if data.states is not None and not data.states.exact:
                data.states = None  # evaluate has none, and should find what is said here
            baselines = self.subcommand_config.baselines
            close_run(
                trainer, module, data, checkpoint, Path(best), self.output, baselines,
                self.throughput.summary(),
            )  # fmt: skip
        if not trainer.is_global_zero:
            return
        best = os.path.relpath(best) if Path(best).is_relative_to(Path.cwd()) else best
        chosen = "Best" if data.selected_on else "Last"
        named = {"Curves": "curves.png", "Page": PAGE_FILE, "Summary": SUMMARY_FILE}
        files = {what: self.output / name for what, name in named.items()}
        files = {what: path for what, path in files.items() if path.is_file()}
        print(f"\n{chosen} checkpoint: {best}")
        print("".join(f"{what}: {path}\n" for what, path in files.items()))
        print(f"Next:\n{next_commands(data, best, self.output.name)}")


def fit(argv: list[str]) -> None:
    """Train, as the command line says.

    Args:
        argv: Options of ``fit``.
    """
    # Interpolation that follows the command line, across files: the mode and this switch together.
    jsonargparse.set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    disable_progress_bar()  # of reading weights, a blink; downloads keep theirs
    with one_fate_from_the_start():
        FitCLI(args=["fit", *argv], **cli_options())


def cli_options(run: bool = True) -> dict[str, Any]:
    """Return the arguments of ``FitCLI``; ``run=False`` only builds what a config describes."""
    parser = {"prog": "newsrec fit", "parser_mode": "omegaconf+", "exit_on_error": False}
    return {
        "model_class": RecommenderModule,
        "datamodule_class": MindDataModule,
        "save_config_kwargs": {"overwrite": True},
        # Lightning's own default would be 1,000 epochs.
        "trainer_defaults": {
            "use_distributed_sampler": False,
            "max_epochs": 5,
            "gradient_clip_val": 1.0,
        },
        "seed_everything_default": 42,
        "parser_kwargs": parser | {"fit": parser},
        "auto_configure_optimizers": False,
        "run": run,
    }


def _run_config(given: list[str], written: list[Written]) -> Path | None:
    """Return the configuration of the run that goes on, unless another is given."""
    values = {option.key: option.value for option in written}
    if values.get("ckpt_path") not in ("last", "best", "auto") or "output" not in values:
        return None
    path = Path(values["output"]) / "config.yaml"
    options = {arg.partition("=")[0] for arg in given}
    # Written again, an option that appends, --trainer.callbacks+=, would append a second time.
    again = {"--config", "-c"} & options or any(option.endswith("+") for option in options)
    return None if again or not path.is_file() else path


def _name_members(config: Any) -> None:
    """Put strings in the place of enum members that are strings, which no YAML can hold."""
    if isinstance(config, list):
        for item in config:
            _name_members(item)
    elif isinstance(config, jsonargparse.Namespace):
        for key, value in vars(config).items():
            if isinstance(value, Enum) and isinstance(value, str):
                setattr(config, key, str(value.value))
            else:
                _name_members(value)


def _print_speed(speed: str | None, parts: Any) -> None:
    if parts is not None:
        Console().print(parts)
    if speed is not None:
        print(f"{speed}\n")


def _run_folder(config: Any) -> Path:
    """Return the run folder: ``--output``, or one named by config and time."""
    if config.output is not None:
        return Path(config.output)
    paths = [str(path) for path in config.get("config") or []]
    name = Path(paths[0]).stem if paths else "fit"
    # Processes that the first one starts find its choice here.
    stamp = os.environ.setdefault("NEWSREC_RUN_TIME", f"{datetime.now():%Y%m%d-%H%M%S}")
    return Path("runs") / f"{name}-{stamp}"
