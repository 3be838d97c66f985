"""A finished run, written and read."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from hllm.artifacts import (
    check_manifest,
    locked,
    manifest_of,
    read_json,
    read_tensors,
    write_document,
    write_tensors,
)
from hllm.config import Config, make_config
from hllm.data.dataset import Dataset
from hllm.errors import ArtifactError
from hllm.items.encoders.hub import ITEM_LLM
from hllm.items.source.build import empty_source
from hllm.items.source.whitening import EPSILON
from hllm.items.trained import TrainedLLM
from hllm.models.hllm import Network
from hllm.models.llm import LLMUserModel
from hllm.runs.build import with_source
from hllm.runs.folder import (
    AGAIN,
    FORMAT,
    VERSION,
    check_folder,
    clear_run,
    read_record,
    run_state,
    saved_identity,
)
from hllm.runs.legacy import upgraded
from hllm.runs.record import RunRecord

FILES = ("model.safetensors", "data/dataset.json")  # which lists the other files of `data`


def write_run(
    folder: Path,
    network: Network,
    config: Config,
    data: Dataset,
    record: RunRecord,
    item_llm: TrainedLLM | None = None,
) -> TrainedLLM | None:
    """Write a finished run; `config.json`, its mark, last. Returns `item_llm` as it lies in the folder."""
    run_state(folder)
    with locked(folder):
        if _is_another(folder, config, data, record):
            check_folder(data, folder)
            clear_run(folder)  # metrics and report of another run would not be this one's
        (folder / "config.json").unlink(missing_ok=True)
        if data.path is None or data.path.resolve() != (folder / "data").resolve():
            data.copy_to(folder / "data")
        write_tensors(folder / "model.safetensors", network.state_dict())
        if item_llm is not None:
            item_llm = item_llm.save(folder / ITEM_LLM)
            record = replace(record, embeddings=item_llm.spec)
        document = _document(network, config, record)
        write_document(folder / "config.json", document, manifest_of(folder, FILES))
    return item_llm


def _document(network: Network, config: Config, record: RunRecord) -> dict[str, Any]:
    """The content of `config.json`."""
    user_model = network.model.user_model
    document = {
        "format": FORMAT,
        "version": VERSION,
        "config": config.model_dump(),
        "runtime": config.runtime.model_dump(),
        "source": network.source.spec(),
        "user_llm": user_model.config() if isinstance(user_model, LLMUserModel) else None,
        **asdict(record),
    }
    if config.items.whiten == "whiten" and config.items.item_llm is not None:
        document["whitening"] = {"rank": document["source"]["parts"]["text"]["rank"], "epsilon": EPSILON}
    return document


def _is_another(folder: Path, config: Config, data: Dataset, record: RunRecord) -> bool:
    """Whether `folder` holds another run, finished or not."""
    state = run_state(folder)
    if state == "finished":
        return bool(read_json(folder / "config.json").get("created") != record.created)
    saved = saved_identity(folder)
    key = (record.embeddings or {}).get("key")
    own = {"config": config.model_dump(), "dataset": data.fingerprint, "embeddings": key}
    return saved is not None and saved != own


def trained_llm(folder: Path, record: RunRecord) -> TrainedLLM | None:
    """The item LLM that the run in `folder` trained, not loaded yet; None where there is none."""
    if record.embeddings is None or "trained_weights" not in record.embeddings:
        return None
    return TrainedLLM(record.embeddings, folder=folder / ITEM_LLM)


def read_run(folder: Path, device: torch.device) -> tuple[Network, Config, Dataset, RunRecord]:
    """Load a finished run; ArtifactError says what the folder is instead and what to do."""
    document = read_record(folder)
    check_manifest(folder, document.get("files", {}), advice=AGAIN)
    tensors, _ = read_tensors(folder / "model.safetensors")
    if document["version"] == 1:
        document, tensors = upgraded(document, tensors)
    config = make_config(document["config"] | {"runtime": document.get("runtime", {})})
    network = with_source(empty_source(document["source"]), config, document.get("user_llm"))
    try:
        network.load_state_dict(tensors)
    except RuntimeError as err:
        raise ArtifactError(f"{folder}/model.safetensors does not fit its config.json; train again") from err
    record = RunRecord(**{key: document[key] for key in RunRecord.__dataclass_fields__ if key in document})
    return network.to(device).eval(), config, Dataset.load(folder / "data"), record
