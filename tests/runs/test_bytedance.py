"""A checkpoint of ByteDance's HLLM as a run, against a forward pass of its own written here, and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import torch.nn.functional as F
import transformers as tf
from torch import Tensor

from hllm.data.dataset import Dataset
from hllm.errors import ArtifactError, ConfigError
from hllm.export.write import export
from hllm.items.embed import embed
from hllm.pipeline import Recommender
from hllm.runs.bytedance import Reading, import_checkpoint
from hllm.testing import world_tables
from hllm.testing.llms import GROUPED, byte_tokenizer, config

MAX_TEXT, MAX_LEN = 100, 6
PROMPT = "Compress the following sentence into embedding: "
FIELDS = ("title", "genres")
QUIET: dict[str, Any] = {"device": "cpu", "progress": False}


class Theirs:
    """Two language models with heads, as ByteDance's class holds them, and how it goes from texts to scores."""

    def __init__(self, item: Any, user: Any, tokenizer: Any, tokens: Tensor | None) -> None:
        self.item, self.user, self.tokenizer, self.tokens = item.eval(), user.eval(), tokenizer, tokens
        self.logit_scale = torch.tensor(2.9)

    def state(self) -> dict[str, Tensor]:
        state = {f"item_llm.{name}": value for name, value in self.item.state_dict().items()}
        state |= {f"user_llm.{name}": value for name, value in self.user.state_dict().items()}
        state |= {} if self.tokens is None else {"item_emb_tokens": self.tokens}
        return state | {"logit_scale": self.logit_scale}

    def vector(self, row: dict[str, Any]) -> Tensor:
        """Of one item: the prompt and its fields, cut; the state at the learned token after it, or the mean."""
        text = PROMPT + "".join(f"{name}: {row[name]}" for name in FIELDS if row[name])
        ids = self.tokenizer.encode(text)[:MAX_TEXT]
        body = getattr(self.item, "model", self.item)
        embeds = self.item.get_input_embeddings()(torch.tensor([ids]))
        if self.tokens is not None:
            embeds = torch.cat((embeds, self.tokens), 1)
        positions = torch.arange(embeds.shape[1]) + MAX_TEXT - len(ids)
        states = body(inputs_embeds=embeds, position_ids=positions[None]).last_hidden_state[0]
        return states[-1] if self.tokens is not None else states.mean(0)

    @torch.no_grad()
    def scores(self, items: pl.DataFrame, histories: list[list[int]]) -> Tensor:
        """(users, items): left-padded vectors through the user LLM, cosines times the logit scale."""
        vectors = torch.stack([self.vector(row) for row in items.iter_rows(named=True)])
        x = torch.zeros(len(histories), MAX_LEN, vectors.shape[1])
        mask = torch.zeros(len(histories), MAX_LEN, dtype=torch.long)
        for row, history in enumerate(histories):
            last = history[-MAX_LEN:]
            x[row, -len(last) :] = vectors[last]
            mask[row, -len(last) :] = 1
        states = self.user.model(inputs_embeds=x, attention_mask=mask).last_hidden_state[:, -1]
        cosines = F.normalize(states, dim=-1) @ F.normalize(vectors, dim=-1).T
        return cosines * self.logit_scale.exp()


def make(seed: int = 0, item: str = "llama", tokens: int = 1) -> Theirs:
    torch.manual_seed(seed)
    if item == "bert":  # its class there has no head
        model: Any = tf.BertModel(config("bert"))
    else:
        model = tf.LlamaForCausalLM(tf.LlamaConfig(**GROUPED))
    user = tf.LlamaForCausalLM(tf.LlamaConfig(**{**GROUPED, "num_hidden_layers": 3, "vocab_size": 300}))
    learned = torch.randn(1, tokens, 32) if tokens else None
    return Theirs(model, user, byte_tokenizer(pad_token="<pad>"), learned)


def shapes(theirs: Theirs, folder: Path) -> tuple[str, str]:
    """Folders of configuration and tokenizer, without weights."""
    theirs.item.config.save_pretrained(folder / "item")
    theirs.tokenizer.save_pretrained(folder / "item")
    theirs.user.config.save_pretrained(folder / "user")
    return str(folder / "item"), str(folder / "user")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The world, one film of it without text, and one whose text is cut."""
    interactions, items, users = world_tables(n_users=20, n_items=15)
    rows = items.with_row_index("row")
    title = pl.when(pl.col("row") == 3).then(None).when(pl.col("row") == 4).then(pl.lit("Long " * 30))
    items = rows.with_columns(
        title=title.otherwise(pl.col("title")),
        genres=pl.when(pl.col("row") == 3).then(None).otherwise(pl.col("genres")),
    ).drop("row")
    made = Dataset.from_tables(interactions, items, users, name="world", time_unit="s")
    return made.save(tmp_path_factory.mktemp("bytedance") / "data")


def take(theirs: Theirs, data: Dataset, folder: Path, **options: Any) -> Recommender:
    path = folder / "pytorch_model.bin"
    torch.save(theirs.state(), path)
    reading = Reading(MAX_LEN, MAX_TEXT, FIELDS)
    import_checkpoint(path, data, *shapes(theirs, folder), folder / "run", reading, **QUIET, **options)
    return Recommender.from_pretrained(folder / "run", "cpu")


def check_scores(theirs: Theirs, data: Dataset, ours: Recommender) -> None:
    """Every score of every item for every user of the test split."""
    queries = data.queries["test"]
    histories = [data.tokens[data.offsets[u] : p] - 1 for u, p in _ends(data, queries)]
    wanted = theirs.scores(data.items, [h.tolist() for h in histories])
    frame = ours.recommend(split="test", k=data.n_catalogue, keep_seen=True, candidates="catalogue")
    users = frame["user_id"].unique(maintain_order=True).to_list()
    assert len(users) == len(histories) and len(frame) == len(histories) * data.n_catalogue
    place = {item: i for i, item in enumerate(data.item_ids)}
    found = torch.zeros_like(wanted)
    for row, user in enumerate(users):
        mine = frame.filter(pl.col("user_id") == user)
        found[row, [place[i] for i in mine["item_id"]]] = torch.tensor(mine["score"].to_list())
    torch.testing.assert_close(found, wanted, atol=1e-5 * float(wanted.abs().max()), rtol=1e-5)


def _ends(data: Dataset, queries: Any) -> list[tuple[int, int]]:
    from hllm.data.batches.queries import eval_queries

    made = eval_queries(data, "test")
    assert len(made) == len(queries)
    return list(zip(made.users.tolist(), made.ends.tolist(), strict=True))


@pytest.mark.parametrize("kind", ["item token", "mean", "bert"])
def test_scores_are_those_of_the_checkpoint(kind: str, data: Dataset, tmp_path: Path) -> None:
    theirs = make(item="bert" if kind == "bert" else "llama", tokens=0 if kind == "mean" else 1)
    ours = take(theirs, data, tmp_path)
    check_scores(theirs, data, ours)
    assert ours.record.imported == "pytorch_model.bin"
    assert "weights of pytorch_model.bin" in ours.evaluate(bootstrap=0).result_line()
    assert ours.config.preset == "hllm" and ours.config.training.max_len == MAX_LEN


def test_the_way_back(data: Dataset, tmp_path: Path) -> None:
    """What is exported has the weights of the checkpoint, and is taken again by the folders beside it."""
    theirs = make(1)
    ours, out = take(theirs, data, tmp_path), tmp_path / "out"
    assert export(ours, out, "bytedance") is None
    state, wanted = torch.load(out / "pytorch_model.bin", weights_only=True), theirs.state()
    left_out = {"item_llm.lm_head.weight", "user_llm.lm_head.weight", "user_llm.model.embed_tokens.weight"}
    assert set(wanted) - set(state) == left_out and set(state) <= set(wanted)
    for name, value in state.items():
        torch.testing.assert_close(value, wanted[name], atol=0, rtol=0)
    again = tmp_path / "again"
    import_checkpoint(
        out / "pytorch_model.bin", data, str(out / "item_llm"), str(out / "user_llm"), again,
        Reading(MAX_LEN, MAX_TEXT, FIELDS), **QUIET,
    )  # fmt: skip
    check_scores(theirs, data, Recommender.from_pretrained(again, "cpu"))
    with pytest.raises(ConfigError, match="preset sasrec"):
        other = Recommender.from_preset("sasrec", d_model=16, n_layers=1, n_heads=2, epochs=1)
        export(other.fit(data, **QUIET), tmp_path / "no", "bytedance")


def test_the_run_goes_on(data: Dataset, tmp_path: Path) -> None:
    """New items, embeddings by the run's item LLM, a search by text, training that starts from it."""
    theirs = make(2)
    ours = take(theirs, data, tmp_path)
    assert ours.network is not None
    start = ours.network.table().raw.clone()
    made = embed(data, str(tmp_path / "run"), precision="fp32", text_fields=FIELDS, **QUIET)
    assert made.stats["encoded"] == 0  # the import went through the same store
    row = {"item_id": 900, "title": "Silent Harbour", "genres": "Western"}
    ours.add_items(pl.DataFrame([row]), device="cpu")
    with torch.no_grad():
        wanted = theirs.vector(row)
    torch.testing.assert_close(ours.network.table().raw[-1], wanted, atol=1e-5, rtol=1e-5)
    assert ours.similar(text="Silent Harbour", k=3).height == 3
    settings = {"epochs": 1, "batch_tokens": 80, "n_negatives": 8}
    item, user = str(tmp_path / "run"), str(tmp_path / "user")
    more = Recommender.from_preset(
        "hllm", item_llm=item, user_llm=user, user_llm_init="scratch", init_from=str(tmp_path / "run"),
        max_len=MAX_LEN, max_tokens=ours.config.items.max_tokens, learning_rate=1e-9,
        text_fields=list(FIELDS), **settings,
    )  # fmt: skip
    more.fit(data, **QUIET)  # steps that move nothing: what it starts from is the checkpoint
    assert more.network is not None
    close = {"atol": 1e-5, "rtol": 1e-5}
    texts = torch.from_numpy(made.has_text)
    torch.testing.assert_close(more.network.table().raw[texts], start[texts], **close)
    torch.testing.assert_close(more.network.model.state_dict(), ours.network.model.state_dict(), **close)


def test_an_import_is_repeated_only_on_demand(data: Dataset, tmp_path: Path) -> None:
    theirs = make(3)
    take(theirs, data, tmp_path)
    with pytest.raises(ArtifactError, match="holds a run, finished; choose another --out, or --overwrite"):
        take(theirs, data, tmp_path)
    (tmp_path / "run" / "config.json").unlink()  # as after kill -9
    check_scores(theirs, data, take(theirs, data, tmp_path))
    check_scores(theirs, data, take(theirs, data, tmp_path, overwrite=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_files(dtype: torch.dtype, data: Dataset, tmp_path: Path) -> None:
    theirs = make(4)
    for weight in (*theirs.item.parameters(), *theirs.user.parameters()):
        weight.data = weight.data.to(dtype).float()  # values that both types hold
    assert theirs.tokens is not None
    theirs.tokens, theirs.logit_scale = theirs.tokens.to(dtype).float(), theirs.logit_scale.to(dtype).float()
    state, exact = theirs.state(), theirs.state
    theirs.state = lambda: {name: value.to(dtype) for name, value in state.items()}  # type: ignore[method-assign]
    ours = take(theirs, data, tmp_path)
    theirs.state = exact  # type: ignore[method-assign]
    check_scores(theirs, data, ours)


def test_baichuan_weights(data: Dataset, tmp_path: Path) -> None:
    """Queries, keys and values in one matrix, under a configuration that needs no code of its own."""
    torch.manual_seed(5)
    shape = {**GROUPED, "num_key_value_heads": 4}
    models = [tf.LlamaForCausalLM(tf.LlamaConfig(**shape)) for _ in range(2)]
    theirs = Theirs(*models, byte_tokenizer(pad_token="<pad>"), torch.randn(1, 1, 32))
    item, user = shapes(theirs, tmp_path)
    state = theirs.state()
    for prefix in ("item_llm.", "user_llm."):
        for layer in range(2):
            stem = f"{prefix}model.layers.{layer}.self_attn."
            state[f"{stem}W_pack.weight"] = torch.cat([state.pop(f"{stem}{p}_proj.weight") for p in "qkv"])
    torch.save(state, tmp_path / "pytorch_model.bin")
    (tmp_path / "user" / "config.json").write_text(
        json.dumps({**models[1].config.to_dict(), "model_type": "baichuan"})
    )
    reading = Reading(MAX_LEN, MAX_TEXT, FIELDS)
    import_checkpoint(tmp_path / "pytorch_model.bin", data, item, user, tmp_path / "run", reading, **QUIET)
    check_scores(theirs, data, Recommender.from_pretrained(tmp_path / "run", "cpu"))


def lacks_key(state: dict[str, Tensor]) -> None:
    del state["item_llm.model.layers.1.mlp.up_proj.weight"]


def lacks_layer(state: dict[str, Tensor]) -> None:
    for name in [n for n in state if n.startswith("user_llm.model.layers.2.")]:
        del state[name]


def other_shape(state: dict[str, Tensor]) -> None:
    state["user_llm.model.norm.weight"] = torch.ones(48)


def more_layers(state: dict[str, Tensor]) -> None:
    state["item_llm.model.layers.2.mlp.up_proj.weight"] = torch.ones(64, 32)


def wide_token(state: dict[str, Tensor]) -> None:
    state["item_emb_tokens"] = torch.ones(1, 1, 48)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lacks_key,
            r"item_llm\.model\.layers\.1\.mlp\.up_proj\.weight is missing, expected \(64, 32\) .*--item-llm",
        ),
        (lacks_layer, r"user_llm\.model\.layers\.2\.\S+ is missing, expected .*--user-llm NAME"),
        (other_shape, r"user_llm\.model\.norm\.weight is \(48,\), expected \(32,\) .*--user-llm NAME"),
        (
            more_layers,
            r"item_llm\.model\.layers\.2\.mlp\.up_proj\.weight \(64, 32\) is more than .* --item-llm NAME",
        ),
        (wide_token, r"item_emb_tokens is \(1, 1, 48\), expected \(1, 1, 32\) .*--item-llm NAME"),
    ],
)
def test_a_checkpoint_of_other_models(change: Any, message: str, data: Dataset, tmp_path: Path) -> None:
    theirs = make(6)
    state = theirs.state()
    change(state)
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(ArtifactError, match=message):
        import_checkpoint(
            tmp_path / "pytorch_model.bin", data, *shapes(theirs, tmp_path), tmp_path / "run", **QUIET
        )
    assert not (tmp_path / "run").exists()


def test_no_room_for_text(data: Dataset, tmp_path: Path) -> None:
    theirs = make(7)
    torch.save(theirs.state(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="leaves no room beside the prompt's 48 tokens"):
        import_checkpoint(
            tmp_path / "pytorch_model.bin", data, *shapes(theirs, tmp_path), tmp_path / "run",
            Reading(max_text_length=48), **QUIET,
        )  # fmt: skip


def test_vectors_are_never_taken_from_the_models_own_weights(data: Dataset, tmp_path: Path) -> None:
    """The folders named may hold the untrained models, as a user's do: their weights are not read."""
    theirs, before = make(8), make(9)
    before.item.save_pretrained(tmp_path / "item")
    before.user.save_pretrained(tmp_path / "user")
    ours = take(theirs, data, tmp_path)
    check_scores(theirs, data, ours)
    assert np.isfinite(ours.evaluate(bootstrap=0).values["ndcg@10"])
