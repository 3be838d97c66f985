"""Tiny random language models of many families, whose tokens influence each other strongly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers as tf
from torch import Tensor

SIZE = {"vocab_size": 258, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
FFN = {"intermediate_size": 64, "initializer_range": 0.2}
SMALL = {**SIZE, **FFN, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
GPT2 = {"vocab_size": 258, "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.2}
GROUPED = {**SMALL, "num_key_value_heads": 2}
WINDOWED = {"head_dim": 8, "sliding_window": 6}


# Classes of configurations and their arguments by family: grouped heads, sliding windows and soft-capping where the
# family has them.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", GROUPED),
    "qwen2": ("Qwen2Config", GROUPED),
    "qwen3": ("Qwen3Config", {**GROUPED, "head_dim": 8}),
    "mistral": ("MistralConfig", {**GROUPED, "sliding_window": 6}),
    "gemma2": ("Gemma2Config", {**GROUPED, **WINDOWED, "attn_logit_softcapping": 5.0}),
    "gemma3": ("Gemma3TextConfig", {**GROUPED, **WINDOWED}),
    "embeddinggemma": ("Gemma3TextConfig", {**GROUPED, **WINDOWED, "use_bidirectional_attention": True}),
    "phi": ("PhiConfig", SMALL),
    "phi3": ("Phi3Config", GROUPED),
    "gpt2": ("GPT2Config", {**GPT2, "bos_token_id": 1, "eos_token_id": 1}),
    "bert": ("BertConfig", SMALL),
    "roberta": ("RobertaConfig", {**SMALL, "pad_token_id": 1, "max_position_embeddings": 130}),
    "modernbert": ("ModernBertConfig", {**SMALL, "local_attention": 8, "cls_token_id": 1, "sep_token_id": 1}),
    "mpnet": ("MPNetConfig", {**SMALL, "pad_token_id": 1}),
    "t5": (
        "T5Config",
        {"vocab_size": 258, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4},
    ),
}


def config(kind: str) -> Any:
    """The configuration of a tiny model of a family."""
    name, arguments = FAMILIES[kind]
    return getattr(tf, name)(**arguments)


def tiny(kind: str, seed: int = 0, dropout: float = 0.0, dtype: torch.dtype = torch.float32) -> Any:
    """A model of `kind` in evaluation mode; every kind of dropout that it has is set to `dropout`."""
    settings = config(kind)
    for name in vars(settings):
        if "dropout" in name or name.endswith(("_pdrop", "_dropout_prob")):
            setattr(settings, name, dropout)
    torch.manual_seed(seed)
    # Older transformers leave soft-capping out where torch's own attention is chosen, in silence.
    capped = {"attn_implementation": "eager"} if kind == "gemma2" else {}
    model = tf.AutoModel.from_config(settings, **capped)
    return (model.get_encoder() if kind == "t5" else model).to(dtype).eval()


def byte_tokenizer(**options: Any) -> tf.PreTrainedTokenizerFast:
    """A tokenizer that knows every text: a token a byte, behind "<pad>" (0) and "<eos>" (1)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<pad>": 0, "<eos>": 1, **{letter: i + 2 for i, letter in enumerate(alphabet)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)


def write_model(
    folder: Path, kind: str = "llama", seed: int = 0, dropout: float = 0.0, **options: Any
) -> Path:
    """A model of `kind` with its tokenizer (`options`) as a transformers folder."""
    model = tiny(kind, seed, dropout)
    model.save_pretrained(folder)
    byte_tokenizer(**({"pad_token": "<pad>", "eos_token": "<eos>"} | options)).save_pretrained(folder)
    return folder


def exact_norms(monkeypatch: Any) -> None:
    """Llama's norm without its cast to float32, for comparisons in float64."""
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    def forward(self: Any, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon)

    monkeypatch.setattr(LlamaRMSNorm, "forward", forward)
