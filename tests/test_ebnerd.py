"""EB-NeRD: rows written by hand after the publisher's description; all texts are invented."""

import json
import zipfile
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import refused
from hypothesis import given, settings
from hypothesis import strategies as st
from test_parquet import assert_same, contents
from test_parts import as_by_one_process, backwards, compiled

from newsrec.__main__ import main
from newsrec.data import parts
from newsrec.data.datamodule import MindDataModule
from newsrec.data.dataset import open_mind
from newsrec.data.readers import ebnerd
from newsrec.data.readers.formats import reader_of
from newsrec.data.readers.news_file import read_news
from newsrec.data.readers.parquet_columns import Lists
from newsrec.errors import UserError
from newsrec.simulation.simulate import simulate

START = datetime(2023, 5, 18, 7, 0, 1)
ARTICLES = {
    # id: title, subtitle, category_str
    101: ("Havnen åbner igen", "Skibene venter.", "nyheder"),
    102: ("Målmand skifter klub", None, "sport"),
    103: ("Sådan sparer du på varmen", "Skru ned.", "forbrug"),
    104: ("Regn i weekenden", "", "nyheder"),
    105: ("Finalen blev aflyst", "Banen var våd.", "sport"),
}
TRAIN = [
    # impression_id, article_id, user_id, inview, clicked
    (11, None, 7, [101, 102, 103], [102]),  # the front page has no article
    (12, 101, 8, [104, 103], [104, 103]),  # several clicks
    (13, None, 9, [105, 999, 101], [999]),  # absent from the histories; an unknown article
    (14, 102, 10, [101, 105], [103, 101]),  # an empty history; one click was not shown
]
VALIDATION = [(21, None, 7, [104, 105], [105]), (22, 104, 8, [101, 102], [101])]
TEST = [
    (31, 7, [102, 103], False),
    (0, 7, [101, 102, 103, 104, 105], True),
    (0, 9, [101, 102, 103, 104, 105], True),
    (32, 9, [105, 104], False),
]
HISTORY = [(7, [103, 888, 101]), (8, [102]), (10, [])]
FUTURE = ("total_inviews", "total_pageviews", "total_read_time")


def articles(rows=ARTICLES):
    ids = list(rows)
    title, subtitle, category = zip(*rows.values(), strict=True)
    return pa.table(
        {
            "article_id": pa.array(ids, pa.int32()),
            "title": title,
            "subtitle": pa.array(subtitle, pa.string()),
            "body": ["..."] * len(ids),
            "category": pa.array([1] * len(ids), pa.int16()),
            "subcategory": pa.array([[2]] * len(ids), pa.list_(pa.int16())),
            "category_str": category,
            **{name: pa.array([5] * len(ids), pa.int32()) for name in FUTURE},
        }
    )


def behaviors(rows):
    number, article, user, shown, clicked = zip(*rows, strict=True)
    return pa.table(
        {
            "impression_id": pa.array(number, pa.uint32()),
            "article_id": pa.array(article, pa.int32()),
            "impression_time": pa.array(times(rows), pa.timestamp("us")),
            "read_time": pa.array([3.5] * len(rows), pa.float32()),
            "article_ids_inview": pa.array(shown, pa.list_(pa.int32())),
            "article_ids_clicked": pa.array(clicked, pa.list_(pa.int32())),
            "user_id": pa.array(user, pa.uint32()),
            "next_read_time": pa.array([9.0] * len(rows), pa.float32()),
        }
    )


def unlabelled(rows=TEST):
    number, user, shown, beyond = zip(*rows, strict=True)
    return pa.table(
        {
            "impression_id": pa.array(number, pa.uint32()),
            "impression_time": pa.array(times(rows), pa.timestamp("us")),
            "article_ids_inview": pa.array(shown, pa.list_(pa.int32())),
            "user_id": pa.array(user, pa.uint32()),
            "is_beyond_accuracy": beyond,
        }
    )


def times(rows):
    return [START + timedelta(minutes=i, microseconds=5) for i in range(len(rows))]


def history(rows=HISTORY):
    user, clicks = zip(*rows, strict=True)
    return pa.table(
        {
            "user_id": pa.array(user, pa.uint32()),
            "article_id_fixed": pa.array(clicks, pa.list_(pa.int32())),
        }
    )


def write(root, train=None, clicks=None, news=None, test=None, names=("train", "validation")):
    """Write a folder as the zips unpack; each table may be replaced."""
    root.mkdir(parents=True, exist_ok=True)
    pq.write_table(articles() if news is None else news, root / "articles.parquet")
    tables = dict(zip(names, (behaviors(TRAIN), behaviors(VALIDATION)), strict=True))
    tables[names[0]] = tables[names[0]] if train is None else train
    tables["test"] = unlabelled() if test is None else test
    for split, table in tables.items():
        (root / split).mkdir(exist_ok=True)
        pq.write_table(table, root / split / "behaviors.parquet")
        pq.write_table(history() if clicks is None else clicks, root / split / "history.parquet")
    return root


def without_time(rows):
    return [(*row[:2], *row[3:]) for row in rows]


def test_rows_are_read_as_they_are(tmp_path):
    data = open_mind(write(tmp_path))
    assert data.cache.name.startswith("ebnerd-")
    assert list(data.splits) == ["train", "dev", "test"]
    assert without_time(contents(data)) == [
        (11, "7", ["103", "101"], ["101", "102", "103"], [0, 1, 0]),
        (12, "8", ["102"], ["104", "103"], [1, 1]),
        (13, "9", [], ["105", "?", "101"], [0, 1, 0]),
        (14, "10", [], ["101", "105"], [1, 0]),
    ]
    assert contents(data)[1][2] == datetime(2023, 5, 18, 7, 1, 1)
    assert without_time(contents(data, "dev"))[0][4] == [0, 1]
    assert without_time(contents(data, "test")) == [
        (31, "7", ["103", "101"], ["102", "103"], None),
        (0, "7", ["103", "101"], ["101", "102", "103", "104", "105"], None),
        (0, "9", [], ["101", "102", "103", "104", "105"], None),
        (32, "9", [], ["105", "104"], None),
    ]
    assert data.news.to_pylist()[1] == {
        "news_id": "102", "category": "sport", "subcategory": "", "title": "Målmand skifter klub",
        "abstract": "",
    }  # fmt: skip
    counts = data.split("train").counts
    assert counts["clicks_not_shown"] == counts["users_without_history"] == 1
    assert (counts["unknown_history_news"], counts["unknown_candidates"]) == (1, 1)
    assert "beyond_accuracy" not in counts
    assert data.split("test").counts["beyond_accuracy"] == 2


@pytest.mark.parametrize(
    ("layout", "test_at"),
    [("ebnerd_small", "ebnerd_small"), ("ebnerd_small/ebnerd_small", "ebnerd_testset")],
)
def test_files_are_found_as_the_zips_unpack(tmp_path, layout, test_at):
    expected = open_mind(write(tmp_path / "flat"))
    write(tmp_path / "root" / layout)
    if layout != test_at:
        (tmp_path / "root" / test_at).mkdir()
        (tmp_path / "root" / layout / "test").rename(tmp_path / "root" / test_at / "test")
        pq.write_table(articles(), tmp_path / "root" / test_at / "articles.parquet")
    assert_same(open_mind(tmp_path / "root"), expected)


def test_a_folder_may_be_called_dev(tmp_path):
    expected = open_mind(write(tmp_path / "validation"))
    assert_same(open_mind(write(tmp_path / "dev", names=("train", "dev"))), expected)


def test_columns_of_the_future_are_never_read(tmp_path, monkeypatch):
    read = []
    original = pq.ParquetFile.iter_batches

    def iter_batches(self, *args, columns, **options):
        read.extend(columns)
        return original(self, *args, columns=columns, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", iter_batches)
    open_mind(write(tmp_path))
    assert set(read) == {
        "article_id", "title", "subtitle", "category_str", "impression_id", "user_id",
        "impression_time", "article_ids_inview", "article_ids_clicked", "is_beyond_accuracy",
        "article_id_fixed",
    }  # fmt: skip


def changed(table, column, row, value):
    values = table[column].to_pylist()
    values[row] = value
    kind = table.schema.field(column).type
    return table.set_column(table.column_names.index(column), column, pa.array(values, kind))


@pytest.mark.parametrize(
    ("part", "column", "row", "value", "said"),
    [
        ("train", "impression_id", 1, None, "train/behaviors.parquet, row 1, column impression_id"),
        ("train", "user_id", 2, None, "row 2, column user_id: null"),
        ("train", "impression_time", 0, None, "row 0, column impression_time: not a time"),
        ("train", "article_ids_inview", 3, [], "article_ids_inview: null or an empty list"),
        ("train", "article_ids_inview", 3, [101, None], "a null or empty id: '101 None'"),
        ("train", "article_ids_clicked", 0, None, "article_ids_clicked: null; leave the column"),
        ("news", "article_id", 4, None, "articles.parquet, row 4, column article_id: null"),
        ("news", "article_id", 1, 101, "row 1, column news_id: an earlier line has another text"),
        ("clicks", "user_id", 1, 7, "row 1, column user_id of history.parquet: an earlier row"),
        ("clicks", "user_id", 0, None, "row 0, column user_id of history.parquet: null"),
        ("test", "impression_id", 0, 0, "row 0, column is_beyond_accuracy: true goes with"),
        ("test", "is_beyond_accuracy", 1, None, "row 1, column is_beyond_accuracy: true goes"),
    ],
)  # fmt: skip
def test_a_bad_row_is_named_or_dropped(tmp_path, part, column, row, value, said):
    tables = {"train": behaviors(TRAIN), "news": articles(), "clicks": history(),
              "test": unlabelled()}  # fmt: skip
    root = write(tmp_path, **{part: changed(tables[part], column, row, value)})
    with pytest.raises(UserError) as refusal:
        open_mind(root)
    assert said in str(refusal.value)
    data = open_mind(root, "drop")
    if part in ("train", "test"):
        kept = [x for i, x in enumerate(TRAIN if part == "train" else TEST) if i != row]
        assert data.split(part).impression_id.tolist() == [x[0] for x in kept]
    assert data.bad_lines


@pytest.mark.parametrize(
    ("part", "column", "values", "said"),
    [
        ("train", "impression_id", ["a"] * 4, "impression_id holds string, not whole numbers"),
        ("train", "user_id", [0.5] * 4, "user_id holds double, not whole numbers"),
        ("train", "article_ids_inview", ["1 2"] * 4, "article_ids_inview holds string, not lists"),
        ("train", "article_ids_clicked", [["1"]] * 4, "holds list<string>, not lists of whole"),
        ("clicks", "article_id_fixed", [1, 2, 3], "article_id_fixed holds int64, not lists"),
        ("test", "is_beyond_accuracy", ["x"] * 4, "holds string, not true and false"),
    ],
)
def test_a_wrong_type_is_named(tmp_path, part, column, values, said):
    table = {"train": behaviors(TRAIN), "clicks": history(), "test": unlabelled()}[part]
    place = table.column_names.index(column)
    root = write(tmp_path, **{part: table.set_column(place, column, pa.array(values))})
    with pytest.raises(UserError) as refusal:
        open_mind(root)
    assert said in str(refusal.value)


@pytest.mark.parametrize(
    ("remove", "said"),
    [
        ("train/history.parquet", "train has no history.parquet"),
        ("articles.parquet", "train has no articles.parquet"),
        ("test/behaviors.parquet", "test has no behaviors.parquet"),
    ],
)
def test_a_missing_file_is_named(tmp_path, remove, said):
    root = write(tmp_path)
    (root / remove).unlink()
    with pytest.raises(UserError, match=said):
        open_mind(root)


def test_a_missing_column_is_named(tmp_path):
    root = write(tmp_path, news=articles().rename_columns({"title": "titel"}))
    with pytest.raises(UserError, match=r"articles.parquet has no column title.*Rename titel"):
        open_mind(root)


def test_two_places_of_a_split_and_packed_zips_are_refused(tmp_path):
    root = write(tmp_path)
    write(tmp_path / "ebnerd_small")
    with pytest.raises(UserError, match=r"train and ebnerd_small/train: which is train\?"):
        open_mind(root)
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "ebnerd_demo.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"unzip .*ebnerd_demo.zip -d .*ebnerd_demo"):
        open_mind(tmp_path / "packed")


IDS = st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=5), min_size=1, max_size=6)


@settings(max_examples=200, deadline=None)
@given(IDS, st.data())
def test_a_click_counts_if_it_was_shown(shown, data):
    size = len(shown)
    clicked = data.draw(st.lists(st.lists(st.integers(0, 6), max_size=5), min_size=size,
                                 max_size=size))  # fmt: skip
    kind = pa.list_(pa.int32())
    labels, not_shown = ebnerd._labels(*(Lists.of(pa.array(x, kind)) for x in (shown, clicked)))
    pairs = list(zip(shown, clicked, strict=True))
    assert labels.tolist() == [int(news in clicks) for row, clicks in pairs for news in row]
    assert labels.dtype == np.int8
    assert not_shown == sum(len({*clicks} - {*row}) for row, clicks in pairs)


def in_groups(root, rows=1):
    """Write the behaviors again, in small row groups."""
    for path in root.glob("*/behaviors.parquet"):
        pq.write_table(pq.read_table(path), path, row_group_size=rows)
    return root


def test_behaviors_are_divided_and_histories_read_once_for_a_split(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "PART_BYTES", 1)
    root = in_groups(write(tmp_path))
    expected, numbers, read = compiled(root), [], []
    whole = ebnerd._read_histories
    monkeypatch.setattr(ebnerd, "_read_histories", lambda *a: read.append(1) or whole(*a))

    def engine(job):
        numbers.append(len(job.parts))
        yield from backwards(job)

    assert compiled(root, engine) == expected
    assert numbers == [4 + 2 + 4]
    assert len(read) == 3


def test_bad_rows_and_histories_are_named_or_left_out_as_by_one_process(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(parts, "PART_BYTES", 1)
    root = write(
        tmp_path, changed(behaviors(TRAIN), "user_id", 2, None), changed(history(), "user_id", 1, 7)
    )
    found = as_by_one_process(in_groups(root), caplog)
    assert "row 1, column user_id of history.parquet: an earlier row" in found.error
    assert "rows dropped: 2" in found.warnings[0]
    assert "row 2, column user_id: null" in found.warnings[0]


def test_small_blocks_change_nothing(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    rows = [
        (i + 1, None, int(rng.integers(5, 12)), [101, 102, 103], [int(rng.integers(101, 104))])
        for i in range(300)
    ]
    one = write(tmp_path / "one", behaviors(rows))
    many = write(tmp_path / "many", behaviors(rows))
    pq.write_table(behaviors(rows), many / "train" / "behaviors.parquet", row_group_size=70)
    monkeypatch.setattr("newsrec.data.readers.parquet_table.BLOCK_ROWS", 1)
    pq.write_table(history(), many / "train" / "history.parquet", row_group_size=1)
    assert_same(open_mind(many), open_mind(one))
    assert without_time(contents(open_mind(one))) == [
        (n, str(u), {7: ["103", "101"], 8: ["102"]}.get(u, []), list(map(str, shown)),
         [int(news in clicked) for news in shown])
        for n, _, u, shown, clicked in rows
    ]  # fmt: skip


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """One simulated world in two formats."""
    root = tmp_path_factory.mktemp("worlds")
    for kind in ("mind", "ebnerd"):
        simulate(root / kind, "demo", seed=0, file_format=kind)
    return root


def test_the_same_world_in_both_formats_gives_the_same_arrays(worlds):
    mind, ebnerd = open_mind(worlds / "mind"), open_mind(worlds / "ebnerd")
    for name, array in mind.arrays.items():
        np.testing.assert_array_equal(ebnerd.arrays[name], array, err_msg=name)
    assert mind.splits.keys() == ebnerd.splits.keys()
    for name in ("title", "abstract", "category"):  # EB-NeRD numbers its subcategories
        assert ebnerd.news[name].equals(mind.news[name])
    numbers = [text[1:] for text in mind.news["news_id"].to_pylist()]
    assert ebnerd.news["news_id"].to_pylist() == numbers
    assert ebnerd.users.to_pylist() == [text[1:] for text in mind.users.to_pylist()]
    assert (worlds / "mind" / "world.json").read_text() == (
        worlds / "ebnerd" / "world.json"
    ).read_text()


def test_the_articles_alone_are_read_as_news(worlds):
    own = open_mind(worlds / "ebnerd").news
    found = read_news(worlds / "ebnerd" / "articles.parquet")
    assert len(found) == len(own) > 0
    for name in ("news_id", "title", "category", "subcategory", "abstract"):
        assert sorted(found[name].to_pylist()) == sorted(own[name].to_pylist())


def test_the_simulated_files_have_the_published_types(worlds):
    root = worlds / "ebnerd"
    schema = pq.read_schema(root / "train" / "behaviors.parquet")
    listed = pa.list_(pa.int32())
    for name, kind in {
        "impression_id": pa.uint32(), "article_id": pa.int32(), "user_id": pa.uint32(),
        "impression_time": pa.timestamp("us"), "article_ids_inview": listed,
        "article_ids_clicked": listed, "next_read_time": pa.float32(), "gender": pa.int8(),
    }.items():  # fmt: skip
        assert schema.field(name).type.equals(kind), name
    test = pq.read_schema(root / "test" / "behaviors.parquet").names
    assert not {"article_id", "article_ids_clicked", "next_read_time"} & set(test)
    assert "is_beyond_accuracy" in test
    assert not (root / "dev").exists()  # the folder is called validation
    history = pq.read_table(root / "validation" / "history.parquet")
    assert history.schema.field("impression_time_fixed").type.equals(pa.list_(pa.timestamp("us")))
    for row in history.slice(0, 20).to_pylist():
        assert row["impression_time_fixed"] == sorted(row["impression_time_fixed"])
        assert len(row["impression_time_fixed"]) == len(row["article_id_fixed"])


def test_prepare_batches_evaluate_and_check_a_submission(tmp_path, plm_dir, capsys):
    root = write(tmp_path / "data")
    main(["prepare", f"--data.root={root}"])
    said = capsys.readouterr().out
    assert "Beyond-accuracy lists of test (impression id 0)" in said
    assert "count in no metric: 2." in said
    assert "Clicks of train on news that their impression did not show, left out: 1." in said

    data = MindDataModule(root=str(root), plm=str(plm_dir), max_tokens=8, batch_size=2)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch.labels.sum(dim=1).tolist() == [1, 1]
    data.predict_on("test")
    batches = list(data.predict_dataloader())
    assert sum(len(b.row) for b in batches) == len(TEST)

    options = ["--scorer=popularity", f"--data.root={root}", "--split=test"]
    main(["evaluate", *options, f"--output={tmp_path / 'test'}"])
    metrics = json.loads((tmp_path / "test" / "metrics.json").read_text())
    assert metrics["beyond_accuracy"] == 2
    assert metrics["impressions"] == 4
    with zipfile.ZipFile(tmp_path / "test" / "predictions.zip") as archive:
        assert archive.namelist() == ["predictions.txt"]
        lines = archive.read("predictions.txt").decode().splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["31", "0", "0", "32"]
    assert sorted(map(int, lines[1].partition(" ")[2].strip("[]").split(","))) == [1, 2, 3, 4, 5]
    check = ["check-submission", f"--data.root={root}", "--split=test"]
    main([*check, str(tmp_path / "test" / "predictions.zip")])
    assert "would be accepted: 4 lines" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["31 [1,2]", "0 [1,2,3,4,5]", "32 [1,2]"], "the id is 32, but the data have 0 there"),
        (["31 [1,2]", "0 [1,2,3,4,5]", "0 [1,2,3,4,4]", "32 [1,2]"], "the rank 4 occurs 2 times"),
        (["31 [1,2]", "0 [5,4,3,2,1]", "0 [1,2,3,4,5]"], "1 missing (32)"),
        (["31 [1,2]", "0 [5,4,3,2,1]", "0 [1,2,3,4,5]", "0 [1,2]"], "1 repeated (0)"),
    ],
)
def test_the_checker_names_what_is_wrong(tmp_path, capsys, lines, said):
    root = write(tmp_path / "data")
    with zipfile.ZipFile(tmp_path / "predictions.zip", "w") as archive:
        archive.writestr("predictions.txt", "\n".join(lines) + "\n")
    check = ["check-submission", f"--data.root={root}", "--split=test"]
    assert said in refused(capsys, *check, tmp_path / "predictions.zip")


def test_minds_file_is_none_for_ebnerd(tmp_path, capsys):
    root = write(tmp_path / "data")
    with zipfile.ZipFile(tmp_path / "prediction.zip", "w") as archive:
        archive.writestr("prediction.txt", "31 [1,2]\n")
    check = ["check-submission", f"--data.root={root}", "--split=test"]
    said = refused(capsys, *check, tmp_path / "prediction.zip")
    assert "wants only predictions.txt" in said
    assert "-c predictions.zip predictions.txt" in said


def test_beyond_accuracy_lists_count_in_no_metric(tmp_path):
    from newsrec.evaluation.results import compute_results

    rows = [*VALIDATION, (0, None, 7, [101, 104, 105, 102], [])]
    table = behaviors(rows)
    with_lists = open_mind(write(tmp_path / "a"))
    pq.write_table(table, tmp_path / "a" / "validation" / "behaviors.parquet")
    with_lists = open_mind(tmp_path / "a")
    without = open_mind(write(tmp_path / "b"))
    scores = np.array([0.1, 0.2, 0.3, 0.5, 4, 3, 2, 1], dtype=np.float32)
    found = compute_results(with_lists, "dev", scores).metrics
    expected = compute_results(without, "dev", scores[:4]).metrics
    for name in ("auc", "mrr", "category_entropy@10", "evaluated", "single_class", "users"):
        assert found[name] == expected[name], name
    assert (found["impressions"], found["beyond_accuracy"]) == (3, 1)
    assert reader_of(tmp_path / "a").submission == "predictions.txt"


def test_a_column_of_the_future_is_refused_as_a_field(tmp_path, capsys):
    root = write(tmp_path)
    options = ["--scorer=cosine", f"--data.root={root}", "--split=dev"]
    said = refused(
        capsys, "evaluate", *options, "--data.fields=[title, total_pageviews]",
        f"--output={tmp_path / 'x'}",
    )  # fmt: skip
    assert "total_pageviews is known only after the impression" in said
