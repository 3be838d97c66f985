"""How long a training takes on a CPU, roughly: enough to warn before a model made for a GPU is trained there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hllm import hardware
from hllm.config import Config, load_config
from hllm.progress import duration
from hllm.train.config import chosen

if TYPE_CHECKING:
    from hllm.data.dataset import Dataset
    from hllm.items.embeddings import ItemEmbeddings

RATE = 25e9  # operations a second and core, in float32: servers of today reach 20 to 40 in training
LONG = 600.0  # seconds, above which it is worth saying


def seconds_on_cpu(data: Dataset, config: Config, embeddings: ItemEmbeddings | None) -> float:
    """Seconds of training by a settled `config`, without validation and to its last epoch: 6 operations a weight and
    target, the softmax's included."""
    users, training = config.users, config.training
    width = users.d_model or (0 if embeddings is None else embeddings.vectors.shape[1])
    classes = data.n_candidates
    if config.objective.loss in ("sampled", "in_batch"):
        classes = min(classes, config.objective.n_negatives or 512)
    targets = float(data.train_mask.sum()) * training.passes * chosen(training.epochs)
    per_target = 6.0 * (12 * width**2 * users.n_layers + classes * width)
    return targets * per_target / (RATE * hardware.cpu_count())


def cpu_warning(data: Dataset, config: Config, embeddings: ItemEmbeddings | None) -> str | None:
    """What to say before a training of many minutes on a CPU, with what to type instead; None for a short one."""
    seconds = seconds_on_cpu(data, config, embeddings)
    if seconds < LONG:
        return None
    smaller = "fewer epochs, or a smaller model: --set d_model=128 --set n_layers=2"
    if config.items.item_llm is not None and config.preset != "demo":
        quick = load_config("demo", overrides={"item_llm": config.items.item_llm})
        smaller = (
            f"--preset demo is made for a CPU (about {duration(seconds_on_cpu(data, quick, embeddings))})"
        )
    return (
        f"preset {config.preset} is made for a GPU; on this CPU its {config.training.epochs} epochs take about "
        f"{duration(seconds)}. {smaller[0].upper()}{smaller[1:]}"
    )
