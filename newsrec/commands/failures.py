"""How a command ends that has failed.

An error of the operating system is worded as a mistake of the user, because the machine has to
change. Anything else is a bug of ours: a few lines say so, and its traceback is kept in a file.
"""

import errno
import os
import platform
import select
import shlex
import sys
import tempfile
import traceback
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TextIO

from newsrec import __version__
from newsrec.console import printable, say
from newsrec.errors import UserError

MISTAKE, BUG, INTERRUPTED, PIPE_CLOSED = 2, 70, 130, 141
"""Exit codes: 70 from sysexits.h, the last two as a shell has them (128 and the signal)."""

SHOW = "NEWSREC_TRACEBACK"
"""Environment variable: with 1, the traceback of a bug is printed, as Python does."""

PACKAGES = ("torch", "lightning", "transformers", "jsonargparse", "pyarrow", "numpy")
"""Packages whose versions are written above a traceback."""

PERMISSION = "Ask for the permission (`ls -l` shows the owner), or name another place."
NEXT_STEPS = {
    errno.EACCES: PERMISSION,
    errno.EPERM: PERMISSION,
    errno.EROFS: "The file system is mounted for reading alone: name a place on another.",
    errno.ENOSPC: "The disk is full: free some space, or name a place on another.",
    errno.EDQUOT: "Your quota is used up: free some space, or name a place on another disk.",
    errno.ENOENT: "Was it moved while the command ran?",
    errno.EISDIR: "A file is needed there, not a folder.",
    errno.ENOTDIR: "A folder is needed on the way there, not a file.",
    errno.ENAMETOOLONG: "Name a shorter path.",
    errno.EMFILE: "Too many files are open: raise `ulimit -n`, or lower data.num_workers.",
    errno.EIO: "The disk or the network that it is on failed: look into the system's log.",
    errno.ESTALE: "The network file system lost it: run the command again.",
    errno.ELOOP: "Links lead in a circle there: mend them.",
}
"""What a user can do about an error of the operating system."""

run_folder: Path | None = None
"""The running command's folder for its results, once it has one."""


def flush() -> None:
    """Write out what was printed.

    Raises:
        UserError: If it cannot be written, naming the reason.
        BrokenPipeError: If nobody reads it.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(_unprinted(error)) from error


def end(error: BaseException, argv: Sequence[str]) -> int:
    """Say why a command failed.

    Args:
        error: What it raised, other than ``SystemExit``.
        argv: Command and options.

    Returns:
        The process's exit code.
    """
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, BrokenPipeError) and _pipe_is_closed():
        _discard(sys.stdout)
        _discard(sys.stderr)
        return PIPE_CLOSED
    if isinstance(error, UserError):
        message: str | None = str(error)
    elif isinstance(error, OSError) and not error.filename and _stdout_is_full():
        message = _unprinted(error)
    else:
        message = _word_os_error(error)
    show = os.environ.get(SHOW) not in (None, "", "0")
    if message is not None:
        with suppress(OSError):
            if _hides_another(error):
                if show:
                    _print_traceback(error)
                elif run_folder is not None:  # else the same command with SHOW brings it again
                    _keep(error, argv, [run_folder])
            say(f"newsrec: error: {message}", error=True)
        return MISTAKE
    if show:
        _print_traceback(error)
    else:
        _report(error, argv)
    return BUG


def _hides_another(error: BaseException) -> bool:
    """Tell if a sentence stands for an error that may be ours, such as one of a library."""
    cause = error.__cause__ if isinstance(error, UserError) else error
    while isinstance(cause, UserError):
        cause = cause.__cause__
    return cause is not None


def _print_traceback(error: BaseException) -> None:
    say("".join(traceback.format_exception(error)).rstrip("\n"), error=True)


def _word_os_error(error: BaseException) -> str | None:
    """Return what the operating system refuses and what to do; None for other errors."""
    if isinstance(error, MemoryError):
        what = f" ({error})" if str(error) else ""
        return (
            f"There is too little memory{what}. Close other programs, or lower batch sizes "
            "(data.eval_batch_size, data.batch_size)."
        )
    if not isinstance(error, OSError) or error.errno not in NEXT_STEPS:
        return None
    if error.filename:
        names = [name for name in (error.filename, error.filename2) if name]
        at = " to ".join(os.fsdecode(n) if isinstance(n, str | bytes) else str(n) for n in names)
    elif error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):  # a write knows no file name
        at = "A file could not be written"
    else:
        return None
    return f"{at}: {os.strerror(error.errno)}. {NEXT_STEPS[error.errno]}"


def _pipe_is_closed() -> bool:
    """Return whether nobody reads the pipe that we write to any more, as after ``| head``."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            poll = select.poll()
            poll.register(stream.fileno(), select.POLLERR)
            if any(event & select.POLLERR for _, event in poll.poll(0)):
                return True
    return False


def _stdout_is_full() -> bool:
    """Return whether nothing more can be printed; tries it with a line end."""
    try:
        os.write(sys.stdout.fileno(), b"\n")
    except BrokenPipeError:
        return False
    except OSError as error:
        return error.errno is not None  # a stream that is no file raises it without a number
    except (ValueError, AttributeError):
        return False
    return False


def _discard(stream: TextIO) -> None:
    """Discard what a stream still holds: Python would complain about it at its end."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _unprinted(error: BaseException) -> str:
    """Say why nothing more can be printed, and discard what is left."""
    _discard(sys.stdout)
    reason = getattr(error, "strerror", None) or error
    return f"What the command prints could not be written ({reason}). Send it elsewhere."


def _report(error: BaseException, argv: Sequence[str]) -> None:
    """Say that this is a bug of ours, and where its traceback is."""
    kept = _keep(error, argv, [run_folder, None] if run_folder else [None])
    what = printable(f"{type(error).__name__}: {error}")
    shown = what if len(what) <= 300 else f"{what[:297]}..."
    with suppress(OSError):
        say(f"newsrec: a bug of newsrec, not a mistake of yours: {shown}", error=True)
        if kept is None:
            _print_traceback(error)
            return
        say(
            f"  Its traceback, with versions and the command line, is in {kept}.\n"
            "  Please open an issue in newsrec's repository with that file (look through it first: "
            "it names paths), and say what you did before.\n"
            f"  {SHOW}=1 prints the traceback instead.",
            error=True,
        )


def _keep(error: BaseException, argv: Sequence[str], folders: Sequence[Path | None]) -> Path | None:
    """Write the traceback into the first folder that can be written to; None is a temporary one."""
    rank = os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or "0"
    name = "traceback.txt" if rank == "0" else f"traceback-{rank}.txt"
    text = f"{_circumstances(argv)}\n{''.join(traceback.format_exception(error))}"
    for folder in folders:
        with suppress(OSError):
            if folder is None:
                folder = Path(tempfile.mkdtemp(prefix="newsrec-"))
            if folder.is_dir():
                path = folder / name
                path.write_text(text, encoding="utf-8", errors="replace")
                return path
    return None


def _circumstances(argv: Sequence[str]) -> str:
    """Return what a developer asks first: versions, system and command line."""
    versions = [f"newsrec {__version__}", f"Python {platform.python_version()}"]
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            versions.append(f"{package} {version(package)}")
    command = f"newsrec {shlex.join(map(str, argv))}"
    return "\n".join([", ".join(versions), platform.platform(), command, ""])
