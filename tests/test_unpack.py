"""Archives that try to leave their folder, links, damage, and ordinary ones."""

from __future__ import annotations

import io
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from hllm import unpack as unpacking
from hllm.errors import FetchError
from hllm.unpack import is_archive, unpack


def make_zip(path: Path, **members: bytes) -> Path:
    return make_zip_of(path, list(members.items()))


def make_zip_of(path: Path, members: list[tuple[str | zipfile.ZipInfo, bytes]]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def make_tar(path: Path, *members: tarfile.TarInfo, content: bytes = b"text") -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for info in members:
            info.size = len(content) if info.isreg() else 0
            archive.addfile(info, io.BytesIO(content) if info.isreg() else None)
    return path


def test_ordinary_archives(tmp_path: Path) -> None:
    folder = zipfile.ZipInfo("set/")
    made = make_zip_of(tmp_path / "a.zip", [(folder, b""), ("set/u.data", b"1"), ("set/sub/x", b"2")])
    assert unpack(made, tmp_path / "out") == tmp_path / "out"
    assert (tmp_path / "out/set/u.data").read_bytes() == b"1"
    assert (tmp_path / "out/set/sub/x").read_bytes() == b"2"
    directory = tarfile.TarInfo("set")
    directory.type = tarfile.DIRTYPE
    unpack(make_tar(tmp_path / "a.tar.gz", directory, tarfile.TarInfo("set/u.data")), tmp_path / "out")
    assert (tmp_path / "out/set/u.data").read_bytes() == b"text"
    assert not [p for p in (tmp_path / "out/set").iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "..\\evil", "C:\\evil", "C:evil"])
def test_members_outside_are_refused(tmp_path: Path, name: str) -> None:
    archive = make_zip(tmp_path / "a.zip", **{"fine": b"1", name: b"2"})
    with pytest.raises(FetchError, match="outside the folder; nothing was unpacked"):
        unpack(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(FetchError, match="outside"):
        unpack(make_tar(tmp_path / "a.tar.gz", tarfile.TarInfo(name)), tmp_path / "out")
    assert not list(tmp_path.parent.glob("evil"))


def test_links_are_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with pytest.raises(FetchError, match="'link' is a link or device"):
        unpack(make_zip_of(tmp_path / "a.zip", [(link, b"/etc/passwd")]), tmp_path / "out")
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
        info = tarfile.TarInfo("link")
        info.type, info.linkname = kind, "/etc/passwd"
        with pytest.raises(FetchError, match="'link' is a link or device"):
            unpack(make_tar(tmp_path / "a.tar.gz", info), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_damaged_archives(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"<html>not found</html>")
    with pytest.raises(FetchError, match="not a sound zip or tar file"):
        unpack(tmp_path / "a.zip", tmp_path / "out")
    whole = make_zip(tmp_path / "b.zip", name=b"content " * 100).read_bytes()
    (tmp_path / "b.zip").write_bytes(whole.replace(b"content", b"contend", 1))  # its CRC no longer fits
    with pytest.raises(FetchError, match="not a sound zip"):
        unpack(tmp_path / "b.zip", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())  # not even half a file
    with pytest.raises(FetchError, match="cannot unpack"):
        unpack(tmp_path / "absent.zip", tmp_path / "out")


def test_too_large_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 3}))
    with pytest.raises(FetchError, match=r"has 0\.0 GB free"):
        unpack(make_zip(tmp_path / "a.zip", name=b"1234"), tmp_path / "out")


def test_is_archive() -> None:
    assert [is_archive(n) for n in ("a.zip", "a.tar.gz", "a.json.gz", "a.csv")] == [True, True, False, False]
