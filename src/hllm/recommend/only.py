"""Which items are left out by their columns, and the columns that a reader of recommendations wants to see."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hllm.data.tables.schema import ITEM_ID
from hllm.data.tables.values import clean_text, id_list
from hllm.errors import ConfigError, DataError, nearest, unknown

if TYPE_CHECKING:
    import polars as pl

    from hllm.data.dataset import Dataset

LABELS = r", |\|"  # between the labels of one field: "Comedy, Drama"


def hidden_items(
    data: Dataset, exclude: Iterable[Any] = (), only: Mapping[str, Any] | None = None
) -> list[Any]:
    """Item ids that are not to be recommended: `exclude`, and the items that `only` does not name.

    `only` maps a column of the items to a value, or to a list of values of which one is enough; of several
    columns each must fit. A value is a whole field, or one of its labels ("Comedy" of "Comedy, Drama"), in any
    case. Raises ConfigError for an unknown column, DataError for a value that no item has.
    """
    import polars as pl

    hidden = id_list(exclude, "exclude")
    if only is None:
        return hidden
    if not isinstance(only, Mapping):
        raise ConfigError(
            f"only={only!r} must map columns to values, for example only={{'genres': 'Comedy'}}"
        )
    fits = pl.Series([True]).new_from_index(0, len(data.items))
    for column, values in only.items():
        field = _column(data, column)
        for_any = pl.Series([False]).new_from_index(0, len(field))
        for value in values if isinstance(values, list | tuple | set) else [values]:
            for_any |= _has(field, value)
        fits &= for_any
    return [*hidden, *data.items[ITEM_ID].filter(~fits).to_list()]


def with_columns(frame: pl.DataFrame, data: Dataset, columns: Sequence[str]) -> pl.DataFrame:
    """Recommendations with `columns` of the items behind their own; ConfigError for an unknown one."""
    names = list(
        dict.fromkeys(_column(data, name).name for name in id_list(columns, "columns", "column names"))
    )
    for name in names:
        if name in frame.columns:
            raise ConfigError(
                f"column {name!r} is there already; other columns: {', '.join(_others(data, frame))}"
            )
    if not names:
        return frame
    return frame.join(data.items.select(ITEM_ID, *names), on=ITEM_ID, how="left", maintain_order="left")


def _others(data: Dataset, frame: pl.DataFrame) -> list[str]:
    return [name for name in data.items.columns if name not in frame.columns] or ["none"]


def _column(data: Dataset, name: Any) -> pl.Series:
    if not isinstance(name, str) or name not in data.items.columns:
        raise ConfigError(unknown("column of the items", name, data.items.columns))
    return data.items[name]


def labels_of(field: pl.Series) -> pl.Series:
    """The labels of each field, in small letters: lists of texts (n,), null for null. "Comedy|Drama" has two."""
    import polars as pl

    texts = field.cast(pl.String, strict=False).str.to_lowercase()
    return texts.str.replace_all(LABELS, "\n").str.split("\n")


def _has(field: pl.Series, value: Any) -> pl.Series:
    """bool (n_catalogue,): the field is `value`, or has it among its labels."""
    import polars as pl

    text = clean_text(value)
    if text is None:
        raise DataError(f"only: {value!r} is no value of column {field.name!r}; give a text or a number")
    wanted, labels = text.casefold(), labels_of(field)
    texts = field.cast(pl.String, strict=False).str.to_lowercase()
    found = (texts == wanted) | labels.list.contains(wanted)
    if field.dtype.is_numeric() and (number := _number(text)) is not None:
        found |= field.cast(pl.Float64) == number
    found = found.fill_null(False)
    if not found.any():
        known = labels.explode().drop_nulls().unique().sort().head(10_000).to_list()
        raise DataError(
            f"no item has {value!r} in column {field.name!r}{nearest(wanted, known)}; "
            f"it holds, for example, {', '.join(map(repr, known[:3])) or 'nothing'}"
        )
    return found


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
