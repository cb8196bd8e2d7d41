"""The command ``fit``: LightningCLI with a run folder and a summary at the end."""

import logging
import os
import sys
from argparse import ArgumentError
from collections.abc import Sequence
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any

import jsonargparse
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.cli import (
    ArgsType,
    LightningArgumentParser,
    LightningCLI,
    SaveConfigCallback,
)
from omegaconf.errors import OmegaConfBaseException
from transformers.utils.logging import disable_progress_bar

from newsrec.commands import failures
from newsrec.commands.parser_messages import explain
from newsrec.commands.resume import resume, run_config
from newsrec.commands.written_options import with_shipped_files, written_options
from newsrec.console import counted, is_first_process
from newsrec.data.datamodule import MindDataModule
from newsrec.errors import MissingPackageError, UserError
from newsrec.files import require_writable, write_text
from newsrec.report.closing import close_run
from newsrec.training.checkpoint.read import check_run_folder
from newsrec.training.checkpoint.saving import Stopped
from newsrec.training.estimate.dry_run import dry_run
from newsrec.training.lightning_internals import (
    known_options,
    parser_of_fit,
    trainer_options,
    whole_numbers_first,
)
from newsrec.training.mistakes import check_seed, trainer_mistakes
from newsrec.training.module import RecommenderModule
from newsrec.training.outside_loggers import missing_package
from newsrec.training.processes.launch import refuse_unconnected
from newsrec.training.processes.share_folder import is_resumed, share_run_folder
from newsrec.training.processes.together import fail_together_from_the_start
from newsrec.training.resume import LINKS, Resumed
from newsrec.training.run import DEFAULTS, Run

log = logging.getLogger(__name__)


class FitCLI(LightningCLI):
    """LightningCLI with ``fit`` as its only subcommand; see ``python -m newsrec fit --help``."""

    output: Path
    run: Run
    resumed = Resumed()
    written: set[str]
    """Options that the command line or a file sets, without the file of a resumed run."""
    places: str
    """Where these options are set: names of options, or files with line numbers."""

    def __init__(self, more_callbacks: Sequence[Callback] = (), **options: Any) -> None:
        self.more_callbacks = more_callbacks
        super().__init__(**options)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Offer only ``fit``; ``evaluate`` is a command of its own."""
        return {"fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of a run and link the values that data and model share."""
        add_run_options(parser)
        for target, source in LINKS.items():
            parser.link_arguments(source, target)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse, after refusing options that a link would silently overwrite."""
        given = [str(a) for a in args] if isinstance(args, list) else sys.argv[1:]
        written = written_options(given)
        self.written = {option.key for option in written}
        self.threads_typed = "threads" in self.written
        values = {option.key: option.value for option in written}
        if values.get("ckpt_path") in ("last", "best", "auto") and "output" in values:
            share_run_folder(Path(values["output"]))
        self.places = " ".join(sorted({option.place for option in written}))
        base = run_config(given, written)
        if base is not None:
            log.info("options that are not given are taken from %s", base)
            args = given = [given[0], f"--config={base}", *given[1:]]
            written = written_options(given)
            self.written = {option.key for option in written}
        for key, place, _ in written:
            if key in LINKS:
                raise UserError(f"{place}: {key} follows {LINKS[key]}. Set {LINKS[key]} instead.")
            if key == "data.group_by_user":
                raise UserError(
                    f"{place}: {key} is now data.batches. In place of true, give `--data.batches "
                    "user`, and in place of false `--data.batches random`; in a file, `batches: "
                    "user` or `batches: random`."
                )
        try:
            super().parse_arguments(parser, args)
        except (ArgumentError, OmegaConfBaseException) as error:
            known = known_options(self, parser)
            raise UserError(explain(str(error), written, known)) from error
        check_seed(self.config.get("fit", {}).get("seed_everything"))

    def _dump_config(self) -> None:
        """Write the config as YAML, also if Lightning's classes put enum members in it."""
        try:
            super()._dump_config()
        except ValueError:
            _name_members(self.config)
            super()._dump_config()

    def _parse_ckpt_path(self) -> None:
        """Find the run folder and, if the run is resumed, load its options from there."""
        config = self.subcommand_config
        if not config:
            return
        self.output = _run_folder(config)
        require_writable(self.output)
        if config.ckpt_path == "auto":
            num_nodes = int(config.trainer.num_nodes or 1)
            config.ckpt_path = "last" if is_resumed(self.output, num_nodes) else None
        if config.ckpt_path is not None:
            self.resumed = resume(config, self.output, self.written)
        elif is_first_process():  # the other processes start after it
            check_run_folder(self.output)

    @property
    def subcommand_config(self) -> Any:
        """The options of ``fit``."""
        return self.config.get("fit")

    def instantiate_classes(self) -> None:
        """Build model, data module and Trainer; a missing package is a UserError."""
        try:
            super().instantiate_classes()
        except Exception as error:
            missing = missing_package(error)
            if missing is None or isinstance(error, UserError):
                raise
            raise MissingPackageError(f"trainer: {missing}") from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the run and its Trainer."""
        if self.subcommand is None:
            return super().instantiate_trainer(**kwargs)
        config = self.subcommand_config
        if config.dry_run:
            print(dry_run(self.model, self.datamodule, vars(config.trainer), self.places))
            sys.exit(0)
        self.run = Run(
            self.output,
            self.model,
            self.datamodule,
            save_every=config.save_every,
            patience=config.patience,
            steps_done=self.resumed.steps,
            callbacks=self.more_callbacks,
        )
        wanted = vars(trainer_options(self))
        asked = config.threads if self.threads_typed else None
        options, hardware = self.run.settle(wanted, asked, self.resumed.hardware)
        # For config.yaml: a resumed run computes as it began, on any machine.
        config.threads, config.model.precision = hardware.threads, hardware.precision
        self.trainer_defaults["callbacks"] = options.pop("callbacks")
        with trainer_mistakes():
            trainer = super().instantiate_trainer(**options, **kwargs)
        refuse_unconnected(trainer)
        return trainer

    def fit(self, model: Any, datamodule: Any, **options: Any) -> None:
        """Train, compare the best checkpoint with the baselines and print the next commands."""
        failures.run_folder = self.output
        config = self.subcommand_config.as_dict()
        logged = {n: config[n] for n in ("model", "data", "trainer", "seed_everything")}
        try:
            with self.run.folder(self.trainer):
                self.run.train(self.trainer, logged, **options)
                close_run(self.run, self.trainer, config["baselines"])
        except Stopped as error:
            if not self.trainer.is_global_zero:
                sys.exit(0)  # its starter would take another code for a crash
            print(
                f"\nStopped by {error} after {counted(self.trainer.global_step, 'step')}. "
                "Resume with\n"
                f"  python -m newsrec fit --ckpt_path last --output {self.output}",
                file=sys.stderr,
            )
            sys.exit(128 + error.number)


def fit(argv: list[str], callbacks: Sequence[Callback] = ()) -> None:
    """Train a model; further callbacks are called before those that draw and save."""
    disable_progress_bar()  # for reading weights, which is fast; downloads keep theirs
    with fail_together_from_the_start():
        FitCLI(callbacks, args=["fit", *with_shipped_files(argv)], **cli_options())


class _ParserOnly(FitCLI):
    """Stops when the parser is complete."""

    class Done(Exception):
        """Carries the parser."""

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Raise the parser instead of parsing."""
        raise self.Done(parser_of_fit(self, parser))


def fit_parser() -> jsonargparse.ArgumentParser:
    """Return the parser of the command."""
    try:
        _ParserOnly(args=["fit"], **cli_options())
    except _ParserOnly.Done as done:
        parser: jsonargparse.ArgumentParser = done.args[0]
    return parser


def add_run_options(parser: jsonargparse.ArgumentParser) -> None:
    """Add the options of a run that do not belong to model, data or Trainer."""
    add = parser.add_argument
    use = "run folder; default: runs/, the config's name and the time"
    add("--output", type=str | None, default=None, help=use)
    use = "steps between two writes of last.ckpt within an epoch; null: only at its end"
    add("--save_every", type=int | None, default=1000, help=use)
    use = "stop after this many validations without a better val/auc; null: never"
    add("--patience", type=int | None, default=None, help=use)
    use = "compare with the baselines at the end; runs the PLM over all news if it is tuned"
    add("--baselines", type=bool, default=True, help=use)
    use = (
        "threads of a process; default: OMP_NUM_THREADS, else the cores divided by the processes, "
        "or 1 if more are measured to be no faster. If other programs compute on the machine, set "
        "OMP_WAIT_POLICY=PASSIVE in the environment, so that waiting threads do not spin"
    )
    add("--threads", type=int | None, default=None, help=use)
    use = "print an estimate of the memory, disk and time that the run needs; train nothing"
    add("--dry_run", type=bool, nargs="?", const=True, default=False, help=use)


class RunConfig(SaveConfigCallback):
    """Writes ``config.yaml`` whole or not at all; Lightning empties the file first."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write all options of the run to its folder."""
        text = self.parser.dump(self.config, skip_none=False)
        write_text(Path(trainer.default_root_dir) / self.config_filename, text)


def cli_options(run: bool = True) -> dict[str, Any]:
    """Return the arguments of ``FitCLI``; with ``run=False`` it only builds the objects."""
    whole_numbers_first()
    # Together with parser_mode, this lets interpolations refer to options of other files and follow
    # the command line.
    jsonargparse.set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    parser = {"prog": "newsrec fit", "parser_mode": "omegaconf+", "exit_on_error": False}
    return {
        "model_class": RecommenderModule,
        "datamodule_class": MindDataModule,
        "save_config_callback": RunConfig,
        "save_config_kwargs": {"save_to_log_dir": False},
        "trainer_defaults": dict(DEFAULTS),
        "seed_everything_default": 42,
        "parser_kwargs": parser | {"fit": parser},
        "auto_configure_optimizers": False,
        "run": run,
    }


def _name_members(config: Any) -> None:
    """Replace enum members that are strings by plain strings, because YAML cannot hold them."""
    if isinstance(config, list):
        for item in config:
            _name_members(item)
    elif isinstance(config, jsonargparse.Namespace):
        for key, value in vars(config).items():
            if isinstance(value, Enum) and isinstance(value, str):
                setattr(config, key, str(value.value))
            else:
                _name_members(value)


def _run_folder(config: Any) -> Path:
    """Return the run folder: ``--output``, or one named after the config and the time."""
    if config.output is not None:
        return Path(config.output)
    paths = [str(path) for path in config.get("config") or []]
    name = Path(paths[0]).stem if paths else "fit"
    # The processes that the first one starts read its choice from this variable.
    stamp = os.environ.setdefault("NEWSREC_RUN_TIME", f"{datetime.now():%Y%m%d-%H%M%S}")
    return Path("runs") / f"{name}-{stamp}"
