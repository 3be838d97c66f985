"""What is asked of the item embeddings, and which specifications answer it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hllm.arguments import one_of, text
from hllm.items.encoders.hub import trained_settings
from hllm.items.encoders.kinds import POOLINGS, Kind, kind_of
from hllm.items.encoders.names import canonical, is_local
from hllm.text.template import OFFICIAL_PROMPT, Template, choose_fields

TRAINED = ("item_emb_token_n", "right_aligned")


@dataclass(frozen=True)
class Request:
    """A model and how its texts are made and pooled. `precision` and `max_tokens`: None = any."""

    model: str
    pooling: str
    prompt: str
    fields: tuple[str, ...]
    precision: str | None = None
    max_tokens: int | None = None
    trained: Mapping[str, Any] = field(default_factory=dict)  # what else a trained item LLM reads by

    @classmethod
    def of(cls, spec: Mapping[str, Any]) -> Request:
        """The request that exactly this specification answers."""
        fields, trained = tuple(spec["fields"]), {name: spec[name] for name in TRAINED if spec.get(name)}
        return cls(
            spec["model"],
            spec["pooling"],
            spec["prompt"],
            fields,
            spec["precision"],
            spec["max_tokens"],
            trained,
        )

    @property
    def kind(self) -> Kind:
        return kind_of(self.model)

    @property
    def template(self) -> Template:
        return Template(self.fields, self.prompt, self.kind.separator)

    def matches(self, spec: Mapping[str, Any]) -> bool:
        """Whether the store with this specification answers the request."""
        return (
            _same_model(self.model, str(spec["model"]))
            and (self.pooling, self.prompt, list(self.fields))
            == (spec["pooling"], spec["prompt"], spec["fields"])
            and self.precision in (None, spec["precision"])
            and self.max_tokens in (None, spec["max_tokens"])
        )

    def command(self, dataset_path: Path | None) -> str:
        """The command, or the Python call, that makes these embeddings."""
        if dataset_path is None:
            return f"hllm.embed(data, item_llm={self.model!r}, pooling={self.pooling!r})"
        parts = ["hllm", "embed", str(dataset_path), "--item-llm", self.model]
        if self.kind.is_language_model:
            parts += ["--pooling", self.pooling]
            if self.prompt != OFFICIAL_PROMPT:
                parts += ["--prompt", self.prompt]
        return shlex.join([*parts, "--fields", ",".join(self.fields)])


def make_request(
    text_fields: Iterable[str],
    item_llm: str,
    pooling: str | None,
    prompt: str | None,
    asked_fields: Iterable[str] | None,
    precision: str | None = None,
    max_tokens: int | None = None,
    must_exist: bool = True,
) -> Request:
    """Validate a request on a dataset with these `text_fields`; ConfigError or DataError otherwise.

    A trained item LLM of a run says itself what is None here.
    """
    if prompt is not None:
        text("prompt", prompt)
    model = canonical(item_llm, must_exist)
    own = trained_settings(model)
    pooling = str(own.get("pooling", "mean")) if pooling is None else pooling
    if pooling != own.get("pooling"):
        one_of("pooling", pooling, POOLINGS)
    fields = choose_fields(asked_fields, text_fields)
    if not kind_of(model).is_language_model:
        return Request(model, "none", "", fields, "fp32", 0)
    if prompt is None:
        prompt = str(own.get("prompt", OFFICIAL_PROMPT))
    trained = {name: own[name] for name in TRAINED if own.get(name) and pooling == own["pooling"]}
    return Request(model, pooling, prompt, fields, precision, max_tokens, trained)


def describe_request(request: Request) -> str:
    """One phrase for messages."""
    pooling = f", pooling {request.pooling}" if request.kind.is_language_model else ""
    return f"{request.model} (fields {', '.join(request.fields)}{pooling})"


def describe_spec(spec: dict[str, Any]) -> str:
    """One phrase for messages: what tells this store from others."""
    parts = [str(spec["model"]), f"fields {','.join(spec['fields'])}"]
    if kind_of(spec["model"]).is_language_model:
        parts += [f"pooling {spec['pooling']}", spec["precision"], f"max_tokens {spec['max_tokens']}"]
        parts.append(f"from {spec['source']}")
    return ", ".join(parts)


def _same_model(asked: str, recorded: str) -> bool:
    if asked == recorded or not (is_local(asked) and is_local(recorded)):
        return asked == recorded
    # A dataset folder moved to a machine where the model is elsewhere, or not at all.
    return not Path(recorded).exists() and Path(asked).name == Path(recorded).name
