"""An item LLM trained with the user model, from the first vectors to items added after training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from hllm.artifacts import read_json, read_jsonl, read_tensors
from hllm.config import Config, load_config
from hllm.data.dataset import Dataset
from hllm.errors import ArtifactError, ConfigError, TrainingError
from hllm.items.embed import embed
from hllm.items.live_items import live_items
from hllm.items.source.live import LiveText
from hllm.items.source.text_table import TextTable
from hllm.pipeline import Recommender, prepared
from hllm.runs.build import build_network
from hllm.runs.train import make_trainer, train_network
from hllm.testing import world
from hllm.testing.llms import write_model
from hllm.train.trainer import Stopped, Trainer

CPU = torch.device("cpu")
SMALL = {
    "d_model": 16, "n_layers": 1, "n_heads": 2, "max_len": 8, "epochs": 2, "batch_tokens": 80,
    "adapter_hidden": 24, "whiten_rank": 8, "learning_rate": 5e-3, "dropout": 0.2,
}  # fmt: skip
LIVE = {**SMALL, "item_llm_learning_rate": 1e-3, "mask_prob": 0.0}
WHITE = {"whiten": "whiten", "whiten_rank": 8}
OMIT = object()  # a setting left to the preset
ID = dict.fromkeys(("item_llm_learning_rate", "mask_prob", "adapter_hidden", "whiten_rank", "dropout"), OMIT)
BYTEDANCE = {
    "user_llm": None, "d_model": 32, "adapter_hidden": 24, "n_layers": 1, "n_heads": 4,
    "n_negatives": 8, "epochs": 2, "batch_tokens": 80, "learning_rate": 5e-3,
}  # fmt: skip


@pytest.fixture(scope="session")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("llms") / "tiny", seed=7, dropout=0.1)


@pytest.fixture(scope="session")
def data() -> Dataset:
    return world(n_users=40, n_items=30)


@pytest.fixture
def config(llm: Path) -> Callable[..., Config]:
    def make(preset: str = "hllm-small", **settings: Any) -> Config:
        base = {**(BYTEDANCE if preset == "hllm" else LIVE), "item_llm": str(llm), **settings}
        return load_config(preset, overrides={name: v for name, v in base.items() if v is not OMIT})

    return make


@pytest.fixture
def fit(data: Dataset, config: Callable[..., Config]) -> Callable[..., Recommender]:
    def run(
        out: Path | None = None, preset: str = "hllm-small", resume: bool = False, **settings: Any
    ) -> Recommender:
        recommender = Recommender(config(preset, **settings))
        return recommender.fit(data, out=out, device="cpu", resume=resume, progress=False)

    return run


def needs_peft(train: str) -> str:
    if train == "lora":
        pytest.importorskip("peft")
    return train


# ---------------------------------------------------------------------- where training starts


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("train", ["full", "lora"])
def test_live_starts_where_frozen_stands(llm: Path, tmp_path: Path, train: str, stored: bool) -> None:
    """Same whitening, adapter, ids and user model: the first vectors are equal, embedded before or not."""
    needs_peft(train)
    data = world(n_users=40, n_items=30).save(tmp_path / "data")
    frozen_config = load_config("hllm-lite", overrides={**SMALL, "item_llm": str(llm)})
    made = embed(data, str(llm), progress=False, precision="fp32")
    frozen = build_network(data, frozen_config, made)
    live_config = frozen_config.model_copy(update={"train": train})
    items = live_items(data if stored else world(n_users=40, n_items=30), live_config.items)
    assert bool(items.vectors.size) == stored
    live = build_network(data, live_config, items)
    torch.testing.assert_close(live.table().raw, frozen.table().raw, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(live.model.state_dict(), frozen.model.state_dict(), atol=0, rtol=0)
    tokens = torch.arange(1, data.n_catalogue + 1)
    vectors = live.eval().source.lease(tokens).vectors
    torch.testing.assert_close(vectors, frozen.table().raw[1:], atol=1e-5, rtol=1e-5)


def test_scratch_differs_and_is_of_the_seed(data: Dataset, config: Callable[..., Config]) -> None:
    def table(**settings: Any) -> torch.Tensor:
        made = config(item_llm_init="scratch", whiten="none", whiten_rank=OMIT, **settings)
        return build_network(data, made, prepared(data, made)).table().raw

    assert torch.equal(table(), table())
    assert not torch.allclose(table(), table(seed=1))
    pretrained = config(whiten="none", whiten_rank=OMIT)
    assert not torch.allclose(
        table(), build_network(data, pretrained, prepared(data, pretrained)).table().raw
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"item_llm": "tfidf", "train": "full"}, "no language model"),
        ({"lora_rank": 4}, "low-rank"),
        ({"max_tokens": 9}, "frozen"),
        ({"item_llm_learning_rate": 1e-4}, "not trained"),
        ({"item_emb_token_n": 1, "pooling": "last"}, "learned tokens"),
        ({"train": "lora", "item_llm_init": "scratch"}, "pretrained weights"),
        ({"user_llm": "tinyllama"}, "user_model=llm"),
        ({"user_model": "llm", "mask_prob": 0.2}, "masks no inputs"),
        ({"user_model": "llm", "user_llm": "tinyllama", "n_layers": 2}, "shape of its own"),
        ({"user_model": "llm", "user_llm_init": "scratch"}, "user_llm is null"),
        ({"drop_similar": 0.99}, "competes with every item"),
        ({"temperature": 2.0}, "cannot be learned"),
    ],
)
def test_settings_without_effect_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("hllm-lite", overrides=settings)


def test_bytedance_values() -> None:
    """AdamW, 1e-4, decay .01, warm-up 10%, cosine to 0, clip 1, 5 epochs, 512 negatives, texts of 256, lists of 50."""
    made = load_config("hllm")
    t, items = made.training, made.items
    assert (t.optimizer, t.learning_rate, t.weight_decay, t.warmup_ratio) == ("adamw", 1e-4, 0.01, 0.1)
    assert (t.min_lr_ratio, t.grad_clip, t.epochs, t.max_len, t.windows) == (0.0, 1.0, 5, 50, "pieces")
    assert (made.objective.loss, made.objective.n_negatives, made.objective.logq) == ("sampled", 512, False)
    assert (items.item_llm, items.max_tokens, items.item_emb_token_n, items.train) == (
        "tinyllama",
        256,
        1,
        "full",
    )
    assert (made.users.user_model, made.users.user_llm, made.users.d_model) == ("llm", "tinyllama", None)
    assert made.scorer.temperature == 0.07 and made.scorer.learn_temperature


# ---------------------------------------------------------------------- training


@pytest.mark.parametrize(
    ("preset", "settings"),
    [
        ("hllm-small", {"train": "full"}),
        ("hllm-small", {"train": "lora", "lora_rank": 2}),
        ("hllm-small", {"train": "full", "id_embedding": False, "ema_decay": 0.9}),
        ("hllm-small", {"train": "full", "item_gradients": "cache", "item_chunk_tokens": 256}),
        ("hllm-small", {"train": "full", "item_gradients": "checkpoint"}),
        (
            "hllm-small",
            {"train": "full", "loss": "sampled", "n_negatives": 2, "batch_tokens": 5, "max_len": 4},
        ),
        ("hllm", {}),
        (
            "hllm",
            {
                "item_emb_token_n": 2,
                "right_aligned": True,
                "drop_similar": 0.99,
                **WHITE,
                "learning_rate": 1e-3,
            },
        ),
        ("hllm-lite", {"item_emb_token_n": 1}),
        ("llama-id", {"item_llm": None, "user_llm": None, **ID}),
    ],
    ids=[
        "full",
        "lora",
        "text only",
        "cache",
        "checkpoint",
        "sampled",
        "hllm",
        "hllm, two tokens",
        "tokens",
        "id",
    ],
)
def test_the_loss_falls(
    data: Dataset, config: Callable[..., Config], preset: str, settings: dict[str, Any]
) -> None:
    needs_peft(settings.get("train", "full"))
    made = config(preset, **settings).model_copy(update={"epochs": 2 if "max_len" in settings else 4})
    _, result = train_network(data, made, prepared(data, made), CPU, None, False, False)
    losses = [row["loss"] for row in result.history]
    assert losses[-1] < losses[0]
    assert all(row["item_effective_rank"] > 1 and row["item_cosine"] < 1 for row in result.history)
    if made.items.live:
        assert result.history[0]["item_llm_plan"].startswith(settings.get("item_gradients", "graph"))
    if made.objective.drop_similar:
        assert 0 <= result.history[-1]["masked_negatives"] < 0.9


def interrupted(monkeypatch: pytest.MonkeyPatch, step: int, how: str) -> None:
    """Break training before optimiser step number `step`: killed, or asked to stop."""
    original = Trainer._step

    def breaking(self: Trainer, *args: Any) -> torch.Tensor:
        if self.state.step == step:
            if how == "kill":
                raise SystemExit("killed")
            raise Stopped("asked")
        return original(self, *args)

    monkeypatch.setattr(Trainer, "_step", breaking)
    monkeypatch.setattr(Trainer, "_due", lambda self: True)


@pytest.mark.parametrize(
    ("settings", "how"),
    [({"train": "full"}, "kill"), ({"train": "lora", "ema_decay": 0.9}, "ask"), ({"preset": "hllm"}, "kill")],
    ids=["full", "lora", "hllm"],
)
def test_a_break_changes_no_bit(
    fit: Callable[..., Recommender],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    how: str,
) -> None:
    needs_peft(settings.get("train", "full"))

    def outcome(name: str, resume: bool = False) -> dict[str, Any]:
        run = fit(tmp_path / name, resume=resume, **settings)
        assert run.network is not None
        tensors, _ = read_tensors(tmp_path / name / "checkpoints" / "last.safetensors")
        llm, _ = read_tensors(tmp_path / name / "item_llm" / "model.safetensors")
        state = {k: v.numpy().tobytes() for k, v in {**run.network.state_dict(), **tensors, **llm}.items()}
        return {"state": state, "history": read_jsonl(tmp_path / name / "history.jsonl")}

    straight = outcome("straight")
    for step in (1, straight["history"][0]["step"] + 1):
        with monkeypatch.context() as patch:
            interrupted(patch, step, how)
            with pytest.raises((SystemExit, Stopped)):
                fit(tmp_path / "broken", resume=True, **settings)
    assert outcome("broken", resume=True) == straight


def test_embedding_the_items_meanwhile_changes_nothing(
    llm: Path, config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whitening belongs to the interrupted run, whatever the store holds by now."""
    data = world(n_users=40, n_items=30).save(tmp_path / "data")

    def fit(name: str) -> dict[str, bytes]:
        run = Recommender(config()).fit(data, out=tmp_path / name, device="cpu", resume=True, progress=False)
        assert run.network is not None
        return {k: v.numpy().tobytes() for k, v in run.network.state_dict().items()}

    straight = fit("straight")
    with monkeypatch.context() as patch:
        interrupted(patch, 3, "kill")
        with pytest.raises(SystemExit):
            fit("broken")
    embed(data, str(llm), progress=False, precision="bf16")
    assert live_items(data, config().items).vectors.size
    assert fit("broken") == straight


def test_out_of_memory_halves_the_chunks_of_a_validation(
    data: Dataset,
    config: Callable[..., Config],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    made = config()
    source = build_network(data, made, prepared(data, made)).source.parts["text"]  # type: ignore[index,union-attr]
    assert isinstance(source, LiveText)
    expected, pooled = source.raw_table(), source._pooled

    def full(budget: int) -> torch.Tensor:
        if budget > 4096:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return pooled(budget)

    monkeypatch.setattr(source, "_pooled", full)
    monkeypatch.setattr("hllm.hardware.release_memory", lambda: None)
    torch.testing.assert_close(source.raw_table(), expected)
    assert "chunks of 4096 tokens" in caplog.text


def test_checkpoints_keep_what_is_trained(fit: Callable[..., Recommender], tmp_path: Path) -> None:
    pytest.importorskip("peft")
    fit(tmp_path / "run", train="lora", lora_rank=2)
    (best,) = (tmp_path / "run" / "checkpoints").glob("best-*.safetensors")
    names = [name for name in read_tensors(best)[0] if name.startswith("source.parts.text.encoder")]
    assert names and all("lora_" in name for name in names)


def test_a_step_encodes_only_what_the_loss_needs(
    data: Dataset, config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = config("hllm", batch_tokens=6, max_len=4, n_negatives=3, item_gradients="graph")
    trainer = make_trainer(data, data.train_histories(), made, prepared(data, made), CPU, None, False)
    encoded: list[int] = []
    run = LiveText._run
    monkeypatch.setattr(LiveText, "_run", lambda self, rows: encoded.extend(rows.tolist()) or run(self, rows))
    trainer.probe(1)
    assert len(encoded) == len(set(encoded)) <= 2 * 6 + 3 < data.n_candidates


def test_components_have_rates_and_decays_of_their_own(data: Dataset, config: Callable[..., Config]) -> None:
    made = config(learning_rate=1e-2, weight_decay=0.1, item_llm_learning_rate=1e-4, item_llm_weight_decay=0.01,
                  user_learning_rate=1e-3, user_weight_decay=0.2)  # fmt: skip
    trainer = make_trainer(data, data.train_histories(), made, prepared(data, made), CPU, None, False)
    trainer.optimizer.set_rate(5e-3)  # half of the schedule's way
    found = {}
    names = {p: name for name, p in trainer.network.named_parameters()}
    for group in trainer.optimizer.dense.param_groups:
        for p in group["params"]:
            found[names[p]] = (round(group["lr"], 9), group["weight_decay"])
    assert found["source.parts.text.encoder.backbone.model.layers.0.mlp.up_proj.weight"] == (5e-5, 0.01)
    assert found["source.parts.text.encoder.backbone.model.norm.weight"] == (5e-5, 0.0)
    assert found["source.parts.text.adapter.0.weight"] == found["source.parts.ids.weight"] == (5e-3, 0.1)
    assert found["model.user_model.blocks.0.attention.out.weight"] == (5e-4, 0.2)


def test_eight_bit_moments_need_their_library(data: Dataset, config: Callable[..., Config]) -> None:
    made = config(optimizer="adamw8bit")
    with pytest.raises(ConfigError, match=r"bitsandbytes|runs on a GPU"):
        make_trainer(data, data.train_histories(), made, prepared(data, made), CPU, None, False)


def test_dropping_similar_negatives_collapses_and_is_named(
    data: Dataset, config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """ByteDance's rule on near-parallel vectors: the loss is 0, and training stops with the reason."""
    made = config("hllm", drop_similar=0.99, epochs=2)
    trainer = make_trainer(data, data.train_histories(), made, prepared(data, made), CPU, None, False)
    source = trainer.network.source.parts["text"]  # type: ignore[index,union-attr]
    assert isinstance(source, LiveText) and source.adapter is not None
    with torch.no_grad():  # every vector begins as nearly the same one
        vectors = source.table()[1 : data.n_candidates + 1]
        spread = (vectors - vectors.mean(0)).norm(dim=1).mean()
        source.adapter[2].bias.add_(30 * spread / vectors.shape[1] ** 0.5 - vectors.mean(0))
    trainer.optimizer.set_rate(0.0)
    monkeypatch.setattr(trainer.optimizer, "step", lambda clip: None)
    with pytest.raises(TrainingError, match=r"drop_similar=0.99 leaves out 100.0% of the negatives"):
        trainer.fit()
    assert trainer.state.loss_sum == 0.0 and trainer.state.best_epoch is None


# ---------------------------------------------------------------------- after training


@pytest.mark.parametrize(
    "settings",
    [{"train": "full"}, {"train": "lora"}, {"preset": "hllm", "right_aligned": True}],
    ids=["full", "lora", "hllm"],
)
def test_a_live_run_is_a_run_like_any_other(
    fit: Callable[..., Recommender], data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
) -> None:  # fmt: skip
    needs_peft(settings.get("train", "full"))
    trained = fit(tmp_path / "run", **settings)
    assert trained.network is not None
    best = read_json(tmp_path / "run" / "config.json")["best"]["value"]
    assert trained.evaluate(split="validation", bootstrap=0)["ndcg@10"] == pytest.approx(best, abs=1e-12)
    with monkeypatch.context() as patch:  # no model is loaded to recommend
        patch.setattr("hllm.items.encoders.backbones.load_backbone", lambda *a, **k: pytest.fail("loaded"))
        again = Recommender.from_pretrained(tmp_path / "run", device="cpu")
        assert again.recommend(k=5).equals(trained.recommend(k=5))
    assert isinstance(again.network.source.parts["text"], TextTable)  # type: ignore[union-attr,index]

    known = data.items.row(7, named=True)
    new = pl.DataFrame(
        [{**known, "item_id": 900}, {"item_id": 901, "title": None, "genres": None}], schema=data.items.schema
    )
    for recommender in (trained, again):
        assert recommender.network is not None
        before = recommender.network.source.encode(torch.tensor([8]))
        recommender.add_items(new, device="cpu")
        text = recommender.network.source.parts["text"]  # type: ignore[index,union-attr]
        added = text.encode(torch.tensor([8, data.n_catalogue + 1]))
        torch.testing.assert_close(added[0], added[1], atol=1e-5, rtol=1e-5)
        assert torch.equal(before, recommender.network.source.encode(torch.tensor([8])))
        assert {900, 901} <= set(recommender.recommend(users=[100], k=99)["item_id"])
    memory = fit(None, **settings)  # never written: the model that was trained is still at hand
    memory.add_items(new, device="cpu")
    assert memory.network is not None and again.network is not None
    everyone = torch.arange(data.n_catalogue + 3)
    torch.testing.assert_close(
        memory.network.source.encode(everyone), again.network.source.encode(everyone), atol=1e-5, rtol=1e-5
    )
    again.save_pretrained(tmp_path / "grown")
    moved = (tmp_path / "grown").rename(tmp_path / "moved")
    grown = Recommender.from_pretrained(moved, device="cpu")
    assert grown.recommend(k=5).equals(again.recommend(k=5))
    grown.add_items(pl.DataFrame({"item_id": [902], "title": ["Paper Song"], "genres": ["Horror"]}), "cpu")
    assert 902 in grown.recommend(users=[100], k=99)["item_id"].to_list()


@pytest.mark.parametrize(
    "settings",
    [{"train": "full", "pooling": "last"}, {"preset": "hllm", "item_emb_token_n": 2}],
    ids=["last", "tokens"],
)
def test_a_runs_item_llm_embeds_other_catalogues(
    fit: Callable[..., Recommender], data: Dataset, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """The folder is transformers' own; pooling, prompt and learned tokens are the run's unless others are asked for."""
    run = fit(tmp_path / "run", **settings)
    assert run.item_llm is not None and run.network is not None
    other = world(n_users=40, n_items=30).save(tmp_path / "other")
    made = embed(other, str(tmp_path / "run"), progress=False, precision="fp32")
    assert made.spec["pooling"] == ("item-token" if "preset" in settings else "last")
    text = run.network.source.parts["text"]  # type: ignore[index,union-attr]
    raw, has_text = torch.from_numpy(made.vectors), torch.from_numpy(made.has_text)
    torch.testing.assert_close(text.whitening.transform(raw, has_text), text.table, atol=1e-4, rtol=1e-4)
    again = embed(other, str(tmp_path / "run"), progress=False)
    assert again.stats["encoded"] == 0 and np.array_equal(again.vectors, made.vectors)


def test_a_live_run_starts_from_a_frozen_one(
    llm: Path, config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = world(n_users=40, n_items=30).save(tmp_path / "data")
    made = load_config("hllm-lite", overrides={**SMALL, "item_llm": str(llm), "mask_prob": 0.0})
    embed(data, str(llm), progress=False, precision="fp32")
    frozen = Recommender(made).fit(data, out=tmp_path / "frozen", device="cpu", progress=False)
    live = config(init_from=str(tmp_path / "frozen"), **{"n_layers": 1})
    trainer = make_trainer(data, data.train_histories(), live, prepared(data, live), CPU, None, False)
    assert frozen.network is not None
    got, want = trainer.network.table(), frozen.network.table()
    torch.testing.assert_close(got.raw, want.raw, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        trainer.network.model.state_dict(), frozen.network.model.state_dict(), atol=0, rtol=0
    )
    other = world(n_users=30, n_items=30)
    with pytest.raises(ConfigError, match="was trained on world"):
        make_trainer(other, other.train_histories(), live, prepared(other, live), CPU, None, False)
    with pytest.raises(ConfigError, match=r"another model: .*user_model.* absent there"):
        shallow = live.model_copy(update={"n_layers": 2, "d_model": 16, "user_model": "llm", "n_heads": 2})
        make_trainer(data, data.train_histories(), shallow, prepared(data, shallow), CPU, None, False)
    with pytest.raises(ArtifactError, match="no run at"):
        absent = live.model_copy(update={"init_from": str(tmp_path / "none")})
        make_trainer(data, data.train_histories(), absent, prepared(data, absent), CPU, None, False)


def test_a_user_llm_by_folder_is_rebuilt_without_it(
    fit: Callable[..., Recommender], llm: Path, tmp_path: Path
) -> None:
    """ByteDance's shape: item vectors go into the user LLM as they are."""
    copy = write_model(tmp_path / "user-llm")
    shape = dict.fromkeys(("n_layers", "n_heads"), OMIT)
    run = fit(tmp_path / "run", "hllm", user_llm=str(copy), d_model=None, adapter_hidden=None, **shape)
    copy.rename(tmp_path / "gone")
    again = Recommender.from_pretrained(tmp_path / "run", device="cpu")
    assert again.recommend(k=5).equals(run.recommend(k=5))
