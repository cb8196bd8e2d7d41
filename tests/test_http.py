"""The service over HTTP: routes, limits, errors, counts."""

import asyncio
import json
import mimetypes
import re
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from newsrec.errors import StoreError, UserError
from newsrec.serving.http import create_app
from newsrec.serving.http_answers import Service
from newsrec.serving.http_settings import Limits, Settings
from newsrec.serving.live import (
    AddedNews,
    Answer,
    LiveRecommender,
    Near,
    NewsItem,
    Placed,
    Recommended,
    Stats,
    UserClicks,
)

TIME = "2026-11-26T09:30:00+01:00"
SMALL = Limits(k=5, history=4, candidates=3, items=2, body=2000)


class Fake(LiveRecommender):
    """News in a dictionary; the score of a news item is the length of its title."""

    version, ready = "abc", True

    def __init__(self):
        titles = {"N1": "Storm", "N2": "Rates rise", "a/b": "Cup final"}
        self.items = {i: NewsItem(i, title, "sports") for i, title in titles.items()}
        self.clicks = {}
        self.asked = []

    def answer(self, ids, history, unknown=()):
        news = [self.items.get(i, NewsItem(i, "")) for i in ids]
        news.sort(key=lambda item: -len(item.title))
        found = [
            Recommended(n.news_id, float(len(n.title)), n.title, n.category, "", n.published, None)
            for n in news
        ]
        lost = [i for i in history or [] if i not in self.items]
        return Answer(found, [i for i in history or [] if i in self.items], lost, [*unknown], "abc")

    def recommend(self, history=None, user_id=None, k=10, rules=None, explain=False, now=None):
        self.asked.append((history, user_id, k, rules, explain))
        if rules.categories and "sports" not in rules.categories:
            raise UserError(f"No news item is of the category {rules.categories[0]!r}.")
        found = self.answer(self.items, history)
        return found._replace(news=found.news[:k])

    def rank(self, candidates, history=None, user_id=None, explain=False):
        return self.answer(candidates, history, [i for i in candidates if i not in self.items])

    def upsert_news(self, items):
        new = sum(item.news_id not in self.items for item in items)
        self.items |= {item.news_id: item for item in items}
        return AddedNews(new, len(items) - new, 0)

    def delete_news(self, news_id):
        return self.items.pop(news_id, None) is not None

    def news_item(self, news_id):
        return self.items.get(news_id)

    def find_news(self, text, k=20):
        return [item for item in self.items.values() if text in item.title][:k]

    def place_headline(self, item, history, k=10):
        of = len(self.items) - (item.news_id in self.items)
        return Placed(1.0, 1, of, [Near("N1", "Storm", "sports", 0.5)], "abc")

    def add_clicks(self, clicks):
        before = len(self.clicks)
        self.clicks |= {tuple(click): None for click in clicks}
        return len(self.clicks) - before

    def user(self, user_id):
        found = sorted((time, news) for user, news, time in self.clicks if user == user_id)
        return UserClicks(user_id, [(news, time) for time, news in found]) if found else None

    def users(self, k=50):
        return list(dict.fromkeys(user for user, *_ in self.clicks))[:k]

    def delete_user(self, user_id):
        known = self.user(user_id) is not None
        self.clicks = {click: None for click in self.clicks if click[0] != user_id}
        return known

    def stats(self):
        return Stats(len(self.items), len(self.users()), len(self.clicks), 7, 0.0, None, 3, 3)

    def close(self):
        pass


def client_of(engine, counts=None, **settings):
    settings = Settings(Path("export"), **{"limits": SMALL} | settings)
    app = create_app(Service(settings, engine), counts)
    return TestClient(app, "http://127.0.0.1:8000", follow_redirects=False)


@pytest.fixture
def engine():
    return Fake()


@pytest.fixture
def client(engine):
    return client_of(engine)


def refused(response, status, *words):
    """Check an error: its status, JSON with the version, one line, and words in it."""
    assert response.status_code == status, response.text
    found = response.json()
    assert set(found) == {"error", "version"}
    assert found["version"] == "abc"
    assert "\n" not in found["error"]
    assert "Traceback" not in found["error"]
    for word in words:
        assert word in found["error"]


def test_news_are_recommended_with_scores_and_the_version(client, engine):
    found = client.post("/recommend", json={"history": ["N1", "N9"], "k": 2}).json()
    assert [n["news_id"] for n in found["news"]] == ["N2", "a/b"]
    assert found["news"][0] == {
        "news_id": "N2", "score": 10.0, "title": "Rates rise", "category": "sports",
        "subcategory": "", "published": None, "age_hours": None,
    }  # fmt: skip
    assert (found["history"], found["unknown_history"]) == (["N1"], ["N9"])
    assert found["version"] == "abc"
    assert found["ms"] >= 0
    assert engine.asked[0][:3] == (["N1", "N9"], None, 2)


def test_the_rules_of_a_request_reach_the_recommender(client, engine):
    body = {
        "user_id": "U1", "categories": ["sports"], "max_age": 6, "half_life": 2.5,
        "exclude": ["N1"], "exclude_history": False, "per_category": 2, "near_duplicates": 0.9,
        "skip_repeats": 0.8, "diversity": 0.3, "calibration": 0.2,
    }  # fmt: skip
    assert client.post("/recommend?explain=true", json=body).status_code == 200
    history, user_id, k, rules, explain = engine.asked[0]
    assert (history, user_id, k, explain) == (None, "U1", SMALL.k, True)
    assert (rules.categories, rules.exclude) == (("sports",), ("N1",))
    assert (rules.max_age, rules.half_life, rules.diversity) == (6, 2.5, 0.3)
    assert rules.calibration == 0.2
    assert (rules.per_category, rules.exclude_history) == (2, False)
    assert (rules.near_duplicates, rules.skip_repeats) == (0.9, 0.8)


def test_candidates_are_ranked_and_unknown_ones_named(client):
    found = client.post("/rank", json={"candidates": ["N9", "N1", "N2"]}).json()
    assert [n["news_id"] for n in found["news"]] == ["N2", "N1", "N9"]
    assert found["unknown_candidates"] == ["N9"]


def test_news_come_and_go_and_ids_may_have_a_slash(client):
    item = {"news_id": "x/y?z", "title": "Snow", "published": TIME}
    found = client.post("/news", json={"news": [item, {"news_id": "N1", "title": "Calm"}]}).json()
    assert found == {"added": 1, "replaced": 1, "unchanged": 0, "version": "abc"}
    one = client.get("/news/x%2Fy%3Fz").json()
    assert one["title"] == "Snow"
    assert datetime.fromisoformat(one["published"]) == datetime(2026, 11, 26, 8, 30, tzinfo=UTC)
    assert client.delete("/news/x%2Fy%3Fz").json() == {"deleted": "x/y?z", "version": "abc"}
    refused(client.get("/news/x%2Fy%3Fz"), 404, "x/y?z")
    refused(client.delete("/news/x%2Fy%3Fz"), 404, "news item")


def test_news_are_found_by_words(client):
    assert [n["news_id"] for n in client.get("/news?q=Cup").json()["news"]] == ["a/b"]
    assert len(client.get("/news?k=2").json()["news"]) == 2
    refused(client.get("/news?k=6"), 422, "k should be", "5")


def test_the_pages_scripts_have_a_type_that_browsers_run(engine, monkeypatch):
    mimetypes.init()
    monkeypatch.setitem(mimetypes.types_map, ".js", "text/plain")  # as some Windows registries say
    assert (
        client_of(engine).get("/page/app.js").headers["content-type"].startswith("text/javascript")
    )


def test_the_length_of_a_text_is_told_in_characters(client):
    refused(client.post("/recommend", json={"history": [""]}), 422, "history[0]", "1 character")
    body = {"candidates": ["N" * 300]}
    refused(client.post("/rank", json=body), 422, "candidates[0]", "256 characters")


@pytest.mark.parametrize(
    "name", ["%00", "a%00.js", "..%2fhttp.py", "x" * 5000 + ".js", "nothing.js"]
)
def test_a_page_file_that_there_is_not_is_a_404(client, name):
    refused(client.get(f"/page/{name}"), 404)


def test_an_id_with_a_line_break_is_another_id(client):
    assert client.get("/news/N1").status_code == 200
    refused(client.get("/news/N1%0A"), 404, "N1")
    refused(client.delete("/users/U1%0A"), 404, "U1")


def test_a_headline_is_placed(client):
    found = client.post("/headline", json={"title": "Snow", "history": ["N1"], "k": 3}).json()
    assert (found["rank"], found["of"], found["near"][0]["cosine"]) == (1, 3, 0.5)
    own = client.post("/headline", json={"title": "Snow", "news_id": "N1"}).json()
    assert own["of"] == 2  # it does not count itself
    refused(client.post("/headline", json={"title": ""}), 422, "title")


def test_clicks_are_added_once_and_a_user_can_be_forgotten(client):
    click = {"user_id": "U 1", "news_id": "N1", "time": TIME}
    assert client.post("/clicks", json={"clicks": [click]}).json()["added"] == 1
    again = client.post("/clicks", json={"clicks": [click]}).json()
    assert (again["added"], again["known"]) == (0, 1)
    assert client.get("/users").json()["users"] == ["U 1"]
    assert client.get("/users/U%201").json()["clicks"] == [
        {"news_id": "N1", "time": "2026-11-26T08:30:00+00:00"}
    ]
    assert client.delete("/users/U%201").json()["deleted"] == "U 1"
    refused(client.get("/users/U%201"), 404, "user")
    refused(client.delete("/users/U%201"), 404, "user")


WRONG = [
    ("/recommend", {"k": 0}, "k should be greater than or equal to 1, not 0"),
    ("/recommend", {"k": 6}, "k is 6; the most here is 5"),
    ("/recommend", {"k": "ten"}, "k should be a valid integer"),
    ("/recommend", {"k": 2.5}, "k should be"),
    ("/recommend", {"k": "3"}, "k should be a valid integer, not '3'"),
    ("/recommend", {"k": True}, "k should be a valid integer, not True"),
    ("/recommend", {"explain": "yes"}, "explain should be a valid boolean, not 'yes'"),
    ("/recommend", {"max_age": "24"}, "max_age should be a valid number, not '24'"),
    ("/recommend", {"history": ["N1"] * 5}, "history has 5; the most here is 4"),
    ("/recommend", {"history": "N1"}, "history should be a valid list"),
    ("/recommend", {"history": ["N1", 2]}, "history[1] should be a valid string, not 2"),
    ("/recommend", {"history": ["N1"], "user_id": "U1"}, "user_id is given beside history"),
    ("/recommend", {"histroy": []}, "histroy is not a field"),
    ("/recommend", {"max_age": -1}, "max_age should be greater than 0"),
    ("/recommend", {"half_life": 1e400}, "half_life"),
    ("/recommend", {"diversity": 2}, "diversity should be less than or equal to 1"),
    ("/recommend", {"categories": []}, "categories"),
    ("/recommend", {"categories": ["art"]}, "category 'art'"),
    ("/recommend", {"exclude": ["N"] * 5}, "exclude has 5"),
    ("/recommend", [], "The body should be a JSON object"),
    ("/recommend", None, "The body"),
    ("/rank", {}, "candidates is missing"),
    ("/rank", {"candidates": []}, "candidates"),
    ("/rank", {"candidates": ["N1"] * 4}, "candidates has 4; the most here is 3"),
    ("/news", {"news": [{"news_id": "N1"}]}, "news[0].title is missing"),
    ("/news", {"news": [{"news_id": "", "title": "t"}]}, "news[0].news_id"),
    ("/news", {"news": [{"news_id": "N" * 300, "title": "t"}]}, "news[0].news_id"),
    ("/news", {"news": [{"news_id": "N1", "title": "t", "published": 5}]}, "published"),
    ("/news", {"news": [{"news_id": str(i), "title": "t"} for i in range(3)]}, "news has 3"),
    ("/clicks", {"clicks": [{"user_id": "U", "news_id": "N", "time": "2026-11-26T09:30:00"}]},
     "clicks[0].time should end with an offset"),
    ("/clicks", {"clicks": [{"user_id": "U", "news_id": "N", "time": "0001-01-01T00:00:00+09:00"}]},
     "clicks[0].time should be of a year from 1900"),
    ("/clicks", {"clicks": [{"user_id": "U", "news_id": "N", "time": "yesterday"}]}, "ISO 8601"),
    ("/clicks", {"clicks": [{"user_id": "U", "news_id": "N", "time": "1732600000"}]}, "time"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "words"), WRONG)
def test_a_wrong_request_is_told_in_a_sentence_that_names_the_field(client, path, body, words):
    content = json.dumps(body)
    refused(
        client.post(path, content=content, headers={"content-type": "application/json"}), 422, words
    )


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        (b"{", 400, "not JSON"),
        (b"\xff\xfe", 400, "not JSON"),
        (b'{"k": ' + b"1" * 1900 + b"}", 422, "k"),
        (b"[" * 1900, 400, "not JSON"),
        (b'{"half_life": NaN}', 422, "half_life"),
        (b'{"user_id": "\\ud800"}', 422, "user_id"),
        (b'{"user_id": "U\\u0000"}', 422, "user_id should have no null character"),
        (b"", 422, "The body"),
    ],
)
def test_a_body_that_is_no_json_is_refused(client, content, status, words):
    json_type = {"content-type": "application/json"}
    refused(client.post("/recommend", content=content, headers=json_type), status, words)


def test_a_form_of_another_site_can_write_nothing(client, engine):
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        content = b'{"news": [{"news_id": "N7", "title": "t"}]}'
        refused(client.post("/news", content=content, headers={"content-type": kind}), 415)
    assert "N7" not in engine.items


def test_unknown_paths_and_methods_are_json(client):
    refused(client.get("/nothing"), 404, "/nothing")
    refused(client.get("/news/"), 422, "news_id")
    refused(client.get("/page/../http.py"), 404)
    refused(client.put("/recommend"), 405, "PUT")
    refused(client.get("/recommend"), 405, "GET")
    assert client.get("/recommend").headers["allow"] == "POST"
    refused(client.options("/recommend"), 405)


def test_the_page_and_its_files_are_served_and_nothing_beside_them(client):
    page = client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert page.headers["cache-control"] == "no-cache"
    for name in re.findall(r'"(page/[\w.]+)"', page.text):
        kind = {"js": "text/javascript", "css": "text/css", "svg": "image/svg"}[name.split(".")[-1]]
        assert client.get(f"/{name}").headers["content-type"].startswith(kind)
    for name in ("../http.py", "..%2Fhttp.py", "%2e%2e%2fhttp.py", "/etc/passwd", "no.js", ""):
        assert client.get(f"/page/{name}").status_code == 404


def test_a_body_over_the_limit_is_not_read_whole(client):
    json_type = {"content-type": "application/json"}
    refused(client.post("/news", content=b" " * 2001, headers=json_type), 413, "2,000 bytes")


def test_a_body_without_a_length_is_read_up_to_the_limit(client, monkeypatch):
    """The answer is sent before the rest is read; the rest is read for a while, then dropped."""
    monkeypatch.setattr("newsrec.serving.http_limits.LINGER_BYTES", 3000)
    happened = []

    async def receive():
        happened.append("read")
        return {"type": "http.request", "body": b" " * 500, "more_body": True}

    async def send(message):
        happened.append(message.get("status", message["type"]))

    headers = [(b"host", b"localhost"), (b"transfer-encoding", b"chunked"),
               (b"content-type", b"application/json")]  # fmt: skip
    scope = {"type": "http", "method": "POST", "path": "/news", "query_string": b"",
             "headers": headers, "http_version": "1.1"}  # fmt: skip
    asyncio.run(client.app(scope, receive, send))
    body = "http.response.body"
    assert happened == ["read"] * 5 + [413, body] + ["read"] * 6 + [body]


def test_a_body_that_does_not_arrive_is_given_up(client, monkeypatch):
    monkeypatch.setattr("newsrec.serving.http_limits.BODY_SECONDS", 0.01)
    said = []

    async def send(message):
        said.append(message)

    headers = [(b"host", b"localhost"), (b"content-length", b"5"),
               (b"content-type", b"application/json")]  # fmt: skip
    scope = {"type": "http", "method": "POST", "path": "/news", "query_string": b"",
             "headers": headers, "http_version": "1.1"}  # fmt: skip
    asyncio.run(client.app(scope, lambda: asyncio.sleep(10), send))
    assert said[0]["status"] == 408


def test_a_failure_is_logged_and_answered_without_a_traceback(client, engine, caplog, monkeypatch):
    monkeypatch.setattr(engine, "users", lambda k: 1 / 0)
    refused(client.get("/users"), 500, "The service failed")
    assert "GET /users failed" in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_a_store_that_fails_is_a_503(client, engine, monkeypatch):
    def full(clicks):
        raise StoreError("clicks.sqlite: disk full.")

    monkeypatch.setattr(engine, "add_clicks", full)
    click = {"user_id": "U", "news_id": "N1", "time": TIME}
    refused(client.post("/clicks", json={"clicks": [click]}), 503, "disk full")


def test_a_token_is_asked_for():
    client = client_of(Fake(), tokens=("one", "two"))
    for given in ({}, {"authorization": "Bearer three"}, {"authorization": "one"}):
        response = client.get("/users", headers=given)
        refused(response, 401, "Authorization")
        assert response.headers["www-authenticate"] == "Bearer"
    for token in ("Bearer one", "bearer two"):
        assert client.get("/users", headers={"authorization": token}).status_code == 200
    for path in ("/health", "/ready", "/openapi.json"):
        assert client.get(path).status_code == 200
    refused(client.get("/metrics"), 401)


def test_without_the_token_ready_has_no_counts():
    client = client_of(Fake(), tokens=("one",))
    assert client.get("/ready").json() == {"status": "ready", "version": "abc"}
    counted = client.get("/ready", headers={"authorization": "Bearer one"}).json()
    assert (counted["news"], counted["free_slots"]) == (3, 7)
    assert client_of(Fake()).get("/ready").json() == counted


def test_another_sites_name_for_this_machine_is_refused(client):
    for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", ""):
        refused(client.get("/users", headers={"host": host}), 403, "Host")
    for host in ("localhost", "LOCALHOST:9", "127.0.0.1:8000", "[::1]:8000", "[::1]"):
        assert client.get("/users", headers={"host": host}).status_code == 200
    named = client_of(Fake(), allowed_hosts=("news.example",))
    assert named.get("/users", headers={"host": "News.example:443"}).status_code == 200
    for open_to_all in (client_of(Fake(), tokens=("t",)), client_of(Fake(), host="0.0.0.0")):
        headers = {"host": "a.example", "authorization": "Bearer t"}
        assert open_to_all.get("/users", headers=headers).status_code == 200


def test_pages_of_other_sites_may_ask_only_if_named(client):
    origin = {"origin": "https://a.example", "access-control-request-method": "POST"}
    assert "access-control-allow-origin" not in client.get("/users", headers=origin).headers
    refused(client.options("/recommend", headers=origin), 405)
    named = client_of(Fake(), cors=("https://a.example",), tokens=("t",))
    asked = origin | {"access-control-request-headers": "authorization,content-type"}
    answer = named.options("/recommend", headers=asked)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "https://a.example"
    error = named.post("/recommend", json={}, headers={"origin": "https://a.example"})
    assert error.headers["access-control-allow-origin"] == "https://a.example"
    refused(error, 401)
    other = named.get("/users", headers={"origin": "https://b.example"})
    assert "access-control-allow-origin" not in other.headers


def test_nothing_is_recommended_before_the_vectors_are_there(engine):
    client = client_of(None)
    for response in (client.get("/ready"), client.post("/recommend", json={})):
        assert response.status_code == 503
        assert response.json()["version"] is None
        assert response.headers["retry-after"]
    assert client.get("/health").json() == {"status": "ok", "version": None}
    assert "newsrec_ready 0" in client.get("/metrics").text
    engine.ready = False
    refused(client_of(engine).get("/ready"), 503)
    engine.ready = True
    assert client_of(engine).get("/ready").json()["news"] == 3


def test_head_answers_as_get_without_a_body(client):
    answer = client.head("/health")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-length"] == str(len(client.get("/health").content))
    assert client.head("/recommend").status_code == 405


def test_a_batch_of_writes_does_not_keep_others_from_reading(engine):
    client = client_of(engine)
    going, end = threading.Semaphore(0), threading.Event()

    def slow(items):
        going.release()
        end.wait(10)
        return AddedNews(0, 0, 0)

    engine.upsert_news = slow
    body = {"news": [{"news_id": "N1", "title": "t"}]}
    with client:
        writes = [
            threading.Thread(target=client.post, args=("/news",), kwargs={"json": body})
            for _ in range(50)
        ]
        for write in writes:
            write.start()
        for _ in range(4):
            assert going.acquire(timeout=10)
        began = time.monotonic()
        assert client.post("/recommend", json={}).status_code == 200
        assert time.monotonic() - began < 5
        end.set()
        for write in writes:
            write.join()
