"""Runs the work of a request in a thread and makes JSON of what it returns."""

import json
import logging
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, TypeVar

import anyio
import anyio.to_thread
from fastapi import Response

from newsrec.console import clipped, printable
from newsrec.cores import usable_cores
from newsrec.errors import StoreError, UserError
from newsrec.serving.examples import Examples
from newsrec.serving.http_limits import Refused
from newsrec.serving.http_settings import Settings
from newsrec.serving.live import Answer, LiveRecommender, Stats

JSON = "application/json"
NOT_READY = "The news vectors are not read yet; /ready says when they are."
ANSWERING, WRITING = 2 * usable_cores() + 2, 4
"""Threads that answer, and threads that write."""

Found = dict[str, Any]
Work = Callable[[LiveRecommender], Found]
T = TypeVar("T")

log = logging.getLogger(__name__)


class Service:
    """What the routes answer with: the recommender, once it is open, and users of a data folder.

    Args:
        settings: Limits, and who may ask.
        engine: The recommender; None until it is open.
    """

    def __init__(self, settings: Settings, engine: LiveRecommender | None = None) -> None:
        self.settings, self.engine, self.examples = settings, engine, Examples()
        self._answering, self._writing = (
            anyio.CapacityLimiter(ANSWERING),
            anyio.CapacityLimiter(WRITING),
        )

    @property
    def version(self) -> str | None:
        """Version of the export that answers; None until it is read."""
        return None if self.engine is None else self.engine.version

    async def answer(self, work: Work, write: bool = False, timed: bool = False) -> Response:
        """Return what ``work`` finds, as JSON with the version.

        Args:
            work: Called in a thread.
            write: Whether it writes.
            timed: Whether the answer says how many milliseconds it took.
        """
        engine = self.engine
        if engine is None:
            raise Refused(503, NOT_READY, Retry_After="1")

        def job() -> bytes:
            started = time.perf_counter()
            try:
                found = work(engine)
            except StoreError as error:
                log.error("%s", error)
                raise Refused(503, printable(clipped(str(error), 500)), Retry_After="5") from error
            except UserError as error:
                raise Refused(422, printable(clipped(str(error), 500))) from error
            if timed:
                found["ms"] = round((time.perf_counter() - started) * 1000, 3)
            return to_json({"version": engine.version} | found)

        limiter = self._writing if write else self._answering
        return Response(await anyio.to_thread.run_sync(job, limiter=limiter), media_type=JSON)

    def reply(
        self, found: Found, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> Response:
        """Return an answer that needs no thread."""
        return Response(to_json({"version": self.version} | found), status, headers, JSON)

    async def stats(self) -> Stats | None:
        """Return the recommender's numbers, if it is open."""
        if self.engine is None:
            return None
        return await anyio.to_thread.run_sync(self.engine.stats, limiter=self._answering)


def to_json(found: Found) -> bytes:
    """Return JSON; times are written in ISO 8601."""
    return json.dumps(found, ensure_ascii=False, allow_nan=False, default=_time).encode()


def _time(value: object) -> str:
    assert isinstance(value, datetime), value
    return value.isoformat()


def found_or_404(found: T | None, what: str, name: str) -> T:
    """Return what was found; 404 if it is None."""
    if found is None:
        raise Refused(404, f"There is no {what} {printable(clipped(name))!r}.")
    return found


def deleted_or_404(done: bool, what: str, name: str) -> Found:
    """Return the answer to a deletion; 404 if there was nothing to delete."""
    found_or_404(done or None, what, name)
    return {"deleted": name}


def news_of(answer: Answer, explained: bool) -> Found:
    """Return news with their scores as they are answered."""
    news = []
    for item in answer.news:
        found = item._asdict()
        del found["explanation"]
        if explained and item.explanation is not None:
            found["explanation"] = item.explanation.plain()
        news.append(found)
    return answer._asdict() | {"news": news}
