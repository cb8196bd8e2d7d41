"""A submission is taken exactly where a plain loop with ``json.loads`` would take it."""

import contextlib
import json
import random
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from newsrec.__main__ import main
from newsrec.data.dataset import Split, open_mind
from newsrec.data.ragged import Ragged, to_offsets
from newsrec.errors import UserError
from newsrec.evaluation import check_submission
from newsrec.evaluation.check_submission import Report, inspect
from newsrec.evaluation.submission import write_predictions
from newsrec.metrics import METRICS
from newsrec.report.checked_submission import warnings_of


def split_of(ids, lengths, labels=None):
    """Return a split of which only ids, candidates and labels count."""
    zeros = np.zeros(len(ids), dtype=np.int32)
    lengths = np.array(lengths, dtype=np.int64)
    counts = {
        "impressions": len(ids),
        "empty_histories": 0,
        "history_news": 10,
        "unknown_history_news": 0,
        "candidates": int(lengths.sum()),
        "unknown_candidates": 0,
    }
    return Split(
        name="test",
        impression_id=np.array(ids, dtype=np.int64),
        user=zeros,
        time=zeros.astype("datetime64[s]"),
        history=zeros,
        histories=Ragged(zeros[:1], np.array([0, 1])),
        candidates=Ragged(np.zeros(lengths.sum(), dtype=np.int32), to_offsets(lengths)),
        labels=labels,
        counts=counts,
        fingerprint="",
        num_news=0,
    )


def zipped(path, text, **members):
    """Write a zip with this ``prediction.txt``."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in ({"prediction.txt": text} | members).items():
            archive.writestr(name, content)
    return path


IDS, LENGTHS = [11, 12, 13, 14], [3, 1, 2, 12]
GOOD = ["11 [2,1,3]", "12 [1]", "13 [1,2]", "14 [12,11,10,9,8,7,6,5,4,3,2,1]"]


def found(tmp_path, lines, end="\n"):
    text = lines if isinstance(lines, bytes) else (end.join(lines) + end).encode()
    return inspect(zipped(tmp_path / "prediction.zip", text), split_of(IDS, LENGTHS))


def oracle(text: bytes, ids, lengths) -> tuple[list[int], bool]:
    """Return numbers of bad lines, and whether lines are missing: one line after the other."""
    lines = text.decode("latin-1").replace("\r\n", "\n").split("\n")
    if lines[-1] == "":
        lines.pop()
    elif lines[-1].endswith("\r"):  # opened as text, that is a line end, too
        lines[-1] = lines[-1][:-1]
    bad = []
    for number, line in enumerate(lines, start=1):
        try:
            words, wanted = line.split(" "), list(range(1, lengths[number - 1] + 1))
            ranks = json.loads(words[1])
            good = len(words) == 2 and words[0] == str(ids[number - 1])
            good &= all(type(rank) is int for rank in ranks) and sorted(ranks) == wanted
            good &= words[1] == json.dumps(ranks, separators=(",", ":"))
        except (ValueError, IndexError, TypeError):
            good = False
        if not good:
            bad.append(number)
    return bad, len(lines) < len(ids)


def test_a_good_file_is_taken(tmp_path):
    report = found(tmp_path, GOOD)
    assert report.accepted
    assert (report.lines, report.judged, report.in_order, report.backwards) == (4, 1, 0, 1)
    assert report.metrics is None


def test_the_last_line_needs_no_line_end(tmp_path):
    assert found(tmp_path, "\n".join(GOOD).encode()).accepted


@pytest.mark.parametrize("last", [b"", b"\r", b"\r\n"])
def test_windows_line_ends_are_taken_and_counted(tmp_path, last):
    report = found(tmp_path, "\r\n".join(GOOD).encode() + last)
    assert report.accepted
    assert report.carriage_returns == 3 + bool(last)
    assert "Windows line ends: " in warnings_of(report, split_of(IDS, LENGTHS))[0]


@pytest.mark.parametrize(
    ("line", "kind", "said"),
    [
        ("12 [1,2,3]", "id", "the id is 12, but the data have 11 there"),
        ("011 [1,2,3]", "id", "the id is 011"),
        ("N11 [1,2,3]", "id", "the id is N11"),
        ("9" * 60 + " [1,2,3]", "id", "the id is 99999999999999999..., but"),
        ("11 [1,2]", "count", "2 ranks for 3 candidates"),
        ("11 [1,2,3,4]", "count", "4 ranks for 3 candidates"),
        ("11 []", "count", "0 ranks for 3 candidates"),
        ("11 [1,1,3]", "permutation", "the rank 1 occurs 2 times, and 2 is missing"),
        ("11 [1,2,4]", "permutation", "the rank 4 of 3 candidates, while 3 is missing"),
        ("11 [0,1,2]", "rank", "the rank '0' is not a whole number from 1 to 3"),
        ("11 [-1,1,2]", "rank", "the rank '-1' is"),
        ("11 [1,2,2.5]", "rank", "the rank '2.5' is"),
        ("11 [1,2,3.0]", "rank", "the rank '3.0' is"),
        ("11 [1,two,3]", "rank", "the rank 'two' is"),
        ("11 [1,2,03]", "rank", "the rank '03' is"),
        ("11 [1, 2, 3]", "rank", "the rank ' 2' is"),
        ("11 [1,,3]", "rank", "the rank '' is"),
        ("11 [1,2," + "3" * 30 + "]", "rank", "the rank '33333333333333333...' is"),
        ("11 1,2,3", "form", "not like 11 [r1,r2,...]"),
        ("11 [1,2,3", "form", "not like"),
        ("11 [1,2,3] ", "form", "not like"),
        ("11[1,2,3]", "form", "not like"),
        ("11\t[1,2,3]", "form", "not like"),
        ("[1,2,3]", "form", "not like"),
        ("11 [1,2\r,3]", "form", "a carriage return inside the line"),
        ("\ufeff11 [1,2,3]", "form", "a byte order mark before the id"),
        ("", "blank", "blank, where impression 11 belongs"),
        ("  ", "blank", "blank, where"),
    ],
)
def test_a_bad_line_is_named_with_what_stands_there_and_what_should(tmp_path, line, kind, said):
    assert oracle("\n".join([line, *GOOD[1:]]).encode(), IDS, LENGTHS)[0] == [1]
    report = found(tmp_path, [line, *GOOD[1:]])
    assert not report.accepted
    assert report.bad == {kind: 1}
    assert str(report.first).startswith(f"line 1: {said}")
    assert len(str(report.first)) < 200


@pytest.mark.parametrize(
    ("order", "first", "said"),
    [
        ([1, 0, 2, 3], 1, "All ids are there, but not in the order of the data."),
        ([0, 2, 3], 2, "Wrong ids: 1 missing (12)."),
        ([0, 1], None, "Wrong ids: 2 missing (13, ...)."),
        ([], None, "Wrong ids: 4 missing (11, ...)."),
        ([0, 1, 1, 2, 3], 3, "Wrong ids: 1 repeated (12)."),
        ([0, 1, 2, 3, 3], 5, "Wrong ids: 1 repeated (14)."),
        ([0, 0, 2, 3], 2, "Wrong ids: 1 missing (12), 1 repeated (11)."),
        ([0, 1, 2, 3] * 40, 5, "Wrong ids: 4 repeated (11, ...)."),
    ],
)
@pytest.mark.parametrize("block", [1, 7, 1 << 20])
def test_lost_doubled_and_moved_lines_are_told_apart(
    tmp_path, monkeypatch, order, first, said, block
):
    monkeypatch.setattr(check_submission, "BLOCK_BYTES", block)
    report = found(tmp_path, [GOOD[i] for i in order] if order else b"")
    assert not report.accepted
    assert report.ids == said
    assert (report.first and report.first.number) == first
    assert report.lines == len(order)


def test_an_id_of_another_file_is_told(tmp_path):
    report = found(tmp_path, [*GOOD[:2], "99 [1,2]", GOOD[3]])
    assert report.ids == "Wrong ids: 1 missing (13), 1 not in the data (99)."


def test_blank_lines_at_the_end_are_extra(tmp_path):
    report = found(tmp_path, [*GOOD, "", ""])
    assert report.bad == {"extra": 2}
    assert str(report.first) == "line 5: beyond the last impression: ''"


@st.composite
def submissions(draw, least=1):
    """Ids, lengths and a permutation for each impression."""
    lengths = draw(st.lists(st.integers(1, 13), min_size=least, max_size=12))
    ids = draw(
        st.lists(st.integers(0, 10**6), min_size=len(lengths), max_size=len(lengths), unique=True)
    )
    seed = random.Random(draw(st.integers(0, 2**32)))
    return ids, lengths, [seed.sample(range(1, n + 1), n) for n in lengths]


def text_of(ids, ranks):
    return "".join(f"{i} [{','.join(map(str, r))}]\n" for i, r in zip(ids, ranks, strict=True))


quick = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@quick
@given(submission=submissions(), block=st.sampled_from([1, 5, 64, 1 << 20]))
def test_random_ranks_round_trip(tmp_path, monkeypatch, submission, block):
    ids, lengths, ranks = submission
    monkeypatch.setattr(check_submission, "BLOCK_BYTES", block)
    path = tmp_path / "prediction.zip"
    flat = np.concatenate([np.array(r, dtype=np.int32) for r in ranks])
    write_predictions(path, np.array(ids), flat, to_offsets(np.array(lengths)))
    assert zipfile.ZipFile(path).read("prediction.txt").decode() == text_of(ids, ranks)
    report = inspect(path, split_of(ids, lengths))
    assert report.accepted
    long = [r for r in ranks if len(r) >= 5]
    assert report.judged == len(long)
    assert report.in_order == sum(r == sorted(r) for r in long)
    assert report.backwards == sum(r == sorted(r, reverse=True) for r in long)


letters = st.sampled_from(b"0123456789 ,[]\n\r\t-.eN\xef\x00")


@quick
@given(
    submission=submissions(),
    block=st.sampled_from([1, 5, 64, 1 << 20]),
    edits=st.lists(
        st.tuples(st.sampled_from(["put", "drop", "change"]), st.integers(0, 10**6), letters),
        min_size=1,
        max_size=4,
    ),
)
def test_a_loop_over_lines_finds_the_same_bad_lines(
    tmp_path, monkeypatch, submission, block, edits
):
    ids, lengths, ranks = submission
    monkeypatch.setattr(check_submission, "BLOCK_BYTES", block)
    text = bytearray(text_of(ids, ranks).encode())
    for what, place, letter in edits:
        place %= len(text) or 1
        text[place : place + (what != "put")] = b"" if what == "drop" else bytes([letter])
    bad, missing = oracle(bytes(text), ids, lengths)
    path = zipped(tmp_path / "prediction.zip", bytes(text))
    report = inspect(path, split_of(ids, lengths))
    assert report.accepted == (not bad and not missing)
    assert (report.lines < len(ids)) == missing
    assert report.bad.total() == len(bad)
    assert (report.first and report.first.number) == (bad[0] if bad else None)


@quick
@given(submission=submissions(least=2), data=st.data())
def test_a_corrupted_line_is_found_there(tmp_path, submission, data):
    ids, lengths, ranks = submission
    row = data.draw(st.integers(0, len(ids) - 1))
    lines = text_of(ids, ranks).splitlines()
    which = data.draw(st.integers(0, lengths[row] - 1))
    wrong = list(map(str, ranks[row]))
    wrong[which] = data.draw(st.sampled_from(["0", "-1", "1.5", "x", "", str(lengths[row] + 1)]))
    lines[row] = data.draw(
        st.sampled_from(
            [
                f"{ids[row]} [{','.join(wrong)}]",
                f"{ids[row]} [{','.join(map(str, [*ranks[row], 1]))}]",
                f"{ids[row] + 1} [{','.join(map(str, ranks[row]))}]",
                "",
                lines[row].replace(" ", ""),
            ]
        )
    )
    path = zipped(tmp_path / "prediction.zip", "\n".join(lines) + "\n")
    report = inspect(path, split_of(ids, lengths))
    assert report.first.number == row + 1
    assert report.bad.total() == 1
    assert report.first.text == lines[row]


def refused(path):
    with pytest.raises(UserError) as error:
        inspect(path, split_of(IDS, LENGTHS))
    return str(error.value)


def test_a_zip_must_hold_the_text_alone_at_its_top(tmp_path):
    path, text = tmp_path / "prediction.zip", "\n".join(GOOD)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("results/prediction.txt", text)
        archive.writestr("__MACOSX/results/._prediction.txt", "")
    assert "holds 'results/prediction.txt', '__MACOSX/results/._prediction.txt'" in refused(path)
    for name in ("predictions.txt", "Prediction.txt", "./prediction.txt"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, text)
        assert f"holds {name!r}; the leaderboard wants only prediction.txt" in refused(path)
    zipped(path, text, **{f"notes{i}.txt": "" for i in range(9)})
    assert "'notes3.txt', ...; the leaderboard" in refused(path)
    with zipfile.ZipFile(path, "w"):
        pass
    assert "holds nothing;" in refused(path)


def test_what_cannot_be_read_is_refused(tmp_path):
    path = zipped(tmp_path / "prediction.zip", "\n".join(GOOD))
    whole = path.read_bytes()
    assert "There is no" in refused(tmp_path / "other.zip")
    assert "is a folder" in refused(tmp_path)
    path.write_text("\n".join(GOOD))
    assert "is not a zip, or is cut off" in refused(path)
    path.write_bytes(whole[:-30])
    assert "is not a zip, or is cut off" in refused(path)
    encrypted = bytearray(whole)
    encrypted[6] |= 1
    encrypted[whole.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(encrypted)
    assert "is encrypted" in refused(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("prediction.txt", "\n".join(GOOD))
    path.write_bytes(path.read_bytes().replace(b"[2,1,3]", b"[3,1,2]"))
    assert "Bad CRC-32" in refused(path)


@quick
@given(edits=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=3))
def test_a_damaged_zip_is_refused_or_holds_what_it_held(tmp_path, edits):
    path = zipped(tmp_path / "prediction.zip", "\n".join(GOOD))
    damaged = bytearray(path.read_bytes())
    for place, letter in edits:
        damaged[place % len(damaged)] = letter
    path.write_bytes(damaged)
    with contextlib.suppress(UserError):  # anything else fails
        assert inspect(path, split_of(IDS, LENGTHS)).accepted


def test_a_line_without_an_end_is_not_read_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(check_submission, "BLOCK_BYTES", 10)
    monkeypatch.setattr(check_submission, "LONGEST_LINE", 100)
    path = zipped(tmp_path / "prediction.zip", f"{GOOD[0]}\n12 [{'1' * 1000}]\n")
    assert "line 2 is over" in refused(path)


def test_orders_that_no_model_makes_are_warned_of():
    split = split_of(IDS, LENGTHS)
    assert warnings_of(Report(4, judged=100, in_order=9, backwards=4), split) == []
    assert warnings_of(Report(4, judged=1000, in_order=49, backwards=49), split) == []
    in_order, backwards = warnings_of(Report(4, judged=100, in_order=10, backwards=90), split)
    assert "10 of 100 impressions with 5 candidates or more (10.0%)" in in_order
    assert "in the order of the file" in in_order
    assert "in the reverse order of the file" in backwards


def test_shares_that_no_data_has_are_warned_of():
    split = split_of(IDS, LENGTHS)
    split.counts.update(empty_histories=4, unknown_history_news=1, unknown_candidates=9)
    empty, clicks, candidates = warnings_of(Report(4), split)
    assert "empty histories: 4 of 4 (100.0%)." in empty
    assert "unknown history clicks: 1 of 11 (9.1%)." in clicks
    assert "unknown candidates: 9 of 18 (50.0%)." in candidates


def evaluated(mind_dir, output, split, scorer="random"):
    main(["evaluate", f"--scorer={scorer}", f"--data.root={mind_dir}", f"--split={split}",
          f"--output={output}", "--trainer.accelerator=cpu"])  # fmt: skip
    return output / "prediction.zip", json.loads((output / "metrics.json").read_text())


def checked(path, mind_dir, split, *options):
    main(["check-submission", str(path), f"--data.root={mind_dir}", f"--split={split}", *options])


@pytest.mark.parametrize("scorer", ["random", "popularity", "category"])
@pytest.mark.parametrize("block", [50, 1 << 20])
def test_what_evaluate_wrote_is_taken_and_scores_the_same(
    mind_dir, tmp_path, monkeypatch, capsys, scorer, block
):
    monkeypatch.setattr(check_submission, "BLOCK_BYTES", block)
    path, metrics = evaluated(mind_dir, tmp_path / "dev", "dev", scorer)
    report = inspect(path, open_mind(mind_dir).split("dev"))
    assert report.accepted
    for name in METRICS:
        assert report.metrics[name] == pytest.approx(metrics[name], abs=1e-12)
    for name in ("impressions", "evaluated", "single_class"):
        assert report.metrics[name] == metrics[name]

    capsys.readouterr()
    checked(path, mind_dir, "dev")
    said = capsys.readouterr().out
    assert "would be accepted: 23 lines, one for each impression of dev, 2019-11-15" in said
    assert f"{metrics['auc']:.4f}" in said
    assert f"dev, 2019-11-15: {metrics['evaluated']} impressions" in said


def test_a_split_without_labels_has_no_score_and_the_data_are_shown(mind_dir, tmp_path, capsys):
    path, _ = evaluated(mind_dir, tmp_path / "test", "test")
    capsys.readouterr()
    checked(path, mind_dir, "test")
    said = capsys.readouterr().out
    assert "test has no labels, so there is no score." in said
    rows = {line.split("│")[1].strip(): line.split("│")[2:-1] for line in said.splitlines()
            if "│" in line}  # fmt: skip
    assert [cell.split() for cell in rows["impressions"]] == [["15"], ["41"], ["23"]]
    assert [cell.split() for cell in rows["empty histories"]] == [
        ["1", "6.7%"], ["2", "4.9%"], ["1", "4.3%"]]  # fmt: skip
    assert rows["unknown history clicks"][0].split()[0] == "1"
    assert rows["unknown candidates"][0].split()[0] == "1"


def test_histories_read_as_empty_show(mind_dir, tmp_path, capsys):
    """As when columns were taken for others: everything else is as it should be."""
    path = mind_dir / "test" / "behaviors.tsv"
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    path.write_text("".join("\t".join([*row[:3], "", row[4]]) + "\n" for row in rows))
    path, _ = evaluated(mind_dir, tmp_path / "test", "test")
    capsys.readouterr()
    checked(path, mind_dir, "test")
    assert "Warning: empty histories: 15 of 15 (100.0%)." in capsys.readouterr().out


def test_a_refusal_exits_with_2_and_says_what_to_do(mind_dir, tmp_path, capsys):
    path, _ = evaluated(mind_dir, tmp_path / "dev", "dev")

    def said(path, split):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            checked(path, mind_dir, split)
        assert stop.value.code == 2
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        assert not out
        return err

    answer = said(path, "test")
    assert f"{path} would be refused for test.\nprediction.txt, line 1: the id is 42" in answer
    assert "the data have 65 there" in answer
    assert "Bad lines: 23 of 23 (15 with another id than" in answer
    assert "8 beyond the last impression" in answer
    assert "It has as many lines as dev: is it for --split dev?" in answer
    lines = zipfile.ZipFile(path).read("prediction.txt").decode().splitlines()
    answer = said(zipped(path, "\n".join(lines[:20])), "dev")
    assert "ends after line 20; impressions without a line: 3 of 23." in answer
    assert "3 missing (62, ...)" in answer
    assert "There is no nowhere.zip" in said("nowhere.zip", "dev")
    shutil.rmtree(mind_dir / "test")
    assert "no split 'test'" in said(path, "test")


def test_lines_of_the_data_that_were_skipped_are_warned_of(mind_dir, tmp_path, capsys):
    behaviors = Path(mind_dir) / "dev" / "behaviors.tsv"
    behaviors.write_bytes(behaviors.read_bytes() + b"seven\tU1\t11/11/2019 9:05:58 AM\t\tN1-0\n")
    output = tmp_path / "dev"
    main(["evaluate", "--scorer=random", f"--data.root={mind_dir}", "--split=dev",
          f"--output={output}", "--trainer.accelerator=cpu",
          "--data.on_bad_line=drop"])  # fmt: skip
    capsys.readouterr()
    checked(output / "prediction.zip", mind_dir, "dev", "--data.on_bad_line=drop")
    assert "could not be read and were dropped: 1." in capsys.readouterr().out
