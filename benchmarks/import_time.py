"""Seconds that `import hllm` and `hllm --help` take, beside `import torch` in the same run.

python benchmarks/import_time.py
"""

from __future__ import annotations

import subprocess
import sys
import time

COMMANDS = {
    "import hllm": ["-c", "import hllm"],
    "hllm --help": ["-m", "hllm", "--help"],
    "import torch": ["-c", "import torch"],
}


def main() -> None:
    for name, arguments in COMMANDS.items():
        times = []
        for _ in range(5):
            start = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
            times.append(time.perf_counter() - start)
        print(f"{name}: {min(times):.2f} s (best of {len(times)})")


if __name__ == "__main__":
    main()
