"""Amazon Beauty to sequences: `vocab.pkl`, `train_data.pkl`, `val_data.pkl`, `test_data.pkl`.

Takes reviews_Beauty_5.json, plain or gzipped.

    python preprocess_amazon_beauty.py
"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # where rechub_scripts lies

from rechub_scripts.entry import entrance
from rechub_scripts.preprocess import amazon_beauty

if __name__ == "__main__":
    raise SystemExit(entrance(partial(amazon_beauty, Path(__file__).resolve().parent)))
