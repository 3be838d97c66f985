"""A language model as item source: starts where the frozen table stands, and every way of bounding memory gives
the same loss and gradients."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from hllm.errors import ConfigError, DeviceError
from hllm.items.encoders.backbones import load_backbone
from hllm.items.encoders.export import copy_item_tokens, save_item_llm
from hllm.items.encoders.packed import PackedEncoder
from hllm.items.encoders.packed_text import live_encoder, more_texts
from hllm.items.encoders.text import LanguageModelEncoder
from hllm.items.encoders.tokens import Ragged, prompt_prefix, without_prefix
from hllm.items.source.caching import Plan, choose_plan, plan_chunks
from hllm.items.source.live import LiveText
from hllm.items.source.live_build import empty_live
from hllm.items.source.lora import merged_state
from hllm.items.source.whitening import Whitening
from hllm.testing.llms import exact_norms, tiny

CPU = torch.device("cpu")
PROMPT = "Compress: "
TITLES = [
    None,
    "Up",
    "Seven samurai",
    "Heat (1995)",
    None,
    "The Long Goodbye",
    "Brazil",
    "Ran",
    "Tampopo",
    "M",
]
MODES = ("graph", "checkpoint", "cache")


def adapter(rank, width=16, dtype=torch.float32):
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(rank, 24), nn.GELU(), nn.Linear(24, width)).to(dtype)


def random_texts(n=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 15, (n,), generator=generator).tolist()
    return Ragged.of([[], *(torch.randint(2, 258, (k,), generator=generator).tolist() for k in lengths), []])


def live(kind="llama", dropout=0.0, dtype=torch.float32, chunk=20, mode="graph", pooling="mean", **options):
    n = options.pop("item_token_n", 0)
    encoder = PackedEncoder(tiny(kind, dropout=dropout, dtype=dtype), pooling, [40, 41, 42, 43], n)
    white = torch.randn(32, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    whitening = Whitening(torch.full((32,), 0.1, dtype=torch.float64), white)
    source = LiveText(
        encoder, random_texts(), whitening, adapter(8, dtype=dtype), mode=mode, chunk_tokens=chunk, **options
    )
    return source.train()


def step(source, tokens, seed=0, bf16=False):
    """Loss, gradients and vectors of one step whose user half draws random numbers too."""
    torch.manual_seed(seed)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        lease = source.lease(tokens)
        noise = torch.rand_like(lease.vectors)
        loss = (torch.tanh(lease.vectors) - noise).square().sum()
    loss.backward()
    lease.backward()
    gradients = {n: p.grad.clone() for n, p in source.named_parameters() if p.grad is not None}
    source.zero_grad(set_to_none=True)
    return loss.detach(), gradients, torch.rand(1)


def assert_same(a, b, tolerance=1e-9):
    assert a[1].keys() == b[1].keys()
    torch.testing.assert_close(a[0], b[0], atol=tolerance, rtol=tolerance)
    for name in a[1]:
        torch.testing.assert_close(a[1][name], b[1][name], atol=tolerance, rtol=tolerance, msg=name)
    assert torch.equal(a[2], b[2])  # the random numbers that follow are the same too


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("kind", ["llama", "bert", "mpnet"])
@pytest.mark.parametrize("mode", ["checkpoint", "cache"])
def test_every_mode_equals_the_plain_graph_with_dropout(monkeypatch, mode, kind, bf16):
    exact_norms(monkeypatch)
    dtype = torch.float32 if bf16 else torch.float64
    tokens = torch.tensor([3, 13, 1, 7, 12, 5, 9])  # 13 has no text
    plain = step(live(kind, 0.2, dtype), tokens, bf16=bf16)
    source = live(kind, 0.2, dtype, mode=mode)
    runs = []
    run = source._run
    monkeypatch.setattr(source, "_run", lambda rows: runs.append(len(rows)) or run(rows))
    other = step(source, tokens, bf16=bf16)
    assert sum(runs) == (12 if mode == "cache" else 6)
    assert len(plain[1]) > 10 and plain[1]["no_text"].abs().sum() > 0
    assert_same(plain, other)
    assert not torch.equal(
        plain[0], step(live(kind, 0.2, dtype), tokens, seed=1, bf16=bf16)[0]
    )  # dropout is on


def test_a_lease_equals_encode_on_one_graph(monkeypatch):
    exact_norms(monkeypatch)
    source, tokens = live(dtype=torch.float64, mode="cache"), torch.tensor([4, 2, 13, 9])
    cached = step(source, tokens)
    torch.manual_seed(0)
    vectors = source.encode(tokens)
    loss = (torch.tanh(vectors) - torch.rand_like(vectors)).square().sum()
    loss.backward()
    torch.testing.assert_close(loss.detach(), cached[0], atol=1e-9, rtol=1e-9)
    for name, p in source.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(p.grad, cached[1][name], atol=1e-9, rtol=1e-9, msg=name)


def test_chunks_whose_graphs_fit_are_not_run_twice(monkeypatch):
    exact_norms(monkeypatch)
    tokens = torch.arange(1, 13)
    plain = step(live(dropout=0.2, dtype=torch.float64), tokens)
    source = live(dropout=0.2, dtype=torch.float64, mode="cache")
    source.plan = Plan("cache", 20, 45)
    runs, run = [], source._run
    monkeypatch.setattr(source, "_run", lambda rows: runs.append(len(rows)) or run(rows))
    assert_same(plain, step(source, tokens))
    assert 12 < sum(runs) < 24


@pytest.mark.parametrize("inside", [False, True])
def test_casts_made_without_a_graph_are_not_reused_with_one(inside):
    """Autocast may remember the weights that it cast, those without a gradient too (pytorch#112583)."""
    tokens, gradients = torch.arange(1, 13), []
    for plan in (Plan("graph", 20, 0), Plan("cache", 20, 45)):
        source = live(mode="cache")
        source.plan = plan
        with torch.autocast("cpu", torch.bfloat16):
            lease = source.lease(tokens)
            lease.vectors.square().sum().backward()
            if inside:
                lease.backward()
        if not inside:
            lease.backward()
        gradients.append({n: p.grad for n, p in source.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, expected in gradients[0].items():
        norm = (gradients[1][name] - expected).norm() / expected.norm().clamp(min=1e-9)
        assert norm < 2e-2, name  # sums of chunks round otherwise in bf16


class FullMemory:
    """Runs out of memory in the calls that `when(call, grad)` names."""

    def __init__(self, source, monkeypatch, when):
        self.calls, self.run, self.when = 0, source._run, when
        monkeypatch.setattr(source, "_run", self)
        monkeypatch.setattr("hllm.hardware.release_memory", lambda: None)  # collecting takes half a second

    def __call__(self, rows):
        self.calls += 1
        if self.when(self.calls, rows):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.run(rows)


def test_out_of_memory_halves_the_chunk_and_goes_on(monkeypatch, caplog):
    source, tokens = live(mode="cache", chunk=80), torch.arange(1, 13)
    expected = step(live(mode="graph", chunk=80), tokens)
    FullMemory(source, monkeypatch, lambda call, rows: len(rows) > 4)
    assert_same(expected, step(source, tokens), 1e-4)
    assert source.plan.chunk_tokens < 80 and "out of memory" in caplog.text
    assert_same(expected, step(source, tokens), 1e-4)


def test_out_of_memory_takes_the_next_mode(monkeypatch):
    source, tokens = live(mode="graph"), torch.arange(1, 13)
    FullMemory(source, monkeypatch, lambda call, rows: torch.is_grad_enabled() and call < 5)
    step(source, tokens)
    assert source.plan.mode == "cache"


def test_out_of_memory_in_the_backward_pass_changes_no_gradient(monkeypatch):
    exact_norms(monkeypatch)
    tokens = torch.arange(1, 13)
    expected = step(live(dropout=0.2, dtype=torch.float64), tokens)
    source = live(dropout=0.2, dtype=torch.float64, mode="cache")
    chunks = len(source._chunks(tokens, 20)[0])
    FullMemory(source, monkeypatch, lambda call, rows: call == chunks + 3)
    assert_same(expected, step(source, tokens))
    assert source.plan.chunk_tokens == 10


def test_one_text_too_large_for_the_memory_is_an_error(monkeypatch):
    source = live(mode="auto")
    source.plan = Plan("graph", 100, 0)
    FullMemory(source, monkeypatch, lambda call, rows: True)
    with pytest.raises(DeviceError, match=r"items\.train=lora"):
        source.lease(torch.arange(1, 13))


def test_auto_takes_the_cheapest_mode_that_fits(monkeypatch):
    tokens, chosen = torch.arange(1, 13), []
    for room in (1e12, 2.7e5, 4e4):
        source = live(mode="auto")
        adam = sum(p.numel() * 12 for p in source.parameters())
        monkeypatch.setattr("hllm.items.source.live.free_memory", lambda device, room=room + adam: room)
        step(source, tokens)
        chosen.append(source.plan.mode)
    assert chosen == list(MODES)
    assert choose_plan(100, 10.0, None, 2, 500.0, 30) == Plan("cache", 30, 20)
    assert choose_plan(100, 10.0, 1.0, 2, 500.0, 30) == Plan("checkpoint", 30, 0)


def test_chunks_hold_texts_of_similar_length_within_the_budget():
    chunks = plan_chunks(torch.tensor([5, 1, 9, 2, 30, 4]), 10)
    assert [c.tolist() for c in chunks] == [[1, 3, 5], [0], [2], [4]]
    assert plan_chunks(torch.zeros(0, dtype=torch.long), 10) == []


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("train", ["full", "lora"])
def test_training_starts_where_the_frozen_source_stands(llama, pooling, train):
    if train == "lora":
        pytest.importorskip("peft")
    there = [i for i, text in enumerate(TITLES) if text]
    frozen = LanguageModelEncoder(load_backbone(llama, "fp32", CPU), pooling, PROMPT)
    frozen.prepare([PROMPT + TITLES[i] for i in there])
    raw = torch.zeros(len(TITLES), 32)
    raw[there] = torch.from_numpy(frozen.encode(np.arange(len(there))))
    has_text = torch.tensor([text is not None for text in TITLES])
    trained = torch.arange(len(TITLES)) % 3 > 0
    whitening = Whitening.fit(raw[trained & has_text], "whiten", 4)
    rank = whitening.basis.shape[1]
    expected = adapter(rank)(whitening.transform(raw, has_text))

    encoder, texts = live_encoder(
        load_backbone(llama, "fp32", CPU), [t and PROMPT + t for t in TITLES], pooling, PROMPT
    )
    assert len(encoder.prefix) >= len(PROMPT) - 1
    start = LiveText(encoder, texts)
    torch.testing.assert_close(start.fit_whitening(trained, "whiten", 4), raw, atol=1e-5, rtol=1e-5)
    source = LiveText(
        encoder, texts, start.whitening, adapter(rank), train, lora={"rank": 2} if train == "lora" else None
    )
    got = source.table()
    torch.testing.assert_close(got[has_text], expected[has_text], atol=1e-5, rtol=1e-5)
    assert torch.equal(got[0], torch.zeros(16))
    trainable = {name for name, p in source.named_parameters() if p.requires_grad}
    assert all("lora" in n or "backbone" not in n for n in trainable) == (train == "lora")
    torch.testing.assert_close(source.lease(torch.tensor([3, 1])).vectors, got[[3, 1]], atol=1e-5, rtol=1e-5)
    assert torch.equal(torch.cat(list(source.tiles())), got)


@pytest.mark.parametrize("train", ["frozen", "full", "lora"])
@pytest.mark.parametrize("mode", MODES)
def test_a_loss_falls_in_every_mode(mode, train):
    if train == "lora":
        pytest.importorskip("peft")
    source = live(mode=mode, train=train, lora={"rank": 4} if train == "lora" else None)
    goal = torch.randn(6, 16, generator=torch.Generator().manual_seed(9))
    before = {n: p.detach().clone() for n, p in source.encoder.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in source.parameters() if p.requires_grad], 3e-3)
    losses = []
    for _ in range(15):
        lease = source.lease(torch.arange(1, 7))
        loss = (lease.vectors - goal).square().mean()
        optimizer.zero_grad()
        loss.backward()
        lease.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    changed = {n for n, p in source.encoder.named_parameters() if not torch.equal(p, before[n])}
    assert bool(changed) == (train != "frozen")


@pytest.mark.parametrize("train", ["full", "frozen"])
def test_item_tokens_are_trained_through_the_cache(train):
    source = live(mode="cache", pooling="item-token", item_token_n=2, train=train)
    _, gradients, _ = step(source, torch.tensor([1, 5, 7]))
    assert gradients["encoder.item_tokens"].abs().sum() > 0
    assert any("backbone" in name for name in gradients) == (train == "full")


def test_without_adapter_the_vectors_are_the_models_own():
    encoder = PackedEncoder(tiny("llama"), "last")
    source = LiveText(encoder, random_texts())
    assert source.width == 32 and torch.equal(source.table()[[0, 13]], torch.zeros(2, 32))


def test_new_items_are_encoded_like_old_ones(llama):
    backbone = load_backbone(llama, "fp32", CPU)
    encoder, texts = live_encoder(backbone, [None, PROMPT + "Up"], "mean", PROMPT)
    source = LiveText(encoder, texts, None, adapter(32))
    old = source.table()
    source.extend(
        more_texts(backbone, encoder, [PROMPT + "Up", None, PROMPT + "Ran"], 266),
        torch.tensor([1, 0, 1]).bool(),
    )
    new = source.table()
    assert source.n_items == 4
    torch.testing.assert_close(new[:2], old)
    torch.testing.assert_close(new[2], new[1])
    assert not torch.allclose(new[4], new[1])


def test_truncation_leaves_room_for_item_tokens(tmp_path, save_model):
    backbone = load_backbone(save_model(tmp_path, "bert"), "fp32", CPU)
    encoder, texts = live_encoder(
        backbone, [None, "x" * 600], "item-token", max_tokens=10_000, item_token_n=3
    )
    assert texts.lengths.tolist() == [0, 509]
    assert encoder(texts.flat.long(), texts.lengths[1:]).shape == (1, 32)


def test_the_prefix_is_the_prompts_even_if_all_titles_begin_alike(llama):
    backbone = load_backbone(llama, "fp32", CPU)
    sequences = [backbone.tokenizer(f"{PROMPT}The {x}")["input_ids"] for x in ("one", "other")]
    prefix = prompt_prefix(backbone, PROMPT, sequences)
    assert backbone.tokenizer.decode(prefix) == PROMPT
    assert without_prefix(sequences, prefix).lengths.tolist() == [7, 9]


def test_a_source_is_rebuilt_from_its_specification_and_weights():
    source = live(pooling="item-token", item_token_n=2)
    spec = json.loads(json.dumps(source.spec()))
    other = empty_live(spec)
    other.load_state_dict(source.state_dict())
    torch.testing.assert_close(other.table(), source.table(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("train", ["full", "lora"])
@pytest.mark.parametrize("pooling", ["mean", "last", "item-token"])
def test_the_trained_llm_is_an_ordinary_folder(tmp_path, llama, pooling, train):
    if train == "lora":
        pytest.importorskip("peft")
    from transformers import AutoModel

    backbone = load_backbone(llama, "fp32", CPU)
    n = 2 if pooling == "item-token" else 0
    encoder, texts = live_encoder(
        backbone, [t and PROMPT + t for t in TITLES], pooling, PROMPT, item_token_n=n
    )
    source = LiveText(encoder, texts, train=train, lora={"rank": 4} if train == "lora" else None)
    with torch.no_grad():
        for name, p in source.named_parameters():
            if p.requires_grad:
                p += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name)))
    raw = source.raw_table()
    save_item_llm(
        encoder, merged_state(encoder.backbone.model), backbone.tokenizer, tmp_path / "llm", 256, PROMPT
    )
    loaded = AutoModel.from_pretrained(tmp_path / "llm")
    assert loaded.config._attn_implementation != "hllm_packed"
    again, _ = live_encoder(
        load_backbone(tmp_path / "llm", "fp32", CPU), [PROMPT + "Up"], pooling, PROMPT, item_token_n=n
    )
    copy_item_tokens(again, tmp_path / "llm")
    torch.testing.assert_close(LiveText(again, texts).raw_table(), raw, atol=1e-5, rtol=1e-5)
    assert (tmp_path / "llm" / "modules.json").is_file() == (n == 0)
    if pooling == "last":
        config = json.loads((tmp_path / "llm/1_Pooling/config.json").read_text())
        assert config["pooling_mode_lasttoken"] and not config["pooling_mode_mean_tokens"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("mode", ["checkpoint", "cache"])
def test_modes_agree_on_a_gpu_under_autocast(mode):
    tokens = torch.arange(1, 13)
    plain, other = (step(live(mode=m).cuda(), tokens.cuda(), bf16=False) for m in ("graph", mode))
    assert_same(plain, other, 1e-4)


def test_sentence_transformers_gives_the_same_vectors(tmp_path, llama):
    st = pytest.importorskip("sentence_transformers")
    backbone = load_backbone(llama, "fp32", CPU)
    encoder, texts = live_encoder(backbone, [None, PROMPT + "Up", PROMPT + "Ran"], "last", PROMPT)
    source = LiveText(encoder, texts)
    save_item_llm(
        encoder, merged_state(encoder.backbone.model), backbone.tokenizer, tmp_path / "llm", 256, PROMPT
    )
    got = st.SentenceTransformer(str(tmp_path / "llm"), device="cpu").encode(["Up", "Ran"])
    np.testing.assert_allclose(got, source.raw_table()[1:].numpy(), atol=1e-5)


@pytest.mark.parametrize(("name", "value"), [("train", "half"), ("mode", "swap")])
def test_unknown_settings_are_refused(name, value):
    with pytest.raises(ConfigError, match="valid"):
        LiveText(PackedEncoder(tiny("llama")), random_texts(), **{name: value})


def test_lora_without_peft_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(ConfigError, match=r"hllm\[peft\]"):
        LiveText(PackedEncoder(tiny("llama")), random_texts(), train="lora")
