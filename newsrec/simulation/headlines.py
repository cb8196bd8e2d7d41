"""Writes the titles and abstracts of a simulated world from ``vocabulary.toml``."""

from collections.abc import Sequence

import numpy as np

from newsrec.simulation.presets import Preset
from newsrec.simulation.vocabulary import (
    ABSTRACTS,
    PLACES,
    STYLES,
    TIMES,
    TOPICS,
    TOWNS,
    Style,
    Topic,
)
from newsrec.simulation.world import SimulatedNews

MISSING_ABSTRACTS = 0.05
REPEATED_TITLES = 0.02
MIND_REPEATED_TITLES = 1 - 98_388 / 101_527
"""Share of titles that repeat an earlier one: 98,388 of MINDlarge's 101,527 titles are distinct."""
SENTENCES = (1, 2)
MIND_SENTENCES = (2, 4)
"""Fewest and most sentences of an abstract; 2 to 4 give MIND's mean of 43 words."""


def compose(rng: np.random.Generator, sizes: Preset, news: SimulatedNews) -> list[str]:
    """Return the news.tsv line of each news item; it is the same in all splits."""
    repeated = MIND_REPEATED_TITLES if sizes.like_mind else REPEATED_TITLES
    fewest, most = MIND_SENTENCES if sizes.like_mind else SENTENCES

    taken: set[str] = set()

    def pick(options: Sequence[str]) -> str:
        return options[int(rng.integers(len(options)))]

    def fill(template: str, topic: Topic) -> str:
        who, do, things = pick(topic.who), pick(topic.do), pick(topic.things)
        others = pick([option for option in topic.things if option != things])
        text = template.format(
            who=who,
            do=do,
            things=things,
            others=others,
            place=pick(PLACES),
            when=pick(TIMES),
            n=rng.integers(3, 22),
        )
        first = 1 if text[0] == '"' else 0
        return text[:first] + text[first].upper() + text[first + 1 :]

    def new_title(style: Style, topic: Topic) -> str:
        plain = title = fill(pick(style.templates), topic)
        while sizes.like_mind and title in taken:
            if plain[0] == '"':
                plain = title = fill(pick(style.templates), topic)
            else:
                title = f"{pick(TOWNS)}: {plain}"
        return title

    titles: dict[tuple[Topic, Style], list[str]] = {}
    lines = []
    for number, topic_row, style_row in zip(news.number, news.topic, news.style, strict=True):
        topic, style = TOPICS[topic_row], STYLES[style_row]
        earlier = titles.setdefault((topic, style), [])
        again = earlier and rng.random() < repeated
        title = earlier[-1] if again else new_title(style, topic)
        earlier.append(title)
        taken.add(title)
        sentences = [fill(pick(ABSTRACTS), topic) for _ in range(rng.integers(fewest, most + 1))]
        abstract = "" if rng.random() < MISSING_ABSTRACTS else " ".join(dict.fromkeys(sentences))
        url = f"https://example.org/N{number}"
        fields = (f"N{number}", topic.category, topic.subcategory, title, abstract, url, "[]", "[]")
        lines.append("\t".join(fields) + "\n")
    return lines
