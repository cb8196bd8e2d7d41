"""The command ``batch`` in this process: whole or not at all, resumed, and every bad input."""

import contextlib
import errno
import json
import os
import shutil
import signal
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batch_world import users_of, write_export, write_users
from conftest import refused
from pyarrow import fs

from newsrec import filesystems, on_ray
from newsrec.__main__ import main
from newsrec.commands import batch as batch_command
from newsrec.commands import failures
from newsrec.errors import DataError, UserError
from newsrec.files import file_hash
from newsrec.serving import batch_engines, batch_files, batch_parts
from newsrec.serving.batch import RESULTS, BatchScorer
from newsrec.serving.batch_files import find_users, read_users
from newsrec.serving.batch_run import run_batch


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    write_export(root / "export")
    write_export(root / "other", seed=1)
    write_users(root / "users")
    return root


def batch(world, output, *more, users="users", export="export"):
    """Return the words of a command of small parts."""
    return ["batch", f"{world / export}", "--users", f"{world / users}", "--output", f"{output}",
            "-k", "5", "--users_per_part", "30", "--workers", "2", *more]  # fmt: skip


def rows_of(output):
    return pq.read_table(output).to_pylist()


@pytest.mark.parametrize("result", RESULTS)
def test_the_output_has_a_row_for_each_user_in_their_order(world, tmp_path, capsys, result):
    main(batch(world, tmp_path / "out", "--result", result))
    users = users_of(0, 103)
    assert rows_of(tmp_path / "out") == BatchScorer(world / "export", result, 5)(users).to_pylist()
    frame = pd.read_parquet(tmp_path / "out")
    assert frame["user_id"].tolist() == users["user_id"].to_pylist()
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files == ["_manifest.json", *(f"part-0000{i}.parquet" for i in range(4))]
    manifest = json.loads((tmp_path / "out" / "_manifest.json").read_text())
    assert manifest["counts"]["users"] == 103
    unknown = sum(frame["num_unknown_history"])
    assert manifest["counts"]["unknown_history"] == unknown > 0
    assert manifest["parts"] == {n: file_hash(tmp_path / "out" / n) for n in files[1:]}
    said = capsys.readouterr().out
    assert "103 users in 4 files" in said
    assert f"Ids of histories that are not in the export, left out: {unknown}." in said


@pytest.mark.parametrize("per_part", [7, 103, 1000])
def test_parts_of_every_size_have_the_same_rows(world, tmp_path, monkeypatch, per_part):
    monkeypatch.setattr(batch_files, "ROWS_AT_ONCE", 11)
    run_batch(world / "export", world / "users", tmp_path / "out", k=5, users_per_part=per_part)
    expected = BatchScorer(world / "export", k=5)(users_of(0, 103))
    assert rows_of(tmp_path / "out") == expected.to_pylist()


def stopping_after(monkeypatch, parts, error):
    """Let the local engine fail in the part after some."""
    real = batch_engines.score_part

    def score(job, number, *more):
        if number == parts:
            raise error
        return real(job, number, *more)

    monkeypatch.setattr(batch_engines, "score_part", score)


def test_sigterm_between_two_parts_says_how_to_go_on(world, tmp_path, monkeypatch, capsys):
    real = batch_engines.score_part

    def score(job, number, *more):
        if number == 2:
            signal.raise_signal(signal.SIGTERM)
        return real(job, number, *more)

    monkeypatch.setattr(batch_engines, "score_part", score)
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as at the start of the command
    try:
        with pytest.raises(SystemExit) as stop:
            main(batch(world, tmp_path / "out"))
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)
    assert stop.value.code == 128 + signal.SIGTERM
    kept = "out.unfinished keeps 2 of 4 parts. The same command with --resume continues.\n"
    assert capsys.readouterr().err == f"{tmp_path}/{kept}"


def test_a_stopped_run_leaves_no_output_and_goes_on_with_what_is_missing(
    world, tmp_path, monkeypatch, capsys
):
    main(batch(world, tmp_path / "whole"))
    with monkeypatch.context() as patch:
        stopping_after(patch, 2, KeyboardInterrupt)
        with pytest.raises(SystemExit) as stop:
            main(batch(world, tmp_path / "out"))
    assert stop.value.code == 130
    assert not (tmp_path / "out").exists()
    work = tmp_path / "out.unfinished"
    kept = "keeps 2 of 4 parts. The same command with --resume continues."
    assert kept in capsys.readouterr().err
    (work / "part-00001.parquet").write_bytes((work / "part-00001.parquet").read_bytes()[:-9])
    (work / ".part-00002.parquet.building-abcdefgh").write_bytes(b"half")
    assert "Continue it with --resume" in refused(capsys, *batch(world, tmp_path / "out"))
    scored = []
    real = batch_engines.score_part
    monkeypatch.setattr(batch_engines, "score_part", lambda *a: (scored.append(a[1]), real(*a))[1])
    main(batch(world, tmp_path / "out", "--resume"))
    assert scored == [1, 2, 3]  # the first part was whole
    assert not work.exists()
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()
    main(batch(world, tmp_path / "out", "--resume"))
    assert "is complete already" in capsys.readouterr().err
    assert "is not empty" in refused(capsys, *batch(world, tmp_path / "out"))
    said = refused(capsys, *batch(world, tmp_path / "out", "--resume", "-k", "6"))
    assert "-k was 5" in said


def test_resume_refuses_another_export_other_users_and_other_options(
    world, tmp_path, monkeypatch, capsys
):
    shutil.copytree(world / "users", tmp_path / "users")
    with monkeypatch.context() as patch:
        stopping_after(patch, 1, KeyboardInterrupt)
        with pytest.raises(SystemExit):
            main(batch(world, tmp_path / "out", users=tmp_path / "users"))
    again = {"users": tmp_path / "users", "export": "export"}
    before = sorted((tmp_path / "out.unfinished").iterdir())
    for change, more, told in (
        ({"export": "other"}, (), "the export is another one, or was changed"),
        ({"users": "users/0.parquet"}, (), "the users are others"),
        ({}, ("-k", "4"), "-k was 5"),
        ({}, ("--result", "vectors"), "--result was news"),
        ({}, ("--users_per_part", "31"), "--users_per_part was 30"),
        ({}, ("--exclude_history", "false"), "--exclude_history was True"),
    ):
        argv = batch(world, tmp_path / "out", "--resume", *more, **(again | change))
        assert told in refused(capsys, *argv)
    os.utime(tmp_path / "users" / "0.parquet", (1, 1))
    assert "written again" in refused(capsys, *batch(world, tmp_path / "out", "--resume", **again))
    assert sorted((tmp_path / "out.unfinished").iterdir()) == before


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b"{}"])
def test_a_damaged_plan_or_manifest_is_refused(world, tmp_path, capsys, content):
    for folder, name in (("out.unfinished", "_plan.json"), ("done", "_manifest.json")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_bytes(content)
        output = tmp_path / folder.partition(".")[0]
        said = refused(capsys, *batch(world, output, "--resume"))
        assert "is damaged. Remove" in said or "was written with other settings" in said
        assert [path.name for path in (tmp_path / folder).iterdir()] == [name]


def test_a_complete_output_with_a_lost_or_changed_part_is_refused(world, tmp_path, capsys):
    main(batch(world, tmp_path / "out"))
    part = tmp_path / "out" / "part-00002.parquet"
    part.write_bytes(part.read_bytes()[:-9])
    told = "part-00002.parquet is missing or was changed"
    assert told in refused(capsys, *batch(world, tmp_path / "out", "--resume"))
    part.unlink()
    assert told in refused(capsys, *batch(world, tmp_path / "out", "--resume"))


def test_a_resume_that_keeps_no_bad_rows_scores_their_parts_again(
    world, tmp_path, monkeypatch, capsys
):
    history = pa.array([["N1"]] * 20 + [None] + [["N1"]] * 60, pa.list_(pa.string()))
    table = pa.table({"user_id": [f"U{i}" for i in range(81)], "history": history})
    pq.write_table(table, tmp_path / "users.parquet")
    argv = batch(world, tmp_path / "out", users=tmp_path / "users.parquet")
    with monkeypatch.context() as patch:
        stopping_after(patch, 1, KeyboardInterrupt)
        with pytest.raises(SystemExit):
            main([*argv, "--on_bad_line", "drop"])
    assert "row 20, column history: null" in refused(capsys, *argv, "--resume")
    main([*argv, "--resume", "--on_bad_line", "drop"])
    assert len(rows_of(tmp_path / "out")) == 80
    assert "left out 1 rows" in refused(capsys, *argv, "--resume")


def test_users_that_change_while_the_command_runs_are_refused(world, tmp_path, monkeypatch, capsys):
    users = tmp_path / "users.parquet"
    pq.write_table(users_of(0, 60), users)
    real = batch_engines.score_part

    def score(*given):
        done = real(*given)
        pq.write_table(users_of(0, 60).rename_columns(["user_id", "clicks", "shown"]), users)
        return done

    monkeypatch.setattr(batch_engines, "score_part", score)
    said = refused(capsys, *batch(world, tmp_path / "out", users=users))
    assert "users.parquet was changed while the command ran" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", [0, 3000])
def test_users_that_are_cut_off_while_they_are_read_are_refused(tmp_path, size):
    """Arrow reads a row group of such a file as one without rows."""
    path = tmp_path / "users.parquet"
    pq.write_table(users_of(0, 100), path, row_group_size=20)
    rows = read_users(find_users(str(path), "news"), 0, 100)
    next(rows)
    os.truncate(path, size)
    with pytest.raises(DataError, match=r"users\.parquet"):
        list(rows)


def test_an_output_that_another_program_makes_meanwhile_costs_no_part(
    world, tmp_path, monkeypatch, capsys
):
    real = batch_engines.score_part

    def score(*given):
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / "theirs").touch()
        return real(*given)

    with monkeypatch.context() as patch:
        patch.setattr(batch_engines, "score_part", score)
        said = refused(capsys, *batch(world, tmp_path / "out"))
    assert "out is not empty. Remove it, and run the command again with --resume." in said
    shutil.rmtree(tmp_path / "out")
    monkeypatch.setattr(batch_engines, "score_part", None)  # nothing is scored again
    main(batch(world, tmp_path / "out", "--resume"))
    assert len(rows_of(tmp_path / "out")) == 103


@pytest.mark.parametrize("last", ["rename", "unlink"])
def test_a_run_that_is_stopped_at_its_very_end_loses_no_part(
    world, tmp_path, monkeypatch, capsys, last
):
    where = os if last == "rename" else Path
    real = getattr(where, last)

    def stop(path, *given, **options):
        if str(path).endswith((".unfinished", "_plan.json")):
            raise KeyboardInterrupt
        return real(path, *given, **options)

    with monkeypatch.context() as patch:
        patch.setattr(where, last, stop)
        with pytest.raises(SystemExit):
            main(batch(world, tmp_path / "out"))
    assert ("out.unfinished keeps 4 of 4 parts" in capsys.readouterr().err) == (last == "rename")
    monkeypatch.setattr(batch_engines, "score_part", None)  # nothing is scored again
    main(batch(world, tmp_path / "out", "--resume"))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not (tmp_path / "out" / "_plan.json").exists()
    assert len(rows_of(tmp_path / "out")) == 103


def test_a_resume_without_anything_to_go_on_with_starts_from_the_beginning(world, tmp_path, capsys):
    main(batch(world, tmp_path / "out", "--resume"))
    assert "There is nothing to resume" in capsys.readouterr().err
    assert len(rows_of(tmp_path / "out")) == 103


def bad(**columns):
    return pa.table({"user_id": ["U1", "U2"], "history": [["N1"], []]} | columns)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "is a folder without a .parquet file"),
        ({"a.txt": b"", "_b.parquet": b""}, "is a folder without a .parquet file"),
        ({"a.parquet": b""}, "a.parquet cannot be read as Parquet: it is empty"),
        ({"a.parquet": b"id,history\n" * 9}, "no Parquet file, whatever its name says"),
        ({"a.parquet": bad().drop("history")}, "has no column history"),
        ({"a.parquet": bad().rename_columns(["user", "history"])}, "Rename user"),
        ({"a.parquet": bad(history=["N1 N2", ""])}, "df['history'].str.split()"),
        ({"a.parquet": bad(history=[[["N1"]], []])}, "lists of ids (text or whole numbers)"),
        ({"a.parquet": bad(history=[{"a": "N1"}, None])}, "lists of ids (text or whole numbers)"),
        ({"a.parquet": bad(user_id=[0.5, 1.5])}, "the column user_id holds"),
        ({"a.parquet": bad().slice(0, 0)}, "has no rows"),
        ({"a.parquet": bad(), "b.parquet": bad(time=[1, 2])}, "b.parquet has the columns user_id, "
         "history, time, but"),
        ({"a.parquet": bad(time=[1, 2]), "b.parquet": bad(time=["1", "2"])},
         "b.parquet has the time type string, but"),
        ({"a.parquet": bad(history=[["N1"], None])},
         "a.parquet, row 1, column history: null; write an empty list instead: 'None'"),
        ({"a.parquet": bad(), "b.parquet": bad(user_id=["U1", None])},
         "b.parquet, row 1, column user_id: null, empty or not UTF-8"),
    ],
)  # fmt: skip
def test_users_that_cannot_be_read_are_refused_and_nothing_is_written(
    world, tmp_path, capsys, files, said
):
    (tmp_path / "users").mkdir()
    for name, content in files.items():
        if isinstance(content, bytes):
            (tmp_path / "users" / name).write_bytes(content)
        else:
            pq.write_table(content, tmp_path / "users" / name)
    assert said in refused(capsys, *batch(world, tmp_path / "out", users=tmp_path / "users"))
    assert [path.name for path in tmp_path.iterdir()] == ["users"]


def test_bad_rows_are_left_out_and_counted_if_asked(world, tmp_path, capsys):
    table = bad(history=[None, ["N1", "X", None]], user_id=pa.array([1, 2], pa.int64()))
    pq.write_table(table, tmp_path / "users.parquet")
    users = tmp_path / "users.parquet"
    main(batch(world, tmp_path / "out", "--on_bad_line", "drop", users=users))
    assert [(row["user_id"], row["num_unknown_history"]) for row in rows_of(tmp_path / "out")] == [
        ("2", 2)
    ]
    said = capsys.readouterr().out
    assert "Rows left out: 1." in said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--users", "nowhere"], "--users nowhere does not exist. Looked for"),
        (["--users", "strange://users"], "strange:// cannot be opened"),
        (["--users", ""], "--users is empty"),
        (["--users", "a\0b"], "--users holds a null character"),
        (["--users", os.devnull], f"{os.devnull} is neither a file nor a folder"),
        (["--output", ""], "--output is empty"),
        (["-k", "61"], "k is 61; it must be from 1 to the number of news, 60."),
        (["--workers", "0"], "--workers is 0"),
        (["--users_per_part", "0"], "--users_per_part is 0"),
        (["--engine", "ray", "--ray_address", " "], "--ray_address is empty. Give the address"),
        (["--engine", "spark", "--spark_master", ""], "--spark_master is empty"),
        (["--ray_address", "auto"], "--ray_address is for --engine ray, and --engine is local"),
        (["--result", "best"], "--result"),
        (["--engine", "dask"], "--engine"),
    ],
)
def test_options_that_cannot_be_are_refused(world, tmp_path, capsys, change, said):
    assert said in refused(capsys, *batch(world, tmp_path / "out"), *change)
    assert not list(tmp_path.iterdir())


def test_an_engine_that_is_not_installed_is_told_with_its_command(
    world, tmp_path, capsys, monkeypatch
):
    for engine, package, part in (("ray", "ray", "data"), ("spark", "pyspark", "sql")):
        for module in (package, f"{package}.{part}"):  # another test may have imported it
            monkeypatch.setitem(sys.modules, module, None)
        said = refused(capsys, *batch(world, tmp_path / "out", "--engine", engine))
        assert f'pip install "newsrec[{engine}]"' in said
        assert f"--engine {engine} needs the package {package}" in said


@pytest.mark.parametrize(
    "problem",
    [
        ConnectionError("Could not find any running Ray instance."),
        RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.1\n"),
    ],
)
def test_a_cluster_that_ray_cannot_use_is_told(problem):
    def init(**options):
        assert options["address"] == "auto"
        raise problem

    ray = SimpleNamespace(init=init, __version__="2.60.0")
    with pytest.raises(UserError) as error:
        on_ray.start_ray(ray, 2, "auto")
    said = str(error.value)
    assert said.startswith("--ray_address auto: Ray 2.60.0 cannot use this cluster (")
    assert " ".join(str(problem).split()).rstrip(".") in said


def test_a_cluster_that_cannot_be_reached_is_told_at_once():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}", "127.0.0.1:99999"):
        with pytest.raises(UserError, match=rf"^--ray_address {address}: Ray 1 cannot use"):
            on_ray.start_ray(SimpleNamespace(__version__="1"), 2, address)


def test_an_export_that_changed_on_the_way_is_refused(world, tmp_path, monkeypatch):
    monkeypatch.setattr(batch_parts, "export_hash", lambda export: "another")
    with pytest.raises(UserError, match="another export on this machine"):
        run_batch(world / "export", world / "users", tmp_path / "out")
    job = batch_parts.Job("export", "first", None, "", "news", 1, True, 1, "error")
    (line,) = batch_engines.PartScorer(job)(pa.table({"part": [3]}))["done"].to_pylist()
    assert json.loads(line)["number"] == 3
    assert "another export on this machine" in json.loads(line)["error"]


def test_an_output_among_the_users_is_refused(world, tmp_path, capsys):
    shutil.copytree(world / "users", tmp_path / "users")
    said = refused(capsys, *batch(world, tmp_path / "users" / "out", users=tmp_path / "users"))
    assert "would be read as users" in said
    assert len(list((tmp_path / "users").iterdir())) == 4


def test_an_output_in_the_export_is_refused(world, tmp_path, capsys):
    for output in (f"file://{world}/export/./out", f"{world}/other/../export"):
        assert "lies in the export" in refused(capsys, *batch(world, output))
    argv = batch(world, tmp_path / "out", export="export")
    argv[1] = "s3://KEY:SECRET@bucket/export"
    said = refused(capsys, *argv)
    assert "s3://bucket/export is an address, and an export must be a folder on this mach" in said
    assert "SECRET" not in said


@pytest.mark.parametrize(
    ("output", "users", "within"),
    [
        ("file:///a/b", "/a", True),
        ("/a/b", "file:///a/", True),
        ("local:///a/c/../b", "/a/b", True),
        ("/a/b", "/a/bc", False),
        ("memory://a/b", "memory:///a", True),
        ("memory://a/./b", "memory://c/../a/b", True),
        ("memory://ab", "memory://a", False),
        ("/a/b", "memory://a", False),
        ("gs://anonymous@b/x/out", "gcs://anonymous@b/./x", True),
        ("gs://anonymous@b/x", "memory://b", False),
    ],
)
def test_places_are_compared_however_they_are_written(output, users, within):
    place, folder = (filesystems.find_place(given, "--users") for given in (output, users))
    assert place.lies_in(folder) is within


def test_an_output_that_a_link_leads_to_the_users_is_refused(world, tmp_path, capsys):
    shutil.copytree(world / "users", tmp_path / "users")
    (tmp_path / "link").symlink_to(tmp_path / "users")
    for users, output in (("users", "link/out"), ("link", "users/out")):
        said = refused(capsys, *batch(world, tmp_path / output, users=tmp_path / users))
        assert "lies in --users" in said


def test_what_a_file_system_refuses_is_told_with_the_place(world, tmp_path, capsys):
    def refuse(*given):
        raise PermissionError(errno.EACCES, "Cannot open it")  # pyarrow's errors name no file

    refusing = SimpleNamespace(get_file_info=refuse, open_input_file=refuse)
    place = filesystems.Place(refusing, "users", "s3://users")
    for act in (place.info, place.files, place.read, place.hash):
        with pytest.raises(UserError, match=r"^s3://users cannot be used: Permission denied"):
            act()
    with pytest.raises(UserError, match=r"^users/1 cannot be used"):
        batch_files._parquet(place, "users/1").__enter__()
    with pytest.raises(FileNotFoundError), filesystems.named("there"):  # names its file
        (tmp_path / "nowhere").stat()
    pytest.importorskip("aiohttp")
    said = refused(capsys, *batch(world, "http://127.0.0.1:1/out"))
    assert "http://127.0.0.1:1/out cannot be used" in said


def test_names_of_parts_sort_as_their_numbers():
    users = batch_files.Users("", (("a", 100_002, ""),), "", (), None)
    job = batch_parts.Job("", "", users, "", "news", 1, True, 1, "error")
    names = [job.part_name(number) for number in (0, 9_999, 10_001, 100_001)]
    assert names == sorted(names)


def test_a_limit_of_the_system_is_not_taken_for_another_command(world, tmp_path, monkeypatch):
    """A process that cannot be started is the same error as a lock that another command holds."""
    stopping_after(monkeypatch, 0, BlockingIOError(errno.EAGAIN, "limit of processes"))
    with pytest.raises(BlockingIOError, match="limit of processes"):
        run_batch(world / "export", world / "users", tmp_path / "out", k=5)


def test_a_part_that_cannot_be_written_says_why(world, tmp_path, monkeypatch, capsys):
    def write(*given):  # as Arrow does
        raise OSError(errno.ENOSPC, "Error writing bytes to file. Detail: [errno 28] No space left")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", write)
    said = refused(capsys, *batch(world, tmp_path / "out"))
    reason = os.strerror(errno.ENOSPC)
    assert f"part-00000.parquet could not be written ({reason}). Check the disk there" in said
    assert not list(tmp_path.iterdir())


def test_an_output_that_another_command_writes_is_refused(world, tmp_path, capsys, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    with monkeypatch.context() as patch:
        stopping_after(patch, 1, KeyboardInterrupt)
        with pytest.raises(SystemExit):
            main(batch(world, tmp_path / "out"))
    handle = os.open(tmp_path / "out.unfinished", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    said = refused(capsys, *batch(world, tmp_path / "out", "--resume"))
    assert "Another command is writing" in said
    os.close(handle)


def test_users_and_output_may_lie_in_an_object_store(world, tmp_path, monkeypatch):
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    memory.put(str(world / "users"), "/in/users", recursive=True)
    run_batch(world / "export", world / "users", tmp_path / "plain", k=5, users_per_part=30)
    options = {"k": 5, "users_per_part": 30}
    stopping_after(monkeypatch, 2, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        run_batch(world / "export", "memory://in/users", "memory://out/a", **options)
    assert not memory.exists("/out/a/_manifest.json")
    monkeypatch.undo()
    with pytest.raises(UserError, match="Continue it with --resume"):
        run_batch(world / "export", "memory://in/users", "memory://out/a", **options)
    run_batch(world / "export", "memory://in/users", "memory://out/a", **options, resume=True)
    run_batch(world / "export", f"file://{world}/users", f"file://{tmp_path}/file", **options)
    names = sorted(path.rpartition("/")[2] for path in memory.ls("/out/a", detail=False))
    assert names == sorted(path.name for path in (tmp_path / "file").iterdir())
    rows = pq.read_table("/out/a", filesystem=memory).to_pylist()
    assert rows == rows_of(tmp_path / "plain") == rows_of(tmp_path / "file")
    with pytest.raises(UserError, match="is complete"):
        run_batch(world / "export", "memory://in/users", "memory://out/a", **options)


@pytest.mark.parametrize("kept", [0, 2])
def test_a_command_keeps_what_another_wrote_into_an_object_store(world, monkeypatch, kept):
    memory = pytest.importorskip("fsspec").filesystem("memory")
    memory.put(str(world / "users"), f"/two/{kept}/users", recursive=True)
    given = world / "export", f"memory://two/{kept}/users", f"memory://two/{kept}/out"
    options = {"k": 5, "users_per_part": 30}
    real = batch_engines.score_part

    def overtaken(*more):
        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            patch.setattr(batch_engines, "score_part", real)
            stopping_after(patch, kept, KeyboardInterrupt)  # a second command begins, and stops
            run_batch(*given, **options, resume=True)
        return real(*more)

    with monkeypatch.context() as patch:
        patch.setattr(batch_engines, "score_part", overtaken)
        with pytest.raises(UserError, match="Another command began to write memory://two/"):
            run_batch(*given, **options)
    names = ["_plan.json", "part-00000.parquet", "part-00001.parquet"]
    found = sorted(path.rpartition("/")[2] for path in memory.find(f"/two/{kept}/out"))
    assert found == (names if kept else [])
    run_batch(*given, **options, resume=True)
    assert pq.read_table(f"/two/{kept}/out", filesystem=memory).num_rows == 103


def test_a_write_that_fails_midway_leaves_no_object(world, monkeypatch):
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    bad = users_of(0, 50).set_column(1, "history", pa.array([["N1"]] * 49 + [None]))
    memory.makedirs("/bad", exist_ok=True)
    with memory.open("/bad/users.parquet", "wb") as stream:
        pq.write_table(bad, stream)
    monkeypatch.setattr(batch_files, "ROWS_AT_ONCE", 10)
    with pytest.raises(UserError, match="row 49, column history: null"):
        run_batch(world / "export", "memory://bad", "memory://whole/b", k=5, users_per_part=60)
    assert not memory.find("/whole")
    place = filesystems.find_place("memory://whole/b", "--output") / "part"
    with contextlib.suppress(KeyboardInterrupt), place.write() as stream:
        stream.write(b"half")
        raise KeyboardInterrupt
    assert not memory.find("/whole")
    monkeypatch.setattr(filesystems.mmap, "mmap", lambda *args, **options: object())
    with pytest.raises(TypeError), place.write() as stream:  # while it is sent
        stream.write(b"whole")
    assert not memory.find("/whole")


def test_only_the_local_engine_reads_users_in_memory(world, tmp_path):
    pytest.importorskip("fsspec")
    for users, output, option in (
        ("memory://u", tmp_path / "out", "--users"),
        (world / "users", "memory://out", "--output"),
    ):
        with pytest.raises(UserError, match=f"^{option} memory://.* workers of --engine ray"):
            run_batch(world / "export", users, output, engine="ray")


def test_messages_show_an_address_without_keys_and_options():
    for given, told in (
        ("s3://KEY:SECRET@bucket/out/?region=x&scheme=http", "s3://bucket/out"),
        ("s3://KEY:SECRET@bucket/out?region=x", "s3://bucket/out"),
        ("abfs://container@account.dfs.core.windows.net/out", None),
        ("gs://anonymous@bucket/out", None),
    ):
        place = filesystems.find_place(given, "--output")
        assert place.given == (told or given)
        assert (place / "a").given == f"{told or given}/a"
        assert place.path in ("bucket/out", "container/out")
    with pytest.raises(UserError) as error:
        filesystems.find_place("s3://KEY:SECRET@bucket/out?what=1", "--output")
    assert "--output s3://bucket/out: s3:// cannot be opened" in str(error.value)
    assert "SECRET" not in str(error.value)


def test_keys_given_in_the_wrong_place_are_not_shown(world, tmp_path, capsys, monkeypatch):
    for key, more in (
        ("s3://KEY:SECRET@bucket/users", ()),
        ("s3://KEY:SECRET@bucket/users", ("-k",)),
        ("s3:/KEY:SECRET@bucket/users", ("--users",)),
    ):
        said = refused(capsys, *batch(world, tmp_path / "out"), *more, key)
        assert "RET" not in said
        assert "bucket/users" in said
    monkeypatch.setattr(batch_command, "run_batch", lambda *given, **more: 1 / 0)
    monkeypatch.setattr(failures.tempfile, "mkdtemp", lambda **more: str(tmp_path))
    with pytest.raises(SystemExit):
        main(["batch", "e", "--users", "s3://KEY:SECRET@bucket/users", "--output", "o"])
    kept = (tmp_path / "traceback.txt").read_text()
    assert "--users s3://bucket/users" in kept
    assert "SECRET" not in kept + capsys.readouterr().err


def signed(monkeypatch, users):
    """Return the address of a file of users; fsspec's path of such a file is its whole address."""
    path = "http://host/users?token=SECRET"
    memory = pytest.importorskip("fsspec").filesystem("memory")
    with memory.open(path, "wb") as file:
        file.write(users) if isinstance(users, bytes) else pq.write_table(users, file)
    place = filesystems.Place(fs.PyFileSystem(fs.FSSpecHandler(memory)), path, "http://host/users")
    monkeypatch.setattr(batch_files, "find_place", lambda given, option: place)
    return path


@pytest.mark.parametrize(
    ("users", "said"),
    [
        (bad().drop("history"), "http://host/users has no column history"),
        (b"PAR1", "users cannot be read as Parquet"),
    ],
)
def test_messages_about_a_file_leave_out_the_options_of_its_address(monkeypatch, users, said):
    path = signed(monkeypatch, users)
    with pytest.raises(UserError) as error:
        batch_files.find_users(path, "news")
    assert said in str(error.value)
    assert "SECRET" not in str(error.value)


def test_rows_of_a_file_are_told_without_the_options_of_its_address(monkeypatch):
    found = batch_files.find_users(signed(monkeypatch, bad()), "news")
    assert [told for told, _ in batch_files.read_users(found, 0, 2)] == ["http://host/users"]


def test_what_a_file_system_says_of_an_address_is_told_without_its_options():
    said = r"^users cannot be used: no route to http://host/users\. Check"
    with pytest.raises(UserError, match=said), filesystems.named("users"):
        raise OSError("no route to http://KEY:SECRET@host/users?token=SECRET")


@pytest.mark.parametrize("given", ["s3://", "memory:///"])
def test_an_address_without_a_name_is_no_folder_here(given):
    with pytest.raises(UserError, match=f"--output {given[:-1].rstrip('/')}// names no file"):
        filesystems.find_place(given, "--output")


def test_a_history_of_very_many_clicks_is_read(world, tmp_path):
    clicks = [f"N{i % 60}" for i in range(200_000)]
    table = pa.table({"user_id": ["U"], "history": [clicks], "candidates": [["N1"]]})
    pq.write_table(table, tmp_path / "users.parquet")
    run_batch(world / "export", tmp_path / "users.parquet", tmp_path / "out", result="ranks")
    short = table.set_column(1, "history", pa.array([clicks[-6:]]))
    assert rows_of(tmp_path / "out") == BatchScorer(world / "export", "ranks")(short).to_pylist()
