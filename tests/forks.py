"""Processes that start at once: forks of the test's own where the system has them."""

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

FORKS = multiprocessing.get_context("fork" if hasattr(os, "fork") else "spawn")


def started(work: Callable[..., None], *args: Any) -> tuple[BaseProcess, Connection]:
    """Start ``work(says, *args)``; return its process and where ``says.send`` is heard."""
    hears, says = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=work, args=(says, *args))
    process.start()
    says.close()
    return process, hears
