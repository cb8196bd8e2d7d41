"""The command ``tune``: search for the options of ``fit`` with the best ``val/auc``."""

import argparse
import difflib
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning import Callback

from newsrec.commands.fit import FitCLI, cli_options, fit
from newsrec.commands.parser_messages import near_options
from newsrec.commands.written_options import with_shipped_files
from newsrec.console import counted, say, show_our_messages
from newsrec.data.samples import WHOLE_IMPRESSIONS
from newsrec.errors import UserError
from newsrec.files import write_text
from newsrec.training.lightning_internals import known_options, parser_of_fit
from newsrec.training.resume import LINKS
from newsrec.tuning.report import draw_tuning, print_tuning, write_trials
from newsrec.tuning.space import Space, read_space
from newsrec.tuning.study import PRUNERS, tune
from newsrec.tuning.trial import Tuning

OWN = ("--trials", "--output", "--space", "--pruner", "--seed", "--keep")
"""Options of this command; all others are options of ``fit``."""
QUIET = ("--baselines=false", "--trainer.enable_progress_bar=false")
"""Options of all trials that switch off what a search does not need."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add = parser.add_argument
    add("--output", required=True, help="folder of the study; if it has one, the study goes on")
    add("--trials", type=int, default=20, help="number of trials in all, with those already run")
    use = (
        "search space: a YAML file with a range or a list of choices for each option; or frozen, "
        "tuned or lora, which come with newsrec. The default depends on model.tune_layers and "
        "model.lora.rank"
    )
    add("--space", help=use)
    use = "rule that ends bad trials early, by val/auc after each validation"
    add("--pruner", choices=PRUNERS, default="median", help=use)
    add("--seed", type=int, default=0, help="seed of the draws; trials train with seed_everything")
    add("--keep", choices=("best", "all"), default="best", help="trials that keep checkpoints")
    use = "options of fit for all trials, such as --config configs/demo.yaml --data.root DIR"
    add("fit_options", nargs="*", default=[], metavar="OPTION OF FIT", help=use)


def own_first(args: Sequence[str]) -> list[str]:
    """Move the options of fit behind the command's own, after ``--``; refuse misspelt own ones."""
    own: list[str] = []
    others: list[str] = []
    rest = iter(args)
    for arg in rest:
        name, equals, _ = arg.partition("=")
        near = difflib.get_close_matches(name, OWN, n=1, cutoff=0.75)
        if arg in ("-h", "--help"):
            own.append(arg)
        elif name in OWN:
            own += [arg] if equals else [arg, *([value] if (value := next(rest, None)) else [])]
        elif name.startswith("--") and near:
            raise UserError(f"{name}: there is no such option. Did you mean {near[0]}?")
        elif arg != "--":
            others.append(arg)
    return [*own, "--", *others]


def run(args: argparse.Namespace) -> None:
    """Check all options with the parser of fit, then search, and report."""
    given = with_shipped_files([str(option) for option in args.fit_options])
    output = Path(args.output)
    base = Options(given)
    base.check()
    space, place = read_space(args.space) if args.space else base.own_space()
    base.check_space(space, place)

    def train(options: dict[str, Any], folder: Path, callbacks: list[Callback]) -> None:
        words = [*given, *map(_word, options, options.values()), *QUIET, f"--output={folder}"]
        try:
            with _output_to(folder.with_suffix(".log")):
                fit(words, callbacks)
        except SystemExit as end:  # a signal stopped the run
            say(f"Stopped. The same command goes on with the study in {output}.", error=True)
            raise SystemExit(end.code) from None

    logging.getLogger("newsrec").info(
        "draws have seed %d; each trial trains with seed_everything %s",
        *(args.seed, base["seed_everything"]),
    )
    tuning = tune(
        train,
        space,
        output,
        trials=args.trials,
        seed=args.seed,
        pruner=args.pruner,
        keep=args.keep,
        first={name: _plain(base[name]) for name in space},
        about=base.plain(),
    )
    _report(tuning, space, base)


def _report(tuning: Tuning, space: Space, base: "Options") -> None:
    output, best, split = tuning.output, tuning.best, base["data.val"]
    head = (
        f"# Trial {best.number}, the best of {len(tuning.trials)} in {output}: val/auc "
        f"{best.auc:.4f} on {split}.\n# python -m newsrec fit --config {output / 'best.yaml'}\n"
    )
    words = [*base.given, *map(_word, best.options, best.options.values())]
    write_text(output / "best.yaml", head + Options(words).dump())
    write_trials(tuning, output / "trials.csv")
    draw_tuning(tuning, space, output / "tuning.png")
    print_tuning(tuning)
    say(
        f"The best of {counted(len(tuning.trials), 'trial')} was chosen by its val/auc on {split}, "
        f"which is therefore too high: judge the model on data that was not used to choose it.\n\n"
        f"Written to {output}: best.yaml, trials.csv, tuning.png; each trial in trials/.\n"
        f"Next:\n  python -m newsrec fit --config {output / 'best.yaml'}"
    )


class _Parsed(Exception):
    """The options have been read."""


class Options(FitCLI):
    """The options of a run as the parser of ``fit`` reads them; nothing is built."""

    def __init__(self, given: Sequence[str]) -> None:
        self.given = list(given)
        with suppress(_Parsed):
            super().__init__(args=["fit", *self.given], **cli_options())

    def _parse_ckpt_path(self) -> None:
        raise _Parsed

    def __getitem__(self, name: str) -> Any:
        return self.subcommand_config.get(name)

    def plain(self) -> dict[str, Any]:
        """Return all options as plain values by dotted name, without linked options."""
        return dict(_flat(yaml.safe_load(self.dump())))

    def dump(self) -> str:
        """Return the options as a file for ``fit --config``."""
        self.subcommand_config.output = None
        parser = parser_of_fit(self, self.parser)
        text: str = parser.dump(self.subcommand_config, skip_link_targets=True, skip_none=False)
        return text

    def check(self) -> None:
        """Refuse what cannot be tuned: no validation, nothing trained, several processes."""
        if self["data.val"] == "none":
            raise UserError(
                "data.val is none, but tune chooses by val/auc. Name a split with labels."
            )
        for name in ("ckpt_path", "dry_run", "trainer.fast_dev_run"):
            if self[name]:
                raise UserError(f"{name} is set, but each trial trains a new model. Leave it out.")
        devices, nodes = self["trainer.devices"], self["trainer.num_nodes"]
        if nodes > 1 or (devices not in (1, "1", "auto") and _number_of(devices) != 1):
            raise UserError(
                f"trainer.devices is {devices} and trainer.num_nodes is {nodes}, but tune trains "
                "in one process. Set both to 1."
            )

    def own_space(self) -> tuple[Space, str]:
        """Return newsrec's search space for these options, and its place for messages."""
        adapted = "lora" if self["model.lora.rank"] else "tuned"
        space, place = read_space(adapted if self["model.tune_layers"] else "frozen")
        if self["model.loss"] in WHOLE_IMPRESSIONS:  # which trains on all candidates
            del space["data.npratio"]
        return space, place

    def check_space(self, space: Space, place: str) -> None:
        """Refuse options that fit does not have or use, and values that it does not take."""
        known = known_options(self, self.parser)
        for name in space:
            if name == "model.plm_lr" and self["model.lora.rank"]:
                raise UserError(
                    f"{place}: {name} has no effect with adapters (model.lora.rank "
                    f"{self['model.lora.rank']}). Search model.lora.learning_rate instead."
                )
            if name in LINKS:
                raise UserError(f"{place}: {name} follows {LINKS[name]}. Search that instead.")
            if name not in known:
                near = near_options(name, known)
                hint = f"Did you mean {' or '.join(near)}?" if near else "`fit --help` lists them."
                raise UserError(f"{place}: fit has no option {name}. {hint}")
            if name.partition(".")[0] not in ("model", "data", "trainer"):
                raise UserError(f"{place}: {name} is no option of model, data or trainer.")
        for i in range(max(len(_values(entry)) for entry in space.values())):
            values = {
                name: _values(entry)[i % len(_values(entry))] for name, entry in space.items()
            }
            try:
                Options([*self.given, *map(_word, values, values.values())])
            except UserError as error:
                raise UserError(f"{place}: {error}") from error


def _values(entry: Any) -> list[Any]:
    """Return the values of an entry to be checked: all choices, or both ends of a range."""
    return entry if isinstance(entry, list) else [entry["low"], entry["high"]]


def _plain(value: Any) -> Any:
    """Return the value of an option; a group of options as a dict."""
    return value.as_dict() if isinstance(value, Namespace) else value


def _number_of(devices: Any) -> int | None:
    return len(devices) if isinstance(devices, list) else None


def _flat(options: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in options.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _word(name: str, value: Any) -> str:
    return f"--{name}={value if isinstance(value, str) else json.dumps(value)}"


@contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """Redirect the output of a trial into a file."""
    lightning = [logging.getLogger(f"lightning.{part}") for part in ("pytorch", "fabric")]
    handlers = [
        h for one in lightning for h in one.handlers if isinstance(h, logging.StreamHandler)
    ]
    try:
        with path.open("w", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
            before = [handler.setStream(file) for handler in handlers]
            show_our_messages()
            try:
                yield
            finally:
                for handler, stream in zip(handlers, before, strict=True):
                    handler.setStream(stream or sys.stderr)
    finally:  # also after a trial that fails, whose file is closed
        show_our_messages()
