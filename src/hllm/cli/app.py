"""The `hllm` program: finds commands, and turns every mistake of a user into one line.

A command is a file of this package, named in COMMANDS. The file holds either a function of
the command's name or, for a command with subcommands, a Typer `app`. Files of commands may
import typer and hllm.cli.console at the top; everything heavy is imported inside the
functions, so that `hllm --help` stays quick.
"""

from __future__ import annotations

import importlib
import os
import sys
from importlib.util import find_spec
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from hllm.cli import console
from hllm.errors import DeviceError, HLLMError, unknown
from hllm.ranks import is_cut_off, launched, leave, speaks

COMMANDS = (
    "demo", "data", "embed", "items", "plan", "train", "tune", "evaluate", "recommend", "similar", "explain", "update",
    "export", "index", "serve", "report", "import-bytedance",
)  # fmt: skip
USER_MISTAKE, INTERRUPTED = 2, 130
HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}


class Group(TyperGroup):
    """Commands whose unknown names are answered with the nearest one and all valid ones."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        names = self.list_commands(ctx)
        if args and not args[0].startswith("-") and args[0] not in names:
            ctx.fail(unknown("command", args[0], names))
        return super().resolve_command(ctx, args)


class Commands(Group):
    """The top level: command NAME is imported from `hllm.cli.NAME` when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [name for name in COMMANDS if find_spec(f"hllm.cli.{_module(name)}")]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.list_commands(ctx):
            return None
        module = importlib.import_module(f"hllm.cli.{_module(cmd_name)}")
        if hasattr(module, "app"):
            module.app.info.cls = Group
            group = typer.main.get_group(module.app)
            group.name = cmd_name
            return group
        single = typer.Typer(add_completion=False, context_settings=HELP_OPTIONS)
        single.command(cmd_name)(getattr(module, _module(cmd_name)))
        return typer.main.get_command(single)


def _module(command: str) -> str:
    return command.replace("-", "_")


app = typer.Typer(cls=Commands, add_completion=False, context_settings=HELP_OPTIONS)


def _print_version(wanted: bool) -> None:
    if wanted:
        from hllm import __version__

        typer.echo(f"hllm {__version__}")
        raise typer.Exit


@app.callback()
def hllm(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Hierarchical LLM recommendation: item text and histories in, ranked items out."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line (`sys.argv` by default) and return its exit code.

    0: done. 2: a mistake of the user, told in one line on standard error. 130: interrupted.
    Any other exception is a fault of hllm and is left to Python's traceback.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    console.make_output_safe()
    try:
        with console.warnings_summed_up():
            return _run(arguments or ["--help"])
    except typer.Exit as done:  # after --help and --version
        return done.exit_code
    except HLLMError as err:
        if speaks():
            console.error(str(err))
        elif isinstance(err, DeviceError):  # of this process alone; all else the first one says, too
            console.error(f"process {os.environ['RANK']}: {err}")
    except typer.TyperException as err:  # a missing option, a bad value, an unknown command
        console.error(_usage_message(err))
    except (KeyboardInterrupt, typer.Abort) as err:
        console.note(str(err) or "interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as err:  # a disk that is full, say: any library has its own error for it
        from hllm.artifacts import disk_problem

        if launched() and is_cut_off(err):
            return 1  # what started this process says which other one ended
        if (problem := disk_problem(err)) is None:
            raise
        console.error(problem)
    finally:
        leave()
    return USER_MISTAKE


def _run(arguments: list[str]) -> int:
    """Parse and run. Typer's own `main` would print its errors in boxes of many lines."""
    command = typer.main.get_group(app)
    with command.make_context("hllm", list(arguments), obj=tuple(arguments)) as context:
        command.invoke(context)
    sys.stdout.flush()  # a closed pipe shows here, where it is handled
    return 0


def _usage_message(err: typer.TyperException) -> str:
    """What Typer found wrong, the value it met, and where the valid ones are listed."""
    message = err.format_message().strip().rstrip(".")
    if errors := getattr(err.__cause__, "errors", None):  # of pydantic, which leaves the value out
        message += f" (got {errors()[0]['input']!r})"
    context = getattr(err, "ctx", None)
    return f"{message}; see `{context.command_path} --help`" if message and context else message
