"""A stand-in for the service with the routes that the page uses, over made-up news.

Its model is a count of common words, so that what a click brought is known: each click brings
4 / clicks times the cosine of the two titles, and the rest is .1. To look at the page with it:

    python tests/page_server.py
"""

import contextlib
import json
import math
import re
import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

PAGE = Path(__file__).parents[1] / "newsrec" / "serving" / "page"
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css",
         ".svg": "image/svg+xml"}  # fmt: skip
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
NOW = datetime.now(UTC).replace(microsecond=0)
TITLES = """\
sports: Rovers win the cup final after extra time
sports: Rovers coach praises the young goalkeeper
sports: Goalkeeper signs a new contract with the Rovers
sports: Tennis champion withdraws with a sore shoulder
sports: Cup final draws the largest crowd of the season
finance: Central bank raises interest rates again
finance: Interest rates push up the price of homes
finance: Shares fall as the bank warns of losses
finance: Homes sell slowly after the bank raises rates
weather: Storm closes ports along the northern coast
weather: Coast braces for a second storm this week
weather: Snow returns to the northern hills
health: Clinic offers flu shots before the winter season
health: Flu season starts early in northern towns
travel: Ferry to the islands sails again after the storm
travel: Night train returns to the northern coast"""


def made_up_news():
    """Return the news items, the newest last, an hour between two."""
    lines = [line.split(": ", 1) for line in TITLES.splitlines()]
    return [
        {"news_id": f"N{n}", "title": title, "category": category, "subcategory": "",
         "published": (NOW - timedelta(hours=len(lines) - n)).isoformat()}
        for n, (category, title) in enumerate(lines, 1)
    ]  # fmt: skip


EXAMPLES = [
    {"user_id": "U1", "history": ["N1", "N3", "N5"], "impressions": [
        {"time": "2019-11-15T12:00:00+00:00", "candidates": ["N6", "N2", "N11", "N13"],
         "clicked": ["N2"]}]},
    {"user_id": "U2", "history": [], "impressions": [
        {"time": "2019-11-15T13:00:00+00:00", "candidates": ["N10", "N4"], "clicked": ["N4"]}]},
]  # fmt: skip


class Refusal(Exception):
    """A 4xx: the status and its sentence."""


class PageServer(ThreadingHTTPServer):
    """Serves the page and the stand-in.

    ``asked`` has the path and body of each request; ``delays`` says how many seconds a
    recommendation takes for a number of clicks.
    """

    daemon_threads = True

    def __init__(self, news=None, examples=EXAMPLES, users=None, token=None, port=0):
        self.news = {item["news_id"]: item for item in (made_up_news() if news is None else news)}
        self.examples, self.users, self.token, self.asked = examples, users or {}, token, []
        self.delays = {}
        super().__init__(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error):
        self.shutdown()
        self.server_close()

    def scored(self, item, history, half_life=None):
        """Return a news item as an answer has it, with its score and explanation."""
        words = Counter(words_of(item["title"]))
        clicks = [
            {"news_id": i, "value": 4 * cosine(words, Counter(words_of(self.news[i]["title"])))
             / len(history)}
            for i in history
        ]  # fmt: skip
        hours = item.get("published") and (
            (NOW - datetime.fromisoformat(item["published"])) / timedelta(hours=1)
        )
        age = -math.log(2) * hours / half_life if half_life and hours else 0.0
        parts = {"clicks": clicks, "rest": 0.1, "age": age, "method": "exact"}
        score = sum(click["value"] for click in clicks) + 0.1 + age
        return item | {"score": score, "age_hours": hours or None, "explanation": parts}

    def recommend(self, body):
        """Answer ``POST /recommend``, or ``/rank`` where the body has candidates."""
        history = [i for i in body.get("history", []) if i in self.news]
        k = body.get("k", 10)
        if not isinstance(k, int) or not 1 <= k <= 100:
            raise Refusal(422, f"k is {k!r}. Give a whole number from 1 to 100.")
        given = body.get("candidates")
        ids = [i for i in self.news if i not in history] if given is None else given
        half_life, categories = body.get("half_life"), body.get("categories")
        rows = [self.scored(self.news[i], history, half_life) for i in ids if i in self.news]
        rows = [row for row in rows if not categories or row["category"] in categories]
        if body.get("max_age"):
            rows = [row for row in rows if (row["age_hours"] or math.inf) <= body["max_age"]]
        rows.sort(key=lambda row: -row["score"])
        if most := body.get("per_category"):
            seen = Counter()
            rows = [r for r in rows if seen.update([r["category"]]) or seen[r["category"]] <= most]
        unknown = [i for i in body.get("history", []) if i not in self.news]
        answer = {"news": rows if given is not None else rows[:k], "history": history}
        lacking = [i for i in given or [] if i not in self.news]
        return answer | {"unknown_history": unknown, "unknown_candidates": lacking}

    def place(self, body):
        """Answer ``POST /headline``."""
        history = [i for i in body.get("history", []) if i in self.news]
        own = body.get("news_id")
        item = self.news.get(own, {"title": body["title"]})
        score = self.scored(item, history)["score"]
        others = [self.news[i] for i in self.news if i not in (*history, own)]
        above = sum(self.scored(other, history)["score"] > score for other in others)
        words = Counter(words_of(item["title"]))
        near = [i | {"cosine": cosine(words, Counter(words_of(i["title"])))}
                for i in self.news.values()]  # fmt: skip
        near.sort(key=lambda item: -item["cosine"])
        return {"score": score, "rank": above + 1, "of": len(others), "near": near[:5]}

    def find(self, text, k):
        """Answer ``GET /news``: all words of the text are in the title, the newest first."""
        newest = reversed(self.news.values())
        return [i for i in newest if all(w in i["title"].lower() for w in text.lower().split())][:k]

    def answer(self, method, path, query, body):
        """Return what a route answers."""
        match method, *map(unquote, path.strip("/").split("/")):
            case "POST", "recommend" | "rank":
                time.sleep(self.delays.get(len(body.get("history", [])), 0))
                return self.recommend(body)
            case "POST", "headline":
                return self.place(body)
            case "GET", "news":
                return {"news": self.find(query.get("q", ""), int(query.get("k", 20)))}
            case "GET", "news", news_id if news_id in self.news:
                return self.news[news_id]
            case "GET", "examples":
                return {"examples": [
                    {"user_id": one["user_id"], "num_history": len(one["history"]),
                     "num_impressions": len(one["impressions"])} for one in self.examples
                ]}  # fmt: skip
            case "GET", "examples", number:
                return self.examples[int(number)]
            case "GET", "users":
                return {"users": list(self.users)}
            case "GET", "users", user_id if user_id in self.users:
                clicks = [{"news_id": i, "time": NOW.isoformat()} for i in self.users[user_id]]
                return {"user_id": user_id, "clicks": clicks}
            case "GET", "ready":
                return {"news": len(self.news)}
        raise Refusal(404, f"{path} is not here.")


def words_of(text):
    """Return the words of a text that have more than three letters."""
    return re.findall(r"\w{4,}", text.lower())


def cosine(one, other):
    """Return the cosine of two counts of words."""
    product = sum(count * other[word] for word, count in one.items())
    return product / (math.hypot(*one.values()) * math.hypot(*other.values()) or 1)


class Handler(BaseHTTPRequestHandler):
    """Sends files of the page and answers as JSON."""

    def log_message(self, *args):
        """Stay silent."""

    def do_GET(self):
        """Send a file of the page, or an answer."""
        path = urlsplit(self.path).path
        name = "index.html" if path == "/" else path.removeprefix("/page/")
        if path == "/" or path.startswith("/page/"):
            file = PAGE / name
            if file.parent == PAGE and file.is_file():
                return self.send(200, TYPES[file.suffix] + "; charset=utf-8", file.read_bytes())
        return self.respond("GET")

    def do_POST(self):
        """Read a body and answer."""
        self.respond("POST", json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def respond(self, method, body=None):
        """Send an answer or a refusal."""
        began = time.perf_counter()
        parts = urlsplit(self.path)
        self.server.asked.append((parts.path, body))
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        try:
            token = self.server.token
            if token and self.headers.get("Authorization") != f"Bearer {token}":
                raise Refusal(401, "Authorization lacks the token of this server.")
            status, content = 200, dict(self.server.answer(method, parts.path, query, body))
        except Refusal as refusal:
            status, content = refusal.args[0], {"error": refusal.args[1]}
        content |= {"version": "simulated", "ms": 1000 * (time.perf_counter() - began)}
        self.send(status, "application/json", json.dumps(content).encode())

    def send(self, status, content_type, content):
        """Send headers and content."""
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Security-Policy", POLICY)
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # the page no longer wants it
            self.wfile.write(content)


if __name__ == "__main__":
    server = PageServer(port=8000)
    print(server.url)
    server.serve_forever()
