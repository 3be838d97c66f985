"""A history of tens of thousands of events."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
import numpy as np, polars as pl, torch
from hllm.config import load_config
from hllm.data.dataset import Dataset
from hllm.pipeline import Recommender
from hllm.runs.build import build_network

torch.set_num_threads(1)
frame = pl.DataFrame({"user_id": np.arange(300) // 10, "item_id": np.arange(300) % 100})
data = Dataset.from_tables(frame.with_columns(timestamp=pl.int_range(pl.len())), time_unit="index")
config = load_config("sasrec", overrides={"d_model": 8, "n_layers": 1, "n_heads": 1, "max_len": "all"})
recommender = Recommender(config, build_network(data, config, None).eval(), data)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "linux" else 1 << 20)

recommender.recommend(history=[[1, 2]], k=3)
before = peak()
print(len(recommender.recommend(history=[np.arange(40_000) % 90], k=3)), peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no module resource")
def test_memory_grows_with_the_length_of_a_history_and_not_with_its_square() -> None:
    """40,000 events: a matrix of all pairs is 6.4 GB in float32."""
    found = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    n, mib = map(int, found.stdout.split())
    assert n == 3
    assert mib < 1024
