"""Item LLMs with a short name: one table of what is worth knowing before one is downloaded.

Sizes are those of the models' configurations, licences those of their pages on the hub.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

QUANTIZATIONS = ("8bit", "4bit")
_BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "8bit": 1.0, "4bit": 0.5}  # a weight
E5_PROMPT = "passage: "  # E5's, which was trained with one of two prefixes before every text
GEMMA_PROMPT = "title: none | text: "  # EmbeddingGemma's, for documents


@dataclass(frozen=True)
class Known:
    """One model of the table.

    hub         its name on the model hub
    parameters  millions, embeddings included, the head of a language model not
    dim         width of its hidden states
    layers      number of transformer blocks
    licence     as its page on the hub names it
    pooling     what its authors pool by ("mean", "last", "cls"); "mean" for plain language models
    prompt      what its authors put before a document
    """

    hub: str
    parameters: int
    dim: int
    layers: int
    licence: str
    pooling: str = "mean"
    prompt: str = ""

    def gigabytes(self, precision: str) -> float:
        """Memory of the weights, in GB, in "fp32", "bf16", "fp16", "8bit" or "4bit"."""
        return self.parameters * _BYTES[precision] / 1000


APACHE, MIT = "Apache-2.0", "MIT"
_BAICHUAN, _LLAMA2, _LLAMA3 = "Baichuan 2 Community", "Llama 2 Community", "Llama 3 Community"
_LLAMA31, _LLAMA32, _GEMMA = "Llama 3.1 Community", "Llama 3.2 Community", "Gemma"

# fmt: off
_TABLE = {
    "smollm2-135m": Known("HuggingFaceTB/SmolLM2-135M-Instruct", 135, 576, 30, APACHE),
    "smollm2-360m": Known("HuggingFaceTB/SmolLM2-360M-Instruct", 362, 960, 32, APACHE),
    "smollm2-1.7b": Known("HuggingFaceTB/SmolLM2-1.7B-Instruct", 1711, 2048, 24, APACHE),
    "tinyllama": Known("TinyLlama/TinyLlama-1.1B-Chat-v1.0", 1035, 2048, 22, APACHE),
    "tinyllama-base": Known("TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T", 1035, 2048, 22, APACHE),
    "baichuan2": Known("baichuan-inc/Baichuan2-7B-Chat", 6991, 4096, 32, _BAICHUAN),
    "baichuan2-base": Known("baichuan-inc/Baichuan2-7B-Base", 6991, 4096, 32, _BAICHUAN),
    "llama-2-7b": Known("meta-llama/Llama-2-7b-hf", 6607, 4096, 32, _LLAMA2),
    "llama-2-13b": Known("meta-llama/Llama-2-13b-hf", 12852, 5120, 40, _LLAMA2),
    "llama-3-8b": Known("meta-llama/Meta-Llama-3-8B", 7505, 4096, 32, _LLAMA3),
    "llama-3.1-8b": Known("meta-llama/Llama-3.1-8B", 7505, 4096, 32, _LLAMA31),
    "llama-3.2-1b": Known("meta-llama/Llama-3.2-1B", 1236, 2048, 16, _LLAMA32),
    "llama-3.2-3b": Known("meta-llama/Llama-3.2-3B", 3213, 3072, 28, _LLAMA32),
    "qwen2.5-0.5b": Known("Qwen/Qwen2.5-0.5B", 494, 896, 24, APACHE),
    "qwen2.5-1.5b": Known("Qwen/Qwen2.5-1.5B", 1544, 1536, 28, APACHE),
    "qwen2.5-3b": Known("Qwen/Qwen2.5-3B", 3086, 2048, 36, "Qwen Research"),
    "qwen2.5-7b": Known("Qwen/Qwen2.5-7B", 7071, 3584, 28, APACHE),
    "qwen3-0.6b": Known("Qwen/Qwen3-0.6B", 596, 1024, 28, APACHE),
    "qwen3-1.7b": Known("Qwen/Qwen3-1.7B", 1721, 2048, 28, APACHE),
    "qwen3-4b": Known("Qwen/Qwen3-4B", 4022, 2560, 36, APACHE),
    "qwen3-8b": Known("Qwen/Qwen3-8B", 7568, 4096, 36, APACHE),
    "qwen3-embedding-0.6b": Known("Qwen/Qwen3-Embedding-0.6B", 596, 1024, 28, APACHE, "last"),
    "qwen3-embedding-4b": Known("Qwen/Qwen3-Embedding-4B", 4022, 2560, 36, APACHE, "last"),
    "qwen3-embedding-8b": Known("Qwen/Qwen3-Embedding-8B", 7568, 4096, 36, APACHE, "last"),
    "mistral-7b": Known("mistralai/Mistral-7B-v0.3", 7114, 4096, 32, APACHE),
    "gemma-2-2b": Known("google/gemma-2-2b", 2614, 2304, 26, _GEMMA),
    "gemma-2-9b": Known("google/gemma-2-9b", 9242, 3584, 42, _GEMMA),
    "gemma-3-270m": Known("google/gemma-3-270m", 268, 640, 18, _GEMMA),
    "gemma-3-1b": Known("google/gemma-3-1b-pt", 1000, 1152, 26, _GEMMA),
    "embeddinggemma": Known("google/embeddinggemma-300m", 303, 768, 24, _GEMMA, "mean", GEMMA_PROMPT),
    "phi-1.5": Known("microsoft/phi-1_5", 1314, 2048, 24, MIT),
    "phi-2": Known("microsoft/phi-2", 2649, 2560, 32, MIT),
    "phi-3.5-mini": Known("microsoft/Phi-3.5-mini-instruct", 3723, 3072, 32, MIT),
    "phi-4-mini": Known("microsoft/Phi-4-mini-instruct", 3836, 3072, 32, MIT),
    "modernbert-base": Known("answerdotai/ModernBERT-base", 149, 768, 22, APACHE),
    "modernbert-large": Known("answerdotai/ModernBERT-large", 395, 1024, 28, APACHE),
    "bert-base": Known("google-bert/bert-base-uncased", 109, 768, 12, APACHE),
    "bert-large": Known("google-bert/bert-large-uncased", 335, 1024, 24, APACHE),
    "mpnet": Known("sentence-transformers/all-mpnet-base-v2", 109, 768, 12, APACHE),
    "minilm": Known("sentence-transformers/all-MiniLM-L6-v2", 23, 384, 6, APACHE),
    "minilm-l12": Known("sentence-transformers/all-MiniLM-L12-v2", 33, 384, 12, APACHE),
    "e5-small": Known("intfloat/e5-small-v2", 33, 384, 12, MIT, "mean", E5_PROMPT),
    "e5-base": Known("intfloat/e5-base-v2", 109, 768, 12, MIT, "mean", E5_PROMPT),
    "e5-large": Known("intfloat/e5-large-v2", 335, 1024, 24, MIT, "mean", E5_PROMPT),
    "multilingual-e5-small": Known("intfloat/multilingual-e5-small", 118, 384, 12, MIT, "mean", E5_PROMPT),
    "multilingual-e5-base": Known("intfloat/multilingual-e5-base", 278, 768, 12, MIT, "mean", E5_PROMPT),
    "multilingual-e5-large": Known("intfloat/multilingual-e5-large", 560, 1024, 24, MIT, "mean", E5_PROMPT),
    "bge-small": Known("BAAI/bge-small-en-v1.5", 33, 384, 12, MIT, "cls"),
    "bge-base": Known("BAAI/bge-base-en-v1.5", 109, 768, 12, MIT, "cls"),
    "bge-large": Known("BAAI/bge-large-en-v1.5", 335, 1024, 24, MIT, "cls"),
    "bge-m3": Known("BAAI/bge-m3", 568, 1024, 24, MIT, "cls"),
    "gte-small": Known("thenlper/gte-small", 33, 384, 12, MIT),
    "gte-base": Known("thenlper/gte-base", 109, 768, 12, MIT),
    "gte-large": Known("thenlper/gte-large", 335, 1024, 24, MIT),
    "gte-modernbert-base": Known("Alibaba-NLP/gte-modernbert-base", 149, 768, 22, APACHE, "cls"),
    "blair-base": Known("hyp1231/blair-roberta-base", 125, 768, 12, MIT, "cls"),
    "blair-large": Known("hyp1231/blair-roberta-large", 355, 1024, 24, MIT, "cls"),
}
# fmt: on
BACKBONES: Mapping[str, Known] = MappingProxyType(_TABLE)


def own_prompt(model: str) -> str:
    """What the authors of the model with this canonical name put before a document; "" if nothing is known."""
    known = BACKBONES.get(model)
    return known.prompt if known else ""
