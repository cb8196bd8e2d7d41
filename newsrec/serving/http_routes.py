"""The routes that ask or change the recommender."""

from typing import Annotated

from fastapi import FastAPI, Query, Request, Response
from starlette.convertors import PathConvertor, register_url_convertor

from newsrec.serving import http_bodies as bodies
from newsrec.serving import http_models as models
from newsrec.serving.http_answers import (
    NOT_READY,
    Found,
    Service,
    deleted_or_404,
    found_or_404,
    news_of,
)
from newsrec.serving.http_limits import TRUSTED, Refused
from newsrec.serving.items import Click, NewsItem
from newsrec.serving.live import LiveRecommender


class IdConvertor(PathConvertor):
    """The rest of a path, line breaks too: ``path`` would drop one at the end of an id."""

    regex = "(?s:.*)"


register_url_convertor("id", IdConvertor())


def add_routes(app: FastAPI, service: Service) -> None:
    """Add the routes to an application."""
    for add in (_add_ranking, _add_news, _add_users, _add_examples, _add_state):
        add(app, service)


def _add_ranking(app: FastAPI, service: Service) -> None:
    most = service.settings.limits.k

    @app.post("/recommend", response_model=models.RecommendAnswer)
    async def recommend(body: bodies.RecommendBody, explain: bool = False) -> Response:
        """Recommend news to a user."""
        bodies.check_user(body)
        bodies.check_limits(body, service.settings.limits)
        rules, explained = bodies.rules_of(body), explain or body.explain

        def work(engine: LiveRecommender) -> Found:
            found = engine.recommend(
                body.history, body.user_id, min(body.k, most), rules, explained
            )
            answered = news_of(found, explained)
            del answered["unknown_candidates"]  # there are none
            return answered

        return await service.answer(work, timed=True)

    @app.post("/rank", response_model=models.RankAnswer)
    async def rank(body: bodies.RankBody, explain: bool = False) -> Response:
        """Rank given news for a user."""
        bodies.check_user(body)
        bodies.check_limits(body, service.settings.limits)
        explained = explain or body.explain

        def work(engine: LiveRecommender) -> Found:
            found = engine.rank(body.candidates, body.history, body.user_id, explained)
            return news_of(found, explained)

        return await service.answer(work, timed=True)

    @app.post("/headline", response_model=models.HeadlineAnswer)
    async def headline(body: bodies.HeadlineBody) -> Response:
        """Say where a headline would rank, and which news is near; nothing is stored."""
        bodies.check_limits(body, service.settings.limits)
        item = NewsItem(
            body.news_id or "", body.title, body.category, body.subcategory, body.abstract
        )

        def work(engine: LiveRecommender) -> Found:
            placed = engine.place_headline(item, body.history, min(body.k, most))
            return placed._asdict() | {"near": [near._asdict() for near in placed.near]}

        return await service.answer(work, timed=True)


def _add_news(app: FastAPI, service: Service) -> None:
    most = service.settings.limits.k

    @app.post("/news", response_model=models.AddedAnswer)
    async def add_news(body: bodies.ManyNewsBody) -> Response:
        """Add news, or replace them by their ids; they are on the disk when this answers."""
        bodies.check_limits(body, service.settings.limits)
        items = [NewsItem(**dict(item)) for item in body.news]
        return await service.answer(lambda engine: engine.upsert_news(items)._asdict(), write=True)

    @app.get("/news", response_model=models.ManyNewsAnswer)
    async def find_news(
        q: Annotated[
            bodies.Text, Query(max_length=1000, description="words of a title; none: the newest")
        ] = "",
        k: Annotated[int, Query(ge=1, le=most)] = min(20, most),
    ) -> Response:
        """Find news by their titles."""
        return await service.answer(
            lambda engine: {"news": [item._asdict() for item in engine.find_news(q, k)]}
        )

    @app.get("/news/{news_id:id}", response_model=models.OneNewsAnswer)
    async def news(news_id: bodies.Id) -> Response:
        """Return a news item."""
        return await service.answer(
            lambda engine: found_or_404(engine.news_item(news_id), "news item", news_id)._asdict()
        )

    @app.delete("/news/{news_id:id}", response_model=models.DeletedAnswer)
    async def delete_news(news_id: bodies.Id) -> Response:
        """Delete a news item."""
        return await service.answer(
            lambda engine: deleted_or_404(engine.delete_news(news_id), "news item", news_id),
            write=True,
        )


def _add_users(app: FastAPI, service: Service) -> None:
    most = service.settings.limits.k

    @app.post("/clicks", response_model=models.ClicksAnswer)
    async def add_clicks(body: bodies.ClicksBody) -> Response:
        """Add clicks; they are on the disk when this answers."""
        bodies.check_limits(body, service.settings.limits)
        clicks = [Click(**dict(click)) for click in body.clicks]

        def work(engine: LiveRecommender) -> Found:
            added = engine.add_clicks(clicks)
            return {"added": added, "known": len(clicks) - added}

        return await service.answer(work, write=True)

    @app.get("/users", response_model=models.UsersAnswer)
    async def users(k: Annotated[int, Query(ge=1, le=most)] = min(50, most)) -> Response:
        """List users with clicks."""
        return await service.answer(lambda engine: {"users": engine.users(k)})

    @app.get("/users/{user_id:id}", response_model=models.UserAnswer)
    async def user(user_id: bodies.Id) -> Response:
        """Return a user's clicks."""

        def work(engine: LiveRecommender) -> Found:
            found = found_or_404(engine.user(user_id), "user", user_id)
            clicks = [{"news_id": news_id, "time": time} for news_id, time in found.clicks]
            return {"user_id": user_id, "clicks": clicks}

        return await service.answer(work)

    @app.delete("/users/{user_id:id}", response_model=models.DeletedAnswer)
    async def delete_user(user_id: bodies.Id) -> Response:
        """Delete a user's clicks, from the disk too."""
        return await service.answer(
            lambda engine: deleted_or_404(engine.delete_user(user_id), "user", user_id), write=True
        )


def _add_examples(app: FastAPI, service: Service) -> None:
    @app.get("/examples", response_model=models.ExamplesAnswer)
    async def examples() -> Response:
        """List users of the data folder that the service was started with."""
        return service.reply({"examples": service.examples.heads()})

    @app.get("/examples/{number}", response_model=models.ExampleAnswer)
    async def example(number: int) -> Response:
        """Return a user of the data folder with their impressions."""
        found = found_or_404(service.examples.get(number), "example", str(number))
        return service.reply(found)


def _add_state(app: FastAPI, service: Service) -> None:
    @app.get("/health", response_model=models.HealthAnswer)
    async def health() -> Response:
        """Say that the process answers."""
        return service.reply({"status": "ok"})

    @app.get("/ready", response_model=models.ReadyAnswer)
    async def ready(request: Request) -> Response:
        """Say whether recommendations are answered; 503 until the vectors are read.

        A request without the token that the service asks for gets no counts.
        """

        def work(engine: LiveRecommender) -> Found:
            if not engine.ready:
                raise Refused(503, NOT_READY, Retry_After="1")
            counts = engine.stats()._asdict() if request.scope[TRUSTED] else {}
            return {"status": "ready"} | counts

        return await service.answer(work)
