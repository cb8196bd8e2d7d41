"""Runs the service: one process, or several that share a socket and the store."""

import errno
import logging
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from newsrec.console import say, show_our_messages
from newsrec.errors import UserError
from newsrec.serving.clicks import ClickStore
from newsrec.serving.examples import Examples
from newsrec.serving.http import create_app
from newsrec.serving.http_answers import Service
from newsrec.serving.http_settings import Settings
from newsrec.serving.live import LiveRecommender
from newsrec.serving.store import NewsStore, store_folder

log = logging.getLogger(__name__)

DRAIN_SECONDS = 30
"""How long requests that have begun may take after the signal to stop."""
KEEP_ALIVE_SECONDS = 75
"""How long an idle connection stays open: longer than a proxy in front of the service keeps it."""
RESTART_SECONDS = 1.0
"""Pause before a worker that ended is replaced."""
REFUSED = 2
"""Exit code of a worker that could not open the store."""
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Server(uvicorn.Server):
    """Ends after the requests that have begun at the first signal, and at once at the second."""

    alone = True
    """Whether no other process supervises this one and would end it."""

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Stop; called by a signal."""
        if self.should_exit and self.alone:
            os._exit(128 + sig)
        self.should_exit = True


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        UserError: If the port is taken, may not be used, or there is no such address.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
        family, kind, protocol, _, address = found[0]
        # Without the protocol's number, asyncio leaves Nagle's algorithm on: 40 ms an answer.
        bound = socket.socket(family, kind, protocol)
        if os.name == "posix":  # on Windows it would let two processes take one port
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except (OSError, OverflowError) as error:
        number = getattr(error, "errno", None)
        if number == errno.EADDRINUSE:
            next_step = (
                f"Another program uses this port: choose another, such as --port {port + 1}."
            )
        elif number in (errno.EACCES, errno.EPERM):
            next_step = "Ports below 1024 need a permission: choose a higher one with --port."
        else:
            next_step = "Give an address of this machine with --host, and a --port up to 65535."
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{host}, port {port}: {reason}. {next_step}") from error
    bound.listen(2048)
    bound.set_inheritable(True)
    return bound


def run(settings: Settings, announce: Callable[[str], None]) -> None:
    """Serve until a signal asks to stop.

    Args:
        settings: What to serve.
        announce: Called with the address once it listens.

    Raises:
        UserError: If the export or the store cannot be opened, or the socket not bound.
    """
    bound = bind(settings.host, settings.port)
    host, port = bound.getsockname()[:2]
    name = f"[{host}]" if bound.family == socket.AF_INET6 else host
    if settings.workers == 1:
        for kind in (NewsStore, ClickStore):  # unusable files are reported before "Serving"
            kind(store_folder(settings.export, settings.store)).close()
        announce(f"http://{name}:{port}")
        _serve(settings, bound, None, None)
        return
    # Opened here first: one process fills a new store, and makes the vectors of a new export.
    # The workers follow the store: one that starts late must not bring an older export back.
    engine = open_engine(settings)
    export = None if engine.ready else settings.export
    settings = replace(settings, export=export, store=engine.store)
    threading.Thread(target=_close_when_made, args=(engine,), daemon=True, name="vectors").start()
    announce(f"http://{name}:{port}")
    with tempfile.TemporaryDirectory(prefix="newsrec-serve-") as counts:
        _supervise(settings, bound, Path(counts))


def _close_when_made(engine: LiveRecommender) -> None:
    """Close a recommender once it has made the vectors of its export."""
    time.sleep(RESTART_SECONDS)  # until it has begun
    while engine.stats().encoding is not None:
        time.sleep(RESTART_SECONDS)
    engine.close()


def open_engine(settings: Settings) -> LiveRecommender:
    """Open the export and the store."""
    return LiveRecommender.open(
        settings.export,
        settings.store,
        retention_days=settings.retention_days,
        threads=settings.threads,
        index_above=settings.index_above,
    )


def config_of(app: FastAPI) -> uvicorn.Config:
    """Return how an application is run."""
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )


def _serve(settings: Settings, bound: socket.socket, counts: Path | None, parent: Any) -> None:
    """Serve from this process; ``parent`` is the end of a pipe to the first process, or None."""
    service = Service(settings)
    server = Server(config_of(create_app(service, counts)))
    server.alone = parent is None
    failures: list[BaseException] = []

    def open_all() -> None:
        try:
            service.engine = open_engine(settings)
            if settings.data_root is not None:
                service.examples = Examples.of(settings.data_root)
        except BaseException as error:
            failures.append(error)
            server.should_exit = True

    def follow_parent() -> None:
        connection.wait([parent])  # readable when the first process ends or closes its end
        server.should_exit = True

    if parent is None:
        threading.Thread(target=open_all, daemon=True, name="open").start()
    else:  # another worker may be ready: until this one is, it takes no connections
        open_all()
        threading.Thread(target=follow_parent, daemon=True, name="parent").start()
    server.run(sockets=[bound])
    if service.engine is not None:
        service.engine.close()
    if failures:
        raise failures[0]


def _work(settings: Settings, bound: socket.socket, counts: Path, parent: Any) -> None:
    """Run a worker."""
    show_our_messages()
    try:
        _serve(settings, bound, counts, parent)
    except UserError as error:
        say(f"newsrec: {error}", error=True)
        sys.exit(REFUSED)


def _supervise(settings: Settings, bound: socket.socket, counts: Path) -> None:
    """Keep the workers running until a signal; a second signal ends them at once."""
    spawn = multiprocessing.get_context("spawn")
    read, write = spawn.Pipe(duplex=False)
    workers: list[BaseProcess] = []
    asked = threading.Event()

    def start() -> BaseProcess:
        worker = spawn.Process(target=_work, args=(settings, bound, counts, read))
        worker.start()
        return worker

    def stop(sig: int, frame: Any) -> None:
        if asked.is_set():
            for worker in workers:
                worker.kill()
            os._exit(128 + sig)
        asked.set()

    for sig in SIGNALS:
        signal.signal(sig, stop)
    workers += [start() for _ in range(settings.workers)]
    refused = False
    while not (asked.is_set() or refused):
        connection.wait([worker.sentinel for worker in workers], timeout=0.5)
        for place, worker in enumerate(workers):
            if worker.exitcode is None or asked.is_set():
                continue
            if worker.exitcode == REFUSED:
                refused = True
                break
            log.warning("A worker ended with code %s; another is started.", worker.exitcode)
            asked.wait(RESTART_SECONDS)
            workers[place] = start()
    bound.close()
    write.close()  # the workers finish what has begun, and end
    for worker in workers:
        worker.join()
    if refused:
        raise UserError("A worker could not open the store; see the message above.")
