"""The presets: settings by short name, over the defaults of the sections (hllm/config.py checks them)."""

from __future__ import annotations

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    # The best frozen-embedding model we know: text and ID, packed whole histories.
    "hllm-lite": {},
    # The same engine on ids alone.
    "sasrec": {"item_llm": None, "id_embedding": True},
    # SASRec's published block instead of ours: positions, ReLU, dot products (Kang and McAuley, 2018), under the
    # full softmax.
    "sasrec-paper": {
        "item_llm": None,
        "id_embedding": True,
        "user_model": "sasrec",
        "d_model": 128,
        "n_layers": 2,
        "n_heads": 1,
        "dropout": 0.2,
        "scorer": "dot",
        "temperature": 1.0,
        "label_smoothing": 0.0,
        "learning_rate": 1e-3,
        "weight_decay": 0.0,
        "grad_clip": None,
        "max_len": 200,
    },
    # HSTU's layers (Zhai et al., 2024) on ids alone: pointwise attention, position and time bias.
    "hstu": {"item_llm": None, "id_embedding": True, "user_model": "hstu", "n_layers": 8, "max_len": 200},
    # A small hllm-lite that a two-core machine trains in a minute or two. A validation reads as many events as an
    # epoch trains on: every other epoch has one, the last one too.
    "demo": {
        "d_model": 128,
        "n_layers": 2,
        "n_heads": 4,
        "whiten_rank": 128,
        "adapter_hidden": 256,
        "dropout": 0.3,
        "learning_rate": 3e-3,
        "epochs": 12,
        "eval_every": 2,
        "batch_tokens": 4096,
        "warmup_ratio": 0.05,
        "min_lr_ratio": 0.01,
        "max_len": 200,
    },
}

# torch-rechub's lightweight HLLM as release 0.9 has it: raw LLM vectors, nothing learned about items.
_RECHUB: dict[str, Any] = {
    "pooling": "last",
    "whiten": "none",
    "adapter_hidden": None,
    "id_embedding": False,
    "user_model": "rechub",
    "d_model": None,
    "n_layers": 2,
    "n_heads": None,
    "dropout": 0.1,
    "max_len": 200,
    "time_embedding": "window_end",
    "temperature": 0.07,
    "learn_temperature": False,
    "loss": "nce",
    "label_smoothing": 0.0,
    "mask_prob": 0.0,
    "windows": "every",
    "optimizer": "adam",
    "epochs": 5,
    # The original trains each target once in every window that holds it, and so has some ten times the
    # targets a step for as many steps; averaged weights and a rate that falls make up for fewer.
    "passes": 9,
    "batch_tokens": 576,
    "learning_rate": 1e-3,
    "weight_decay": 1e-5,
    "warmup_ratio": 0.05,
    "min_lr_ratio": 0.01,
    "grad_clip": None,
    "ema_decay": 0.99,
}
PRESETS["rechub"] = _RECHUB
# The same in the state of its document (commit c712aff): raw dot products, the temperature in the loss.
PRESETS["rechub-doc"] = {
    **_RECHUB,
    "scorer": "dot",
    "temperature": 1.0,
    "loss_temperature": 0.1,
    "passes": 1,  # its loss is at a window's last position: each target once
    "batch_tokens": 512,
    "warmup_ratio": 0.0,
    "min_lr_ratio": 1.0,
    "ema_decay": 0.0,
}

# ByteDance's HLLM (Chen et al., 2024, arXiv:2409.12740): item LLM and user LLM trained together, values of its
# released code. Its sequence length is 50 for Books and 10 for PixelRec, which those datasets bring along.
PRESETS["hllm"] = {
    "item_llm": "tinyllama",
    "train": "full",
    "item_emb_token_n": 1,
    "max_tokens": 256,
    "whiten": "none",
    "adapter_hidden": None,
    "id_embedding": False,
    "user_model": "llm",
    "user_llm": "tinyllama",
    "d_model": None,
    "mask_prob": 0.0,
    "loss": "sampled",
    "n_negatives": 512,
    "negatives_by": "uniform",
    "logq": False,
    "label_smoothing": 0.0,
    "max_len": 50,
    "windows": "pieces",  # its data_split
    "epochs": 5,
    "batch_tokens": 1024,
    "learning_rate": 1e-4,
    "weight_decay": 0.01,
    "warmup_ratio": 0.1,
    "min_lr_ratio": 0.0,
    "grad_clip": 1.0,
    "ema_decay": 0.0,
}
# Its ablation: one learned vector an item in the same user LLM.
PRESETS["llama-id"] = {
    name: value for name, value in PRESETS["hllm"].items()
    if name not in ("train", "item_emb_token_n", "max_tokens", "whiten", "adapter_hidden")
} | {"item_llm": None, "id_embedding": True, "d_model": 2048}  # fmt: skip
# A small item LLM trained with hllm-lite's user model: minutes on a GPU.
PRESETS["hllm-small"] = {
    "item_llm": "minilm",
    "train": "full",
    "n_layers": 4,
    "item_llm_learning_rate": 1e-4,
    "item_llm_weight_decay": 0.01,
    "epochs": 40,
    "batch_tokens": 8192,
    "warmup_ratio": 0.05,
    "min_lr_ratio": 0.01,
    "ema_decay": 0.0,
}
