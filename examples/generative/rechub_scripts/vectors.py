"""The second step of each data set: item texts, and what an item LLM makes of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from hllm.data.sources.bytedance import FIELDS
from hllm.errors import DeviceError
from hllm.formats.rechub import write_text_map
from hllm.items.embed import embed
from hllm.items.embeddings import ItemEmbeddings
from hllm.text.template import Template
from rechub_scripts import books
from rechub_scripts.entry import Parser, model_flags, positive, raw_flags, say, warn
from rechub_scripts.environment import check_device, check_memory, check_model, encoding_memory
from rechub_scripts.families import BEAUTY, BOOKS, MOVIELENS, Family, check_sequences
from rechub_scripts.preprocess import carried, folders
from rechub_scripts.processed import Processed, open_folder
from rechub_scripts.raw import need_raw

if TYPE_CHECKING:
    import argparse

    import polars as pl

MAX_TOKENS = 512  # of a text beside the prompt; torch-rechub cuts text and prompt together at 512
BATCH = 64  # texts a forward pass
Catalogue = tuple["pl.DataFrame", list[str]]  # items, and their text fields in prompt order
Reader = Callable[["argparse.Namespace", Path, "set[str]"], Catalogue]


def movielens(here: Path, arguments: Sequence[str] | None = None) -> None:
    """`preprocess_hllm_data.py`: movie_text_map.pkl and item_embeddings_{model}.pt."""

    def read(args: argparse.Namespace, data_dir: Path, wanted: set[str]) -> Catalogue:
        from hllm.data.sources.movielens import read_ml_1m

        names = ("ratings.dat", "movies.dat")
        raw = need_raw("ml-1m", data_dir, names, download=not args.no_download, overwrite=args.overwrite)
        tables = read_ml_1m(raw)
        assert tables.items is not None
        return tables.items, tables.text_fields

    _run(MOVIELENS, _parser("Texts and embeddings of MovieLens-1M's movies"), read, here, arguments)


def amazon_books(here: Path, arguments: Sequence[str] | None = None) -> None:
    """`preprocess_amazon_books_hllm.py`: item_text_map.pkl and item_embeddings_{model}.pt."""
    parser = _parser("Texts and embeddings of Amazon Books")
    parser.flag("--data_source", choices=books.SOURCES, default="auto", help="auto: what lies there")

    def read(args: argparse.Namespace, data_dir: Path, wanted: set[str]) -> Catalogue:
        download = not args.no_download
        found = books.need_file(
            data_dir, "items", args.data_source, download=download, overwrite=args.overwrite
        )
        say(f"item texts: {found.path}")
        return books.items(found, wanted)[0], list(FIELDS)

    _run(BOOKS, parser, read, here, arguments)


def amazon_beauty(here: Path, arguments: Sequence[str] | None = None) -> None:
    """`preprocess_amazon_beauty_hllm.py`: item_text_map.pkl and item_embeddings_{model}.pt."""

    def read(args: argparse.Namespace, data_dir: Path, wanted: set[str]) -> Catalogue:
        from hllm.data.reading.catalogue import read_catalogue
        from hllm.data.reading.files import first_file
        from hllm.data.sources.amazon import EDITIONS

        name, layout = "meta_Beauty.json", EDITIONS["2014"]
        raw = need_raw(
            "amazon-beauty", data_dir, (name,), download=not args.no_download, overwrite=args.overwrite
        )
        items, _ = read_catalogue(first_file(raw, name), layout.item_key, layout.fields, wanted)
        return items, list(layout.fields)

    _run(BEAUTY, _parser("Texts and embeddings of Amazon Beauty's products"), read, here, arguments)


def _parser(what: str) -> Parser:
    parser = Parser(what)
    model_flags(parser)
    raw_flags(parser)
    parser.flag("--batch_size", type=positive, default=BATCH, help="texts a forward pass [64]")
    parser.flag("--trust_remote_code", action="store_true", help="run Python code that the model brings")
    return parser


def _run(family: Family, parser: Parser, read: Reader, here: Path, arguments: Sequence[str] | None) -> None:
    args = parser.parse(arguments)
    data_dir, output_dir = folders(args, here)
    check_sequences(output_dir, family, **carried(args))
    name = check_model(args.model_type)
    device = check_device(args.device, "encode")
    check_memory(device, encoding_memory(args.model_type), "--batch_size 16, or --model_type smollm2-135m")
    folder = open_folder(output_dir, family)
    items, fields = read(args, data_dir, {str(item) for item in folder.vocab.item_ids})
    folder = folder.with_items(items, fields)
    template = Template(tuple(fields))
    texts = dict(zip(folder.data.item_ids, template.render_all(folder.data.items), strict=True))
    write_text_map(output_dir / family.text_map, folder.text_map(texts))
    found = _encode(folder, name, args)
    path = folder.write_embeddings(args.model_type, found.vectors)
    _report(folder, path, output_dir / family.text_map, found)
    options = carried(args)
    own = options["data_dir"] is None and options["output_dir"] is None
    command = family.command(
        family.training,
        model_type=args.model_type,
        device=args.device,
        dataset_path=None if own else output_dir,
        state=options["state"],
    )
    say(f"next, from the project's root: {command}")


def _encode(folder: Processed, name: str, args: argparse.Namespace) -> ItemEmbeddings:
    """Last-token vectors; where memory runs out and --auto_batch allows it, with smaller batches."""
    batch_size = args.batch_size
    while True:
        try:
            return embed(
                folder.data,
                name,
                "last",
                device=args.device,
                batch_size=batch_size,
                max_tokens=MAX_TOKENS,
                trust_remote_code=args.trust_remote_code,
            )
        except DeviceError:
            if not args.auto_batch or batch_size == 1:
                raise
            batch_size = max(1, batch_size // 4)
            warn(f"out of memory; going on with --batch_size {batch_size}")
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def _report(folder: Processed, path: Path, text_map: Path, found: ItemEmbeddings) -> None:
    vectors = found.vectors[folder.rows[1:]]
    covered = int(vectors.any(axis=1).sum())
    say(f"texts: {text_map}")
    say(f"{path}: {covered:,} of {len(vectors):,} items have a vector of {vectors.shape[1]} numbers")
    if covered < len(vectors):
        say(f"note: {len(vectors) - covered:,} items without text have a zero vector")
    say(f"{found.stats['encoded']:,} texts encoded, {found.stats['reused']:,} reused")
