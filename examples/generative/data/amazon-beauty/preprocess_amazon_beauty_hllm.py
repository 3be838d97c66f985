"""Texts and item embeddings of Amazon Beauty: `item_text_map.pkl`, `item_embeddings_{model}.pt`.

Takes meta_Beauty.json, plain or gzipped. Run preprocess_amazon_beauty.py first.

    python preprocess_amazon_beauty_hllm.py --model_type tinyllama --device cuda
"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # where rechub_scripts lies

from rechub_scripts.entry import entrance
from rechub_scripts.vectors import amazon_beauty

if __name__ == "__main__":
    raise SystemExit(entrance(partial(amazon_beauty, Path(__file__).resolve().parent)))
