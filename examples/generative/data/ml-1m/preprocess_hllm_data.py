"""Texts and item embeddings of MovieLens-1M: `movie_text_map.pkl`, `item_embeddings_{model}.pt`.

Run preprocess_ml_hstu.py first.

    python preprocess_hllm_data.py --model_type tinyllama --device cuda
    python preprocess_hllm_data.py --model_type smollm2-135m --device cpu
"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # where rechub_scripts lies

from rechub_scripts.entry import entrance
from rechub_scripts.vectors import movielens

if __name__ == "__main__":
    raise SystemExit(entrance(partial(movielens, Path(__file__).resolve().parent)))
