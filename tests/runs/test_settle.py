"""What the catalogue decides where the configuration leaves it open."""

from __future__ import annotations

import pytest

from hllm.config import Config, load_config
from hllm.data.dataset import Dataset
from hllm.errors import ConfigError
from hllm.runs import settle as module
from hllm.runs.folder import as_of_now
from hllm.runs.settle import choices, length, settled, targets_of_epoch
from hllm.testing import world

FEW = {"loss": "sampled", "label_smoothing": 0.0, "n_negatives": 1, "batch_tokens": 2, "max_len": 2}


@pytest.fixture(scope="module")
def data() -> Dataset:
    return world(n_users=40, n_items=40)


def config(**settings: object) -> Config:
    return load_config("sasrec", overrides={"d_model": 16, "n_heads": 2, "n_layers": 1, **settings})


@pytest.mark.parametrize(
    ("settings", "factor", "expected"),
    [
        (FEW, 6, "lazy"),
        (FEW, 9, "dense"),  # the batch's items, yet the catalogue is too small for lazy rows to pay
        (FEW | {"optimizer": "adam"}, 6, "dense"),
        (FEW | {"id_updates": "dense"}, 6, "dense"),
        (FEW | {"batch_tokens": 40}, 6, "dense"),
        ({}, 0, "dense"),  # full softmax
        ({"id_updates": "lazy"}, 6, "lazy"),
        ({"preset": "hllm-lite", "id_embedding": False}, 6, None),
    ],
)
def test_id_updates_by_the_catalogue(
    data: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, object],
    factor: int,
    expected: str | None,
) -> None:
    monkeypatch.setattr(module, "LAZY_FACTOR", factor)
    preset = settings.get("preset", "sasrec")
    given = {k: v for k, v in settings.items() if k != "preset"}
    chosen = settled(
        data, config(**given) if preset == "sasrec" else load_config(str(preset), overrides=given)
    )
    assert chosen.training.id_updates == expected
    assert settled(data, chosen) == chosen


def test_the_choice_is_said_in_a_line(data: Dataset) -> None:
    said = choices(data, settled(data, config(**FEW)))
    assert said is not None and "the batch's items" in said and "id_updates=lazy" in said
    assert choices(data, settled(data, config())) is None
    many = choices(data, settled(data, config(loss="sampled", label_smoothing=0.0)))
    assert many == "n_negatives=512 draws of 40 items: loss=cross_entropy compares with each item once"


def test_lazy_adam_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"id_updates='lazy' needs optimizer='adamw'.*no closed form"):
        config(optimizer="adam", id_updates="lazy")


def test_a_run_of_before_updated_every_row() -> None:
    """hllm had one way then, so a run whose identity says nothing is one of dense updates."""
    old = config().model_dump()
    assert old["training"]["id_updates"] is None
    assert as_of_now({"config": old})["config"]["training"]["id_updates"] == "dense"


@pytest.mark.parametrize(
    ("targets", "batch", "epochs", "patience"),
    [
        (600, 2048, 600, 100),  # a step an epoch: the epochs make up for it
        (12_888, 2048, 86, 14),
        (83_290, 2048, 60, 10),
        (277_876, 8192, 60, 10),
        (20_000_000, 8192, 60, 10),
    ],
)
def test_batch_and_length_follow_the_number_of_targets(
    data: Dataset, monkeypatch: pytest.MonkeyPatch, targets: int, batch: int, epochs: int, patience: int
) -> None:
    monkeypatch.setattr(module, "targets_of_epoch", lambda data, config: targets)
    training = settled(data, config()).training
    assert (training.batch_tokens, training.epochs, training.patience) == (batch, epochs, patience)
    assert f"{batch:,} targets" in length(settled(data, config()))


def test_what_is_given_stays(data: Dataset) -> None:
    given = settled(data, config(epochs=7)).training
    assert (given.epochs, given.patience, given.batch_tokens) == (7, None, 2048)  # all seven are wanted
    given = settled(data, config(batch_tokens=100, patience=3, eval_every=2)).training
    assert (given.batch_tokens, given.patience) == (100, 3)
    assert settled(data, config(eval_every=5)).training.patience == round(
        settled(data, config()).training.patience / 5
    )
    live = load_config("hllm-small", overrides={"batch_tokens": None, "item_llm": "minilm"})
    assert settled(data, live).training.batch_tokens == 8192


def test_targets_of_an_epoch(data: Dataset) -> None:
    lengths = [len(h) - 1 for h in map(list, _histories(data))]
    assert targets_of_epoch(data, config(max_len=3)) == sum(min(n, 3) for n in lengths if n > 0)
    assert targets_of_epoch(data, config(max_len=3, windows="every", passes=2)) == 2 * sum(lengths)


def _histories(data: Dataset) -> list[list[int]]:
    packed = data.train_histories()
    return [packed.tokens[a:b].tolist() for a, b in zip(packed.offsets, packed.offsets[1:], strict=False)]
