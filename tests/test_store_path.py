"""Data folders in object stores: the arrays are those of the same files in a folder."""

import json
import os
import pickle
import random
import sys

import pyarrow.parquet as pq
import pytest
import test_clicks
import test_parts
from conftest import refused

from newsrec.__main__ import main
from newsrec.data import parts, store
from newsrec.data.dataset import open_mind
from newsrec.errors import UserError
from newsrec.report.inspection import next_command
from newsrec.serving.examples import Examples
from newsrec.shipped import data_folder
from newsrec.store_path import StorePath

fsspec = pytest.importorskip("fsspec")


@pytest.fixture
def memory(tmp_path, monkeypatch):
    """The file system ``memory://``, emptied; compiled arrays lie in ``cache``."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]
    return memory


@pytest.fixture
def own(memory, tmp_path, monkeypatch):
    """Data in a folder, whose path is returned, and the same at memory://own."""
    monkeypatch.setattr(parts, "PART_BYTES", 1)
    root = test_parts.write(tmp_path / "own")
    memory.put(str(root), "/own", recursive=True)
    return root


def compiled(root, engine=None, on_bad_line="error"):
    cache = open_mind(root, on_bad_line, engine).cache
    return cache.name, {path.name: path.read_bytes() for path in cache.iterdir()}


def test_the_arrays_are_those_of_the_same_files_in_a_folder(own, memory, tmp_path, monkeypatch):
    found = compiled("memory://own")
    assert found == compiled(own) == compiled(f"file://{own}")
    assert list((tmp_path / "cache" / "newsrec").glob(f"*/{found[0]}"))
    assert (own / ".newsrec" / found[0]).is_dir()
    assert not memory.glob("/own/.newsrec*")
    monkeypatch.setattr(store, "_compile", lambda *given: 1 / 0)
    assert compiled("memory://own/") == found


def test_changed_files_are_compiled_again(own, memory):
    before = compiled("memory://own")
    table = pq.read_table(own / "dev" / "impressions.parquet" / "0.parquet").slice(0, 4)
    with memory.open("/own/dev/impressions.parquet/0.parquet", "wb") as file:
        pq.write_table(table, file)
    pq.write_table(table, own / "dev" / "impressions.parquet" / "0.parquet")
    assert before != compiled("memory://own") == compiled(own)


def test_a_file_of_the_same_size_that_changed_is_noticed(own, memory):
    """memory:// tells no times, so the content is compared."""
    names, sizes = [], []
    table = pq.read_table(own / "train" / "news.parquet")
    for title in ("T1", "X1"):
        titles = [title if old == "T1" else old for old in table["title"].to_pylist()]
        with memory.open("/own/train/news.parquet", "wb") as file:
            pq.write_table(table.set_column(1, "title", [titles]), file, compression="none")
        sizes.append(memory.size("/own/train/news.parquet"))
        names.append(compiled("memory://own")[0])
    assert sizes[0] == sizes[1]
    assert names[0] != names[1]


def test_parts_are_read_by_other_processes(own, memory, monkeypatch):
    monkeypatch.setattr(StorePath, "in_memory", False)  # this process does their work

    def engine(job):
        yield from test_parts.backwards(pickle.loads(pickle.dumps(job)))

    assert compiled("memory://own", engine) == compiled(own)
    monkeypatch.undo()
    monkeypatch.setattr(
        "newsrec.data.dataset.find_or_compile", None
    )  # refused before anything is read
    with pytest.raises(UserError, match="own is in the memory of this process, which other proc"):
        open_mind("memory://own", engine=engine)


def test_clicks_and_their_sampling_are_read(memory, tmp_path):
    rng = random.Random(0)
    logs = {"train": test_clicks.log(rng, 60, 0), "dev": test_clicks.log(rng, 20, 60)}
    root = test_clicks.write(tmp_path / "own", logs)
    (root / "sampling.json").write_text(json.dumps({"negatives": 3}))
    memory.put(str(root), "/own", recursive=True)
    assert compiled("memory://own") == compiled(root)


def test_a_baseline_is_evaluated(own, memory, tmp_path, capsys):
    argv = ["evaluate", "--scorer", "popularity", "--split", "dev", "--beyond", "false"]
    for name, root in (("a", "memory://own"), ("b", str(own))):
        main([*argv, "--data.root", root, "--output", str(tmp_path / name)])
    one, other = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in "ab")
    assert one["auc"] == other["auc"]
    main(["inspect", "memory://own"])
    assert "--data.root memory://own" in capsys.readouterr().out


def test_files_are_found_as_pathlib_finds_them(memory, tmp_path):
    rng = random.Random(0)
    names = ("a", "b.parquet", "train", "MINDx_train", ".c", "news.parquet")
    for _ in range(30):
        folder = tmp_path.joinpath("tree", *rng.choices(names[:4], k=rng.randint(0, 3)))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / rng.choice(names)).write_text("x" * rng.randint(1, 9))
        except OSError:
            continue  # a file or folder of that name is there
    memory.put(str(tmp_path / "tree"), "/tree", recursive=True)
    root = data_folder("memory://tree/")
    assert isinstance(root, StorePath)
    for _ in range(200):
        words = rng.choices(names, k=rng.randint(0, 3))
        one, other = root, tmp_path / "tree"
        for word in words:
            one, other = one / word, other / word
        files = [path for path in other.rglob("*.parquet") if path.is_file()]
        assert one.is_file() is other.is_file()
        assert one.is_dir() is (other.is_dir() and any(p.is_file() for p in other.rglob("*")))
        assert (one.name, one.suffix, one.stem) == (other.name, other.suffix, other.stem)
        assert str(one.relative_to(root)) == str(other.relative_to(tmp_path / "tree"))
        assert str(one) == "/".join(["memory://tree", *words])
        if one.is_dir():
            for pattern in ("*", "MIND*_train", "*.parquet"):
                expected = [path.name for path in sorted(other.glob(pattern))]
                assert [path.name for path in one.glob(pattern)] == expected
            assert {str(path.relative_to(one)) for path in one.rglob("*.parquet")} == {
                str(path.relative_to(other)) for path in files
            }
        if one.is_file():
            assert one.stat().st_size == other.stat().st_size
            assert one.read_text() == other.read_text()
        assert pickle.loads(pickle.dumps(one)) == one


def test_a_damaged_file_is_named_by_its_address(own, memory, capsys):
    path = "/own/train/impressions.parquet/1.parquet"
    with memory.open(path, "wb") as file:
        file.write(b"news_id,title\n1,x\n")
    said = refused(capsys, "prepare", "--data.root", "memory://own")
    assert f"memory:/{path} is no Parquet file" in said
    table = pq.read_table(own / "train" / "impressions.parquet" / "1.parquet")
    with memory.open(path, "wb") as file:
        pq.write_table(table.drop_columns("user_id"), file)
    said = refused(capsys, "prepare", "--data.root", "memory://own")
    assert "has no column user_id" in said
    memory.rm(path)
    memory.rm("/own/dev/news.parquet")
    said = refused(capsys, "prepare", "--data.root", "memory://own")
    assert "memory://own/dev has no news.parquet" in said


def test_a_file_that_changes_while_it_is_read_is_refused(own, memory, monkeypatch):
    compile_splits = store.compile_splits

    def compile_and_change(*given):
        done = compile_splits(*given)
        with memory.open("/own/dev/news.parquet", "ab") as file:
            file.write(b"more")
        return done

    monkeypatch.setattr(store, "compile_splits", compile_and_change)
    with pytest.raises(UserError, match=r"memory://own/dev/news\.parquet changed while it was"):
        compiled("memory://own")
    assert not [path for path in os.scandir(store.cache_folders("memory://own")[0])
                if path.is_dir()]  # fmt: skip


@pytest.mark.parametrize(
    ("root", "said"),
    [
        ("memory://none", "There is nothing at memory://none. Check the address"),
        ("memory://own/train", "name the folder above, --data.root memory://own."),
        ("memory://mind", "memory://mind has no news.parquet, impressions.parquet or clicks."),
        ("memory://", "names no file or folder"),
        ("s3://KEY:HIDDEN@bucket/own", "--data.root s3://bucket/own has keys in its address"),
        (
            "abfss://c@account.dfs.core.windows.net/own?sv=1&sig=HIDDEN",
            "net/own has keys in its address",
        ),
        (
            "abfss://c@account.dfs.core.windows.net/own?client_secret=HIDDEN",
            "net/own has keys in its address",
        ),
        ("strange://own", "strange:// cannot be opened"),
        ("s3://bucket/my own", "has ' ', which an address cannot have. Write %20 in its place."),
        ("file:///tmp/ö", "has 'ö', which an address cannot have. Write %C3%B6 in its place."),
    ],
)
def test_what_cannot_be_read_is_told_in_a_sentence(own, memory, mind_dir, capsys, root, said):
    memory.put(str(mind_dir), "/mind", recursive=True)
    found = refused(capsys, "prepare", "--data.root", root)
    assert said in found
    assert "HIDDEN" not in found


@pytest.mark.parametrize(
    ("root", "said"),
    [
        ("strange://own", "error: strange://own: strange:// cannot be opened"),
        ("train", "name the folder above, {here}."),
        ("none", "writes a simulated one. Then give it as DIR."),
    ],
)
def test_messages_of_inspect_name_no_option_that_it_lacks(
    mind_dir, monkeypatch, capsys, root, said
):
    monkeypatch.chdir(mind_dir)
    found = refused(capsys, "inspect", root)
    assert said.format(here=".") in found
    assert "--data.root" not in found


@pytest.mark.parametrize(
    "argv", [["serve", "s3://own"], ["recommend", "s3://own", "--history", "N1"]]
)
def test_an_export_at_an_address_is_to_be_copied(capsys, argv):
    said = refused(capsys, *argv)
    assert "s3://own is an address, and an export must be a folder on this machine" in said
    assert "copy it here, for example by `aws s3 cp --recursive s3://own DIR`, and name" in said


def test_the_next_command_keeps_the_options_of_an_address(own, memory, tmp_path, capsys):
    main(["inspect", f"file://{tmp_path}/own"])
    assert f"--data.root {tmp_path}/own" in capsys.readouterr().out
    data = open_mind("memory://own")
    data.root.store.address += "?endpoint_override=host"
    assert "--data.root 'memory://own?endpoint_override=host'" in next_command(data)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["simulate", "--output", "s3://bucket/a"], "--output s3://bucket/a is an address"),
        (
            ["fit", "--config", "demo", "--output", "s3://bucket/a"],
            "--output s3://bucket/a is an address",
        ),
        (
            ["download", "small", "--accept-license", "--data.root", "s3://bucket/a"],
            "--data.root s3://bucket/a is an address",
        ),
    ],
)
def test_an_address_is_not_written_to_as_a_folder(tmp_path, monkeypatch, capsys, argv, said):
    monkeypatch.chdir(tmp_path)
    assert said in refused(capsys, *argv)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["--config", "--data"])
def test_a_config_at_an_address_that_cannot_be_opened_is_named(capsys, monkeypatch, option):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    said = refused(capsys, "fit", option, "s3://KEY:SECRET@bucket/a.yaml")
    assert "error: s3://bucket/a.yaml cannot be opened (Install s3fs" in said
    assert "SECRET" not in said
    assert "Copy the configuration file to this machine" in said


def test_options_in_a_config_at_an_address_are_read(memory, capsys):
    with memory.open("/configs/a.yaml", "w") as file:
        file.write("model:\n  max_tokens: 20\n")
    said = refused(capsys, "fit", "--config", "memory://configs/a.yaml")
    assert "memory://configs/a.yaml, line 2: model.max_tokens follows data.max_tokens" in said


@pytest.mark.parametrize("name", ["model.yaml", "../configs/model.yaml"])
def test_a_group_is_looked_for_beside_the_config_that_names_it(memory, capsys, name):
    with memory.open("/configs/b.yaml", "w") as file:
        file.write(f"data:\n  batch_size: 8\nmodel: {name}\n")
    said = refused(capsys, "fit", "--config", "memory://configs/b.yaml")
    assert "There is no configuration file at memory://configs/model.yaml." in said
    with memory.open("/configs/model.yaml", "w") as file:
        file.write("max_tokens: 20\n")
    said = refused(capsys, "fit", "--config", "memory://configs/b.yaml")
    assert "memory://configs/model.yaml, line 1: model.max_tokens follows data.max_tokens" in said


def test_an_error_of_a_config_at_an_address_does_not_show_its_keys(capsys):
    said = refused(capsys, "fit", "--config", "https://TOKEN@host.invalid/a.yaml?sig=SECRET")
    assert "error: https://host.invalid/a.yaml cannot be opened (" in said
    assert "TOKEN" not in said
    assert "SECRET" not in said


def test_a_service_takes_its_examples_from_an_address(own):
    assert Examples.of("memory://own")._users == Examples.of(own)._users
