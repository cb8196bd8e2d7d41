"""Tables on the terminal, in one style for all commands."""

from collections.abc import Iterable, Sequence

from rich.box import HEAVY_HEAD, SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from newsrec.console import printable, say, terminal

Cell = str | Text
"""Plain text, in which rich's markup is not interpreted, or text with a style."""


def table(
    headings: Sequence[str],
    rows: Iterable[Sequence[Cell]],
    title: str = "",
    align: str = "lr",
    framed: bool = False,
) -> Table:
    """Return a table; a short row is filled up with empty cells.

    ``align`` has ``l`` or ``r`` for each column, the last letter for all further ones. A framed
    table has lines around it and between its columns.
    """
    made = Table(
        title=Text(printable(title), style="table.title") if title else None,
        title_justify="left",
        box=HEAVY_HEAD if framed else SIMPLE_HEAD,
        show_edge=framed,
        pad_edge=framed,
        padding=(0, 1) if framed else (0, 1, 0, 0),
    )
    for heading, letter in zip(headings, align.ljust(len(headings), align[-1]), strict=True):
        made.add_column(heading, justify="left" if letter == "l" else "right")
    for row in rows:
        made.add_row(*(Text(printable(cell)) if isinstance(cell, str) else cell for cell in row))
    return made


def bold(*cells: str) -> list[Text]:
    """Return cells in bold type."""
    return [Text(printable(cell), style="bold") for cell in cells]


def print_tables(*tables: Table) -> None:
    """Print tables without a frame, with an empty line before each and after the last."""
    console = terminal()
    for each in tables:
        say("")
        console.print(each)
    say("")
