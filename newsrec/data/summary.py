"""What a run says about its splits before it begins."""

from newsrec.console import counted
from newsrec.data.dataset import Split
from newsrec.data.splits import Unseen


def describe_split(split: Split) -> str:
    """Return a line on a split: its days and its counts."""
    count = split.counts
    unknown = count["unknown_candidates"] / max(count["candidates"], 1)
    drawn = f"{count.get('sampled_candidates', 0):,} drawn at random, not shown, "
    return (
        f"{split.name}: {split.window}, {counted(count['impressions'], 'impression')}, "
        f"{counted(count['users'], 'user')}, {counted(count['candidates'], 'candidate')} "
        f"({drawn if 'sampled_candidates' in count else ''}"
        f"{unknown:.1%} not among the news), "
        f"{count['empty_histories'] / count['impressions']:.1%} empty histories"
    )


def describe_unseen(train: str, split: Split, unseen: Unseen) -> str:
    """Return a line on the candidates of a split that choose the checkpoint, those new to train."""
    left, whole = unseen.split.counts, split.counts
    lacks = ", ".join(f"{number:,} without {what}" for what, number in unseen.left_out.items())
    return (
        f"{split.name} chooses by news that {train} has not seen: "
        f"{left['candidates']:,} of {whole['candidates']:,} candidates, in "
        f"{left['impressions']:,} of {whole['impressions']:,} impressions (left out: {lacks})"
    )
