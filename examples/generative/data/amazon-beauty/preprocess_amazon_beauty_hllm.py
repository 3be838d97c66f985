"""Texts and item embeddings of Amazon Beauty: `item_text_map.pkl`, `item_embeddings_{model}.pt`.

Takes meta_Beauty.json, plain or gzipped. Run preprocess_amazon_beauty.py first.

    python preprocess_amazon_beauty_hllm.py --model_type tinyllama --device cuda
"""

from functools import partial
from pathlib import Path

from hllm.compat.scripts.entry import entrance
from hllm.compat.scripts.vectors import amazon_beauty

if __name__ == "__main__":
    raise SystemExit(entrance(partial(amazon_beauty, Path(__file__).resolve().parent)))
