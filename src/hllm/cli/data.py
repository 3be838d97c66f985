"""`hllm data`: known data sets, their download, canonical datasets, statistics."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hllm.cli import console
from hllm.errors import ConfigError

if TYPE_CHECKING:
    from hllm.data.dataset import Dataset
    from hllm.data.sources.spec import Source

app = typer.Typer(help="Known data sets, downloads, datasets and their statistics.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON only.")]


@app.command("list")
def list_command(
    name: Annotated[str | None, typer.Argument(help="Show all that is known of this one.")] = None,
    as_json: AsJson = False,
) -> None:
    """Data sets that can be prepared by name: address, checksum, size, licence, citation, text fields."""
    from hllm.data.sources import get_source, list_sources

    sources = list_sources() if name is None else [get_source(name)]
    if as_json:
        console.result(json.dumps([_public(s) for s in sources], indent=2, ensure_ascii=False))
    elif name is not None:
        for key, value in _public(sources[0]).items():
            parts = value.items() if isinstance(value, dict) else [("", value)]
            for where, what in parts:
                text = ", ".join(what) if isinstance(what, tuple) else f"{where} {what}".strip()
                console.result(f"{key}: {text}")
    else:
        rows = [(s.title, s.size, ", ".join(s.text_fields) or "yours", s.summary) for s in sources]
        console.table(
            None, ("name", "download", "text fields, in prompt order", "what"), rows, text_columns=4
        )
        for line in [*_addresses(sources), "", *_terms(sources), ""]:
            console.result(line)
        console.result("next: hllm data prepare NAME --out DATASET (hllm data list NAME for one alone)")


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="A name of `hllm data list`.")],
    folder: Annotated[
        Path | None, typer.Option("--dir", help="Where to put the files; else the cache.")
    ] = None,
) -> None:
    """Download a data set's raw files; what is there already is not fetched again."""
    from hllm.data.sources.download import fetch_source

    path = fetch_source(name, folder)
    console.result(f"{name}: {path}")
    console.result(f"next: hllm data prepare {name} --from {path} --out DATASET")


@app.command()
def prepare(
    name: Annotated[str, typer.Argument(help="A name of `hllm data list`; `tabular` for your own files.")],
    out: Annotated[Path, typer.Option(help="The dataset folder to write.")],
    source_dir: Annotated[
        Path | None, typer.Option("--from", help="Folder of the raw files; fetched if not given.")
    ] = None,
    interactions: Annotated[
        Path | None, typer.Option(help="tabular: CSV, TSV, Parquet or JSON lines.")
    ] = None,
    items: Annotated[Path | None, typer.Option(help="tabular: the items with their texts.")] = None,
    users: Annotated[Path | None, typer.Option(help="tabular: user attributes.")] = None,
    user_col: Annotated[str | None, typer.Option(help="tabular: column of the user id [user_id].")] = None,
    item_col: Annotated[str | None, typer.Option(help="tabular: column of the item id [item_id].")] = None,
    time_col: Annotated[
        str | None, typer.Option(help="tabular: column of the time [timestamp]; `none` for file order.")
    ] = None,
    rating_col: Annotated[str | None, typer.Option(help="tabular: column of the rating [rating].")] = None,
    text_cols: Annotated[
        str | None, typer.Option(help="tabular: text columns in prompt order, as title,description [all].")
    ] = None,
    time_unit: Annotated[
        str | None, typer.Option(help="tabular: s, ms, us, ns or index [guessed and said].")
    ] = None,
    delimiter: Annotated[str | None, typer.Option(help="tabular: of text files [guessed].")] = None,
    no_header: Annotated[
        bool, typer.Option("--no-header", help="tabular: interactions have no header; columns are 1, 2, ...")
    ] = False,
    no_items_header: Annotated[
        bool, typer.Option("--no-items-header", help="tabular: the same of the items.")
    ] = False,
    items_id_col: Annotated[
        str | None, typer.Option(help="tabular: column of the id in the items [--item-col, or item_id].")
    ] = None,
    users_id_col: Annotated[
        str | None, typer.Option(help="tabular: column of the id in the users [--user-col, or user_id].")
    ] = None,
    encoding: Annotated[str | None, typer.Option(help="Of text files, if not as published.")] = None,
    natural_titles: Annotated[
        bool, typer.Option("--natural-titles", help="`Title, The (1995)` becomes `The Title (1995)`.")
    ] = False,
    filter_rule: Annotated[
        str | None, typer.Option("--filter", help="amazon: the published rule, as none, k-core or bytedance.")
    ] = None,
    min_rating: Annotated[float | None, typer.Option(help="Keep events rated at least this.")] = None,
    min_interactions: Annotated[
        int | None, typer.Option(help="Events every user and every item must have (k-core) [1].")
    ] = None,
    min_user_interactions: Annotated[int | None, typer.Option(help="The same, users only.")] = None,
    min_item_interactions: Annotated[int | None, typer.Option(help="The same, items only.")] = None,
    drop_duplicates: Annotated[
        bool, typer.Option("--drop-duplicates", help="Keep one of events with the same user, item and time.")
    ] = False,
    split: Annotated[
        str | None, typer.Option(help="leave-one-out, user-ratio, temporal or cold-items [leave-one-out].")
    ] = None,
    ratio: Annotated[str | None, typer.Option(help="user-ratio: shares of users [0.8,0.1,0.1].")] = None,
    targets: Annotated[str | None, typer.Option(help="user-ratio: last or all [last].")] = None,
    cutoffs: Annotated[
        str | None, typer.Option(help="temporal: two shares, times or dates, as 0.8,0.9.")
    ] = None,
    cold_share: Annotated[
        float | None, typer.Option(help="cold-items: share of items held out [0.1].")
    ] = None,
    ties: Annotated[str | None, typer.Option(help="Order of equal times: file or shuffle [file].")] = None,
    seed: Annotated[int | None, typer.Option(help="Of splits and shuffled ties [0].")] = None,
    max_len: Annotated[
        str | None,
        typer.Option(help="Window to train with (a number or all), noted in dataset.json; drops nothing."),
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", help="KEY=VALUE for the reader of this source.")
    ] = None,
) -> None:
    """Raw files to a dataset folder: filtered, ordered, split, packed."""
    from hllm.data.prepare import prepare as prepare_dataset

    given = dict(locals())
    for key in ("name", "out", "source_dir", "no_header", "no_items_header", "option", "prepare_dataset"):
        del given[key]
    given["filter"] = given.pop("filter_rule")
    given["natural_titles"] = natural_titles or None
    given["drop_duplicates"] = drop_duplicates or None
    given["header"] = False if no_header else None
    given["items_header"] = False if no_items_header else None
    given["ratio"] = _numbers("ratio", ratio)
    given["cutoffs"] = _cutoffs(cutoffs)
    given["max_len"] = _whole(max_len)
    given |= _assignments(option or [])
    dataset = prepare_dataset(name, source_dir, out, **given)
    for line in summary(dataset):
        console.result(line)
    textless = dataset.meta["counts"]["items_without_text"] == dataset.n_catalogue
    console.result(f"next: hllm {f'train {out} --preset sasrec --out RUN' if textless else f'embed {out}'}")


@app.command()
def describe(
    dataset: Annotated[Path, typer.Argument(help="A dataset folder.")], as_json: AsJson = False
) -> None:
    """Size, density, lengths, time span, ties, repeats and text of a dataset."""
    from hllm.data.dataset import Dataset
    from hllm.data.describe import describe as statistics
    from hllm.data.describe import render

    values = statistics(Dataset.load(dataset))
    if as_json:
        console.result(json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False))
    else:
        console.output().print(render(values))


def _addresses(sources: list[Source]) -> list[str]:
    """Where each file comes from, with its published checksum; the page, where that is by hand."""
    lines = ["addresses, with the checksums that are published:"]
    for source in sources:
        for url in source.urls:
            sums = {"sha256": source.sha256.get(url), "md5": source.md5.get(url)}
            shown = "".join(f"  {kind} {value}" for kind, value in sums.items() if value)
            lines.append(f"  {source.title}  {url.replace('{variant}', source.variant)}{shown}")
        if source.files and not source.urls:
            lines.append(f"  {source.title}  by hand, see {source.page}")
    return lines


def _terms(sources: list[Source]) -> list[str]:
    """Licence, page and citation, once for all data sets that share them."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for source in sources:
        groups.setdefault((source.licence, source.page, source.citation), []).append(source.title)
    lines = ["licences and citations:"]
    for (licence, page, citation), names in groups.items():
        place = f" ({page})" if page else ""
        lines += [f"  {', '.join(names)}: {licence}{place}", f"    cite: {citation}"][: 2 if citation else 1]
    return lines


def _public(source: Source) -> dict[str, Any]:
    """What a reader of the list wants to know of a source."""
    hidden = ("reader", "reader_options", "check", "fallback", "variant")
    values = {key: value for key, value in asdict(source).items() if key not in hidden and value}
    return values | {"name": source.title}


def summary(dataset: Dataset) -> list[str]:
    """What was prepared, in a few lines; notes and what was skipped included."""
    meta = dataset.meta
    split = meta["split"]["name"]
    evaluated = ", ".join(f"{n:,} in {name}" for name, n in meta["evaluated_users"].items())
    lines = [
        f"dataset {meta['name']}: {meta['n_users']:,} users, {meta['n_candidates']:,} candidate items "
        f"({meta['n_catalogue']:,} in the catalogue), {meta['n_interactions']:,} interactions",
        f"split {split}: users evaluated {evaluated}; equal times ordered by {meta['ties']}",
        _text_line(meta),
    ]
    if "max_len" in meta:
        lines.append(f"trains with windows of {meta['max_len']} events unless told otherwise (--max-len)")
    shown = [f"{key.replace('_', ' ')} {n:,}" for key, n in meta["counts"].items() if n]
    if shown:
        lines.append(f"counted: {', '.join(shown)}")
    lines += [f"note: {note}" for note in meta["notes"]]
    if twice := meta["counts"].get("duplicate_interactions"):
        lines.append(f"note: {twice:,} duplicate interactions are kept; --drop-duplicates keeps one of each")
    lines.append(f"fingerprint {dataset.fingerprint}")
    return [*lines, f"written to {dataset.path}"]


def _text_line(meta: dict[str, Any]) -> str:
    """What an item LLM will read, and what can be done where that is nothing."""
    without, all_items = meta["counts"]["items_without_text"], meta["n_catalogue"]
    if without == all_items:
        return "text: none, so nothing to embed (--items FILE --text-cols A,B gives items their texts)"
    return f"text, in prompt order: {', '.join(meta['text_fields'])}; {without:,} items without any"


def _numbers(name: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as err:
        raise ConfigError(f"--{name} {text!r}: give numbers such as 0.8,0.1,0.1") from err


def _whole(text: str | None) -> int | str | None:
    """A whole number where the text is one; else the text, for others to judge."""
    return int(text) if text and text.removeprefix("-").isdecimal() else text


def _cutoffs(text: str | None) -> tuple[int | float | str, ...] | None:
    """`0.8,0.9`, whole times, or dates: each part as the most exact type that holds it."""

    def value(part: str) -> int | float | str:
        for kind in (int, float):
            try:
                return kind(part)
            except ValueError:
                pass
        return part

    return None if text is None else tuple(value(part.strip()) for part in text.split(","))


def _assignments(pairs: list[str]) -> dict[str, Any]:
    """`KEY=VALUE` of --option, values as YAML scalars."""
    import yaml

    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise ConfigError(f"--option {pair!r} is not KEY=VALUE")
        name = key.strip().replace("-", "_")
        if name in values:
            raise ConfigError(f"--option gives {name} twice: {values[name]!r} and {text!r}; leave one out")
        try:
            values[name] = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError) as err:
            raise ConfigError(
                f"--option {pair!r}: {text!r} is no YAML value ({str(err).splitlines()[0]}); quote it, as in "
                f"--option '{key}=\"...\"'"
            ) from err
    return values
