"""Amazon reviews as the McAuley lab publishes them: the editions of 2014, 2018 and 2023.

    2014  ratings_X.csv (user,item,rating,time; no header), reviews_X_5.json.gz, meta_X.json.gz
          (one Python literal a line)
    2018  X.csv (item,user,rating,time; no header), X_5.json.gz, meta_X.json.gz (JSON)
    2023  X.csv (user_id,parent_asin,rating,timestamp), X.jsonl.gz, meta_X.jsonl.gz; milliseconds

`.gz` or unpacked. Only items with an interaction are read from the catalogue, unless all are
asked for: reviews are of a tenth of it at most.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hllm.data.reading.catalogue import Field, read_catalogue
from hllm.data.reading.event_files import read_events, read_reviews
from hllm.data.reading.files import first_file, need_folder, optional_file
from hllm.data.reading.pairs import check_catalogue, finish, wanted_items
from hllm.data.reading.thinning import check_rule, thin
from hllm.data.sources.spec import Source
from hllm.data.tables.schema import ITEM_ID, RATING, TIMESTAMP, USER_ID
from hllm.data.tables.values import clean_text
from hllm.errors import ConfigError, DataError, unknown

if TYPE_CHECKING:
    import polars as pl

    from hllm.data.tables.schema import Tables

EVENTS = ("auto", "ratings", "reviews")
USER_FIRST = (USER_ID, ITEM_ID, RATING, TIMESTAMP)
ITEM_FIRST = (ITEM_ID, USER_ID, RATING, TIMESTAMP)


def price_text(value: Any) -> str | None:
    """A price as text: a number of dollars in 2014 and 2023, "$4.99" or scraps of the page in 2018."""
    if isinstance(value, int | float) and value == value:
        return f"${value:.2f}"
    text = clean_text(value)
    return text if text and len(text) <= 40 and any(c.isdigit() for c in text) else None


def title_text(value: Any) -> str | None:
    """A title; None for the pieces of script that 2018 has in place of some."""
    text = clean_text(value)
    return None if text and "getTime" in text else text


def brand_text(value: Any) -> str | None:
    """A brand, without the words around it on the 2018 pages ("by\\n    ACME")."""
    text = clean_text(value)
    return re.sub(r"^by\s*\n\s*", "", text) or None if text else None


def category_text(value: Any) -> str | None:
    """Categories, from general to special, without the scraps of markup that end some lists in 2018."""
    if isinstance(value, list):
        value = [part for part in value if not (isinstance(part, str) and "</span" in part)]
    return clean_text(value, ", ")


DESCRIPTION = Field(("description",))
CATEGORIES = Field(("categories", "category"), category_text)
FEATURES = Field(("features", "feature"))
PRICE = Field(("price",), price_text)


@dataclass(frozen=True)
class Edition:
    """Where an edition keeps things. `{}` stands for the category in file names."""

    year: str
    ratings: tuple[str, ...]
    reviews: tuple[str, ...]
    items: tuple[str, ...]
    order: tuple[str, ...]
    item_key: str
    review_keys: Mapping[str, str]
    unit: str
    fields: Mapping[str, Field] = field(default_factory=dict)


OLD_REVIEWS = {USER_ID: "reviewerID", ITEM_ID: "asin", RATING: "overall", TIMESTAMP: "unixReviewTime"}
NEW_REVIEWS = {USER_ID: "user_id", ITEM_ID: "parent_asin", RATING: "rating", TIMESTAMP: "timestamp"}
EDITIONS = {
    "2014": Edition(
        "2014",
        ratings=("ratings_{}.csv",),
        reviews=("reviews_{}_5.json", "reviews_{}.json"),
        items=("meta_{}.json",),
        order=USER_FIRST,
        item_key="asin",
        review_keys=OLD_REVIEWS,
        unit="s",
        fields={
            "title": Field(("title",), title_text),
            "description": DESCRIPTION,
            "categories": CATEGORIES,
            "brand": Field(("brand",), brand_text),
            "price": PRICE,
        },
    ),
    "2018": Edition(
        "2018",
        ratings=("{}.csv",),
        reviews=("{}_5.json", "{}.json"),
        items=("meta_{}.json",),
        order=ITEM_FIRST,
        item_key="asin",
        review_keys=OLD_REVIEWS,
        unit="s",
        fields={
            "title": Field(("title",), title_text),
            "description": DESCRIPTION,
            "features": FEATURES,
            "categories": CATEGORIES,
            "brand": Field(("brand",), brand_text),
            "price": PRICE,
        },
    ),
    "2023": Edition(
        "2023",
        ratings=("{}.csv",),
        reviews=("{}.jsonl", "{}.json"),
        items=("meta_{}.jsonl", "meta_{}.json"),
        order=USER_FIRST,  # the scripts that make these files write no header, the published files have one
        item_key="parent_asin",
        review_keys=NEW_REVIEWS,
        unit="ms",
        fields={
            "title": Field(("title",), title_text),
            "description": DESCRIPTION,
            "features": FEATURES,
            "categories": CATEGORIES,
            "store": Field(("store",)),
            "price": PRICE,
        },
    ),
}


# ----------------------------------------------------------------------------- readers


@dataclass(frozen=True)
class _Choice:
    """What a reader's options say. `prefer`: what "auto" events takes where both kinds are there."""

    events: str
    filter: str
    k: int
    catalogue: str
    prefer: str = "ratings"


def check_options(
    *, events: str = "auto", filter: str = "none", k: int = 5, catalogue: str = "used", **others: Any
) -> None:
    """ConfigError for values of a reader's options that cannot be, before anything is read."""
    check_catalogue(catalogue)
    check_rule(filter, k)
    if events not in EVENTS:
        raise ConfigError(unknown("events", events, EVENTS))


def read_amazon(
    folder: Path | None,
    *,
    edition: str,
    variant: str,
    natural_titles: bool = False,
    events: str = "auto",
    filter: str = "none",
    k: int = 5,
    catalogue: str = "used",
) -> Tables:
    """Read the category `variant` of an edition ("2014", "2018", "2023").

    `events`: "ratings" (every rating) or "reviews" (in 2014 and 2018 the 5-core), "auto" what is
    there. `filter` and `k`: see `thinning.thin`. `catalogue` "all" keeps items without an
    interaction. `natural_titles` changes nothing: these titles are published as they are read.
    Raises DataError for files that are missing, and for lines that cannot be used.
    """
    layout = EDITIONS[edition]
    return _read(folder, layout, variant, tuple(layout.fields), _Choice(events, filter, k, catalogue))


def read_amazon_books(
    folder: Path | None,
    *,
    natural_titles: bool = False,
    events: str = "auto",
    filter: str = "bytedance",
    k: int = 5,
    catalogue: str = "used",
) -> Tables:
    """Read ratings_Books.csv and meta_Books.json.gz (2014), with title and description as texts.

    `filter` "bytedance" is the rule behind the published HLLM results: one pass over users and
    items with at least 5 ratings. "k-core" repeats it to its fixed point, "none" keeps all.
    """
    fields = ("title", "description")
    return _read(folder, EDITIONS["2014"], "Books", fields, _Choice(events, filter, k, catalogue))


def read_amazon_beauty(
    folder: Path | None,
    *,
    natural_titles: bool = False,
    events: str = "auto",
    filter: str = "none",
    k: int = 5,
    catalogue: str = "used",
) -> Tables:
    """Read reviews_Beauty_5.json.gz (5-core) and meta_Beauty.json.gz (2014)."""
    layout = EDITIONS["2014"]
    choice = _Choice(events, filter, k, catalogue, prefer="reviews")
    return _read(folder, layout, "Beauty", tuple(layout.fields), choice)


def _read(
    folder: Path | None, layout: Edition, variant: str, text_fields: tuple[str, ...], choice: _Choice
) -> Tables:
    check_options(events=choice.events, filter=choice.filter, k=choice.k, catalogue=choice.catalogue)
    folder = need_folder(folder)
    rows, notes = _events(folder, layout, variant, choice)
    before = rows.height
    rows = thin(rows, choice.filter, choice.k)
    fields = {name: layout.fields[name] for name in text_fields}
    file = first_file(folder, *_named(layout.items, variant), advice=_advice(layout, variant))
    wanted = wanted_items(rows, choice.catalogue)
    items, counts = read_catalogue(file, layout.item_key, fields, wanted)
    tables = finish(rows, items, list(fields), counts, layout.unit)
    if rows.height < before:
        tables.counts["below_source_filter"] = before - rows.height
        kept = f"{rows.height:,} of {before:,} interactions"
        notes.append(f"filter {choice.filter} with k={choice.k} kept {kept}")
    tables.notes = [*notes, *tables.notes]
    return tables


def _events(folder: Path, layout: Edition, variant: str, choice: _Choice) -> tuple[pl.DataFrame, list[str]]:
    """Interactions from the ratings file or from the reviews, whichever is asked for or there."""
    names = {kind: _named(getattr(layout, kind), variant) for kind in ("ratings", "reviews")}
    kinds = [choice.events]
    if choice.events == "auto":
        kinds = sorted(names, key=lambda kind: kind != choice.prefer)
    present = {kind: path for kind in kinds if (path := optional_file(folder, *names[kind])) is not None}
    if not present:
        first_file(folder, *(name for kind in kinds for name in names[kind]), advice=_advice(layout, variant))
    kind, path = next(iter(present.items()))
    notes = []
    if len(present) > 1:
        other = next(k for k in present if k != kind)
        notes.append(f"interactions from {path.name}; {present[other].name} is there too (events={other})")
    if kind == "reviews":
        return read_reviews(path, layout.review_keys), notes
    rows = read_events(path, layout.order)
    _check_order(rows, path, layout)
    return rows, notes


def _check_order(rows: pl.DataFrame, path: Path, layout: Edition) -> None:
    """Refuse a file of another edition: 2014 has the user first, 2018 the item.

    Item codes have 10 characters; of users' codes hardly any has so few.
    """
    head = rows.head(1000)
    users, items = head[USER_ID].str.len_chars(), head[ITEM_ID].str.len_chars()
    if (users == 10).all() and (items > 10).mean() > 0.5:  # type: ignore[operator]
        other = {"2014": "amazon-2018", "2018": "amazon-2014"}.get(layout.year, "amazon-2014")
        raise DataError(
            f"{path} line 1: {head[USER_ID][0]!r} looks like an item and {head[ITEM_ID][0]!r} like a user, "
            f"this is not the layout of {layout.year}; prepare it as {other}:CATEGORY"
        )


def _named(patterns: tuple[str, ...], variant: str) -> list[str]:
    return [pattern.format(variant) for pattern in patterns]


def _advice(layout: Edition, variant: str) -> str:
    return f"They come with `hllm data fetch amazon-{layout.year}:{variant}`"


# ----------------------------------------------------------------------------- specifications

SNAP = "http://snap.stanford.edu/data/amazon/productGraph/categoryFiles"
UCSD_2018 = "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_v2"
UCSD_2023 = "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023"
READER = "hllm.data.sources.amazon"
CHECK = f"{READER}:check_options"
LICENCE = "no licence stated, for research"
PAGES = {
    "2014": "https://cseweb.ucsd.edu/~jmcauley/datasets/amazon/links.html",
    "2018": "https://cseweb.ucsd.edu/~jmcauley/datasets/amazon_v2/",
    "2023": "https://amazon-reviews-2023.github.io/",
}
CITATIONS = {
    "2014": "He and McAuley, Ups and Downs: Modeling the Visual Evolution of Fashion Trends with One-Class "
    "Collaborative Filtering, WWW 2016; McAuley et al., Image-Based Recommendations on Styles and "
    "Substitutes, SIGIR 2015",
    "2018": "Ni, Li and McAuley, Justifying Recommendations using Distantly-Labeled Reviews and Fine-Grained "
    "Aspects, EMNLP 2019",
    "2023": "Hou et al., Bridging Language and Items for Retrieval and Recommendation, "
    "arXiv:2403.03952, 2024",
}


def _family(year: str, urls: tuple[str, ...], files: tuple[str, ...], summary: str) -> Source:
    return Source(
        name=f"amazon-{year}",
        variant="CATEGORY",
        summary=summary,
        reader=f"{READER}:read_amazon",
        reader_options={"edition": year},
        urls=urls,
        files=files,
        size="from 1 MB to 10 GB, by category",
        licence=LICENCE,
        citation=CITATIONS[year],
        text_fields=tuple(EDITIONS[year].fields),
        page=PAGES[year],
        check=CHECK,
    )


SOURCES = (
    Source(
        name="amazon-books",
        summary="Amazon Books 1996-2014, raw: 22.5M ratings, 2.4M items; 10.1M after ByteDance's filter",
        reader=f"{READER}:read_amazon_books",
        urls=(f"{SNAP}/ratings_Books.csv", f"{SNAP}/meta_Books.json.gz"),
        files=("ratings_Books.csv", "meta_Books.json"),
        size="about 0.9 GB + 0.8 GB",
        licence=LICENCE,
        citation=CITATIONS["2014"],
        text_fields=("title", "description"),
        page=PAGES["2014"],
        check=CHECK,
    ),
    Source(
        name="amazon-beauty",
        summary="Amazon Beauty 1996-2014, 5-core: 22,363 users, 12,101 items, 198,502 reviews",
        reader=f"{READER}:read_amazon_beauty",
        urls=(f"{SNAP}/reviews_Beauty_5.json.gz", f"{SNAP}/meta_Beauty.json.gz"),
        files=("reviews_Beauty_5.json", "meta_Beauty.json"),
        size="about 0.15 GB",
        licence=LICENCE,
        citation=CITATIONS["2014"],
        text_fields=tuple(EDITIONS["2014"].fields),
        page=PAGES["2014"],
        check=CHECK,
    ),
    _family(
        "2014",
        (f"{SNAP}/ratings_{{variant}}.csv", f"{SNAP}/meta_{{variant}}.json.gz"),
        ("ratings_{variant}.csv", "meta_{variant}.json"),
        "Amazon reviews 1996-2014, one category (Beauty, Toys_and_Games, ...)",
    ),
    _family(
        "2018",
        (
            f"{UCSD_2018}/categoryFilesSmall/{{variant}}.csv",
            f"{UCSD_2018}/metaFiles2/meta_{{variant}}.json.gz",
        ),
        ("{variant}.csv", "meta_{variant}.json"),
        "Amazon reviews 1996-2018, one category (All_Beauty, Luxury_Beauty, ...)",
    ),
    _family(
        "2023",
        (
            f"{UCSD_2023}/benchmark/5core/rating_only/{{variant}}.csv.gz",
            f"{UCSD_2023}/raw/meta_categories/meta_{{variant}}.jsonl.gz",
        ),
        ("{variant}.csv", "meta_{variant}.jsonl"),
        "Amazon reviews 1996-2023, one category (All_Beauty, Video_Games, ...), 5-core ratings",
    ),
)
