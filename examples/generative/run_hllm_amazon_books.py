"""Train HLLM on Amazon Books, with torch-rechub's model on packed histories.

    python examples/generative/run_hllm_amazon_books.py --model_type tinyllama --batch_size 64 --epochs 5 --device cuda

Writes `model.pth` (torch-rechub's parameter names) and a run folder that `hllm recommend` reads.
"""

from functools import partial
from pathlib import Path

from rechub_scripts.entry import entrance
from rechub_scripts.train_hllm import amazon_books

if __name__ == "__main__":
    raise SystemExit(entrance(partial(amazon_books, Path(__file__).resolve().parent)))
