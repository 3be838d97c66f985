"""Amazon Books to sequences: `vocab.pkl`, `train_data.pkl`, `val_data.pkl`, `test_data.pkl`.

Takes Stanford's ratings_Books.csv or ByteDance's amazon_books.csv, whichever lies here.

    python preprocess_amazon_books.py --data_dir . --output_dir ./processed --max_seq_len 200 --min_seq_len 5
"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # where rechub_scripts lies

from rechub_scripts.entry import entrance
from rechub_scripts.preprocess import amazon_books

if __name__ == "__main__":
    raise SystemExit(entrance(partial(amazon_books, Path(__file__).resolve().parent)))
