"""Train HLLM on MovieLens-1M, with torch-rechub's model on packed histories.

    python examples/generative/run_hllm_movielens.py --model_type tinyllama --epoch 5 --batch_size 512 --device cuda

Writes `model.pth` (torch-rechub's parameter names) and a run folder that `hllm recommend` reads.
"""

from functools import partial
from pathlib import Path

from rechub_scripts.entry import entrance
from rechub_scripts.train_hllm import movielens

if __name__ == "__main__":
    raise SystemExit(entrance(partial(movielens, Path(__file__).resolve().parent)))
