"""From a script's command line to a function call, with every mistake told in one line."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from hllm.artifacts import disk_problem
from hllm.compat.rechub.states import STATES
from hllm.errors import ConfigError, HLLMError, unknown

USER_MISTAKE, INTERRUPTED = 2, 130
SPLITS = ("leave-one-out", "user-ratio")
LOSSES = ("nce", "in_batch", "cross_entropy")
# Messages of the library name the options of `hllm`; the scripts have their own.
RENAMED = {
    "--item-llm": "--model_type",
    "--batch-size": "--batch_size",
    "--trust-remote-code": "--trust_remote_code",
}


class Parser(argparse.ArgumentParser):
    """Options with underscores, as torch-rechub writes them, and with hyphens; mistakes raise ConfigError."""

    def __init__(self, description: str) -> None:
        super().__init__(description=description, allow_abbrev=False)

    def flag(self, name: str, *others: str, **options: Any) -> None:
        """Add an option under `name`, `others`, and all of them with hyphens for underscores."""
        names = [n for name in (name, *others) for n in (name, "--" + name[2:].replace("_", "-"))]
        self.add_argument(*dict.fromkeys(names), dest=name[2:].replace("-", "_"), **options)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")

    def parse(self, arguments: Sequence[str] | None) -> argparse.Namespace:
        """Parse `arguments` (`sys.argv` if None); ConfigError for an unknown option names the nearest."""
        found, rest = self.parse_known_args(arguments)
        if rest:
            names = [name for action in self._actions for name in action.option_strings if name[:2] == "--"]
            raise ConfigError(unknown("option", rest[0], [name for name in names if "-" not in name[2:]]))
        return found


def common_flags(parser: Parser) -> None:
    """The option that every script has: which of torch-rechub's states to follow."""
    parser.flag(
        "--state", choices=STATES, default="rechub", help="release 0.9 (rechub), or the document's commit"
    )


def raw_flags(parser: Parser) -> None:
    """Options of the preprocessing scripts."""
    parser.flag("--data_dir", help="folder of the raw files; the script's own if absent")
    parser.flag("--output_dir", help="where to write; processed/ in the data folder if absent")
    parser.flag("--no_download", action="store_true", help="never download raw data")
    parser.flag("--overwrite", action="store_true", help="download raw data again, even where it is")
    common_flags(parser)


def split_flags(parser: Parser) -> None:
    """Which events are held out."""
    parser.flag("--split", choices=SPLITS, help="the state's own if absent")
    parser.flag("--ratio", type=ratio, help="user-ratio: shares as 0.8,0.1,0.1; rechub-doc has 0.7,0.1,0.2")


def model_flags(parser: Parser) -> None:
    """Which item LLM, and where to compute."""
    parser.flag(
        "--model_type",
        default="tinyllama",
        help="tinyllama, baichuan2, smollm2-135m, another short name, a hub name, or a folder",
    )
    parser.flag("--device", default="cuda", help="cuda, cuda:N, cpu, or auto")
    parser.flag("--auto_batch", action="store_true", help="where memory runs out, take a batch that fits")


def ratio(text: str) -> tuple[float, ...]:
    """`0.8,0.1,0.1` as numbers; argparse turns the ValueError into its own message."""
    return tuple(float(part) for part in text.split(","))


def positive(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def say(text: str) -> None:
    """A line of the script's output."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def warn(text: str) -> None:
    """A warning, as one line on standard error; the script goes on."""
    sys.stderr.write(f"warning: {_line(text)}\n")
    sys.stderr.flush()


def entrance(main: Callable[[Sequence[str] | None], None], arguments: Sequence[str] | None = None) -> int:
    """Run a script and return its exit code: 0, 2 for a mistake told in one line, 130 if interrupted."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *rest, **options: warn(str(message))
            main(arguments)
        return 0
    except HLLMError as err:
        sys.stderr.write(f"error: {_line(str(err))}\n")
        return USER_MISTAKE
    except KeyboardInterrupt as err:
        sys.stderr.write(f"{_line(str(err)) or 'interrupted'}\n")
        return INTERRUPTED
    except Exception as err:  # a disk that is full, say: any library has its own error for it
        if (problem := disk_problem(err)) is None:
            raise
        sys.stderr.write(f"error: {_line(problem)}\n")
        return USER_MISTAKE


def _line(text: str) -> str:
    for ours, theirs in RENAMED.items():
        text = text.replace(ours, theirs)
    return " ".join(text.split())
