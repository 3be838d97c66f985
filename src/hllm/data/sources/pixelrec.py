"""PixelRec: short videos with a title, a tag and a description, in three sizes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hllm.data.reading.catalogue import Field
from hllm.data.reading.pairs import read_pair
from hllm.data.sources.spec import Source

if TYPE_CHECKING:
    from hllm.data.tables.schema import Tables

FIELDS = {"title": Field(("title",)), "tag": Field(("tag",)), "description": Field(("description",))}
PAGE = "https://github.com/westlake-repl/PixelRec"
# What each holds, and the size of its two files as estimated from the number of rows.
SIZES = {
    "Pixel200K": ("200K users, 96K items, 4M interactions", "0.1 GB"),
    "Pixel1M": ("1M users, 101K items, 19M interactions", "0.6 GB"),
    "Pixel8M": ("8.9M users, 407K items, 158M interactions", "5 GB"),
}


def read_pixelrec(
    folder: Path | None, *, size: str, natural_titles: bool = False, catalogue: str = "used"
) -> Tables:
    """Read dataset/SIZE.csv (item_id,user_id,timestamp) and information/SIZE.csv.

    The files may lie in any two folders, or in one under different endings: columns tell them
    apart. Older item files have no description; the field is then empty. `catalogue` "all" keeps
    items without an interaction. `natural_titles` changes nothing here.
    """
    advice = f"Get both from the links at {PAGE} and put them into the folders dataset/ and information/"
    names = (f"{size}.csv", f"{size}_interactions.csv", f"{size}_items.csv")
    return read_pair(folder, names, FIELDS, catalogue=catalogue, advice=advice)


SOURCES = tuple(
    Source(
        name=size.lower(),
        summary=f"PixelRec short videos: {numbers}",
        reader="hllm.data.sources.pixelrec:read_pixelrec",
        reader_options={"size": size},
        files=(f"{size}.csv",),
        size=f"about {gigabytes}, by hand",
        licence="non-commercial research and education only",
        citation="Cheng et al., An Image Dataset for Benchmarking Recommender Systems with Raw Pixels, "
        "arXiv:2309.06789, SDM 2024",
        text_fields=tuple(FIELDS),
        page=PAGE,
        max_len=10,  # MAX_ITEM_LIST_LENGTH of ByteDance's scripts
        check="hllm.data.reading.pairs:check_options",
    )
    for size, (numbers, gigabytes) in SIZES.items()
)
