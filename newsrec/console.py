"""Terminal output: print newsrec's messages and hide other libraries' remarks."""

import contextlib
import io
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from newsrec.addresses import without_keys

if TYPE_CHECKING:
    from rich.console import Console

ASIDES = (
    r".*does not have many workers.*",  # 0 workers is the fastest choice here
    r".*LightningCLI's args parameter.*",
    r".*isinstance\(treespec, LeafSpec\)` is deprecated.*",
    r".*in eval mode at the start of training.*",  # intended for a frozen PLM
    r".*smaller than the logging interval.*",
    r".*Checkpoint directory .* exists and is not empty.*",
    r".*AMP with fp16 is not supported on CPU.*",  # we refuse it
    r".*could not find the monitored key.*",  # a run that ends before its first validation
    r".*WeightAveraging callback with a model that overrides.*",  # nothing is sharded here
    r".*MLFlow only allows '_'.*",  # it drops the @ of ndcg@5
    r".*Total length of `list` across ranks is zero.*",  # data.val none
)


_BREAKS = re.compile("[\t\n\v\f\r\x1c-\x1e\x85\u2028\u2029]+")
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_UNSEEN_IN_LINES = re.compile("(?![\t\n])" + _UNSEEN.pattern)
_HALF = re.compile("[\ud800-\udfff]")


def printable(text: str, lines: bool = False) -> str:
    """Remove characters that would control the terminal or change the direction of a line.

    Titles, ids and file names come from untrusted data. This removes the control characters C0 and
    C1 (among them ESC, which starts terminal commands) and the overrides and isolates of Unicode's
    bidirectional algorithm. A lone surrogate becomes U+FFFD, because no stream can encode it. With
    ``lines``, tabs and line ends stay; otherwise they become spaces, as in a title.
    """
    text = _HALF.sub("\ufffd", text)
    if lines:
        return _UNSEEN_IN_LINES.sub("", text)
    return _UNSEEN.sub("", _BREAKS.sub(" ", text))


def clipped(text: str, most: int = 80) -> str:
    """Return a text that ends in dots if it has more than ``most`` letters."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def counted(number: int, thing: str) -> str:
    """Return a number with what it counts, such as ``1 news item`` or ``2,000 news items``."""
    return f"{number:,} {thing if number == 1 else thing + 's'}"


def say(*parts: object, sep: str = " ", error: bool = False) -> None:
    """Print a message that may quote data, to stderr if ``error``; line ends in it stay.

    Keys in addresses are left out.
    """
    text = without_keys(sep.join(map(str, parts)))
    print(printable(text, lines=True), file=sys.stderr if error else None)


def terminal(**options: Any) -> "Console":
    """Return a rich console for tables that may quote data; only rich itself writes escapes."""
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

    class Terminal(Console):
        def render(
            self, renderable: RenderableType, options: ConsoleOptions | None = None
        ) -> Iterator[Segment]:
            for segment in super().render(renderable, options):
                text = segment.text if segment.control else printable(segment.text, lines=True)
                yield segment._replace(text=text)

    return Terminal(**options)


class _Printable(logging.Formatter):
    """Formats log messages and their tracebacks by ``printable``, without keys in addresses."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(without_keys(super().format(record)), lines=True)


def replace_closed_streams() -> None:
    """Let standard streams that were closed, as by ``2>&-``, be the null device.

    They are None otherwise, and the next files opened would get their numbers, to which libraries
    print.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            handle = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(handle, True)
            setattr(sys, name, open(handle, mode, encoding="utf-8"))  # noqa: SIM115


def show_our_messages() -> None:
    """Print log messages of ``newsrec`` and hide remarks of libraries.

    All processes but the first print only warnings and errors.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a locale without UTF-8 cannot show every title
            stream.reconfigure(errors="backslashreplace")
    logger = logging.getLogger("newsrec")
    handler = logging.StreamHandler()
    handler.setFormatter(_Printable("%(message)s"))
    logger.handlers = [handler]  # a new one each time, because stderr may have changed
    logger.setLevel(logging.INFO if is_first_process() else logging.WARNING)
    for message in ASIDES:
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_news)
    # ModelCheckpoint uses the default of weights_only, and Lightning remarks on it each time.
    logging.getLogger("lightning.pytorch.trainer.connectors.checkpoint_connector").addFilter(
        lambda record: not record.getMessage().startswith("`weights_only` was not set")
    )
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)


def is_first_process() -> bool:
    """Return whether this is the only process of a run, or the first over all machines.

    Lightning, torchrun and SLURM number processes in environment variables of their own.
    """
    names = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
    return all(os.environ.get(name, "0") == "0" for name in names)


@contextlib.contextmanager
def progress(
    doing: str, total: int, slow: int, rate: Callable[[float], str]
) -> Iterator[Callable[[int], None]]:
    """Show a progress bar with rate and remaining time, if stderr is a terminal.

    Work of less than ``slow`` has no bar. ``rate`` formats the amount of work done per second.
    Yields a function to call with the amount of work just done.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(rate(task.speed or 0))

    columns = (doing, BarColumn(), "{task.percentage:3.0f} %", Rate(), TimeRemainingColumn())
    shown = sys.stderr.isatty() and total >= slow
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as bar:
        task = bar.add_task("", total=total)
        yield lambda done: bar.advance(task, done)


def _is_news(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    asides = (
        "GPU available: False",
        "TPU available",
        "Loading `train_dataloader`",
        "`Trainer.fit` stopped: `max_epochs=",  # the last epoch's line shows it
    )
    return not ("Tip:" in text or text.startswith(asides))
