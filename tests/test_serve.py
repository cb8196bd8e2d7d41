"""The command ``serve``: its processes, signals and exit codes."""

import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import refused

from newsrec.__main__ import main
from newsrec.errors import StoreError
from newsrec.serving.http_server import bind, run
from newsrec.serving.http_settings import Settings

IS_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
REPOSITORY = Path(__file__).parents[1]
SCRIPT = """
import atexit, sys
from newsrec.__main__ import main
atexit.register(lambda: print("torch" in sys.modules, "pandas" in sys.modules))
main(sys.argv[1:])
"""


def wait_for(condition, seconds):
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


class Process:
    """A process that serves."""

    def __init__(self, *options):
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, "serve", *map(str, options), "--port=0", "--threads=1"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
        )  # fmt: skip
        self.url = None
        for line in self.process.stdout:
            if line.startswith("Serving"):
                self.url = line.split()[3]
                break
        assert self.url, self.process.wait()
        self.port = int(self.url.rpartition(":")[2])
        wait_for(self.is_ready, 60)

    def is_ready(self):
        try:
            return self.ask("/ready")["status"] == "ready"
        except OSError:
            return False

    def ask(self, path, body=None, method=None):
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Connection": "close"}
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.load(answer) if path != "/metrics" else answer.read().decode()

    def end(self, sig=signal.SIGTERM):
        """Send a signal; return the exit code and what was printed."""
        self.process.send_signal(sig)
        printed, _ = self.process.communicate(timeout=30)
        return self.process.returncode, printed


@contextmanager
def serving(*options):
    process = Process(*options)
    try:
        yield process
    finally:
        process.process.kill()
        process.process.communicate()


@contextmanager
def half_sent(process, body):
    """Begin a request; yields the connection and the part of the body that is not sent yet."""
    with socket.create_connection(("127.0.0.1", process.port), timeout=20) as connection:
        head = f"POST /recommend HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        connection.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body[:5])
        time.sleep(0.3)  # until the server has read it
        yield connection, body[5:]


def test_sigterm_lets_a_request_be_answered_and_torch_is_never_imported(served, tmp_path):
    with serving(served.export, "--store", tmp_path / "store") as process:
        assert len(process.ask("/recommend", {"history": ["N1"], "k": 3})["news"]) == 3
        with half_sent(process, b'{"history": ["N1"]}') as (connection, rest):
            process.process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            with pytest.raises(OSError, match=r"refused|reset"):
                process.ask("/health")
            connection.sendall(rest)
            answer = connection.makefile("rb").read()
        assert answer.startswith(b"HTTP/1.1 200")
        assert b'"news"' in answer
        printed, _ = process.process.communicate(timeout=30)
        assert process.process.returncode == 0
        assert printed.splitlines()[-1] == "False False"
        assert "Traceback" not in printed


@pytest.mark.slow
def test_a_second_signal_ends_at_once(served, tmp_path):
    for workers in (1, 2):
        store = tmp_path / f"store{workers}"
        with (
            serving(served.export, "--store", store, "--workers", workers) as process,
            half_sent(process, b'{"history": ["N1"]}'),
        ):
            process.process.send_signal(signal.SIGTERM)
            time.sleep(1.5)
            assert process.process.poll() is None
            began = time.monotonic()
            assert process.end()[0] == 128 + signal.SIGTERM
            assert time.monotonic() - began < 5


@IS_LINUX
@pytest.mark.slow
def test_workers_see_each_others_writes_and_one_that_dies_is_replaced(served, tmp_path):
    with serving(served.export, "--store", tmp_path / "store", "--workers", 2) as process:
        asked = 0
        for i in range(40):  # each request is a connection of its own, which any worker takes
            item = {"news_id": f"X{i}", "title": f"Storm number {i}"}
            assert process.ask("/news", {"news": [item]})["added"] == 1
            ranked = process.ask("/rank", {"candidates": [f"X{i}", "N1"]})
            assert ranked["unknown_candidates"] == []
            click = {"user_id": "U", "news_id": f"X{i}", "time": f"2026-11-26T10:00:{i:02}Z"}
            assert process.ask("/clicks", {"clicks": [click]})["added"] == 1
            assert len(process.ask("/users/U")["clicks"]) == i + 1
            asked += 1
        counted = f'newsrec_requests_total{{method="POST",route="/rank",status="2xx"}} {asked}\n'
        assert all(counted in process.ask("/metrics") for _ in range(6))
        pids = workers_of(process.process.pid)
        assert len(pids) == 2
        os.kill(pids[0], signal.SIGKILL)
        wait_for(lambda: len(set(workers_of(process.process.pid)) - {pids[0]}) == 2, 30)
        assert process.ask("/users/U")["user_id"] == "U"
        assert counted in process.ask("/metrics")
        code, printed = process.end()
        assert code == 0
        assert "A worker ended with code -9; another is started." in printed
        assert "Traceback" not in printed


def workers_of(pid):
    """Return the processes that serve below a process, without the one that only tracks them."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
    return [int(c) for c in children if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]


@IS_LINUX
@pytest.mark.slow
def test_what_was_acknowledged_is_there_after_a_kill(served, tmp_path):
    """Kills in the middle of writes; whatever was answered is there afterwards.

    Workers end by themselves when the first process is killed.
    """
    acknowledged = []
    for turn in range(3):
        options = (served.export, "--store", tmp_path / "store", "--workers", 1 + turn % 2)
        with serving(*options) as process:
            workers = workers_of(process.process.pid)
            assert len(workers) == 2 * (turn % 2)
            for news_id in acknowledged:
                assert process.ask(f"/news/{news_id}")["title"] == f"Storm {news_id}"
                assert process.ask(f"/users/{news_id}")["clicks"]
            threads = [
                threading.Thread(target=write, args=(process, f"X{turn}-{t}", acknowledged))
                for t in range(3)
            ]
            for thread in threads:
                thread.start()
            goal = len(acknowledged) + 5
            wait_for(lambda goal=goal: len(acknowledged) >= goal, 30)
            process.end(signal.SIGKILL)
            for thread in threads:
                thread.join()
            wait_for(lambda pids=workers: not any(map(is_running, pids)), 20)


def is_running(pid):
    return Path(f"/proc/{pid}").exists()


def write(process, name, acknowledged):
    """Write news and clicks until the process is gone; note those that it acknowledged."""
    for i in range(10_000):
        news_id = f"{name}-{i}"
        item = {"news_id": news_id, "title": f"Storm {news_id}"}
        click = {"user_id": news_id, "news_id": news_id, "time": "2026-11-26T10:00:00Z"}
        try:
            process.ask("/news", {"news": [item]})
            process.ask("/clicks", {"clicks": [click]})
        except OSError:
            return
        acknowledged.append(news_id)


@pytest.mark.slow
def test_a_client_that_sends_too_much_still_reads_why(served, tmp_path):
    with serving(served.export, "--store", tmp_path / "store", "--max_body=10000") as process:
        with pytest.raises(urllib.error.HTTPError, match="413") as error:
            process.ask("/news", {"news": ["x" * 10**6] * 5})
        assert "10,000 bytes" in json.load(error.value)["error"]
        with socket.create_connection(("127.0.0.1", process.port), timeout=20) as connection:
            head = b"POST /news HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
            for _ in range(30):
                connection.sendall(b"400\r\n" + b" " * 1024 + b"\r\n")
            assert connection.recv(1000).startswith(b"HTTP/1.1 413")
        assert process.ask("/health")["status"] == "ok"


def test_a_port_that_is_taken_is_named(served, tmp_path, capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        said = refused(capsys, "serve", served.export, f"--store={tmp_path}", f"--port={port}")
    assert f"127.0.0.1, port {port}" in said
    assert "--port" in said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--port=70000"], "--port is 70000"),
        (["--host=no.such.host.invalid"], "no.such.host.invalid"),
        (["--workers=0"], "--workers is 0"),
        (["--max_k=0"], "--max_k is 0"),
        (["--retention_days=-1"], "--retention_days is -1"),
        (["--cors=example.org"], "--cors is 'example.org'"),
        (["--token_file=absent"], "absent"),
    ],
)
def test_a_wrong_option_is_named(served, tmp_path, capsys, options, words):
    assert words in refused(capsys, "serve", served.export, f"--store={tmp_path}", *options)


def test_what_is_missing_is_named(tmp_path, served, capsys, monkeypatch):
    assert "absent" in refused(capsys, "serve", tmp_path / "absent")
    assert "no manifest.json" in refused(capsys, "serve", tmp_path)
    (tmp_path / "token").touch()
    assert "is empty" in refused(capsys, "serve", served.export, "--token_file", tmp_path / "token")
    monkeypatch.setitem(sys.modules, "newsrec.serving.http_server", None)
    monkeypatch.delitem(sys.modules, "newsrec.serving.http_server")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    said = refused(capsys, "serve", served.export)
    assert 'pip install "newsrec[serve]"' in said


def test_an_answer_does_not_wait_for_the_packet_before_it():
    """asyncio sets TCP_NODELAY on connections of a socket that knows its protocol."""
    with bind("127.0.0.1", 0) as bound:
        assert bound.proto == socket.IPPROTO_TCP


def test_a_port_that_may_not_be_used_is_named(served, capsys, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    said = refused(capsys, "serve", served.export, "--port=80")
    assert "127.0.0.1, port 80: Permission denied. Ports below 1024" in said


def test_a_store_that_cannot_be_opened_ends_the_service_before_it_is_announced(served, tmp_path):
    (tmp_path / "file").write_text("no folder")
    announced = []
    with pytest.raises(StoreError, match=re.escape(str(tmp_path / "file"))):
        run(Settings(served.export, tmp_path / "file", port=0), announced.append)
    assert not announced


def test_everybody_is_warned_of_only_where_everybody_reaches_it(served, monkeypatch, capsys):
    asked = []
    import newsrec.serving.http_server as module

    monkeypatch.setattr(module, "run", lambda settings, announce: asked.append(settings))
    main(["serve", str(served.export)])
    assert "--token_file" not in capsys.readouterr().err
    main(["serve", str(served.export), "--host=0.0.0.0", "--max_k=7", "--cors", "https://A.org"])
    assert "--token_file" in capsys.readouterr().err
    assert asked[1].limits.k == 7
    assert asked[1].cors == ("https://a.org",)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.0.0.5"])
def test_loopback_addresses_are_known(host):
    assert Settings(Path("e"), host=host).is_local
    assert not Settings(Path("e"), host="10.0.0.1").is_local
    assert not Settings(Path("e"), host="::").is_local
