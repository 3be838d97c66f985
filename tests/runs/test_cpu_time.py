"""A training of many minutes on a CPU is said before, with what to type instead."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hllm import hardware
from hllm.config import load_config
from hllm.data.dataset import Dataset
from hllm.runs.cpu_time import cpu_warning, seconds_on_cpu
from hllm.testing import world


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """What MovieLens-1M is to the estimate, on two cores."""
    monkeypatch.setattr(hardware, "cpu_count", lambda: 2)
    data = world()
    return replace(data, meta={**data.meta, "n_candidates": 3416}, train_mask=np.ones(988_129, bool))


def test_small_and_made_for_a_cpu(large: Dataset) -> None:
    assert cpu_warning(world(), load_config("hllm-lite", overrides={"epochs": 40}), None) is None
    hundred_thousand = replace(
        large, meta={**large.meta, "n_candidates": 1682}, train_mask=np.ones(98_114, bool)
    )
    assert cpu_warning(hundred_thousand, load_config("demo"), None) is None
    assert 40 < seconds_on_cpu(hundred_thousand, load_config("demo"), None) < 300  # two minutes, measured


def test_a_preset_for_a_gpu_names_the_other(large: Dataset) -> None:
    line = cpu_warning(large, load_config("hllm-lite", overrides={"epochs": 40}), None)
    assert line is not None
    assert line.startswith("preset hllm-lite is made for a GPU; on this CPU its 40 epochs take about 7 h")
    assert "--preset demo is made for a CPU (about " in line
    line = cpu_warning(large, load_config("sasrec", overrides={"epochs": 40}), None)
    assert line is not None and "--preset demo" not in line and "--set d_model=128" in line


def test_sampled_losses_cost_less(large: Dataset) -> None:
    wide = replace(large, meta={**large.meta, "n_candidates": 1_000_000})
    full, sampled = (
        seconds_on_cpu(wide, load_config("sasrec", overrides={"loss": loss, "epochs": 40}), None)
        for loss in ("cross_entropy", "sampled")
    )
    assert sampled < full / 10
