"""Other systems' pickles: what they may hold comes back equal, anything else is refused by name."""

from __future__ import annotations

import collections
import io
import os
import pickle
import subprocess
import zipfile
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


def test_case_e21_arrays_of_objects_are_refused(tmp_path):
    for value in (np.array(["x", 1, None], dtype=object), np.dtype("O"), np.dtype([("a", "i4")])):
        for protocol in (2, 4, 5):
            with pytest.raises(
                ArtifactError, match=r"refused: the pickle asks for .*numpy.*only numpy arrays"
            ):
                load_pickle(dump(tmp_path / "a.pkl", {"x": value}, protocol))


def dtype(code: bytes, state: tuple) -> bytes:
    """Opcodes of `numpy.dtype(code)` with a state of the file's own."""
    return b"cnumpy\ndtype\n(V" + code + b"\nI00\nI01\ntR" + pickle.dumps(state, 0)[:-1] + b"b"


SCALAR, BUFFER = b"cnumpy.core.multiarray\nscalar\n", b"cnumpy.core.numeric\n_frombuffer\n"
ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntVb\ntR"
EIGHT = b"(V" + b"A" * 8 + b"\nVlatin1\ntR"
CRAFTED = {  # each makes numpy follow a pointer out of the file, or read past its end
    "object flag cleared": dtype(b"O8", (3, "|", None, None, None, -1, -1, 0)),
    "object flag set": dtype(b"i8", (3, "<", None, None, None, -1, -1, 63)),
    "negative size": dtype(b"S8", (3, "|", None, None, None, -8, 1, 0)),
    "large size": dtype(b"S8", (3, "|", None, None, None, 1 << 30, 1, 0)),
    "fields": dtype(b"V8", (3, "|", None, ("a",), {"a": (8, 0)}, 8, 1, 0)),
    "subarray": dtype(b"V8", (3, "|", (8, (1 << 40,)), None, None, 8, 1, 0)),
}


@pytest.mark.parametrize("name", CRAFTED)
@pytest.mark.parametrize("use", ["scalar", "_frombuffer", "array"])
def test_case_e21_crafted_types_never_reach_numpy(tmp_path, name, use):
    made, text = CRAFTED[name], b"c_codecs\nencode\n" + EIGHT
    programs = {
        "scalar": SCALAR + b"(" + made + text + b"tR.",
        "_frombuffer": BUFFER + b"(" + text + made + b"(I1\ntVC\ntR.",
        "array": ARRAY + b"(I1\n(I1\nt" + made + b"I00\n" + text + b"tb.",
    }
    path = tmp_path / "a.pkl"
    path.write_bytes(programs[use])
    with pytest.raises(ArtifactError, match=r"refused: the pickle asks for .*numpy"):
        load_pickle(path)
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("a/data.pkl", programs[use])
    with pytest.raises(ArtifactError, match=r"refused: the file asks for .*numpy"):
        load_torch(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "changed", [b"c_codecs\nencode\n", b"ccollections\nCounter\n", SCALAR, b"cnumpy\ndtype\n"]
)
def test_case_e21_what_a_pickle_names_stays_as_it_is(tmp_path, changed):
    path = tmp_path / "a.pkl"
    path.write_bytes(changed + b"(N(dVupdate\nI1\nVx\nI1\nstb.")
    with pytest.raises(ArtifactError):
        load_pickle(path)
    assert not hasattr(collections.Counter, "x") and callable(collections.Counter.update)


def test_case_e21_sizes_are_those_of_the_bytes(tmp_path):
    i8 = dtype(b"i8", (3, "<", None, None, None, -1, -1, 0))
    text = b"c_codecs\nencode\n" + EIGHT
    path = tmp_path / "a.pkl"
    path.write_bytes(BUFFER + b"(" + text + i8 + b"(I1\ntVC\ntR.")
    assert load_pickle(path).tolist() == [int.from_bytes(b"A" * 8, "little")]
    for shape in (b"(I2\nt", b"(I-1\nt", b"(I4294967296\nI4294967296\nI4\nt"):
        path.write_bytes(BUFFER + b"(" + text + i8 + shape + b"VC\ntR.")
        with pytest.raises(ArtifactError, match="refused: the pickle asks for a numpy array of the shape"):
            load_pickle(path)
    path.write_bytes(b"cbuiltins\nbytes\n(I99999999999\ntR.")
    with pytest.raises(ArtifactError, match="bytes of a int"):
        load_pickle(path)


FUZZ = """
import io, os, pickle, random, resource, sys, tempfile, warnings
from pathlib import Path
import numpy as np, torch
from hllm.errors import ArtifactError
from hllm.formats.pickles import load_pickle, load_torch
warnings.simplefilter("ignore")
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
value = {"a": np.arange(6, dtype="i4").reshape(2, 3), "t": np.array(["ab", "c"]), "n": [np.int64(3), 2**70, b"x"],
         "f": np.asfortranarray(np.ones((2, 2))), "v": torch.arange(3.0)}
seeds = [pickle.dumps(value, protocol) for protocol in range(6)]
zipped = io.BytesIO()
torch.save({"w": torch.ones(2, 2), "a": value["a"]}, zipped)
rng, path = random.Random(int(sys.argv[2])), Path(tempfile.mkdtemp()) / "a"
refused = 0
for i in range(int(sys.argv[1])):
    whole = bytearray(zipped.getvalue() if i % 8 == 7 else rng.choice(seeds))
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(whole))
        kind = rng.randrange(4)
        if kind == 0:
            whole[at] = rng.randrange(256)
        elif kind == 1:
            whole[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            del whole[at : at + rng.randrange(1, 9)]
        else:
            other = rng.choice(seeds)
            start = rng.randrange(len(other))
            whole[at:at] = other[start : start + rng.randrange(1, 33)]
        whole = whole or bytearray(b".")
    path.write_bytes(whole)
    try:
        repr((load_torch if i % 8 == 7 else load_pickle)(path))  # whatever came back can be looked at
    except ArtifactError as err:
        refused += 1
        assert "\\n" not in str(err)
print("survived", refused)
"""


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_case_e21_mutated_pickles_never_end_the_interpreter(run_python, count):
    done = run_python("-c", FUZZ, str(count), "20")
    assert done.returncode == 0 and done.stdout.startswith("survived"), done.stderr[-2000:]
    assert int(done.stdout.split()[1]) > count // 4
