"""Typed, validated configuration in sections, over one of the presets (hllm/presets.py). Unknown keys are errors.

Each section is declared beside what it configures and joined here. A setting has one name in Python, in a
YAML file, in `--set key=value` and in a run's `config.json`: dotted (`users.n_layers`), nested
(`users: {n_layers: 6}`) or short (`n_layers`), which is never ambiguous.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import Field, model_validator

from hllm.arguments import path, text
from hllm.errors import ConfigError, nearest, unknown
from hllm.items.config import ItemsConfig
from hllm.losses.config import ObjectiveConfig
from hllm.models.config import ScorerConfig, UsersConfig
from hllm.presets import PRESETS as PRESETS
from hllm.settings import Settings, shown
from hllm.train.config import Runtime, TrainingConfig

MAX_FILE = 2**18  # bytes of a settings file; YAML takes half a minute for a megabyte of brackets


class Config(Settings):
    """Everything that defines a run, apart from the dataset; `runtime` says how a machine runs it.

    `runtime` is no part of the run's identity: `model_dump()` leaves it out.
    """

    preset: str = "hllm-lite"
    items: ItemsConfig = ItemsConfig()
    users: UsersConfig = UsersConfig()
    scorer: ScorerConfig = ScorerConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    training: TrainingConfig = TrainingConfig()
    runtime: Runtime = Field(default=Runtime(), exclude=True)

    @classmethod
    def arrange(cls, values: Any) -> Any:
        return nest(spread(values)) if isinstance(values, Mapping) else super().arrange(values)

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        d_model, adapter_hidden = self.users.d_model, self.items.adapter_hidden
        if (adapter_hidden is None) != (d_model is None):
            raise ConfigError(
                f"d_model={d_model} with adapter_hidden={adapter_hidden}: without an adapter the item "
                "vectors' own width is the model's, so both are null, or neither"
            )
        user_model = self.users.user_model
        if d_model is None and (user_model not in ("rechub", "llm") or self._own_llm):
            raise ConfigError(
                f"user_model={user_model!r} needs a d_model and an adapter_hidden; d_model is null"
            )
        if user_model in ("rechub", "sasrec") and self.training.max_len == "all":
            raise ConfigError(
                f"user_model={user_model!r} has one vector per position, so max_len is a number, not 'all'"
            )
        if (
            self.items.id_embedding
            and self.training.id_updates == "lazy"
            and self.training.optimizer == "adam"
        ):
            raise ConfigError(
                "id_updates='lazy' needs optimizer='adamw': what Adam's weight decay, an L2 penalty, does to rows "
                "without a gradient has no closed form to catch them up by; use id_updates='dense'"
            )
        if self.training.id_updates is not None and not self.items.id_embedding:
            self.__dict__["training"] = self.training.model_copy(update={"id_updates": None})
        if not self.items.live:
            for name in ("item_llm_learning_rate", "item_llm_weight_decay"):
                if getattr(self.training, name) is not None:
                    self.__dict__["training"] = self.training.model_copy(update={name: None})
        return self

    @property
    def _own_llm(self) -> bool:
        """Whether the user LLM is shaped by these settings, not by a model's."""
        return self.users.user_model == "llm" and self.users.user_llm is None

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with some settings changed, each by any of its names, checked like a new one."""
        own = spread({name: getattr(self, name) for name in type(self).model_fields})
        return type(self)(**nest(own | spread(update or {})))


SECTIONS: dict[str, type[Settings]] = {
    name: field.annotation
    for name, field in Config.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Settings)
}
# short name -> dotted name, for every setting
DOTTED = {"preset": "preset"} | {
    name: f"{section}.{name}" for section, kind in SECTIONS.items() for name in kind.model_fields
}


def without_effect(config: Config) -> dict[str, str]:
    """Dotted names of the settings that change nothing beside the others, with the reason.

    Given by a user they are refused; from a preset or an earlier run they are dropped, that is, they
    have their neutral value already.
    """
    found = {
        f"{section}.{name}": reason
        for section in SECTIONS
        for name, reason in getattr(config, section).without_effect().items()
    }
    if not config.items.id_embedding:
        found["training.id_updates"] = "id_embedding is false, so there are no ID rows to update"
    if not config.items.live:
        reason = "the item LLM is not trained; train=full or train=lora does"
        found |= dict.fromkeys(("training.item_llm_learning_rate", "training.item_llm_weight_decay"), reason)
    return found


def spread(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings under short, dotted or section names -> by dotted name. ConfigError for an unknown one."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"a configuration is made of named settings, not of {shown(values)}")
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Settings):
            value = value.model_dump()
        if key in SECTIONS and not (key in DOTTED and not isinstance(value, Mapping)):  # `scorer` is both
            if not isinstance(value, Mapping):
                raise ConfigError(
                    f"{key}={shown(value)}: {key} is a section of settings; set one of them, for example "
                    f"{key}.{next(iter(SECTIONS[key].model_fields))}"
                )
            parts = {dotted_name(f"{key}.{name}"): part for name, part in value.items()}
        else:
            parts = {dotted_name(key): value}
        for name, part in parts.items():
            if name in found and found[name] != part:
                raise ConfigError(f"{name} is given twice: {shown(found[name])} and {shown(part)}")
            found[name] = part
    return found


def nest(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by dotted name -> by section, as `Config` takes them."""
    nested: dict[str, Any] = {}
    for dotted, value in values.items():
        section, dot, name = dotted.partition(".")
        if dot:
            nested.setdefault(section, {})[name] = value
        else:
            nested[section] = value
    return nested


def by_short_name(document: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration in a `config.json`, of this version or an earlier one, by short names."""
    flat: dict[str, Any] = {}
    for name, value in document.items():
        flat |= value if isinstance(value, Mapping) else {name: value}
    return flat


def dotted_name(key: Any) -> str:
    """The dotted name of a setting; ConfigError, with the nearest valid name, for an unknown key."""
    if key in DOTTED:
        return DOTTED[key]
    if key in DOTTED.values():
        return str(key)
    section, dot, name = str(key).partition(".")
    if not dot:
        raise ConfigError(
            f"unknown setting {shown(key)}{nearest(str(key)[:80], [*DOTTED, *SECTIONS])}; "
            f"valid: {', '.join(DOTTED)}"
        )
    if name in DOTTED:  # right, but in another section
        raise ConfigError(f"unknown setting {shown(key)} (did you mean {DOTTED[name]!r}?)")
    known = [d for d in DOTTED.values() if d.startswith(f"{section}.")] or list(DOTTED.values())
    raise ConfigError(
        f"unknown setting {shown(key)}{nearest(str(key)[:80], DOTTED.values())}; valid: {', '.join(known)}"
    )


def load_config(
    preset: str = "hllm-lite", file: Path | str | None = None, overrides: dict[str, Any] | None = None
) -> Config:
    """Return the preset's configuration, changed by a YAML `file`, then by `overrides`.

    Raises ConfigError for an unknown preset or key (with the nearest valid name), for a value of
    the wrong type or range, and for a setting of the file or the overrides that has no effect.
    """
    given = {} if file is None else spread(read_settings(path("file", file)))
    given |= spread(overrides or {})
    preset = given.pop("preset", preset)
    if not isinstance(preset, str) or preset not in PRESETS:
        raise ConfigError(unknown("preset", preset, PRESETS))
    config = make_config({"preset": preset, **spread(PRESETS[preset]), **given})
    for dotted, reason in without_effect(config).items():
        section, _, name = dotted.partition(".")
        kind = SECTIONS[section]
        if dotted in given and not (name in kind.OFF and given[dotted] == kind.OFF[name]):
            raise ConfigError(f"setting {name}={shown(given[dotted])} has no effect: {reason}")
    return config


def make_config(values: Mapping[str, Any]) -> Config:
    """Validate `values`, under any of their names; ConfigError names key, value and what is allowed.

    What has no effect is dropped without a word: this reads presets and the files of earlier runs.
    """
    return Config(**nest(spread(values)))


def parse_assignments(pairs: list[str], flags: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Parse `key=value` strings of `--set` to values by short name; with `flags`, what other options set beside them.

    Values are YAML scalars or lists (`1e-3`, `true`, `null`, `[a, b]`). Raises ConfigError for an
    unknown key, and for a setting with two values.
    """
    values = dict(flags or {})
    for pair in pairs:
        text("an assignment", pair)
        key, equals, written = pair.partition("=")
        if not equals:
            raise ConfigError(f"--set {shown(pair)} is not key=value, for example --set epochs=20")
        key = key.strip()
        name = key if key in SECTIONS else dotted_name(key).rpartition(".")[2]
        value = _scalar(written)
        if name in values and values[name] != value:
            old, new = shown(values[name]), shown(value)
            if name in (flags or {}):
                raise ConfigError(
                    f"{name} is given twice: {new} by --set, {old} by another option; leave one out"
                )
            raise ConfigError(f"--set gives {name} twice: {old} and {new}; leave one out")
        values[name] = value
    return values


def _scalar(text: str) -> Any:
    """A YAML scalar or list; anything else, such as a prompt with `: ` in it, is the text as it stands."""
    if _is_number(text) and not text.strip().lstrip("+-").isdigit():
        return float(text)  # YAML 1.1 reads 1e-3 as text
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: a date that no calendar has
        return text
    quoted = isinstance(value, str) and text.strip()[:1] in ("'", '"')
    return value if quoted or value is None or isinstance(value, bool | int | float | list) else text


class _UniqueKeys(yaml.SafeLoader):
    """YAML whose mappings name a key once, as its standard asks; PyYAML itself keeps the last one silently."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        seen: dict[tuple[str, str], Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            first = seen.setdefault((key.tag, key.value), value)
            if first is not value:
                one, two = (
                    f"{shown(v.value) if isinstance(v, yaml.ScalarNode) else 'a list or section'} in line "
                    f"{v.start_mark.line + 1}"
                    for v in (first, value)
                )
                raise yaml.YAMLError(f"{shown(key.value)} is given twice: {one} and {two}; leave one out")
        return node


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def read_settings(path: Path) -> dict[str, Any]:
    """The settings in a YAML file, as they are written there. Raises ConfigError for one that can't be read."""
    try:
        if (size := path.stat().st_size) > MAX_FILE:
            raise ConfigError(f"config file {path} has {size:,} bytes, settings at most {MAX_FILE:,}")
        values = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    except FileNotFoundError as err:
        raise ConfigError(f"config file {path} not found") from err
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as err:
        raise ConfigError(f"config file {path} is not readable YAML: {str(err).splitlines()[0]}") from err
    if not isinstance(values, dict):
        raise ConfigError(f"config file {path} must hold 'key: value' lines, not {type(values).__name__}")
    return values
