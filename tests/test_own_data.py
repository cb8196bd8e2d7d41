"""Own data as Parquet through every command, and the recipes of docs/data.md."""

import json
import re
import zipfile
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from conftest import fit_options, refused
from test_parquet import NEWS, contents

import newsrec as nr
from newsrec.__main__ import main
from newsrec.data.dataset import open_mind
from newsrec.data.readers.news_file import read_news
from newsrec.data.readers.to_parquet import mind_to_parquet
from newsrec.errors import UserError

PAGE = Path(__file__).parents[1] / "docs" / "data.md"


def recipe(marker):
    """Return the block of Python in docs/data.md that holds ``marker``."""
    (found,) = [
        block
        for block in re.findall(r"```py\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
        if marker in block
    ]
    return found


def test_the_same_rows_train_to_the_same_bits_and_rank_alike(mind_dir, plm_dir, tmp_path, capsys):
    roots = {"tsv": mind_dir, "parquet": tmp_path / "own"}
    mind_to_parquet(mind_dir, roots["parquet"])
    weights, ranks, states = [], [], []
    for name, root in roots.items():
        options = fit_options(root, plm_dir, tmp_path / name)
        main([*options, "--trainer.max_epochs=1", "--seed_everything=1"])
        best = tmp_path / name / "checkpoints" / "best.ckpt"
        weights.append(torch.load(best, weights_only=True)["state_dict"])
        split = ["--data.root", str(root), "--split", "test"]
        output = tmp_path / f"{name}-test"
        options = ["--ckpt_path", str(best), "--trainer.accelerator=cpu"]
        main(["evaluate", *options, *split, "--output", str(output)])
        main(["check-submission", str(output / "prediction.zip"), *split])
        with zipfile.ZipFile(output / "prediction.zip") as archive:
            ranks.append(archive.read("prediction.txt"))
        states.append({path.name for path in (root / ".newsrec").glob("states-*")})
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name
    assert ranks[0] == ranks[1]
    assert states[0] == states[1] != set()  # kept by the content of texts, whatever the format
    assert capsys.readouterr().out.count("would be accepted") == 2


def frames():
    """Return a log with a row for each news item shown, histories and news."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(6):
        for position, news in enumerate(rng.permutation(3)):
            time = datetime(2019, 11, 9) + timedelta(hours=number)
            user, clicked = f"U{number % 4}", position == number % 2
            rows.append((number, user, time, position, f"N{news + 1}", clicked))
    names = ["impression_id", "user_id", "time", "position", "news_id", "clicked"]
    log = pd.DataFrame(rows, columns=names)
    history = pd.DataFrame({"user_id": ["U0", "U1", "U2"], "history": [["N1", "N2"], [], ["N3"]]})
    return log, history, pd.DataFrame(NEWS)


def expected_of(log, history):
    """Return the impressions of a log, by a loop."""
    known = dict(zip(history["user_id"], history["history"], strict=True))
    found = {}
    for number, user, time, _, news, clicked in log.sort_values("position").itertuples(index=False):
        row = found.setdefault(number, (number, user, time, known.get(user, []), [], []))
        row[4].append(news)
        row[5].append(int(clicked))
    return [found[number] for number in sorted(found)]


@pytest.mark.parametrize("library", ["pandas", "polars", "duckdb"])
def test_the_recipe_writes_what_the_log_says(tmp_path, library):
    module = pytest.importorskip(library)
    log, history, news = frames()
    (tmp_path / "train").mkdir()
    markers = {"pandas": "to_parquet(f", "polars": "write_parquet", "duckdb": "duckdb.sql"}
    shuffled = log.sample(frac=1, random_state=0)
    given = {"log": shuffled, "history": history, "news": news}
    if library == "polars":
        given = {name: module.from_pandas(frame) for name, frame in given.items()}
    exec(recipe(markers[library]), given | {"root": tmp_path, "duckdb": module})
    assert contents(open_mind(tmp_path)) == expected_of(log, history)


@pytest.mark.engines
def test_the_recipe_for_spark_writes_what_the_log_says(tmp_path):
    sql = pytest.importorskip("pyspark.sql")
    session = sql.SparkSession.builder.master("local[1]")
    for name, value in {
        "spark.ui.enabled": "false",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.shuffle.partitions": "2",
    }.items():
        session = session.config(name, value)
    spark = session.getOrCreate()
    try:
        log, history, news = frames()
        shuffled = log.sample(frac=1, random_state=0)
        frames_of = {"log": shuffled, "history": history, "news": news}
        given = {name: spark.createDataFrame(frame) for name, frame in frames_of.items()}
        exec(recipe("F.sort_array"), given | {"root": tmp_path, "F": sql.functions})
    finally:
        spark.stop()
    assert contents(open_mind(tmp_path)) == expected_of(log, history)


def test_the_lines_for_mind_turn_it_into_parquet(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["simulate", "--output", "data/demo", "--preset", "demo"])
    exec(recipe("mind_to_parquet"), {})
    main(["simulate", "--output", "data/example", "--preset", "demo", "--format", "parquet"])
    for path in Path("data/demo-parquet").glob("*/*.parquet"):
        other = Path("data/example") / path.relative_to("data/demo-parquet")
        assert pq.read_table(path).equals(pq.read_table(other))
    assert not [*Path("data/example").glob("*/*.tsv")]


def test_an_unknown_format_is_named(tmp_path, capsys):
    assert "mind" in refused(capsys, "simulate", "--output", tmp_path / "x", "--format", "csv")


def test_the_recipe_for_adressa_makes_clicks(tmp_path):
    day = 1483225200  # seconds, as Adressa has them
    events = [
        {"eventId": 1, "userId": "cx:a", "id": "n1", "title": "En", "category1": "sport|fotball"},
        {"eventId": 2, "userId": "cx:a", "url": "http://adressa.no"},  # the front page
        {"eventId": 3, "userId": "cx:b", "id": "n2", "title": "To", "category1": "nyheter"},
        {"eventId": 4, "userId": "cx:b", "id": "n1", "title": "En", "category1": "sport|fotball"},
        {"eventId": 5, "userId": "cx:b", "id": "n1", "title": "En", "category1": "sport|fotball"},
        {"eventId": 6, "userId": "cx:a", "id": "n2", "title": "To", "category1": "nyheter"},
    ]
    (tmp_path / "log").mkdir()
    for i, event in enumerate(events):
        line = json.dumps(event | {"time": day + 60 * i + 86400 * (i == 5)})
        with (tmp_path / "log" / f"2017010{1 + (i == 5)}").open("a") as file:
            file.write(line + "\n")
    given = {"pd": pd, "Path": Path, "source": tmp_path / "log", "root": tmp_path / "own"}
    exec(recipe('"category1"'), given)
    data = open_mind(tmp_path / "own")
    clicked = {
        split: [(user, row[-2:]) for _, user, _, *row in contents(data, split)]
        for split in ("train", "dev")
    }
    assert [user for user, _ in clicked["train"]] == ["cx:a", "cx:b", "cx:b"]
    assert [user for user, _ in clicked["dev"]] == ["cx:a"]
    assert contents(data, "dev")[0][3] == ["n1"]
    assert data.news.to_pylist()[0] == {
        "news_id": "n1", "category": "sport", "subcategory": "fotball", "title": "En",
        "abstract": "",
    }  # fmt: skip


def test_the_recipe_for_pens_makes_impressions(tmp_path):
    heading = "News ID\tCategory\tTopic\tHeadline\tNews body\tTitle entity\tEntity content\n"
    news = "".join(f'N{i}\tc\tt\t"Head {i}\tBody {i}\t{{}}\t{{}}\n' for i in range(1, 6))
    (tmp_path / "news.tsv").write_text(heading + news)
    rows = [
        ("U1", "6/19/2019 5:10:01 AM", "N1 N2", "N3 N4 N5", "N5 N4"),
        ("U2", "6/19/2019 6:10:01 PM", "N3", "N1", ""),
    ]
    text = "".join("\t".join(row) + "\n" for row in [("uID", "tmp", "clk", "uclk", "his"), *rows])
    for split in ("train", "dev"):
        (tmp_path / f"{split}.tsv").write_text(text)
    exec(recipe("rng.permutation"), {"pd": pd, "np": np, "source": tmp_path, "root": tmp_path})
    data = open_mind(tmp_path)
    for found, (user, _, clicked, skipped, history) in zip(contents(data), rows, strict=True):
        assert (found[1], found[3]) == (user, history.split())
        labels = dict(zip(found[4], found[5], strict=True))
        assert labels == dict.fromkeys(clicked.split(), 1) | dict.fromkeys(skipped.split(), 0)
    assert contents(data)[1][2] == datetime(2019, 6, 19, 18, 10, 1)
    assert data.news["title"][0].as_py() == '"Head 1'


@pytest.mark.slow  # trains and exports
def test_ten_lines_lead_from_a_data_frame_to_a_recommendation(
    tmp_path, plm_dir, monkeypatch, capsys, caplog
):
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO")
    rng = np.random.default_rng(0)
    clicks = pd.DataFrame(
        {
            "user_id": rng.integers(0, 30, 400),
            "time": pd.Timestamp("2019-11-09") + pd.to_timedelta(rng.integers(0, 72, 400), "h"),
            "news_id": [f"N{i}" for i in rng.integers(1, 40, 400)],
        }
    )
    news = pd.DataFrame({"news_id": [f"N{i}" for i in range(1, 40)]})
    news["title"] = "Title of " + news["news_id"]
    given = {
        "clicks": clicks,
        "news": news,
        "day": pd.Timestamp("2019-11-11"),
        "root": tmp_path / "own",
    }
    read = {"plm": str(plm_dir), "max_tokens": 12}
    shape = {"heads": 2, "ffn": 16}
    small = read | {"dim": 16, "news": shape, "user": shape, "precision": "fp32"}
    trainer = {"max_epochs": 1, "accelerator": "cpu", "devices": 1, "enable_progress_bar": False}
    monkeypatch.setattr(nr, "RecommenderModule", partial(nr.RecommenderModule, **small))
    monkeypatch.setattr(nr, "MindDataModule", partial(nr.MindDataModule, **read))
    monkeypatch.setattr(nr, "fit", partial(nr.fit, **trainer))
    block = recipe("Recommender.load")
    exec(block, given)
    said = capsys.readouterr().out
    assert "skipped news of dev were drawn" in said
    assert "drawn at random, not shown" in " ".join(f"{said} {caplog.text}".split())
    (found,) = re.findall(r"^\[.*\]$", said, re.MULTILINE)
    assert len(set(re.findall(r"'(N\d+)'", found))) == 5
    main(["recommend", "exports/own", "--history", "N1", "N2", "-k", "3"])
    pd.DataFrame({"news_id": [7.5], "title": ["x"]}).to_parquet("wrong.parquet")
    refused(capsys, "encode-news", "exports/own", "--news", "wrong.parquet", "--output", "more")
    pd.DataFrame({"news_id": [99], "title": ["Fresh"]}).to_parquet("new.parquet")
    main(["encode-news", "exports/own", "--news", "new.parquet", "--output", "more"])
    main(["recommend", "more", "--history", "99", "-k", "3"])


def test_news_to_encode_may_be_parquet(tmp_path):
    path = tmp_path / "news.parquet"
    pd.DataFrame(NEWS).to_parquet(path)
    assert read_news(path)["title"].to_pylist() == NEWS["title"]
    pd.DataFrame(NEWS | {"news_id": ["N1", "", "N3"]}).to_parquet(path)
    with pytest.raises(UserError, match=r"row 1, column news_id: null or empty: ''\. Correct the"):
        read_news(path)
    assert read_news(path, "drop")["news_id"].to_pylist() == ["N1", "N3"]
