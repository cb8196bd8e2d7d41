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
from newsrec.report.pictures import LEFT, RIGHT, WIDTH, Dot, dots, line
from newsrec.report.terminal import read_curves

EVIL = "<script>alert('x')</script> & <b>\"bold\""
INFO = {
    "scorer": "checkpoint",
    "selected_on": "dev",
    "trained_on": {"train": "2019-11-11"},
    "precision": "fp32",
    "checkpoint_sha256": "ab" * 32,
}
VOID = {"meta", "br", "line", "circle", "polyline"}


class Page(HTMLParser):
    """Reads a page: its text, its tags and what they refer to; tags must be closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.links, self.words = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href", "action", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
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
    assert page.links == []
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert not re.search(r"url\(|@import|https?:", text)
    assert page.tags.count("svg") == 1 + 9 + 1


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
                interval = f"{low:.4f} to {high:.4f}" if row["users"] >= FEWEST_USERS else "-"
                numbers += [*(f"{row[m]:.4f}" for m in METRICS), interval]
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
        assert "script" not in page.tags
        assert "<script" not in text
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
    return [float(n) for n in re.findall(rf'\b{name}="(-?[\d.]+)"', picture)]


def test_dots_lie_in_order_inside_the_picture():
    rows = [
        Dot("a", 0.5, (0.45, 0.55)),
        Dot("b", 0.7, (0.0, 1.0), "strong"),
        Dot("a label that is much too long", 0.6),
    ]
    picture = dots(rows, "about & about", 0.62)
    Page(picture)
    a, b, c = numbers(picture, "cx")
    assert LEFT <= a < c < b <= RIGHT
    for name in ("x1", "x2", "x"):
        assert all(0 <= x <= WIDTH for x in numbers(picture, name))
    assert "<title>a label that is much too long</title>" in picture
    assert 'aria-label="about &amp; about"' in picture
    assert "0.7000" in picture


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_a_picture_of_one_number_is_drawn(value):
    assert LEFT < numbers(dots([Dot("a", value, (value, value))], "x", value), "cx")[0] < RIGHT


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
