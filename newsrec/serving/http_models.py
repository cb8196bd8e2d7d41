"""What the answers of the service hold, for the OpenAPI description."""

from datetime import datetime

from pydantic import BaseModel, Field


class Versioned(BaseModel):
    """An answer."""

    version: str | None = Field(description="of the export; null until it is read")


class Error(Versioned):
    """Why there is no other answer."""

    error: str


class ClickShare(BaseModel):
    """What a click of the history adds to a score."""

    news_id: str
    value: float


class ExplanationAnswer(BaseModel):
    """Where a score comes from: clicks, rest and age add up to it."""

    clicks: list[ClickShare]
    rest: float
    age: float
    method: str


class RecommendedAnswer(BaseModel):
    """A news item with its score."""

    news_id: str
    score: float
    title: str | None
    category: str | None
    subcategory: str | None
    published: datetime | None
    age_hours: float | None
    explanation: ExplanationAnswer | None = None


class RecommendAnswer(Versioned):
    """News, best first."""

    news: list[RecommendedAnswer]
    history: list[str]
    unknown_history: list[str]
    ms: float


class RankAnswer(RecommendAnswer):
    """Candidates, best first."""

    unknown_candidates: list[str]


class NewsAnswer(BaseModel):
    """A news item of the store."""

    news_id: str
    title: str
    category: str
    subcategory: str
    abstract: str | None
    published: datetime | None


class OneNewsAnswer(NewsAnswer, Versioned):
    """One news item."""


class ManyNewsAnswer(Versioned):
    """News that were found."""

    news: list[NewsAnswer]


class AddedAnswer(Versioned):
    """How many news were new, had another text, and were as before."""

    added: int
    replaced: int
    unchanged: int


class DeletedAnswer(Versioned):
    """What was deleted."""

    deleted: str


class NearAnswer(BaseModel):
    """A news item near a headline."""

    news_id: str
    title: str
    category: str
    cosine: float


class HeadlineAnswer(Versioned):
    """Where a headline would rank."""

    score: float
    rank: int
    of: int
    near: list[NearAnswer]
    ms: float


class ClicksAnswer(Versioned):
    """How many clicks were new, and how many known."""

    added: int
    known: int


class UsersAnswer(Versioned):
    """Users with clicks."""

    users: list[str]


class UserClick(BaseModel):
    """A click of a user."""

    news_id: str
    time: datetime


class UserAnswer(Versioned):
    """A user's clicks, oldest first."""

    user_id: str
    clicks: list[UserClick]


class ExampleHead(BaseModel):
    """A user of the data folder."""

    user_id: str
    num_history: int
    num_impressions: int


class ExamplesAnswer(Versioned):
    """Users of the data folder; the first has number 0 in ``/examples/{number}``."""

    examples: list[ExampleHead]


class ShownImpression(BaseModel):
    """A list of news that a user was shown, and what they clicked."""

    time: datetime
    candidates: list[str]
    clicked: list[str]


class ExampleAnswer(Versioned):
    """A user of the data folder with their impressions, oldest first."""

    user_id: str
    history: list[str]
    impressions: list[ShownImpression]


class HealthAnswer(Versioned):
    """The process answers."""

    status: str


class ReadyAnswer(HealthAnswer):
    """Recommendations are answered; the counts need the service's token if it has one."""

    news: int | None = None
    users: int | None = None
    clicks: int | None = None
    free_slots: int | None = None
    lag_seconds: float | None = None
    encoding: str | None = None
    encoded: int | None = None
    encode_total: int | None = None
