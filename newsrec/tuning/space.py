"""The search space: a range or a list of choices for each option."""

import difflib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from newsrec.errors import UserError

Space = dict[str, Any]
"""By name of the option: ``{low, high, log, step}`` or a list of choices."""

SPACES = Path(__file__).parent / "spaces"
KEYS = ("low", "high", "log", "step")
EXAMPLES = "{low: 0.1, high: 0.5} or [1, 2, 4]"
EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")
"""Numbers such as 1e-4, which YAML takes for text."""


def read_space(name: str) -> tuple[Space, str]:
    """Return the search space in a file, or one of newsrec's own, and its place for messages.

    Raises:
        UserError: If there is no such file, or it is no search space.
    """
    own = SPACES / f"{name}.yaml"
    path = own if own.is_file() else Path(name)
    if not path.is_file():
        names = " or ".join(sorted(file.stem for file in SPACES.glob("*.yaml")))
        raise UserError(f"--space {name}: there is no such file. Name a YAML file, or {names}.")
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        said = " ".join(str(error).split())
        raise UserError(f"--space {name}: not YAML: {said}") from error
    if not isinstance(found, dict):
        raise UserError(f"--space {name} has no options. Write a line such as model.dim: [64, 128]")
    return check_space(found, f"--space {name}"), f"--space {name}"


def check_space(space: Mapping[Any, Any], place: str) -> Space:
    """Return a search space with plain numbers; refuse what cannot be searched.

    Args:
        space: By name of the option: ``{low, high, log, step}`` or a list of choices.
        place: Where the space comes from, for messages.

    Raises:
        UserError: For the first wrong entry.
    """
    if not space:
        raise UserError(f"{place} is empty. Give an option with {EXAMPLES}.")
    return {str(name): _entry(entry, f"{place}: {name}") for name, entry in space.items()}


def _entry(entry: Any, place: str) -> Any:
    if isinstance(entry, list | tuple):
        if not entry:
            raise UserError(f"{place} has no choices.")
        return [_number(choice) for choice in entry]
    if not isinstance(entry, Mapping):
        raise UserError(f"{place} is {entry!r}; give {EXAMPLES}.")
    for key in entry:
        if key not in KEYS:
            near = difflib.get_close_matches(str(key), KEYS, n=1)
            hint = f" Did you mean {near[0]}?" if near else f" A range has {', '.join(KEYS)}."
            raise UserError(f"{place} has {key!r}.{hint}")
    found = {key: _number(value) for key, value in entry.items()}
    for key in ("low", "high", "step"):
        value = found.get(key, None if key == "step" else "missing")
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise UserError(f"{place}: {key} is {value}; a range needs numbers, as in {EXAMPLES}.")
    low, high, log = found["low"], found["high"], found.get("log", False)
    if not isinstance(log, bool):
        raise UserError(f"{place}: log is {log!r}; give true or false.")
    if not low < high:
        raise UserError(f"{place}: low is {low} and high is {high}; low must be smaller.")
    if log and (low <= 0 or "step" in found):
        raise UserError(f"{place}: with log: true, low must be above 0, and there is no step.")
    if found.get("step", 1) <= 0:
        raise UserError(f"{place}: step is {found['step']}; it must be above 0.")
    return found


def _number(value: Any) -> Any:
    is_text = isinstance(value, str) and EXPONENT.fullmatch(value)
    return float(value) if is_text else value


def distributions(space: Space) -> dict[str, Any]:
    """Return Optuna's distribution of each option."""
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    found: dict[str, Any] = {}
    for name, entry in space.items():
        if isinstance(entry, list):
            found[name] = CategoricalDistribution([as_key(choice) for choice in entry])
            continue
        whole = all(isinstance(entry.get(key, 1), int) for key in ("low", "high", "step"))
        # Optuna's step of whole numbers is 1, and None for others.
        more = {"log": entry.get("log", False)}
        more |= {"step": entry["step"]} if "step" in entry else {}
        kind = IntDistribution if whole else FloatDistribution
        found[name] = kind(entry["low"], entry["high"], **more)
    return found


def as_key(choice: Any) -> Any:
    """Return a choice as Optuna keeps it: lists and mappings as text."""
    return choice if isinstance(choice, str | int | float | None) else json.dumps(choice)


def drawn(space: Space, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that Optuna has drawn."""
    options = dict(params)
    for name, value in params.items():
        if isinstance(space[name], list):
            (options[name],) = [one for one in space[name] if as_key(one) == value][:1]
    return options


def inside(space: Space, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that lie in the space, as Optuna keeps them."""
    found = {}
    for name, value in options.items():
        entry = space[name]
        if isinstance(entry, list):
            if as_key(value) in map(as_key, entry):
                found[name] = as_key(value)
        elif isinstance(value, int | float) and entry["low"] <= value <= entry["high"]:
            found[name] = value
    return found
