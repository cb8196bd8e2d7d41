"""Files that are small on the disk and large once unpacked or parsed."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from hard import TIMES

MEGABYTES = 64 * TIMES
"""Unpacked size of each file."""
LIMIT = 600
"""Megabytes that opening such a file may take, whatever its size."""
REPOSITORY = Path(__file__).parent.parent.parent

NEWS = b"N1\tnews\tworld\tA title\t\t\t\t\n"
BOMBS = {
    "newlines": ("news.tsv", b"\n"),
    "newlines as behaviors": ("behaviors.tsv", b"\n"),
    "tabs": ("news.tsv", b"\t\t\t\t\t\t\t\n"),
    "one news item": ("news.tsv", b"N1\t\t\t\t\t\t\t\n"),
    "bad lines": ("news.tsv", b"N1\t" + b"x" * 60 + b"\n"),
    "NUL bytes": ("news.tsv", bytes(1 << 20)),
    "one line": ("behaviors.tsv", b"x" * (1 << 20)),
    "long lines": ("news.tsv", b"x" * (5 << 20) + b"\n"),
    "a history of spaces": (
        "behaviors.tsv",
        b"1\tU1\t11/11/2019 9:05:58 AM\t" + b" " * (3 << 20) + b"\tN1-0\n",
    ),
}

OPEN = """
import sys
from newsrec.data.dataset import open_mind
from newsrec.errors import UserError

def peak():
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(lines["VmHWM"].split()[0]) // 1024

root, how = sys.argv[1:]
open_mind(root + "/small")
before = peak()
try:
    data = open_mind(root, how)
    print("opened", len(data.news), len(data.splits["train"].user))
except UserError as error:
    print("refused", error)
print(peak() - before)
"""


def write_zip(path, texts):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, pieces in texts.items():
            with archive.open(name, "w") as file:
                for piece in pieces:
                    file.write(piece)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's peak memory")
@pytest.mark.parametrize(
    ("bomb", "how"), [("newlines", "error"), *((bomb, "drop") for bomb in BOMBS)]
)
def test_memory_grows_with_a_block_and_not_with_the_file(tmp_path, bomb, how):
    behaviors = b"1\tU1\t11/11/2019 9:05:58 AM\tN1\tN1-0 N2-1\n"
    texts = {"news.tsv": [NEWS], "behaviors.tsv": [behaviors]}
    (tmp_path / "small").mkdir()
    write_zip(tmp_path / "small" / "MINDsmall_train.zip", texts)
    name, unit = BOMBS[bomb]
    piece = unit * ((1 << 20) // len(unit) or 1)
    texts[name] = [*texts[name], *[piece] * ((MEGABYTES << 20) // len(piece))]
    write_zip(tmp_path / "MINDsmall_train.zip", texts)
    assert (tmp_path / "MINDsmall_train.zip").stat().st_size < 1 << 20
    done = subprocess.run(
        [sys.executable, "-c", OPEN, str(tmp_path), how],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    outcome, grown = done.stdout.splitlines()[-2:]
    assert int(grown) < LIMIT, outcome
