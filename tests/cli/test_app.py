"""How the command line finds commands and tells mistakes: one line, exit code 2, never a traceback."""

from __future__ import annotations

import importlib.machinery
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import pytest
import typer

from hllm.cli import app, console, main
from hllm.errors import DataError

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[..., Any] | typer.Typer], None]]:
    """Install a function, or an app with subcommands, as the command `probe`."""

    def install(content: Callable[..., Any] | typer.Typer) -> None:
        module = types.ModuleType("hllm.cli.probe")
        module.__spec__ = importlib.machinery.ModuleSpec("hllm.cli.probe", None)
        setattr(module, "app" if isinstance(content, typer.Typer) else "probe", content)
        monkeypatch.setitem(sys.modules, "hllm.cli.probe", module)
        monkeypatch.setattr(app, "COMMANDS", ("probe", "report"))

    yield install


def error_line(capsys: Capture) -> str:
    """The one line on standard error; nothing may stand on standard output."""
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err[len("error: ") : -1]


def test_help_lists_commands_in_order_of_use(capsys: Capture) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    shown = [name for name in app.COMMANDS if f"│ {name} " in out]
    assert "report" in shown
    assert [out.index(f"│ {name} ") for name in shown] == sorted(out.index(f"│ {name} ") for name in shown)


def test_no_arguments_is_help(capsys: Capture) -> None:
    assert main([]) == 0
    assert "Usage: hllm" in capsys.readouterr().out


def test_version(capsys: Capture) -> None:
    from hllm import __version__

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"hllm {__version__}\n"


def test_python_dash_m(run_python: Callable[..., Any]) -> None:
    done = run_python("-m", "hllm", "no-such-command")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: unknown command 'no-such-command'")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prob"], "unknown command 'prob' (did you mean 'probe'?); valid: probe, report; see `hllm --help`"),
        (["probe"], "Missing argument 'run'; see `hllm probe --help`"),
        (["probe", "a", "b"], "Got unexpected extra argument(s) (b); see `hllm probe --help`"),
        (
            ["probe", "a", "--kk", "3"],
            "No such option: --kk (Possible options: --k); see `hllm probe --help`",
        ),
        (["--versio"], "No such option: --versio (Possible options: --version); see `hllm --help`"),
    ],
)
def test_usage_errors(command: Any, capsys: Capture, arguments: list[str], message: str) -> None:
    def probe(run: str, k: int = 10) -> None:
        """Probe."""

    command(probe)
    assert main(arguments) == 2
    assert error_line(capsys) == message


def test_a_bad_value_names_option_and_value(command: Any, capsys: Capture) -> None:
    def probe(k: int = 10) -> None:
        """Probe."""

    command(probe)
    assert main(["probe", "--k", "ten"]) == 2
    line = error_line(capsys)
    assert "--k" in line
    assert "'ten'" in line


def test_subcommands_are_guessed_too(command: Any, capsys: Capture) -> None:
    sub = typer.Typer()
    seen = []

    @sub.command()
    def fetch(name: str) -> None:
        """Fetch."""
        seen.append(name)

    @sub.command("list")
    def list_() -> None:
        """List."""

    command(sub)
    assert main(["probe", "fetch", "ml-100k"]) == 0
    assert seen == ["ml-100k"]
    assert main(["probe", "fech"]) == 2
    assert error_line(capsys) == (
        "unknown command 'fech' (did you mean 'fetch'?); valid: fetch, list; see `hllm probe --help`"
    )


def test_our_errors_are_one_line(command: Any, capsys: Capture) -> None:
    def probe() -> None:
        raise DataError("no column 'time';\n  columns: a, b")

    command(probe)
    assert main(["probe"]) == 2
    assert error_line(capsys) == "no column 'time'; columns: a, b"


def test_other_exceptions_keep_their_traceback(command: Any) -> None:
    def probe() -> None:
        raise ZeroDivisionError

    command(probe)
    with pytest.raises(ZeroDivisionError):
        main(["probe"])


@pytest.mark.parametrize(("message", "told"), [("", "interrupted\n"), ("saved; go on with --resume", None)])
def test_interruption(command: Any, capsys: Capture, message: str, told: str | None) -> None:
    def probe() -> None:
        raise KeyboardInterrupt(message) if message else KeyboardInterrupt

    command(probe)
    assert main(["probe"]) == 130
    assert capsys.readouterr() == ("", told or f"{message}\n")


def test_exit_codes_of_commands_are_kept(command: Any) -> None:
    def probe(code: int) -> None:
        raise typer.Exit(code)

    command(probe)
    assert main(["probe", "3"]) == 3


def test_a_closed_pipe_is_quiet(run_python: Callable[..., Any]) -> None:
    code = (
        "import os, sys\nread, write = os.pipe()\nos.close(read)\nos.dup2(write, 1)\n"
        "from hllm.cli import main\nsys.exit(main(['--version']))"
    )
    done = run_python("-c", code)
    assert (done.returncode, done.stderr) == (1, "")


def test_titles_on_a_terminal_without_utf8(run_python: Callable[..., Any]) -> None:
    code = (
        "from hllm.cli import console\nconsole.make_output_safe()\n"
        "console.table(None, ['title'], [['Misérables']])\nconsole.error('Misérables')"
    )
    done = run_python("-c", code, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert "Mis?rables" in done.stdout
    assert done.stderr == "error: Mis?rables\n"


def test_warnings_are_summed_up(command: Any, capsys: Capture) -> None:
    def probe() -> None:
        for i in range(40):
            warnings.warn("item without text\nsecond line", stacklevel=1)
            if i < 7:
                warnings.warn(f"kind {i}", stacklevel=1)

    command(probe)
    assert main(["probe"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "warning: UserWarning: item without text (40 times)"
    assert lines[1] == "warning: UserWarning: kind 0"
    assert lines[-1] == "warning: and 3 other kinds"
    assert len(lines) == console.SHOWN_WARNINGS + 1


def test_table(capsys: Capture) -> None:
    rows = [["popularity [x]", 0.0432, 943], ["random", None, 1682]]
    console.table("Test split", ["model", "ndcg@10", "users"], rows, caption="a result line " * 20)
    out, err = capsys.readouterr()
    lines = [line.split() for line in out.splitlines() if line.strip()]
    assert lines[0] == ["Test", "split"]
    assert lines[1] == ["model", "ndcg@10", "users"]
    assert lines[3] == ["popularity", "[x]", "0.0432", "943"]
    assert lines[4] == ["random", "1,682"]
    assert lines[5] == ["a", "result", "line"] * 20  # unbroken
    assert err == ""


def test_report_of_a_foreign_folder(tmp_path: Any, capsys: Capture) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "is not a run folder (no config.json)" in error_line(capsys)
    assert list(tmp_path.iterdir()) == []


def test_commands_with_a_default_and_a_flag(command: Any) -> None:
    seen = []

    def probe(k: Annotated[list[int] | None, typer.Option("--k", "-k")] = None) -> None:
        seen.append(k)

    command(probe)
    assert main(["probe", "-k", "10", "--k", "50"]) == 0
    assert seen == [[10, 50]]
