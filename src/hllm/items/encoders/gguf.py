"""GGUF files (llama.cpp's quantised format), converted once to a folder that transformers loads.

Reading a GGUF takes transformers about ten times as long as reading safetensors, and needs the
weights dequantised each time; the converted copy is kept in hllm's cache.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from hllm import artifacts
from hllm.errors import ArtifactError

MARKER = "hllm.json"  # written last: a folder without it is not a finished copy


def converted_folder(sha256: str, stem: str) -> Path:
    """Where the converted copy of the GGUF with this checksum is kept."""
    return artifacts.home() / "models" / f"{stem}-{sha256[:16]}"


def is_converted(folder: Path, sha256: str) -> bool:
    """Whether `folder` holds a finished copy of the GGUF with this checksum."""
    marker = folder / MARKER
    return marker.is_file() and artifacts.read_json(marker).get("gguf_sha256") == sha256


def convert(gguf: Path, sha256: str | None = None) -> tuple[Path, str]:
    """Return (folder, sha256): the transformers-format copy of `gguf`, made if it is not there yet.

    Raises ArtifactError for a file that transformers cannot read as GGUF.
    """
    sha256 = sha256 or artifacts.digest_file(gguf)
    folder = converted_folder(sha256, gguf.stem)
    if is_converted(folder, sha256):
        return folder, sha256
    building = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(building, ignore_errors=True)
    try:
        building.mkdir(parents=True)
        _write_copy(gguf, building)
        artifacts.write_json(building / MARKER, {"gguf": gguf.name, "gguf_sha256": sha256})
        shutil.rmtree(folder, ignore_errors=True)  # unfinished, or of another file
        os.replace(building, folder)
    except OSError as err:
        if not is_converted(folder, sha256):  # another process may have been quicker
            raise ArtifactError(f"cannot convert {gguf} into {folder}: {err}") from err
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return folder, sha256


def _write_copy(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    from hllm.items.encoders.backbones import quiet

    with quiet(), _read_once():
        try:
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
            model = AutoModel.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        except Exception as err:  # transformers and gguf raise many kinds for a bad or unsupported file
            raise ArtifactError(
                f"cannot read {gguf} as GGUF: {type(err).__name__}: {str(err)[:200]}"
            ) from err
        # A model loaded from GGUF counts as quantised and refuses to be saved; the same weights in a
        # model of the plain configuration do not.
        settings = {k: v for k, v in model.config.to_dict().items() if k != "quantization_config"}
        with torch.device("meta"):
            plain = type(model)(type(model.config).from_dict(settings))
        plain.load_state_dict(model.state_dict(), assign=True)
        plain.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


@contextmanager
def _read_once() -> Iterator[None]:
    """While transformers reads a GGUF, its header is parsed once, not for configuration, tokenizer and weights again,
    and the table of tensor names is made once, not for every module."""
    import gguf
    import numpy as np

    library: Any = gguf

    class Reader(library.GGUFReader):
        """Slices of a memory map are maps themselves, which costs most of the time for a header's small parts."""

        @property
        def data(self) -> np.ndarray:
            return self._plain

        @data.setter
        def data(self, mapped: np.ndarray) -> None:
            self._plain = mapped.view(np.ndarray)

    before = library.GGUFReader, library.get_tensor_name_map
    library.GGUFReader, library.get_tensor_name_map = cache(Reader), cache(library.get_tensor_name_map)
    try:
        yield
    finally:
        library.GGUFReader, library.get_tensor_name_map = before
