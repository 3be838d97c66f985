"""A language model as user model: users of a pack never see each other, or what comes later."""

import pytest
import torch
import torch.nn.functional as F

from hllm.errors import ArtifactError, ConfigError
from hllm.items.encoders.packed import PackedEncoder
from hllm.items.encoders.tokens import Ragged
from hllm.items.source.live import LiveText
from hllm.models.llm import LLMUserModel, load_llm
from hllm.packing import Batch, make_rows, offsets_of
from hllm.testing.llms import config, tiny

LENGTHS = torch.tensor([5, 3, 1, 12])
T = int(LENGTHS.sum())


def rows():
    tokens = torch.ones(T, dtype=torch.long)
    return make_rows(Batch(torch.arange(4), tokens, tokens, tokens, offsets_of(LENGTHS)))


def vectors(width=32):
    return torch.randn(T, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", ["llama", "qwen3", "mistral", "gemma2", "gemma3", "gpt2"])
def test_each_user_is_as_alone(kind):
    """The model's own forward on one user's vectors is the reference."""
    hidden = LLMUserModel(tiny(kind), 32)(vectors(), rows())
    for got, x in zip(hidden.split(LENGTHS.tolist()), vectors().split(LENGTHS.tolist()), strict=True):
        expected = tiny(kind)(inputs_embeds=x.unsqueeze(0)).last_hidden_state[0]
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_d16_changing_a_user_leaves_the_others_and_his_past():
    model = LLMUserModel(tiny("llama"), 16)
    x = vectors(16)
    before = model(x, rows())
    assert before.shape == (T, 16)
    x[6] += 1.0  # the second of user 1
    after = model(x, rows())
    same = torch.arange(T)[(torch.arange(T) < 6) | (torch.arange(T) >= 8)]
    torch.testing.assert_close(after[same], before[same])
    assert not torch.allclose(after[6:8], before[6:8], atol=1e-4)


def test_the_loss_of_a_joint_step_falls_and_no_word_is_kept():
    torch.manual_seed(0)
    model = LLMUserModel(tiny("qwen3", dropout=0.1), 16).train()
    x, goal = vectors(16).requires_grad_(), torch.randn(T, 16)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 3e-3)
    losses = []
    for _ in range(20):
        loss = (model(x, rows()) - goal).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    assert x.grad.abs().sum(1).min() > 0
    assert model.backbone.model.get_input_embeddings().weight.shape == (1, 32)


@pytest.mark.parametrize("mode", ["graph", "checkpoint", "cache"])
def test_item_llm_and_user_llm_learn_together(mode):
    """Two tiny LLMs, a sampled loss by cosine: the loss falls and both models change."""
    generator = torch.Generator().manual_seed(4)
    ids = [[]] + [torch.randint(2, 258, (n,), generator=generator).tolist() for n in (3, 9, 5, 7, 2, 8, 4, 6)]
    encoder = PackedEncoder(tiny("llama", dropout=0.1), "item-token", [40, 41, 42, 43], item_token_n=1)
    source = LiveText(encoder, Ragged.of(ids), mode=mode, chunk_tokens=16).train()
    torch.manual_seed(0)
    user = LLMUserModel(tiny("qwen3", seed=1, dropout=0.1), source.width).train()
    before = [p.detach().clone() for m in (source, user) for p in m.parameters()]
    events = torch.randint(0, 8, (T + 1,), generator=generator)
    optimizer = torch.optim.AdamW([*source.parameters(), *user.parameters()], 2e-3)
    losses = []
    for _ in range(20):
        lease = source.lease(torch.arange(1, 9))
        hidden = user(lease.vectors[events[:-1]], rows())
        scores = F.normalize(hidden, dim=-1) @ F.normalize(lease.vectors, dim=-1).T / 0.07
        loss = F.cross_entropy(scores, events[1:])
        optimizer.zero_grad()
        loss.backward()
        lease.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    after = [p for m in (source, user) for p in m.parameters()]
    changed = sum(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert changed > 0.9 * len(before)


def test_from_scratch_or_pretrained(tmp_path):
    tiny("llama").save_pretrained(tmp_path)
    trained, scratch = load_llm(tmp_path), load_llm(tmp_path, "scratch")
    assert torch.equal(trained.norm.weight, scratch.norm.weight) and trained.training
    assert not torch.equal(trained.layers[0].mlp.up_proj.weight, scratch.layers[0].mlp.up_proj.weight)
    assert load_llm(config("qwen3").to_dict(), "scratch").config.model_type == "qwen3"


def test_what_cannot_be_a_user_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="both directions"):
        LLMUserModel(tiny("bert"), 32)
    with pytest.raises(ConfigError, match="valid: pretrained, scratch"):
        load_llm(tmp_path, "random")
    with pytest.raises(ConfigError, match="scratch"):
        load_llm({"model_type": "llama"})
    with pytest.raises(ArtifactError, match="user LLM"):
        load_llm(tmp_path)
