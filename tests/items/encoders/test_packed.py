"""Packs give what each text gives alone, in values and gradients, for every family; texts never see each other."""

import numpy as np
import pytest
import torch

from hllm.errors import ConfigError
from hllm.items.encoders.backbones import load_backbone
from hllm.items.encoders.pack import Pack
from hllm.items.encoders.packed import PackedEncoder
from hllm.items.encoders.packed_attention import attend_grid, attend_runs
from hllm.items.encoders.packed_model import PackedModel
from hllm.items.encoders.text import LanguageModelEncoder
from hllm.testing.llms import FAMILIES, exact_norms, tiny

PREFIX = [40, 41, 42, 43, 44]
LENGTHS = torch.tensor([3, 17, 1, 9, 26])
CAUSAL = ["llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "phi", "phi3", "gpt2"]
CARRIED = [*CAUSAL, "embeddinggemma", "bert", "roberta", "modernbert"]
PADDED = ["mpnet", "t5"]


def texts(seed=0):
    return torch.randint(2, 258, (int(LENGTHS.sum()),), generator=torch.Generator().manual_seed(seed))


def alone(model, ids, pooling, prefix=PREFIX):
    """Each text by itself through the model's own attention."""
    vectors = []
    for part in ids.split(LENGTHS.tolist()):
        whole = torch.cat((torch.tensor(prefix, dtype=torch.long), part)).unsqueeze(0)
        states = model(input_ids=whole).last_hidden_state[0]
        vectors.append({"mean": states.mean(0), "last": states[-1], "cls": states[0]}[pooling])
    return torch.stack(vectors)


def pad_id(kind):
    return 1 if kind in ("mpnet", "roberta") else 0


@pytest.mark.parametrize("kind", CARRIED + PADDED)
@pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
def test_a_pack_equals_each_text_alone(kind, pooling):
    encoder = PackedEncoder(tiny(kind), pooling, PREFIX, pad_id=pad_id(kind))
    expected = alone(tiny(kind), texts(), pooling)
    got = encoder(texts(), LENGTHS)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", list(FAMILIES))
def test_which_families_are_packed_and_which_share_the_prefix(kind):
    encoder = PackedEncoder(tiny(kind), "mean", PREFIX, pad_id=pad_id(kind))
    assert encoder.backbone.packed == (kind in CARRIED)
    assert bool(encoder.backbone.reason) == (kind in PADDED)
    assert encoder.shares_prefix == (kind in CAUSAL)


@pytest.mark.parametrize("kind", CARRIED)
def test_changing_a_text_leaves_the_others(kind):
    encoder = PackedEncoder(tiny(kind), "mean", PREFIX, pad_id=pad_id(kind))
    before, ids = encoder(texts(), LENGTHS), texts()
    ids[3:20] = texts(1)[3:20]
    after = encoder(ids, LENGTHS)
    assert not torch.allclose(after[1], before[1], atol=1e-3)
    rest = [0, 2, 3, 4]
    torch.testing.assert_close(after[rest], before[rest], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_equals_the_encoder_of_the_store(tmp_path, save_model, kind, pooling):
    folder, titles = (
        save_model(tmp_path, kind),
        ["Say: Up", "Say: Seven samurai", "Say: a", "Say: Heat (1995)"],
    )
    old = LanguageModelEncoder(load_backbone(folder, "fp32", torch.device("cpu")), pooling, "Say: ")
    lengths = torch.from_numpy(old.prepare(titles)) - 5
    expected = old.encode(np.arange(4))
    ids = torch.cat(
        [torch.from_numpy(old.flat[s + 5 : e]) for s, e in zip(old.offsets, old.offsets[1:], strict=False)]
    )
    encoder = PackedEncoder(old.backbone.model, pooling, old.flat[:5].tolist())
    np.testing.assert_allclose(encoder(ids, lengths).detach().numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "bert", "gpt2"])
def test_gradients_equal_those_of_padded_texts(monkeypatch, kind):
    exact_norms(monkeypatch)
    upstream = torch.randn(5, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    gradients = []
    for packed in (True, False):
        model = tiny(kind, dtype=torch.float64)
        if packed:
            vectors = PackedEncoder(model, "mean", PREFIX)(texts(), LENGTHS)
        else:
            parts = [torch.cat((torch.tensor(PREFIX), x)) for x in texts().split(LENGTHS.tolist())]
            ids = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)
            mask = torch.arange(ids.shape[1]) < torch.tensor([len(x) for x in parts]).unsqueeze(1)
            states = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
            vectors = (states * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)
        vectors.backward(upstream)
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, expected in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], expected, atol=1e-9, rtol=1e-9, msg=name)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("kind", ["llama", "gemma2", "bert", "t5"])
def test_item_tokens_follow_each_text_and_are_learned(kind, n):
    encoder = PackedEncoder(tiny(kind), "item-token", PREFIX, item_token_n=n)
    assert encoder.item_tokens.std() < 0.03
    with torch.no_grad():
        encoder.item_tokens.normal_()  # large, so that they matter
    got, model = encoder(texts(), LENGTHS), tiny(kind)
    for vector, part in zip(got, texts().split(LENGTHS.tolist()), strict=True):
        words = model.get_input_embeddings()(torch.cat((torch.tensor(PREFIX), part)))
        inputs = torch.cat((words, encoder.item_tokens)).unsqueeze(0)
        states = model(inputs_embeds=inputs).last_hidden_state[0]
        torch.testing.assert_close(vector, states[-n:].mean(0), atol=2e-5, rtol=1e-5)
    got.sum().backward()
    assert encoder.item_tokens.grad.abs().min(1).values.max() > 0


def test_a_text_may_be_empty_beside_prefix_and_item_tokens():
    encoder = PackedEncoder(tiny("llama"), "item-token", PREFIX, item_token_n=1)
    both = encoder(torch.tensor([9, 8]), torch.tensor([0, 2]))
    torch.testing.assert_close(both[:1], encoder(torch.zeros(0, dtype=torch.long), torch.tensor([0])))


def test_right_aligned_positions_change_only_rounding_with_rotary_embeddings():
    """Compared on the model itself: the encoder leaves them out, and keeps sharing the prefix."""
    encoder = PackedEncoder(tiny("llama"), "mean", PREFIX, align_to=64)
    assert encoder.shares_prefix and encoder.align_to is None
    lengths = LENGTHS.tolist()
    packs = Pack(lengths, texts().device), Pack(lengths, texts().device, starts=64 - LENGTHS)
    assert packs[1].positions[[2, 19]].tolist() == [63, 63]
    left, right = (encoder.backbone(pack, texts()) for pack in packs)
    torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_right_aligned_positions_of_a_table_switch_prefix_sharing_off(kind):
    encoder = PackedEncoder(tiny(kind), "last", PREFIX, align_to=40)
    assert not encoder.shares_prefix
    model = tiny(kind)
    for vector, part in zip(encoder(texts(), LENGTHS), texts().split(LENGTHS.tolist()), strict=True):
        whole = torch.cat((torch.tensor(PREFIX), part)).unsqueeze(0)
        positions = torch.arange(40 - whole.shape[1], 40).unsqueeze(0)
        expected = model(input_ids=whole, position_ids=positions).last_hidden_state[0, -1]
        torch.testing.assert_close(vector, expected, atol=1e-5, rtol=1e-5)


def test_half_precision_under_autocast_stays_near():
    encoder, ids = PackedEncoder(tiny("llama"), "mean", PREFIX), texts()
    with torch.autocast("cpu", torch.bfloat16):
        half = encoder(ids, LENGTHS)
    cosine = torch.cosine_similarity(half, encoder(ids, LENGTHS))
    assert half.dtype == torch.float32 and cosine.min() > 0.999


@pytest.mark.parametrize(("pooling", "n"), [("median", 0), ("item-token", 0), ("mean", 1)])
def test_poolings_that_cannot_be_are_refused(pooling, n):
    with pytest.raises(ConfigError, match="item-token"):
        PackedEncoder(tiny("llama"), pooling, item_token_n=n)


def test_the_model_goes_back_to_its_own_attention_where_packs_fail():
    model = tiny("mpnet")
    before = model.config._attn_implementation
    assert not PackedModel(model, 1).packed
    assert model.config._attn_implementation == before


def test_a_position_bias_is_refused_rather_than_dropped():
    from hllm.items.encoders.packed_attention import attention

    x = torch.zeros(1, 2, 4, 8)
    pack = Pack([4], x.device)
    with pytest.raises(NotImplementedError, match="position_bias"):
        attention(torch.nn.Identity(), x, x, x, pack=pack, position_bias=x)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("window", [None, 16])
@pytest.mark.parametrize("causal", [True, False])
def test_the_variable_length_kernel_equals_the_portable_form(causal, window):
    from hllm.items.encoders.packed_attention import attend_varlen, varlen_works

    assert varlen_works(0)
    pack = Pack([8, 3, 100, 257, 1], torch.device("cuda"), prefix=8 if causal else 0)
    q, k, v = (
        torch.randn(369, h, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for h in (8, 2, 2)
    )
    up = torch.randn_like(q)
    got, want = (
        (out, *torch.autograd.grad(out, (q, k, v), up))
        for out in (f(q, k, v, pack, causal, window, 0.125) for f in (attend_varlen, attend_grid))
    )
    for a, b in zip(got, want, strict=True):
        assert (a - b).float().norm() / b.float().norm() < 2e-2


def by_sequence(q, k, v, plan, edges, scale):
    """What the variable-length kernel computes, one sequence after the other; queries end where keys end."""
    out = []
    for i in range(len(plan.cu_q) - 1):
        a = q[plan.cu_q[i] : plan.cu_q[i + 1]].transpose(0, 1)
        b, c = (x[plan.cu_k[i] : plan.cu_k[i + 1]].repeat_interleave(2, 1).transpose(0, 1) for x in (k, v))
        n, m = a.shape[1], b.shape[1]
        assert n <= plan.max_q and m <= plan.max_k
        ahead = torch.arange(m - n, m).unsqueeze(1) - torch.arange(m)
        before, after = (edge if edge >= 0 else m for edge in edges)
        seen = (ahead <= before) & (ahead >= -after)
        out.append(((a @ b.mT * scale).masked_fill(~seen, -torch.inf).softmax(-1) @ c).transpose(0, 1))
    return torch.cat(out)


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize(("prefix", "causal"), [(5, True), (0, True), (0, False)])
def test_the_plan_for_the_variable_length_kernel(monkeypatch, prefix, causal, window):
    from hllm.items.encoders import packed_attention

    monkeypatch.setattr(packed_attention, "_varlen_call", by_sequence)
    pack, generator = (
        Pack([5, 9, 1, 30], torch.device("cpu"), prefix=prefix),
        torch.Generator().manual_seed(0),
    )
    q, k, v, up = (torch.randn(45, h, 8, generator=generator).double().requires_grad_() for h in (4, 2, 2, 4))
    got, want = (
        (out, *torch.autograd.grad(out, (q, k, v), up.detach()))
        for out in (
            f(q, k, v, pack, causal, window, 0.3) for f in (packed_attention.attend_varlen, attend_grid)
        )
    )
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize(("prefix", "causal"), [(0, True), (5, True), (0, False)])
def test_neighbours_of_one_length_attend_as_in_the_grid(prefix, causal, window) -> None:
    pack = Pack([5, 7, 7, 7, 4, 4, 1, 1, 1], torch.device("cpu"), prefix=prefix)
    assert [n for _, n, *_ in pack.runs] == [1, 3, 2, 3]
    q, k, v = (torch.randn(pack.total, heads, 8, dtype=torch.float64) for heads in (6, 2, 2))
    got = attend_runs(q, k, v, pack, causal, window, 0.3)
    torch.testing.assert_close(got, attend_grid(q, k, v, pack, causal, window, 0.3))
