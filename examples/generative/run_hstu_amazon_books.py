"""Train torch-rechub's HSTU on Amazon Books, over padded windows as the original does.

python examples/generative/run_hstu_amazon_books.py --epoch 3 --device cuda
"""

from functools import partial
from pathlib import Path

from rechub_scripts.entry import entrance
from rechub_scripts.train_hstu import amazon_books

if __name__ == "__main__":
    raise SystemExit(entrance(partial(amazon_books, Path(__file__).resolve().parent)))
