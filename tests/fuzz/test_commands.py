"""Malformed command lines and files: done, or one line on standard error and nothing half-written."""

from __future__ import annotations

import os
import random
import shutil
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from hllm.cli import main
from hllm.config import DOTTED

from .hostile import WORDS, harm, word

TABULAR = ["data", "prepare", "tabular", "--interactions", "@events.csv", "--items", "@items.csv"]
TRAIN = [
    "train",
    "@data",
    "--preset",
    "sasrec",
    "--config",
    "@settings.yaml",
    "--device",
    "cpu",
    "--out",
    ">new",
]
# `@` is read and `>` written; what stands behind an option may be changed, what is in OPTIONS added.
COMMANDS: list[tuple[int, list[str], list[str]]] = [
    (4, [*TABULAR, "--out", ">new"], [
        "--users", "--user-col", "--item-col", "--time-col", "--rating-col", "--text-cols", "--time-unit",
        "--delimiter", "--items-id-col", "--encoding", "--min-rating", "--min-interactions", "--min-user-interactions",
        "--split",
        "--ratio", "--targets", "--cutoffs", "--cold-share", "--ties", "--seed", "--max-len", "--option", "--filter",
    ]),
    (1, ["data", "prepare", "tabular", "--interactions", "@events.parquet", "--items", "@items.jsonl", "--out", ">new"],
     ["--text-cols", "--from"]),
    (1, ["data", "prepare", "ml-100k", "--from", "@data", "--out", ">new"], ["--encoding", "--min-rating"]),
    (1, ["data", "prepare", "recbole", "--from", "@data", "--out", ">new"], ["--encoding", "--option"]),
    (1, ["data", "describe", "@data"], []),
    (1, ["data", "list", "ml-1m"], []),
    (2, ["embed", "@data", "--item-llm", "random"],
     ["--pooling", "--prompt", "--fields", "--device", "--precision", "--batch-size", "--max-tokens"]),
    (2, [*TRAIN], ["--set", "--seeds", "--preset", "--device"]),
    (2, ["evaluate", "@run"], ["--split", "--k", "--candidates", "--device", "--recs", "--truth"]),
    (2, ["evaluate", "--recs", "@recs.csv", "--truth", "@truth.csv"], ["--k"]),
    (4, ["recommend", "@run", "--users", "@users.txt", "--out", ">recs.json"], [
        "--user", "--history", "--titles", "--split", "-k", "--candidates", "--exclude", "--only", "--with", "--device",
    ]),
    (1, ["report", "@run"], []),
]  # fmt: skip
NAMES = ["data", "run", "events.csv", "items.jsonl", "empty", "users.txt", "recs.csv", "absent"]


def command_line(rng: random.Random, work: Path) -> list[str]:
    """A sound command, of which a word or two, or a file that it reads, are not sound."""
    _, template, options = rng.choices(COMMANDS, [weight for weight, _, _ in COMMANDS])[0]
    places = [work / name for name in NAMES]
    words = [str(work / w[1:]) if w[0] in "@>" else w for w in template]
    for _ in range(rng.choice((1, 1, 2))):
        kind = rng.randrange(4)
        if kind == 0 and (read := [w[1:] for w in template if w[0] == "@"]):
            whole = work / rng.choice(read)
            files = [p for p in sorted(whole.rglob("*")) if p.is_file()] if whole.is_dir() else [whole]
            if files := [p for p in files if p.is_file() and not p.is_symlink()]:
                harm(rng.choice(files), rng)
        elif kind < 3 and options:
            option = rng.choice(options)
            text = word(rng, places)
            if option == "--set":
                text = f"{rng.choice([*DOTTED, *WORDS])}={rng.choice(WORDS)}"
            elif option == "--seeds":
                text = rng.choice(["0", "-1", "x", "1.5", ""])
            words += [option, text]
        else:
            at = [i for i in range(1, len(words)) if words[i][0:1] != "-" and words[i - 1] not in ("data",)]
            if template[:2] == ["data", "prepare"] and template[2] != "tabular":
                at = [i for i in at if i > 3]  # a name that is known without --from is downloaded
            if at:
                words[rng.choice(at)] = word(rng, places)
    return words


@pytest.mark.parametrize("count", [100, pytest.param(1_000, marks=pytest.mark.slow)])
def test_malformed_commands(
    work: Path,
    sound: Path,
    count: int,
    capsys: pytest.CaptureFixture[str],
    contents: Callable[[Path], dict[str, str]],
) -> None:
    refused, wrong = 0, []
    for i in range(count):
        words = command_line(random.Random(f"commands {i}"), work)
        before = contents(work)
        capsys.readouterr()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                problem = check(main(words), capsys.readouterr().err)
            except Exception as err:
                problem = f"{type(err).__name__}: {str(err)[:200]}; {where(err)}"
                refused += 1
        if problem is None:
            continue
        changed = {key for key, _ in before.items() ^ contents(work).items()}
        if problem == REFUSED:
            refused += 1
            problem = f"left {sorted(changed)}" if changed else ""
        if problem:
            wrong.append(f"case {i}, {shown(words)}: {problem}")
        shutil.rmtree(work)
        shutil.copytree(sound, work)
        os.chdir(work)  # the new folder of that name
    assert not wrong, "\n".join(wrong)
    assert refused > count // 2


REFUSED = "refused"


def check(code: int, err: str) -> str | None:
    """None: done. REFUSED: told in a line. Otherwise what is wrong with the answer."""
    if code == 0:
        return None
    last = err.splitlines()[-1] if err else ""
    sound = code == 2 and err.count("error: ") and last.startswith("error: ") and len(last) < 5_000
    return REFUSED if sound and "Traceback" not in err else f"code {code}, {err[-500:]}"


def where(err: BaseException) -> str:
    """The last lines of hllm on the way to an error."""
    frames = [f for f in traceback.extract_tb(err.__traceback__) if "/hllm/" in f.filename]
    return " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in frames[-1:-4:-1])


def shown(words: list[str]) -> list[str]:
    return [w if len(w) < 80 else f"{w[:40]}...({len(w)})" for w in words]
