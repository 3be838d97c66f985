"""A search for settings, on validation alone.

Settings come from Optuna's tree-structured Parzen estimator (Akiba et al., 2019); trials that lag behind the others are
stopped early. A search is a folder: `search.json` says what is searched, `trials.jsonl` holds a row for each trial that
ended. A search that was killed loses the trial at hand, and the same call goes on with the rest of its time.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hllm.artifacts import locked, read_json, read_jsonl, write_json, write_jsonl
from hllm.config import Config, without_effect
from hllm.data.folder import own_names
from hllm.errors import ArtifactError, ConfigError, HLLMError
from hllm.hardware import is_out_of_memory, release_memory
from hllm.models.hllm import Network
from hllm.runs.settle import settled
from hllm.runs.train import check_trainable, make_trainer
from hllm.train.config import chosen

if TYPE_CHECKING:
    from hllm.data.dataset import Dataset
    from hllm.items.embeddings import ItemEmbeddings

SEARCH, TRIALS = "search.json", "trials.jsonl"
RANDOM_TRIALS = 8  # before the estimator has enough to go by; the first has the settings as they are
KEPT = 66.0  # percent of the trials, by their best value after as many validations, that go on
LOOKS = 6  # validations before a trial may be stopped
FAILURES = 3  # of the first trials, after which the search ends with their error

COLUMNS = ("trial", "settings", "value", "epoch", "epochs", "state", "seconds", "values")
Row = dict[str, Any]  # of COLUMNS


@dataclass(frozen=True)
class Search:
    """What is searched: `make(settings)` is the configuration that training with these settings has."""

    data: Dataset
    make: Callable[[Mapping[str, Any]], Config]
    embeddings: ItemEmbeddings | None
    device: torch.device
    fixed: frozenset[str] = frozenset()  # settings that somebody has given, by short name

    def space(self) -> dict[str, tuple[Any, ...]]:
        """By setting, ("log" | "linear", low, high) or ("one of", *values); its value as it is lies within."""
        base = settled(self.data, self.make({}))
        n_heads, t = base.users.n_heads or 1, base.training
        longest = int(np.diff(np.asarray(self.data.offsets)).max(initial=1))
        found: dict[str, tuple[Any, ...]] = {
            "learning_rate": _around("log", t.learning_rate, 5e-4, 5e-3),
            "weight_decay": _around("log", t.weight_decay, 0.01, 0.5) if t.weight_decay else (),
            "batch_tokens": _with(chosen(t.batch_tokens), (1024, 2048, 4096, 8192)),
            "dropout": _around("linear", base.users.dropout, 0.1, 0.6),
            "d_model": _with(base.users.d_model, tuple(d for d in (64, 128, 256) if d % n_heads == 0)),
            "n_layers": _with(base.users.n_layers, (1, 2, 4, 6)),
            "mask_prob": _around("linear", base.users.mask_prob, 0.0, 0.3),
            "label_smoothing": _around("linear", base.objective.label_smoothing, 0.0, 0.2),
        }
        if isinstance(t.max_len, int):
            found["max_len"] = _with(t.max_len, tuple(n for n in (50, 100, 200, 400, 800) if n < 2 * longest))
        idle = {name.rpartition(".")[2] for name in without_effect(base)} | set(self.fixed)
        if base.users.d_model is None:
            idle |= {"d_model"}
        if base.users.user_llm is not None:
            idle |= {"d_model", "n_layers"}
        return {
            name: v for name, v in found.items() if name not in idle and len(v) > (v[:1] == ("one of",)) + 1
        }

    def identity(self) -> dict[str, Any]:
        """What two searches must share for one to go on with the other."""
        key = None if self.embeddings is None else self.embeddings.spec["key"]
        base = settled(self.data, self.make({})).model_dump()
        space = {name: list(values) for name, values in self.space().items()}
        return {"dataset": self.data.fingerprint, "embeddings": key, "config": base, "space": space}


def check_optuna() -> None:
    """Raise ConfigError where the package that searches is missing."""
    try:
        import optuna  # noqa: F401
    except ImportError as err:
        raise ConfigError("hllm tune needs the package optuna: pip install 'hllm[tune]'") from err


def tune(search: Search, folder: Path, seconds: float, say: Callable[[str], None]) -> list[Row]:
    """Train one trial after the other until `seconds` are spent in them, those of earlier calls included.

    Returns the rows of all trials. `say` is told what begins and what came of it. Raises ConfigError where optuna is
    missing or nothing is left to search, ArtifactError where `folder` holds another search, and the trials' own
    error where nothing trains.
    """
    check_optuna()
    search.data.verify()
    check_trainable(search.data, search.data.train_histories())
    if not search.space():
        raise ConfigError(
            "every setting that hllm tune searches is given; leave some out of --set and --config"
        )
    with locked(folder):
        rows = _begin(folder, search)
        study = _study(search, rows)
        while (left := seconds - sum(row["seconds"] for row in rows)) > 0:
            settings, trial = _ask(study, search, len(rows))
            say(f"trial {len(rows)}: {shown(settings)}")
            row = _train(search, settings, trial, len(rows), time.monotonic() + left)
            error = row.pop("error", None)
            rows.append(row)
            _tell(study, trial, row)
            write_jsonl(folder / TRIALS, rows)
            if error is not None and len(rows) >= FAILURES and best_of(rows) is None:
                raise error
            best = best_of(rows)
            what = "no value" if row["value"] is None else f"{row['value']:.4f} at epoch {row['epoch']}"
            if best is not None:
                what += f", best {best['value']:.4f} (trial {best['trial']})"
            say(f"trial {row['trial']} {row['state']}: {what}; {row['seconds']:.0f} s")
    return rows


def best_of(rows: list[Row]) -> Row | None:
    """The trial with the best validation, also one that was stopped: training goes the same way up to there."""
    return max((row for row in rows if row["value"] is not None), key=lambda row: row["value"], default=None)


def shown(settings: Mapping[str, Any]) -> str:
    """Settings as `--set` takes them."""
    return " ".join(f"{name}={value}" for name, value in settings.items())


def _around(scale: str, value: float, low: float, high: float) -> tuple[Any, ...]:
    return scale, min(low, value), max(high, value)


def _with(value: int | None, values: tuple[int, ...]) -> tuple[Any, ...]:
    return ("one of", *sorted({*values, *(() if value is None else (value,))}))


def _begin(folder: Path, search: Search) -> list[Row]:
    """The rows of the search in `folder`; a new one is begun where there is none."""
    wanted = search.identity()
    if not (folder / SEARCH).is_file():
        if names := sorted(own_names(folder)):
            raise ArtifactError(f"{folder} holds something else ({names[0]}, ...); choose another --out")
        write_json(folder / SEARCH, wanted)
        return []
    try:
        saved, rows = read_json(folder / SEARCH), read_jsonl(folder / TRIALS)
    except ArtifactError as err:
        raise ArtifactError(f"{err}; remove {folder} to search anew, or choose another --out") from err
    if saved != wanted:
        raise ArtifactError(
            f"{folder} holds another search (other data, embeddings or settings); choose another --out"
        )
    if any(not isinstance(row, dict) or not set(COLUMNS) <= set(row) for row in rows):
        raise ArtifactError(
            f"{folder / TRIALS} has rows that are no trials; remove {folder} to search anew, or choose another --out"
        )
    return rows


def _distributions(search: Search) -> dict[str, Any]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    found: dict[str, Any] = {}
    for name, (kind, *values) in search.space().items():
        if kind == "one of":
            found[name] = CategoricalDistribution(values)
        else:
            found[name] = FloatDistribution(values[0], values[1], log=kind == "log")
    return found


def _study(search: Search, rows: list[Row]) -> Any:
    """A study that knows the earlier trials."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    pruner = optuna.pruners.PercentilePruner(KEPT, n_startup_trials=RANDOM_TRIALS // 2, n_warmup_steps=LOOKS)
    study = optuna.create_study(direction="maximize", pruner=pruner)
    spaces = _distributions(search)
    for row in rows:
        ended = optuna.trial.create_trial(
            params=row["settings"], distributions=spaces, state=_state(row), value=_value(row),
            intermediate_values=dict(enumerate(row["values"])),
        )  # fmt: skip
        study.add_trial(ended)
    return study


def _ask(study: Any, search: Search, number: int) -> tuple[dict[str, Any], Any]:
    """The settings of the trial `number`, by its own seed: one that was lost comes again."""
    import optuna

    flat = settled(search.data, search.make({}))
    if number == 0:  # the settings as they are, so that the search never ends below them
        own = {
            name: value
            for section in (flat.items, flat.users, flat.objective, flat.training)
            for name, value in section
        }
        study.enqueue_trial({name: own[name] for name in search.space()})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a multivariate sampler calls itself experimental
        study.sampler = optuna.samplers.TPESampler(
            seed=flat.training.seed + number, n_startup_trials=RANDOM_TRIALS, multivariate=True
        )
    trial = study.ask(_distributions(search))
    return {name: _rounded(value) for name, value in trial.params.items()}, trial


def _rounded(value: Any) -> Any:
    """A number with three digits: what is printed, typed and trained is the same."""
    return float(f"{value:.3g}") if isinstance(value, float) else value


def _state(row: Row) -> Any:
    from optuna.trial import TrialState

    return {"complete": TrialState.COMPLETE, "failed": TrialState.FAIL}.get(row["state"], TrialState.PRUNED)


def _value(row: Row) -> float | None:
    return row["value"] if row["state"] == "complete" else None


def _tell(study: Any, trial: Any, row: Row) -> None:
    study.tell(trial, _value(row), state=_state(row))


class _Ended(Exception):
    """A trial is not trained to its end; says how it is called then."""


def _train(search: Search, settings: Mapping[str, Any], trial: Any, number: int, deadline: float) -> Row:
    """Train one trial until it is done, lags behind, or the time is up; nothing of it is written."""
    started, values = time.monotonic(), list[float]()
    row: Row = {"trial": number, "settings": dict(settings), "state": "complete"}
    config = settled(search.data, search.make(settings))
    every = config.training.eval_every
    try:
        trainer = make_trainer(
            search.data, search.data.train_histories(), config, search.embeddings, search.device, None, True
        )
        validate = trainer.validate

        def watched(network: Network) -> dict[str, float]:
            found = validate(network)
            value = found[config.training.valid_metric]
            values.append(value)
            trial.report(value, len(values) - 1)
            if time.monotonic() > deadline:
                raise _Ended("cut by the budget")
            if trial.should_prune():
                raise _Ended("stopped, behind the others")
            return found

        trainer.validate = watched
        trainer.fit()
    except _Ended as end:
        row["state"] = str(end)
    except (HLLMError, RuntimeError, MemoryError) as err:
        if not isinstance(err, HLLMError) and not is_out_of_memory(err):
            raise
        row |= {"state": "failed", "error": err}
    finally:
        release_memory()
    best = int(np.argmax(values)) if values and row["state"] != "failed" else None
    return row | {
        "value": None if best is None else values[best],
        "epoch": None if best is None else min((best + 1) * every, chosen(config.training.epochs)),
        "epochs": min(len(values) * every, chosen(config.training.epochs)),
        "seconds": round(math.ceil(100 * (time.monotonic() - started)) / 100, 2),
        "values": values,
    }
