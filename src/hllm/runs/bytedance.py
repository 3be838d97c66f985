"""ByteDance's checkpoints as runs, and runs as its checkpoints.

An imported run is what a training with preset `hllm` leaves: the item LLM in RUN/item_llm, a table of the items'
vectors, the user LLM. The two halves are taken from the mapped file one after the other.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hllm import hardware
from hllm.artifacts import locked, write_json
from hllm.config import Config, load_config
from hllm.data.dataset import Dataset
from hllm.errors import ArtifactError, ConfigError
from hllm.formats.bytedance import Checkpoint, read_checkpoint, write_checkpoint
from hllm.items.encoders.backbones import load_tokenizer, quiet
from hllm.items.encoders.export import load_item_tokens, save_item_llm
from hllm.items.encoders.from_state import model_config, model_from_state
from hllm.items.encoders.hub import ITEM_LLM, ITEM_LLM_SETTINGS, find_settings
from hllm.items.encoders.names import canonical
from hllm.items.encoders.packed import PackedEncoder
from hllm.items.live_items import ITEM_TOKEN
from hllm.items.resolve import resolve
from hllm.items.source.build import make_source
from hllm.items.source.text_table import TextTable
from hllm.items.trained import READING, TrainedLLM
from hllm.models.hllm import HLLM, Network
from hllm.models.llm import LLMUserModel
from hllm.models.scorers import CosineScorer, make_scorer
from hllm.runs.folder import check_folder, clear_run, run_state
from hllm.runs.record import new_record
from hllm.runs.save import write_run
from hllm.text.template import OFFICIAL_PROMPT
from hllm.train.files import LAST

if TYPE_CHECKING:
    from hllm.items.embeddings import ItemEmbeddings


@dataclass(frozen=True)
class Reading:
    """How the checkpoint's training read texts and histories; None: the dataset's, or its released scripts'.

    max_len          events of a history (MAX_ITEM_LIST_LENGTH)
    max_text_length  tokens of a text, the prompt's included (MAX_TEXT_LENGTH)
    """

    max_len: int | None = None
    max_text_length: int = 256
    fields: Sequence[str] | None = None
    prompt: str | None = None


def import_checkpoint(
    path: Path,
    data: Dataset,
    item_llm: str,
    user_llm: str,
    folder: Path,
    reading: Reading = Reading(),
    *,
    device: str = "auto",
    precision: str = "fp32",
    overwrite: bool = False,
    progress: bool = True,
) -> None:
    """Make `folder` a run with the weights of a checkpoint; `data` gives items and histories.

    item_llm, user_llm  the models that it was trained from: names or folders, of which the configuration and the
                        tokenizer are read, never the weights
    precision           in which the items are encoded

    The items' vectors go through the dataset's store, so an interrupted import is gone on with. Raises ArtifactError,
    naming the key and both shapes, for a checkpoint that is not of these models.
    """
    names = [canonical(item_llm), canonical(user_llm)]
    checkpoint = read_checkpoint(path)
    folders = [find_settings(name) for name in names]
    users = _user_model(checkpoint, folders[1], user_llm)
    item_model = model_from_state(
        model_config(folders[0]), checkpoint.item_llm, f"{path}: item_llm.", item_llm, "--item-llm NAME"
    )
    n = _check_widths(checkpoint, item_model, users)
    tokenizer = load_tokenizer(folders[0])
    config = _config(data, names, reading, n, tokenizer)
    _check_free(data, folder, overwrite)
    with locked(folder):
        if overwrite:
            clear_run(folder)
        data.copy_to(folder / "data")
        encoder = PackedEncoder(item_model, ITEM_TOKEN if n else "mean", item_token_n=n)
        _write_item_llm(encoder, checkpoint, tokenizer, config, folder / ITEM_LLM)
        del encoder, item_model
        gc.collect()
        made = _embedded(data, folder, config, device, precision, progress)
        network = _network(data, config, made, users, checkpoint)
        weights = made.spec["weights"]
        spec = {
            **made.spec,
            "model": names[0],
            "source": f"checkpoint {path.name}",
            "trained_weights": weights,
        }
        record = replace(
            new_record(data, config, None),
            embeddings=spec,
            lineage=[{"imported": path.name, "format": "ByteDance HLLM"}],
        )
        llm = TrainedLLM(spec, folder=folder / ITEM_LLM)
        write_run(folder, network, config, Dataset.load(folder / "data"), record, llm)


def export_checkpoint(network: Network, config: Config, llm: TrainedLLM | None, folder: Path) -> Path:
    """Write a finished run's weights to `folder` as ByteDance's code reads them: `pytorch_model.bin`, and beside it the
    configurations (and the tokenizer) of both models, for its `item_pretrain_dir` and `user_pretrain_dir`.

    Raises ConfigError for a run that its model cannot express.
    """
    users, scorer, items = network.model.user_model, network.model.scorer, config.items
    plain = items.adapter_hidden is None and items.whiten == "none" and not items.id_embedding
    like = plain and isinstance(scorer, CosineScorer)
    if llm is None or llm.folder is None or not like or not isinstance(users, LLMUserModel):
        raise ConfigError(
            "ByteDance's HLLM is a trained item LLM without whitening, adapter and IDs, a user LLM and cosine scores, "
            f"as --preset hllm trains them; this run (preset {config.preset}) is not: choose another --format"
        )
    if not isinstance(users.into, torch.nn.Identity):
        raise ConfigError(
            "this run has linear layers before and after its user LLM, which ByteDance's HLLM lacks, as its item and "
            "user LLM are not equally wide; choose another --format"
        )
    from transformers import AutoModel

    with quiet():
        item: Any = AutoModel.from_pretrained(llm.folder, dtype=torch.float32)
    user: Any = users.backbone.model
    words = {f"{n}." for n, m in user.named_modules() if m is user.get_input_embeddings()}
    states = [
        {f"{model.base_model_prefix}.{name}": value for name, value in model.state_dict().items()
         if model is item or not name.startswith(tuple(words))}
        for model in (item, user)
    ]  # fmt: skip
    for model, name in ((item, "item_llm"), (user, "user_llm")):
        model.config._attn_implementation_internal = None  # ours is no setting of the model's
        model.config.save_pretrained(folder / name)
    with quiet():
        load_tokenizer(llm.folder).save_pretrained(folder / "item_llm")
    path = folder / "pytorch_model.bin"
    write_checkpoint(
        path,
        states[0],
        states[1],
        load_item_tokens(llm.folder),
        network.get_parameter("model.scorer.log_scale"),
    )
    return path


def _user_model(checkpoint: Checkpoint, folder: Path, name: str) -> LLMUserModel:
    """The checkpoint's user LLM; its word embeddings are not kept."""
    config = model_config(folder)
    where = f"{checkpoint.path}: user_llm."
    model: Any = model_from_state(config, checkpoint.user_llm, where, name, "--user-llm NAME", words=False)
    return LLMUserModel(model.train(), int(model.get_input_embeddings().weight.shape[1]))


def _check_widths(checkpoint: Checkpoint, item_model: Any, users: LLMUserModel) -> int:
    """How many item tokens there are. Raises ArtifactError unless tokens and models are equally wide."""
    width, tokens = int(item_model.get_input_embeddings().weight.shape[1]), checkpoint.item_tokens
    if tokens is not None and tokens.shape[1] != width:
        raise ArtifactError(
            f"{checkpoint.path}: item_emb_tokens is (1, {len(tokens)}, {tokens.shape[1]}), expected "
            f"(1, {len(tokens)}, {width}) for this item LLM; name the model that it was trained from: --item-llm NAME"
        )
    if users.backbone.dim != width:
        raise ArtifactError(
            f"{checkpoint.path}: user_llm is {users.backbone.dim} wide, expected {width} as item_llm, whose vectors it "
            "reads; name the models that it was trained from: --item-llm NAME --user-llm NAME"
        )
    return 0 if tokens is None else len(tokens)


def _config(data: Dataset, names: list[str], reading: Reading, n: int, tokenizer: Any) -> Config:
    prompt = OFFICIAL_PROMPT if reading.prompt is None else reading.prompt
    own = len(tokenizer(prompt, verbose=False)["input_ids"])
    if reading.max_text_length <= own:
        raise ConfigError(
            f"--max-text-length {reading.max_text_length} leaves no room beside the prompt's {own} tokens; "
            "ByteDance's scripts have 256"
        )
    given: dict[str, Any] = {
        "item_llm": names[0], "user_llm": names[1], "item_emb_token_n": n, "right_aligned": True,
        "max_tokens": reading.max_text_length - own, "prompt": reading.prompt,
        "text_fields": None if reading.fields is None else list(reading.fields),
        "max_len": reading.max_len or data.meta.get("max_len"),
    }  # fmt: skip
    return load_config("hllm", overrides={k: v for k, v in given.items() if v is not None})


def _check_free(data: Dataset, folder: Path, overwrite: bool) -> None:
    check_folder(data, folder)
    if overwrite:
        return
    if run_state(folder) == "finished":
        raise ArtifactError(f"{folder} holds a run, finished; choose another --out, or --overwrite")
    if (folder / "checkpoints" / LAST).is_file():
        raise ArtifactError(f"{folder} holds an interrupted training; choose another --out, or --overwrite")


def _write_item_llm(
    encoder: PackedEncoder, checkpoint: Checkpoint, tokenizer: Any, config: Config, folder: Path
) -> None:
    """The checkpoint's item LLM as a finished run keeps it."""
    items = config.items
    prompt = OFFICIAL_PROMPT if items.prompt is None else items.prompt
    if checkpoint.item_tokens is not None:
        with torch.no_grad():
            encoder.item_tokens.copy_(checkpoint.item_tokens)
    save_item_llm(encoder, encoder.backbone.model.state_dict(), tokenizer, folder, items.max_tokens, prompt)
    own = {"pooling": encoder.pooling, "prompt": prompt, "fields": items.text_fields}
    write_json(
        folder / ITEM_LLM_SETTINGS, {name: own.get(name, getattr(items, name, None)) for name in READING}
    )


def _embedded(
    data: Dataset, run: Path, config: Config, device: str, precision: str, progress: bool
) -> ItemEmbeddings:
    """The items' vectors by the run's item LLM, through the dataset's store.

    An item without text has the vector of the prompt alone, as in ByteDance's code.
    """
    from hllm.items.encoders.hub import find_model
    from hllm.items.encoders.make import make_encoder

    name = str(run.resolve())
    wanted = resolve(
        data, name, None, None, config.items.text_fields, precision, config.items.max_tokens, must_exist=True
    )
    made = wanted.complete(device, progress=progress)
    absent = ~made.has_text
    absent[0] = False
    if absent.any():
        encoder = make_encoder(made.spec, find_model(name), hardware.pick_device(device))
        encoder.prepare([made.spec["prompt"]])
        made.vectors[absent] = encoder.encode(torch.zeros(1, dtype=torch.long).numpy())
    return made


def _network(
    data: Dataset, config: Config, made: ItemEmbeddings, users: LLMUserModel, checkpoint: Checkpoint
) -> Network:
    vectors, has_text = torch.from_numpy(made.vectors), torch.from_numpy(made.has_text)
    source = make_source(config.items, None, torch.from_numpy(data.train_counts() > 0), vectors, has_text)
    table = source.parts["text"]
    assert isinstance(table, TextTable)
    table.table.copy_(vectors)  # items without text too
    scorer = make_scorer(config.scorer)
    assert isinstance(scorer, CosineScorer)
    with torch.no_grad():
        scorer.log_scale.copy_(checkpoint.logit_scale)
    return Network(source, HLLM(users, scorer)).eval()
