"""A cluster's processes encode; the store is the one that a single process makes."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from hllm.errors import ConfigError
from hllm.items.embed import embed
from hllm.items.resolve import resolve
from hllm.items.store import batches
from hllm.items.store.encode import Encoding
from hllm.testing import world
from hllm.testing.llms import write_model


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("llms") / "tiny", seed=7)


def test_the_work_of_a_cluster_can_be_sent_and_encodes_as_here(llm: Path) -> None:
    data = world(n_users=10, n_items=20)
    job = resolve(data, str(llm)).job("cpu")
    assert job.remote is not None
    texts = [job.texts[key] for key in sorted(job.texts)]
    sent = pickle.loads(pickle.dumps(Encoding(job.remote, texts)))
    encoder = job.load()
    encoder.prepare(texts)
    every, batch, work = np.arange(len(texts)), np.array([3, 0, 7]), sent.start("cpu")
    assert np.array_equal(work((every, batch)), encoder.encode(batch))
    chunk = np.array([9, 3, 0, 7, 5])
    np.testing.assert_allclose(work((chunk, np.array([1, 4]))), encoder.encode(np.array([3, 5])), atol=1e-5)


def test_an_engine_that_there_is_none_of_is_refused(llm: Path) -> None:
    with pytest.raises(ConfigError, match=r"engine 'spark'.*local, ray"):
        embed(world(n_users=10, n_items=20), str(llm), engine="spark")


@pytest.mark.slow
def test_ray_makes_the_same_store(llm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setattr(batches, "CHUNK", 200)  # a few chunks
    stores = []
    for name in ("local", "ray"):
        data = world(n_users=10, n_items=20)
        data.save(tmp_path / name)
        made = embed(type(data).load(tmp_path / name), str(llm), device="cpu", batch_size=4, engine=name)
        assert made.stats["encoded"] == 22
        stores.append(made)
    assert np.array_equal(stores[0].vectors, stores[1].vectors)
    assert stores[0].spec["key"] == stores[1].spec["key"]
