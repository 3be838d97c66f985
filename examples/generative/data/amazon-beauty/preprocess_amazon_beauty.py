"""Amazon Beauty to sequences: `vocab.pkl`, `train_data.pkl`, `val_data.pkl`, `test_data.pkl`.

Takes reviews_Beauty_5.json, plain or gzipped.

    python preprocess_amazon_beauty.py
"""

from functools import partial
from pathlib import Path

from hllm.compat.scripts.entry import entrance
from hllm.compat.scripts.preprocess import amazon_beauty

if __name__ == "__main__":
    raise SystemExit(entrance(partial(amazon_beauty, Path(__file__).resolve().parent)))
