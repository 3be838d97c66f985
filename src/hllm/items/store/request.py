"""What is asked of the item embeddings, and which specifications answer it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hllm import artifacts
from hllm.arguments import one_of, text
from hllm.errors import ConfigError, unknown
from hllm.items.config import check_pooling
from hllm.items.encoders.hub import trained_settings
from hllm.items.encoders.kinds import BROUGHT, VECTORS, Kind, kind_of
from hllm.items.encoders.names import canonical, is_local
from hllm.items.encoders.registry import QUANTIZATIONS, own_prompt
from hllm.text.budget import parse_budgets
from hllm.text.template import OFFICIAL, OFFICIAL_PROMPT, Template, choose_fields, template_fields

if TYPE_CHECKING:
    import polars as pl

    from hllm.data.dataset import Dataset

# Choices that a specification holds only where they are not these.
OFF = {
    "quantize": "none", "template": OFFICIAL, "clean": "no", "field_tokens": "none", "long_text": "cut",
    "store": "fp32",
}  # fmt: skip
CHOICES = {
    "quantize": ("none", *QUANTIZATIONS),
    "clean": ("no", "yes"),
    "long_text": ("cut", "heads", "bm25"),
    "store": ("fp32", "fp16"),
}
TRAINED = ("item_emb_token_n", "right_aligned")


@dataclass(frozen=True)
class Request:
    """A model and how its texts are made and pooled. `precision`, `max_tokens` and `options`: None = any.

    options   quantize ("none", "8bit", "4bit"), template ("official", "natural", a format string), clean ("no", "yes"),
              field_tokens ("none", "title=32,..."), long_text ("cut", "heads", "bm25"), store ("fp32", "fp16")
    """

    model: str
    pooling: str
    prompt: str
    fields: tuple[str, ...]
    precision: str | None = None
    max_tokens: int | None = None
    options: Mapping[str, str | None] = field(default_factory=dict)
    trained: Mapping[str, Any] = field(default_factory=dict)  # what else a trained item LLM reads by

    @classmethod
    def of(cls, spec: Mapping[str, Any]) -> Request:
        """The request that exactly this specification answers."""
        fields, trained = tuple(spec["fields"]), {name: spec[name] for name in TRAINED if spec.get(name)}
        options = {name: spec.get(name, off) for name, off in OFF.items()}
        return cls(
            spec["model"],
            spec["pooling"],
            spec["prompt"],
            fields,
            spec["precision"],
            spec["max_tokens"],
            options,
            trained,
        )

    @property
    def kind(self) -> Kind:
        return kind_of(self.model)

    @property
    def template(self) -> Template:
        form = self.options.get("template") or OFFICIAL
        return Template(self.fields, self.prompt, self.kind.separator, form)

    def render(self, items: pl.DataFrame) -> Sequence[str | None]:
        """The text of each row of `items`; None where there is none. DataError for a field that is no column.

        Fields are cleaned; with long_text "bm25" texts too long for `max_tokens` lose the sentences that say least
        about their item. Budgets of fields are the tokenizer's to keep (items/encoders/heads.py), but estimated for a
        control.
        """
        if self.options.get("clean") == "yes":
            from hllm.text.clean import clean

            items = clean(items, self.fields)
        budgets = self.options.get("field_tokens") or "none"
        if budgets != "none" and not self.kind.is_language_model:
            from hllm.text.budget import cut_fields

            items = cut_fields(items, parse_budgets(budgets))
        if self.options.get("long_text") == "bm25":
            from hllm.text.bm25 import shorten

            items = shorten(items, self.fields, self.max_tokens or 0)
        return self.template.render_all(items)

    def matches(self, spec: Mapping[str, Any]) -> bool:
        """Whether the store with this specification answers the request."""
        return (
            _same_model(self.model, str(spec["model"]))
            and (self.pooling, self.prompt, list(self.fields))
            == (spec["pooling"], spec["prompt"], spec["fields"])
            and self.precision in (None, spec["precision"])
            and self.max_tokens in (None, spec["max_tokens"])
            and all(self.options.get(name) in (None, spec.get(name, off)) for name, off in OFF.items())
        )

    def choices(self, earlier: Mapping[str, Any]) -> dict[str, str]:
        """The `options` of a specification: those asked for, else those of an `earlier` one; none that is off."""
        asked = {name: self.options.get(name) or earlier.get(name, off) for name, off in OFF.items()}
        return {name: value for name, value in asked.items() if value != OFF[name]}

    def command(self, dataset_path: Path | None) -> str:
        """The command, or the Python call, that makes these embeddings."""
        if self.kind is BROUGHT:
            name = self.model.removeprefix(VECTORS)
            return shlex.join(
                ["hllm", "embed", str(dataset_path or "DATASET"), "--from", "FILE", "--name", name]
            )
        if dataset_path is None:
            return f"hllm.embed(data, item_llm={self.model!r}, pooling={self.pooling!r})"
        parts = ["hllm", "embed", str(dataset_path), "--item-llm", self.model]
        if self.kind.is_language_model:
            parts += ["--pooling", self.pooling]
            if self.prompt != (own_prompt(self.model) if self.pooling == "auto" else OFFICIAL_PROMPT):
                parts += ["--prompt", self.prompt]
        for name, value in self.options.items():
            parts += ["--" + name.replace("_", "-"), value] if value else []
        if template_fields(self.options.get("template") or OFFICIAL) is None:
            parts += ["--fields", ",".join(self.fields)]
        return shlex.join(parts)


def make_request(
    text_fields: Iterable[str],
    item_llm: str,
    pooling: str | None,
    prompt: str | None,
    asked_fields: Iterable[str] | None,
    precision: str | None = None,
    max_tokens: int | None = None,
    must_exist: bool = True,
    options: Mapping[str, str | None] | None = None,
) -> Request:
    """Validate a request on a dataset with these `text_fields`; ConfigError or DataError otherwise.

    Pooling "auto" without a prompt takes the model's own. A trained item LLM of a run says itself what is None here.
    """
    if prompt is not None:
        text("prompt", prompt)
    chosen = {name: value for name, value in (options or {}).items() if value is not None}
    asked_fields = check_options(chosen, asked_fields)
    model = canonical(item_llm, must_exist)
    own = trained_settings(model)
    pooling = str(own.get("pooling", "mean")) if pooling is None else pooling
    if check_pooling(pooling) == "item-token" != own.get("pooling"):
        raise ConfigError("pooling 'item-token' reads learned tokens, which only a trained item LLM has")
    if kind_of(model) is BROUGHT:
        return Request(model, "none", "", (), None, 0)
    fields = choose_fields(asked_fields, text_fields)
    check_budgets(chosen.get("field_tokens", "none"), fields)
    if not kind_of(model).is_language_model:
        of_llms = [n for n in ("quantize", "long_text") if chosen.get(n, OFF[n]) != OFF[n]]
        if of_llms:
            raise ConfigError(f"{', '.join(of_llms)}: {model} is no language model; leave it out")
        return Request(model, "none", "", fields, "fp32", 0, chosen)
    if prompt is None:
        prompt = own_prompt(model) if pooling == "auto" else str(own.get("prompt", OFFICIAL_PROMPT))
    trained = {name: own[name] for name in TRAINED if own.get(name) and pooling == own["pooling"]}
    return Request(model, pooling, prompt, fields, precision, max_tokens, chosen, trained)


def check_options(options: Mapping[str, str], fields: Iterable[str] | None) -> Iterable[str] | None:
    """Raise ConfigError for an option without meaning; returns the `fields`, or those that a format string names."""
    for name, value in options.items():
        if name in CHOICES:
            one_of(name, value, CHOICES[name])
        else:
            text(name, value)
    named = template_fields(options.get("template", OFFICIAL))
    if named is not None and fields is not None:
        raise ConfigError(f"template {options['template'][:80]!r} names its fields itself; leave fields out")
    return fields if named is None else named


def check_budgets(budgets: str, fields: Sequence[str]) -> None:
    """Raise ConfigError for a budget of what is none of the `fields` that are read."""
    for name in () if budgets == "none" else parse_budgets(budgets):
        if name not in fields:
            raise ConfigError(f"field tokens: {unknown('text field that is read', name, fields)}")


def index_fingerprint(dataset: Dataset, fields: Sequence[str]) -> str:
    """Identity of a catalogue, by which its index is found: of what the items' `fields` say; without any, as where
    vectors were brought in, of the items' ids in token order, types included."""
    if fields:
        return dataset.texts_fingerprint(fields)
    return artifacts.digest(*(f"{type(item).__name__} {item}" for item in dataset.item_ids))


def describe_request(request: Request) -> str:
    """One phrase for messages."""
    if request.kind is BROUGHT:
        return request.model
    pooling = f", pooling {request.pooling}" if request.kind.is_language_model else ""
    return f"{request.model} (fields {', '.join(request.fields)}{pooling})"


def describe_spec(spec: dict[str, Any]) -> str:
    """One phrase for messages: what tells this store from others."""
    if kind_of(spec["model"]) is BROUGHT:
        return f"{spec['model']}, {spec['precision']}, from {spec['source']}"
    parts = [str(spec["model"]), f"fields {','.join(spec['fields'])}"]
    if kind_of(spec["model"]).is_language_model:
        parts += [f"pooling {spec['pooling']}", spec["precision"], f"max_tokens {spec['max_tokens']}"]
        parts += [f"{name.replace('_', ' ')} {spec[name]}" for name in OFF if spec.get(name)]
        parts.append(f"from {spec['source']}")
    return ", ".join(parts)


def _same_model(asked: str, recorded: str) -> bool:
    if asked == recorded or not (is_local(asked) and is_local(recorded)):
        return asked == recorded
    # A dataset folder moved to a machine where the model is elsewhere, or not at all.
    return not Path(recorded).exists() and Path(asked).name == Path(recorded).name
