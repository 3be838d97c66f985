"""Texts and item embeddings of Amazon Books: `item_text_map.pkl`, `item_embeddings_{model}.pt`.

Run preprocess_amazon_books.py first.

    python preprocess_amazon_books_hllm.py --data_dir . --output_dir ./processed --model_type tinyllama --device cuda
"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # where rechub_scripts lies

from rechub_scripts.entry import entrance
from rechub_scripts.vectors import amazon_books

if __name__ == "__main__":
    raise SystemExit(entrance(partial(amazon_books, Path(__file__).resolve().parent)))
