"""`python -m hllm` is the `hllm` command."""

import sys

from hllm.cli import main

if __name__ == "__main__":
    sys.exit(main())
