"""What requests hold, how large they may be, and what is said about a wrong one."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from newsrec.console import clipped, printable
from newsrec.errors import UserError
from newsrec.serving.http_settings import Limits
from newsrec.serving.items import LONGEST
from newsrec.serving.rules import Rules

YEARS = range(1900, 2201)


def read_time(value: Any) -> Any:
    """Return a time in UTC; numbers and times without an offset are refused."""
    if isinstance(value, datetime):
        return value
    if not isinstance(value, str):
        raise ValueError("should be a text such as 2026-11-26T09:30:00Z")
    try:
        time = datetime.fromisoformat(value)
    except ValueError as error:
        raise ValueError("should be an ISO 8601 time such as 2026-11-26T09:30:00Z") from error
    if time.tzinfo is None:
        raise ValueError("should end with an offset, such as Z or +01:00")
    if time.year not in YEARS:
        raise ValueError(f"should be of a year from {YEARS[0]} to {YEARS[-1]}")
    return time.astimezone(UTC)


def read_text(value: str) -> str:
    """Return a text; ValueError if it cannot be stored."""
    if "\0" in value:
        raise ValueError("should have no null character")
    if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ValueError("should have no half characters: decode the text before you cut it")
    return value


STORABLE = AfterValidator(read_text)  # after the length, so that pydantic counts characters
Text = Annotated[str, STORABLE]
Id = Annotated[str, Field(min_length=1, max_length=LONGEST["news_id"]), STORABLE]
Title = Annotated[str, Field(max_length=LONGEST["title"]), STORABLE]
Category = Annotated[str, Field(max_length=LONGEST["category"]), STORABLE]
Abstract = Annotated[str, Field(max_length=LONGEST["abstract"]), STORABLE]
Hours = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
Cosine = Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)]
Time = Annotated[
    datetime,
    BeforeValidator(read_time),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]


class Body(BaseModel):
    """A request; a field that is not known, or of another type, is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class User(Body):
    """For whom: a history, or a user whose clicks the store has; neither is a new user."""

    history: list[Id] | None = Field(None, description="clicked news, oldest first")
    user_id: Id | None = Field(None, description="a user whose clicks were sent before")
    explain: bool = Field(False, description="also say which clicks a score comes from")


class RecommendBody(User):
    """Which news, and for whom."""

    k: int = Field(10, ge=1, description="news to recommend")
    categories: list[Category] | None = Field(None, min_length=1)
    exclude: list[Id] = Field([], description="news that are not recommended")
    exclude_history: bool = Field(True, description="whether clicked news is left out")
    max_age: Hours | None = Field(None, description="hours since a news item was published")
    half_life: Hours | None = Field(None, description="hours until the odds of a click halve")
    per_category: Annotated[int, Field(ge=1)] | None = Field(
        None, description="greatest number of news items of one category"
    )
    near_duplicates: Cosine | None = Field(
        None, description="of two news items with at least this cosine, only the better one is kept"
    )
    skip_repeats: Cosine | None = Field(
        None, description="leave out news with at least this cosine with a clicked news item"
    )
    diversity: float = Field(
        0.0, ge=0, le=1, allow_inf_nan=False, description="how much each item must differ; 0: none"
    )
    calibration: float = Field(
        0.0, ge=0, le=1, allow_inf_nan=False, description="how far categories must match; 0: none"
    )


class RankBody(User):
    """Which news to rank, and for whom."""

    candidates: list[Id] = Field(min_length=1)


class NewsBody(Body):
    """A news item."""

    news_id: Id
    title: Title
    category: Category = ""
    subcategory: Category = ""
    abstract: Abstract = ""
    published: Time | None = None


class ManyNewsBody(Body):
    """News to add, or to replace by their ids."""

    news: list[NewsBody] = Field(min_length=1)


class HeadlineBody(Body):
    """A news item that is placed among the others, and not stored."""

    news_id: Id | None = Field(None, description="id in the catalogue; its vector is then ranked")
    title: Annotated[Title, Field(min_length=1)]
    category: Category = ""
    subcategory: Category = ""
    abstract: Abstract = ""
    history: list[Id] = []
    k: int = Field(10, ge=1, description="near news to list")


class ClickBody(Body):
    """A click."""

    user_id: Id
    news_id: Id
    time: Time


class ClicksBody(Body):
    """Clicks; one that is known already changes nothing."""

    clicks: list[ClickBody] = Field(min_length=1)


def check_user(body: User) -> None:
    """Check that a request names one user; UserError if it has a history and a user id."""
    if body.history is not None and body.user_id is not None:
        raise UserError("user_id is given beside history; give one of them.")


def rules_of(body: RecommendBody) -> Rules:
    """Return the rules that a request asks for.

    Raises:
        UserError: If they contradict each other.
    """
    given = {field.name: getattr(body, field.name) for field in fields(Rules)}
    lists = {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
    return Rules(**given | lists)


def check_limits(body: Body, limits: Limits) -> None:
    """Check the sizes of a request.

    Raises:
        UserError: If a field is larger than the limits allow.
    """
    for name, (size, most, option) in _sizes(body, limits).items():
        if size > most:
            raise UserError(
                f"{name} {'is' if name == 'k' else 'has'} {size:,}; the most here is {most:,}, "
                f"which is set by --{option}."
            )


def limited(limits: Limits) -> dict[str, tuple[int, str]]:
    """Return, by the name of a field, its limit and the option that sets it."""
    return {
        "k": (limits.k, "max_k"),
        "history": (limits.history, "max_history"),
        "exclude": (limits.history, "max_history"),
        "candidates": (limits.candidates, "max_candidates"),
        "news": (limits.items, "max_items"),
        "clicks": (limits.items, "max_items"),
    }


def _sizes(body: Body, limits: Limits) -> dict[str, tuple[int, int, str]]:
    given = {name: getattr(body, name) for name in limited(limits) if name in body.model_fields_set}
    return {
        name: (value if isinstance(value, int) else len(value), *limited(limits)[name])
        for name, value in given.items()
        if value is not None
    }


def with_limits(schema: dict[str, Any], limits: Limits) -> dict[str, Any]:
    """Add the limits to the OpenAPI description, in place, and return it."""
    for model, described in schema["components"]["schemas"].items():
        if not model.endswith("Body"):
            continue
        for name, (most, _) in limited(limits).items():
            field = described.get("properties", {}).get(name, {})
            for kind in (field, *field.get("anyOf", [])):
                if kind.get("type") == "array":
                    kind["maxItems"] = most
                elif kind.get("type") == "integer":
                    kind |= {"maximum": most, "default": min(kind["default"], most)}
    return schema


def sentence(errors: Sequence[Mapping[str, Any]]) -> str:
    """Return one sentence that names the first wrong field."""
    error = errors[0]
    kind, place, said = error["type"], error["loc"][1:], error["msg"]
    if kind == "json_invalid":
        return f"The body is not JSON: {error['ctx']['error']} at character {place[0]}."
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    field = printable(clipped(field.lstrip("."))) or "The body"
    if kind == "missing":
        return f"{field} is missing."
    if kind == "extra_forbidden":
        return f"{field} is not a field of this request; see /openapi.json."
    if kind in ("model_attributes_type", "model_type", "dict_type"):
        return f"{field} should be a JSON object, sent as Content-Type: application/json."
    said = said.removeprefix("Value error, ").replace("Input should", "should")
    if not said.startswith("should"):
        said = f"is refused: {said}"
    value = error.get("input")
    shown = f", not {value!r}" if isinstance(value, str | int | float | None) else ""
    return f"{field} {said}{printable(clipped(shown))}."
