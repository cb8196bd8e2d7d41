"""Messages and exit codes of failed commands.

A ``UserError`` is printed as a message. So is an error of the operating system, since the user can
fix its cause. Any other error is a bug of newsrec: a few lines say so, and its traceback is saved.
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
from newsrec.addresses import without_keys
from newsrec.console import clipped, printable, say
from newsrec.errors import UserError

MISTAKE, BUG, INTERRUPTED, PIPE_CLOSED = 2, 70, 130, 141
"""Exit codes: 70 is from sysexits.h, the last two are a shell's (128 plus the signal)."""

SHOW = "NEWSREC_TRACEBACK"
"""Environment variable: if 1, tracebacks are printed, as Python does."""

PACKAGES = ("torch", "lightning", "transformers", "jsonargparse", "pyarrow", "numpy")
"""Packages whose versions are saved with a traceback."""

PERMISSION = "Ask for the permission (`ls -l` shows the owner), or name another place."
NEXT_STEPS = {
    errno.EACCES: PERMISSION,
    errno.EPERM: PERMISSION,
    errno.EROFS: "The file system is read-only: name a place on another one.",
    errno.ENOSPC: "The disk is full: free some space, or name a place on another disk.",
    errno.EDQUOT: "Your quota is used up: free some space, or name a place on another disk.",
    errno.ENOENT: "Was it moved while the command ran?",
    errno.EISDIR: "A file is needed there, not a folder.",
    errno.ENOTDIR: "A folder is needed on the way there, not a file.",
    errno.ENAMETOOLONG: "Name a shorter path.",
    errno.EMFILE: "Too many files are open: raise `ulimit -n`, or lower data.num_workers.",
    errno.EIO: "The disk or its network failed: look into the system's log.",
    errno.ESTALE: "The network file system lost it: run the command again.",
    errno.ELOOP: "Links lead in a circle there: correct them.",
}
"""What the user can do about an error of the operating system."""

run_folder: Path | None = None
"""Output folder of the running command, once it has one."""


def flush() -> None:
    """Flush stdout; UserError if it cannot be written, BrokenPipeError if nobody reads it."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(_unprinted(error)) from error


def end(error: BaseException, argv: Sequence[str]) -> int:
    """Print why a command failed, by any exception but SystemExit, and return its exit code."""
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
        message = _os_error_message(error)
    show = os.environ.get(SHOW) not in (None, "", "0")
    if message is not None:
        with suppress(OSError):
            if _hides_another(error):
                if show:
                    _print_traceback(error)
                elif run_folder is not None:  # without one, the user can run it again with SHOW
                    _keep(error, argv, [run_folder])
            say(f"newsrec: error: {message}", error=True)
        return MISTAKE
    if show:
        _print_traceback(error)
    else:
        _report(error, argv)
    return BUG


def _hides_another(error: BaseException) -> bool:
    """Return whether the message replaces another error, which may be a bug of newsrec."""
    cause = error.__cause__ if isinstance(error, UserError) else error
    while isinstance(cause, UserError):
        cause = cause.__cause__
    return cause is not None


def _print_traceback(error: BaseException) -> None:
    say("".join(traceback.format_exception(error)).rstrip("\n"), error=True)


def _os_error_message(error: BaseException) -> str | None:
    """Return a message for an error of the operating system, with what to do; None for others."""
    no_thread = isinstance(error, RuntimeError) and str(error) == "can't start new thread"
    if isinstance(error, MemoryError) or no_thread:
        what = f" ({error})" if str(error) else ""
        return (
            f"There is too little memory{what}. Close other programs, lower batch sizes "
            "(data.eval_batch_size, data.batch_size) or the number of processes (--workers, "
            "--jobs), or raise the limits that `ulimit -a` shows."
        )
    if not isinstance(error, OSError) or error.errno not in NEXT_STEPS:
        return None
    if error.filename:
        names = [name for name in (error.filename, error.filename2) if name]
        at = " to ".join(os.fsdecode(n) if isinstance(n, str | bytes) else str(n) for n in names)
    elif error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):  # a failed write has no file name
        at = "A file could not be written"
    else:
        return None
    return f"{at}: {os.strerror(error.errno)}. {NEXT_STEPS[error.errno]}"


def _pipe_is_closed() -> bool:
    """Return whether nobody reads stdout or stderr any more, as after ``| head``."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            poll = select.poll()
            poll.register(stream.fileno(), select.POLLERR)
            if any(event & select.POLLERR for _, event in poll.poll(0)):
                return True
    return False


def _stdout_is_full() -> bool:
    """Return whether nothing more can be printed; tries by writing a line end."""
    try:
        os.write(sys.stdout.fileno(), b"\n")
    except BrokenPipeError:
        return False
    except OSError as error:
        return error.errno is not None  # a stream without a file has no errno
    except (ValueError, AttributeError):
        return False
    return False


def _discard(stream: TextIO) -> None:
    """Discard the buffer of a stream, so that Python does not complain about it at exit."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _unprinted(error: BaseException) -> str:
    """Return a message why nothing more can be printed, and discard the rest of the output."""
    _discard(sys.stdout)
    reason = getattr(error, "strerror", None) or error
    return f"What the command prints could not be written ({reason}). Send it elsewhere."


def _report(error: BaseException, argv: Sequence[str]) -> None:
    """Print that this is a bug of newsrec, and where its traceback is."""
    kept = _keep(error, argv, [run_folder, None] if run_folder else [None])
    shown = clipped(printable(f"{type(error).__name__}: {error}"), 300)
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
    """Write the traceback to the first writable folder; a folder None is a new temporary one."""
    rank = os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or "0"
    name = "traceback.txt" if rank == "0" else f"traceback-{rank}.txt"
    text = f"{_circumstances(argv)}\n{''.join(traceback.format_exception(error))}"
    for folder in folders:
        with suppress(OSError):
            if folder is None:
                folder = Path(tempfile.mkdtemp(prefix="newsrec-"))
            if folder.is_dir():
                path = folder / name
                path.write_text(without_keys(text), encoding="utf-8", errors="replace")
                return path
    return None


def _circumstances(argv: Sequence[str]) -> str:
    """Return what a developer needs first: versions, system and command line."""
    versions = [f"newsrec {__version__}", f"Python {platform.python_version()}"]
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            versions.append(f"{package} {version(package)}")
    command = f"newsrec {shlex.join(map(str, argv))}"
    return "\n".join([", ".join(versions), platform.platform(), command, ""])
