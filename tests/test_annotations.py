"""Sentiments and named entities: how they are read, and messages about wrong values."""

import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import refused
from test_ebnerd import ARTICLES, articles
from test_ebnerd import write as write_ebnerd
from test_parquet import NEWS, contents, write

from newsrec.__main__ import main
from newsrec.data import store
from newsrec.data.dataset import open_mind
from newsrec.data.readers import annotations
from newsrec.data.readers.news_file import read_news
from newsrec.errors import UserError

NAMED = [["Ann Lee", "Rome", "Ann Lee"], None, [" Bo Ek ", "", None]]
TYPES = [["PER", "LOC", "PER"], [], ["PER", "PER", "PER"]]
ANN, ROME = {"name": "Ann Lee", "type": "PER"}, {"name": "Rome", "type": "LOC"}
BO = {"name": "Bo Ek", "type": "PER"}


def own(tmp_path, **columns):
    return open_mind(write(tmp_path, news=pa.table(NEWS | columns)))


def test_own_data_may_have_sentiments_and_entities(tmp_path):
    data = own(tmp_path, sentiment=[-1.0, None, math.nan], entities=NAMED, entity_types=TYPES)
    assert data.news["sentiment"].to_pylist() == [-1, None, None]
    assert data.news["entities"].to_pylist() == [[ANN, ROME, ANN], [], [BO]]
    assert contents(data)[0][0] == 1


@pytest.mark.parametrize("kind", [pa.list_, pa.large_list, pa.list_view])
@pytest.mark.parametrize("text", [pa.string(), pa.large_string(), pa.binary()])
def test_entities_may_be_lists_of_any_form(tmp_path, kind, text):
    names = [["Ann Lee"], [], None]
    data = own(tmp_path, entities=pa.array(names, kind(text)))
    assert data.news["entities"].to_pylist() == [[{"name": "Ann Lee", "type": None}], [], []]


@pytest.mark.parametrize("kind", [pa.int8(), pa.float64(), pa.float16()])
def test_sentiments_may_be_numbers_of_any_kind(tmp_path, kind):
    data = own(tmp_path, sentiment=pa.array(np.array([-1, 0, 1]), kind))
    assert data.news["sentiment"].type == pa.float32()
    assert data.news["sentiment"].to_pylist() == [-1, 0, 1]


@pytest.mark.parametrize(
    "columns",
    [
        {"sentiment": pa.nulls(3), "entities": pa.nulls(3)},
        {"sentiment": [math.nan] * 3, "entities": [[], None, []], "entity_types": [[], [], None]},
        {"entity_types": TYPES},
    ],
)
def test_annotated_columns_without_a_value_change_no_file(tmp_path, columns):
    found, bare = own(tmp_path / "found", **columns), own(tmp_path / "bare")
    for path in sorted(bare.cache.glob("*.*")):
        if path.name != "seal.json":
            assert (found.cache / path.name).read_bytes() == path.read_bytes(), path


def test_a_split_may_lack_annotations_that_another_has(tmp_path):
    write(tmp_path, news=pa.table(NEWS | {"sentiment": [0.5, 0.25, 0], "entities": NAMED}))
    more = {"news_id": ["N4"], "title": ["Four"], "category": ["a"], "abstract": [""]}
    write(tmp_path, news=more | {"entities": [["Ann Lee"]], "entity_types": [["PER"]]}, split="dev")
    news = open_mind(tmp_path).news
    assert news["sentiment"].to_pylist() == [0.5, 0.25, 0, None]
    assert news["entities"].to_pylist()[3] == [ANN]
    assert news["entities"].to_pylist()[0][0] == {"name": "Ann Lee", "type": None}


def annotated(**columns):
    """Return EB-NeRD's five articles with further columns."""
    table = articles()
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values))
    return table


def test_a_score_of_ebnerd_is_the_probability_of_its_label(tmp_path):
    labels = ["Positive", "negative", "Neutral", None, "Negative"]
    scores = pa.array([0.75, 0.5, 0.875, 0.5, None], pa.float32())
    clusters = [["Ann Lee", "Rome"], [], None, [], []]
    groups = [["PER", "LOC"], [], None, [], []]
    table = annotated(sentiment_score=scores, sentiment_label=labels, ner_clusters=clusters,
                      entity_groups=groups)  # fmt: skip
    news = open_mind(write_ebnerd(tmp_path / "whole", news=table)).news
    assert news["sentiment"].to_pylist() == [0.75, -0.5, 0, None, None]
    assert news["entities"].to_pylist() == [[ANN, ROME], [], [], [], []]
    bare = table.drop_columns(["sentiment_label"])  # a score says nothing without its label
    news = open_mind(write_ebnerd(tmp_path / "bare", news=bare)).news
    assert "sentiment" not in news.column_names
    found = read_news(tmp_path / "whole" / "articles.parquet")
    assert found.column_names == ["news_id", "category", "subcategory", "title", "abstract"]


def test_data_compiled_without_annotations_are_compiled_again(tmp_path, monkeypatch):
    root = write(tmp_path, news=pa.table(NEWS | {"sentiment": [0.5, 0.25, 0]}))
    monkeypatch.setattr(store.reader_of(root), "version", 0)
    old = open_mind(root).cache
    monkeypatch.undo()
    assert open_mind(root).cache != old


BROKEN = pa.ListArray.from_arrays([0, 1, 1, 1], pa.array([b"caf\xe9"]).view(pa.string()))
"""Lists of texts, as a careless writer leaves them."""


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"sentiment": [0.5, 1.5, 0]}, "row 1, column sentiment: not a number from -1 to 1: '1.5'"),
        ({"sentiment": [0.5, 0, -math.inf]}, "row 2, column sentiment: not a number from -1 to 1"),
        ({"sentiment": ["0.5", "0", "1"]}, "df['sentiment'].astype('float32') makes them"),
        ({"entities": ["Ann Lee", "", ""]}, "the column entities holds string, not lists of texts"),
        ({"entities": [[1], [2], []]}, "the column entities holds list<int64>, not lists of"),
        ({"entities": NAMED, "entity_types": [["PER"], [], TYPES[2]]},
         "row 0, column entity_types: not as many values as in entities: '1, not 3'"),
        ({"entities": NAMED, "entity_types": [None, [], TYPES[2]]}, "'0, not 3'"),
        ({"entities": [[b"\xff"], [], []]}, "row 0, column entities: not UTF-8"),
        ({"entities": BROKEN}, "row 0, column entities: not UTF-8: 'caf\ufffd'"),
        ({"entities": [["x" * 30] * 4, [], []]}, "row 0, column entities: over 1 MB of text"),
    ],
)  # fmt: skip
def test_a_wrong_annotation_is_named_or_left_out(tmp_path, capsys, monkeypatch, columns, said):
    monkeypatch.setattr(annotations, "LONGEST_TEXT", 100)
    root = write(tmp_path, news=pa.table(NEWS | columns))
    message = " ".join(refused(capsys, "prepare", "--data.root", root).split())
    assert said in message
    assert "news.parquet" in message
    if "row " in said:
        assert len(open_mind(root, "drop").news) == 2


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("sentiment_score", -0.25, "column sentiment_score: not a number from 0 to 1: '-0.25'"),
        ("sentiment_score", math.inf, "column sentiment_score: not a number from 0 to 1: 'inf'"),
        ("sentiment_label", "Mixed", "neither Positive, Neutral nor Negative: 'Mixed'"),
        ("entity_groups", ["PER"], "not as many values as in ner_clusters: '1, not 0'"),
    ],
)
def test_a_wrong_annotation_of_ebnerd_is_named(tmp_path, column, value, said):
    number = len(ARTICLES)
    values = {"sentiment_score": [0.5] * number, "sentiment_label": ["Positive"] * number,
              "ner_clusters": [["x"]] * 2 + [[]] * (number - 2),
              "entity_groups": [["PER"]] * 2 + [[]] * (number - 2)}  # fmt: skip
    values[column][3] = value
    root = write_ebnerd(tmp_path, news=annotated(**values))
    with pytest.raises(UserError, match=r"articles\.parquet, row 3") as refusal:
        open_mind(root)
    assert said in str(refusal.value)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Own data with sentiments and persons, beside a file of voices."""
    root = tmp_path_factory.mktemp("annotated")
    news = NEWS | {"sentiment": [0.1, -0.9, 0.5]}
    names = [["Ann Lee"], ["Bo Ek", "Rome"], ["Ann Lee", "Cy Ash"]]
    types = [["PER"], ["PER", "LOC"], ["PER", "PER"]]
    write(root, news=pa.table(news | {"entities": names, "entity_types": types}))
    rows = "name,group,minority,note\nAnn Lee,Reds,true,x\nBo Ek,Blues,false,\nOf Nobody,,,\n"
    (root / "voices.csv").write_text("\ufeff" + rows, encoding="utf-8")
    return root


def evaluated(world, output, *options):
    main(["evaluate", "--scorer=random", f"--data.root={world}", "--split=train",
          f"--output={output}", "--trainer.accelerator=cpu", *map(str, options)])  # fmt: skip
    return json.loads((output / "metrics.json").read_text())["beyond"]


def test_evaluate_compare_and_the_page_show_the_metrics_of_annotations(world, tmp_path, capsys):
    plain = evaluated(world, tmp_path / "plain", "--trade_off=true")
    said = " ".join(capsys.readouterr().out.split())
    assert "Representation counts persons by name" in said
    assert {"activation@5", "activation@10", "representation@10"} <= set(plain["metrics"])
    assert "activation@10" in plain["baselines"]["popularity"]
    assert "alternative_voices@10" not in plain["metrics"]
    whole = json.loads((tmp_path / "plain" / "metrics.json").read_text())
    assert "representation@10" in whole["trade_off"]["none"]
    voiced = evaluated(world, tmp_path / "voiced", f"--voices={world / 'voices.csv'}")
    said = " ".join(capsys.readouterr().out.split())
    assert "The news mention 2 of the 3 names in" in said
    assert "alternative voices" in said
    assert voiced["voices"]["found"] == 2
    assert "alternative_voices@5" in voiced["metrics"]
    page = (tmp_path / "voiced" / "report.html").read_text()
    assert "minority and majority voices from the candidates&#39;, 0 to 1. Neither more" in page
    table = pq.read_table(tmp_path / "voiced" / "per_impression.parquet")
    mean = np.nanmean(table["beyond/representation@5"].to_numpy())
    assert voiced["metrics"]["representation@5"]["value"] == pytest.approx(mean)
    plain_columns = pq.read_schema(tmp_path / "plain" / "per_impression.parquet").names
    assert "beyond/alternative_voices@5" not in plain_columns
    # The two count different groups, so metrics of voices are not compared; the others are.
    for other, named in (("plain", False), ("voiced", True)):
        main(["compare", str(tmp_path / "voiced"), str(tmp_path / other), "--json"])
        found = json.loads(capsys.readouterr().out)["beyond"]
        assert "activation@10" in found
        assert ("representation@10" in found) == named
    evaluated(world, tmp_path / "capped", "--per_category=1")
    assert "Activation" in (tmp_path / "capped" / "report.html").read_text()


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("absent.csv", None, "absent.csv: there is no such file. Name a file as docs/evaluate.md"),
        (".", None, "is no file. Write the names into a file, and name that."),
        ("v.txt", "name,group\nA,B\n", "the name ends in none of .csv, .json, .parquet."),
        ("v.csv", "person,group\nA,B\n", "has no column name, only person, group. It needs"),
        ("v.csv", "name,party\nA,B\n", "has no column group or minority, only name, party."),
        ("v.csv", "", "has no column name, since it has no columns. It needs"),
        ("v.csv", "name,group\n", "has no rows. Write a row for each name that counts."),
        ("v.csv", "name,group\nA,B\n,C\n", "the name in row 2 is empty."),
        ("v.csv", "name,group\nA,B\nC,B\n A,C\n", "the name in row 3 is 'A', as in row 1. Keep"),
        ("v.csv", "name,minority\nA,perhaps\n", "the minority in row 1 is 'perhaps'. Write true"),
        ("v.csv", "name,group\nA,\n", "has no value in group. Write at least one."),
        ("v.csv", 'name,group\n"A,B\n', "cannot be read as csv: unexpected end of data."),
        ("v.csv", b"name,group\n\xff,B\n", "cannot be read as csv:"),
        ("v.json", '{"A": "B"}', 'it is not a list of objects such as {"name": "Ann Lee",'),
        ("v.json", '[{"name": 5, "group": "B"}]', "the name in row 1 is 5, which is not text."),
        ("v.csv", "name,group\nA,B\nLee, Ann,C\n", "row 2 has more values than columns; quote"),
        ("v.csv", "name,group,group\nA,B,C\n", "it has two columns of one name."),
        ("v.json", '[{"name": "\\ud800", "group": "B"}]', "surrogates not allowed."),
        ("v.json", '[{"name": "A", "\\ud800": "B"}]', "surrogates not allowed."),
        ("v.json", "[" * 100_000, "cannot be read as json:"),
        ("v.parquet", "PAR1", "cannot be read as parquet:"),
    ],
)
def test_a_file_of_voices_that_cannot_be_used_is_named(world, tmp_path, capsys, name, text, said):
    path = tmp_path / name
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    place = [f"--data.root={world}", "--split=train", f"--output={tmp_path / 'out'}"]
    message = refused(capsys, "evaluate", "--scorer=random", *place, f"--voices={path}")
    assert said in " ".join(message.split())
    assert not (tmp_path / "out").exists()


def test_voices_without_metrics_beyond_accuracy_are_refused(world, tmp_path, capsys):
    message = refused(capsys, "evaluate", "--scorer=random", f"--data.root={world}",
                      "--split=train", f"--output={tmp_path / 'out'}", "--beyond=false",
                      f"--voices={world / 'voices.csv'}")  # fmt: skip
    assert "--beyond is false. Leave one of them out." in " ".join(message.split())
