"""The model card of a run folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from hllm.artifacts import write_json
from hllm.errors import ArtifactError
from hllm.evaluate.metrics import as_document
from hllm.items.embed import embed
from hllm.pipeline import Recommender, evaluate_run
from hllm.report.card import write_card
from hllm.testing import world

SMALL = {"d_model": 16, "n_layers": 1, "n_heads": 2, "epochs": 1, "batch_tokens": 200}


@pytest.mark.parametrize(
    ("preset", "settings", "line"),
    [
        ("sasrec", {}, "Items are known by learned ID embeddings alone."),
        (
            "demo",
            {"item_llm": "random", "adapter_hidden": 16},
            "Item vectors: random, frozen, through a learned adapter, plus learned ID embeddings.",
        ),
    ],
)
def test_a_card_says_what_the_run_is(tmp_path: Path, preset: str, settings: dict, line: str) -> None:
    data = world(n_users=20)
    if preset == "demo":
        embed(data, "random", progress=False)
    run = tmp_path / "run"
    recommender = Recommender.from_preset(preset, **SMALL, **settings)
    recommender.fit(data, out=run, device="cpu", progress=False)
    own, others = evaluate_run(recommender, bootstrap=20)
    write_json(run / "metrics.json", as_document(own, others))
    assert write_card(run) == run / "README.md"
    text = (run / "README.md").read_text(encoding="utf-8")
    assert text.startswith(f"# {preset} on world\n")
    assert "20 users, 40 items" in text or f"20 users, {data.n_candidates} items" in text
    assert line in text
    assert "those of epoch 1, the best by validation ndcg@10" in text
    for split in ("test", "validation"):
        assert own[split].result_line() in text
        assert others[split]["popularity"].result_line() in text
    assert f'from_pretrained("{run.as_posix()}")' in text


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"config\.json not found"):
        write_card(tmp_path)
    assert not list(tmp_path.iterdir())
