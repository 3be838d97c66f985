"""Windows beside torch-rechub's own preprocessing scripts on MovieLens-100K, window for window.

Its scripts are in its repository and not in the package: point TORCH_RECHUB_SOURCE at a clone.
"""

from __future__ import annotations

import importlib.util
import os
import pickle
import subprocess
from pathlib import Path

import numpy as np
import pytest

from hllm.compat.rechub import histories, windows
from hllm.formats import rechub as folder

SOURCE = os.environ.get("TORCH_RECHUB_SOURCE")
U_DATA = Path(__file__).resolve().parents[4] / "shared" / "data" / "ml-100k" / "u.data"
SCRIPT = "examples/generative/data/ml-1m/preprocess_ml_hstu.py"
COMMITS = {"rechub": "HEAD", "rechub-doc": "c712aff"}

pytestmark = [
    pytest.mark.rechub,
    pytest.mark.slow,
    pytest.mark.skipif(
        SOURCE is None, reason="needs TORCH_RECHUB_SOURCE, a clone of datawhalechina/torch-rechub"
    ),
    pytest.mark.skipif(not U_DATA.is_file(), reason=f"needs MovieLens-100K at {U_DATA}"),
]


def theirs(tmp_path: Path, state: str, max_seq_len: int, seed: int) -> Path:
    """Run their script's class at the state's commit over ML-100K in ML-1M's layout."""
    pytest.importorskip("pandas")
    pytest.importorskip("tqdm", reason="their script imports it")
    text = subprocess.run(
        ["git", "-C", str(SOURCE), "show", f"{COMMITS[state]}:{SCRIPT}"], check=True, capture_output=True
    ).stdout
    (tmp_path / "script.py").write_bytes(text)
    spec = importlib.util.spec_from_file_location("their_script", tmp_path / "script.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "ratings.dat").write_text(U_DATA.read_text().replace("\t", "::"))
    (tmp_path / "movies.dat").write_text("1::Toy Story (1995)::Animation\n")
    made = module.MovieLensHSTUPreprocessor(str(tmp_path), str(tmp_path / "processed"))
    made.max_seq_len = max_seq_len
    np.random.seed(seed)
    if state == "rechub-doc":
        made.preprocess()
    else:  # its `preprocess` begins with a download
        ratings = made.filter_data(made.load_data()[0])
        vocab = made.create_vocab(ratings)
        made.save_data(
            made.generate_leave_last_out_samples(*made.build_user_sequences(ratings), vocab), vocab
        )
    return tmp_path / "processed"


@pytest.mark.parametrize("max_seq_len", [20, 200])
@pytest.mark.parametrize("state", ["rechub", "rechub-doc"])
def test_ml_100k_is_identical_window_for_window(tmp_path, state, max_seq_len):
    made = theirs(tmp_path, state, max_seq_len, seed=3)
    users, items, ratings, times = np.loadtxt(U_DATA, dtype=np.int64).T
    found = histories.movielens(users, items, times, ratings, state)
    packed = (found.tokens, found.times, found.offsets, max_seq_len)
    parts = windows.leave_last_out(*packed) if state == "rechub" else windows.user_ratio(*packed, seed=3)
    ours = tmp_path / "ours"
    folder.write_vocab(ours, found.item_ids.tolist(), "nested" if state == "rechub" else "flat")
    for split, part in parts.items():
        folder.write_windows(ours, split, part)
        mine, original = (pickle.loads((f / f"{split}_data.pkl").read_bytes()) for f in (ours, made))
        assert list(mine) == list(original)
        for name, array in original.items():
            assert mine[name].dtype == array.dtype and np.array_equal(mine[name], array), (split, name)
    assert pickle.loads((ours / "vocab.pkl").read_bytes()) == pickle.loads((made / "vocab.pkl").read_bytes())
    again = histories.from_folder(made)
    assert len(again.tokens) == len(found.tokens) and again.leave_last_out == (state == "rechub")
