import json
import os
import random
import shutil
import tempfile
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from conftest import news_row, tiny_behaviors, write_mind
from forks import FORKS
from hypothesis import given, settings
from hypothesis import strategies as st

from newsrec.data import FIRST_NEWS, PADDING_NEWS, UNKNOWN_NEWS, store
from newsrec.data.dataset import SPLITS, open_mind
from newsrec.data.readers import tsv
from newsrec.data.readers.mind_files import BEHAVIORS_COLUMNS, find_splits
from newsrec.errors import UserError

PADDING, UNKNOWN, FIRST = 0, 1, 2


def lines_of(file):
    with file.open() as stream:
        lines = stream.read().decode().split("\n")
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r").split("\t") for line in lines]


def parse_by_lines(files):
    """Read a data folder slowly, one line at a time: news items by row, impressions by split."""
    news, row = {}, {}
    splits = {}
    for split in files:  # each knows its own news items and those of the splits before it
        for news_id, *fields in lines_of(files[split].news):
            news.setdefault(news_id, fields[:4])
            row.setdefault(news_id, FIRST + len(row))
        impressions, counts = [], Counter(dropped_lines=0, dropped_news_lines=0)
        titles = {fields[0]: fields[3] for fields in reversed(lines_of(files[split].news))}
        counts["news"] = len(titles)
        counts["repeated_titles"] = len(titles) - len(set(titles.values()))
        for number, user, time, history, candidates in lines_of(files[split].behaviors):
            clicked = [n for n in history.split(" ") if n]
            shown = [c.removesuffix("-0").removesuffix("-1") for c in candidates.split(" ")]
            labels = [int(c[-1]) for c in candidates.split(" ") if c.endswith(("-0", "-1"))]
            impressions.append(
                {
                    "id": int(number),
                    "user": user,
                    "time": datetime.strptime(time, "%m/%d/%Y %I:%M:%S %p"),
                    "history": [row[n] for n in clicked if n in row],
                    "candidates": [row.get(n, UNKNOWN) for n in shown],
                    "labels": labels,
                }
            )
            counts["history_news"] += sum(n in row for n in clicked)
            counts["unknown_history_news"] += sum(n not in row for n in clicked)
            counts["empty_histories"] += not any(n in row for n in clicked)
            counts["unknown_candidates"] += sum(n not in row for n in shown)
            counts["candidates"] += len(shown)
            counts["clicks"] += sum(labels)
        counts["impressions"] = len(impressions)
        counts["users"] = len({impression["user"] for impression in impressions})
        splits[split] = impressions, counts, FIRST + len(row)
    return news, splits


def impressions_of(data, split):
    """Read one split of NewsData back into the same form."""
    impressions = []
    for i in range(len(split.impression_id)):
        start, end = split.candidates.offsets[i : i + 2]
        first, last = split.histories.offsets[split.history[i] :][:2]
        impressions.append(
            {
                "id": int(split.impression_id[i]),
                "user": data.users[int(split.user[i])].as_py(),
                "time": split.time[i].item(),
                "history": split.histories.values[first:last].tolist(),
                "candidates": split.candidates.values[start:end].tolist(),
                "labels": [] if split.labels is None else split.labels[start:end].tolist(),
            }
        )
    return impressions


def assert_agrees_with_lines(root):
    data = open_mind(root)
    news, splits = parse_by_lines(find_splits(root))
    assert data.news["news_id"].to_pylist() == list(news)
    for i, column in enumerate(("category", "subcategory", "title", "abstract")):
        assert data.news[column].to_pylist() == [fields[i] for fields in news.values()]
    assert data.num_news == len(news) + FIRST
    assert len(set(data.users.to_pylist())) == len(data.users)
    assert list(data.splits) == list(splits)
    for name, (impressions, counts, num_news) in splits.items():
        split = data.split(name)
        assert split.num_news == num_news
        assert impressions_of(data, split) == impressions
        if split.labels is None:
            assert not any(impression["labels"] for impression in impressions)
            counts.pop("clicks")
        assert split.counts == dict(counts)
    return data


def test_every_field_of_the_tiny_mind_is_as_a_loop_over_lines_reads_it(mind_dir):
    assert_agrees_with_lines(mind_dir)


def test_arrays_have_the_types_that_the_docstrings_promise(mind_dir):
    split = open_mind(str(mind_dir)).split("dev")
    assert split.impression_id.dtype == np.int64
    assert split.time.dtype == np.dtype("datetime64[s]")
    assert split.labels.dtype == np.int8
    for rows in (split.user, split.history, split.histories.values, split.candidates.values):
        assert rows.dtype == np.int32
    for ragged in (split.histories, split.candidates):
        assert ragged.offsets.dtype == np.int64
    assert isinstance(split.candidates.values, np.memmap)


def test_real_news_start_at_row_2_in_the_order_of_the_splits(mind_dir):
    data = open_mind(mind_dir)
    ids = data.news["news_id"].to_pylist()
    assert ids[:3] == ["N1", "N2", "N3"]
    assert ids[-6:] == ["N15", "N16", "N17", "N18", "N19", "N20"]
    assert (PADDING_NEWS, UNKNOWN_NEWS, FIRST_NEWS) == (PADDING, UNKNOWN, FIRST)
    rows = {news_id: FIRST + i for i, news_id in enumerate(ids)}
    train = data.split("train")
    last = train.candidates.take(np.arange(train.candidates.num_rows)[-2:])
    assert last.values.tolist() == [
        *(rows["N12"], UNKNOWN, rows["N11"]),  # N12-0 N404-0 N11-1
        *(UNKNOWN, rows["N2"], rows["N13"]),  # N404-1 N2-0 N13-0
    ]
    assert train.labels[-6:].tolist() == [0, 0, 1, 1, 0, 0]
    repeats = train.histories.take(train.history[-2:-1])
    assert repeats.values.tolist() == [rows[n] for n in ("N11", "N12", "N11", "N11")]


def test_unknown_news_leave_a_history_and_are_counted(tmp_path):
    root = one_split(tmp_path, ["1", "U1", "11/11/2019 9:05:58 AM", "N8 N1 N9 N2", "N1-0 N7-1"])
    split = open_mind(root).split("train")
    assert split.histories.values.tolist() == [2, 3]
    assert split.candidates.values.tolist() == [2, UNKNOWN]
    assert split.counts["unknown_history_news"] == 2
    assert split.counts["unknown_candidates"] == 1


def test_a_split_knows_its_own_news_and_those_of_the_splits_before_it(tmp_path):
    news = {
        split: [news_row(n, *"abcd")] for split, n in zip(SPLITS, ("N1", "N2", "N3"), strict=True)
    }
    time = "11/11/2019 9:05:58 AM"
    line = ["1", "U1", time, "N3 N2 N1", "N1-0 N2-1 N3-0"]
    data = open_mind(write_mind(tmp_path, news, {name: [line] for name in SPLITS}))
    candidates = [data.split(name).candidates.values.tolist() for name in SPLITS]
    assert candidates == [[2, UNKNOWN, UNKNOWN], [2, 3, UNKNOWN], [2, 3, 4]]
    histories = [data.split(n).histories.take(data.split(n).history).values for n in SPLITS]
    assert [h.tolist() for h in histories] == [[2], [3, 2], [4, 3, 2]]
    assert [data.split(name).num_news for name in SPLITS] == [3, 4, 5]
    assert data.num_news == 5


def test_a_split_of_empty_histories_opens(tmp_path):
    root = one_split(tmp_path, ["1", "U1", "11/11/2019 9:05:58 AM", "", "N1-0 N2-1"])
    split = assert_agrees_with_lines(root).split("train")
    assert split.histories.lengths.tolist() == [0]


def test_equal_histories_are_kept_once(tmp_path):
    rows = [[f"{i}", f"U{i}", "11/11/2019 9:05:58 AM", "N2 N1", "N1-0 N2-1"] for i in range(5)]
    split = open_mind(one_split(tmp_path, *rows)).split("train")
    assert split.histories.num_rows == 1
    assert split.history.tolist() == [0] * 5
    assert split.counts["history_news"] == 10


def test_noon_and_midnight_are_told_apart(tmp_path):
    times = ["1/2/2019 12:00:00 AM", "01/02/2019 12:00:00 PM", "1/2/2019 1:00:00 PM"]
    rows = [["1", "U1", time, "N1", "N1-0"] for time in times]
    split = open_mind(one_split(tmp_path, *rows)).split("train")
    expected = np.array(["2019-01-02T00", "2019-01-02T12", "2019-01-02T13"], dtype="datetime64[s]")
    np.testing.assert_array_equal(split.time, expected)


def test_the_first_description_of_a_news_item_is_kept_and_others_are_counted(tmp_path):
    root = one_split(tmp_path, ["1", "U1", "11/11/2019 9:05:58 AM", "N1", "N1-0 N2-1"])
    news = [news_row("N2", "x", "y", "Another title", "z"), news_row("N1", *"abcd")]
    write_mind(root, {"dev": news}, {"dev": [["9", "U1", "11/15/2019 9:05:58 AM", "", "N1-1"]]})
    data = open_mind(root)
    assert data.news["title"].to_pylist() == ["c", "g"]
    meta = json.loads((data.cache / "meta.json").read_text())
    assert meta["disagreeing_news"] == 1


def test_users_of_all_splits_are_numbered_together(mind_dir):
    data = open_mind(mind_dir)
    users = data.users.to_pylist()
    by_split = {s.name: {users[u] for u in s.user} for s in data.splits.values()}
    assert {"U1", "U2"} <= by_split["train"] & by_split["dev"] & by_split["test"]
    assert "U7" in by_split["dev"] - by_split["train"]


def test_small_blocks_change_nothing(mind_dir, monkeypatch):
    monkeypatch.setattr(tsv, "BLOCK_BYTES", 512)
    assert_agrees_with_lines(mind_dir)


@pytest.mark.mind
def test_every_field_of_the_real_mind_is_as_a_loop_over_lines_reads_it(tmp_path):
    if not os.environ.get("MIND_ROOT"):
        pytest.skip("MIND_ROOT names no folder")
    for split, files in find_splits(Path(os.environ["MIND_ROOT"])).items():
        (tmp_path / split).mkdir()
        for file in files:
            (tmp_path / split / file.path.name).symlink_to(file.path.resolve())
    assert_agrees_with_lines(tmp_path)


text = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\t\r\n\0"), max_size=10
) | st.sampled_from(['"', '"quoted"', " leading", "trailing ", "a, b", "NULL", "nan", "\\", ""])
IDS = [f"N{i}" for i in range(1, 13)]


@st.composite
def worlds(draw):
    """Return news and behaviors rows of some splits, with awkward text and unknown news items."""
    texts = draw(st.lists(text, min_size=1, max_size=8))
    rng = random.Random(draw(st.integers(0, 2**32)))  # a draw for each number would take longer
    news, behaviors = {}, {}
    for split in draw(st.sets(st.sampled_from(["train", "dev", "test"]), min_size=1)):
        known = rng.sample(IDS, rng.randint(1, 4))
        news[split] = [[n, *rng.choices(texts, k=4), "", "", rng.choice(texts)] for n in known]
        labelled = rng.random() < 0.5
        behaviors[split] = []
        for _ in range(rng.randint(1, 4)):
            shown = rng.choices(IDS, k=rng.randint(1, 4))
            if labelled:
                shown = [f"{n}-{rng.randint(0, 1)}" for n in shown]
            time = datetime(2019, 1, 1) + timedelta(seconds=rng.randrange(2 * 365 * 24 * 3600))
            row = [
                str(rng.randrange(10 ** rng.randint(1, 18))),
                f"U{rng.randint(1, 4)}",
                f"{time.month}/{time.day}/{time.year} {time:%I:%M:%S %p}",
                " ".join(rng.choices(IDS, k=rng.randint(0, 5))),
                " ".join(shown),
            ]
            behaviors[split].append(row)
    return news, behaviors


@pytest.mark.slow
@given(worlds(), st.sampled_from(["\n", "\r\n"]), st.booleans())
@settings(max_examples=200, deadline=None)
def test_any_world_is_as_a_loop_over_lines_reads_it(world, line_end, last_line_end):
    with tempfile.TemporaryDirectory() as folder:
        write_mind(Path(folder), *world, line_end, last_line_end)
        assert_agrees_with_lines(Path(folder))


def one_split(tmp_path, *behaviors):
    """Write a train split of two news items."""
    news = [news_row("N1", *"abcd"), news_row("N2", *"efgh")]
    return write_mind(tmp_path / "mind", {"train": news}, {"train": behaviors})


def assert_refused(root, *parts):
    """Check that the folder does not open, what the message says, and that no cache is left."""
    with pytest.raises(UserError) as error:
        open_mind(root)
    for part in parts:
        assert str(part) in str(error.value)
    assert [p.name for p in root.glob(".newsrec/*") if p.is_dir()] == []


GOOD = ["7", "U1", "11/11/2019 9:05:58 AM", "N1 N2", "N1-0 N2-1"]


@pytest.mark.parametrize("line", [1, 20, 40])
@pytest.mark.parametrize(
    ("column", "text"),
    [
        ("impression_id", "seven"),
        ("impression_id", "7.0"),
        ("impression_id", "-7"),
        ("impression_id", ""),
        ("impression_id", "9" * 19),
        ("user_id", ""),
        ("time", ""),
        ("time", "2019-11-11 09:05:58"),
        ("time", "13/11/2019 9:05:58 AM"),
        ("time", "11/31/2019 9:05:58 AM"),
        ("time", "11/11/19 9:05:58 AM"),
        ("time", "11/11/2019 13:05:58 PM"),
        ("time", "11/11/2019 9:05:58"),
        ("candidates", ""),
        ("candidates", "N1-0  N2-1"),
        ("candidates", "N1-0 N2"),
        ("candidates", "N1-0 N2-2"),
        ("candidates", "N1-0 N404"),
        ("candidates", "N1-0 N2-"),
    ],
)
def test_a_field_that_cannot_be_read_is_named(tmp_path, line, column, text):
    rows = [list(GOOD) for _ in range(40)]
    rows[line - 1][BEHAVIORS_COLUMNS.index(column)] = text
    root = one_split(tmp_path, *rows)
    path = root / "train" / "behaviors.tsv"
    assert_refused(root, f"{path}, line {line}, column {column}: ")


@pytest.mark.parametrize("news_id", ["", "N 3"])
def test_an_impossible_news_id_is_named(tmp_path, news_id):
    root = one_split(tmp_path, GOOD)
    news = [news_row("N1", *"abcd"), news_row(news_id, *"abcd")]
    write_mind(root, {"train": news}, {})
    assert_refused(root, f"{root / 'train' / 'news.tsv'}, line 2, column news_id: ")


@pytest.mark.parametrize("name", ["news.tsv", "behaviors.tsv"])
@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda lines: [*lines[:1], b"", *lines[1:]], 2),
        (lambda lines: [*lines, b""], 3),
        (lambda lines: [lines[0] + b"\tmore", *lines[1:]], 1),
        (lambda lines: [lines[0], lines[1].rsplit(b"\t", 1)[0]], 2),
        (lambda lines: [lines[0], lines[1].replace(b"N1", b"N\xff1")], 2),
        (lambda lines: [lines[0], lines[1].replace(b"N1", b"\0\0")], 2),
        (lambda lines: [lines[0], lines[1].replace(b"N1", b"N\r1")], 2),
    ],
    ids=["blank", "blank at the end", "longer", "shorter", "not UTF-8", "NUL", "lone CR"],
)
def test_a_line_that_cannot_be_read_is_named(tmp_path, name, damage, line):
    root = one_split(tmp_path, GOOD, GOOD)
    write_mind(root, {"train": [news_row("N2", *"abcd"), news_row("N1", *"efgh")]}, {})
    path = root / "train" / name
    lines = damage(path.read_bytes().splitlines())
    path.write_bytes(b"\n".join(lines) + b"\n")
    assert_refused(root, f"{path}, line {line}, ")


@pytest.mark.parametrize("split", ["train", "dev"])
@pytest.mark.parametrize("name", ["news.tsv", "behaviors.tsv"])
def test_an_empty_file_is_named(mind_dir, split, name):
    (mind_dir / split / name).write_bytes(b"")
    assert_refused(mind_dir, f"{mind_dir / split / name} is empty")


@pytest.mark.parametrize("name", ["news.tsv", "behaviors.tsv"])
def test_a_missing_file_is_named(mind_dir, name):
    (mind_dir / "dev" / name).unlink()
    assert_refused(mind_dir, f"{mind_dir / 'dev'} has no {name}", "newsrec download")


def test_a_missing_folder_is_named(tmp_path):
    assert_refused(tmp_path / "nowhere", f"{tmp_path / 'nowhere'} is not a folder", "--data.root")


def test_a_folder_without_splits_is_named(tmp_path):
    assert_refused(tmp_path, f"{tmp_path} has no split: none of the folders train, dev, test")


def test_an_unlabelled_file_with_one_label_is_refused(mind_dir):
    rows = tiny_behaviors()["test"]
    rows[3][4] = "N3 N4-1"
    write_mind(mind_dir, {}, {"test": rows})
    path = mind_dir / "test" / "behaviors.tsv"
    assert_refused(mind_dir, f"{path}, line 4, column candidates: a label, while", "'N4-1'")


def test_an_absent_split_is_named_together_with_those_that_are_there(mind_dir):
    shutil.rmtree(mind_dir / "test")
    with pytest.raises(UserError, match="has no split 'test', only train, dev"):
        open_mind(mind_dir).split("test")


def test_official_folder_names_are_accepted(mind_dir):
    (mind_dir / "train").rename(mind_dir / "MINDlarge_train")
    (mind_dir / "dev").rename(mind_dir / "MINDsmall_dev")
    assert list(assert_agrees_with_lines(mind_dir).splits) == ["train", "dev", "test"]
    assert find_splits(mind_dir)["dev"].news.path == mind_dir / "MINDsmall_dev" / "news.tsv"


def test_two_folders_for_one_split_are_refused(mind_dir):
    shutil.copytree(mind_dir / "dev", mind_dir / "MINDsmall_dev")
    assert_refused(mind_dir, "dev and MINDsmall_dev", "which is dev?")


def compiled(root):
    return sorted(p.name for p in root.glob(".newsrec/mind-*"))


def count_compilations(monkeypatch):
    calls = []
    compile_splits = store.compile_splits

    def counted(*args):
        calls.append(args)
        return compile_splits(*args)

    monkeypatch.setattr(store, "compile_splits", counted)
    return calls


def test_files_are_compiled_once(mind_dir, monkeypatch):
    calls = count_compilations(monkeypatch)
    first, second = open_mind(mind_dir), open_mind(mind_dir)
    assert len(calls) == 1
    assert first.cache == second.cache
    assert impressions_of(first, first.split("dev")) == impressions_of(second, second.split("dev"))


def test_touched_or_moved_files_are_not_compiled_again(mind_dir, monkeypatch):
    calls = count_compilations(monkeypatch)
    first = open_mind(mind_dir)
    for path in mind_dir.glob("*/*.tsv"):
        os.utime(path, (1, 1))
    assert open_mind(mind_dir).cache == first.cache
    moved = mind_dir.rename(mind_dir.with_name("moved"))
    assert open_mind(moved).cache.name == first.cache.name
    assert len(calls) == 1


@pytest.mark.parametrize("name", ["news.tsv", "behaviors.tsv"])
def test_changed_files_are_compiled_anew(mind_dir, name):
    before = open_mind(mind_dir)
    path = mind_dir / "dev" / name
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[::-1]))  # the same size
    os.utime(path, (1, 1))
    after = assert_agrees_with_lines(mind_dir)
    assert before.cache != after.cache
    assert len(compiled(mind_dir)) == 2
    fingerprints = [{s.name: s.fingerprint for s in d.splits.values()} for d in (before, after)]
    assert fingerprints[0]["train"] == fingerprints[1]["train"]
    assert fingerprints[0]["dev"] != fingerprints[1]["dev"]


def test_a_changed_size_is_seen_at_the_same_modification_time(mind_dir):
    path = mind_dir / "train" / "behaviors.tsv"
    os.utime(path, (1, 1))
    open_mind(mind_dir)
    rows = tiny_behaviors()["train"]
    write_mind(mind_dir, {}, {"train": rows[:-1]})
    os.utime(path, (1, 1))
    assert assert_agrees_with_lines(mind_dir).split("train").counts["impressions"] == len(rows) - 1


def test_another_set_of_splits_has_arrays_of_its_own(mind_dir):
    everything = open_mind(mind_dir)
    shutil.rmtree(mind_dir / "test")
    rest = assert_agrees_with_lines(mind_dir)
    assert rest.cache != everything.cache
    assert rest.num_news == everything.num_news - 3  # N18, N19, N20


def test_another_version_of_the_arrays_is_not_read(mind_dir, monkeypatch):
    before = open_mind(mind_dir)
    monkeypatch.setattr(store, "ARRAYS_FORMAT", store.ARRAYS_FORMAT + 1)
    assert open_mind(mind_dir).cache != before.cache


def test_what_a_killed_compilation_left_is_removed_and_not_believed(mind_dir):
    cache = open_mind(mind_dir).cache
    left = cache.with_name(".building-killed")
    cache.rename(left)
    for path in left.rglob("*.npy"):
        path.write_bytes(b"half")
    assert assert_agrees_with_lines(mind_dir).cache == cache
    assert not left.exists()


@pytest.mark.parametrize("name", ["candidate_values.npy", "meta.json", "seal.json", "news.arrow"])
@pytest.mark.parametrize("damage", ["gone", "cut", "longer"])
def test_arrays_copied_by_half_are_made_anew(mind_dir, name, damage):
    path = open_mind(mind_dir).cache / name
    whole = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(whole[: len(whole) // 2] if damage == "cut" else whole + b"\0")
    assert_agrees_with_lines(mind_dir)
    if name != "seal.json" or damage == "cut":
        assert path.read_bytes() == whole


def test_a_refused_folder_opens_once_it_is_mended(mind_dir):
    rows = tiny_behaviors()["dev"]
    write_mind(mind_dir, {}, {"dev": [*rows, ["x", *rows[0][1:]]]})
    assert_refused(mind_dir, "not a whole number: 'x'")
    write_mind(mind_dir, {}, {"dev": rows})
    assert_agrees_with_lines(mind_dir)


@pytest.fixture
def read_only(monkeypatch, tmp_path):
    """Make a folder read-only, even for a superuser whom permissions do not stop."""

    def protect(root):
        access, mkdir = os.access, Path.mkdir

        def refuse(path, *args, **kwargs):
            if Path(path).is_relative_to(root) and not Path(path).exists():
                raise PermissionError(path)
            mkdir(path, *args, **kwargs)

        monkeypatch.setattr(Path, "mkdir", refuse)
        monkeypatch.setattr(
            os, "access", lambda p, m: not Path(p).is_relative_to(root) and access(p, m)
        )
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    return protect


def test_a_read_only_folder_is_compiled_into_the_users_cache(mind_dir, tmp_path, read_only):
    read_only(mind_dir)
    data = assert_agrees_with_lines(mind_dir)
    assert data.cache.is_relative_to(tmp_path / "cache" / "newsrec")
    assert not (mind_dir / ".newsrec").exists()


def test_arrays_that_the_owner_of_a_read_only_folder_has_made_are_read(
    mind_dir, read_only, monkeypatch
):
    before = open_mind(mind_dir)
    calls = count_compilations(monkeypatch)
    read_only(mind_dir)
    assert open_mind(mind_dir).cache == before.cache
    assert calls == []


def test_nowhere_to_write_is_an_error_that_says_so(mind_dir, read_only, tmp_path):
    read_only(tmp_path)
    with pytest.raises(UserError, match=r"neither .*newsrec nor .* can be written. Set XDG_CACHE"):
        open_mind(mind_dir)


def _open_together(root, barrier, results):
    barrier.wait()
    data = open_mind(root)
    results.put((data.cache.name, data.split("dev").candidates.values.tolist()))


def test_processes_that_start_at_once_read_the_same_arrays(mind_dir):
    barrier, results = FORKS.Barrier(2), FORKS.Queue()
    processes = [
        FORKS.Process(target=_open_together, args=(mind_dir, barrier, results)) for _ in range(2)
    ]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    data = assert_agrees_with_lines(mind_dir)
    assert found == [(data.cache.name, data.split("dev").candidates.values.tolist())] * 2
    files = sorted(p.name for p in (mind_dir / ".newsrec").iterdir())
    assert files == ["files.json", "lock", data.cache.name]
