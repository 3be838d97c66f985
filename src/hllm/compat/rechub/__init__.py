"""torch-rechub's HLLM and HSTU under its own names: padded modules that give what the originals give.

`state="rechub"` (default) is release 0.9, `state="rechub-doc"` the commit its document describes.
They are for comparison and for moving over; `hllm.models` is what to train with.
"""

from hllm.compat.rechub.bias import RelativeBucketedTimeAndPositionBias, RelPosBias, VocabMask
from hllm.compat.rechub.checkpoint import load_model, rank_windows, score_windows
from hllm.compat.rechub.data import SeqDataset, SequenceDataGenerator, pad_sequences
from hllm.compat.rechub.hllm import HLLMModel, HLLMTransformerBlock
from hllm.compat.rechub.hstu import HSTUBlock, HSTULayer, HSTULayerDoc, HSTUModel
from hllm.compat.rechub.losses import InBatchNCELoss, NCELoss
from hllm.compat.rechub.metrics import (
    hit_score,
    mrr_score,
    ndcg_score,
    precision_score,
    recall_score,
    topk_metrics,
)
from hllm.compat.rechub.trainer import EarlyStopper, SeqTrainer

__all__ = [
    "EarlyStopper",
    "HLLMModel",
    "HLLMTransformerBlock",
    "HSTUBlock",
    "HSTULayer",
    "HSTULayerDoc",
    "HSTUModel",
    "InBatchNCELoss",
    "NCELoss",
    "RelPosBias",
    "RelativeBucketedTimeAndPositionBias",
    "SeqDataset",
    "SeqTrainer",
    "SequenceDataGenerator",
    "VocabMask",
    "hit_score",
    "load_model",
    "mrr_score",
    "ndcg_score",
    "pad_sequences",
    "precision_score",
    "rank_windows",
    "recall_score",
    "score_windows",
    "topk_metrics",
]
