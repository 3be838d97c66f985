"""Other systems' pickles: what they may hold comes back equal, anything else is refused by name."""

from __future__ import annotations

import collections
import io
import os
import pickle
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from hllm.errors import ArtifactError
from hllm.formats.pickles import load_pickle, load_tensor, load_torch


class Call:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def dump(path: Path, value: object, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(value, protocol))
    return path


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_come_back(tmp_path, protocol):
    value = {
        "array": np.arange(6, dtype="i4").reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "text": np.array(["ab", "c"]),
        "objects": np.array(["x", 1, None], dtype=object),
        np.int64(3): np.float32(2.5),
        "containers": [(1, None, True), {1, 2}, frozenset("a"), b"abc", 2**70, 1.5, "é"],
        "collections": [collections.OrderedDict(a=1), collections.Counter("aab"), collections.deque([1])],
        "default": collections.defaultdict(list, {1: [2]}),
    }
    assert str(load_pickle(dump(tmp_path / "a.pkl", value, protocol))) == str(value)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_tensors_in_a_plain_pickle(tmp_path, protocol):
    value = {"t": torch.arange(6.0).view(2, 3), "p": torch.nn.Parameter(torch.ones(2).bfloat16())}
    found = load_pickle(dump(tmp_path / "a.pkl", value, protocol))
    assert torch.equal(found["t"], value["t"]) and torch.equal(found["p"], value["p"])


EVIL = {
    "posix.system": lambda mark: Call(os.system, f"touch {mark}"),
    "builtins.eval": lambda mark: Call(eval, f"open({str(mark)!r}, 'w')"),
    "builtins.getattr": lambda mark: Call(getattr, 1, "real"),
    "subprocess.Popen": lambda mark: Call(subprocess.Popen, ["touch", str(mark)]),
    "torch.serialization.load": lambda mark: Call(torch.load, str(mark)),
    "numpy.load": lambda mark: Call(np.load, str(mark)),
    "torch.nn.modules.linear.Linear": lambda mark: torch.nn.Linear(1, 1),
}


@pytest.mark.skipif(os.name == "nt", reason="os.system is called posix.system in the expected message")
@pytest.mark.parametrize("name", EVIL)
def test_a_malicious_pickle_is_refused_by_name(tmp_path, name):
    mark = tmp_path / "ran"
    with pytest.raises(ArtifactError, match=rf"a\.pkl refused: the pickle asks for {name};"):
        load_pickle(dump(tmp_path / "a.pkl", EVIL[name](mark)))
    assert not mark.exists()


@pytest.mark.skipif(os.name == "nt", reason="os.system is called posix.system in the expected message")
@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_torch_file_is_refused_by_name(tmp_path, zipped):
    mark = tmp_path / "ran"
    evil = {"weight": torch.ones(2), "x": EVIL["posix.system"](mark)}
    torch.save(evil, tmp_path / "m.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ArtifactError, match=r"m\.pth refused: the file asks for posix\.system;"):
        load_torch(tmp_path / "m.pth")
    assert not mark.exists()


@pytest.mark.skipif(os.name == "nt", reason="os.system is called posix.system in the expected message")
def test_bytes_inside_a_pickled_tensor_are_restricted_too(tmp_path):
    mark = tmp_path / "ran"
    inner = pickle.dumps(EVIL["posix.system"](mark), 2)
    evil = Call(torch.storage._load_from_bytes, inner)
    with pytest.raises(ArtifactError, match=r"posix\.system"):
        load_pickle(dump(tmp_path / "a.pkl", evil))
    assert not mark.exists()


def test_names_cannot_be_reached_through_an_allowed_module(tmp_path):
    """Protocol 4 may name attributes of attributes."""
    (tmp_path / "a.pkl").write_bytes(b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.")
    with pytest.raises(ArtifactError, match=r"asks for numpy\.ndarray\.tofile"):
        load_pickle(tmp_path / "a.pkl")
    (tmp_path / "a.pkl").write_bytes(
        b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x04\x00\x00\x00zlib\x86R."
    )
    with pytest.raises(ArtifactError, match="encoding 'zlib'"):
        load_pickle(tmp_path / "a.pkl")


@pytest.mark.parametrize(
    "data", [b"", b"abc", b"PK\x03\x04junk", b"\x80\x04\x95", pickle.dumps([1] * 99)[:40]]
)
def test_damaged_files_are_one_line(tmp_path, data):
    (tmp_path / "a.pt").write_bytes(data)
    with pytest.raises(ArtifactError, match=r"cannot read .*a\.pt") as caught:
        load_torch(tmp_path / "a.pt")
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path):
    for load in (load_pickle, load_torch):
        with pytest.raises(ArtifactError, match=r"none\.pkl not found"):
            load(tmp_path / "none.pkl")


def test_tensor_files_in_every_form(tmp_path):
    table, path = torch.arange(6.0).view(3, 2), tmp_path / "e.pt"
    for zipped in (True, False):
        torch.save(table, path, _use_new_zipfile_serialization=zipped)
        assert torch.equal(load_tensor(path), table)
    assert torch.equal(load_tensor(dump(path, table)), table)
    assert torch.equal(load_tensor(dump(path, table.numpy())), table)
    torch.save({"a": np.arange(3), "s": np.float32(3), "t": table}, path)
    assert load_torch(path)["a"].tolist() == [0, 1, 2]
    for wrong in (torch.zeros(3), {"a": table}, np.array([["x"]])):
        torch.save(wrong, path)
        with pytest.raises(ArtifactError, match="not one \\(items, dimensions\\) tensor"):
            load_tensor(path)
    assert io.BytesIO(path.read_bytes()).read(2) == b"PK"
