"""Amazon Books as ByteDance publishes it for HLLM, filtered already."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hllm.data.reading.catalogue import Field
from hllm.data.reading.pairs import read_pair
from hllm.data.sources.spec import Source

if TYPE_CHECKING:
    from hllm.data.tables.schema import Tables

HUB = "https://huggingface.co/ByteDance/HLLM/resolve/main"
# The last three are the names that torch-rechub's scripts give to the same files.
NAMES = (
    "amazon_books.csv",
    "amazon_books_interactions.csv",
    "item_information.csv",
    "amazon_books_items.csv",
)
FIELDS = {"title": Field(("title",)), "description": Field(("description",))}


def read_bytedance_books(
    folder: Path | None, *, natural_titles: bool = False, catalogue: str = "used"
) -> Tables:
    """Read dataset/amazon_books.csv (item_id,user_id,timestamp) and information/amazon_books.csv.

    Both files may also lie in one folder, the second as `amazon_books.csv.1`. `catalogue`
    "used" keeps the texts of items with an interaction, "all" those of all 2.4 million.
    `natural_titles` changes nothing: book titles are published as they are read.
    """
    advice = "Both come with `hllm data fetch bytedance-books`, in the folders dataset/ and information/"
    return read_pair(folder, NAMES, FIELDS, catalogue=catalogue, advice=advice)


SOURCES = (
    Source(
        name="bytedance-books",
        summary="Amazon Books as filtered by ByteDance for HLLM: 695K users, 686K items, 10.1M ratings",
        reader="hllm.data.sources.bytedance:read_bytedance_books",
        urls=(f"{HUB}/Interactions/amazon_books.csv", f"{HUB}/ItemInformation/amazon_books.csv"),
        files=("dataset/amazon_books.csv", "information/amazon_books.csv"),
        size="369 MB + 1.08 GB",
        licence="Apache-2.0 for the files; the data are Amazon's, for research",
        citation="Chen et al., HLLM: Enhancing Sequential Recommendations via Hierarchical Large Language "
        "Models for Item and User Modeling, arXiv:2409.12740, 2024",
        text_fields=tuple(FIELDS),
        page="https://huggingface.co/ByteDance/HLLM",
        max_len=50,  # MAX_ITEM_LIST_LENGTH of its scripts
        check="hllm.data.reading.pairs:check_options",
    ),
)
