"""Several processes give what one gives: losses, gradients, weights and metrics, for every strategy."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hllm.config import load_config
from hllm.errors import ConfigError
from hllm.losses.views import BatchItems, WholeCatalogue
from hllm.packing import Batch, offsets_of, padded_view, part_of
from hllm.runs.build import build_network
from hllm.testing import world
from hllm.testing.llms import write_model
from hllm.train.parallel import check_strategy
from hllm.train.trainer import Trainer

HERE = Path(__file__).parent
SMALL = {
    "d_model": 16, "n_layers": 1, "n_heads": 2, "max_len": 8, "epochs": 2, "batch_tokens": 60,
    "learning_rate": 5e-3, "dropout": 0.0, "mask_prob": 0.0, "seed": 3,
    "precision": "fp32",
}  # fmt: skip
# Ten users of ten, so that with three processes parts and blocks are uneven, and some empty.
FROZEN = {
    "ids": {"preset": "sasrec", "settings": SMALL, "users": 10},
    "in_batch": {"preset": "sasrec", "settings": {**SMALL, "loss": "in_batch", "mask_history": True}, "users": 10},
    "lazy": {
        "preset": "sasrec", "users": 40,
        "settings": {
            **SMALL, "loss": "sampled", "n_negatives": 2, "batch_tokens": 5, "epochs": 1, "id_updates": "lazy",
        },
    },
}  # fmt: skip


def live_case(llm: Path, **settings: Any) -> dict[str, Any]:
    """Item LLM and user LLM trained together, as ByteDance's, tiny."""
    own = {
        "item_llm": str(llm), "user_llm": None, "d_model": 32, "adapter_hidden": 24, "n_layers": 2, "n_heads": 4,
        "n_negatives": 8,
        "epochs": 2, "batch_tokens": 60, "learning_rate": 5e-3, "seed": 3, "grad_clip": None,
        "precision": "fp32",
    }  # fmt: skip
    return {"preset": "hllm", "users": 10, "settings": {**own, **settings}}


def launch(tmp_path: Path, n_ranks: int, cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Results of the cases, run by `n_ranks` processes of this machine."""
    out = tmp_path / "results.json"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(n_ranks):
        own = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": n_ranks,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        environment = os.environ | {name: str(value) for name, value in own.items()}
        command = [
            sys.executable,
            str(HERE / "parallel_job.py"),
            str(out),
            *(json.dumps(case) for case in cases),
        ]
        log = (tmp_path / f"{rank}.log").open("w")
        processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
    codes = [process.wait(timeout=280) for process in processes]
    logs = "".join((tmp_path / f"{rank}.log").read_text()[-3000:] for rank in range(n_ranks))
    assert codes == [0] * n_ranks, logs
    return json.loads(out.read_text())  # type: ignore[no-any-return]


def alone(case: dict[str, Any]) -> dict[str, Any]:
    """The same of this process."""
    spec = importlib.util.spec_from_file_location("parallel_job", HERE / "parallel_job.py")
    assert spec is not None and spec.loader is not None
    job = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(job)
    return json.loads(json.dumps(job.run(case)))  # type: ignore[no-any-return]


def check(found: dict[str, Any], wanted: dict[str, Any], tolerance: float = 1e-5) -> None:
    assert found["loss"] == pytest.approx(wanted["loss"], rel=tolerance)
    assert found["gradients"].keys() == wanted["gradients"].keys()
    for kind in ("gradients", "weights"):
        for name, values in wanted[kind].items():
            largest = max(np.abs(values).max(), 1e-3)
            assert np.abs(np.subtract(found[kind][name], values)).max() <= 20 * tolerance * largest, (
                kind,
                name,
            )
    assert found["n_users"] == wanted["n_users"] == len(wanted["ranks"])
    assert found["ranks"] == wanted["ranks"]
    assert found["metrics"] == pytest.approx(wanted["metrics"], abs=1e-6)
    assert found["intervals"] == wanted["intervals"]
    assert found["best"]["epoch"] == wanted["best"]["epoch"]


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("llms") / "tiny", seed=7, dropout=0.0)


@pytest.fixture(scope="module")
def live(llm: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two LLMs to train, and what one process makes of them."""
    case = live_case(llm, grad_clip=0.5)
    return case, alone(case)


def test_case_d18_three_processes_train_and_evaluate_as_one(
    tmp_path: Path, llm: Path, live: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    """Ten users, three processes; and they embed a catalogue, and go on with what one process began."""
    parts = [tmp_path / name for name in ("one", "three")]
    for part in parts:
        world(n_users=10, n_items=30).save(part)
    begun = stopped_training(tmp_path / "run", FROZEN["ids"])
    cases = [*FROZEN.values(), live[0]]
    texts = [{"embed": str(part), "item_llm": str(llm)} for part in parts]
    *trained, stored, ended = launch(tmp_path, 3, [*cases, texts[1], begun])
    for found, wanted in zip(trained, [*map(alone, FROZEN.values()), live[1]], strict=True):
        check(found, wanted)
    assert stored == alone(texts[0])
    check_end(ended, begun)


def check_end(ended: dict[str, Any], begun: dict[str, Any]) -> None:
    """It ended as one process would have, without a break."""
    whole = alone({**begun, "out": None, "resume": False})
    assert ended["ranks"] == whole["ranks"] and ended["best"]["epoch"] == whole["best"]["epoch"]
    for name, values in whole["weights"].items():
        assert ended["weights"][name] == pytest.approx(values, abs=1e-4)


def stopped_training(folder: Path, case: dict[str, Any]) -> dict[str, Any]:
    """A training of one process that stopped in its second epoch; the case that goes on with it."""
    case = {**case, "out": str(folder), "resume": True}

    class Stop(Exception):
        pass

    def epoch(self: Trainer, *arguments: Any) -> None:
        if self.state.epoch == 1:
            self.save()
            raise Stop
        one_epoch(self, *arguments)

    one_epoch = Trainer._epoch
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr(Trainer, "_epoch", epoch)
        alone(case)
    return case


@pytest.mark.parametrize("n_ranks", [2, 3])
def test_processes_hold_parts_of_the_weights(
    tmp_path: Path, live: tuple[dict[str, Any], dict[str, Any]], n_ranks: int
) -> None:
    """With three, some part of a batch is empty: its layers' gradients are reduced in the same order nevertheless."""
    parted = {"strategy": "fsdp", "item_gradients": "cache", "item_chunk_tokens": 64}
    (found,) = launch(tmp_path, n_ranks, [{**live[0], "settings": {**live[0]["settings"], **parted}}])
    check(found, live[1])


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3"])
def test_deepspeed(tmp_path: Path, llm: Path, strategy: str) -> None:
    pytest.importorskip("deepspeed")
    case = live_case(llm, grad_clip=0.5)
    (found,) = launch(tmp_path, 2, [{**case, "settings": {**case["settings"], "strategy": strategy}}])
    check(found, alone(case))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fsdp", "zero1", "zero2", "zero3"])
def test_any_strategy_goes_on_with_what_one_process_began(tmp_path: Path, llm: Path, strategy: str) -> None:
    if strategy != "fsdp":
        pytest.importorskip("deepspeed")
    begun = stopped_training(tmp_path / "run", live_case(llm, grad_clip=0.5))
    (ended,) = launch(tmp_path, 2, [{**begun, "settings": {**begun["settings"], "strategy": strategy}}])
    check_end(ended, begun)


@pytest.mark.parametrize("n_ranks", [1, 2, 3, 7])
def test_parts_are_the_whole(n_ranks: int) -> None:
    lengths = torch.tensor([5, 1, 9, 2, 2])
    n, g = int(lengths.sum()), torch.Generator().manual_seed(0)
    tokens, targets = (torch.randint(1, 12, (n,), generator=g) for _ in range(2))
    batch = Batch(
        torch.arange(5) + 3, tokens, tokens + 100, targets, offsets_of(lengths), n_targets=torch.tensor(19.0)
    )
    counts = np.ones(13, dtype=np.int64)
    counts[0] = 0
    objective = load_config("sasrec", overrides={"loss": "in_batch"}).objective
    for views in (WholeCatalogue(counts, objective, 0), BatchItems(counts, objective, 0)):
        view = views.view(batch, (0, 0))
        parts = [part_of(batch, view, rank, n_ranks) for rank in range(n_ranks)]
        for name in ("users", "tokens", "times", "targets", "host_lengths"):
            whole = batch.lengths if name == "host_lengths" else getattr(batch, name)
            assert torch.equal(torch.cat([getattr(part, name) for part, _ in parts]), whole)
        for name in ("inputs", "targets"):
            assert torch.equal(torch.cat([getattr(v, name) for _, v in parts]), getattr(view, name))
        for part, own in parts:
            assert part.n_targets == 19 and part.offsets[-1] == part.n_tokens
            assert own.everyone is not None and torch.equal(own.everyone.targets, view.targets)
            assert part.n_tokens <= -(-n // n_ranks) + 9
            longer = padded_view(own, 30, 40)
            assert longer.inputs.shape == longer.targets.shape == (30,)
            assert longer.everyone is not None and int((longer.everyone.users >= 0).sum()) == n


@pytest.mark.parametrize(
    ("settings", "reason"),
    [({}, "none to train; use strategy=ddp"), ({"user_model": "llm", "user_llm": None}, "ema_decay=0")],
)
def test_what_cannot_be_spread_is_refused(settings: dict[str, Any], reason: str) -> None:
    config = load_config(
        "sasrec",
        overrides={**{k: SMALL[k] for k in ("d_model", "n_layers", "n_heads", "epochs")}, **settings},
    )
    network = build_network(world(), config, None)
    with pytest.raises(ConfigError, match=reason):
        check_strategy(network, config.training, "fsdp")
