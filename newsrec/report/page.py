"""``report.html``: what ``metrics.json`` says, as one page to read and to send.

The page holds all it needs (styles, pictures as SVG, no script) and asks nothing of a network. All
text that comes from data or options is escaped.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from newsrec.console import html_text as escape
from newsrec.evaluation.intervals import FEWEST_USERS
from newsrec.evaluation.names import HEADINGS, SLICE_NAMES
from newsrec.evaluation.results import ENTROPY
from newsrec.evaluation.slices import SLICES
from newsrec.metrics import METRICS
from newsrec.report.examples import Example
from newsrec.report.pictures import Dot, dots, line
from newsrec.report.terminal import (
    CEILING,
    NAMES,
    counts,
    in_precision,
    notes,
    scored_name,
)

Curves = Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]]
"""Steps and values by name."""

STYLE = """
:root { color-scheme: light dark; --page: #f7f7f5; --card: #ffffff; --ink: #1d2126; --soft: #5b6470;
  --rule: #dcdfe3; --grid: #e7e9ec; --mark: #0b5cad; --dot: #6b7683; --hit: #0d6b4f;
  --hit-back: #e2f3ec; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14171b; --card: #1d2126; --ink: #e8eaed; --soft: #a4adb8; --rule: #353b43;
    --grid: #2a2f36; --mark: #6cb2ff; --dot: #8f9aa7; --hit: #7fdcb9; --hit-back: #153a2e; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif;
  -webkit-text-size-adjust: 100%; }
main { max-width: 1080px; margin: 0 auto; padding: 24px 16px 64px; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 40px 0 12px; }
h3 { font-size: 1rem; margin: 0; }
p { margin: 0 0 8px; } .soft { color: var(--soft); } .small { font-size: .875rem; }
.tiles { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr));
  margin: 20px 0 12px; }
.cards { columns: 420px; column-gap: 12px; margin-bottom: -12px; }
.cards > .card { break-inside: avoid; margin-bottom: 12px; }
.card { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: 14px;
  min-width: 0; }
.tile b { display: block; font-size: 1.7rem; line-height: 1.3;
  font-variant-numeric: tabular-nums; }
.card > svg { margin-top: 8px; } .card + p { margin-top: 8px; }
svg { display: block; width: 100%; max-width: 450px; }
svg text { fill: var(--ink); font-size: 12.5px; }
svg .tick { fill: var(--soft); font-size: 11.5px; }
svg .faint :not(text) { opacity: .45; }
svg .num { font-variant-numeric: tabular-nums; }
svg .grid { stroke: var(--grid); } svg .ref { stroke: var(--mark); stroke-dasharray: 3 3; }
svg .whisker { stroke: var(--dot); stroke-width: 1.6; } svg .dot { fill: var(--dot); }
svg .strong .whisker { stroke: var(--mark); } svg .strong .dot { fill: var(--mark); }
svg .strong text { font-weight: 600; }
svg .line { fill: none; stroke: var(--mark); stroke-width: 1.6; }
svg .line ~ .dot { fill: var(--mark); }
.scroll { overflow-x: auto; margin-top: 10px; }
table { border-collapse: collapse; width: 100%; font-size: .875rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: 5px 8px; text-align: right; border-bottom: 1px solid var(--rule);
  white-space: nowrap; }
th { color: var(--soft); font-weight: 500; } tr > :first-child, .left { text-align: left; }
tr > :first-child { padding-left: 0; }
.strong td { font-weight: 600; } .title { white-space: normal; width: 90%; text-align: left; }
.hit td { background: var(--hit-back); } .mark { color: var(--hit); font-weight: 600; }
details { margin-top: 10px; } summary { cursor: pointer; color: var(--soft); font-size: .875rem; }
.example { margin-top: 12px; } .example summary { color: var(--ink); font-size: 1rem; }
.example p { margin: 6px 0 0; } .example ol { margin: 4px 0 12px; padding-left: 1.4em; }
dl { display: grid; grid-template-columns: minmax(7em, max-content) 1fr; gap: 4px 16px; margin: 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; min-width: 0; }
"""


def html_page(
    title: str,
    metrics: Mapping[str, Any],
    ceiling: Mapping[str, float] | None,
    examples: Sequence[Example],
    curves: Curves | None,
) -> str:
    """Return the page of a split's results; without labels it has counts and examples alone.

    Args:
        title: What was scored: a checkpoint's path, or a baseline.
        metrics: What ``metrics.json`` holds.
        ceiling: What the true click probabilities of a simulated world reach.
        examples: Impressions to show.
        curves: What training logged, if it is known.
    """
    what = scored_name(metrics)
    heading = f"{what[:1].upper()}{what[1:]} on {metrics['split']}, {metrics['window']}"
    heading += in_precision(metrics)
    parts = [f"<h1>{escape(heading)}</h1>", f'<p class="soft">{escape(title)}</p>']
    parts += [f"<p>{escape(note)}</p>" for note in notes(metrics)]
    if "intervals" in metrics:
        parts.append(_tiles(metrics))
    parts.append(f'<p class="soft small">{escape(" ".join(counts(metrics)))}</p>')
    if metrics.get("baselines"):
        parts.append(_beside(metrics, ceiling))
    if "intervals" in metrics:
        parts.append(_slices(metrics))
    if curves:
        parts.append(_curves(curves))
    if examples:
        parts.append(_examples(examples))
    parts.append(_evaluated(metrics, title))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(heading)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(parts)
        + "\n</main>\n</body>\n</html>\n"
    )


def _tiles(metrics: Mapping[str, Any]) -> str:
    tiles = [
        f'<div class="card tile">{heading}<b>{_number(metrics[metric])}</b>'
        f'<span class="soft small">{_interval(metrics["intervals"][metric])}</span></div>'
        for metric, heading in HEADINGS.items()
    ]
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _beside(metrics: Mapping[str, Any], ceiling: Mapping[str, float] | None) -> str:
    rows, lines = [], []
    for name, row in metrics["baselines"].items():
        label = NAMES.get(name, name)
        rows.append(Dot(label, row["auc"], tuple(row["intervals"]["auc"])))
        above = f"{row['auc_difference']:+.4f}"
        between = _interval(row["auc_difference_interval"], "+.4f")
        lines.append([label, *(_number(row[metric]) for metric in METRICS), above, between])
    own = scored_name(metrics)
    rows.append(Dot(own, metrics["auc"], tuple(metrics["intervals"]["auc"]), "strong"))
    lines.append([own, *(_number(metrics[metric]) for metric in METRICS), "", ""])
    if ceiling:
        rows.append(Dot(CEILING, ceiling["auc"]))
        lines.append([CEILING, *(_number(ceiling[metric]) for metric in METRICS), "", ""])
    head = ["", *HEADINGS.values(), "AUC above it", "95 % interval"]
    return (
        f"<h2>Beside the baselines</h2><div class='card'>"
        f"{dots(rows, 'AUC of each, with 95 % intervals', metrics['auc'])}"
        f"<div class='scroll'>{_table(head, lines, strong=own)}</div></div>"
        '<p class="soft small">Differences are paired, impression by impression, and their '
        "intervals clustered by user.</p>"
    )


def _slices(metrics: Mapping[str, Any]) -> str:
    cards = []
    for name, groups in metrics["slices"].items():
        judged = {group: row for group, row in groups.items() if row["evaluated"]}
        sure = {group for group, row in judged.items() if row["users"] >= FEWEST_USERS}
        rows = [
            Dot(group, row["auc"], tuple(row["intervals"]["auc"]))
            if group in sure
            else Dot(group, row["auc"], None, "faint")
            for group, row in judged.items()
        ]
        head = ["", "impressions", "evaluated", *HEADINGS.values(), "95 % of the AUC"]
        lines = []
        for group, row in groups.items():
            cells = [f"{row['impressions']:,}", f"{row['evaluated']:,}"]
            if group in judged:
                cells += [_number(row[metric]) for metric in METRICS]
                cells.append(_interval(row["intervals"]["auc"]) if group in sure else "-")
            lines.append([group, *cells, *[""] * (len(head) - 1 - len(cells))])
        title = SLICE_NAMES.get(name, name)
        picture = dots(rows, f"AUC by {title}", metrics["auc"]) if rows else ""
        cards.append(
            f'<div class="card"><h3>{escape(title[:1].upper() + title[1:])}</h3>'
            f'<div class="soft small">{escape(SLICES.get(name, ""))}</div>{picture}'
            f"<details><summary>table</summary><div class='scroll'>{_table(head, lines)}</div>"
            "</details></div>"
        )
    return (
        '<h2>By slice</h2><p class="soft small">AUC with 95 % intervals clustered by user; the '
        f"dashed line is that of all impressions, {_number(metrics['auc'])}. Pale: fewer "
        f"than {FEWEST_USERS} users, too few for an interval. "
        "<i>In train</i>: shown, or in a history, in this folder's train.</p>"
        f'<div class="cards">{"".join(cards)}</div>'
    )


def _curves(curves: Curves) -> str:
    cards = [
        f'<div class="card"><h3>{escape(name)}</h3>{line(x, y, f"{name} by step", "step")}</div>'
        for name, (x, y) in curves.items()
    ]
    return f'<h2>Training</h2><div class="cards">{"".join(cards)}</div>'


def _examples(examples: Sequence[Example]) -> str:
    judged = any(example.auc is not None for example in examples)
    order = "from the lowest AUC to the highest, evenly" if judged else "evenly over the file"
    parts = [f'<h2>Examples</h2><p class="soft small">{len(examples)} impressions, {order}.</p>']
    for number, example in enumerate(examples):
        auc = "" if example.auc is None else f"AUC {_number(example.auc)}, "
        clicks = "click" if example.num_history == 1 else "clicks"
        head = f"{auc}{example.num_candidates} candidates, {example.num_history} {clicks} before"
        titles = "".join(f"<li>{escape(title)}</li>" for title in example.history)
        history = (
            '<div class="soft small">Last clicks, the latest first</div>'
            f'<ol class="small">{titles}</ol>'
            if titles
            else '<p class="soft small">No clicks before.</p>'
        )
        rows = "".join(
            f"<tr{' class=hit' if c.clicked else ''}><td>{c.rank}</td><td>{c.score:.3f}</td>"
            f'<td class="title">{escape(c.title)}<br><span class="soft">{escape(c.category)}</span>'
            f"{' <span class=mark>clicked</span>' if c.clicked else ''}</td></tr>"
            for c in example.candidates
        )
        left_out = example.num_candidates - len(example.candidates)
        more = f'<p class="soft small">{left_out} more, none clicked.</p>' if left_out else ""
        if example.candidates and example.candidates[0].clicked is None:
            more = more.replace(", none clicked", "")
        parts.append(
            f'<details class="card example"{" open" if not number else ""}><summary>{head}'
            f'<span class="soft small"> · impression {example.impression_id}, reader '
            f"{escape(example.user)}, {escape(example.time)}</span></summary>{history}"
            "<div class='scroll'><table><thead><tr><th>rank</th><th>score</th>"
            '<th class="left">story</th></tr></thead>'
            f"<tbody>{rows}</tbody></table></div>{more}</details>"
        )
    return "".join(parts)


def _evaluated(metrics: Mapping[str, Any], title: str) -> str:
    trained = [f"{name}, {window}" for name, window in metrics["trained_on"].items()]
    found = metrics.get("checkpoint_sha256", "-")
    hashes = found if isinstance(found, list) else [found]
    by_auto = ", chosen by auto" if metrics.get("precision_by_auto") else ""
    facts = {
        "scored": title,
        "split": f"{metrics['split']}, {metrics['window']}",
        "trained on": "; ".join(trained) or "nothing",
        "selected on": metrics["selected_on"] or "nothing",
        "precision": f"{metrics['precision']}{by_auto}" if metrics["precision"] else "-",
        "checkpoint": f"SHA-256 {', '.join(hashes)}",
        "data": f"fingerprint {metrics['data_fingerprint']}",
    }
    for key, name in (
        ("impressions", "impressions"),
        ("evaluated", "evaluated"),
        ("single_class", "without a click or without a skip"),
        ("tied", "with tied scores"),
        ("unknown_candidates", "candidates not in news.tsv"),
        ("skipped_lines", "lines skipped"),
    ):
        if key in metrics:
            facts[name] = f"{metrics[key]:,}"
    facts["category entropy of the top 10"] = f"{metrics[ENTROPY]:.4f} bits"
    if metrics["selected_on"] is None and "checkpoint_sha256" not in metrics:
        del facts["selected on"], facts["precision"], facts["checkpoint"]
    items = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(str(fact))}</dd>" for name, fact in facts.items()
    )
    return f'<h2>What was evaluated</h2><div class="card small"><dl>{items}</dl></div>'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], strong: str | None = None) -> str:
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = []
    for row in rows:
        kind = ' class="strong"' if row[0] == strong else ""
        lines.append(f"<tr{kind}>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>")
    return f"<table><thead><tr>{top}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _number(value: float) -> str:
    return f"{value:.4f}"


def _interval(bounds: Sequence[float], form: str = ".4f") -> str:
    return f"{bounds[0]:{form}} to {bounds[1]:{form}}"
