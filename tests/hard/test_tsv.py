"""News and impressions after accidents: read as a slow loop reads them, or refused by line."""

import random
import shutil

import pytest
import test_compile
from test_compile import BOM, GOOD, NEWS

from hard import TIMES

MUTATIONS = 350 * TIMES
"""Of each of the two files."""
PIECES = [
    *(b"\t", b"\n", b"\r", b"\r\n", b"\0", b" ", b"-", b"N1", b"0", b"1", b"9", b"\xff", BOM),
    *(word.encode() for word in ("é", '"', "/", ":", "-0", "-1", "\u2028", "\x1c", "N404-1")),
]


def mutate(rows, most, rng):
    """Return a valid file after a few accidents."""
    number = rng.randint(1, most)
    data = bytearray("".join("\t".join(rows[i % len(rows)]) + "\n" for i in range(number)).encode())
    for _ in range(rng.randint(1, 4)):
        at = rng.randint(0, len(data))
        kind = rng.choice(["insert", "delete", "replace", "cut", "repeat", "bit"])
        end = at + rng.randint(1, 60 if kind in ("delete", "repeat") else 3)
        if kind == "insert":
            data[at:at] = rng.choice(PIECES)
        elif kind == "delete":
            del data[at:end]
        elif kind == "replace":
            data[at:end] = rng.choice(PIECES)
        elif kind == "cut":
            del data[at:]
        elif kind == "repeat":
            data[at:at] = data[at:end]
        elif at < len(data):
            data[at] ^= 1 << rng.randrange(8)
    return bytes(data)


class Folders:
    """Makes folders that are gone after each mutation."""

    def __init__(self, path):
        self.path = path

    def mktemp(self, name):
        """Return a new folder."""
        shutil.rmtree(self.path / name, ignore_errors=True)
        (self.path / name).mkdir()
        return self.path / name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "most", "test"),
    [
        (GOOD, 12, test_compile.test_a_damaged_file_is_refused_or_read_as_a_loop_reads_it),
        (NEWS, 4, test_compile.test_damaged_news_are_refused_or_read_as_a_loop_reads_them),
    ],
    ids=["behaviors", "news"],
)
def test_no_line_is_lost_in_silence(rows, most, test, tmp_path):
    check, wrong = test.hypothesis.inner_test, {}
    for seed in range(MUTATIONS):
        rng = random.Random(f"tsv {seed}")
        content = mutate(rows, most, rng)
        try:
            check(Folders(tmp_path), content, rng.choice([64, 300, 1 << 20]))
        except BaseException as error:
            wrong[seed] = content, repr(error)[:300]
    assert not wrong
