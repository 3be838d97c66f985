"""MovieLens-1M to sequences: `vocab.pkl`, `train_data.pkl`, `val_data.pkl`, `test_data.pkl` in `processed/`.

ratings.dat, movies.dat and users.dat may lie beside this script or in `data/ml-1m/` below it;
otherwise they are downloaded.

    python preprocess_ml_hstu.py
    python preprocess_ml_hstu.py --state rechub-doc      # the reference document's filters and split
"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # where rechub_scripts lies

from rechub_scripts.entry import entrance
from rechub_scripts.preprocess import movielens

if __name__ == "__main__":
    raise SystemExit(entrance(partial(movielens, Path(__file__).resolve().parent)))
