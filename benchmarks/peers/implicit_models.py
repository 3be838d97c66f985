"""implicit's ALS and item-kNN (cosine), by their defaults. The validation event is an input, and not trained on."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from common import Events, K, Result, main
from scipy.sparse import csr_matrix


def matrix(events: Events, chosen: np.ndarray) -> csr_matrix:
    """Users x items: 1 for what a user met."""
    shape = int(events.users.max()) + 1, events.n_items + 1
    pairs = np.unique(np.stack((events.users[chosen], events.items[chosen])), axis=1)
    return csr_matrix((np.ones(pairs.shape[1], dtype=np.float32), (pairs[0], pairs[1])), shape=shape)


def trained(events: Events, model: Any, settings: str, **options: Any) -> Result:
    started = time.monotonic()
    model.fit(matrix(events, ~events.held), show_progress=False)
    seconds = round(time.monotonic() - started, 2)
    inputs = matrix(events, np.ones(len(events.users), dtype=bool))
    items, scores = model.recommend(
        events.test, inputs[events.test], N=K, filter_already_liked_items=True, **options
    )
    rows = [
        (int(user), int(item), rank)
        for user, own, values in zip(events.test, items, scores, strict=True)
        for rank, (item, value) in enumerate(zip(own, values, strict=True), 1)
        if item > 0 and value > np.finfo(np.float32).min / 2
    ]
    return rows, {"fit_seconds": seconds, "settings": settings}


def als(events: Events) -> Result:
    from implicit.als import AlternatingLeastSquares

    model = AlternatingLeastSquares(random_state=0, use_gpu=False)
    settings = f"defaults: {model.factors} factors, {model.iterations} iterations"
    return trained(events, model, settings, recalculate_user=True)


def item_knn(events: Events) -> Result:
    from implicit.nearest_neighbours import CosineRecommender

    model = CosineRecommender()
    return trained(events, model, f"defaults: cosine, K {model.K}")


if __name__ == "__main__":
    main({"als": als, "item-knn": item_knn})
