"""What requests may hold, and what answers look like. Nothing is converted, nothing unknown is passed over."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hllm.recommend.options import SearchOptions

MAX_QUERIES, MAX_EVENTS, MAX_IDS, MAX_K, MAX_ROWS = 256, 1000, 10_000, 1000, 50_000

Text = Annotated[str, Field(max_length=512)]
Id = Annotated[int, Field(strict=True, ge=-(2**63), le=2**63 - 1)] | Text
Ids = Annotated[list[Id], Field(max_length=MAX_IDS)]
Time = Annotated[int, Field(ge=-(2**53), le=2**53)] | Annotated[str, Field(max_length=40)]
K = Annotated[int, Field(ge=1, le=MAX_K)]
Label = int | float | Text
Value = bool | int | float | Annotated[str, Field(max_length=100_000)] | None


class Body(BaseModel):
    """A JSON object with these names only, of exactly these types, and finite numbers."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Allowance(Body):
    """Whether a user may get an item."""

    user_id: Id
    item_id: Id
    allow: bool


class Rules(Body):
    """Which items, and how many; `compared`: from the run given with --compare."""

    k: K = 10
    exclude: Ids = []
    candidates: Literal["interacted", "catalogue"] | Ids = "interacted"
    only_items: Ids | None = None
    at: Time | None = None
    diversify: Text | None = None
    diversity: Annotated[float, Field(ge=0, le=1)] | None = None
    compared: bool = False


class RecommendBody(Rules):
    """Whom for (one of `users`, `history`, `titles`) and what; as `Recommender.recommend` takes them.

    In `per_user` a history is called by its number, as in the answer.
    """

    users: Annotated[list[Id], Field(min_length=1, max_length=MAX_QUERIES)] | None = None
    history: (
        Annotated[
            list[Annotated[list[Id], Field(max_length=MAX_EVENTS)]],
            Field(min_length=1, max_length=MAX_QUERIES),
        ]
        | None
    ) = None
    times: (
        Annotated[
            list[Annotated[list[Time], Field(max_length=MAX_EVENTS)] | None], Field(max_length=MAX_QUERIES)
        ]
        | None
    ) = None
    titles: (
        Annotated[
            list[Annotated[list[Text], Field(max_length=MAX_EVENTS)]],
            Field(min_length=1, max_length=MAX_QUERIES),
        ]
        | None
    ) = None
    keep_seen: bool = False
    unknown: Literal["error", "skip", "popular"] = "error"
    only: (
        Annotated[dict[Text, Label | Annotated[list[Label], Field(max_length=100)]], Field(max_length=20)]
        | None
    ) = None
    exclude_seen_since: Annotated[str, Field(max_length=40)] | None = None
    per_user: Annotated[list[Allowance], Field(max_length=MAX_IDS)] | None = None
    text: Annotated[str, Field(min_length=1, max_length=10_000)] | None = None
    text_weight: Annotated[float, Field(ge=0, le=1)] | None = None

    @model_validator(mode="after")
    def _one_of(self) -> RecommendBody:
        given = [value for value in (self.users, self.history, self.titles) if value is not None]
        if len(given) != 1:
            raise ValueError("give one of users, history and titles")
        if self.times is not None and self.history is None:
            raise ValueError("times belong to history")
        if self.times is not None and self.history is not None and len(self.times) != len(self.history):
            raise ValueError(f"{len(self.times)} lists of times for {len(self.history)} histories")
        if len(given[0]) * self.k > MAX_ROWS:
            raise ValueError(f"{len(given[0])} lists of k={self.k} are more than {MAX_ROWS:,} rows")
        return self


RULES = tuple(SearchOptions.__annotations__)


class SimilarBody(Rules):
    """Items like an item, or like a text."""

    item: Id | None = None
    text: Annotated[str, Field(min_length=1, max_length=10_000)] | None = None

    @model_validator(mode="after")
    def _one_of(self) -> SimilarBody:
        if (self.item is None) == (self.text is None):
            raise ValueError("give one of item and text")
        return self


class ExplainBody(Body):
    """Why `item` is recommended to a user, or to somebody with this history."""

    user: Id | None = None
    history: Annotated[list[Id], Field(max_length=MAX_EVENTS)] | None = None
    times: Annotated[list[Time], Field(max_length=MAX_EVENTS)] | None = None
    item: Id
    k: Annotated[int, Field(ge=1, le=100)] = 5
    compared: bool = False

    @model_validator(mode="after")
    def _one_of(self) -> ExplainBody:
        if (self.user is None) == (self.history is None):
            raise ValueError("give one of user and history")
        if self.times is not None and self.history is None:
            raise ValueError("times belong to history")
        return self


class Event(Body):
    """Something a user did; `timestamp` in seconds since 1970, now unless given."""

    user_id: Id
    item_id: Id
    timestamp: Annotated[float, Field(ge=-(2**40), le=2**40)] | None = None


class EventsBody(Body):
    """Events, kept all or none."""

    events: Annotated[list[Event], Field(min_length=1, max_length=MAX_EVENTS)]


class ItemsBody(Body):
    """New items: `item_id` and the text columns of the catalogue."""

    items: Annotated[
        list[
            Annotated[dict[Text, Value | Annotated[list[Text], Field(max_length=100)]], Field(max_length=100)]
        ],
        Field(min_length=1, max_length=256),
    ]


class Row(BaseModel):
    """A recommended item; `user_id` is the number of the list where a history was given."""

    user_id: int | str
    item_id: int | str
    title: str
    score: float
    rank: int


class Recommendations(BaseModel):
    """Rows as `Recommender.recommend` gives them, and notes on who was unknown."""

    rows: list[Row]
    notes: list[str]
    run: int


class Problem(BaseModel):
    """What every answer but 2xx holds."""

    error: str
    request_id: str


EXAMPLES: dict[type[BaseModel], dict[str, Any]] = {
    RecommendBody: {"users": ["196"], "k": 10},
    SimilarBody: {"item": "50", "k": 10},
    ExplainBody: {"user": "196", "item": "50"},
    EventsBody: {"events": [{"user_id": "196", "item_id": "50"}]},
    ItemsBody: {"items": [{"item_id": "new-1", "title": "A new film"}]},
}
"""The bodies of requests, with an example of each."""
