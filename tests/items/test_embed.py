"""Rows belong to their items (D12), nothing is encoded twice, NaN is never kept (D13)."""

import os
import re
import shutil
import signal
import subprocess
import sys
import warnings

import numpy as np
import polars as pl
import pytest

from hllm import artifacts
from hllm.data.dataset import Dataset
from hllm.errors import AmbiguousError, ArtifactError, ConfigError, DataError, DeviceError
from hllm.items import resolve as module
from hllm.items.embed import embed, load_embeddings
from hllm.items.encoders import make
from hllm.items.store import batches
from hllm.text.template import OFFICIAL_PROMPT


@pytest.fixture(autouse=True)
def float32(monkeypatch):
    """No measurement: tests compare with float32."""
    monkeypatch.setattr(module, "auto_precision", lambda device, folder: "fp32")


def embed_quietly(data, model, **options):
    return embed(data, str(model), progress=False, device="cpu", **options)


@pytest.fixture
def count_encoded(monkeypatch):
    """Texts that reach the encoder, batch by batch."""
    batches = []
    original = make.make_encoder

    def counting(*arguments):
        encoder = original(*arguments)
        run = encoder.encode
        encoder.encode = lambda rows: batches.append(len(rows)) or run(rows)
        return encoder

    monkeypatch.setattr(make, "make_encoder", counting)
    return batches


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_rows_are_the_items_own_texts(make_dataset, llama, pooling):
    data = make_dataset()
    result = embed_quietly(data, llama, pooling=pooling, batch_size=2)
    assert result.vectors.shape == (10, 32)
    assert result.vectors.dtype == np.float32
    assert result.has_text.tolist() == [False] + [True] * 9
    assert not result.vectors[0].any()
    import torch

    from hllm.items.encoders.backbones import load_backbone

    backbone = load_backbone(llama, "fp32", torch.device("cpu"))
    for row, title, genres in data.items.select("item_id", "title", "genres").iter_rows():
        text = f"{OFFICIAL_PROMPT}title: {title}" + (f"genres: {genres}" if genres else "")
        with torch.no_grad():
            states = backbone.model(torch.tensor([backbone.tokenizer(text)["input_ids"]])).last_hidden_state[
                0
            ]
        expected = states.mean(0) if pooling == "mean" else states[-1]
        np.testing.assert_allclose(result.vectors[data.token_of(row)], expected, atol=1e-5)
    # Two items with one text share one vector, encoded once.
    np.testing.assert_array_equal(result.vectors[3], result.vectors[7])
    assert (result.stats["encoded"], result.stats["reused"]) == (8, 0)
    assert result.spec["dim"] == 32
    assert result.spec["source"] == "folder"


def test_case_d12_rows_follow_the_items_whatever_their_order_and_type(tmp_path, llama):
    titles = {1: "one", 2: "two", 3: "three"}
    items = pl.DataFrame({"item_id": ["3", "2", "1"], "title": [titles[i] for i in (3, 2, 1)]})
    events = pl.DataFrame({"user_id": [7, 7, 7], "item_id": [1, 3, 2], "timestamp": [1, 2, 3]})
    events.write_parquet(tmp_path / "events.parquet")
    data = Dataset.from_tables(pl.read_parquet(tmp_path / "events.parquet"), items)
    result = embed_quietly(data, llama)
    assert result.has_text[1:].all()
    assert np.linalg.norm(result.vectors[1:], axis=1).min() > 0
    for item_id in data.item_ids:
        title = titles[int(item_id)]
        alone = Dataset.from_tables(
            pl.DataFrame({"user_id": [1], "item_id": [1], "timestamp": [1]}),
            pl.DataFrame({"item_id": [1], "title": [title]}),
        )
        expected = embed_quietly(alone, llama).vectors[1]
        np.testing.assert_allclose(result.vectors[data.token_of(item_id)], expected, atol=1e-5)


def test_items_without_text_have_no_vector_and_are_counted(make_dataset, llama):
    data = make_dataset(["Up", None, ""], [None, None, None])
    result = embed_quietly(data, llama)
    assert result.has_text.tolist() == [False, True, False, False]
    assert not result.vectors[2:].any()
    assert result.stats["without_text"] == 2
    with pytest.raises(DataError, match="none of the 2 items has text in the fields title, genres"):
        embed_quietly(make_dataset([None, ""], [None, None], name="none"), llama)


def test_a_second_run_encodes_nothing_and_loads_no_model(make_dataset, llama, count_encoded):
    data = make_dataset()
    first = embed_quietly(data, llama)
    assert sum(count_encoded) == 8
    count_encoded.clear()
    second = embed_quietly(Dataset.load(data.path), llama)
    assert count_encoded == []
    assert (second.stats["encoded"], second.stats["reused"]) == (0, 8)
    np.testing.assert_array_equal(first.vectors, second.vectors)
    loaded = load_embeddings(Dataset.load(data.path), str(llama))
    np.testing.assert_array_equal(loaded.vectors, first.vectors)
    np.testing.assert_array_equal(loaded.has_text, first.has_text)
    assert loaded.spec == first.spec


def test_one_edited_title_encodes_one_item(make_dataset, llama, count_encoded):
    titles = ["Up", "Seven", "Heat", "Alien"]
    first = embed_quietly(make_dataset(titles, [None] * 4), llama)
    count_encoded.clear()
    changed = make_dataset(["Up", "Se7en", "Heat", "Alien"], [None] * 4)  # into the same folder
    second = embed_quietly(changed, llama)
    assert count_encoded == [1]
    same = [1, 3, 4]
    np.testing.assert_array_equal(second.vectors[same], first.vectors[same])
    assert np.abs(second.vectors[2] - first.vectors[2]).max() > 1e-3
    # And the old catalogue is still there.
    restored = embed_quietly(make_dataset(titles, [None] * 4), llama)
    assert count_encoded == [1]
    np.testing.assert_array_equal(restored.vectors, first.vectors)


def test_before_the_rerun_an_edited_catalogue_has_no_embeddings(make_dataset, llama):
    embed_quietly(make_dataset(["Up", "Seven"], [None] * 2), llama)
    changed = make_dataset(["Up", "Se7en"], [None] * 2)
    with pytest.raises(ArtifactError, match=r"not finished for these items; run: hllm embed .* --item-llm"):
        load_embeddings(changed, str(llama))


def test_an_edited_column_that_is_no_text_field_of_the_dataset_counts_where_it_is_asked_for(tmp_path, llama):
    def made(plots):
        ids = [1, 2]
        events = pl.DataFrame({"user_id": [0, 0], "item_id": ids, "timestamp": ids})
        items = pl.DataFrame({"item_id": ids, "title": ["Up", "Heat"], "plot": plots})
        return Dataset.from_tables(events, items, text_fields=["title"], name="tiny").save(tmp_path / "data")

    first = made(["A house flies.", "A heist."])
    by_title = embed_quietly(first, llama)
    embed_quietly(first, llama, text_fields=["plot"])
    changed = made(["A house flies.", "A robbery."])
    with pytest.raises(ArtifactError, match="not finished for these items"):
        load_embeddings(changed, str(llama), text_fields=["plot"])
    assert embed_quietly(changed, llama, text_fields=["plot"]).stats["encoded"] == 1
    np.testing.assert_array_equal(load_embeddings(changed, str(llama)).vectors, by_title.vectors)


def test_other_weights_in_the_same_folder_are_other_embeddings(make_dataset, save_model, tmp_path):
    data = make_dataset()
    first = embed_quietly(data, save_model(tmp_path / "model"))
    second = embed_quietly(data, save_model(tmp_path / "model", seed=1))
    assert second.stats["encoded"] == 8
    assert first.spec["key"] != second.spec["key"]


class NaNEncoder:
    """A stub whose vector for one text is not finite until it is mended."""

    dim = 2
    broken = "Seven"

    def __init__(self):
        self.encoded = []

    def prepare(self, texts):
        self.texts = texts
        self.truncated = np.zeros(len(texts), dtype=bool)
        return np.ones(len(texts), dtype=np.int64)

    def encode(self, rows):
        self.encoded += [self.texts[i] for i in rows]
        bad = [self.broken is not None and self.broken in self.texts[i] for i in rows]
        return np.where(np.array(bad)[:, None], np.nan, 1.0).repeat(2, axis=1).astype(np.float32)


@pytest.mark.parametrize("batch_size", [1, 64])
def test_case_d13_nan_is_named_never_stored_and_only_what_is_missing_is_encoded_again(
    make_dataset, llama, monkeypatch, batch_size
):
    data = make_dataset(["Up", "Seven", "Heat"], [None] * 3, ids=[11, 22, 33])
    stub = NaNEncoder()
    monkeypatch.setattr(make, "make_encoder", lambda *a: stub)
    options = {"precision": "fp16", "batch_size": batch_size}
    with pytest.raises(DataError, match=r"fp16 .*NaN.* item 22 \('title: Seven'\).*--precision bf16"):
        embed_quietly(data, llama, **options)
    with pytest.raises(ArtifactError, match="not finished"):
        load_embeddings(data, str(llama))
    done = {text for text in stub.encoded if "Seven" not in text}
    stub.broken, stub.encoded = None, []
    result = embed_quietly(data, llama, **options)
    assert not done & set(stub.encoded)
    assert len(done | set(stub.encoded)) == 3
    assert np.isfinite(result.vectors).all()


def test_choices_of_text_and_pooling_are_separate_stores(make_dataset, llama):
    data = make_dataset()
    base = embed_quietly(data, llama)
    for options in ({"pooling": "last"}, {"prompt": ""}, {"text_fields": ["genres", "title"]}):
        other = embed_quietly(data, llama, **options)
        assert np.abs(other.vectors - base.vectors).max() > 1e-3
        np.testing.assert_array_equal(load_embeddings(data, str(llama), **options).vectors, other.vectors)
    only_genres = embed_quietly(data, llama, text_fields=["genres"])
    assert only_genres.stats["without_text"] == 1
    np.testing.assert_array_equal(load_embeddings(data, str(llama)).vectors, base.vectors)


def test_ambiguous_stores_are_listed_and_chosen_by_key(make_dataset, llama):
    data = make_dataset()
    exact = embed_quietly(data, llama, precision="fp32")
    rough = embed_quietly(data, llama, precision="bf16")
    with pytest.raises(AmbiguousError, match="2 sets of embeddings match") as caught:
        load_embeddings(data, str(llama))
    for part in (exact.spec["key"], rough.spec["key"], "fp32", "bf16", "item_llm="):
        assert part in str(caught.value)
    chosen = load_embeddings(data, rough.spec["key"])
    np.testing.assert_array_equal(chosen.vectors, rough.vectors)
    shutil.rmtree(data.embeddings_dir / exact.spec["key"])
    np.testing.assert_array_equal(load_embeddings(data, str(llama)).vectors, rough.vectors)
    # Automatic precision goes on with what is there.
    assert embed_quietly(data, llama).spec["key"] == rough.spec["key"]


def test_missing_embeddings_name_the_command(make_dataset, llama):
    data = make_dataset()
    with pytest.raises(ArtifactError) as caught:
        load_embeddings(data, "smollm2-135m", "last", prompt="Item: ", text_fields=["title"])
    command = (
        f"hllm embed {data.path} --item-llm smollm2-135m --pooling last --prompt 'Item: ' --fields title"
    )
    assert str(caught.value).endswith(f"run: {command}")
    embed_quietly(data, "random")
    with pytest.raises(ArtifactError, match=r"there are: random.*; run: hllm embed .* --item-llm tfidf"):
        load_embeddings(data, "tfidf")
    with pytest.raises(ArtifactError, match="no embeddings of store 0123456789abcdef"):
        load_embeddings(data, "0123456789abcdef")


def test_a_dataset_in_memory_keeps_its_embeddings_in_the_cache(llama):
    data = Dataset.from_tables(
        pl.DataFrame({"user_id": [1], "item_id": [1], "timestamp": [1]}),
        pl.DataFrame({"item_id": [1], "title": ["Up"]}),
    )
    with pytest.raises(ArtifactError, match=r"hllm\.embed\(data, item_llm='random'"):
        load_embeddings(data, "random")
    embed_quietly(data, "random")
    assert load_embeddings(data, "random").has_text.tolist() == [False, True]


def test_the_model_may_have_moved_since(make_dataset, save_model, tmp_path):
    data = make_dataset()
    first = embed_quietly(data, save_model(tmp_path / "a" / "model"))
    (tmp_path / "b").mkdir()
    shutil.move(tmp_path / "a" / "model", tmp_path / "b" / "model")
    np.testing.assert_array_equal(load_embeddings(data, str(tmp_path / "b" / "model")).vectors, first.vectors)
    assert embed_quietly(data, tmp_path / "b" / "model").stats["encoded"] == 0
    shutil.rmtree(tmp_path / "b")
    np.testing.assert_array_equal(load_embeddings(data, str(tmp_path / "b" / "model")).vectors, first.vectors)


def test_damage_is_told_and_mended(make_dataset, llama):
    data = make_dataset()
    first = embed_quietly(data, llama)
    (path,) = (data.embeddings_dir / first.spec["key"]).glob("shard-*")
    content = bytearray(path.read_bytes())
    content[-40] ^= 255
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"9 are missing, 1 files are damaged.*hllm embed"):
        load_embeddings(data, str(llama))
    with pytest.warns(UserWarning, match="damaged"):
        again = embed_quietly(data, llama)
    assert again.stats["encoded"] == 8
    np.testing.assert_array_equal(again.vectors, first.vectors)


def test_truncated_items_are_counted_also_when_nothing_is_encoded(make_dataset, llama):
    data = make_dataset(["x" * 100, "Up"], [None, None])
    for encoded in (2, 0):
        with pytest.warns(UserWarning, match="1 item texts were cut to max_tokens=40"):
            result = embed_quietly(data, llama, max_tokens=40)
        assert (result.stats["truncated"], result.stats["encoded"]) == (1, encoded)
    assert load_embeddings(data, str(llama)).stats["truncated"] == 1


@pytest.mark.parametrize("control", ["tfidf", "random"])
def test_controls(make_dataset, control, count_encoded):
    data = make_dataset()
    with pytest.warns(UserWarning, match="without effect"):
        first = embed_quietly(data, control, pooling="last", prompt="ignored: ")
    assert sum(count_encoded) == 8
    assert embed_quietly(data, control).stats["encoded"] == 0
    np.testing.assert_array_equal(load_embeddings(data, control).vectors, first.vectors)
    np.testing.assert_array_equal(first.vectors[3], first.vectors[7])
    changed = make_dataset(["Other", *(["Seven"] * 8)])
    second = embed_quietly(changed, control)
    # The statistics of tfidf are those of the catalogue: nothing of another one is reused.
    assert (second.spec["key"] == first.spec["key"]) == (control == "random")
    with pytest.raises(ArtifactError, match=r"no embeddings|not finished"):
        load_embeddings(make_dataset(["A third", *(["Seven"] * 8)]), control)


def test_what_is_of_language_models_alone_is_told_beside_a_control(make_dataset):
    options = {"pooling": "last", "prompt": "x", "max_tokens": 5, "attn": "eager", "revision": "main"}
    with pytest.warns(
        UserWarning, match="tfidf is no language model: pooling=.last., attn=.eager., .* without effect"
    ):
        embed_quietly(make_dataset(), "tfidf", **options)
    with pytest.warns(UserWarning, match="random is no language model: precision=.bf16. without effect"):
        embed_quietly(make_dataset(), "random", precision="bf16")


def test_mean_cosine(make_dataset, llama):
    result = embed_quietly(make_dataset(), llama)
    rows = result.vectors[1:] / np.linalg.norm(result.vectors[1:], axis=1, keepdims=True)
    pairs = (rows @ rows.T)[np.triu_indices(9, 1)]
    assert result.mean_cosine == pytest.approx(pairs.mean(), abs=1e-6)


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"pooling": "max"}, ConfigError, "unknown pooling 'max'; valid: mean, last"),
        ({"precision": "fp8"}, ConfigError, "unknown precision 'fp8'"),
        ({"attn": "sdap"}, ConfigError, "unknown attn 'sdap' (did you mean 'sdpa'?); valid: packed, sdpa"),
        ({"device": "tpu"}, DeviceError, "unknown device 'tpu'"),
        ({"batch_size": 0}, ConfigError, "batch_size=0"),
        ({"text_fields": ["titel"]}, DataError, "did you mean 'title'"),
        ({"text_fields": []}, ConfigError, "at least one"),
        ({"item_llm": "smollm"}, ConfigError, "unknown item LLM 'smollm'"),
    ],
)
def test_mistakes_are_explained_and_write_nothing(make_dataset, llama, options, error, message):
    data = make_dataset()
    with pytest.raises(error, match=re.escape(message)):
        embed(data, **{"item_llm": str(llama), "device": "cpu", "progress": False, **options})
    assert not data.embeddings_dir.exists() or not list(data.embeddings_dir.iterdir())


KILLED = """
import sys, time
sys.modules["polars"] = sys.modules["transformers"] = None  # an import of them would fail
from hllm.data.dataset import Dataset
from hllm.items.embed import embed, load_embeddings
print(load_embeddings(Dataset.load(sys.argv[3]), sys.argv[2]).vectors.shape)
del sys.modules["polars"], sys.modules["transformers"]
from hllm.items.store import batches, encode, shards as store
batches.CHUNK = 500
encode.BLOCK_SECONDS = 0
write, written = store.write_shard, []
def slow(*arguments):
    write(*arguments)
    written.append(1)
    if len(written) == 3:
        print("three batches", flush=True)
        time.sleep(600)
store.write_shard = slow
embed(Dataset.load(sys.argv[1]), sys.argv[2], precision="fp32", device="cpu", batch_size=4, progress=False)
"""


def test_loading_needs_neither_polars_nor_transformers_and_killed_and_run_again_it_ends_with_the_same_bits(
    make_dataset, llama, count_encoded, monkeypatch
):
    monkeypatch.setattr(batches, "CHUNK", 500)  # a few chunks
    titles = [f"Title {'long ' * (i % 7)}{i}" for i in range(30)]
    whole = make_dataset(titles, [None] * 30, name="straight")
    straight = embed_quietly(whole, llama, batch_size=4)
    finished = sum(count_encoded[:3])
    data = make_dataset(titles, [None] * 30, name="killed")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", KILLED, str(data.path), str(llama), str(whole.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout.readline() == "(31, 32)\n"
        assert process.stdout.readline() == "three batches\n"
        process.send_signal(signal.SIGKILL)
    with pytest.raises(ArtifactError, match="not finished"):
        load_embeddings(data, str(llama))
    count_encoded.clear()
    resumed = embed_quietly(data, llama, batch_size=4)
    assert sum(count_encoded) == 30 - finished
    np.testing.assert_array_equal(resumed.vectors, straight.vectors)
    shards = [
        artifacts.digest_file(next((d.embeddings_dir / resumed.spec["key"]).glob("shard-*")))
        for d in (data, whole)
    ]
    assert shards[0] == shards[1]


KILLED_OFTEN = """
import os, random, signal, sys, time
import torch
torch.set_num_threads(1)
from hllm.data.dataset import Dataset
from hllm.items.embed import embed
from hllm.items.encoders.text import LanguageModelEncoder
from hllm.items.store import batches, encode
batches.CHUNK = 500
encode.BLOCK_SECONDS = 0  # as where a batch takes a second
log, plain = sys.argv[3], LanguageModelEncoder.encode
def encode_slowly(self, rows):
    with open(log, "a") as file:
        file.write(f"{len(rows)}\\n")
    time.sleep(0.02)
    return plain(self, rows)
LanguageModelEncoder.encode = encode_slowly
def run():
    data = Dataset.load(sys.argv[1])
    return embed(data, sys.argv[2], precision="fp32", device="cpu", batch_size=2, progress=False)
def lines():
    return len(open(log).readlines()) if os.path.exists(log) else 0
random.seed(0)
for _ in range(20):
    before, child = lines(), os.fork()
    if not child:
        run()
        os._exit(0)
    while lines() < before + 3 and os.waitpid(child, os.WNOHANG) == (0, 0):
        time.sleep(0.005)
    time.sleep(random.random() * 0.03)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
run()
print(sum(map(int, open(log))))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_twenty_times_nothing_is_encoded_twice_beyond_a_batch(
    make_dataset, llama, run_python, monkeypatch
):
    monkeypatch.setattr(batches, "CHUNK", 500)
    titles = [f"Title {'long ' * (i % 7)}{i}" for i in range(200)]
    straight = embed_quietly(make_dataset(titles, [None] * 200, name="straight"), llama, batch_size=2)
    data = make_dataset(titles, [None] * 200, name="killed")
    done = run_python("-c", KILLED_OFTEN, str(data.path), str(llama), str(data.path.parent / "log"))
    assert done.returncode == 0, done.stderr
    assert 200 <= int(done.stdout) <= 200 + 20 * 2  # each kill costs the batch at hand, of two texts
    resumed = embed_quietly(data, llama, batch_size=2)
    assert resumed.stats["encoded"] == 0
    np.testing.assert_array_equal(resumed.vectors, straight.vectors)


def test_the_package_store_goes_on_without_asking_the_hub(make_dataset, llama, monkeypatch):
    from hllm.items import resolve
    from hllm.items.encoders.hub import ModelFolder, weights_digest

    asked = []

    def find(name, trust_remote_code=False, source=None, revision=None):
        asked.append(source)
        return ModelFolder(llama, "a package (GGUF)", None, weights_digest(llama))

    monkeypatch.setattr(resolve, "find_model", find)
    data = make_dataset(["Up", "Seven"], [None] * 2)
    assert embed_quietly(data, "smollm2-135m").spec["source"] == "a package (GGUF)"
    embed_quietly(data, "smollm2-135m")
    assert asked == [None]
    embed_quietly(make_dataset(["Up", "Se7en"], [None] * 2), "HuggingFaceTB/SmolLM2-135M-Instruct")
    assert asked == [None, "a package (GGUF)"]


def test_real_titles(shared_data, tmp_path):
    lines = (shared_data / "ml-100k" / "u.item").read_text(encoding="latin-1").splitlines()
    rows = [line.split("|") for line in lines]
    items = pl.DataFrame({"item_id": [int(r[0]) for r in rows], "title": [r[1] for r in rows]})
    events = pl.DataFrame({"user_id": [1], "item_id": [1], "timestamp": [1]})
    data = Dataset.from_tables(events, items).save(tmp_path / "ml")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = embed_quietly(data, "tfidf")
    assert result.vectors.shape == (1683, 256)
    unit = result.vectors / np.linalg.norm(result.vectors, axis=1, keepdims=True).clip(1e-9)
    order = (unit @ unit[data.token_of(50)]).argsort()[::-1]
    assert data.item_ids[order[0] - 1] == 50
    nearest = items["title"][data.item_ids[order[1] - 1] - 1]
    assert {"Star", "Wars", "1977"} & set(re.findall(r"\w+", nearest))


def test_a_copy_of_the_model_elsewhere_is_the_same_model(make_dataset, save_model, tmp_path):
    data = make_dataset()
    embed_quietly(data, save_model(tmp_path / "a" / "model"))
    copy = shutil.copytree(tmp_path / "a" / "model", tmp_path / "b" / "model")
    with pytest.raises(ArtifactError, match="no embeddings of"):  # its weights might be others
        load_embeddings(data, str(copy))
    assert embed_quietly(data, copy).stats["encoded"] == 0
    assert load_embeddings(data, str(copy)).spec["model"] == str(copy)


def _spec_file(data, result):
    return data.embeddings_dir / result.spec["key"] / "spec.json"


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"format": "hllm-embeddings"}', "another's"])
def test_case_e20_a_missing_or_damaged_spec_is_recovered(make_dataset, llama, content, count_encoded):
    data = make_dataset()
    first = embed_quietly(data, llama)
    path = _spec_file(data, first)
    if content is None:
        path.unlink()
    elif content == "another's":
        other = embed_quietly(data, llama, pooling="last")
        shutil.copyfile(_spec_file(data, other), path)
    else:
        path.write_text(content)
    with pytest.raises(ArtifactError, match=r"no embeddings of.*run: hllm embed"):
        load_embeddings(data, str(llama))
    count_encoded.clear()
    again = embed_quietly(data, llama)
    assert count_encoded == []
    assert {**again.spec, "made_with": None} == {**first.spec, "made_with": None}
    np.testing.assert_array_equal(again.vectors, first.vectors)
    np.testing.assert_array_equal(load_embeddings(data, str(llama)).vectors, first.vectors)


def test_case_e20_a_spec_without_the_width_is_completed(make_dataset, llama):
    data = make_dataset()
    first = embed_quietly(data, llama)
    path = _spec_file(data, first)
    artifacts.write_json(path, {k: v for k, v in artifacts.read_json(path).items() if k != "dim"})
    assert load_embeddings(data, str(llama)).spec == first.spec
    embed_quietly(data, llama)
    assert artifacts.read_json(path)["dim"] == 32


@pytest.mark.parametrize("damage", ["reversed keys", "no text", "cut", "another catalogue's"])
def test_an_index_that_was_changed_is_refused_and_written_anew(make_dataset, llama, damage):
    data = make_dataset()
    first = embed_quietly(data, llama)
    (path,) = (data.embeddings_dir / first.spec["key"]).glob("index-*")
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-3])
    elif damage == "another catalogue's":
        embed_quietly(make_dataset(["Up", *(["Seven"] * 8)]), llama)
        other = next(p for p in path.parent.glob("index-*") if p != path)
        shutil.copyfile(other, path)
        data = make_dataset()
    else:
        tensors, header = artifacts.read_tensors(path)
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        if damage == "no text":
            tensors["has_text"][:] = False
        else:
            tensors["keys"] = tensors["keys"].flip(0).contiguous()
        artifacts.write_tensors(path, tensors, header)
    with pytest.raises(ArtifactError, match=r"index-.*run `hllm embed` again"):
        load_embeddings(data, str(llama))
    assert embed_quietly(data, llama).stats["encoded"] == 0
    np.testing.assert_array_equal(load_embeddings(data, str(llama)).vectors, first.vectors)


def test_foreign_files_in_a_store_are_left_alone(make_dataset, llama):
    data = make_dataset()
    first = embed_quietly(data, llama)
    folder = data.embeddings_dir / first.spec["key"]
    strange = [
        folder / name for name in (".DS_Store", "shard-copy.safetensors", "shard-000000 (1).safetensors")
    ]
    for path in [*strange, data.embeddings_dir / "Thumbs.db"]:
        path.write_bytes(b"not ours")
    shutil.copytree(folder, data.embeddings_dir / "backup")
    np.testing.assert_array_equal(load_embeddings(data, str(llama)).vectors, first.vectors)
    assert embed_quietly(data, llama).stats["encoded"] == 0
    assert all(path.read_bytes() == b"not ours" for path in strange)


def test_a_request_is_looked_up_once_and_each_file_read_once(make_dataset, llama, monkeypatch):
    from hllm.items.store import mapped

    data = make_dataset()
    embed_quietly(data, llama)
    changed = make_dataset(["Se7en", *["Up"] * 8])
    read, looked = [], []
    whole, list_specs = mapped._whole, module.list_specs
    monkeypatch.setattr(mapped, "_whole", lambda path: read.append(path.name) or whole(path))
    monkeypatch.setattr(module, "list_specs", lambda root: looked.append(root) or list_specs(root))
    wanted = module.resolve(changed, str(llama))
    with pytest.raises(ArtifactError, match="not finished"):
        wanted.load()
    assert wanted.complete("cpu", progress=False).stats["encoded"] > 0
    assert wanted.load().has_text.sum() == 9  # what it made is known to it
    assert read == ["shard-000000.safetensors"]
    assert len(looked) == 1
