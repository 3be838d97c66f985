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


Share = Annotated[float, Field(ge=0, le=1)]
FreeText = Annotated[str, Field(min_length=1, max_length=10_000)]
Events = Annotated[list[Id], Field(max_length=MAX_EVENTS)]
Times = Annotated[list[Time], Field(max_length=MAX_EVENTS)]
Titles = Annotated[list[Text], Field(max_length=MAX_EVENTS)]
Queries = Field(min_length=1, max_length=MAX_QUERIES)
Only = Annotated[dict[Text, Label | Annotated[list[Label], Field(max_length=100)]], Field(max_length=20)]


class Body(BaseModel):
    """A JSON object with these names only, of exactly these types, and finite numbers."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Allowance(Body):
    """Whether a user may get an item."""

    user_id: Id
    item_id: Id
    allow: bool


class Rules(Body):
    """Which items, and how many."""

    k: K = 10
    """Items in each list."""
    exclude: Ids = []
    """Items that are not recommended."""
    candidates: Literal["interacted", "catalogue"] | Ids = "interacted"
    """Items with an event, the whole catalogue, or these ids."""
    only_items: Ids | None = None
    """Nothing else is recommended."""
    at: Time | None = None
    """Moment of the request, for what is available and for `exclude_seen_since`: a time, a date, or now."""
    diversify: Text | None = None
    """`brand:2`: at most 2 items of each value of the item column brand."""
    diversity: Share | None = None
    """Weight of unlikeness against score, 0 to 1."""
    compared: bool = False
    """Answered by the run that was given with --compare."""


class Whom(Body):
    """`users`, `history`, `titles`, or several of them."""

    users: Annotated[list[Id], Queries] | None = None
    """User ids, of live sessions too."""
    history: Annotated[list[Events], Queries] | None = None
    """Lists of item ids of anonymous users, oldest first."""
    times: Annotated[list[Times | None], Field(max_length=MAX_QUERIES)] | None = None
    """Times of the events of `history`."""
    titles: Annotated[list[Titles], Queries] | None = None
    """Lists of titles, as `history`."""


class RecommendBody(Rules, Whom):
    """Whom for (`users`, `history`, `titles`) and what; as `Recommender.recommend` takes them."""

    keep_seen: bool = False
    """Items of the history may be recommended again."""
    unknown: Literal["error", "skip", "popular"] = "error"
    """What becomes of users and items that are unknown, and of empty histories."""
    only: Only | None = None
    """Item columns and their values: {"genres": "Comedy"}."""
    exclude_seen_since: Annotated[str, Field(max_length=40)] | None = None
    """`30d`: what was seen longer ago may come back."""
    per_user: Annotated[list[Allowance], Field(max_length=MAX_IDS)] | None = None
    """What single users may or may not get; a history is called by its number, as in the answer."""
    text: FreeText | None = None
    """Free text that is searched for together with the history."""
    text_weight: Share | None = None
    """0 (history alone) to 1 (text alone)."""
    approximate: bool | None = None
    """By the run's index (true) or exactly (false); by default by the index where it has one and a million items."""

    @model_validator(mode="after")
    def _some_of(self) -> RecommendBody:
        given = [value for value in (self.users, self.history, self.titles) if value is not None]
        if not given:
            raise ValueError("give users, history or titles, or several of them")
        if self.times is not None and self.history is None:
            raise ValueError("times belong to history")
        if self.times is not None and self.history is not None and len(self.times) != len(self.history):
            raise ValueError(f"{len(self.times)} lists of times for {len(self.history)} histories")
        n_lists = sum(map(len, given))
        if n_lists * self.k > MAX_ROWS:
            raise ValueError(f"{n_lists} lists of k={self.k} are more than {MAX_ROWS:,} rows")
        return self


RULES = tuple(SearchOptions.__annotations__)


class Like(Body):
    """One of `item` and `text`."""

    item: Id | None = None
    text: FreeText | None = None


class SimilarBody(Rules, Like):
    """Items like an item, or like a text."""

    @model_validator(mode="after")
    def _one_of(self) -> SimilarBody:
        if (self.item is None) == (self.text is None):
            raise ValueError("give one of item and text")
        return self


class ExplainBody(Body):
    """Why `item` is recommended to a user, or to somebody with this history."""

    user: Id | None = None
    history: Events | None = None
    times: Times | None = None
    item: Id
    k: Annotated[int, Field(ge=1, le=100)] = 5
    """Reasons in the answer."""
    compared: bool = False
    """Explained by the run that was given with --compare."""

    @model_validator(mode="after")
    def _one_of(self) -> ExplainBody:
        if (self.user is None) == (self.history is None):
            raise ValueError("give one of user and history")
        if self.times is not None and self.history is None:
            raise ValueError("times belong to history")
        return self


class Event(Body):
    """Something a user did."""

    user_id: Id
    item_id: Id
    timestamp: Annotated[float, Field(ge=-(2**40), le=2**40)] | None = None
    """Seconds since 1970; now unless given."""


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


class Shown(BaseModel):
    """An item, by what people call it."""

    item_id: int | str
    title: str


class Row(Shown):
    """A recommended item; `user_id` of a history is its number: 0, 1, ..., or beside users -1, -2, ..."""

    user_id: int | str
    score: float
    rank: int


class Recommendations(BaseModel):
    """Rows as `Recommender.recommend` gives them, and notes on who was unknown."""

    rows: list[Row]
    notes: list[str]
    run: int


class SimilarRow(Shown):
    """An item, and how much it is like the one that was asked for."""

    score: float | None
    rank: int


class Similar(BaseModel):
    """Rows as `Recommender.similar` gives them."""

    rows: list[SimilarRow]
    run: int


class Reason(Shown):
    """An event of the history, as `Recommender.explain` gives it."""

    place: int
    time: int | None
    change: float | None
    share: float
    similarity: float | None


class Explained(Shown):
    """What `Recommender.explain` gives, and the same in words."""

    score: float
    rank: int | None
    events: int
    reasons: list[Reason]
    of_times: float | None
    of_text: float | None
    words: list[str]
    run: int


class Found(BaseModel):
    """Items that a search found."""

    rows: list[Shown]


class Item(Shown):
    """An item of the catalogue, and its training events."""

    fields: dict[str, Any]
    events: int


class User(BaseModel):
    """A user's last items, newest first; `live`: with events that came while the run is served."""

    user_id: str
    events: int
    live: bool
    rows: list[Shown]


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
