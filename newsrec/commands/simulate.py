"""The command ``simulate``: write a simulated world."""

import argparse

from newsrec.commands.common import add_on_bad_line, add_output
from newsrec.console import progress
from newsrec.simulation.effects import EFFECTS
from newsrec.simulation.oracles import ORACLES
from newsrec.simulation.presets import PRESETS
from newsrec.simulation.simulate import FORMATS, simulate

SLOW_IMPRESSIONS = 100_000
"""Fewer impressions take only a second or two and need no progress bar."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    presets = "; ".join(f"{name}: {preset.about}" for name, preset in PRESETS.items())
    add_output(parser)
    parser.add_argument("--preset", choices=PRESETS, default="demo", help=f"size. {presets}")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="mind",
        help="mind: news.tsv and behaviors.tsv of each split; parquet: news.parquet and "
        "impressions.parquet, as for own data; ebnerd: the files of EB-NeRD",
    )
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same files")
    able = " and ".join(name for name, preset in PRESETS.items() if preset.tastes)
    parser.add_argument(
        "--titles",
        help=f"news.tsv whose titles, categories and abstracts {able} take instead of inventing "
        "them",
    )
    effects = "; ".join(f"{name}: {about}" for name, about in EFFECTS.items())
    parser.add_argument(
        "--without",
        nargs="+",
        choices=EFFECTS,
        default=[],
        help=f"effects that {able} leave out. {effects}",
    )
    add_on_bad_line(parser, "--on_bad_line", of="the file of --titles")


def run(args: argparse.Namespace) -> None:
    """Simulate a world and print its counts."""
    preset = PRESETS[args.preset]
    total = 2 * sum(preset.impressions)  # each is simulated, then written
    with progress("simulating", total, SLOW_IMPRESSIONS, _rate) as advance:
        world = simulate(
            args.output,
            args.preset,
            args.seed,
            advance,
            args.format,
            titles=args.titles,
            without=args.without,
            on_bad_line=args.on_bad_line,
        )
    for split, counts in world["splits"].items():
        print(f"{split:5}", "  ".join(f"{count} {name}" for name, count in counts.items()))
    ceilings = "  ".join(f"{split} {m['auc']:.4f}" for split, m in world["ceiling"].items())
    print(f"Ceiling AUC (the true utilities): {ceilings}")
    for split, aucs in world.get("oracles", {}).items():
        print(f"AUC on {split} of scorers that know:")
        for name, auc in aucs.items():
            print(f"  {auc:.4f}  {name}: {ORACLES[name]}")
    config = "mind_small_top2" if preset.like_mind else "demo"
    print(f"Next: python -m newsrec fit --config configs/{config}.yaml --data.root {args.output}")


def _rate(done_per_second: float) -> str:
    return f"{done_per_second / 2:,.0f} impressions/s"
