"""The document's Q1 to Q6, its environment checks, and the mistakes around them: one line, exit code 2."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from hllm import pipeline
from hllm.errors import DeviceError, FetchError
from hllm.runs.auto_batch import BatchSize
from hllm.train import trainer
from rechub_scripts import environment, train_hllm, train_hstu, vectors

ROOT = Path(__file__).resolve().parents[2]
ML = "examples/generative/data/ml-1m"
SEQUENCES = f"python {ML}/preprocess_ml_hstu.py"
VECTORS = f"python {ML}/preprocess_hllm_data.py --device cpu --model_type tfidf"
TRAIN = "python examples/generative/run_hllm_movielens.py --device cpu --model_type tfidf --epochs 1"
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")


@pytest.fixture
def prepared(shell, raw_files, clone):
    raw_files["ml-1m"](clone / ML)
    shell.type(f"{SEQUENCES}\n{VECTORS}")
    return shell


def refused(shell, command: str) -> str:
    """The one line that a command ends with."""
    shell.type(command, expect=2)
    errors = [line for line in shell.errors.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and shell.errors.splitlines()[-1] == errors[0], shell.errors
    assert "Traceback" not in shell.errors
    return errors[0]


# ------------------------------------------------------------------------ Q1: memory


def limited(limit: int, step):
    """`step` on a machine whose memory holds `limit` targets a batch."""

    def run(data, config, *rest):
        if config.training.batch_tokens > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return step(data, config, *rest)

    return run


def test_q1_out_of_memory_names_the_batch_size_that_fits(prepared, monkeypatch):
    monkeypatch.setattr(pipeline, "train_network", limited(40 * 9, pipeline.train_network))
    monkeypatch.setattr(pipeline, "probe", limited(40 * 9, pipeline.probe))
    line = refused(prepared, f"{TRAIN} --batch_size 512")
    assert "out of memory with --batch_size 512; 32 fits: type --batch_size 32, or --auto-batch" in line
    assert "--max_seq_len" in line and "--device cpu" in line


def test_q1_auto_batch_takes_it(prepared, monkeypatch, clone):
    monkeypatch.setattr(pipeline, "train_network", limited(40 * 9, pipeline.train_network))
    monkeypatch.setattr(pipeline, "probe", limited(40 * 9, pipeline.probe))
    prepared.type(f"{TRAIN} --batch_size 512 --auto-batch")
    assert "warning: out of memory with --batch_size 512; going on with 32" in prepared.errors
    assert (clone / "model.pth").is_file()


def test_q1_nothing_fits(prepared, monkeypatch):
    monkeypatch.setattr(pipeline, "train_network", limited(0, None))
    monkeypatch.setattr(pipeline, "probe", limited(0, None))
    assert "with a batch of 1 as well" in refused(prepared, TRAIN)


def test_q1_other_faults_are_not_hidden(prepared, monkeypatch):
    def broken(*_):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(pipeline, "train_network", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        prepared.type(TRAIN)


def test_q1_hstu(prepared, monkeypatch, clone):
    make = train_hstu.make_trainer

    def small(*options):
        trainer = make(*options)
        forward = trainer.model.forward

        def limited(tokens, seconds):
            if len(tokens) > 20:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return forward(tokens, seconds)

        trainer.model.forward = limited
        return trainer

    monkeypatch.setattr(train_hstu, "make_trainer", small)
    command = "python examples/generative/run_hstu_movielens.py --device cpu --epoch 1 --batch_size 64 --max_seq_len 8"
    assert "16 fits" in refused(prepared, command)
    prepared.type(f"{command} --auto-batch --d_model 8 --dqk 4 --dv 4")
    assert (clone / "model.pth").is_file()


def test_q1_encoding(prepared, monkeypatch):
    real, asked = vectors.embed, []

    def small(*options, batch_size, **more):
        asked.append(batch_size)
        if batch_size > 4:
            raise DeviceError(f"too little memory; use --batch-size {batch_size // 4}")
        return real(*options, batch_size=batch_size, **more)

    monkeypatch.setattr(vectors, "embed", small)
    assert "use --batch_size 16" in refused(prepared, VECTORS)
    prepared.type(f"{VECTORS} --auto_batch")
    assert asked == [64, 64, 16, 4]


# ------------------------------------------------------------------------ Q2: the model


def test_q2_a_failed_download_names_every_way(prepared):
    line = refused(prepared, VECTORS.replace("tfidf", "tinyllama"))
    for advice in ("HF_ENDPOINT", "hf download TinyLlama/TinyLlama-1.1B-Chat-v1.0", "--model_type FOLDER"):
        assert advice in line
    assert "is not in the cache" in prepared.output


def test_q2_unknown_models(prepared):
    assert "did you mean 'tinyllama'" in refused(prepared, VECTORS.replace("tfidf", "tinylama"))
    assert "not found" in refused(prepared, VECTORS.replace("tfidf", "./nowhere"))


# ------------------------------------------------------------------------ Q3: data


def test_q3_raw_files(shell, clone, monkeypatch):
    line = refused(shell, f"{SEQUENCES} --no_download")
    here = clone / ML
    assert "ratings.dat" in line and str(here) in line and str(here / "data" / "ml-1m") in line

    def unreachable(name, folder):
        raise FetchError(f"cannot get {name}. Tried (1) files.grouplens.org: no connection")

    monkeypatch.setattr("rechub_scripts.raw.fetch_source", unreachable)
    line = refused(shell, SEQUENCES)
    assert "no connection" in line and f"put ratings.dat, movies.dat into {here}" in line


def test_q3_sequences(shell, clone):
    for command in (
        TRAIN,
        VECTORS,
        "python examples/generative/run_hstu_movielens.py --device cpu",
    ):
        line = refused(shell, command)
        assert "python preprocess_ml_hstu.py" in line and "cd examples/generative/data/ml-1m" in line


@pytest.mark.parametrize("state", ["auto", "raw", "bytedance"])
def test_q3_books(shell, clone, state):
    script = "python examples/generative/data/amazon-books/preprocess_amazon_books.py --no_download"
    line = refused(shell, f"{script} --data_source {state}")
    assert ("ratings_Books.csv" in line) == (state != "bytedance")
    assert ("amazon_books.csv" in line) == (state != "raw")


# ------------------------------------------------------------------------ Q4: embeddings


def test_q4_missing_embeddings(prepared):
    line = refused(prepared, TRAIN.replace("tfidf", "smollm2-135m"))
    assert "item_embeddings_smollm2-135m.pt not found" in line
    assert "python preprocess_hllm_data.py --model_type smollm2-135m --device cpu" in line
    assert "there are those of tfidf (--model_type tfidf)" in line


def test_q4_embeddings_of_other_data(prepared, clone):
    torch.save(torch.randn(7, 8), clone / ML / "processed" / "item_embeddings_tfidf.pt")
    assert "7 rows" in refused(prepared, TRAIN)


def test_malicious_files_are_refused(prepared, clone):
    (clone / ML / "processed" / "vocab.pkl").write_bytes(b"cos\nsystem\n(S'echo hello'\ntR.")
    assert "system" in refused(prepared, TRAIN)


# ------------------------------------------------------------------------ Q5: slow; devices


def test_q5_slow_training_says_why(prepared, monkeypatch, clone):
    prepared.type(TRAIN)
    assert "warning: train runs on the CPU" in prepared.errors
    monkeypatch.setattr(train_hllm, "check_memory", lambda *_: None)
    data = train_hllm.open_folder(clone / ML / "processed", train_hllm.MOVIELENS)
    args = train_hllm.Parser("")
    train_hllm._flags(args, 1)
    embeddings = data.item_embeddings("tfidf")
    config = train_hllm.settings(
        args.parse(["--model_type", "tfidf", "--state", "rechub-doc"]), embeddings.vectors.shape[1]
    )
    said: list[str] = []
    monkeypatch.setattr(train_hllm, "warn", said.append)
    train_hllm._describe(
        data.data, embeddings, config, torch.device("cuda"), BatchSize(64, False, said.append)
    )
    assert "--batch_size 64 leaves a GPU mostly idle" in said[0]


@no_gpu
@pytest.mark.parametrize("command", [VECTORS, TRAIN])
def test_a_missing_gpu_stops_with_what_to_type(prepared, command):
    line = refused(prepared, command.replace("--device cpu", "--device cuda"))
    assert "device 'cuda' is not available" in line and "type --device cpu" in line
    prepared.type(command.replace("--device cpu", "--device auto"))


def test_memory_that_encoding_takes(tiny_llm):
    gib = 2**30
    assert environment.encoding_memory("tinyllama") == 3 * gib  # the document's figures
    assert environment.encoding_memory("baichuan-inc/Baichuan2-7B-Chat") == 16 * gib
    weights = (tiny_llm / "model.safetensors").stat().st_size
    assert environment.encoding_memory(str(tiny_llm)) == 1.5 * weights
    assert environment.encoding_memory("someone/unknown-model") is None


# ------------------------------------------------------------------------ Q6: metrics


def test_q6_low_metrics_have_a_page(prepared):
    assert "docs/low-metrics.md" in prepared.type(TRAIN)
    page = (ROOT / "docs" / "low-metrics.md").read_text(encoding="utf-8")
    for flag in ("--epochs 20", "--learning_rate 5e-4", "--model_type", "--keep-seen"):
        assert flag in page


# ------------------------------------------------------------------------ other mistakes


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--epoch x", "'x' is not a whole number"),
        ("--epoch 0", "at least 1"),
        ("--bach_size 3", "did you mean '--batch_size'"),
        ("--loss_type bpr", "invalid choice: 'bpr'"),
        ("--state other", "invalid choice: 'other'"),
        ("--dropout 1.5", "dropout=1.5"),
        ("--split leave-one-out --ratio 0.8,0.1,0.1", "--ratio belongs to"),
        ("--split user-ratio --ratio 0.8,0.1", "ratio"),
        ("--temperature 0", "temperature=0"),
    ],
)
def test_mistakes_in_flags(prepared, options, expected):
    assert expected in refused(prepared, f"{TRAIN} {options}")


def test_nothing_waits_on_the_terminal(prepared, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    prepared.type(TRAIN)


def test_both_spellings(prepared, clone):
    prepared.type(TRAIN.replace("--epochs 1", "--epoch 1 --batch-size 128 --max-seq-len 9"))
    assert torch.load(clone / "model.pth", weights_only=True)["position_embedding.weight"].shape[0] == 9


def test_an_interruption_ends_with_130(prepared, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "train_network", stopped)
    prepared.type(TRAIN, expect=130)
    assert prepared.errors.endswith("interrupted\n")


@pytest.mark.parametrize("batch", ["--batch_size 1", "--batch_size 4 --auto-batch"])
def test_after_an_interruption_the_same_command_goes_on(prepared, monkeypatch, batch):
    """Also with the batch that was found to fit, without trying the larger one, which would start anew."""
    train = pipeline.train_network
    monkeypatch.setattr(pipeline, "train_network", limited(9, train))
    monkeypatch.setattr(pipeline, "probe", limited(9, pipeline.probe))
    step = trainer.Trainer._step

    def interrupted(self, *arguments):
        if self.state.step == 2:
            raise trainer.Stopped("stopped after step 2")
        return step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "_due", lambda self: True)
        patch.setattr(trainer.Trainer, "_step", interrupted)
        prepared.type(f"{TRAIN} {batch}", expect=130)
    assert "everything is saved. Go on with the same command" in prepared.errors
    assert "going on from its last checkpoint" in prepared.type(f"{TRAIN} {batch}")
    assert "out of memory" not in prepared.errors


def test_overwrite_replaces_raw_files(shell, clone, raw_files, monkeypatch, tmp_path):
    """New files come first, so that a failed download leaves the old ones."""
    here = clone / ML
    raw_files["ml-1m"](here / "data" / "ml-1m")
    (here / "data" / "ml-1m" / "ratings.dat").write_text("damaged")

    def fetched(name, folder):
        raw_files["ml-1m"](folder / "ml-1m")

    monkeypatch.setattr("rechub_scripts.raw.fetch_source", fetched)
    assert "ratings.dat" in refused(shell, SEQUENCES)
    shell.type(f"{SEQUENCES} --overwrite")
    assert (here / "data" / "ml-1m" / "ratings.dat").read_text() != "damaged"
    assert not (here / ".download").exists()


def test_an_archive_that_was_only_downloaded_is_unpacked(shell, clone, raw_files, tmp_path):
    raw_files["ml-1m"](tmp_path / "zip" / "ml-1m")
    shutil.make_archive(str(clone / ML / "ml-1m"), "zip", tmp_path / "zip")
    assert "unpacking" in shell.type(f"{SEQUENCES} --no_download")


def test_from_any_folder_in_a_process_of_its_own(run_python, clone, raw_files):
    raw_files["ml-1m"](clone / ML)
    done = run_python(str(clone / ML / "preprocess_ml_hstu.py"), "--no_download")
    assert done.returncode == 0, done.stderr
    assert (clone / ML / "processed" / "vocab.pkl").is_file()
    done = run_python(str(clone / ML / "preprocess_ml_hstu.py"), "--data_dir", "/nowhere", "--no_download")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stderr.startswith("error: ")
