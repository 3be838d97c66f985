"""RecBole's SASRec by its defaults: full softmax, validation MRR@10, its leave-one-out split of the same events."""

from __future__ import annotations

import time

import numpy as np
import torch
from common import Events, K, Result, main

# Names that it uses and NumPy 2 took away.
for name, kind in (("float_", np.float64), ("complex_", np.complex128), ("unicode_", np.str_)):
    if not hasattr(np, name):
        setattr(np, name, kind)


def sasrec(events: Events) -> Result:
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.data.interaction import Interaction
    from recbole.model.sequential_recommender import SASRec
    from recbole.trainer import Trainer
    from recbole.utils import init_seed

    # A stand-in for the test event, which it splits off, and which is not among these events.
    folder = events.folder / "own"
    folder.mkdir()
    order = np.arange(len(events.users))
    times = np.zeros(len(order))
    first = np.searchsorted(events.users, events.users, side="left")
    times = order - first
    with (folder / "own.inter").open("w") as file:
        file.write("user_id:token\titem_id:token\ttimestamp:float\n")
        for user, item, moment in zip(events.users, events.items, times, strict=True):
            file.write(f"{user}\t{item}\t{moment}\n")
        ends = np.searchsorted(events.users, events.test, side="right") - 1
        for user, end in zip(events.test, ends, strict=True):
            file.write(f"{user}\t{events.items[end]}\t{times[end] + 1}\n")
    config = Config(
        model="SASRec", dataset="own",
        config_dict={
            "data_path": str(events.folder), "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
            "train_neg_sample_args": None,
            "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full"},
            "use_gpu": events.device != "cpu", "checkpoint_dir": str(events.folder / "saved"), "show_progress": False,
            "seed": 0,
        },
    )  # fmt: skip
    init_seed(0, True)
    dataset = create_dataset(config)
    train, valid, _ = data_preparation(config, dataset)
    model = SASRec(config, train.dataset).to(config["device"])
    trainer = Trainer(config, model)
    started = time.monotonic()

    def look(epoch: int, _: float) -> None:
        if time.monotonic() - started > events.seconds:
            raise TimeoutError(epoch)

    note = ""
    try:
        trainer.fit(train, valid, verbose=False, saved=True, show_progress=False, callback_fn=look)
    except TimeoutError as err:
        note = f"stopped by the clock after {int(str(err)) + 1} epochs"
    seconds = time.monotonic() - started
    saved = torch.load(trainer.saved_model_file, weights_only=False, map_location=config["device"])
    model.load_state_dict(saved["state_dict"])
    model.eval()
    note = note or f"{saved['epoch'] + 1} epochs at the best"
    longest, rows = config["MAX_ITEM_LIST_LENGTH"], []
    known = dataset.field2token_id["item_id"]
    names = dataset.field2id_token["item_id"]
    for part in np.array_split(events.test, max(1, len(events.test) // 256)):
        inputs, lengths = (
            torch.zeros(len(part), longest, dtype=torch.long),
            torch.zeros(len(part), dtype=torch.long),
        )
        seen = []
        for row, user in enumerate(part):
            a, b = np.searchsorted(events.users, (user, user + 1))
            tokens = [known[str(item)] for item in events.items[a:b]]
            seen.append(tokens)
            window = tokens[-longest:]
            inputs[row, : len(window)] = torch.tensor(window)
            lengths[row] = len(window)
        batch = Interaction({"item_id_list": inputs, "item_length": lengths}).to(config["device"])
        with torch.no_grad():
            scores = model.full_sort_predict(batch).view(len(part), -1).cpu()
        scores[:, 0] = -torch.inf
        for user, tokens, values in zip(part, seen, scores, strict=True):
            values[tokens] = -torch.inf
            for rank, item in enumerate(values.topk(K).indices.tolist(), 1):
                rows.append((int(user), int(names[item]), rank))
    report = {
        "fit_seconds": round(seconds, 1),
        "settings": "defaults, full softmax",
        "epochs": saved["epoch"] + 1,
        "note": note,
    }
    return rows, report


if __name__ == "__main__":
    main({"sasrec": sasrec})
