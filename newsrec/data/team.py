"""Lets several processes divide work, and wait for each other for as long as it takes."""

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from newsrec.errors import UserError

log = logging.getLogger(__name__)

LONGEST_PAUSE = 0.2
"""Seconds between two looks at the store, at most."""
REMARK = 600.0
"""Seconds after which a waiting process says again that it waits."""


class Team:
    """Processes that divide work; this one is number ``rank`` of ``size``.

    They exchange short texts through a store of ``torch.distributed``. Unlike a collective
    operation, a wait in a store has no time-out. It ends if another process says that it failed.
    Processes that end without a word are noticed by ``fail_together``.

    Args:
        store: The team's own part of a store; not needed by a single process.
        rank: Number of this process.
        size: Number of processes.
        described: Who divides the work, for messages.
    """

    def __init__(
        self, store: Any = None, rank: int = 0, size: int = 1, described: str = ""
    ) -> None:
        self.store, self.rank, self.size, self.described = store, rank, size, described
        self._turns = 0

    def tell(self, key: str, said: str = "") -> None:
        """Tell the others something, which they get by ``hear``."""
        self._ask("set", f"told/{key}", said)

    def hear(self, key: str) -> str:
        """Wait until another process has told ``key``, and return what it said."""
        self._wait(lambda: self._ask("check", [f"told/{key}"]))
        said: str = self._ask("get", f"told/{key}").decode()
        return said

    def share(self, value: Any = None) -> Any:
        """Return the first process's value, which JSON can hold, on all processes."""
        if self.size == 1:
            return value
        self._turns += 1
        if self.rank == 0:
            self.tell(f"shared/{self._turns}", json.dumps(value))
            return value
        return json.loads(self.hear(f"shared/{self._turns}"))

    def all_agree(self, yes: bool) -> bool:
        """Return whether ``yes`` is true on all processes."""
        if self.size == 1:
            return yes
        self._turns += 1
        key = f"against/{self._turns}"
        self._ask("add", key, int(not yes))
        self.meet()
        return not self._ask("add", key, 0)

    def meet(self) -> None:
        """Wait until all processes have called this."""
        if self.size == 1:
            return
        mine = self._ask("add", "met", 1)
        complete = -(-mine // self.size) * self.size  # of this meeting and those before it
        self._wait(lambda: self._ask("add", "met", 0) >= complete)

    def check(self) -> None:
        """Raise UserError if another process has failed."""
        if self.size > 1 and self._ask("check", ["failed"]):
            raise UserError(self._ask("get", "failed").decode())

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """Tell the other processes if this one fails; their next ``check`` or wait ends.

        An error that follows from the failure of another process, since that removes its files, is
        replaced by a UserError with the message of the first failure.
        """
        try:
            yield
        except BaseException as error:
            if self.size == 1:
                raise
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            said = first = f"{kind}{error}"
            with suppress(RuntimeError):
                first = self.store.compare_set("failed", "", said).decode()
            if first != said and isinstance(error, OSError) and not isinstance(error, UserError):
                raise UserError(first) from error
            raise

    def _ask(self, what: str, *about: Any) -> Any:
        try:
            return getattr(self.store, what)(*about)
        except RuntimeError as error:
            raise UserError(
                "The first process was killed, perhaps because memory ran out, or its machine "
                f"cannot be reached ({str(error).splitlines()[0]})."
            ) from error

    def _wait(self, is_ready: Callable[[], bool]) -> None:
        pause, start, remarks = 0.001, time.monotonic(), 1
        while not is_ready():
            self.check()
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
            if time.monotonic() - start > remarks * REMARK:
                log.info("waiting for other processes for %d minutes", remarks * REMARK // 60)
                remarks += 1


ALONE = Team()
"""A single process."""


def divide(sizes: Sequence[int], processes: int) -> list[int]:
    """Return which process takes each piece of work ``[pieces]``.

    Each piece goes to the process with the least work so far, the first of several. So up to any
    piece, the work of two processes differs by at most the largest piece.
    """
    loads = [0] * processes
    owners = []
    for size in sizes:
        owner = loads.index(min(loads))
        loads[owner] += size
        owners.append(owner)
    return owners
