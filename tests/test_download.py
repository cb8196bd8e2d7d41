import io
import os
import re
import socket
import stat
import struct
import subprocess
import sys
import threading
import zipfile
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import SimpleNamespace

import filelock
import pytest
from huggingface_hub import close_session, constants
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from newsrec.__main__ import main
from newsrec.data.readers import download, official
from newsrec.data.readers.mind_files import find_splits
from newsrec.errors import UserError

TOKEN = "hf_right"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
REFUSED = "Access to dataset yjw1029/MIND is restricted"
LINES = {
    "MINDsmall_train": (3, 5),
    "MINDsmall_dev": (2, 4),
    "MINDlarge_train": (6, 9),
    "MINDlarge_dev": (4, 8),
    "MINDlarge_test": (5, 7),
}
VECTORS = os.urandom(300_000)  # so that a zip is larger than a socket's buffers


def lines(number, end=b"\n"):
    return b"\n".join(b"line" for _ in range(number)) + end


def members(name, folder=""):
    news, behaviors = LINES[name]
    return {
        f"{folder}news.tsv": lines(news),
        f"{folder}behaviors.tsv": lines(behaviors, end=b""),
        f"{folder}entity_embedding.vec": VECTORS,
    }


def zipped(contents):
    """Return the bytes of a zip; keys are names or ZipInfos."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for member, content in contents.items():
            archive.writestr(member, content)
    return buffer.getvalue()


class Hub(ThreadingHTTPServer):
    """Answers as the Hugging Face hub does for one gated dataset of zips."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {f"{name}.zip": zipped(members(name)) for name in LINES}
        self.tokens = {TOKEN: "accepted"}
        self.etags = {}
        self.claimed = {}  # sizes that HEAD names, where they are not the true ones
        self.cuts = defaultdict(list)  # for each GET of a file: bytes after which it breaks off
        self.resets = False  # break off with a reset rather than an end
        self.ignores_ranges = False
        self.fails = {}  # method: status, headers
        self.redirect = None
        self.seen = []  # method, file, Range, Authorization, revision

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.server_port}"

    def gets(self, file):
        return [ask[2] for ask in self.seen if ask[:2] == ("GET", file)]

    def handle_error(self, request, client_address):
        pass  # clients hang up


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        file = self.note()
        refusal = self.refusal(file)
        if refusal:
            return self.answer(*refusal)
        content = self.server.files[file]
        size = self.server.claimed.get(file, len(content))
        etag = self.server.etags.get(file, f"etag-of-{file}-{len(content)}")
        about = {"X-Repo-Commit": COMMIT, "X-Linked-Size": str(size), "X-Linked-Etag": f'"{etag}"'}
        return self.answer(200, about)

    def do_GET(self):
        file = self.note()
        if self.path.startswith("/cdn/"):  # a signed address: no token, and none wanted
            return self.send(file)
        refusal = self.refusal(file)
        if refusal:
            return self.answer(*refusal)
        if self.server.redirect:
            return self.answer(302, {"Location": f"{self.server.redirect}/cdn/{file}"})
        return self.send(file)

    def note(self):
        *_, revision, file = self.path.split("/")
        headers = (self.headers.get(name) for name in ("Range", "Authorization"))
        self.server.seen.append((self.command, file, *headers, revision))
        return file

    def refusal(self, file):
        if self.command in self.server.fails:
            return self.server.fails[self.command]
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        gated = {"X-Error-Code": "GatedRepo", "X-Error-Message": REFUSED}
        if not token:
            return 401, gated
        if token not in self.server.tokens:
            return 401, {"X-Error-Message": "Invalid credentials in Authorization header"}
        if self.server.tokens[token] == "not accepted":
            return 403, gated
        if self.server.tokens[token] == "fine-grained":
            return 403, {"X-Error-Message": "Please enable access to public gated repositories"}
        if not self.path.startswith("/datasets/yjw1029/MIND/resolve/"):
            return 404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
        if file not in self.server.files:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
        return None

    def answer(self, status, headers):
        self.send_response(status)
        for name, value in ({"Content-Length": "0"} | headers).items():
            self.send_header(name, value)
        self.end_headers()

    def send(self, file):
        content = self.server.files[file]
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        begin = int(wanted[1]) if wanted and not self.server.ignores_ranges else 0
        if begin and begin >= len(content):
            return self.answer(416, {"Content-Range": f"bytes */{len(content)}"})
        rest = content[begin:]
        self.send_response(206 if wanted and not self.server.ignores_ranges else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        cuts = self.server.cuts[file]
        if not cuts:
            return self.wfile.write(rest)
        self.wfile.write(rest[: cuts.pop(0)])
        self.wfile.flush()
        if self.server.resets:
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()
        else:
            self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True


@pytest.fixture
def hub(monkeypatch, tmp_path):
    server = Hub()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    template = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.endpoint + template)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-login"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(official, "LINES", LINES)
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    close_session()
    yield server
    server.shutdown()
    server.server_close()
    close_session()


@pytest.fixture
def root(tmp_path):
    return tmp_path / "mind"


def run(root, size="small"):
    main(["download", size, "--accept-license", "--data.root", str(root)])


def refused(capsys, *args, **kwargs):
    """Return what a failing run prints as its error."""
    with pytest.raises(SystemExit) as exit_:
        run(*args, **kwargs)
    assert exit_.value.code == 2
    return capsys.readouterr().err


def tree(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


SMALL = ["MINDsmall_dev.zip", "MINDsmall_train.zip"]


def test_small_lands_as_two_zips_and_nothing_else(hub, root, capsys):
    run(root)
    assert tree(root) == SMALL
    assert all((root / file).read_bytes() == hub.files[file] for file in SMALL)
    assert list(find_splits(root)) == ["train", "dev"]
    shown = capsys.readouterr().out
    assert COMMIT in shown
    assert "MINDsmall_train.zip: checked: 5 impressions, 3 news items" in shown
    assert f"python -m newsrec prepare --data.root {root}" in shown
    assert f"fit --config configs/mind_small_top2.yaml --data.root {root}" in shown


def test_the_token_goes_to_the_hub_and_one_revision_is_asked_for(hub, root):
    run(root)
    assert {authorization for *_, authorization, _ in hub.seen} == {f"Bearer {TOKEN}"}
    assert [revision for *_, revision in hub.seen] == ["main", COMMIT, COMMIT, COMMIT]


def test_the_token_does_not_follow_to_another_host(hub, root):
    hub.redirect = f"http://localhost:{hub.server_port}"
    run(root)
    assert tree(root) == SMALL
    assert [authorization for *_, authorization, revision in hub.seen if revision == "cdn"] == [
        None,
        None,
    ]


def test_large_has_a_test_split(hub, root, capsys):
    run(root, size="large")
    assert tree(root) == ["MINDlarge_dev.zip", "MINDlarge_test.zip", "MINDlarge_train.zip"]


def test_the_permissions_are_those_of_any_new_file(hub, root):
    run(root)
    (root / "other").touch()
    assert {stat.S_IMODE(path.stat().st_mode) for path in root.iterdir()} == {
        stat.S_IMODE((root / "other").stat().st_mode)
    }


@pytest.mark.slow
def test_the_command_runs_by_itself_against_hf_endpoint(hub, root):
    hub.files["MINDsmall_train.zip"] = zipped({"news.tsv": lines(3), "behaviors.tsv": lines(5)})
    environment = os.environ | {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0"}
    command = ["newsrec", "download", "small", "--accept-license", "--data.root", str(root)]
    done = subprocess.run(
        [sys.executable, "-m", *command], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2  # these are not MIND's own files
    assert "its news.tsv has 3 lines, not 51,282" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(root.rglob("*.zip"))


# What the hub refuses


def test_without_acceptance_nothing_is_asked(hub, root, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["download", "small", "--data.root", str(root)])
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert "Microsoft Research licence: non-commercial research, no redistribution" in error
    assert "https://msnews.github.io" in error
    assert f"python -m newsrec download small --accept-license --data.root {root}" in error
    assert not hub.seen
    assert not root.exists()


@pytest.mark.parametrize(
    ("token", "state", "words"),
    [
        (None, None, ["no token", download.PAGE, "export HF_TOKEN", "hf auth login"]),
        ("hf_wrong", None, ["refused the token in HF_TOKEN", "settings/tokens"]),
        ("hf_new", "not accepted", ["token is good", "click to agree", download.PAGE]),
        ("hf_fine", "fine-grained", ["fine-grained", "Please enable access", "settings/tokens"]),
        ("hf_…", None, ["token in HF_TOKEN is no token", "settings/tokens"]),
    ],
)
def test_a_refusal_says_what_to_click_and_set(hub, root, capsys, monkeypatch, token, state, words):
    monkeypatch.delenv("HF_TOKEN")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    if state:
        hub.tokens[token] = state
    error = refused(capsys, root)
    for word in [*words, f"python -m newsrec download small --accept-license --data.root {root}"]:
        assert word in error
    assert not token or token not in error
    assert not root.exists()


def test_the_token_of_a_login_is_used_and_named(hub, root, capsys, monkeypatch, tmp_path):
    (tmp_path / "login").write_text("hf_old\n")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "login"))
    monkeypatch.delenv("HF_TOKEN")
    assert "refused the token of `hf auth login`" in refused(capsys, root)
    hub.tokens["hf_old"] = "accepted"
    run(root)
    assert tree(root) == SMALL


def test_a_file_that_is_gone_is_named(hub, root, capsys):
    del hub.files["MINDsmall_dev.zip"]
    error = refused(capsys, root)
    assert "MINDsmall_dev.zip" in error
    assert download.PAGE in error
    assert not root.exists()  # asked for before anything is fetched


@pytest.mark.parametrize(
    ("status", "headers", "words"),
    [
        (503, {}, "answered 503"),
        (429, {"X-Error-Message": "Too many requests"}, "Too many requests"),
        (200, {}, "does not answer as the Hugging Face hub does"),
    ],
)
def test_other_answers_are_told_as_they_are(hub, root, capsys, status, headers, words):
    hub.fails["HEAD"] = (status, headers)
    assert words in refused(capsys, root)


def test_a_refused_connection_names_the_host(hub, root, capsys, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    template = f"{nobody}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "ENDPOINT", nobody)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    error = refused(capsys, root)
    assert f"no connection to {nobody}" in error
    assert "Run again: python -m newsrec download" in error


def test_offline_mode_is_named(hub, root, capsys, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "Unset it and run" in refused(capsys, root)
    assert not hub.seen


# Connections that break


@pytest.mark.parametrize("resets", [False, True])
def test_a_cut_connection_is_resumed_within_a_run(hub, root, resets):
    hub.resets = resets
    hub.cuts["MINDsmall_train.zip"] = [100_000, 50_000]
    run(root)
    begins = [int(r.removeprefix("bytes=").rstrip("-")) for r in hub.gets("MINDsmall_train.zip")]
    if not resets:  # a reset may overtake bytes under way
        assert begins == [0, 100_000, 150_000]
    assert len(begins) == 3
    assert begins == sorted(begins)
    assert (root / "MINDsmall_train.zip").read_bytes() == hub.files["MINDsmall_train.zip"]


def test_the_next_run_resumes_where_the_last_broke_off(hub, root, capsys):
    file = "MINDsmall_train.zip"
    hub.cuts[file] = [100_000] + [0] * (download.RETRIES + 1)
    error = refused(capsys, root)
    assert "kept. Run again: python -m newsrec download small" in error
    assert not (root / file).exists()
    hub.seen.clear()
    run(root)
    assert hub.gets(file) == ["bytes=100000-"]
    assert "0.1 MB already here" in capsys.readouterr().out
    assert tree(root) == SMALL
    assert (root / file).read_bytes() == hub.files[file]


def test_a_hub_that_fails_between_loses_nothing_either(hub, root, capsys):
    hub.cuts["MINDsmall_train.zip"] = [100_000]
    hub.redirect = "http://127.0.0.1:9"  # nobody listens
    assert "no connection" in refused(capsys, root)
    hub.redirect = None
    hub.fails["GET"] = (503, {})
    assert "answered 503" in refused(capsys, root)
    hub.fails.clear()
    run(root)
    assert tree(root) == SMALL


def test_another_build_of_a_zip_is_not_appended_to_the_first(hub, root, capsys):
    file = "MINDsmall_train.zip"
    hub.cuts[file] = [100_000] + [0] * (download.RETRIES + 1)
    refused(capsys, root)
    hub.files[file] = zipped(members("MINDsmall_train", "MINDsmall_train/"))
    hub.seen.clear()
    run(root)
    assert hub.gets(file) == ["bytes=0-"]
    assert tree(root) == SMALL


def test_a_server_without_ranges_sends_the_whole_again(hub, root):
    hub.ignores_ranges = True
    hub.cuts["MINDsmall_train.zip"] = [100_000]
    run(root)
    assert (root / "MINDsmall_train.zip").read_bytes() == hub.files["MINDsmall_train.zip"]


def test_answers_without_content_do_not_go_on_for_ever(hub, root, capsys):
    hub.fails["GET"] = (206, {})
    assert "MINDsmall_train.zip has 0 bytes, not 3" in refused(capsys, root)
    assert len(hub.gets("MINDsmall_train.zip")) == 1


@pytest.mark.parametrize("difference", [-1000, 1000])
def test_a_size_that_is_not_as_announced_is_refused(hub, root, capsys, difference):
    file = "MINDsmall_train.zip"
    hub.claimed[file] = len(hub.files[file]) + difference
    assert "bytes, not" in refused(capsys, root)
    assert not list(root.rglob("*.zip"))
    hub.claimed.clear()
    run(root)
    assert tree(root) == SMALL


def test_a_stop_between_files_leaves_the_first_and_the_next_run_fetches_the_rest(
    hub, root, monkeypatch
):
    fetch = download._fetch

    def stop_at_second(remote, root):
        if remote.name == "MINDsmall_dev":
            raise KeyboardInterrupt
        fetch(remote, root)

    monkeypatch.setattr(download, "_fetch", stop_at_second)
    with pytest.raises(SystemExit):
        run(root)
    assert [path.name for path in root.glob("*.zip")] == ["MINDsmall_train.zip"]
    monkeypatch.setattr(download, "_fetch", fetch)
    hub.seen.clear()
    run(root)
    assert {file for _, file, *_ in hub.seen} == {"MINDsmall_dev.zip"}
    assert tree(root) == SMALL


def test_a_stop_while_checking_does_not_fetch_again(hub, root, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(official, "_read_zip", stop)
        with pytest.raises(SystemExit):
            run(root)
    hub.seen.clear()
    run(root)
    assert hub.gets("MINDsmall_train.zip") == []
    assert tree(root) == SMALL


def test_two_downloads_into_one_folder_do_not_mix(hub, root, capsys):
    (root / ".download").mkdir(parents=True)
    with filelock.FileLock(root / ".download" / "lock"):
        assert "Another download is writing" in refused(capsys, root)
    run(root)
    assert tree(root) == SMALL


# Zips that are not what they should be


def damaged(content):
    """Return a zip with one byte of entity_embedding.vec changed."""
    place = content.index(VECTORS[:16]) + 1000
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def with_member(name, mode=0):
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return zipped(members("MINDsmall_train") | {info: b"/etc/passwd"})


GOOD = zipped(members("MINDsmall_train"))
BAD = {
    "truncated": (GOOD[:200_000], "cannot be read as a zip"),
    "no zip": (b"<html>Please log in</html>", "cannot be read as a zip"),
    "damaged": (
        damaged(GOOD),
        "(Bad CRC-32 for file 'entity_embedding.vec')",
    ),
    "lines": (
        zipped(members("MINDsmall_train") | {"behaviors.tsv": lines(4)}),
        "its behaviors.tsv has 4 lines, not 5",
    ),
    "split": (zipped(members("MINDsmall_dev")), "its news.tsv has 2 lines, not 3"),
    "missing": (zipped({"news.tsv": lines(3)}), "has no behaviors.tsv"),
    "twice": (
        zipped(members("MINDsmall_train") | members("MINDsmall_train", "copy/")),
        "Keep one of them",
    ),
    "up": (with_member("../evil"), "would unpack '../evil' outside its folder"),
    "up inside": (with_member("a/../../evil"), "would unpack 'a/../../evil' outside its folder"),
    "up news": (
        zipped({f"../{name}": text for name, text in members("MINDsmall_train").items()}),
        "has no news.tsv",
    ),
    "absolute": (with_member("/tmp/evil"), "would unpack '/tmp/evil' outside its folder"),
    "backslash": (with_member("..\\evil"), "outside its folder"),
    "drive": (with_member("C:\\evil"), "outside its folder"),
    "link": (with_member("link", stat.S_IFLNK | 0o777), "would unpack 'link' outside its folder"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_zip_is_refused_and_nothing_is_left_or_written_elsewhere(
    hub, root, capsys, tmp_path, kind
):
    content, words = BAD[kind]
    hub.files["MINDsmall_train.zip"] = content
    error = refused(capsys, root)
    assert words in error
    assert "It was deleted: run the command again." in error
    assert tree(tmp_path) in (
        ["mind", "mind/.download", f"mind/.download/{folder}", "mind/.download/lock"]
        for folder in [p.name for p in (root / ".download").iterdir()]
    )
    hub.files["MINDsmall_train.zip"] = GOOD
    run(root)
    assert tree(root) == SMALL


@pytest.mark.parametrize("kind", ["truncated", "damaged", "lines", "up"])
def test_a_bad_zip_that_was_there_is_not_taken_for_done(hub, root, capsys, kind):
    content, words = BAD[kind]
    root.mkdir()
    (root / "MINDsmall_train.zip").write_bytes(content)
    error = refused(capsys, root)
    assert words in error
    assert "Move or delete it" in error
    assert (root / "MINDsmall_train.zip").read_bytes() == content  # the user's, not ours to delete
    assert not hub.seen


def test_a_wrapper_folder_and_what_archivers_add_are_fine(hub, root):
    contents = members("MINDsmall_train", "MINDsmall_train/")
    extra = {"MINDsmall_train/": b"", "__MACOSX/news.tsv": b"x", "__MACOSX/._news.tsv": b"x"}
    hub.files["MINDsmall_train.zip"] = zipped(contents | extra)
    run(root)
    assert tree(root) == SMALL


part = st.one_of(
    st.sampled_from(["..", ".", "", "a", "C:", "news.tsv", "~", " ", "\0", "...", "é"]),
    st.text(max_size=4),
)
member_name = st.builds(
    lambda parts, separators: "".join(p + s for p, s in zip(parts, separators, strict=False)),
    st.lists(part, min_size=1, max_size=5),
    st.lists(st.sampled_from(["/", "\\", ""]), min_size=5, max_size=5),
)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(member_name, st.sampled_from([0, stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK]))
def test_what_is_accepted_stays_inside_wherever_it_is_unpacked(tmp_path, name, kind):
    info = zipfile.ZipInfo("x")
    info.filename = name.encode(errors="ignore").decode() or "x"
    info.external_attr = (kind | 0o644) << 16
    path = tmp_path / "MINDsmall_train.zip"
    path.write_bytes(zipped(members("MINDsmall_train") | {info: b""}))
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(official, "LINES", LINES)
            assert official.check(tmp_path, "MINDsmall_train") == path
    except UserError:
        pass
    else:
        for flavour in (PurePosixPath, PureWindowsPath):
            inside = flavour(info.filename)
            assert not inside.is_absolute()
            assert not inside.drive
            assert not inside.root
            assert ".." not in inside.parts
        assert kind != stat.S_IFLNK
    assert tree(tmp_path) == ["MINDsmall_train.zip"]


@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.data())
def test_a_zip_with_changed_bytes_is_refused_or_has_the_same_files(tmp_path, data):
    contents = {"news.tsv": lines(3), "behaviors.tsv": lines(5), "a.vec": bytes(range(40))}
    content = bytearray(zipped(contents))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path = tmp_path / "MINDsmall_train.zip"
    path.write_bytes(content)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(official, "LINES", LINES)
            assert official.check(tmp_path, "MINDsmall_train") == path
    except UserError:
        return
    with find_splits(tmp_path)["train"].behaviors.open() as file:
        assert file.read() == lines(5)


# What is there already, and where it cannot go


def unpack(place, name):
    place.mkdir(parents=True)
    for member, content in members(name).items():
        (place / member).write_bytes(content)


@pytest.mark.parametrize("folder", ["train", "MINDsmall_train"])
def test_an_unpacked_split_is_not_fetched_again(hub, root, capsys, folder):
    unpack(root / folder, "MINDsmall_train")
    run(root)
    assert f"already there as {root / folder}" in capsys.readouterr().out
    assert {file for _, file, *_ in hub.seen} == {"MINDsmall_dev.zip"}


def test_a_second_run_asks_the_hub_nothing(hub, root, capsys, monkeypatch):
    run(root)
    hub.seen.clear()
    monkeypatch.delenv("HF_TOKEN")
    run(root)
    assert capsys.readouterr().out.count("already there") == 2
    assert not hub.seen


def test_a_simulated_world_is_not_taken_for_mind(hub, root, capsys):
    unpack(root / "train", "MINDlarge_train")
    error = refused(capsys, root)
    assert f"{root / 'train'} is not MINDsmall_train: its news.tsv has 6 lines, not 3" in error
    assert "choose another --data.root" in error
    assert not hub.seen


def test_the_other_size_is_not_mixed_in(hub, root, capsys):
    run(root, size="large")
    error = refused(capsys, root)
    assert f"{root / 'MINDlarge_train.zip'} is not MINDsmall_train." in error
    assert "choose another --data.root" in error


def test_a_target_that_is_a_file_is_named(hub, root, capsys):
    root.write_text("mine")
    assert f"{root} cannot be used" in refused(capsys, root)
    assert root.read_text() == "mine"


def test_a_target_that_cannot_be_written_is_named(hub, root, capsys, monkeypatch):
    def read_only(self, *args, **kwargs):
        raise OSError(30, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "mkdir", read_only)
    assert "Read-only file system" in refused(capsys, root)


def test_too_little_room_is_said_before_anything_is_fetched(hub, root, capsys, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: SimpleNamespace(free=100_000))
    error = refused(capsys, root, size="large")
    assert "has 0.1 MB free; MINDlarge_train, MINDlarge_dev, MINDlarge_test need 0.9 MB" in error
    assert not any(method == "GET" for method, *_ in hub.seen)


def test_what_an_earlier_run_left_needs_no_room_again(hub, root, capsys, monkeypatch):
    hub.cuts["MINDsmall_train.zip"] = [250_000] + [0] * (download.RETRIES + 1)
    refused(capsys, root)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: SimpleNamespace(free=400_000))
    run(root)
    assert tree(root) == SMALL


def test_a_full_disk_is_said_and_what_fits_is_kept(hub, root, capsys, monkeypatch):
    class Full(io.BufferedWriter):
        def write(self, block):
            if self.tell() > 100_000:
                raise OSError(28, "No space left on device")
            return super().write(block)

    real = Path.open

    def open_(self, mode="r", *args, **kwargs):
        if mode == "ab":
            return Full(io.FileIO(self, "ab"))
        return real(self, mode, *args, **kwargs)

    with monkeypatch.context() as context:
        context.setattr(Path, "open", open_)
        assert "No space left on device" in refused(capsys, root)
    hub.seen.clear()
    run(root)
    assert hub.gets("MINDsmall_train.zip") != ["bytes=0-"]
    assert tree(root) == SMALL


def test_an_etag_does_not_choose_where_the_zip_grows(hub, root, tmp_path):
    hub.etags["MINDsmall_train.zip"] = "../../evil"
    run(root)
    assert tree(tmp_path) == ["mind", *(f"mind/{file}" for file in SMALL)]


def test_progress_bars_do_not_litter_a_log(hub, root, capsys):
    run(root)
    assert capsys.readouterr().err == ""


def test_help_says_where_the_zips_go(capsys, monkeypatch):
    with pytest.raises(SystemExit) as exit_:
        main(["download", "--help"])
    assert exit_.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "--accept-license" in shown
    assert "data/mind" in shown


def test_prepare_reads_what_was_downloaded(hub, mind_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(official, "LINES", {"MINDsmall_train": (14, 41), "MINDsmall_dev": (15, 23)})
    for split in ("train", "dev"):
        files = {file.name: file.read_bytes() for file in (mind_dir / split).iterdir()}
        hub.files[f"MINDsmall_{split}.zip"] = zipped(files)
    run(tmp_path / "downloaded")
    main(["prepare", "--data.root", str(tmp_path / "downloaded")])
    shown = capsys.readouterr().out
    assert "MINDsmall_dev.zip: checked: 23 impressions, 15 news items" in shown
    assert "17 news items" in shown
