"""hllm: hierarchical LLM recommendation.

The public names below are imported when first used, so `import hllm` is quick and loads
neither torch nor transformers nor polars.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hllm import models as models
    from hllm.config import Config as Config
    from hllm.config import load_config as load_config
    from hllm.data.dataset import Dataset as Dataset
    from hllm.data.prepare import load_dataset as load_dataset
    from hllm.errors import HLLMError as HLLMError
    from hllm.evaluate.metrics import Metrics as Metrics
    from hllm.items.embed import embed as embed
    from hllm.items.embeddings import ItemEmbeddings as ItemEmbeddings
    from hllm.pipeline import Recommender as Recommender

__version__ = "0.1.0"

# name -> module that defines it
_PUBLIC = {
    "Config": "hllm.config",
    "Dataset": "hllm.data.dataset",
    "HLLMError": "hllm.errors",
    "ItemEmbeddings": "hllm.items.embeddings",
    "Metrics": "hllm.evaluate.metrics",
    "Recommender": "hllm.pipeline",
    "embed": "hllm.items.embed",
    "load_config": "hllm.config",
    "load_dataset": "hllm.data.prepare",
}
_SUBMODULES = ("errors", "models")

__all__ = [
    "Config",
    "Dataset",
    "HLLMError",
    "ItemEmbeddings",
    "Metrics",
    "Recommender",
    "__version__",
    "embed",
    "load_config",
    "load_dataset",
    "models",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        value = getattr(importlib.import_module(_PUBLIC[name]), name)
    elif name in _SUBMODULES:
        value = importlib.import_module(f"hllm.{name}")
    else:
        raise AttributeError(f"module 'hllm' has no attribute {name!r}")
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC, *_SUBMODULES})
