"""Own data as Parquet through every command, and the recipes of docs/data.md."""

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
from newsrec.data.readers.mind import read_news
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
