"""PixelRec's three sizes, in the layout of its item and interaction folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from hllm.data.dataset import Dataset
from hllm.data.sources.pixelrec import SOURCES, read_pixelrec
from hllm.errors import DataError

INTERACTIONS = "item_id,user_id,timestamp\ni7,u3,1634567890\ni0,u1,1634567891\ni7,u1,1634567892\n"
NUMBERS = "view_number,comment_number,thumbup_number,share_number,coin_number,favorite_number,barrage_number"
ITEMS = (
    f"item_id,{NUMBERS},title,tag,description\n"
    'i0,10,1,1,0,0,2,3,"Cats, again",pets,"A\nb"\n'
    "i7,9,1,1,0,0,2,3,Noodles,food,\n"
)


def write(folder: Path, size: str, items: str = ITEMS) -> Path:
    for name, text in (("dataset", INTERACTIONS), ("information", items)):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / f"{size}.csv").write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_every_size(tmp_path: Path, source: object) -> None:
    size = source.reader_options["size"]  # type: ignore[attr-defined]
    tables = read_pixelrec(write(tmp_path, size), **source.reader_options)  # type: ignore[attr-defined]
    assert source.name == size.lower()  # type: ignore[attr-defined]
    assert tables.text_fields == ["title", "tag", "description"]
    assert tables.interactions.row(0) == ("u3", "i7", 1634567890)
    assert tables.items is not None
    assert tables.items.rows() == [("i0", "Cats, again", "pets", "A\nb"), ("i7", "Noodles", "food", None)]
    assert (tables.time_unit, tables.notes) == ("s", [])
    data = Dataset.from_source_tables(tables, name=source.name)  # type: ignore[attr-defined]
    assert (data.n_users, data.n_candidates) == (2, 2)


def test_item_files_from_before_there_were_descriptions(tmp_path: Path) -> None:
    items = "\n".join(line.rsplit(",", 1)[0] for line in ITEMS.replace('"A\nb"', "x").splitlines())
    tables = read_pixelrec(write(tmp_path, "Pixel200K", items), size="Pixel200K")
    assert tables.items is not None
    assert tables.items["title"].to_list() == ["Cats, again", "Noodles"]
    assert tables.items["description"].to_list() == [None, None]


def test_another_size_is_not_taken_for_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no Pixel1M.csv with interactions.*westlake-repl/PixelRec"):
        read_pixelrec(write(tmp_path, "Pixel200K"), size="Pixel1M")


def test_without_a_folder() -> None:
    with pytest.raises(DataError, match="--from DIR"):
        read_pixelrec(None, size="Pixel1M")
