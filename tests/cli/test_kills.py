"""Commands killed at any moment: the same command then ends in the same bits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hllm.testing import world_tables

# A process that imports hllm once. For each kill it forks a child that ends without a word, as by SIGKILL, at a file
# operation or after a time, both drawn by the seed; another child then types the same command.
KILLING = """
import hashlib, json, os, random, shutil, signal, sys, time
import torch, polars, safetensors, hllm.pipeline
from pathlib import Path
from hllm.cli import main
from hllm.train import trainer

trainer.Trainer._due = lambda self: True  # a checkpoint after each step
torch.set_num_threads(1)
torch.optim.AdamW([torch.zeros(1, requires_grad=True)]).step()  # imports a second's worth of modules
at, count = 0, 0

def hook(event, arguments):
    global count
    if event == "open" or event.startswith(("os.", "shutil.")):
        count += 1
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)

def child(words, operation=0, seconds=0.0):
    # Exit code, file operations and seconds of the command in a process of its own.
    global at, count
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        at, count, start = operation, 0, time.monotonic()
        sys.addaudithook(hook)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process at once, like SIGKILL
        if seconds:
            signal.setitimer(signal.ITIMER_REAL, seconds)
        code = 99
        try:
            code = main(words)
            os.write(writer, json.dumps([count, time.monotonic() - start]).encode())
        finally:
            os._exit(code)
    os.close(writer)
    status = os.waitpid(pid, 0)[1]
    told = os.read(reader, 1000)
    os.close(reader)
    return os.waitstatus_to_exitcode(status), json.loads(told) if told else None

def fresh(work, setup):
    shutil.rmtree(work, ignore_errors=True)
    if setup:
        shutil.copytree(setup, work)

def digests(work, compared):
    files = sorted(p for pattern in compared for p in work.glob(pattern) if p.is_file() and p.suffix != ".lock")
    return {str(p.relative_to(work)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}

def kill(name, setup, words, compared, kills, work):
    rng, work = random.Random(f"{name} {kills}"), Path(work)
    fresh(work, setup)
    code, (operations, seconds) = child(words)
    whole, report = digests(work, compared), []
    for i in range(kills):
        fresh(work, setup)
        if i % 2:
            killed, _ = child(words, seconds=max(0.001, rng.random() * seconds))
        else:
            killed, _ = child(words, rng.randrange(1, operations + 1))
        again, _ = child(words)
        found = digests(work, compared)
        report.append([killed, again, sorted(n for n in whole.keys() | found.keys() if whole.get(n) != found.get(n))])
    return name, code, len(whole), report

print(json.dumps([kill(*task) for task in json.loads(sys.argv[1])]))
"""


@pytest.mark.parametrize("kills", [5, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_any_moment_the_same_command_ends_in_the_same_bits(
    world_folder: Path,
    run_folder: Path,
    small: list[str],
    tmp_path: Path,
    run_python: Callable[..., Any],
    kills: int,
) -> None:
    interactions, items, _ = world_tables(string_ids=True)
    interactions.write_csv(tmp_path / "events.csv")
    items.write_csv(tmp_path / "items.csv")
    data, store, run, lists = (tmp_path / name for name in ("data", "store", "run", "lists"))
    files = ["--interactions", tmp_path / "events.csv", "--items", tmp_path / "items.csv"]
    tasks = [
        ("prepare", None, ["data", "prepare", "tabular", *files, "--out", data], ["**/*"], kills, data),
        (
            "embed",
            world_folder,
            ["embed", store, "--item-llm", "tfidf", "--batch-size", "4"],
            ["embeddings/*/shard-*", "embeddings/*/index-*"],
            kills,
            store,
        ),
        (
            "train",
            None,
            ["train", world_folder, "--preset", "sasrec", "--device", "cpu", *small, "--out", run],
            ["model.safetensors", "history.jsonl", "ranks/*", "data/**/*", "metrics.json"],
            kills,
            run,
        ),
        (
            "recommend",
            None,
            ["recommend", run_folder, "-k", "4", "--part-users", "10", "--device", "cpu", "--out", lists],
            ["*"],
            kills,
            lists,
        ),
    ]
    done = run_python("-c", KILLING, json.dumps(tasks, default=str))
    assert done.returncode == 0, done.stderr[-2000:]
    for name, code, n_files, report in json.loads(done.stdout.splitlines()[-1]):
        assert code == 0 and n_files > 1, name
        for number, (_, again, different) in enumerate(report):
            assert again == 0 and not different, (name, number, again, different, done.stderr[-2000:])
        assert sum(killed < 0 for killed, _, _ in report) > kills // 2, (name, report)
