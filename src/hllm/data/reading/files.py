"""Which file holds what: found by name in a folder or one level inside it, packed or not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from hllm.errors import DataError, nearest


def need_folder(folder: Path | str | None) -> Path:
    """The folder of the raw files; DataError if there is none."""
    if folder is None:
        raise DataError("no folder; pass the one that holds the files with --from DIR")
    folder = Path(folder)
    if not folder.is_dir():
        what = "is a file; give the folder that holds it" if folder.exists() else "does not exist"
        raise DataError(f"folder {folder} {what}")
    return folder


def files_named(folder: Path | str, *names: str, endings: Sequence[str] = ("", ".gz")) -> Iterator[Path]:
    """The files of these names (patterns such as `*.inter`, too), the first name's first.

    Of each name those in the folder come before those one level inside it.
    """
    for name in names:
        for place in ("", "*/"):
            for ending in endings:
                yield from sorted(p for p in Path(folder).glob(f"{place}{name}{ending}") if p.is_file())


def optional_file(folder: Path | str | None, *names: str) -> Path | None:
    """The first of the files of these names, or None. DataError where there is no such folder."""
    return next(files_named(need_folder(folder), *names), None)


def first_file(folder: Path | str | None, *names: str, advice: str = "") -> Path:
    """As `optional_file`; DataError, naming what is there instead and `advice`, if there is none."""
    found = optional_file(folder, *names)
    if found is not None:
        return found
    present = sorted(p.name for p in Path(str(folder)).iterdir() if not p.name.startswith("."))
    shown = ", ".join(present[:8]) + (", ..." if len(present) > 8 else "")
    others = f"any of {', '.join(names)} will do" if len(names) > 1 else ""
    raise DataError(
        f"{folder} has no {names[0]}{nearest(names[0], present)}; it holds: {shown or 'nothing'}"
        + "".join(
            f"{mark} {text}" for mark, text in ((".", others), (";" if others else ".", advice)) if text
        )
    )
