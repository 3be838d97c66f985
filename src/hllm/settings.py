"""What every section of the configuration shares: checks inside the type, errors of one line.

A section (`items/config.py`, `models/config.py`, ...) is a `Settings`. However it is made (by name, from a
file, as a changed copy), its values are checked, and a setting that has no effect beside the others is put
back to its neutral value, so that two configurations are equal exactly when they mean the same run.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any, ClassVar, Self, get_args

from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, ValidationError, model_validator

from hllm.errors import ConfigError, unknown

INT_MAX = 2**31 - 1  # of counts that nothing else bounds
_short = reprlib.Repr()
_short.maxlevel, _short.maxstring, _short.maxother = 3, 80, 80


class Settings(BaseModel):
    """A frozen, checked group of settings. Every way to make one raises ConfigError for what is not valid."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    # Settings whose neutral value is not the default: where they have no effect, they are off.
    OFF: ClassVar[dict[str, Any]] = {}

    def without_effect(self) -> dict[str, str]:
        """Settings that change nothing beside the others, with the reason."""
        return {}

    @classmethod
    def neutral(cls, name: str) -> Any:
        """The value that a setting without effect has."""
        return cls.OFF.get(name, cls.model_fields[name].default)

    @classmethod
    def arrange(cls, values: Any) -> Any:
        """Input values as the fields of this type; ConfigError for an unknown key."""
        if isinstance(values, Mapping):
            for key in values:
                if key not in cls.model_fields:
                    raise ConfigError(unknown("setting", key, cls.model_fields))
        elif not isinstance(values, cls):
            raise ConfigError(f"{cls.__name__} is made of named settings, not of {shown(values)}")
        return values

    @model_validator(mode="wrap")
    @classmethod
    def _checked(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        values = cls.arrange(values)
        if isinstance(values, Mapping):
            for name, value in values.items():  # pydantic takes true for 1
                kind = cls.model_fields[name].annotation
                if isinstance(value, bool) and _holds(kind, int, float) and not _holds(kind, bool):
                    raise ConfigError(f"setting {name}={value}: must be a number")
        try:
            made = handler(values)
        except ValidationError as err:
            first = err.errors(include_url=False, include_context=False)[0]
            key = str(first["loc"][0])
            message = f"setting {key}={shown(values.get(key))}: {first['msg']}"
            raise ConfigError(message) from None
        for name in made.without_effect():
            if name in cls.model_fields:
                made.__dict__[name] = cls.neutral(name)
        return made

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with some settings changed, checked like a new one."""
        return type(self)(**{**self.model_dump(), **(update or {})})


def _holds(annotation: Any, *kinds: type) -> bool:
    """Whether one of `kinds` is a part of a type annotation."""
    return annotation in kinds or any(_holds(part, *kinds) for part in get_args(annotation))


def shown(value: Any) -> str:
    """`repr(value)`, cut to what a message can hold; also of a number with too many digits to print."""
    try:
        return _short.repr(value)
    except ValueError:
        return (
            f"a number of {value.bit_length()} bits" if isinstance(value, int) else "a value too long to show"
        )


def heads_of(d_model: int, n_heads: int | None) -> int:
    """`n_heads`, or torch-rechub's choice for the width; ConfigError unless it divides `d_model`."""
    if n_heads is None:
        n_heads = 16 if d_model >= 2048 else 8 if d_model >= 512 else 4
    if d_model % n_heads:
        fitting = [str(n) for n in range(1, min(d_model, 64) + 1) if d_model % n == 0]
        raise ConfigError(
            f"d_model={d_model} is not a multiple of n_heads={n_heads}; choose n_heads from {', '.join(fitting)}"
        )
    return n_heads
