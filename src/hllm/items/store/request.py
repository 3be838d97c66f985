"""What is asked of the item embeddings, and which stores answer it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hllm.errors import AmbiguousError, ArtifactError, ConfigError, unknown
from hllm.items.encoders.names import CONTROLS, canonical, is_local
from hllm.items.encoders.pooling import POOLINGS
from hllm.items.store.shards import index_path, list_specs
from hllm.text.template import OFFICIAL_PROMPT, Template, choose_fields


@dataclass(frozen=True)
class Request:
    """A model and how its texts are made and pooled. `precision` and `max_tokens`: None = any."""

    model: str
    pooling: str
    prompt: str
    fields: tuple[str, ...]
    precision: str | None = None
    max_tokens: int | None = None

    @property
    def is_control(self) -> bool:
        return self.model in CONTROLS

    @property
    def template(self) -> Template:
        # The controls split texts into words, so their fields must not run into each other.
        return Template(self.fields, self.prompt, " " if self.is_control else "")

    def matches(self, spec: dict[str, Any]) -> bool:
        """Whether the store with this specification answers the request."""
        return (
            _same_model(self.model, str(spec.get("model")))
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
        if not self.is_control:
            parts += ["--pooling", self.pooling]
            if self.prompt != OFFICIAL_PROMPT:
                parts += ["--prompt", self.prompt]
        return shlex.join([*parts, "--fields", ",".join(self.fields)])


def make_request(
    text_fields: Iterable[str],
    item_llm: str,
    pooling: str,
    prompt: str | None,
    asked_fields: Iterable[str] | None,
    precision: str | None = None,
    max_tokens: int | None = None,
    must_exist: bool = True,
) -> Request:
    """Validate a request on a dataset with these `text_fields`; ConfigError or DataError otherwise."""
    if pooling not in POOLINGS:
        raise ConfigError(unknown("pooling", pooling, POOLINGS))
    model = canonical(item_llm, must_exist)
    fields = choose_fields(asked_fields, text_fields)
    if model in CONTROLS:
        return Request(model, "none", "", fields, "fp32", 0)
    return Request(
        model, pooling, OFFICIAL_PROMPT if prompt is None else prompt, fields, precision, max_tokens
    )


def matching_specs(root: Path, request: Request) -> list[dict[str, Any]]:
    """Specifications of the stores under `root`, finished or not, that answer the request."""
    return [spec for spec in list_specs(root) if request.matches(spec)]


def find_spec(dataset: Any, request: Request | str) -> dict[str, Any]:
    """Specification of the one finished store that answers `request`, a Request or a store's key.

    Raises ArtifactError, with the next command, if there is none, AmbiguousError if there is more than one.
    """
    specs = list_specs(dataset.embeddings_dir)
    if isinstance(request, str):
        found, what, command = [s for s in specs if s["key"] == request], f"store {request}", "hllm embed"
    else:
        found, what = matching_specs(dataset.embeddings_dir, request), describe_request(request)
        command = request.command(dataset.path)
    root = dataset.embeddings_dir
    done = [s for s in found if index_path(root / s["key"], dataset.texts_fingerprint(s["fields"])).is_file()]
    if len(done) == 1:
        return done[0]
    if done:
        listed = "; ".join(f"{s['key']} ({describe_spec(s)})" for s in done)
        raise AmbiguousError(
            f"{len(done)} sets of embeddings match {what}: {listed}. Choose one by its key, for example "
            f"item_llm={done[0]['key']} (--set item_llm={done[0]['key']}), or delete the others' folders "
            f"in {dataset.embeddings_dir}"
        )
    if found:
        raise ArtifactError(f"embeddings of {what} are not finished for these items; run: {command}")
    others = "; ".join(describe_spec(s) for s in specs)
    raise ArtifactError(
        f"no embeddings of {what}" + (f" (there are: {others})" if others else "") + f"; run: {command}"
    )


def describe_request(request: Request) -> str:
    """One phrase for messages."""
    pooling = "" if request.is_control else f", pooling {request.pooling}"
    return f"{request.model} (fields {', '.join(request.fields)}{pooling})"


def describe_spec(spec: dict[str, Any]) -> str:
    """One phrase for messages: what tells this store from others."""
    parts = [str(spec["model"]), f"fields {','.join(spec['fields'])}"]
    if spec["model"] not in CONTROLS:
        parts += [f"pooling {spec['pooling']}", spec["precision"], f"max_tokens {spec['max_tokens']}"]
        parts.append(f"from {spec['source']}")
    return ", ".join(parts)


def _same_model(asked: str, recorded: str) -> bool:
    if asked == recorded or not (is_local(asked) and is_local(recorded)):
        return asked == recorded
    # A dataset folder moved to a machine where the model is elsewhere, or not at all.
    return not Path(recorded).exists() and Path(asked).name == Path(recorded).name
