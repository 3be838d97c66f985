"""Every process collects the same tests, whatever its hash seed and the second of the day.

pytest-xdist refuses to run where two of its workers disagree, so an id made of a set's order, a
compressed value or an object's address would lose a whole run.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def collect(hash_seed: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    for name in [name for name in environment if name.startswith(("PYTEST", "COV_"))]:
        del environment[name]
    return subprocess.Popen(
        [*command, str(ROOT / "tests")],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
    )


def test_every_process_collects_the_same_tests() -> None:
    first = collect("1")
    time.sleep(1.1)
    second = collect("2")
    ids = []
    for process in (first, second):
        text, _ = process.communicate(timeout=600)
        ids.append([line for line in text.splitlines() if "::" in line])
    assert len(ids[0]) > 1000, text
    assert ids[0] == ids[1]
    assert not [line for line in ids[0] if " at 0x" in line or not line.isprintable()]
