import base64
import hashlib
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from conftest import tiny_behaviors, tiny_news, write_mind

from newsrec.data.dataset import open_mind
from newsrec.evaluation.baselines import BASELINES, score_baseline
from newsrec.evaluation.intervals import FEWEST_USERS
from newsrec.evaluation.results import compute_results
from newsrec.metrics import METRICS
from newsrec.report.examples import RANKED_BLIND, UNKNOWN, choose_examples
from newsrec.report.page import html_page
from newsrec.report.page_rows import WEAKEST
from newsrec.report.pictures import TEMPLATES, WIDTH, Axis, Dot, Mark, bar_axis, bars, line, lines
from newsrec.report.terminal import read_curves

EVIL = "<script>alert('x')</script> & <b>\"bold\""
INFO = {
    "scorer": "checkpoint",
    "selected_on": "dev",
    "trained_on": {"train": "2019-11-11"},
    "precision": "fp32",
    "checkpoint_sha256": "ab" * 32,
}
VOID = {"meta", "br", "line", "circle", "polyline", "use"}


class Page(HTMLParser):
    """Reads a page: its text, its tags and what they refer to; tags must be closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.links, self.words, self.ids = [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href", "action", "data")]
        self.ids += [v for k, v in attrs if k == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script", "title"} & set(self.open):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def page_of(mind_dir, split="dev", title="runs/one/checkpoints/best.ckpt", curves=None):
    data = open_mind(mind_dir)
    part = data.split(split)
    rng = np.random.default_rng(0)
    scores = rng.normal(size=len(part.candidates.values)).astype(np.float32)
    vectors = rng.normal(size=(data.num_news, 4)).astype(np.float32)
    others = {name: score_baseline(name, data, split, news_vectors=vectors) for name in BASELINES}
    results = compute_results(data, split, scores, others)
    results.metrics.update(INFO)
    examples = choose_examples(data, split, scores, results)
    ceiling = dict.fromkeys(METRICS, 0.9)
    return html_page(title, results.metrics, ceiling, examples, curves), results.metrics, examples


def test_the_page_needs_nothing_from_elsewhere(mind_dir):
    text, _, _ = page_of(mind_dir, curves={"val/auc": (np.arange(3.0), np.arange(3.0))})
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    assert {link[0] for link in page.links} == {"#"}
    assert {link[1:] for link in page.links} <= set(page.ids)
    assert page.tags.count("script") == 1
    assert not {"link", "img", "iframe", "object", "form"} & set(page.tags)
    assert not re.search(r"url\(|@import|https?:|\bon\w+=|style=", text)


def test_the_policy_of_the_page_allows_its_own_script_and_style_alone(mind_dir):
    text, _, _ = page_of(mind_dir)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text).group(1)
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert len(rules) == 5
    for kind in ("script", "style"):
        inside = re.search(f"<{kind}>(.*?)</{kind}>", text, re.DOTALL).group(1)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert rules[f"{kind}-src"] == f"'sha256-{digest}'"


def test_the_page_knows_light_and_dark_and_narrow_screens(mind_dir):
    text, _, _ = page_of(mind_dir)
    assert "@media (prefers-color-scheme: dark)" in text
    assert '<meta name="color-scheme" content="light dark">' in text
    assert 'content="width=device-width, initial-scale=1"' in text
    light, dark = (set(re.findall(r"--[\w-]+(?=:)", part)) for part in text.split("@media", 1))
    assert light == dark  # no colour of the one is missing in the other
    assert set(re.findall(r"var\((--[\w-]+)\)", text)) <= light


def test_the_numbers_are_those_of_the_metrics(mind_dir):
    text, metrics, _ = page_of(mind_dir)
    words = Page(text).text
    for metric in METRICS:
        low, high = metrics["intervals"][metric]
        assert f"{metrics[metric]:.4f} {low:.4f} to {high:.4f}" in words
    for row in metrics["baselines"].values():
        low, high = row["auc_difference_interval"]
        numbers = [f"{row[metric]:.4f}" for metric in METRICS]
        numbers += [f"{row['auc_difference']:+.4f}", f"{low:+.4f} to {high:+.4f}"]
        assert " ".join(numbers) in words
    for groups in metrics["slices"].values():
        for name, row in groups.items():
            numbers = [name, f"{row['impressions']:,}", f"{row['evaluated']:,}"]
            if row["evaluated"]:
                low, high = row["intervals"]["auc"]
                interval = f"{low:.4f} to {high:.4f}" if row["users"] >= FEWEST_USERS else "–"  # noqa: RUF001
                first, *others = (f"{row[m]:.4f}" for m in METRICS)
                numbers = [name, first, interval, *numbers[1:], *others]
            assert " ".join(numbers) in words
    for fact in ("ab" * 32, metrics["data_fingerprint"], "train, 2019-11-11", "fp32", "0.9000"):
        assert fact in words
    assert f"{metrics['category_entropy@10']:.4f} bits" in words
    assert "dev chose this checkpoint" in words


def test_all_text_is_escaped(tmp_path):
    news, behaviors = tiny_news(), tiny_behaviors()
    for rows in news.values():
        for row in rows:
            row[1] = row[2] = row[3] = EVIL
    for rows in behaviors.values():
        for row in rows:
            row[1] += "<i>"
    write_mind(tmp_path, news, behaviors)
    for split in ("dev", "test"):
        text, _, _ = page_of(tmp_path, split, title=EVIL)
        page = Page(text)
        assert page.tags.count("script") == text.count("<script") == 1
        assert '<b>"bold' not in text
        assert not re.search(r"U\d+<i>", text)
        assert EVIL in page.text


def test_examples_go_from_the_worst_to_the_best(mind_dir):
    _, _, examples = page_of(mind_dir)
    aucs = [example.auc for example in examples]
    assert len(examples) == 10
    assert len({example.impression_id for example in examples}) == 10
    assert aucs == sorted(aucs)
    assert aucs[-1] - aucs[0] > 0.5
    again = page_of(mind_dir)[2]
    assert again == examples


def test_an_example_is_what_the_file_says(mind_dir):
    lines = (mind_dir / "dev" / "behaviors.tsv").read_text().splitlines()
    rows = {int(line.split("\t")[0]): line.split("\t") for line in lines}
    titles = {
        line.split("\t")[0]: line.split("\t")[3]
        for split in ("train", "dev", "test")
        for line in (mind_dir / split / "news.tsv").read_text().splitlines()
    }
    for example in page_of(mind_dir)[2]:
        _, user, _, history, shown = rows[example.impression_id]
        known = [titles[item] for item in history.split() if item in titles]
        assert example.user == user
        assert example.num_history == len(known)
        assert example.history == known[::-1][:6]
        clicked = sorted(
            titles.get(name, "(not among the news)")
            for name, _, label in (word.partition("-") for word in shown.split())
            if label == "1"
        )
        assert sorted(c.title for c in example.candidates if c.clicked) == clicked
        ranks = [c.rank for c in example.candidates]
        assert ranks == sorted(ranks)
        assert ranks[:6] == list(range(1, 1 + min(6, example.num_candidates)))
        scores = [c.score for c in example.candidates]
        assert scores == sorted(scores, reverse=True)


def test_a_split_without_labels_has_a_page_of_counts_and_examples(mind_dir):
    text, _, examples = page_of_unlabelled(mind_dir)
    words = Page(text).text
    assert "has no labels: 15 impressions ranked" in words
    assert "AUC" not in words
    assert "clicked" not in words
    assert len(examples) == 10
    assert all(c.clicked is None for e in examples for c in e.candidates)


def page_of_unlabelled(mind_dir):
    data = open_mind(mind_dir)
    scores = np.arange(len(data.split("test").candidates.values), dtype=np.float32)
    results = compute_results(data, "test", scores)
    results.metrics.update(INFO)
    examples = choose_examples(data, "test", scores, results)
    return html_page("x", results.metrics, None, examples, None), results.metrics, examples


def test_a_split_of_which_nothing_can_be_evaluated_has_a_page(mind_dir):
    path = mind_dir / "dev" / "behaviors.tsv"
    path.write_text(path.read_text().replace("-1", "-0"))
    data = open_mind(mind_dir)
    scores = np.zeros(len(data.split("dev").candidates.values), dtype=np.float32)
    results = compute_results(data, "dev", scores, {"random": scores})
    results.metrics.update(INFO)
    examples = choose_examples(data, "dev", scores, results)
    assert "0 evaluated" in Page(html_page("x", results.metrics, None, examples, None)).text


def test_curves_are_read_from_the_run_folder_alone(tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    best = run / "checkpoints" / "best.ckpt"
    assert read_curves(best) == {}
    (run / "metrics.csv").write_text(
        "epoch,step,train/loss,val/auc\n0,9,1.5,\n0,19,nan,\n0,20,,0.6\n1,29,1.2,\n"
    )
    curves = read_curves(best)
    assert [x.tolist() for x in curves["train/loss"]] == [[9, 29], [1.5, 1.2]]
    assert [x.tolist() for x in curves["val/auc"]] == [[20], [0.6]]
    assert read_curves(run / "best.ckpt") == {}


def numbers(picture, name):
    return [float(n) for n in re.findall(rf'\b{name}="(-?[\d.]+)%?"', picture)]


def picture_of(axis, dot):
    return str(TEMPLATES.get_template("parts.html.j2").module.row(axis, dot))


def test_rows_share_an_axis_that_covers_all_of_their_whiskers():
    rows = [
        Dot("a", 0.5, (0.45, 0.55), reference=0.62),
        Dot("b", 0.7, (-3.0, 4.0), "strong", [Mark("other", 0.6), Mark("x", -4.5, "unseen")]),
        Dot("c", 0.6, wider=(0.1, 0.2)),
    ]
    axis = Axis.of((end for dot in rows for end in dot.ends), "a")
    places, values = [], []
    for dot in rows:
        picture = picture_of(axis, dot)
        Page(picture)
        places += numbers(picture, "cx")[-1:]
        values.append(dot.value)
        if dot.interval:
            ends = re.findall(r'whisker" x1="([\d.]+)%" x2="([\d.]+)%"', picture)
            assert len(ends) == 3  # the line and both of its caps
            places += map(float, ends[0])
            values += dot.interval
            assert f"{dot.label} {dot.value:.4f} ({dot.interval[0]:.4f} to" in picture
        assert all(0 <= x <= 100 for name in ("x1", "x2", "cx") for x in numbers(picture, name))
    slope, start = np.polyfit(values, places, 1)
    np.testing.assert_allclose(np.polyval([slope, start], values), places, atol=0.01)
    assert slope > 0
    assert axis.low <= min(axis.ticks) < max(axis.ticks) <= axis.high


def test_an_axis_has_two_to_six_ticks():
    for span in np.geomspace(1e-6, 1e6, 200):
        assert 2 <= len(Axis.of([-0.3 * span, 0.7 * span], "a").ticks) <= 6


def test_numbers_at_the_ends_of_an_axis_stay_inside_its_picture():
    axis = Axis(0.0, 1.0, "a")
    for share, anchor in ((0.01, "start"), (0.5, "middle"), (0.97, "end")):
        assert axis.anchor(share) == anchor
    module = TEMPLATES.get_template("parts.html.j2").module
    picture = module.ticks(Axis(0.0, 0.605, "a"))
    assert 'x="99.17%" y="12" text-anchor="end">0.6<' in picture
    assert 'x="0.00%" y="12" text-anchor="start">0<' in picture


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0, -1e-9, 1e6])
def test_a_row_of_one_number_is_drawn(value):
    axis = Axis.of([value, None, math.nan], "a")
    assert numbers(picture_of(axis, Dot("a", value, (value, value))), "cx") == [50]


def test_a_row_without_a_number_has_no_dot():
    axis = Axis.of([math.nan, None], "a")
    picture = picture_of(
        axis, Dot("a", math.nan, (math.nan, math.nan), marks=[Mark("m", math.nan)])
    )
    assert "nan" not in picture
    assert "circle" not in picture


@pytest.mark.parametrize("seed", range(5))
def test_bars_are_as_long_as_the_parts_of_the_scores(seed):
    rng = np.random.default_rng(seed)
    scores = [[(float(v), "click") for v in rng.normal(size=4)] for _ in range(3)]
    axis = bar_axis(scores)
    span = axis.high - axis.low
    for parts in scores:
        for bar in bars(parts, axis):
            left, width = float(bar.left[:-1]), float(bar.width[:-1])
            assert width == pytest.approx(100 * abs(bar.value) / span, abs=0.01)
            zero = float(axis.at(0)[:-1])
            assert left >= zero - 0.02 if bar.value > 0 else left + width <= zero + 0.02
            assert -0.02 <= left <= left + width <= 100.02


@pytest.mark.parametrize("points", [1, 2, 5, 1000])
def test_a_line_stays_inside_its_picture(points):
    rng = np.random.default_rng(points)
    picture = line(np.arange(points) * 10.0, rng.normal(size=points), "x", "step")
    Page(picture)
    pairs = re.search(r'points="([^"]+)"', picture).group(1).split()
    assert len(pairs) == min(points, 240)
    xs, ys = zip(*(map(float, pair.split(",")) for pair in pairs), strict=True)
    assert list(xs) == sorted(xs)
    assert min(xs) >= 0
    assert max(xs) <= WIDTH
    assert min(ys) >= 0
    assert max(ys) <= 150


def test_an_unknown_candidate_is_marked_wherever_it_is_ranked(mind_dir):
    text, _, examples = page_of(mind_dir)
    listed = [candidate for example in examples for candidate in example.candidates]
    unknown = [candidate for candidate in listed if candidate.title == UNKNOWN]
    assert unknown  # dev shows one
    assert {candidate.category for candidate in unknown} == {RANKED_BLIND}
    assert RANKED_BLIND not in {c.category for c in listed if c not in unknown}
    assert Page(text).text.count(f"{UNKNOWN} {RANKED_BLIND}") == len(unknown)


def test_lines_have_one_axis_and_their_names_do_not_overlap():
    x = np.arange(5.0)
    series = {name: (x, x * 0 + value) for name, value in {"a": 0.5, "b": 0.501, "c": 0.9}.items()}
    picture = lines(series, "x", "step")
    Page(picture)
    heights = [
        {float(pair.split(",")[1]) for pair in points.split()}
        for points in re.findall(r'points="([^"]+)"', picture)
    ]
    a, b, c = (each.pop() for each in heights)
    assert a > b > c
    assert (a - b) / (a - c) == pytest.approx(0.001 / 0.4, abs=0.005)
    names = sorted(
        float(y) for y in re.findall(r'class="name c\d" x="[\d.]+" y="([\d.]+)"', picture)
    )
    assert min(np.diff(names)) >= 12.9


def fake(slices=None, **more):
    """Return the metrics of a split, made up."""
    metrics = {
        "split": "dev", "window": "a day", "impressions": 1, "evaluated": 1, "single_class": 0,
        "tied": 0, "users": 1, "unknown_candidates": 0, "dropped_lines": 0,
        "data_fingerprint": "x", "category_entropy@10": 0.0, "slices": slices or {},
        **INFO, **dict.fromkeys(METRICS, 0.7),
        "intervals": {name: [0.6, 0.8] for name in METRICS},
    }  # fmt: skip
    return metrics | more


def group(auc, low, high, users=50):
    row = dict.fromkeys(METRICS, auc) | {"intervals": {"auc": [low, high]}}
    return row | {"impressions": users, "evaluated": users, "users": users}


def test_weak_groups_are_named_first():
    rng = np.random.default_rng(1)
    slices = {
        f"slice {number}": {
            f"group {number}-{k}": group(auc, auc - reach, auc + reach, users)
            for k, (auc, reach, users) in enumerate(
                zip(
                    rng.uniform(0.3, 1, 10),
                    rng.uniform(0, 0.2, 10),
                    rng.integers(1, 60, 10),
                    strict=True,
                )
            )
        }
        for number in range(40)
    }
    words = Page(html_page("x", fake(slices), None, [], None)).text
    weak = []
    for name, groups in slices.items():
        for key, row in groups.items():
            if row["users"] >= FEWEST_USERS and row["intervals"]["auc"][1] < 0.7:
                weak.append((row["auc"], f"{name}: {key}"))
    named = words[words.index("Weakest groups") : words.rindex("All groups")]
    assert re.findall(r"slice \d+: group [\d-]+", named) == [n for _, n in sorted(weak)[:WEAKEST]]
    first = words.index(f"{min(weak)[1]} ({min(weak)[0]:.4f})")
    assert first < words.index("Accuracy")
    assert all(f"group 39-{k}" in words for k in range(10))
    strong = {"slice": {"group": group(0.9, 0.8, 1.0)}}
    assert "has its whole interval below" in Page(html_page("x", fake(strong), None, [], None)).text


def test_a_page_without_baselines_or_with_numbers_that_are_none_is_whole():
    text = html_page("x", fake(auc=math.nan, intervals=dict.fromkeys(METRICS, [math.nan] * 2)),
                     None, [], None)  # fmt: skip
    assert "nan%" not in text
    assert "baseline" not in Page(text).text
    assert Page(html_page("x", fake(baselines={}), None, [], {})).text.count("Groups") == 0


def test_long_and_turned_titles_are_written_out(tmp_path):
    news, behaviors = tiny_news(), tiny_behaviors()
    title = "W" * 10_000
    for rows in news.values():
        for row in rows:
            row[3] = f"\u202e{title}\u2066"
    write_mind(tmp_path, news, behaviors)
    text, _, _ = page_of(tmp_path)
    assert f'class="long" tabindex="0">{title}</span>' in text  # in a box that scrolls
    assert not re.search("[\u202a-\u202e\u2066-\u2069]", text)


def test_the_page_has_the_curves_as_numbers_and_the_configuration(mind_dir):
    steps = np.array([10.0, 20.0])
    curves = {f"val/{name}": (steps, np.array([0.1, 0.25]) + k) for k, name in enumerate(METRICS)}
    curves["train/loss"] = (np.arange(1000.0), np.ones(1000))
    text = html_page("x", fake(), None, [], curves, config="data: <b>\n  k: 1\n")
    words = Page(text).text
    assert "step AUC MRR nDCG@5 nDCG@10 10 0.1000 1.1000 2.1000 3.1000 20 0.2500 1.2500" in words
    assert text.count("<polyline") == len(METRICS) + 1
    assert "<pre>data: &lt;b&gt;\n  k: 1\n</pre>" in text


def test_scores_are_explained_by_bars_and_in_words(mind_dir):
    _, metrics, examples = page_of(mind_dir)
    why = [(1.5, "<i>one</i>"), (-0.25, "two"), (0.125, "without any click")]
    first = examples[0]._replace(
        candidates=[c._replace(reasons=why) for c in examples[0].candidates]
    )
    words = Page(text := html_page("x", metrics, None, [first], None)).text
    assert words.count("+1.500 <i>one</i> -0.250 two +0.125 without any click") == len(
        first.candidates
    )
    assert text.count('<rect class="rest"') == len(first.candidates)


def test_one_impression_of_a_user_without_history_has_a_page(mind_dir):
    path = mind_dir / "dev" / "behaviors.tsv"
    lines = path.read_text().splitlines()
    fields = next(line for line in lines if "-1" in line and "-0" in line).split("\t")
    fields[3] = ""
    path.write_text("\t".join(fields) + "\n")
    text, metrics, _ = page_of(mind_dir)
    words = Page(text).text
    assert metrics["evaluated"] == 1
    assert "1 user is too few" in words
    assert "), of 1 user, too few to trust the interval." in words
    assert "No clicks before." in words
    assert f"{metrics['auc']:.4f}" in words
    assert not re.search(r"\bnan\b", words)
