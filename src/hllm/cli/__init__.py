"""The `hllm` command: one file a command, each imported when it is called."""

from hllm.cli.app import main as main
