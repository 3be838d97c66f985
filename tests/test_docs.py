"""What the pages say: every command is one that `hllm` accepts, every link leads somewhere, Python parses."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest
import typer

from hllm.cli.app import app
from hllm.config import load_config, parse_assignments

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
}
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.M | re.S)
SHELL = ("", "bash", "sh", "cron")
OPEN = ("...", "[", "{", "|")  # of a form that leaves something to the reader


def commands(page: str) -> list[str]:
    """The lines of a page that call hllm: in blocks for a shell, prompts, comments and schedules taken off."""
    found = []
    for language, block in FENCE.findall(page):
        if language not in SHELL:
            continue
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            for part in re.split(r"&&|;|\|(?!\|)| >> ", re.sub(r"\s#.*", "", line)):
                if called := re.search(r"(?:^|\s|/bin/)(hllm [a-z].*)$", part.removeprefix("$ ").strip()):
                    found.append(called[1])
    return found


def mentions(page: str) -> list[str]:
    """What stands between two ` in running text and calls hllm, possibly without all it needs."""
    return re.findall(r"`(hllm [a-z][^`]*)`", FENCE.sub("", page))


def accepted(line: str, partly: bool) -> None:
    """Let the command line's own parser read `line`; it raises for what it does not accept."""
    words = shlex.split(line)[1:]
    group, names = typer.main.get_group(app), []
    with group.make_context("hllm", words) as context:
        command, rest = group, words
        while hasattr(command, "commands") or hasattr(command, "list_commands"):
            names.append(rest[0])
            command = command.resolve_command(context, rest)[1]
            rest = rest[1:]
            if partly and not rest:
                return
        try:
            given = command.make_context(names[-1], list(rest), parent=context).params
        except typer.TyperException as err:
            if partly and re.search("Missing|requires an argument", err.format_message()):
                return
            raise AssertionError(f"{line}: {err.format_message()}") from err
    if "preset" in given and "set_" in given:
        load_config(given["preset"], None, parse_assignments(given["set_"]))


@pytest.mark.parametrize("name", PAGES)
def test_every_command_is_accepted(name):
    for line in commands(PAGES[name]):
        accepted(line, partly=False)
    for line in mentions(PAGES[name]):
        if not any(mark in line for mark in OPEN):
            accepted(line, partly=True)


def test_commands_are_found_and_refused():
    assert len(commands(PAGES["README.md"])) >= 10
    for line in ("hllm recommend runs/x --no-such-flag", "hllm nonsense", "hllm train D --set d_modle=3"):
        with pytest.raises(Exception, match=r"no-such-flag|nonsense|d_modle"):
            accepted(line, partly=False)


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_to_a_file_and_every_anchor_to_a_heading(name):
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", PAGES[name])):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        path = (ROOT / name).parent / file if file else ROOT / name
        assert path.exists(), f"{name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.M)
            assert anchor in [re.sub(r"[^\w\- ]", "", h).lower().replace(" ", "-") for h in headings], target


@pytest.mark.parametrize("name", PAGES)
def test_every_file_named_in_the_text_is_there(name):
    named = re.findall(r"`(?:python )?((?:benchmarks|examples|docs|tests|src)/[\w./*-]+)", PAGES[name])
    assert not [file for file in named if not any(ROOT.glob(file.rstrip(".")))]


@pytest.mark.parametrize("name", PAGES)
def test_python_parses(name):
    for language, block in FENCE.findall(PAGES[name]):
        if language == "python":
            ast.parse(block)
