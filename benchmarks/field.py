"""The field, side by side: other libraries' models beside ours, on one data set, under one protocol.

    python benchmarks/field.py DATASET --out field.json [--peers ...] [--minutes 8] [--item-llm minilm] [--threads 1]
    python benchmarks/field.py DATASET --out field.json --device cuda --installed

DATASET is a prepared folder split by leave-one-out, with the embeddings of --item-llm in it (`hllm embed`; torch-rechub
takes those pooled by `last`, where there are some). Each peer gets an environment of its own under hllm's cache folder,
made on first use with the torch of this environment, and the same events: histories without the test event, whose last
one is marked for validation. It trains by its authors' settings (benchmarks/peers), for at most --minutes, and writes
ten items a user; every list is scored by `hllm evaluate --recs`. A peer that does not install, fails or does not finish
gets a row that says so. Rows are written as they come, and are not measured again by the same command.

With --installed nothing is installed: peers run in this environment, for machines that reach no registry. Lists lie in
field.lists beside field.json; where polars is missing, which reads tables, they wait there, and the same command, once
both are where polars is, scores them. Training and recommending need it nowhere.

Seconds are of training, validation included; CPU seconds and the peak of memory of the whole process; GPU memory as
torch allocated it.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from told import told

HERE = Path(__file__).resolve().parent
K = 10
GRACE = 300  # seconds beyond --minutes, for loading and recommending


@dataclass(frozen=True)
class Peer:
    """A model of another library: its environment's name and packages, and the program that trains it."""

    environment: str
    packages: tuple[str, ...]
    script: str
    model: str
    vectors: bool = False


RECTOOLS = "rectools", ("rectools[torch]==0.19.0",), "rectools_models.py"
IMPLICIT = "implicit", ("implicit==0.7.3",), "implicit_models.py"
PEERS = {
    "RecTools SASRec": Peer(*RECTOOLS, "sasrec"),
    "RecTools HSTU": Peer(*RECTOOLS, "hstu"),
    "torch-rechub HLLM": Peer(
        "torch-rechub",
        ("torch-rechub==0.9.0", "scikit-learn", "tqdm"),
        "torch_rechub_models.py",
        "hllm",
        True,
    ),
    "implicit ALS": Peer(*IMPLICIT, "als"),
    "implicit item-kNN": Peer(*IMPLICIT, "item-knn"),
    # As it comes it stops at NumPy 2, which took away a name that it uses.
    "RecBole SASRec": Peer(
        "recbole", ("recbole==1.2.1", "numpy<2", "pandas<3"), "recbole_models.py", "sasrec"
    ),
}
OURS = {
    "hllm demo": ["--preset", "demo"],
    "hllm demo, ids alone": ["--preset", "demo", "--set", "item_llm=null"],
    "hllm-lite": ["--preset", "hllm-lite"],
    "hllm-lite, window 200": ["--preset", "hllm-lite", "--set", "max_len=200"],
    "hllm hstu": ["--preset", "hstu"],
    "hllm sasrec-paper": ["--preset", "sasrec-paper"],
}
FOR_A_GPU = ("hllm-lite", "hllm-lite, window 200", "hllm hstu")
FOR_A_CPU = ("hllm demo", "hllm demo, ids alone", "implicit ALS", "implicit item-kNN")


class Failed(Exception):
    """Why a row has no figures."""


def events_of(data: Any, work: Path) -> None:
    """Write what peers read, `events.npz`, and the test items, `truth.csv`.

    users, items int64 (N,), times int64 (N,) in seconds, held bool (N,): for validation. User by user in order of time;
    the test event is not among them. test int64 (U,): whom to recommend for.
    """
    tokens, times, offsets = (np.asarray(a).astype(np.int64) for a in (data.tokens, data.times, data.offsets))
    test, held = (np.asarray(data.queries[split], dtype=np.int64) for split in ("test", "validation"))
    rows = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    kept = np.ones(len(tokens), dtype=bool)
    kept[test] = False
    marked = np.zeros(len(tokens), dtype=bool)
    marked[held] = True
    from hllm.data.tables.schema import UNITS_PER_SECOND

    seconds = times // UNITS_PER_SECOND[data.meta["time_unit"]]
    np.savez(
        work / "events.npz", users=rows[kept], items=tokens[kept], times=seconds[kept], held=marked[kept],
        test=rows[test], n_items=np.array(data.n_candidates),
    )  # fmt: skip
    pairs = zip(rows[test].tolist(), tokens[test].tolist(), strict=True)
    (work / "truth.csv").write_text("user_id,item_id\n" + "".join(f"{u},{i}\n" for u, i in pairs))


def environment(peer: Peer, folder: Path) -> Path:
    """The Python of the peer's environment, installed if it isn't there; Failed where that doesn't work."""
    import torch

    home = folder / peer.environment
    python, log, done = home / "bin" / "python", home / "install.log", home / "installed"
    if not done.is_file() or done.read_text() != " ".join(peer.packages):
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        (home / "constraints.txt").write_text(f"torch=={torch.__version__.partition('+')[0]}\n")
        command = [
            str(python),
            "-m",
            "pip",
            "install",
            "-q",
            "-c",
            str(home / "constraints.txt"),
            *peer.packages,
        ]
        with log.open("w") as file:
            code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT).returncode
        if code:
            lines = [line for line in log.read_text().splitlines() if line.strip()]
            raise Failed(
                f"does not install: {next((s for s in lines if 'error' in s.lower()), lines[-1])[:200]}"
            )
        done.write_text(" ".join(peer.packages))
    return python


def measured(
    command: list[str], log: Path, seconds: float, env: dict[str, str], folder: Path | None = None
) -> dict[str, Any]:
    """Run `command`; its seconds, CPU seconds and peak memory in MiB. Failed where it fails or takes too long."""
    started = time.monotonic()
    with log.open("a") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=os.environ | env, cwd=folder
        )
        used = None
        while used is None:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                process.returncode, used = os.waitstatus_to_exitcode(status), usage
            elif time.monotonic() - started > seconds:
                process.kill()
                os.wait4(process.pid, 0)
                raise Failed(f"did not finish in {seconds / 60:.0f} minutes")
            else:
                time.sleep(0.2)
    if process.returncode:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        raise Failed(f"failed: {lines[-1][:200] if lines else 'without a word'}")
    return {
        "wall_seconds": round(time.monotonic() - started, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "memory_mib": round(used.ru_maxrss / 1024),
    }


def default_names(device: str) -> list[str]:
    """Models that suit a device."""
    others = FOR_A_GPU if device == "cpu" else FOR_A_CPU
    return [name for name in (*OURS, *PEERS) if name not in others]


def file_of(name: str) -> str:
    """Where a model's list lies."""
    return f"{name.replace(',', '').replace(' ', '-')}.csv"


def score(recs: Path, truth: Path) -> dict[str, float]:
    """What `hllm evaluate --recs` says of a list."""
    command = [
        sys.executable,
        "-m",
        "hllm",
        "evaluate",
        "--recs",
        str(recs),
        "--truth",
        str(truth),
        "--k",
        str(K),
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Failed(done.stderr.strip()[-200:])
    values = json.loads(done.stdout)["recs"]
    return {name: round(values[name], 5) for name in (f"ndcg@{K}", f"hr@{K}")}


def run_peer(peer: Peer, args: argparse.Namespace, work: Path, environments: Path) -> dict[str, Any]:
    """A peer's row; its list is left in `work`."""
    python = Path(sys.executable) if args.installed else environment(peer, environments)
    script = str(HERE / "peers" / peer.script)
    command = [str(python), script, peer.model, str(work), str(60 * args.minutes), args.device]
    # Some write logs where they stand.
    row = measured(command, work / "log.txt", 60 * args.minutes + GRACE, _threads(args.threads), work)
    return row | json.loads((work / "report.json").read_text())


def run_ours(options: list[str], args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """A row of ours, by the command that anyone types; its list is left in `work`."""
    run = work / "run"
    ids_alone = "item_llm=null" in options or {"hstu", "sasrec-paper"} & set(options)
    given = [] if ids_alone else ["--set", f"item_llm={args.item_llm}"]
    command = [sys.executable, "-m", "hllm", "train", str(args.dataset), *options, *given]
    command += ["--out", str(run), "--no-evaluate", "--device", args.device]
    row = measured(command, work / "log.txt", 60 * args.minutes + GRACE, _threads(args.threads))
    from hllm.data.batches.queries import eval_queries
    from hllm.pipeline import Recommender
    from hllm.runs.folder import read_record

    session = Recommender.from_pretrained(run, args.device).session()
    queries = eval_queries(session.data, "test")
    top = session.top(queries, K, session.candidates())  # as `hllm recommend` does, which writes tables
    rows = zip(queries.users[top.rows].tolist(), top.tokens.tolist(), top.ranks.tolist(), strict=True)
    (work / "recs.csv").write_text("user_id,item_id,rank\n" + "".join(f"{u},{i},{r}\n" for u, i, r in rows))
    record = read_record(run)
    if record.get("peak_gpu_memory_gib"):
        row["gpu_memory_mib"] = round(1024 * record["peak_gpu_memory_gib"])
    return row | {
        "fit_seconds": round(record["seconds"], 1),
        "settings": " ".join(options),
        "epochs": record["best"]["epoch"],
    }


def _threads(n: int) -> dict[str, str]:
    return {name: str(n) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}


def show(document: dict[str, Any]) -> None:
    """Print the rows as a table in Markdown."""
    print(f"{document['dataset']['name']}, {document['dataset']['n_users']:,} users, {document['device']}")
    print(
        "| model | test NDCG@10 | test HR@10 | training, s | CPU s | memory, MiB | on the GPU | settings |\n"
        + "|---" * 8
        + "|"
    )
    for name, row in document["rows"].items():
        if "failed" in row:
            print(f"| {name} | {row['failed']} | | | | | | |")
            continue
        cells = [
            f"{row[m]:.4f}".lstrip("0") if m in row else "to be scored" for m in (f"ndcg@{K}", f"hr@{K}")
        ]
        on_gpu = row.get("gpu_memory_mib", "")
        print(
            f"| {name} | " + " | ".join(cells) + f" | {row['fit_seconds']:,.0f} | {row['cpu_seconds']:,.0f} | "
            + f"{row['memory_mib']:,} | {on_gpu} | {row['settings']}"
            + (f"; {row['note']}" if row.get("note") else "") + " |"
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--peers",
        nargs="+",
        choices=(*OURS, *PEERS),
        metavar="NAME",
        help="those that suit the device, if absent",
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="of training, a model")
    parser.add_argument("--item-llm", default="smollm2-135m")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--installed", action="store_true", help="peers are in this environment")
    args = parser.parse_args()
    from hllm import hardware
    from hllm.artifacts import home, read_json, write_json
    from hllm.data.dataset import Dataset

    data = Dataset.load(args.dataset)
    document: dict[str, Any] = read_json(args.out) if args.out.is_file() else {
        "benchmark": "field",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": hardware.command_line(), "hardware": hardware.describe_hardware(),
        "versions": hardware.describe_versions(), "threads": args.threads, "device": args.device,
        "dataset": {name: data.meta[name] for name in ("name", "fingerprint", "n_users", "n_candidates")},
        "rows": {},
    }  # fmt: skip
    lists = args.out.with_suffix(".lists")
    lists.mkdir(parents=True, exist_ok=True)
    for name in args.peers or default_names(args.device):
        if name in document["rows"]:
            continue
        print(f"{name} ...", file=sys.stderr, flush=True)
        work = Path(tempfile.mkdtemp(prefix="field-"))
        try:
            events_of(data, work)
            if name in OURS:
                row = run_ours(OURS[name], args, work)
            else:
                peer = PEERS[name]
                if peer.vectors:
                    _vectors(data, args.item_llm, work)
                row = run_peer(peer, args, work, home() / "field")
            shutil.copy(work / "recs.csv", lists / file_of(name))
            shutil.copy(work / "truth.csv", lists)
        except Failed as err:
            row = {"failed": str(err), "minutes": args.minutes}
        shutil.rmtree(work, ignore_errors=True)
        document["rows"][name] = row
        write_json(args.out, document)
        print(f"{name}: {json.dumps(row)}", file=sys.stderr, flush=True)
    if importlib.util.find_spec("polars"):
        for name, row in document["rows"].items():
            if f"ndcg@{K}" not in row and (lists / file_of(name)).is_file():
                try:
                    row |= score(lists / file_of(name), lists / "truth.csv")
                except Failed as err:
                    row["failed"] = f"its list: {err}"
        write_json(args.out, document)
    show(document)


def _vectors(data: Any, item_llm: str, work: Path) -> None:
    """Item vectors for torch-rechub's model, row = token: of the last token, else as they are pooled here."""
    from hllm.errors import HLLMError
    from hllm.items.embed import load_embeddings

    try:
        made = load_embeddings(data, item_llm, pooling="last")
    except HLLMError:
        made = load_embeddings(data, item_llm)
    np.save(work / "vectors.npy", made.vectors)


if __name__ == "__main__":
    told(main)
