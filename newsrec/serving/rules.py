"""What may be recommended, and how scores become a list."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Rules:
    """What may be recommended, and how scores become a list."""

    categories: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    exclude_history: bool = True
    max_age: float | None = None
    half_life: float | None = None
    per_category: int | None = None
    near_duplicates: float | None = None
    skip_repeats: float | None = None
    diversity: float = 0.0
