"""Train torch-rechub's HSTU on Amazon Books, over padded windows as the original does.

python examples/generative/run_hstu_amazon_books.py --epoch 3 --device cuda
"""

from functools import partial
from pathlib import Path

from hllm.compat.scripts.entry import entrance
from hllm.compat.scripts.train_hstu import amazon_books

if __name__ == "__main__":
    raise SystemExit(entrance(partial(amazon_books, Path(__file__).resolve().parent)))
