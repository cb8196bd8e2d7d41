"""What happens around every request: token, host, size of the body, errors, counts."""

import hmac
import json
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import anyio

from newsrec.serving.http_metrics import OTHER, Metrics
from newsrec.serving.http_settings import Settings

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger(__name__)

OPEN = ("/", "/health", "/ready", "/openapi.json")
"""Paths that need no token; without one, ``/ready`` has no counts."""
TRUSTED = "newsrec.trusted"
"""In a request's scope: whether it may see everything, since it has a token or none is needed."""
PAGE = "/page/"
"""Beginning of the paths of the page's files, which need no token."""
BODY_SECONDS = 30
"""Most seconds that a body may take to arrive."""
LINGER_SECONDS, LINGER_BYTES = 2, 2**26
"""How long, and how much, is still read of a body that is too large. A connection that is closed
while the client writes may lose the answer."""
HEADERS = {b"cache-control": b"no-store", b"x-content-type-options": b"nosniff"}


class Refused(Exception):
    """A request that is not answered otherwise: status, why, and further headers."""

    def __init__(self, status: int, why: str, **headers: str) -> None:
        super().__init__(why)
        self.status, self.why = status, why
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class Guard:
    """Checks requests before the routes see them, counts them, and answers errors as JSON.

    Args:
        app: The routes.
        settings: Who may ask, and for how much.
        metrics: Where requests are counted.
        version: Returns the version of the export.
    """

    def __init__(
        self,
        app: "ASGIApp",
        settings: Settings,
        metrics: Metrics,
        version: Callable[[], str | None],
    ) -> None:
        self.app, self.settings, self.metrics, self.version = app, settings, metrics, version
        self._tokens = [f"bearer {token}".encode() for token in settings.tokens]

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0
        # A copy: the server leaves out the body of an answer to HEAD by its own scope.
        scope = {**scope, "method": "GET" if scope["method"] == "HEAD" else scope["method"]}

        async def answer(message: "Message") -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                given = {name for name, _ in message["headers"]}
                more = [item for item in HEADERS.items() if item[0] not in given]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        try:
            self._check(scope)
            await self.app(scope, await self._body(scope, receive), answer)
        except Refused as refused:
            await self._refuse(refused, receive, answer)
        except Exception:
            log.exception("%s %s failed", scope["method"], scope["path"])
            if status:
                raise  # half an answer was sent: the server closes the connection
            why = "The service failed; its log says where."
            await self._refuse(Refused(500, why), receive, answer)
        finally:
            path = getattr(scope.get("route"), "path_format", None)
            route = (scope["method"], path) if path else OTHER
            self.metrics.add(route, status or 500, time.perf_counter() - started)

    def _check(self, scope: "Scope") -> None:
        headers = dict(scope["headers"])
        hosts = self.settings.hosts
        if hosts is not None:
            host = headers.get(b"host", b"").decode("latin-1").lower()
            name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
            if name.strip("[]") not in hosts:
                why = "Host is not a name of this service; --allowed_hosts NAME adds one."
                raise Refused(403, why)
        path = scope["path"]
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        given = scheme.lower() + b" " + token.strip()
        known = any(hmac.compare_digest(given, known) for known in self._tokens)
        scope[TRUSTED] = known or not self._tokens
        if not (scope[TRUSTED] or path in OPEN or path.startswith(PAGE)):
            why = "Authorization should be `Bearer TOKEN`, with a token of the service."
            raise Refused(401, why, WWW_Authenticate="Bearer")
        if scope["method"] == "POST":
            kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
            if kind != b"application/json":  # a form of another site can send no JSON
                why = "Content-Type should be application/json; `curl --json` sends it."
                raise Refused(415, why)

    async def _body(self, scope: "Scope", receive: "Receive") -> "Receive":
        """Read a body, unless it is too large; return what gives it to the routes."""
        headers, most = dict(scope["headers"]), self.settings.limits.body
        if b"content-length" not in headers and b"transfer-encoding" not in headers:
            return receive
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length[:20]) > most:
            raise _too_large(most)
        parts, size, more = [], 0, True
        try:
            with anyio.fail_after(BODY_SECONDS):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Refused(400, "The body was cut off.")
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > most:
                        raise _too_large(most)
                    more = message.get("more_body", False)
        except TimeoutError:
            why = f"The body did not arrive within {BODY_SECONDS} seconds."
            raise Refused(408, why, Connection="close") from None
        whole: list[Message] = [{"type": "http.request", "body": b"".join(parts)}]

        async def body() -> "Message":
            return whole.pop() if whole else await receive()

        return body

    async def _refuse(self, refused: Refused, receive: "Receive", send: "Send") -> None:
        body = error_body(refused.why, self.version())
        headers = {"content-type": "application/json", "content-length": str(len(body))}
        raw = [(n.lower().encode(), v.encode()) for n, v in (headers | refused.headers).items()]
        await send({"type": "http.response.start", "status": refused.status, "headers": raw})
        await send({"type": "http.response.body", "body": body, "more_body": True})
        if refused.status == 413:
            size, more = 0, True
            with anyio.move_on_after(LINGER_SECONDS):
                while more and size < LINGER_BYTES:
                    message: dict[str, Any] = dict(await receive())
                    size += len(message.get("body", b""))
                    more = message.get("more_body", False)
        await send({"type": "http.response.body", "body": b""})


def _too_large(most: int) -> Refused:
    why = f"The body has over {most:,} bytes; --max_body sets this limit."
    return Refused(413, why, Connection="close")


def error_body(why: str, version: str | None) -> bytes:
    """Return an error as JSON."""
    return json.dumps({"error": why, "version": version}).encode()
