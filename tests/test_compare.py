import json
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from beyond_worlds import VOICES, random_data, voices_of
from test_html_report import Page
from test_runs import write_run

from newsrec.__main__ import COMMANDS, main
from newsrec.commands.compare import name_separator
from newsrec.errors import UserError
from newsrec.evaluation import beyond_results, slices
from newsrec.evaluation.beyond import ASPECT_HEADINGS, OF_VECTORS, OF_VOICES, PER_IMPRESSION, WHOLE
from newsrec.evaluation.beyond_results import with_beyond
from newsrec.evaluation.compare import compare
from newsrec.evaluation.intervals import paired_interval, sign_flip_p
from newsrec.evaluation.results import per_impression_table
from newsrec.evaluation.runs import METRICS, read_run
from newsrec.evaluation.seeds import seed_interval
from newsrec.report.beyond import left_out_notes
from newsrec.report.comparison_page import comparison_page
from newsrec.report.differences import print_differences
from newsrec.report.evaluate import measure_split

COVERS = "covers the choice of users, not the training seed"


class World:
    """Impressions of users, of which models know more or less.

    Args:
        folder: Where runs are written.
        seed: Of all that is drawn.
        users: Number of users, who have 1 to 8 impressions each.
    """

    def __init__(self, folder, seed=0, users=120):
        self.folder = folder
        self.rng = np.random.default_rng(seed)
        self.users = np.repeat(np.arange(users), self.rng.integers(1, 9, users))
        self.rng.shuffle(self.users)
        number = len(self.users)
        self.base = 0.6 + self.rng.normal(0, 0.1, users)[self.users] + self.noise(0.1)
        self.base[::17] = np.nan
        self.slices = {
            "half": [("first", "second")[2 * row // number] for row in range(number)],
            "user": ["few" if user < 4 else "many" for user in self.users],
            "day": ["Monday"] * number,
        }

    def noise(self, spread):
        return self.rng.normal(0, spread, len(self.users))

    def run(self, name, mean=0.0, seed=0.005, **about):
        """Write a run whose seed moves it as a whole by ``seed``, and each impression."""
        auc = self.base + mean + self.rng.normal(0, seed) + self.noise(0.03)
        return write_run(self.folder / name, auc, self.users, self.slices, **about)

    def unwritten(self, names, seed=0.005):
        """Return such runs as they would be read, but write one of them only, without slices."""
        self.slices = {}
        first = read_run(self.run(names[0], seed=seed))
        runs = [first]
        for name in names[1:]:
            auc = self.base + self.rng.normal(0, seed) + self.noise(0.03)
            runs.append(first._replace(
                folder=self.folder / name,
                metrics=first.metrics | {"checkpoint_sha256": name, "auc": float(np.nanmean(auc))},
                values=np.stack([auc - 0.1 * step for step in range(len(METRICS))]),
            ))  # fmt: skip
        return runs


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def as_json(capsys, *args):
    main(["compare", *map(str, args), "--json"])
    return json.loads(capsys.readouterr().out)


def test_the_numbers_are_those_of_the_interval_and_the_test(world, capsys):
    a, b = world.run("a", 0.01), world.run("b")
    result = as_json(capsys, a, b)
    runs = read_run(a), read_run(b)
    kept = ~np.isnan(runs[0].values[0])
    users = world.users[kept]
    for row, name in enumerate(METRICS):
        one, other = (run.values[row, kept] for run in runs)
        mean, low, high = paired_interval(one, other, users)
        found = result["metrics"][name]
        assert found["a"] == pytest.approx(one.mean())
        assert found["b"] == pytest.approx(other.mean())
        assert found["difference"] == pytest.approx(mean)
        # This folder has no user_number: users are numbered as they come.
        assert found["interval"] == pytest.approx([low, high], abs=0.002)
        assert found["p"] == pytest.approx(sign_flip_p(one - other, users), abs=0.02)
        assert set(found) == {
            *("a", "b", "difference", "interval", "p"),
            *("detectable", "p_equivalent"),
        }
    assert result["evaluated"] == kept.sum()
    assert result["impressions"] == len(kept)
    assert result["users"] == len(np.unique(users))
    assert [run["folder"] for run in result["a"]] == [str(a)]


def annotated_runs(tmp_path):
    """Return the metrics and folders of two evaluated runs with all metrics, and their data."""
    data, scores, vectors = random_data(500, 300, 4, annotated=True)
    others = {"random": np.random.default_rng(1).random(len(scores), dtype=np.float32)}
    found, folders = {}, {}
    for name, own, beside in (("a", scores, others), ("b", others["random"], {})):
        results, aspects, _ = measure_split(
            data, "train", own, beside, vectors, None, voices=voices_of(VOICES)
        )
        found[name] = results.metrics | {"trained_on": {}, "selected_on": None}
        folders[name] = tmp_path / name
        folders[name].mkdir()
        (folders[name] / "metrics.json").write_text(json.dumps(found[name]))
        table = with_beyond(per_impression_table(data, "train", results), aspects)
        pq.write_table(table, folders[name] / "per_impression.parquet")
    return found, folders, data


def test_compare_finds_the_differences_of_evaluate(tmp_path, monkeypatch):
    """More users than clusters, and users whose numbers are not in the order of the file."""
    monkeypatch.setattr(slices, "CLUSTERS", 200)
    monkeypatch.setattr(beyond_results, "MOST", 400)
    found, folders, data = annotated_runs(tmp_path)
    assert len(np.unique(data.split("train").user)) > slices.CLUSTERS
    result = compare([read_run(folders["a"])], [read_run(folders["b"])])
    assert result["beyond_left_out"] == {}
    auc, beside = result["metrics"]["auc"], found["a"]["baselines"]["random"]
    assert auc["difference"] == pytest.approx(beside["auc_difference"])
    assert auc["interval"] == pytest.approx(beside["auc_difference_interval"])
    assert auc["detectable"] == pytest.approx(beside["auc_detectable"])
    for row in found["a"]["errors"]["groups"]:
        group = result["slices"][row["slice"]][row["group"]]
        assert group["difference"] == pytest.approx(row["difference"])
        assert group["interval"] == pytest.approx(row["interval"])
    assert set(result["beyond"]) == {*PER_IMPRESSION, *WHOLE}
    for name, row in found["a"]["beyond"]["baselines"]["random"].items():
        line = result["beyond"][name]
        assert line["difference"] == pytest.approx(row["difference"], abs=1e-6)
        assert line["interval"] == pytest.approx(row["difference_interval"], abs=1e-6)


def test_metrics_of_other_vectors_or_voices_are_not_compared_and_named(tmp_path, capsys):
    found, folders, _ = annotated_runs(tmp_path)
    for part, value, left, said in (
        ("voices", {"digest": "another"}, OF_VOICES, "representation, alternative voices, because "
         "they count different names (--voices)."),
        ("vectors", [9.0, 9.0], OF_VECTORS,
         "because their news vectors are of different PLMs or texts."),
    ):  # fmt: skip
        other = found["b"] | {"beyond": found["b"]["beyond"] | {part: value}}
        (folders["b"] / "metrics.json").write_text(json.dumps(other))
        result = compare([read_run(folders["a"])], [read_run(folders["b"])])
        assert set(result["beyond"]) == {*PER_IMPRESSION, *WHOLE} - left
        assert {reason: set(names) for reason, names in result["beyond_left_out"].items()} == {
            part: left
        }
        print_differences(result)
        assert said in " ".join(capsys.readouterr().out.split())
        assert said in Page(comparison_page(result)).text


def test_an_unwritten_run_is_what_would_be_read(tmp_path):
    runs = World(tmp_path).unwritten("ab")
    world = World(tmp_path)
    world.slices = {}
    for found, name in zip(runs, "ab", strict=True):
        expected = read_run(world.run(name))
        np.testing.assert_array_equal(found.values, expected.values)
        assert found.metrics == expected.metrics
        assert found.folder == expected.folder


def test_metrics_that_only_one_side_has_are_named(tmp_path, capsys):
    _, folders, _ = annotated_runs(tmp_path)
    path = folders["b"] / "per_impression.parquet"
    table = pq.read_table(path)
    pq.write_table(table.drop_columns([f"beyond/{name}" for name in OF_VECTORS]), path)
    result = compare([read_run(folders["a"])], [read_run(folders["b"])])
    assert set(result["beyond"]) == {*PER_IMPRESSION, *WHOLE} - OF_VECTORS
    assert set(result["beyond_left_out"]["missing"]) == OF_VECTORS
    print_differences(result)
    said = " ".join(capsys.readouterr().out.split())
    assert "vector diversity, near-duplicates" in said
    assert "because not all of the results have them." in said
    assert "--model.plm" not in said
    result["b"][0]["scorer"] = "recent"
    hint = "For a baseline, evaluate measures those of news vectors with --model.plm."
    assert left_out_notes(result)[-1] == hint


def test_a_run_against_itself_does_not_differ(world, capsys):
    a = world.run("a")
    for args in ([a, a], [a, "--", a], [a, world.run("b"), "--", a, world.folder / "b"]):
        for row in as_json(capsys, *args)["metrics"].values():
            assert (row["difference"], row["interval"], row["p"]) == (0, [0, 0], 1)
    over = row["over_seeds"]
    assert over["interval"][0] < 0 < over["interval"][1]
    assert over["p"] == 1


def test_two_seeds_of_one_model_are_mostly_not_called_different(tmp_path):
    users_alone, covered = 0, 0
    for number in range(60):
        runs = World(tmp_path, number, users=60).unwritten(["a0", "a1", "a2", "b0", "b1", "b2"])
        found = compare(runs[:3], runs[3:])["metrics"]["auc"]
        users_alone += found["p"] < 0.05
        covered += found["over_seeds"]["p"] < 0.05
    assert users_alone >= 18  # it does not claim to cover seeds
    assert covered <= 6


def test_seeds_that_change_each_impression_alone_are_not_called_different(tmp_path):
    found = 0
    for number in range(100):
        a, b = World(tmp_path, number, users=60).unwritten("ab", seed=0)
        found += compare([a], [b])["metrics"]["auc"]["p"] < 0.05
    assert found <= 11


def test_several_runs_are_averaged_and_their_seeds_covered(world, capsys):
    a = [world.run(f"a{i}", 0.02) for i in range(3)]
    b = [world.run(f"b{i}") for i in range(2)]
    result = as_json(capsys, *a, "--", *b)
    kept = ~np.isnan(world.base)
    values_a, values_b = (
        np.stack([read_run(folder).values[0, kept] for folder in side]) for side in (a, b)
    )
    found = result["metrics"]["auc"]
    assert found["a_runs"] == pytest.approx(values_a.mean(axis=1).tolist())
    assert found["b_runs"] == pytest.approx(values_b.mean(axis=1).tolist())
    assert found["difference"] == pytest.approx(values_a.mean() - values_b.mean())
    low, high, p, freedom = seed_interval(values_a, values_b, world.users[kept])
    over = found["over_seeds"]
    assert over["interval"] == pytest.approx([low, high])
    assert (over["p"], over["freedom"]) == pytest.approx((p, freedom))
    assert low < found["interval"][0] < found["interval"][1] < high
    assert result == as_json(capsys, *a, "--against", *b)


def test_a_single_checkpoint_says_nothing_of_seeds_but_a_baseline_has_none(world, capsys):
    a = [world.run(f"a{i}", 0.02) for i in range(3)]
    main(["compare", *map(str, a), "--", str(world.run("b"))])
    assert "B is one run, so the effect of its seed is unknown" in capsys.readouterr().out
    assert as_json(capsys, *a, "--", world.folder / "b")["metrics"]["auc"]["over_seeds"] is None
    popular = world.run("p", scorer="popularity", checkpoint_sha256=None)
    found = as_json(capsys, popular, "--", *a)["metrics"]["auc"]
    assert found["over_seeds"]["interval"][1] < 0
    assert found["over_seeds"]["p"] < 0.05


def test_each_group_of_slices_that_divide_is_compared(world, capsys):
    a, b = world.run("a", 0.01), world.run("b")
    result = as_json(capsys, a, b, "--metric", "mrr")
    assert list(result["slices"]) == ["half", "user"]
    first = result["slices"]["half"]["first"]
    inside = np.array([g == "first" for g in world.slices["half"]]) & ~np.isnan(world.base)
    difference = (read_run(a).values - read_run(b).values)[1, inside]
    assert first["impressions"] == inside.sum()
    assert first["users"] == len(np.unique(world.users[inside]))
    assert first["difference"] == pytest.approx(difference.mean())
    assert first["a"] == pytest.approx(read_run(a).values[1, inside].mean())
    assert first["interval"][0] < first["difference"] < first["interval"][1]
    few = result["slices"]["user"]["few"]
    assert [few[key] for key in ("users", "interval", "p", "p_holm")] == [4, None, None, None]
    tested = [g for slice_ in result["slices"].values() for g in slice_.values() if g["p"]]
    assert len(tested) == 3
    assert min(g["p_holm"] for g in tested) == pytest.approx(3 * min(g["p"] for g in tested))


def test_a_comparison_reads_in_80_columns(world, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(world.folder)
    world.slices["category"] = [f"category {row % 9}" for row in range(len(world.users))]
    for name, mean in (("a1", 0.01), ("a2", 0.01), ("b1", 0), ("b2", 0)):
        world.run(name, mean, selected_on="dev" if name[0] == "a" else None)
    main(["compare", "a1", "a2", "--", "b1", "b2"])
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert text.startswith("A: a1, a2\nB: b1, b2\ndev, 15 November: ")
    prose = " ".join(text.split())
    assert f"The interval {COVERS}; so does p." in prose
    assert "This interval and p cover the choice of users and the training seeds" in prose
    assert "dev chose the checkpoint of A" in prose
    assert "chose the checkpoint of B" not in prose
    assert "Tests: 12 groups, of which some may differ by chance" in prose
    assert "Groups of fewer than 20 users have no interval and no p" in prose
    assert "and 1 more" in prose
    assert "nDCG@10" in prose


def test_what_favours_a_side_is_said(world, capsys):
    a = world.run("a", trained_on={"train+dev": "9 to 15 November"})
    main(["compare", str(a), str(world.run("b", trained_on=None, selected_on=None))])
    text = capsys.readouterr().out
    assert "A was trained on dev" in text
    assert "B was" not in text


def test_sides_that_were_scored_in_unlike_precisions_are_remarked_on(world, capsys):
    a, b, c = (world.run(n, precision=p) for n, p in (("a", "bf16"), ("b", "fp32"), ("c", None)))
    main(["compare", str(a), str(b)])
    text = capsys.readouterr().out
    assert f"A: {a} (bf16)" in text
    assert f"B: {b} (fp32)" in text
    assert "A was scored in bf16, B in fp32" in " ".join(text.split())
    assert [side["precision"] for side in as_json(capsys, a, b)["b"]] == ["fp32"]
    for other in (a, c):  # the same, or a baseline
        copy = world.run(f"like {other.name}", precision="bf16")
        main(["compare", str(copy), str(other)])
        assert "was scored in" not in capsys.readouterr().out


def test_sides_that_treat_repeats_of_clicks_unlike_are_remarked_on(world, capsys):
    rule = {"threshold": 0.9, "penalty": "last", "candidates": 3}
    a, b = world.run("a", repeats=rule), world.run("b")
    main(["compare", str(a), str(b)])
    text = " ".join(capsys.readouterr().out.split())
    assert "A ranks them last (cosine of at least 0.9), B treats them as others." in text
    main(["compare", str(a), str(world.run("c", repeats=rule | {"candidates": 4}))])
    assert "repeat a click" not in capsys.readouterr().out


def test_slices_that_only_one_side_has_are_named(world, capsys):
    a = world.run("a")
    world.slices = {"half": world.slices["half"]}
    main(["compare", str(a), str(world.run("b"))])
    text = capsys.readouterr().out
    assert "Left out, because not all runs have the same groups: day, user." in text
    assert "first" in text


def test_the_sides_can_be_exchanged(world, capsys):
    a, b = world.run("a", 0.002), world.run("b")
    there, back = as_json(capsys, a, b), as_json(capsys, b, a)
    for name in METRICS:
        one, other = there["metrics"][name], back["metrics"][name]
        assert one["difference"] == pytest.approx(-other["difference"])
        assert one["interval"] == pytest.approx([-bound for bound in other["interval"][::-1]])
        assert one["p"] == other["p"]


def test_a_handful_of_users_is_compared_with_a_warning(tmp_path, capsys):
    world = World(tmp_path, users=6)
    main(["compare", str(world.run("a")), str(world.run("b"))])
    text = " ".join(capsys.readouterr().out.split())
    assert "6 users are too few to trust them." in text
    assert "Tests:" not in text
    assert "Groups of fewer than 20 users have no interval and no p." in text


def test_sides_are_parted_by_a_separator_or_by_name():
    assert name_separator(["a", "--", "b", "--json"]) == ["a", "--against", "b", "--json"]
    assert name_separator(["a", "--against", "b"]) == ["a", "--against", "b"]
    for twice in (["a", "--", "b", "--", "c"], ["a", "--against=b", "--", "c"]):
        with pytest.raises(UserError, match="two sides"):
            name_separator(twice)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["a"], "One folder is given. Give two, A B, or several seeds on each side"),
        (["a", "b", "c"], "3 folders are given. Give two"),
        (["a", "missing"], "missing does not exist. Give a folder that evaluate wrote"),
        (["a", "--", "b", "--", "c"], "There are two sides"),
        (["a", "a", "--", "b"], "a is given twice on one side"),
        (["a", "other"], "other of the split test"),
    ],
)
def test_mistakes_are_told_and_end_with_2(world, capsys, monkeypatch, args, message):
    monkeypatch.chdir(world.folder)
    for name in "abc":
        world.run(name)
    world.run("other", split="test")
    with pytest.raises(SystemExit) as stop:
        main(["compare", *args])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_help_imports_nothing_heavy_and_comparing_no_pytorch(world):
    code = """
import sys
from newsrec.__main__ import COMMANDS, main

def help(*argv):
    try:
        main([*argv, "--help"])
    except SystemExit as stop:
        assert not stop.code

help()
heavy = {"torch", "lightning", "transformers", "pandas", "pyarrow", "numpy"} & set(sys.modules)
assert not heavy, heavy
help("compare")
main(["compare", *sys.argv[1:]])
assert "torch" not in sys.modules
"""
    command = [sys.executable, "-c", code, world.run("a"), world.run("b")]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert all(name in said for name in COMMANDS)


def test_compare_writes_a_page_whose_numbers_are_those_of_its_json(world, tmp_path, capsys):
    a, b = world.run("<i>a", 0.05, scorer="checkpoint"), world.run("b", scorer="checkpoint")
    output = tmp_path / "out"
    main(["compare", str(a), str(b), f"--output={output}"])
    page_file = output / "report.html"
    assert capsys.readouterr().out.endswith(f"Open the page: {page_file.as_uri()}\n")
    result = json.loads((output / "comparison.json").read_text())
    assert result == as_json(capsys, a, b)
    text = page_file.read_text()
    page = Page(text)
    assert page.tags.count("script") == 1
    assert "<i>a" in page.text
    assert "<i>" not in text
    assert len(page.ids) == len(set(page.ids))
    for row in result["metrics"].values():
        low, high = row["interval"]
        wanted = f"{row['difference']:+.4f} {low:+.4f} to {high:+.4f} {row['a']:.4f} {row['b']:.4f}"
        assert wanted in page.text
    for groups in result["slices"].values():
        for name, row in groups.items():
            bounds = "–"  # noqa: RUF001
            if row["interval"]:
                bounds = " to ".join(f"{end:+.4f}" for end in row["interval"])
            assert f"{name} {row['difference']:+.4f} {bounds} {row['a']:.4f}" in page.text
    assert "A is better" in page.text
    with pytest.raises(SystemExit):
        main(["compare", str(a), str(b), f"--output={output}"])
    assert "is not empty" in capsys.readouterr().err


def test_a_group_is_coloured_only_if_it_differs_after_the_adjustment(world):
    runs = [[read_run(world.run(name))] for name in "ab"]
    result = compare(*runs)
    group = result["slices"]["half"]["first"]
    group |= {"difference": 0.03, "interval": [0.01, 0.05]}
    for p, coloured in ((0.2, False), (0.01, True)):
        group["p_holm"] = p
        text = comparison_page(result)
        row = text[text.rindex("first</") :].partition("</tr>")[0]
        assert ("dots better" in row) == coloured


@pytest.mark.parametrize(("p", "shown"), [(0.06, False), (0.04, True)])
def test_a_side_is_better_only_if_interval_and_p_say_so(world, p, shown):
    result = compare(*([read_run(world.run(name))] for name in "ab"))
    result["metrics"]["auc"] |= {"difference": -0.02, "interval": [-0.03, -0.01], "p": p}
    page = Page(comparison_page(result))
    verdict = "B is better (A - B" if shown else "This split does not show which is better"
    assert verdict in page.text
    text = comparison_page(result)
    row = text[text.index(">AUC<") :].partition("</tr>")[0]
    assert ("dots worse" in row) == shown


@pytest.mark.parametrize("sign", [1, -1])
def test_a_dot_is_coloured_by_the_direction_of_its_metric(world, sign):
    result = compare(*([read_run(world.run(name))] for name in "ab"))
    line = {"a": 0.5, "b": 0.4, "difference": 0.1 * sign}
    line["interval"] = sorted([0.05 * sign, 0.15 * sign])
    result["beyond"] = {f"{name}@10": line for name in ASPECT_HEADINGS}
    text = comparison_page(result)
    less = {"calibration", "near-duplicates", "freshness", "Gini of exposure"}
    neither = {"fragmentation", "unexpectedness", "activation", "representation",
               "alternative voices"}  # fmt: skip
    for heading in ASPECT_HEADINGS.values():
        name = heading.partition(",")[0]
        row = text[text.rindex(f">{name[:1].upper()}{name[1:]}<") :].partition("</tr>")[0]
        kind = "better" if (name in less) == (sign < 0) else "worse"
        if name in neither:
            kind = "apart"
        assert f'class="dots {kind}"' in row
        assert ("Less is better." in row) == (name in less)


def test_the_page_of_several_seeds_has_the_wider_interval(world, tmp_path):
    sides = [[world.run(f"{side}{n}", seed=0.02) for n in range(3)] for side in "ab"]
    result = compare(*([read_run(run) for run in side] for side in sides))
    text = comparison_page(result)
    words = Page(text).text
    low, high = result["metrics"]["auc"]["over_seeds"]["interval"]
    assert f"{low:+.4f} to {high:+.4f}" in words
    assert "runs of A" in words
    assert text.count('class="wider" x1="') >= 4
