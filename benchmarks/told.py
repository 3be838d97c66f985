"""Runs a benchmark: what its caller can mend is told in one line, with code 2, as the `hllm` program does."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

from hllm.artifacts import disk_problem
from hllm.errors import HLLMError


def told(main: Callable[[], None]) -> None:
    """`main()`, without a traceback for a missing folder, a foreign file or a wrong setting."""
    try:
        main()
        return
    except HLLMError as err:
        line = str(err)
    except subprocess.CalledProcessError as err:  # the command itself has told the rest
        line = f"{' '.join(map(str, err.cmd))[:300]} ended with code {err.returncode}"
    except Exception as err:
        if disk_problem(err) is None:
            raise
        line = " ".join(str(err).split())
    print(f"error: {line}", file=sys.stderr)
    sys.exit(2)
