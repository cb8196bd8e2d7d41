"""``python -m newsrec`` and torchrun as processes that start at once: forks of one that waits.

That one has imported newsrec and done nothing else, so what a test has changed is not in them.
Environment, folder, streams, signals and exit codes are those of a process that a shell starts.
"""

import importlib.util
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any
from unittest import mock

WARM = multiprocessing.get_context("forkserver" if hasattr(os, "fork") else "spawn")
"""All processes of this kind are forks of one server, so it imports what any of them needs."""
WARM.set_forkserver_preload([
    "pytest",
    "torch.distributed.run",
    "torch._subclasses.fake_tensor",
    "transformers.models.bert.modeling_bert",
    "newsrec.commands.evaluate",
    "newsrec.commands.export",
    "newsrec.commands.fit",
])  # fmt: skip


def newsrec() -> None:
    """Do what ``python -m newsrec`` does."""
    from newsrec.__main__ import main

    main()


class Process:
    """``work()`` in a process of its own, with ``argv`` behind the program in ``sys.argv``.

    With options of torchrun, that starts ``work`` as often as they say.
    """

    def __init__(
        self,
        argv: Sequence[Any],
        work: Callable[[], None] = newsrec,
        torchrun: Sequence[str] | None = None,
        env: Mapping[str, str] = os.environ,
        cwd: str | Path = ".",
    ) -> None:
        self.files = [tempfile.NamedTemporaryFile("r") for _ in range(2)]  # noqa: PLW1514, SIM115
        streams = [file.name for file in self.files]
        given = (
            work,
            [str(a) for a in argv],
            torchrun,
            dict(env),
            str(Path(cwd).resolve()),
            streams,
        )
        self.process = WARM.Process(target=_begin, args=given)
        self.process.start()
        self.pid = self.process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, minus the signal that ended it, or None before the end."""
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def finish(self, timeout: float = 240) -> CompletedProcess:
        """Wait for the end and return the exit code and what was said."""
        self.process.join(timeout)
        if self.returncode is None:
            self.process.kill()
        said, mistakes = (file.read() for file in self.files)
        assert self.returncode is not None, said + mistakes
        return CompletedProcess([], self.returncode, said, mistakes)


def run(argv: Sequence[Any], *args: Any, **options: Any) -> CompletedProcess:
    """Run a ``Process`` to its end."""
    return Process(argv, *args, **options).finish()


def _begin(
    work: Callable[[], None],
    argv: list[str],
    torchrun: list[str] | None,
    env: dict[str, str],
    cwd: str,
    streams: list[str],
) -> None:
    for number, name in enumerate(streams, 1):
        os.dup2(os.open(name, os.O_WRONLY | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.argv = ["newsrec", *argv]
    # By this Lightning starts further processes.
    sys.modules["__main__"].__spec__ = importlib.util.find_spec("newsrec.__main__")
    if torchrun is None:
        work()
        return
    from torch.distributed import run as launcher

    read = launcher.config_from_args

    def forking(args: Any) -> tuple:
        config = read(args)[0]
        config.start_method = "fork"
        return config, work, []

    with mock.patch.object(launcher, "config_from_args", forking):
        launcher.main([*torchrun, "newsrec"])
