"""Manifests, seals and the switch from one content of a folder to the next."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from hllm import artifacts
from hllm.artifacts import manifest as manifests
from hllm.errors import ArtifactError


def publish(folder: Path, **texts: str) -> dict:
    files = {f"{n}.txt": partial(artifacts.write_text, text=t) for n, t in texts.items()}
    return artifacts.publish(folder, "main.json", {"of": sorted(texts)}, files)


def texts(folder: Path) -> dict[str, str]:
    files = artifacts.read_document(folder / "main.json")["files"]
    return {name: artifacts.check_file(folder, files, name).read_text() for name in files}


def test_what_is_published_is_read(tmp_path: Path) -> None:
    made = publish(tmp_path / "d", a="1", b="2")
    document = artifacts.read_document(tmp_path / "d" / "main.json")
    assert document == {"of": ["a", "b"], "files": made}
    names = artifacts.manifest_of(tmp_path / "d", ["a.txt", "b.txt"])
    assert names == made
    artifacts.check_manifest(tmp_path / "d", made)
    assert sorted(p.name for p in (tmp_path / "d").iterdir()) == ["a.txt", "b.txt", "main.json"]


def test_files_change_places_and_the_others_stay(tmp_path: Path) -> None:
    publish(tmp_path, a="1", b="2", c="3")
    (tmp_path / "notes").write_text("mine")
    (tmp_path / "a-notes.txt").write_text("mine")
    inode = (tmp_path / "b.txt").stat().st_ino
    publish(tmp_path, a="new", b="2")
    assert texts(tmp_path) == {"a.txt": "new", "b.txt": "2"}
    assert (tmp_path / "b.txt").stat().st_ino == inode  # the same content is not written twice
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names[1:] == ["a-notes.txt", "b.txt", "main.json", "notes"] and names[0].startswith("a-")
    publish(tmp_path, a="newer", b="2")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "a-notes.txt",
        "a.txt",
        "b.txt",
        "main.json",
        "notes",
    ]


def test_a_failure_changes_nothing(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        raise RuntimeError("of ours")

    with pytest.raises(RuntimeError):
        artifacts.publish(tmp_path, "m.json", {}, {"x/a": partial(artifacts.write_text, text="1"), "b": fail})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", ["text", "cut", "gone", "swap"])
def test_case_e17_a_file_that_is_another_is_named(tmp_path: Path, change: str) -> None:
    made = publish(tmp_path, a="12345", b="54321")
    if change == "text":
        (tmp_path / "a.txt").write_text("12346")
    elif change == "cut":
        (tmp_path / "a.txt").write_text("123")
    elif change == "gone":
        (tmp_path / "a.txt").unlink()
    else:
        os.replace(tmp_path / "b.txt", tmp_path / "a.txt")
    with pytest.raises(ArtifactError, match=r"a\.txt is .*damaged.*; do this"):
        artifacts.check_manifest(tmp_path, made, advice="do this")


def test_case_e17_every_change_to_a_document_is_found(tmp_path: Path) -> None:
    """Each byte flipped in one bit: refused, or the same content."""
    publish(tmp_path, a="1")
    path = tmp_path / "main.json"
    whole, value = path.read_bytes(), artifacts.read_document(path)
    refused = 0
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        try:
            assert artifacts.read_document(path) == value
        except ArtifactError:
            refused += 1
    assert refused > 0.7 * len(whole)


def test_documents_of_an_earlier_hllm(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text('{"a": 1}')
    assert artifacts.read_document(tmp_path / "m.json") == {"a": 1}
    artifacts.check_file(tmp_path, {}, "whatever")
    (tmp_path / "m.json").write_text("[1]")
    with pytest.raises(ArtifactError, match="holds a list, not an object"):
        artifacts.read_document(tmp_path / "m.json")


def test_large_files_are_hashed_once_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifests, "SMALL", 10)
    hashed = []
    digest_file = manifests.digest_file
    monkeypatch.setattr(manifests, "digest_file", lambda path: hashed.append(path) or digest_file(path))
    array = tmp_path / "a.npy"
    artifacts.write_array(array, np.arange(100))
    made = artifacts.manifest_of(tmp_path, ["a.npy"])
    hashed.clear()
    artifacts.check_manifest(tmp_path, made)
    artifacts.check_manifest(tmp_path, made)
    assert len(hashed) == 2  # written just now: it could change within the same tick of the clock
    os.utime(array, (1e9, 1e9))
    artifacts.check_manifest(tmp_path, made)
    artifacts.check_manifest(tmp_path, made)
    assert len(hashed) == 3
    artifacts.check_manifest(tmp_path, made, later={"a.npy"})
    artifacts.write_array(array, np.arange(100)[::-1])
    os.utime(array, (1e9, 1e9))
    with pytest.raises(ArtifactError, match="its SHA-256 is another"):
        artifacts.check_manifest(tmp_path, made)


def test_the_source_of_a_copy_must_not_have_changed(tmp_path: Path) -> None:
    made = publish(tmp_path / "a", x="1")
    files = {"x.txt": partial(artifacts.write_text, text="2")}
    with pytest.raises(ArtifactError, match="changed while it was in use"):
        artifacts.publish(tmp_path / "b", "m.json", {}, files, expected=made)
    assert not (tmp_path / "b").exists()


def test_seals_hold_for_every_value(tmp_path: Path) -> None:
    value = {"é": [1.5, 1e300, -0.0, None, True], "n": 2**70, "t": "\ud7ff\u2028"}
    artifacts.write_document(tmp_path / "m.json", value)
    assert artifacts.read_document(tmp_path / "m.json") == value
    document = json.loads((tmp_path / "m.json").read_text(encoding="utf-8"))
    artifacts.write_json(tmp_path / "m.json", {**document, "n": 2**70 + 1})
    with pytest.raises(ArtifactError, match="was changed or damaged after it was written"):
        artifacts.read_document(tmp_path / "m.json")


def test_arrays_in_memory_have_the_digest_of_their_files(tmp_path: Path) -> None:
    for array in (np.arange(5, dtype=np.int32), np.zeros(0, np.int64), np.ones(3, bool), np.arange(9)[::2]):
        artifacts.write_array(tmp_path / "a.npy", array)
        assert artifacts.digest_array(array) == artifacts.digest_file(tmp_path / "a.npy")
