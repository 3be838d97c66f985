"""A pickle looked through before numpy sees it: every array and type in it, checked by stand-ins.

numpy trusts a pickled `dtype` state: one that claims pointers, or a size that is not its type's, makes
it follow addresses out of the file. So a pickle is loaded twice, first with these stand-ins, which make
no array, and only then for good. Both passes take the same steps, as a pickle decides nothing by values.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Mapping
from typing import IO, Any

import numpy as np

KINDS = "biufcSU"  # booleans, numbers and text


class Refused(pickle.UnpicklingError):
    """The pickle asks for something outside what is allowed; the message names it."""


class Stand:
    """Stands for an object whose making is harmless."""

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class Call:
    """A function that a pickle may call and not change, as it could a plain one's defaults."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise Refused(f"a change to the function {self.function.__name__}")


class NoCall:
    """Stands for a class that may be named, as an argument, and not called."""

    def __new__(cls, *arguments: Any) -> NoCall:
        raise Refused("numpy.ndarray called with a buffer of the file's own")


class DType(Stand):
    """Stands for `numpy.dtype(code, align, copy)`; takes only the state that numpy itself gives to it."""

    def __init__(self, code: Any = None, align: Any = False, copy: Any = False) -> None:
        self.real = _plain_dtype(code)
        self.built = False
        self.big = self.real.byteorder == ">"

    def __setstate__(self, state: Any) -> None:
        normal = self.real.__reduce__()[2]
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        if self.built or order not in ("<", ">", "|") or (*state[:1], normal[1], *state[2:]) != normal:
            raise Refused(f"a numpy dtype {self.real.str!r} with the state {str(state)[:80]}")
        self.built, self.big = True, order == ">"


class Array(Stand):
    """Stands for an array; takes only a state whose bytes are as many as its shape and type need."""

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise Refused(f"a numpy array with the state {str(state)[:80]}")
        _, shape, kind, _, data = state
        _check_size(shape, kind, data)


def scalar(kind: Any, data: Any = b"") -> Stand:
    """Stands for `numpy.core.multiarray.scalar`."""
    _check_size((), kind, data)
    return Stand()


def from_buffer(data: Any, kind: Any, shape: Any, order: Any = "C", *rest: Any) -> Stand:
    """Stands for `numpy.core.numeric._frombuffer`."""
    _check_size(shape, kind, data)
    return Stand()


def reconstruct(kind: Any, shape: Any, code: Any) -> Array:
    """Stands for `numpy.core.multiarray._reconstruct`, which begins an empty array."""
    if kind is not NoCall or shape != (0,) or code not in (b"b", "b"):
        raise Refused("a numpy array begun in another way than numpy does")
    return Array()


def _plain_dtype(code: Any) -> np.dtype[Any]:
    if not isinstance(code, str):
        raise Refused(f"a numpy dtype made of a {type(code).__name__}")
    try:
        real = np.dtype(code)
    except Exception as err:
        raise Refused(f"the numpy dtype {str(code)[:80]!r}") from err
    if real.kind == "O":
        raise Refused("a numpy array of objects")
    if real.kind not in KINDS or real.subdtype is not None:
        raise Refused(f"the numpy dtype {str(code)[:80]!r}")
    return real


def _check_size(shape: Any, kind: Any, data: Any) -> None:
    if not isinstance(kind, DType):
        raise Refused(f"a numpy array whose type is a {type(kind).__name__}")
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise Refused(f"a numpy array of the shape {str(shape)[:80]}")
    if not isinstance(data, bytes | bytearray | str):  # str: bytes of Python 2, read as Latin-1
        raise Refused(f"a numpy array whose content is a {type(data).__name__}")
    if math.prod(shape) * kind.real.itemsize != len(data):
        raise Refused(f"a numpy array of the shape {str(shape)[:80]} with {len(data):,} bytes")
    if kind.real.kind == "U":
        raw = data.encode("latin1") if isinstance(data, str) else data
        try:
            raw.decode("utf-32-be" if kind.big else "utf-32-le", "surrogatepass")
        except UnicodeDecodeError as err:
            raise Refused("a numpy array of text that holds no characters") from err


def _stands() -> dict[str, Any]:
    # A Counter is a class in Python, whose attributes a pickle could set.
    found: dict[str, Any] = {"numpy.ndarray": NoCall, "numpy.dtype": DType, "collections.Counter": Stand}
    for core in ("numpy.core", "numpy._core"):
        found[f"{core}.multiarray._reconstruct"] = Call(reconstruct)
        found[f"{core}.multiarray.scalar"] = Call(scalar)
        found[f"{core}.numeric._frombuffer"] = Call(from_buffer)
    for kind in map(np.dtype, "?bhilqBHILQefdFDSU"):
        name, code = type(kind).__name__, kind.str
        found[f"numpy.dtypes.{name}"] = type(name, (DType,), {"__init__": _fixed(code)})
    return found


def _fixed(code: str) -> Any:
    def init(self: DType, *arguments: Any) -> None:
        DType.__init__(self, f"{code[:2]}{arguments[0]}" if arguments and code[1] in "SU" else code)

    return init


STANDS = _stands()


class Inspector(pickle.Unpickler):
    """Loads a pickle with stand-ins; `plain` maps global names to what is harmless as it is."""

    def __init__(self, file: IO[bytes], plain: Mapping[str, Any]) -> None:
        super().__init__(file, encoding="latin1")
        self.plain = plain

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in STANDS:
            return STANDS[full]
        if full in self.plain:
            return self.plain[full]
        if module.split(".")[0] == "torch":
            return Stand
        raise Refused(full)

    def persistent_load(self, key: Any) -> Any:
        return Stand()
