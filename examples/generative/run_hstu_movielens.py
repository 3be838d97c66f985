"""Train torch-rechub's HSTU on MovieLens-1M, over padded windows as the original does.

python examples/generative/run_hstu_movielens.py --epoch 5 --device cuda
"""

from functools import partial
from pathlib import Path

from rechub_scripts.entry import entrance
from rechub_scripts.train_hstu import movielens

if __name__ == "__main__":
    raise SystemExit(entrance(partial(movielens, Path(__file__).resolve().parent)))
