"""``batch`` and ``prepare`` with files in an S3 server: ``pytest -m engines``."""

import hashlib
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest
import test_parts
from batch_world import write_export, write_users
from conftest import refused
from pyarrow import fs

from newsrec import filesystems
from newsrec.__main__ import main
from newsrec.data import parts
from newsrec.data import store as data_store
from newsrec.data.dataset import open_mind
from newsrec.serving.batch_run import run_batch

pytestmark = pytest.mark.engines
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
PER_PART = {"k": 7, "users_per_part": 100}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    write_export(root / "export", news=8_000)
    write_users(root / "users", sizes=(1000, 0, 1, 999), news=8_000)
    run_batch(root / "export", root / "users", root / "whole", **PER_PART)
    return root


@pytest.fixture(scope="module")
def server():
    """Return the host and port of an S3 server on this machine."""
    moto = pytest.importorskip("moto.server", reason='moto is missing: pip install "moto[server]"')
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"{host}:{port}"
    running.stop()


@pytest.fixture
def store(server, world, monkeypatch):
    """A bucket with the users alone; its server and keys are set by the environment."""
    for name, value in (KEYS | {"AWS_ENDPOINT_URL": f"http://{server}"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3, _ = fs.FileSystem.from_uri(address(server, "bucket") + "&allow_bucket_creation=true")
    s3.create_dir("bucket")
    s3.delete_dir_contents("bucket")
    fs.copy_files(str(world / "users"), "bucket/users", destination_filesystem=s3)
    return s3


def address(server, path, keys="key:secret@"):
    return f"s3://{keys}{path}?scheme=http&endpoint_override={server}&region=us-east-1"


def names(store, folder):
    found = store.get_file_info(fs.FileSelector(folder, recursive=True))
    return sorted(info.base_name for info in found if info.is_file)


def is_equal(store, folder, whole):
    """Return whether a folder in the store has exactly the files of a local one.

    A fingerprint of the users, with the times of their files, is in each file.
    """
    assert names(store, folder) == sorted(path.name for path in whole.iterdir())
    with store.open_input_file(f"{folder}/_manifest.json") as file:
        found = json.loads(file.read())
    local = json.loads((whole / "_manifest.json").read_text())
    for name in local["parts"]:
        table = pq.read_table(f"{folder}/{name}", filesystem=store)
        assert table.equals(pq.read_table(whole / name))
        with store.open_input_file(f"{folder}/{name}") as file:
            assert hashlib.sha256(file.read()).hexdigest() == found["parts"][name]
    differ = {"source", "users", "parts"}
    return {n: found[n] for n in found.keys() - differ} == {
        n: local[n] for n in local.keys() - differ
    }


def test_an_object_store_gets_the_same_files_as_a_folder(store, server, world, capsys):
    given = (world / "export", "s3://bucket/users", "s3://bucket/out")
    manifest = run_batch(*given, **PER_PART)
    assert is_equal(store, "bucket/out", world / "whole")
    assert pq.read_table("bucket/out", filesystem=store).num_rows == 2000
    argv = ["batch", str(given[0]), "--users", given[1], "--output", given[2], "-k", "7"]
    assert "is complete. Choose another --output" in refused(capsys, *argv)
    assert run_batch(*given, **PER_PART, resume=True) == manifest
    assert "other settings: -k was 7" in refused(capsys, *argv, "--resume", "-k", "8")
    capsys.readouterr()
    argv[3], argv[5] = address(server, "bucket/users"), address(server, "bucket/again/")
    main([*argv, "--users_per_part", "100"])
    said = "".join(capsys.readouterr())
    assert "s3://bucket/again has 2,000 users in 20 files." in said
    assert "secret" not in said
    assert is_equal(store, "bucket/again", world / "whole")
    with store.open_input_file("bucket/again/_manifest.json") as file:
        assert json.loads(file.read())["source"]["path"] == "s3://bucket/users"


def test_a_killed_run_leaves_only_whole_objects_and_is_resumed(store, world):
    argv = ["batch", str(world / "export"), "--users", "s3://bucket/users", "--output",
            "s3://bucket/killed", "-k", "7", "--users_per_part", "100"]  # fmt: skip
    run = subprocess.Popen([sys.executable, "-m", "newsrec", *argv])
    try:
        while len(names(store, "bucket") if run.poll() is None else ()) < 4 + 1 + 3:
            assert run.poll() is None
            time.sleep(0.02)
    finally:
        run.send_signal(signal.SIGKILL)
    run.wait(30)
    kept = names(store, "bucket/killed")
    assert 4 <= len(kept) < 20
    assert kept[0] == "_plan.json"
    for name in kept[1:]:
        assert pq.read_table(f"bucket/killed/{name}", filesystem=store).num_rows == 100
    main([*argv, "--resume"])
    assert is_equal(store, "bucket/killed", world / "whole")


def test_actors_of_ray_read_and_write_a_store(store, world):
    pytest.importorskip("ray", reason='ray is missing: pip install "newsrec[ray]"')
    run_batch(world / "export", "s3://bucket/users", "s3://bucket/ray", engine="ray", workers=2,
              **PER_PART)  # fmt: skip
    assert is_equal(store, "bucket/ray", world / "whole")


def test_errors_of_a_store_are_messages_without_keys(store, server, world, tmp_path, capsys):
    def said(users, output):
        start = time.monotonic()
        argv = ("batch", str(world / "export"), "--users", str(users), "--output", str(output))
        text = refused(capsys, *argv, "-k", "7")
        assert time.monotonic() - start < 30
        assert "secret" not in text
        return text

    out, users = tmp_path / "out", world / "users"
    assert "--users s3://none/users does not exist. Check the address." in said(
        "s3://none/users", out
    )
    assert "s3://bucket/none does not exist" in said("s3://bucket/none", out)
    assert "s3://none/out cannot be used: Bucket 'none' not found" in said(users, "s3://none/out")
    found = refused(capsys, "prepare", "--data.root", "s3://bucket/none")
    assert "There is nothing at s3://bucket/none. Check the address" in found
    with socket.socket() as silent:  # accepts connections, but never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        host = f"127.0.0.1:{silent.getsockname()[1]}"
        text = said(address(host, "bucket/users"), out)
        assert "s3://bucket/users cannot be used: " in text
        assert "Timeout was reached" in text
        assert "Check the address, network and keys" in text
    text = said(users, address(host, "bucket/out"))  # no server there any more
    assert "s3://bucket/out/_manifest.json cannot be used: " in text
    assert "Could not connect" in text
    assert not list(tmp_path.iterdir())


def test_an_incomplete_large_object_is_not_visible(store, world, monkeypatch):
    place = filesystems.find_place("s3://bucket/large", "--output")
    with place.write() as stream:
        stream.write(os.urandom(24 << 20))  # several parts
    assert place.info().size == 24 << 20
    stream = store.open_output_stream("bucket/half")
    stream.write(bytes(24 << 20))
    assert "half" not in names(store, "bucket")
    stream.close()


@pytest.fixture
def own(store, tmp_path, monkeypatch):
    """Data in a folder, whose path is returned, and the same at s3://bucket/own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(parts, "PART_BYTES", 1)
    root = test_parts.write(tmp_path / "own")
    fs.copy_files(str(root), "bucket/own", destination_filesystem=store)
    return root


def arrays(root, engine=None):
    cache = open_mind(root, engine=engine).cache
    found = cache.name, {path.name: path.read_bytes() for path in cache.iterdir()}
    shutil.rmtree(cache)
    return found


def test_data_in_a_store_are_compiled_as_those_in_a_folder(store, own, server, monkeypatch, capsys):
    expected = arrays(own)
    assert arrays("s3://bucket/own") == expected
    assert arrays(address(server, "bucket/own", keys="")) == expected
    assert arrays("s3://bucket/own", parts.make_engine("local", 3)) == expected
    main(["prepare", "--data.root", "s3://bucket/own"])
    assert "s3://bucket/own: 10 news items, 6 users" in capsys.readouterr().out
    monkeypatch.setattr(data_store, "hash_source", lambda file: 1 / 0)  # nothing is read again
    assert arrays("s3://bucket/own") == expected
    with store.open_output_stream("bucket/own/dev/news.parquet") as file:
        file.write(b"damaged")
    said = refused(capsys, "prepare", "--data.root", "s3://bucket/own")
    assert "s3://bucket/own/dev/news.parquet is no Parquet file" in said


def test_actors_of_ray_compile_data_in_a_store(store, own):
    pytest.importorskip("ray", reason='ray is missing: pip install "newsrec[ray]"')
    assert arrays("s3://bucket/own", parts.make_engine("ray", 2)) == arrays(own)


def test_data_in_a_silent_store_are_refused_in_seconds(store, own, capsys):
    start = time.monotonic()
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        host = f"127.0.0.1:{silent.getsockname()[1]}"
        said = refused(capsys, "prepare", "--data.root", address(host, "bucket/own", keys=""))
        assert "s3://bucket/own cannot be used: " in said
        assert "Check the address, network and keys" in said
        assert "s3://bucket/own has keys" in refused(
            capsys, "prepare", "--data.root", address(host, "bucket/own", "key:hidden@")
        )
    assert "s3://none/own cannot be used: " in refused(
        capsys, "prepare", "--data.root", "s3://none/own"
    )
    assert time.monotonic() - start < 60
