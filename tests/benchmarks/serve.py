"""How fast the service answers, on loopback, beside a bare echo and the matrix product alone.

    python tests/benchmarks/serve.py --export exports/demo
    python tests/benchmarks/serve.py --export exports/demo --news 160000 --parts latency --seconds 5
    python tests/benchmarks/serve.py --export exports/demo --parts memory

Prints one JSON object. ``--news`` makes a copy of the export with so many random news. The parts:

- ``latency``: ``POST /recommend`` with 20 clicks by 1, 8 and 64 clients, each of which asks again
  as soon as it is answered; the same while another client writes clicks and news; a FastAPI
  application that gives back its body; and the product of all vectors with one user's, with the
  search for the best ten, in this process.
- ``day``: an hour of a simulated day in ``--day_seconds``: requests come when they come, whether
  those before are answered or not, and a latency counts from the time a request was due.
- ``memory``: resident memory of the server over ``--requests`` requests (Linux).

The clients are one process beside the server's, so on two cores they take about one of them.
"""

import argparse
import asyncio
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa

from newsrec.files import file_hash
from newsrec.serving.folder import NEWS_SCHEMA, ExportFolder, StoredNews, with_unknown, write_news
from newsrec.serving.manifest import MANIFEST, NEWS, NEWS_ENCODER, TOKENIZER, USER_ENCODER, VECTORS

CLIENTS = (1, 8, 64)
CLICKS = 20
HOUR = {"recommend": 4_800, "clicks": 1_200, "news": 60, "delete": 15}
"""Requests of the simulated hour."""

ECHO = """
import socket
from fastapi import FastAPI
from newsrec.serving.http_server import Server, bind, config_of
app = FastAPI()
@app.post("/recommend")
async def echo(body: dict):
    return body
bound = bind("127.0.0.1", 0)
print(f"Serving echo at http://127.0.0.1:{bound.getsockname()[1]} .", flush=True)
Server(config_of(app)).run(sockets=[bound])
"""


def with_news(source: Path, number: int, output: Path) -> Path:
    """Write a copy of an export with random news."""
    folder, rng = ExportFolder(source), np.random.default_rng(0)
    output.mkdir()
    names = [n for n in folder.manifest["files"] if n.startswith((USER_ENCODER, NEWS_ENCODER))]
    for name in [*names, TOKENIZER]:
        (output / name).write_bytes((source / name).read_bytes())
    real = folder.read_news().vectors[2:]
    vectors = real[rng.integers(0, len(real), number)]
    vectors = (vectors + 0.3 * real.std() * rng.standard_normal(vectors.shape)).astype(np.float32)
    columns = {
        "row": range(2, number + 2),
        "news_id": [f"N{i}" for i in range(number)],
        "title": [f"News number {i}" for i in range(number)],
        "category": [f"category{i % 18}" for i in range(number)],
        "subcategory": ["" for _ in range(number)],
        "text_hash": [f"{i:064x}" for i in range(number)],
    }
    write_news(StoredNews(pa.table(columns, NEWS_SCHEMA), with_unknown(vectors)), output)
    files = {name: file_hash(output / name) for name in [*names, TOKENIZER, NEWS, VECTORS]}
    manifest = folder.manifest | {"files": files}
    (output / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    return output


@contextmanager
def serving(command: list[str]) -> Iterator[tuple[int, int]]:
    """Start a server; yields its process and port."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = next(line for line in process.stdout if line.startswith("Serving"))
        port = int(line.split("http://127.0.0.1:")[1].split()[0])
        asyncio.run(until_ready(port))
        yield process.pid, port
    finally:
        process.terminate()
        process.wait()


async def until_ready(port: int) -> None:
    client = await Client.open(port)
    while await client.ask(request("GET", "/ready")) == 503:
        await asyncio.sleep(0.1)


def request(method: str, path: str, body: object = None) -> bytes:
    """Return a request as it is sent."""
    content = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n"
    return f"{head}Content-Type: application/json\r\n\r\n".encode() + content


class Client:
    """A connection that stays open."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, port: int) -> "Client":
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def ask(self, content: bytes) -> int:
        """Send a request, read the answer and return its status."""
        self.writer.write(content)
        head = (await self.reader.readuntil(b"\r\n\r\n")).lower()
        length = head.split(b"content-length: ")[1].split(b"\r\n", 1)[0]
        await self.reader.readexactly(int(length))
        return int(head[9:12])


def recommendations(ids: list[str], number: int = 512) -> list[bytes]:
    """Return requests for users with clicks on random news."""
    draw = random.Random(0)
    return [
        request("POST", "/recommend", {"history": draw.choices(ids, k=CLICKS), "k": 10})
        for _ in range(number)
    ]


def write_request(number: int, ids: list[str]) -> bytes:
    """Return a click or, every tenth time, a news item."""
    if number % 10 == 9:
        item = {"news_id": f"X{number % 500}", "title": f"Storm closes port {number}"}
        return request("POST", "/news", {"news": [item]})
    click = {
        "user_id": f"U{number % 1000}",
        "news_id": ids[number % len(ids)],
        "time": f"2026-11-26T{number // 3600 % 24:02}:{number // 60 % 60:02}:{number % 60:02}Z",
    }
    return request("POST", "/clicks", {"clicks": [click]})


def summary(seconds: list[float], wall: float) -> dict[str, float]:
    """Return requests a second and quantiles in milliseconds."""
    quantiles = np.quantile(seconds, [0.5, 0.95, 0.99]) * 1000
    found = dict(zip(("p50_ms", "p95_ms", "p99_ms"), quantiles.round(2).tolist(), strict=True))
    return {"requests": len(seconds), "per_second": round(len(seconds) / wall, 1)} | found


async def load(
    port: int, asked: list[bytes], clients: int, seconds: float, most: float = np.inf
) -> dict[str, float]:
    """Ask by clients that ask again when they are answered."""
    connections = [await Client.open(port) for _ in range(clients)]
    latencies: list[float] = []
    start = time.perf_counter()
    end = start + seconds

    async def run(client: Client, turn: int) -> None:
        while (began := time.perf_counter()) < end and len(latencies) < most:
            assert await client.ask(asked[turn % len(asked)]) == 200
            latencies.append(time.perf_counter() - began)
            turn += clients

    await asyncio.gather(*(run(client, turn) for turn, client in enumerate(connections)))
    return summary(latencies, time.perf_counter() - start)


async def load_with_writes(
    port: int, ids: list[str], clients: int, seconds: float
) -> dict[str, object]:
    """Ask while another client writes all the time."""
    writes: list[float] = []
    writer, start = await Client.open(port), time.perf_counter()

    async def write() -> None:
        while (began := time.perf_counter()) < start + seconds:
            assert await writer.ask(write_request(len(writes), ids)) == 200
            writes.append(time.perf_counter() - began)

    reads, _ = await asyncio.gather(load(port, recommendations(ids), clients, seconds), write())
    return {"reads": reads, "writes": summary(writes, time.perf_counter() - start)}


async def day(port: int, ids: list[str], seconds: float) -> dict[str, object]:
    """Ask what an hour of a newsroom asks, at the times it asks, in fewer seconds."""
    draw = random.Random(0)
    share = seconds / 60
    due = sorted(
        (draw.uniform(0, seconds), kind, number)
        for kind, count in HOUR.items()
        for number in range(round(count * share))
    )
    reads = recommendations(ids)
    waiting: asyncio.Queue[tuple[float, str, bytes]] = asyncio.Queue()
    latencies: dict[str, list[float]] = {kind: [] for kind in HOUR}
    failed = 0

    async def work(client: Client) -> None:
        nonlocal failed
        while True:
            at, kind, content = await waiting.get()
            # a news item may be deleted before it was added
            failed += await client.ask(content) not in (200, 404 if kind == "delete" else 200)
            latencies[kind].append(time.perf_counter() - at)
            waiting.task_done()

    clients = [asyncio.create_task(work(await Client.open(port))) for _ in range(64)]
    start = time.perf_counter()
    for after, kind, number in due:
        await asyncio.sleep(max(0.0, start + after - time.perf_counter()))
        content = {
            "recommend": lambda n: reads[n % len(reads)],
            "clicks": lambda n: write_request(10 * (n // 9) + n % 9, ids),
            "news": lambda n: write_request(10 * n + 9, ids),
            "delete": lambda n: request("DELETE", f"/news/X{(10 * n + 9) % 500}"),
        }[kind](number)
        waiting.put_nowait((start + after, kind, content))
    await waiting.join()
    wall = time.perf_counter() - start
    for client in clients:
        client.cancel()
    kinds = {kind: summary(found, wall) for kind, found in latencies.items() if found}
    return {"planned": len(due), "failed": failed, "seconds": round(wall, 1), **kinds}


def resident(pid: int) -> float:
    """Return the memory of a process in MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


async def memory(pid: int, port: int, ids: list[str], requests: int) -> dict[str, object]:
    """Return the memory after each tenth of the requests; every eighth one writes."""
    asked = recommendations(ids)
    for number in range(len(asked) // 8):
        asked[8 * number] = write_request(number, ids)
    found, latencies, start = [resident(pid)], 0, time.perf_counter()
    for _ in range(10):
        latencies += int((await load(port, asked, 8, 600, requests / 10))["requests"])
        found.append(resident(pid))
    wall = round(time.perf_counter() - start, 1)
    return {"requests": latencies, "seconds": wall, "resident_mib": found}


def product(vectors: np.ndarray, seconds: float) -> dict[str, float]:
    """Time the scores of all news for one user, and the best ten."""
    user, latencies, start = vectors[2:22].mean(0), [], time.perf_counter()
    while (began := time.perf_counter()) < start + seconds:
        np.argpartition(vectors @ user, -10)[-10:]
        latencies.append(time.perf_counter() - began)
    return summary(latencies, time.perf_counter() - start)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--export", type=Path, required=True, help="folder that export wrote")
    add("--news", type=int, help="news of a copy of the export; default: the export's")
    add("--parts", nargs="+", default=["latency", "day"], choices=("latency", "day", "memory"))
    add("--seconds", type=float, default=3.0, help="of each load")
    add("--day_seconds", type=float, default=60.0, help="in which the simulated hour passes")
    add("--requests", type=int, default=100_000, help="of the part memory")
    args = parser.parse_args()
    result: dict[str, object] = {"cpus": os.cpu_count(), "python": platform.python_version()}
    with tempfile.TemporaryDirectory() as folder:
        export = args.export
        if args.news:
            export = with_news(export, args.news, Path(folder) / "export")
        news = ExportFolder(export).read_news()
        ids = news.table["news_id"].to_pylist()
        result["news"] = len(ids)
        serve = [sys.executable, "-m", "newsrec", "serve", str(export), "--port=0", "--threads=1"]
        with serving([*serve, f"--store={folder}/store"]) as (pid, port):
            ask: Callable[..., dict[str, object]] = lambda job: asyncio.run(job)  # noqa: E731
            ask(load(port, recommendations(ids), 1, min(1.0, args.seconds)))  # warm up
            if "latency" in args.parts:
                result["recommend"] = {
                    n: ask(load(port, recommendations(ids), n, args.seconds)) for n in CLIENTS
                }
                result["with_writes"] = {
                    n: ask(load_with_writes(port, ids, n, args.seconds)) for n in CLIENTS
                }
            if "day" in args.parts:
                result["day"] = ask(day(port, ids, args.day_seconds))
            if "memory" in args.parts:
                result["memory"] = ask(memory(pid, port, ids, args.requests))
        if "latency" in args.parts:
            with serving([sys.executable, "-c", ECHO]) as (_, port):
                result["echo"] = {
                    n: ask(load(port, recommendations(ids), n, args.seconds)) for n in CLIENTS
                }
            result["product"] = product(np.ascontiguousarray(news.vectors), args.seconds)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
