"""Says in words what the exported graphs take and how their outputs become a score."""

from collections.abc import Mapping
from typing import Any

INPUT_CONTRACT = (
    "The text of a news item is its non-empty fields joined by spaces, with each run of whitespace "
    "replaced by one space and none at the ends. tokenizer.json turns it into token ids, special "
    "tokens included, and cuts them to max_tokens. In a batch, shorter texts are padded at the end "
    "with 0, where mask is false; each text has at least one token (0 if it would have "
    "none).{abstract}{categories} The column row of news.parquet says which row of "
    "news_vectors.npy is the vector of a news item. That array is {stored}; its row 0 is zeros. "
    "history holds the vectors of the news that a user clicked, oldest first, repeats included, "
    "padded with zeros at the end; mask is true where history is real. If there are more than "
    "max_history clicks, only the newest are read. For an empty history, pass at least one column "
    "and a mask that is all false. {score} Higher is better. Leave out clicks on news without a "
    "vector; a candidate without one gets row 1 of news_vectors.npy, the mean of all real news."
)
ABSTRACT = (
    " An abstract that is not empty is a text of its own, cut to {abstract_tokens} tokens. Each "
    "row of views belongs to a news item: it holds the positions of its title and of its abstract "
    "among the texts of token_ids, counted from 1. For no abstract it holds 0."
)
"""The part of the contract of a model that reads abstracts as texts of their own."""
CATEGORIES = (
    " Each row of categories belongs to a news item, each column to a field of category_names in "
    "manifest.json. An entry is the position of the field's value, counted from 1 through the "
    "lists of all fields one after the other. For a value that its list lacks, the entry is 0."
)
"""The part of the contract of a model with vectors of categories."""
STORED = {
    "float32": "float32 [rows, dim]",
    "float16": "float16 [rows, dim], read as float32",
    "int8": "int8 [rows, dim], to be multiplied by the row's number in news_scales.npy",
}
"""The part of the contract that depends on the type of the news vectors."""
SCORE = {
    "dot": "The score of a news item is the dot product of user_vector and its news vector.",
    "late": (
        "The score of a news item is the dot product of user_vector and its news vector, plus the "
        "mean of the {clicks} largest products of its news vector with rows of click_vectors where "
        "click_mask is true; of all such rows if there are fewer, and of 0 if there are none."
    ),
    "interests": (
        "The score of a news item is {combine} over the dot products of its news vector with the "
        "rows of interest_vectors; user_vector is the mean of these rows."
    ),
}
"""The part of the contract that depends on how scores are made."""
COMBINED = {
    "max": "the maximum",
    "logsumexp": "t log(mean(exp(product / t))), with t = {temperature},",
}


def input_contract(
    settings: Mapping[str, Any],
    abstract_tokens: int,
    vectors: str = "float32",
    categories: bool = False,
) -> str:
    """Return the contract of a model, with its numbers.

    Args:
        settings: How scores are made, as a head's ``settings`` returns it.
        abstract_tokens: Longest abstract that is read as a text of its own; 0 if none is.
        vectors: Type of the news vectors.
        categories: Whether categories have vectors.
    """
    combined = COMBINED[settings.get("combine", "max")].format(**settings)
    return INPUT_CONTRACT.format(
        abstract=ABSTRACT.format(abstract_tokens=abstract_tokens) if abstract_tokens else "",
        categories=CATEGORIES if categories else "",
        stored=STORED[vectors],
        score=SCORE[settings["head"]].format(**{**settings, "combine": combined}),
    )
