"""Which export answers from a store, and the change to another one."""

import logging
import threading
from collections.abc import Callable

from newsrec.errors import StoreError, UserError
from newsrec.serving.engine import AT_ONCE, Engine, version_of
from newsrec.serving.folder import ExportFolder
from newsrec.serving.manifest import NEWS_ENCODER
from newsrec.serving.news_rows import Export
from newsrec.serving.store import NewsStore

log = logging.getLogger(__name__)

RETRY_S = 5.0
"""Pause after the store could not be written in the background."""


class Engines:
    """The engine that answers, and in the background the one that will; threads may share it.

    Args:
        store: The news.
        folder: The export; None is the one that answers in the store.
        threads: Threads of the encoders; None uses all cores.
        index_above: As for ``Engine``.

    Raises:
        UserError: If the export cannot be used.
    """

    def __init__(
        self,
        store: NewsStore,
        folder: ExportFolder | None,
        threads: int | None,
        index_above: int | None = None,
    ) -> None:
        self.store, self._settings = store, (threads, index_above)
        self.starting = False
        """Whether the export that answers lacks most vectors."""
        self.building: Engine | None = None
        """The engine whose vectors are being made."""
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._thread: threading.Thread | None = None
        self._refused: set[int] = set()
        self._checked: int | None = None
        before = store.current()
        if folder is not None:
            engine = self._engine(folder)
        elif before is not None:
            engine = self._engine_of(before)
        else:
            raise StoreError(f"{store.folder} has never served an export; name one.")
        engine.fill()
        lacking = self._lacking(engine)
        self.engine = (lacking > AT_ONCE and self._old(before, engine)) or engine
        """The engine that answers."""
        self.engine.refresh()
        if lacking <= AT_ONCE:
            store.announce(engine.export)
        else:
            self.starting = engine is self.engine
            self._begin(lambda: engine)

    def _lacking(self, engine: Engine) -> int:
        """Take over the vectors that an export has; return how many it has to make.

        Raises:
            UserError: If it cannot make any.
        """
        engine.adopt()
        news, lacking = self.store.counts(engine.export)
        if lacking and not engine.can_encode:
            raise UserError(
                f"{engine.folder.path} was exported without {NEWS_ENCODER}, and has no vectors of "
                f"{lacking:,} of the {news:,} news items in {self.store.folder}. Export the "
                "checkpoint again, with the news encoder, or choose another store."
            )
        return lacking

    def _old(self, before: Export | None, engine: Engine) -> Engine | None:
        """Return the engine that answered last, if it can answer until another one can."""
        if before is None or before.number == engine.export.number:
            return None
        try:
            return self._engine_of(before)
        except UserError as error:
            log.warning("The export that answered last cannot answer any more: %s", error)
            return None

    def _engine(self, folder: ExportFolder) -> Engine:
        return Engine(self.store, folder, *self._settings)

    def _engine_of(self, export: Export) -> Engine:
        """Return the engine of an export that the store knows.

        Raises:
            UserError: If its folder is gone, or has another export now.
        """
        folder = ExportFolder(export.path)
        if version_of(folder) != export.version:
            raise StoreError(
                f"{self.store.folder} answers with the export {export.version}, and {export.path} "
                "is not the export of this version any more. Name an export."
            )
        return self._engine(folder)

    def refresh(self) -> Engine:
        """Take in what was written, and return the engine that answers."""
        engine = self.engine
        version = engine.refresh()
        if version != self._checked and self.building is None:
            self._checked = version
            current = self.store.current()
            if len(engine.pending) > AT_ONCE and engine.can_encode:
                self._begin(lambda: engine, announce=False)
            elif current and current.number not in (engine.export.number, *self._refused):
                self._begin(lambda: self._follow(current), announce=False)
        return engine

    def _follow(self, export: Export) -> Engine:
        """Return the engine of an export to which another process has changed."""
        try:
            return self._engine_of(export)
        except UserError:
            self._refused.add(export.number)
            raise

    def switch(self, folder: ExportFolder) -> None:
        """Make another export's vectors in the background, then let it answer."""
        if version_of(folder) == self.engine.version:
            return
        engine = self._engine(folder)
        self._lacking(engine)
        if not self._begin(lambda: engine):
            raise UserError("Another export is being prepared. Try again when it answers.")

    def _begin(self, make: Callable[[], Engine], announce: bool = True) -> bool:
        """Prepare an engine in the background; False if one is being prepared.

        Args:
            make: Returns the engine.
            announce: Whether other processes change to its export, too.
        """
        with self._lock:
            if self._stop.is_set() or (self._thread is not None and self._thread.is_alive()):
                return False
            self._thread = threading.Thread(
                target=self._prepare, args=(make, announce), daemon=True
            )
            self._thread.start()
        return True

    def _prepare(self, make: Callable[[], Engine], announce: bool) -> None:
        try:
            self.building = engine = make()
            while not self._stop.is_set():
                try:
                    engine.complete(self._stop)
                    engine.refresh()
                    if self._stop.is_set():
                        break
                    if announce:
                        self.store.announce(engine.export)
                    self.engine, self.starting = engine, False
                    break
                except StoreError as error:
                    log.warning("Vectors could not be stored; newsrec tries again: %s", error)
                    self._stop.wait(RETRY_S)
        except UserError as error:
            log.error("The export cannot be prepared: %s", error)
        except Exception:
            log.exception("The export cannot be prepared.")
        finally:
            self.building = None

    def wait(self, seconds: float | None) -> bool:
        """Wait until no engine is being prepared; False if one still is after ``seconds``."""
        if self._thread is not None:
            self._thread.join(seconds)
        return self._thread is None or not self._thread.is_alive()

    def close(self) -> None:
        """End the work in the background after its block."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
