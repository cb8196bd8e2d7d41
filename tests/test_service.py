"""The service on an export: its answers are those of the recommender, whatever is asked."""

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

from newsrec.serving import Recommender
from newsrec.serving.examples import Examples
from newsrec.serving.http import create_app
from newsrec.serving.http_answers import Service
from newsrec.serving.http_settings import Settings
from newsrec.serving.live import LiveRecommender

CONFORM = [
    not_a_server_error,
    checks.response_schema_conformance,
    checks.content_type_conformance,
    checks.status_code_conformance,
]
EXAMPLES = 5
"""Requests a route, valid and again invalid, in the quick test."""
REQUESTS = int(os.environ.get("NEWSREC_REQUESTS", "1500"))
"""Requests in the slow test."""


@pytest.fixture(scope="module")
def live(served, tmp_path_factory):
    """The service over the export of ``served`` and a new store."""
    folder = tmp_path_factory.mktemp("live")
    engine = LiveRecommender.open(served.export, folder / "store", threads=1)
    names = ("testserver", "localhost")
    service = Service(Settings(served.export, allowed_hosts=names), engine)
    service.examples = Examples.of(shutil.copytree(served.mind, folder / "mind"))
    yield TestClient(create_app(service), raise_server_exceptions=False)
    engine.close()


def test_answers_are_those_of_the_recommender(live, served):
    plain = Recommender.load(served.export, threads=1)
    history = ["N1", "N3", "N404"]
    for k in (1, 5, 15):
        found = live.post("/recommend", json={"history": history, "k": k}).json()
        expected = plain.recommend(history, k)
        assert [n["news_id"] for n in found["news"]] == expected.news_ids
        scores = [n["score"] for n in found["news"]]
        np.testing.assert_allclose(scores, expected.scores, rtol=1e-5)
        assert found["unknown_history"] == ["N404"]
    candidates = ["N5", "N2", "N500", "N11"]
    found = live.post("/rank", json={"history": history, "candidates": candidates}).json()
    expected = plain.rank(history, candidates)
    assert [n["news_id"] for n in found["news"]] == expected.ranked_ids
    assert found["unknown_candidates"] == ["N500"]


def test_a_users_clicks_are_the_history_of_the_next_answer(live):
    clicks = [
        {"user_id": "U7", "news_id": news_id, "time": f"2019-11-15T10:0{i}:00Z"}
        for i, news_id in enumerate(["N2", "N7", "N1"])
    ]
    assert live.post("/clicks", json={"clicks": clicks[::-1]}).json()["added"] == 3
    stored = live.post("/recommend", json={"user_id": "U7"}).json()
    given = live.post("/recommend", json={"history": ["N2", "N7", "N1"]}).json()
    assert stored["history"] == given["history"] == ["N2", "N7", "N1"]
    assert stored["news"] == given["news"]
    live.delete("/users/U7")
    new = live.post("/recommend", json={"user_id": "U7"}).json()
    assert new["news"] == live.post("/recommend", json={}).json()["news"]


def test_an_explanation_adds_up_to_its_score(live):
    body = {"history": ["N1", "N3", "N5"], "k": 4, "explain": True}
    found = live.post("/recommend", json=body).json()["news"]
    assert (
        found == live.post("/recommend?explain=true", json=body | {"explain": False}).json()["news"]
    )
    for item in found:
        parts = item["explanation"]
        assert [click["news_id"] for click in parts["clicks"]] == body["history"]
        total = sum(click["value"] for click in parts["clicks"]) + parts["rest"] + parts["age"]
        assert total == pytest.approx(item["score"], abs=1e-3)
    plain = live.post("/recommend", json=body | {"explain": False}).json()["news"]
    assert not any("explanation" in item for item in plain)


def test_news_are_recommended_from_the_next_request_on(live):
    item = {"news_id": "X1", "title": "Storm closes ports again", "category": "weather"}
    assert live.post("/news", json={"news": [item]}).json()["added"] == 1
    ids = {n["news_id"] for n in live.post("/recommend", json={"k": 100}).json()["news"]}
    assert "X1" in ids
    assert live.post("/news", json={"news": [item]}).json()["unchanged"] == 1
    placed = live.post("/headline", json={"title": item["title"], "category": "weather"}).json()
    assert placed["near"][0]["news_id"] == "X1"
    assert live.delete("/news/X1").status_code == 200
    after = {n["news_id"] for n in live.post("/recommend", json={"k": 100}).json()["news"]}
    assert after == ids - {"X1"}


def test_users_of_the_data_folder_can_be_replayed(live, served):
    """Against the rows that the world was written from."""
    heads = live.get("/examples").json()["examples"]
    rows = [row for row in served.behaviors if row[1] == "U1"]
    (number,) = (i for i, head in enumerate(heads) if head["user_id"] == "U1")
    assert heads[number]["num_impressions"] == len(rows)
    user = live.get(f"/examples/{number}").json()
    times = [shown["time"] for shown in user["impressions"]]
    assert times == sorted(times)
    clicked = sorted(
        word.removesuffix("-1") for row in rows for word in row[4].split() if word.endswith("-1")
    )
    assert sorted(i for shown in user["impressions"] for i in shown["clicked"]) == clicked
    assert all(set(s["clicked"]) <= set(s["candidates"]) for s in user["impressions"])
    assert live.get(f"/examples/{len(heads)}").status_code == 404


def test_every_route_has_its_line_of_curl_in_the_documentation(live):
    page = (Path(__file__).parents[1] / "docs" / "service.md").read_text(encoding="utf-8")
    asked = [line for line in page.splitlines() if line.startswith("$ curl")]
    for path, methods in live.get("/openapi.json").json()["paths"].items():
        pattern = re.escape(path).replace(r"\{news_id\}", r"\w+").replace(r"\{user_id\}", r"\w+")
        address = f":8000{pattern}".replace(r"\{number\}", r"\d+") + r"(\?[^ ]*)?'?$"
        lines = [line for line in asked if re.search(address, line)]
        for method in methods:
            marks = {"post": "--json", "delete": "-X DELETE"}
            wanted = marks.get(method)
            assert any(
                wanted in line if wanted else not any(mark in line for mark in marks.values())
                for line in lines
            ), (method, path)


IDS = st.sampled_from([f"N{i}" for i in range(1, 18)])


def ask_anything(live, examples):
    """Send generated requests to every route, half of them wrong; return how many, and answers."""
    schema = schemathesis.openapi.from_asgi("/openapi.json", live.app)
    statuses = []

    @settings(
        max_examples=examples, deadline=None, database=None, phases=[Phase.generate],
        derandomize=True, suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.data())
    def ask(data):
        for mode in GenerationMode:
            if mode.is_negative and not (operation.body or operation.query):
                continue  # nothing can be wrong in it
            case = data.draw(operation.as_strategy(generation_mode=mode))
            if "news_id" in case.path_parameters and data.draw(st.booleans()):
                case.path_parameters["news_id"] = data.draw(IDS)
            for field in ("history", "candidates", "exclude"):
                if isinstance(case.body, dict) and field in case.body and data.draw(st.booleans()):
                    case.body[field] = data.draw(st.lists(IDS, max_size=5, unique=True))
            response = case.call()
            statuses.append(response.status_code)
            case.validate_response(response, checks=CONFORM)

    for found in schema.get_all_operations():
        operation = found.ok()
        ask()
    return statuses


def test_no_generated_request_fails_or_gets_an_answer_that_is_not_described(live):
    statuses = ask_anything(live, EXAMPLES)
    assert len(statuses) >= 100
    assert {200, 404, 422} <= set(statuses)


@pytest.mark.slow
def test_thousands_of_generated_requests_get_the_answers_that_are_described(live):
    statuses = ask_anything(live, REQUESTS // 24)
    print(f"{len(statuses):,} requests:", {s: statuses.count(s) for s in sorted(set(statuses))})
    assert len(statuses) >= REQUESTS // 2
