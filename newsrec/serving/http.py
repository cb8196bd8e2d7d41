"""The service: a FastAPI application over a ``LiveRecommender``.

Every answer but ``/metrics``, the pages and ``/openapi.json`` is JSON with the version of the
export. Work that waits or computes runs in threads. Writes have threads of their own, so a batch of
news does not keep others from reading.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from newsrec import __version__
from newsrec.console import clipped, printable
from newsrec.errors import UserError
from newsrec.serving import http_bodies as bodies
from newsrec.serving import http_models as models
from newsrec.serving.http_answers import Service
from newsrec.serving.http_limits import Guard
from newsrec.serving.http_metrics import Gauge, Metrics
from newsrec.serving.http_routes import add_routes
from newsrec.serving.live import Stats

PAGE = Path(__file__).parent / "page"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""What the page may load: its own files."""
MEDIA_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
"""Types of the page's files; ``mimetypes`` may read others from Windows' registry."""
PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": models.Error, "description": "What is wrong with the request"},
    503: {"model": models.Error, "description": "The news vectors are not read yet"},
}


def create_app(service: Service, counts: Path | None = None) -> FastAPI:
    """Return the application.

    Args:
        service: What answers; its recommender may be opened later.
        counts: Folder for the counts of several workers.
    """
    app = FastAPI(
        title="newsrec",
        version=__version__,
        docs_url=None,  # FastAPI's own pages load scripts from another site
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
        responses=ERRORS,
    )
    add_routes(app, service)
    _add_errors(app, service)
    metrics = Metrics(_names(app), counts)

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def read_metrics() -> Response:
        """Return counts, latencies and sizes for Prometheus."""
        return Response(metrics.text(gauges(await service.stats())), media_type=PROMETHEUS)

    names = {path.name for path in PAGE.iterdir() if path.suffix in MEDIA_TYPES}

    @app.get("/", include_in_schema=False)
    @app.get("/page/{name}", include_in_schema=False)
    async def page(name: str = "index.html") -> Response:
        if name not in names:
            raise HTTPException(404)
        path = PAGE / name
        headers = {"content-security-policy": POLICY, "cache-control": "no-cache"}
        return FileResponse(path, headers=headers, media_type=MEDIA_TYPES[path.suffix])

    _describe(app, service)
    settings = service.settings
    app.add_middleware(Guard, settings=settings, metrics=metrics, version=lambda: service.version)
    if settings.cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors,
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=("Authorization", "Content-Type"),
        )
    return app


def _names(app: FastAPI) -> Iterable[tuple[str, str]]:
    for route in app.routes:
        if isinstance(route, APIRoute):
            yield from ((method, route.path_format) for method in sorted(route.methods or ()))


def _add_errors(app: FastAPI, service: Service) -> None:
    """Answer errors as JSON."""

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        errors = error.errors()
        status = 400 if errors[0]["type"] == "json_invalid" else 422
        return service.reply({"error": bodies.sentence(errors)}, status)

    @app.exception_handler(UserError)
    async def refused(request: Request, error: UserError) -> Response:
        return service.reply({"error": str(error)}, 422)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        path = printable(clipped(request.url.path))
        why = {
            400: "The body is not JSON that can be read.",
            404: f"There is no route {path}; /openapi.json lists all routes.",
            405: f"{path} does not take {request.method}.",
        }.get(error.status_code, error.detail)
        return service.reply({"error": why}, error.status_code, error.headers)


def _describe(app: FastAPI, service: Service) -> None:
    """Add the limits and the token to the OpenAPI description."""
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        schema = bodies.with_limits(describe(), service.settings.limits)
        if service.settings.tokens:
            schemes = {"token": {"type": "http", "scheme": "bearer"}}
            schema["components"]["securitySchemes"] = schemes
            schema["security"] = [{"token": []}]
        return schema

    app.openapi = openapi  # type: ignore[method-assign]


def gauges(stats: Stats | None) -> list[Gauge]:
    """Return the numbers of the store for ``/metrics``."""
    if stats is None:
        return [Gauge("newsrec_ready", "Whether the service can recommend.", 0)]
    return [
        Gauge("newsrec_ready", "Whether the service can recommend.", 1),
        Gauge("newsrec_news", "News that can be recommended.", stats.news),
        Gauge("newsrec_users", "Users with clicks.", stats.users),
        Gauge("newsrec_clicks", "Clicks in the store.", stats.clicks),
        Gauge("newsrec_free_slots", "Rows of vectors without news.", stats.free_slots),
        Gauge("newsrec_store_lag_seconds", "Age of the oldest unseen write.", stats.lag_seconds),
        Gauge("newsrec_encoded_news", "News with a vector of the newest export.", stats.encoded),
        Gauge("newsrec_encode_total", "News that need such a vector.", stats.encode_total),
    ]
