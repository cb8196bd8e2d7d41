"""Own data as Parquet: each row is read or reported, and gives the arrays that TSV would give."""

import math
import re
import shutil
import subprocess
import sys
import uuid
import zipfile
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe
import pytest
from conftest import refused, write_mind
from hypothesis import given, settings
from hypothesis import strategies as st

from newsrec.__main__ import main
from newsrec.data.dataset import open_mind
from newsrec.data.readers import parquet_columns, parquet_table
from newsrec.data.readers.formats import reader_of
from newsrec.data.readers.parquet_columns import as_seconds, as_text
from newsrec.data.readers.to_parquet import mind_to_parquet
from newsrec.errors import UserError

NEWS = {
    "news_id": ["N1", "N2", "N3"],
    "title": ["One", "Two", "Three"],
    "category": ["a", "b", "c"],
    "abstract": ["x", None, "z"],
}
TIME = datetime(2019, 11, 11, 9, 5, 58)
IMPRESSIONS = {
    "impression_id": [1, 2, 3, 4],
    "user_id": ["U1", "U2", "U1", "U3"],
    "time": [TIME + timedelta(hours=i) for i in range(4)],
    "history": [["N1", "N2"], [], ["N404", "N3"], None],
    "candidates": [["N1", "N2"], ["N3", "N404", "N1"], ["N2", "N3"], ["N1"]],
    "labels": [[False, True], [True, False, False], [False, True], [True]],
}


def write(root, impressions=IMPRESSIONS, news=NEWS, split="train", **options):
    """Write one split; tables are dicts of columns or Arrow tables."""
    (root / split).mkdir(parents=True, exist_ok=True)
    for name, table in (("news", news), ("impressions", impressions)):
        table = table if isinstance(table, pa.Table) else pa.table(table)
        pq.write_table(table, root / split / f"{name}.parquet", **options)
    return root


def contents(data, name="train"):
    """Return a split's impressions, with ids in place of rows."""
    split = data.split(name)
    ids = np.array(["", "?", *data.news["news_id"].to_pylist()])
    labels = split.labels
    rows = []
    for i, history in enumerate(split.history):
        begin, end = split.histories.offsets[history : history + 2]
        shown = slice(*split.candidates.offsets[i : i + 2])
        rows.append(
            (
                int(split.impression_id[i]),
                data.users[int(split.user[i])].as_py(),
                split.time[i].item(),
                ids[split.histories.values[begin:end]].tolist(),
                ids[split.candidates.values[shown]].tolist(),
                None if labels is None else labels[shown].tolist(),
            )
        )
    return rows


EXPECTED = [
    (1, "U1", TIME, ["N1", "N2"], ["N1", "N2"], [0, 1]),
    (2, "U2", TIME + timedelta(hours=1), [], ["N3", "?", "N1"], [1, 0, 0]),
    (3, "U1", TIME + timedelta(hours=2), ["N3"], ["N2", "N3"], [0, 1]),
    (4, "U3", TIME + timedelta(hours=3), [], ["N1"], [1]),
]


def assert_same(found, expected):
    """Check that two data folders have the same arrays, news, users and counts."""
    assert found.news.equals(expected.news)
    assert found.users.equals(expected.users)
    assert found.arrays.keys() == expected.arrays.keys()
    for name, array in expected.arrays.items():
        np.testing.assert_array_equal(found.arrays[name], array)
        assert found.arrays[name].dtype == array.dtype
    for name, split in expected.splits.items():
        assert found.splits[name].counts == split.counts
        assert found.splits[name].num_news == split.num_news


def test_rows_are_read_as_they_are(tmp_path):
    data = open_mind(write(tmp_path))
    assert data.cache.name.startswith("parquet-")
    assert contents(data) == EXPECTED
    assert data.news.to_pylist()[1] == {
        "news_id": "N2",
        "category": "b",
        "subcategory": "",
        "title": "Two",
        "abstract": "",
    }
    counts = data.split("train").counts
    assert (counts["unknown_history_news"], counts["unknown_candidates"]) == (1, 1)
    assert (counts["empty_histories"], counts["clicks"]) == (2, 4)


def test_the_same_rows_as_tsv_give_the_same_arrays(mind_dir, tmp_path):
    mind_to_parquet(mind_dir, tmp_path / "parquet")
    assert reader_of(tmp_path / "parquet").name == "parquet"
    assert_same(open_mind(tmp_path / "parquet"), open_mind(mind_dir))


def test_small_blocks_and_row_groups_change_nothing(mind_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_table, "BLOCK_ROWS", 1)  # 64 rows at least
    mind_to_parquet(mind_dir, tmp_path / "parquet")
    for path in (tmp_path / "parquet").glob("*/*.parquet"):
        pq.write_table(pq.read_table(path), path, row_group_size=3)
    assert pq.ParquetFile(path).num_row_groups > 3
    assert_same(open_mind(tmp_path / "parquet"), open_mind(mind_dir))


def test_a_table_may_be_a_folder_of_files_as_spark_writes_it(mind_dir, tmp_path):
    root = tmp_path / "parquet"
    mind_to_parquet(mind_dir, root)
    for path in root.glob("*/*.parquet"):
        table = pq.read_table(path)
        path.unlink()
        (path / "day=2").mkdir(parents=True)
        (path / "_SUCCESS").write_bytes(b"")
        (path / ".part-0.crc").write_bytes(b"x")
        pq.write_table(table.slice(0, 0), path / "a-.parquet")
        pq.write_table(table.slice(0, 5), path / "a-0.parquet")
        pq.write_table(table.slice(5), path / "day=2" / "a-1.parquet")
    expected = open_mind(mind_dir)
    assert_same(open_mind(root), expected)
    table = pq.read_table(root / "dev" / "impressions.parquet" / "day=2" / "a-1.parquet")
    users = ["", *table["user_id"].to_pylist()[1:]]
    table = table.set_column(table.column_names.index("user_id"), "user_id", [users])
    pq.write_table(table, root / "dev" / "impressions.parquet" / "day=2" / "a-1.parquet")
    with pytest.raises(UserError, match=r"dev/impressions\.parquet, row 5, column user_id: null"):
        open_mind(root)


def as_type(values, kind):
    """Return ids of one type, so that equal ids stay equal."""
    number = {v: i for i, v in enumerate(["N1", "N2", "N3", "N404", "U1", "U2", "U3"], start=1)}
    values = [None if v is None else number[v] for v in values]
    if pa.types.is_fixed_size_binary(kind):
        wide = [None if v is None else v.to_bytes(kind.byte_width, "big") for v in values]
        return pa.array(wide, kind)
    if pa.types.is_dictionary(kind):
        return as_type_from(values, kind.value_type).dictionary_encode()
    return as_type_from(values, kind)


def as_type_from(values, kind):
    if pa.types.is_integer(kind):
        return pa.array(values, kind)
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return pa.array([None if v is None else str(v).encode() for v in values], kind)
    return pa.array([None if v is None else str(v) for v in values], kind)


def typed(kind, list_of):
    """Return the tables with ids of a type and lists of a form."""

    def lists(rows):
        flat = as_type([v for row in rows for v in row or []], kind)
        sizes = [len(row or []) for row in rows]
        offsets = pa.array(np.concatenate([[0], np.cumsum(sizes)]), pa.int32())
        mask = pa.array([row is None for row in rows])
        plain = pa.ListArray.from_arrays(offsets, flat, mask=mask)
        return plain if list_of is pa.list_ else plain.cast(list_of(kind))

    news = pa.table({**NEWS, "news_id": as_type(NEWS["news_id"], kind)})
    table = {
        **IMPRESSIONS,
        "user_id": as_type(IMPRESSIONS["user_id"], kind),
        "history": lists(IMPRESSIONS["history"]),
        "candidates": lists(IMPRESSIONS["candidates"]),
    }
    return news, pa.table(table)


@pytest.mark.parametrize("list_of", [pa.list_, pa.large_list])
@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.binary(),
        pa.dictionary(pa.int32(), pa.string()),
        pa.int8(),
        pa.int64(),
        pa.uint32(),
        pa.uint64(),
        pa.binary(16),
        pa.binary(5),
    ],
    ids=str,
)
def test_ids_may_have_any_type(tmp_path, kind, list_of):
    news, impressions = typed(kind, list_of)
    data = open_mind(write(tmp_path, impressions, news))
    names = data.news["news_id"].to_pylist()
    if kind == pa.binary(16):
        assert names[0] == str(uuid.UUID(int=1))
    elif kind == pa.binary(5):
        assert names[0] == "0000000001"
    else:
        assert names == ["1", "2", "3"]
    plain = open_mind(write(tmp_path / "plain"))
    for name, array in plain.arrays.items():
        np.testing.assert_array_equal(data.arrays[name], array)


def test_ids_of_different_types_meet_as_text(tmp_path):
    news = {**NEWS, "news_id": [1, 2, 3]}
    lists = {
        "history": [["1", "2"], [], ["404", "3"], None],
        "candidates": [["1", "2"], ["3", "404", "1"], ["2", "3"], ["1"]],
    }
    data = open_mind(write(tmp_path, IMPRESSIONS | lists, news))
    assert data.split("train").counts["unknown_candidates"] == 1


def test_lists_of_fixed_size_are_lists(tmp_path):
    rows = {name: IMPRESSIONS[name][:2] for name in IMPRESSIONS}
    rows["history"] = pa.array([["N1", "N2"], ["N3", "N1"]], pa.list_(pa.string(), 2))
    rows["candidates"] = pa.array([["N1", "N2"], ["N3", "N1"]], pa.list_(pa.string(), 2))
    rows["labels"] = pa.array([[True, False], [False, True]], pa.list_(pa.bool_(), 2))
    found = contents(open_mind(write(tmp_path, rows)))
    assert [row[3:] for row in found] == [
        (["N1", "N2"], ["N1", "N2"], [1, 0]),
        (["N3", "N1"], ["N3", "N1"], [0, 1]),
    ]


@pytest.mark.parametrize(
    "kind", [pa.bool_(), pa.int8(), pa.int64(), pa.uint8(), pa.float32(), pa.float64()], ids=str
)
def test_labels_may_have_any_type(tmp_path, kind):
    labels = [[float(v) for v in row] for row in IMPRESSIONS["labels"]]
    column = pa.array(labels, pa.list_(pa.float64())).cast(pa.list_(kind))
    assert contents(open_mind(write(tmp_path, IMPRESSIONS | {"labels": column}))) == EXPECTED


@pytest.mark.parametrize("how", ["absent", "null", "typed"])
def test_a_split_without_labels_has_none(tmp_path, how):
    table = dict(IMPRESSIONS)
    del table["labels"]
    if how != "absent":
        table["labels"] = pa.nulls(4, pa.null() if how == "null" else pa.list_(pa.bool_()))
    data = open_mind(write(tmp_path, table))
    assert data.split("train").labels is None
    assert [row[:5] for row in contents(data)] == [row[:5] for row in EXPECTED]


SECONDS = int(TIME.replace(tzinfo=UTC).timestamp())


@pytest.mark.parametrize(
    "values",
    [
        *(pa.array([TIME], pa.timestamp(unit)) for unit in ("s", "ms", "us", "ns")),
        pa.array([TIME.replace(tzinfo=UTC)], pa.timestamp("us", "America/New_York")),
        pa.array([SECONDS], pa.int64()),
        pa.array([SECONDS], pa.uint32()),
        pa.array([SECONDS * 10**3 + 999], pa.int64()),
        pa.array([SECONDS * 10**6 + 1], pa.uint64()),
        pa.array([SECONDS * 10**9 + 1]),
        pa.array(["2019-11-11 09:05:58"]),
        pa.array(["2019-11-11T09:05:58Z"]),
        pa.array(["2019-11-11T09:05:58.999999"]),
        pa.array(["2019-11-11T10:05:58+01:00"]),
        pa.array(["11/11/2019 9:05:58 AM"]),
        pa.array(["2019-11-11 09:05:58"], pa.large_string()).dictionary_encode(),
    ],
    ids=lambda values: f"{values.type}-{str(values[0])[:24]}",
)
def test_times_may_have_any_type(values):
    seconds, good = as_seconds(values)
    assert good.tolist() == [True]
    assert seconds[0].item() == TIME


def test_times_of_mixed_forms_are_read_one_by_one():
    texts = ["2019-11-11", "2019-11-11T09:05:58+02:00", "11/11/2019 9:05:58 AM", "soon", None, ""]
    seconds, good = as_seconds(pa.array(texts))
    assert good.tolist() == [True, True, True, False, False, False]
    assert seconds[:3].tolist() == [datetime(2019, 11, 11), TIME - timedelta(hours=2), TIME]
    dates, good = as_seconds(pa.array([TIME.date(), None]))
    assert good.tolist() == [True, False]
    assert dates[0].item() == datetime(2019, 11, 11)


@pytest.mark.parametrize(
    "values",
    [
        pa.array([-1, None]),
        pa.array([-(2**63), -5]),
        pa.array([2**64 - 1, 2**63], pa.uint64()),
        pa.array(["999-01-01", "3000-01-01", "12/32/2019 1:00:00 AM", "2019-11-11 25:00:00"]),
        pa.array([-(2**62), 2**62], pa.timestamp("s")),
    ],
    ids=str,
)
def test_what_is_no_time_is_not_read_as_one(values):
    assert not as_seconds(values)[1].any()


@given(st.datetimes(datetime(1000, 1, 2), datetime(2999, 12, 30)), st.integers(-14, 14))
@settings(max_examples=200, deadline=None)
def test_a_time_is_the_same_as_text_and_as_a_timestamp(moment, hours):
    zoned = moment.replace(tzinfo=timezone(timedelta(hours=hours)))
    expected = (zoned - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(seconds=1)
    for values in (pa.array([zoned.isoformat()]), pa.array([zoned], pa.timestamp("us", "UTC"))):
        seconds, good = as_seconds(values)
        assert good.all()
        assert int(seconds[0].astype(np.int64)) == expected


def test_text_that_is_not_utf_8_is_null_and_other_text_is_kept():
    raw = pa.array([b"caf\xc3\xa9", b"\xff", None, b""])
    assert as_text(raw).to_pylist() == ["café", None, None, ""]
    assert as_text(raw.dictionary_encode()).to_pylist() == ["café", None, None, ""]


@pytest.mark.parametrize("how", ["absent", "uuid"])
def test_impressions_without_whole_numbers_are_numbered_by_their_rows(tmp_path, how):
    table = dict(IMPRESSIONS)
    del table["impression_id"]
    if how == "uuid":
        table["impression_id"] = [str(uuid.UUID(int=i)) for i in range(4)]
    assert contents(open_mind(write(tmp_path, table))) == EXPECTED


def test_impression_ids_may_be_digits_and_may_repeat(tmp_path):
    data = open_mind(write(tmp_path, IMPRESSIONS | {"impression_id": ["7", "7", "0", "8"]}))
    assert [row[0] for row in contents(data)] == [7, 7, 0, 8]
    assert [row[1:] for row in contents(data)] == [row[1:] for row in EXPECTED]


def with_row(column, row, value):
    """Return the columns with one value replaced."""
    values = list(IMPRESSIONS[column])
    values[row] = value
    return IMPRESSIONS | {column: values}


@pytest.mark.parametrize(
    ("column", "value", "problem"),
    [
        ("impression_id", None, "column impression_id: not a whole number: 'None'"),
        ("impression_id", -7, "column impression_id: not a whole number: '-7'"),
        ("user_id", None, "column user_id: null, empty or not UTF-8: 'None'"),
        ("user_id", "", "column user_id: null, empty or not UTF-8: ''"),
        ("time", None, "column time: not a time such as 2019-11-11 09:05:58: 'None'"),
        (
            "time",
            datetime(3019, 1, 1),
            "column time: not a time such as 2019-11-11 09:05:58: '3019-01-01 00",
        ),
        ("candidates", None, "column candidates: null or an empty list"),
        ("candidates", [], "column candidates: null or an empty list"),
        ("candidates", ["N1", None], "column candidates: a null or empty id: 'N1 None'"),
        ("candidates", ["N1", ""], "column candidates: a null or empty id: 'N1 '"),
        ("labels", None, "column labels: no labels, while most rows have some"),
        ("labels", [True], "column labels: not one label for each candidate: '2 candidates, 1 l"),
        ("labels", [True, None], "column labels: a label other than 0 and 1"),
    ],
)
@pytest.mark.parametrize("row", [0, 2])
def test_a_value_that_cannot_be_read_stops_or_is_left_out(tmp_path, column, value, problem, row):
    root = write(tmp_path, with_row(column, row, value))
    path = root / "train" / "impressions.parquet"
    with pytest.raises(UserError) as error:
        open_mind(root)
    assert f"{path}, row {row}, {problem}" in str(error.value)
    assert "rows count from 0" in str(error.value)
    assert "--data.on_bad_line drop leaves such rows out" in str(error.value)
    data = open_mind(root, "drop")
    assert contents(data) == EXPECTED[:row] + EXPECTED[row + 1 :]
    assert data.split("train").counts["dropped_lines"] == 1
    (shown,) = data.bad_lines[str(path)]
    assert shown.startswith(f"row {row}, {problem}")
    with pytest.raises(UserError):  # what was compiled with rows left out serves no other
        open_mind(root)


@pytest.mark.parametrize("labels", [[2, 0], [0.5, 1], [-1, 0], [math.nan, 1]])
def test_a_label_is_0_or_1(tmp_path, labels):
    columns = [[float(v) for v in row] for row in IMPRESSIONS["labels"]]
    columns[0] = labels
    with pytest.raises(UserError, match="row 0, column labels: a label other than 0 and 1"):
        open_mind(write(tmp_path, IMPRESSIONS | {"labels": columns}))


def test_labels_in_a_split_that_has_none_are_named(tmp_path, monkeypatch):
    labels = [None, None, None, [True]]
    with pytest.raises(UserError, match="row 3, column labels: labels, while most rows have none"):
        open_mind(write(tmp_path, IMPRESSIONS | {"labels": labels}))


def test_bad_rows_are_counted_over_blocks_and_the_first_ten_listed(tmp_path, caplog):
    many = {name: [*column] * 40 for name, column in IMPRESSIONS.items()}
    many["user_id"] = ["" if 10 <= i < 90 else user for i, user in enumerate(many["user_id"])]
    data = open_mind(write(tmp_path, many, row_group_size=16), "drop")
    assert data.split("train").counts["dropped_lines"] == 80
    assert data.split("train").counts["impressions"] == 80
    (lines,) = data.bad_lines.values()
    assert [int(re.search(r"row (\d+)", line)[1]) for line in lines] == list(range(10, 20))
    assert "rows dropped: 80" in caplog.text
    assert "and 70 more" in caplog.text


def test_nulls_and_empty_words_in_a_history_are_left_out(tmp_path):
    table = with_row("history", 0, ["N1", None, "", "N404", "N2"])
    data = open_mind(write(tmp_path, table))
    assert contents(data) == EXPECTED
    assert data.split("train").counts["unknown_history_news"] == 2


@pytest.mark.parametrize("kind", [pa.null(), pa.list_(pa.null()), pa.list_(pa.string())], ids=str)
def test_histories_may_all_be_empty(tmp_path, kind):
    data = open_mind(write(tmp_path, IMPRESSIONS | {"history": pa.nulls(4, kind)}))
    assert data.split("train").counts["empty_histories"] == 4


def test_candidates_that_repeat_are_ranked_as_in_tsv(tmp_path):
    rows = [["1", "U1", "11/11/2019 9:05:58 AM", "N1 N1", "N1-0 N1-1 N2-1 N404-0 N404-0"]]
    news = [[n, c, "", t, a or "", "", "", ""] for n, t, c, a in zip(*NEWS.values(), strict=True)]
    expected = open_mind(write_mind(tmp_path / "tsv", {"train": news}, {"train": rows}))
    mind_to_parquet(tmp_path / "tsv", tmp_path / "parquet")
    assert_same(open_mind(tmp_path / "parquet"), expected)


def test_news_that_is_told_twice_is_one_and_told_otherwise_is_a_bad_row(tmp_path):
    again = {name: [*column, column[1]] for name, column in NEWS.items()}
    assert len(open_mind(write(tmp_path, news=again)).news) == 3
    again["title"] = [*NEWS["title"], "Another"]
    root = write(tmp_path, news=again)
    with pytest.raises(UserError, match=r"news\.parquet, row 3, column news_id: an earlier line"):
        open_mind(root)
    data = open_mind(root, "drop")
    assert data.news["title"].to_pylist() == NEWS["title"]
    assert data.split("train").counts["dropped_news_lines"] == 1


@pytest.mark.parametrize("value", [None, ""])
def test_a_news_item_without_an_id_is_a_bad_row(tmp_path, value):
    with pytest.raises(UserError, match=r"news\.parquet, row 1, column news_id: null or empty"):
        open_mind(write(tmp_path, news=NEWS | {"news_id": ["N1", value, "N3"]}))


@pytest.mark.parametrize("column", ["title", "category", "news_id"])
def test_news_that_is_not_utf_8_is_a_bad_row(tmp_path, column):
    values = [v.encode() for v in NEWS[column]]
    values[1] = b"caf\xe9"
    broken = pa.array(values).view(pa.string())  # as a careless writer leaves it
    root = write(tmp_path, news=NEWS | {column: broken})
    with pytest.raises(UserError, match=f"row 1, column {column}: not UTF-8: 'caf\ufffd'"):
        open_mind(root)
    assert open_mind(root, "drop").news["title"].to_pylist() == ["One", "Three"]


def test_ids_that_are_not_utf_8_are_unknown_news(tmp_path):
    ids = pa.array([b"N1", b"\xff", b"N2"]).view(pa.string())
    lists = pa.ListArray.from_arrays(pa.array([0, 3]), ids)
    row = {name: column[:1] for name, column in IMPRESSIONS.items()}
    row |= {"candidates": lists, "history": lists, "labels": [[1, 0, 0]]}
    counts = open_mind(write(tmp_path, row)).split("train").counts
    assert (counts["unknown_candidates"], counts["unknown_history_news"]) == (1, 1)


def test_a_text_that_is_too_long_is_a_bad_row(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_columns, "LONGEST_TEXT", 100)
    root = write(tmp_path, news=NEWS | {"title": ["One", "t" * 101, "Three"]})
    with pytest.raises(UserError, match="row 1, column title: over 0 MB of text: 'ttt"):
        open_mind(root)


@pytest.mark.parametrize(
    ("file", "columns", "said"),
    [
        ("news", {"title": None}, "has no column title, only news_id, category, abstract. Write"),
        ("news", {"title": None, "titel": NEWS["title"]}, "Rename titel: df.rename(columns={"),
        ("news", {"title": [1, 2, 3]}, "holds int64, not text. df['title'].astype(str)"),
        ("news", {"news_id": [1.0, 2.0, 3.0]}, "holds double, not ids: text or whole numbers"),
        ("impressions", {"user_id": [1.0] * 4}, "df['user_id'].astype('Int64') turns floats"),
        ("impressions", {"time": [1.0] * 4}, "column time holds double, not times: timestamps,"),
        ("impressions", {"history": ["N1 N2"] * 4}, "history holds string, not lists of ids"),
        ("impressions", {"history": ["N1 N2"] * 4}, "df['history'].str.split() makes lists"),
        ("impressions", {"candidates": [[1.5]] * 4}, "not lists of ids (text or whole numbers)."),
        ("impressions", {"labels": [1, 0, 1, 0]}, "the column labels holds int64, not lists with"),
        ("impressions", {"labels": [["1"]] * 4}, "not lists with true or 1 (clicked)"),
        ("impressions", {"candidates": None}, "has no column candidates"),
    ],
)  # fmt: skip
def test_a_wrong_schema_is_named_with_its_column_and_the_next_step(
    tmp_path, capsys, file, columns, said
):
    tables = {"news": NEWS, "impressions": IMPRESSIONS}
    table = {k: v for k, v in (tables[file] | columns).items() if v is not None}
    root = write(tmp_path, **(tables | {file: table}))
    message = " ".join(refused(capsys, "prepare", "--data.root", root).split())
    assert said in message
    assert f"train/{file}.parquet" in message.replace(" ", "")


def test_a_column_that_is_there_twice_is_named(tmp_path):
    table = pa.table(NEWS).append_column("title", pa.array(["x"] * 3))
    with pytest.raises(UserError, match="has the column title twice"):
        open_mind(write(tmp_path, news=table))


def test_other_columns_and_the_order_of_columns_do_not_matter(tmp_path):
    news = {"url": ["x"] * 3, **dict(reversed(NEWS.items())), "published": [TIME] * 3}
    table = {"extra.column": [[1]] * 4, **dict(reversed(IMPRESSIONS.items()))}
    assert contents(open_mind(write(tmp_path, table, news))) == EXPECTED


class NoSecrets(pe.KmsClient):
    """Wraps keys with nothing, to write an encrypted file."""

    def __init__(self, config):
        pe.KmsClient.__init__(self)

    def wrap_key(self, key, name):
        return key.hex()

    def unwrap_key(self, key, name):
        return bytes.fromhex(key)


def encrypt(path, plaintext_footer):
    table = pq.read_table(path)
    config = pe.EncryptionConfiguration(
        footer_key="f",
        column_keys={"c": ["news_id"]},
        plaintext_footer=plaintext_footer,
        encryption_algorithm="AES_GCM_V1",
    )
    made = pe.CryptoFactory(NoSecrets).file_encryption_properties(pe.KmsConnectionConfig(), config)
    with pq.ParquetWriter(path, table.schema, encryption_properties=made) as writer:
        writer.write_table(table)


@pytest.mark.parametrize("plaintext_footer", [True, False])
def test_an_encrypted_file_is_called_so(tmp_path, plaintext_footer):
    root = write(tmp_path)
    encrypt(root / "train" / "news.parquet", plaintext_footer)
    with pytest.raises(UserError, match=r"news\.parquet cannot be read: it is encrypted"):
        open_mind(root)


@pytest.mark.parametrize("name", ["news.parquet", "impressions.parquet"])
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda raw: b"", "cannot be read as Parquet: it is empty"),
        (lambda raw: raw[: len(raw) // 2], "cannot be read as Parquet: "),
        (lambda raw: raw[:-1], "cannot be read as Parquet: "),
        (lambda raw: raw[:6], "cannot be read as Parquet: "),
        (lambda raw: b"news_id,title\n1,x\n", "is no Parquet file, whatever its name says"),
        (lambda raw: b"PK\x03\x04" + raw[:50], "is a zip. Write it by df.to_parquet"),
        (lambda raw: b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
        (lambda raw: raw[:-8] + b"\xff\xff\xff\x7fPAR1", "cannot be read as Parquet: "),
        (lambda raw: raw[:4] + b"\0" * (len(raw) - 12) + raw[-8:], "cannot be read as Parquet: "),
    ],
    ids=["empty", "half", "cut", "head", "csv", "zip", "lfs", "footer size", "zeros"],
)  # fmt: skip
def test_a_damaged_file_is_named(tmp_path, capsys, name, damage, said):
    root = write(tmp_path)
    path = root / "train" / name
    path.write_bytes(damage(path.read_bytes()))
    message = " ".join(refused(capsys, "prepare", "--data.root", root).split())
    assert said in message
    assert not [p for p in root.glob(".newsrec/*") if p.is_dir()]


@pytest.mark.parametrize("times", [15, pytest.param(400, marks=pytest.mark.slow)])
def test_damaged_bytes_give_rows_or_a_message_and_nothing_else(tmp_path, times):
    """Flip bytes in a process of its own, since a crash of Arrow would end all tests."""
    write(tmp_path, compression="none")
    code = f"""
import random, shutil, logging
from pathlib import Path
from newsrec.data.dataset import open_mind
from newsrec.errors import UserError
logging.disable()
root = Path({str(tmp_path)!r})
rng, said = random.Random(0), 0
for name in ("news", "impressions"):
    path = root / "train" / (name + ".parquet")
    whole = path.read_bytes()
    for _ in range({times}):
        raw = bytearray(whole)
        for _ in range(rng.choice([1, 1, 3])):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
        path.write_bytes(raw)
        try:
            open_mind(root, rng.choice(["error", "drop"]))
        except UserError as error:
            said += 1
        shutil.rmtree(root / ".newsrec", ignore_errors=True)
    path.write_bytes(whole)
print(said)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert times // 3 < int(done.stdout) < 2 * times


def test_a_row_group_with_absurdly_many_values_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_table, "MOST_VALUES", 7)
    with pytest.raises(UserError, match=r"row group 0 has 8 values .* row_group_size=100_000"):
        open_mind(write(tmp_path))


def test_more_text_than_a_column_holds_is_refused(tmp_path, monkeypatch):
    from newsrec.data.readers import parquet

    monkeypatch.setattr(parquet, "MOST_TEXT", 10)
    with pytest.raises(UserError, match=r"news\.parquet: the column title has over 0 GB of text"):
        open_mind(write(tmp_path))


@pytest.mark.parametrize("name", ["news", "impressions"])
def test_a_table_without_rows_is_named(tmp_path, name):
    tables = {"news": pa.table(NEWS), "impressions": pa.table(IMPRESSIONS)}
    root = write(tmp_path, **(tables | {name: tables[name].slice(0, 0)}))
    with pytest.raises(UserError, match=f"{name}.parquet has no rows"):
        open_mind(root)


def test_a_table_of_bad_rows_alone_is_named(tmp_path):
    root = write(tmp_path, IMPRESSIONS | {"user_id": [""] * 4})
    with pytest.raises(UserError, match="none of its rows can be read, row 0, column user_id"):
        open_mind(root, "drop")


def test_files_of_one_table_with_other_columns_are_named(tmp_path):
    root = write(tmp_path)
    path = root / "train" / "impressions.parquet"
    path.unlink()
    path.mkdir()
    pq.write_table(pa.table(IMPRESSIONS), path / "0.parquet")
    pq.write_table(pa.table(IMPRESSIONS).drop_columns(["labels"]), path / "1.parquet")
    with pytest.raises(UserError, match=r"1\.parquet has the columns .* but .*0\.parquet has"):
        open_mind(root)
    shutil.rmtree(path)
    path.mkdir()
    with pytest.raises(UserError, match=r"is a folder without a \.parquet file"):
        open_mind(root)


def test_near_names_of_files_and_folders_are_told(tmp_path):
    root = write(tmp_path / "own", split="validation")
    with pytest.raises(UserError, match=f"Rename it: `mv {root}/validation {root}/dev`"):
        open_mind(root)
    (root / "validation").rename(root / "dev")
    (root / "dev" / "impressions.parquet").rename(root / "dev" / "impression.parquet")
    with pytest.raises(UserError, match=r"no impressions\.parquet\. Rename it: `mv .*impression\."):
        open_mind(root)
    with pytest.raises(UserError, match="It is one split itself: name the folder above"):
        open_mind(root / "dev")
    with pytest.raises(UserError, match=f"Did you mean --data.root {root}"):
        open_mind(root.parent)
    (root / "dev" / "impression.parquet").unlink()
    with pytest.raises(UserError, match=r"has no impressions\.parquet\. docs/data\.md shows"):
        open_mind(root)


def test_a_zip_with_parquet_is_to_be_unpacked(tmp_path):
    root = write(tmp_path)
    with zipfile.ZipFile(tmp_path / "train.zip", "w") as archive:
        for path in (root / "train").iterdir():
            archive.write(path, f"train/{path.name}")
    shutil.rmtree(root / "train")
    with pytest.raises(UserError, match=r"Parquet is read unpacked only. Unpack it: `unzip"):
        open_mind(root)


def test_a_folder_of_two_formats_is_refused(mind_dir, tmp_path):
    mind_to_parquet(mind_dir, tmp_path / "parquet")
    shutil.rmtree(mind_dir / "dev")
    shutil.copytree(tmp_path / "parquet" / "dev", mind_dir / "dev")
    with pytest.raises(UserError, match=r"train/news\.tsv is in MIND's format, and other splits"):
        open_mind(mind_dir)
    shutil.copy(tmp_path / "parquet" / "train" / "news.parquet", mind_dir / "train")
    with pytest.raises(UserError, match=r"train has news\.tsv and .*Keep one format there"):
        open_mind(mind_dir)


def test_a_stray_parquet_file_leaves_a_folder_minds(mind_dir):
    pq.write_table(pa.table(NEWS), mind_dir / "train" / "vectors.parquet")
    (mind_dir / "own" / "train").mkdir(parents=True)
    pq.write_table(pa.table(NEWS), mind_dir / "own" / "train" / "news.parquet")
    assert reader_of(mind_dir).name == "mind"
    assert len(open_mind(mind_dir).splits) == 3


def test_changed_files_are_compiled_anew_and_unchanged_ones_are_not(tmp_path):
    first = open_mind(write(tmp_path))
    assert open_mind(tmp_path).cache == first.cache
    write(tmp_path, with_row("user_id", 0, "U9"))
    second = open_mind(tmp_path)
    assert second.cache != first.cache
    assert contents(second)[0][1] == "U9"
    assert main(["prepare", "--check", "--data.root", str(tmp_path)]) in (0, None)
