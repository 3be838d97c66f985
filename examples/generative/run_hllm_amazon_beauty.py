"""Train HLLM on Amazon Beauty, with torch-rechub's model on packed histories.

    python examples/generative/run_hllm_amazon_beauty.py --model_type tinyllama --device cuda

Writes `model.pth` (torch-rechub's parameter names) and a run folder that `hllm recommend` reads.
"""

from functools import partial
from pathlib import Path

from rechub_scripts.entry import entrance
from rechub_scripts.train_hllm import amazon_beauty

if __name__ == "__main__":
    raise SystemExit(entrance(partial(amazon_beauty, Path(__file__).resolve().parent)))
