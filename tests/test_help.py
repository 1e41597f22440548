"""Every page of --help: of every command, task, action and part, found from the parsers."""

import argparse
import re
import runpy
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

import jax_mdlm

ROOT = Path(jax_mdlm.__file__).parent


def commands() -> list[str]:
    """What `python -m` takes: every file of the package that begins a process."""
    found = []
    for file in sorted(ROOT.rglob("*.py")):
        if re.search(r'^if __name__ == "__main__":', file.read_text("utf-8"), re.M):
            parts = file.relative_to(ROOT.parent).with_suffix("").parts
            found.append(".".join(part for part in parts if part != "__main__"))
    return found


def help_page(
    module: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> tuple[str, list[str]]:
    """`python -m MODULE WORDS --help` in this process: what it prints, and what may follow."""
    shown: list[argparse.ArgumentParser] = []
    print_help = argparse.ArgumentParser.print_help

    def note(parser: argparse.ArgumentParser, *where) -> None:
        shown.append(parser)
        print_help(parser, *where)

    with (
        mock.patch.object(sys, "argv", [module, *words, "--help"]),
        mock.patch.object(argparse.ArgumentParser, "print_help", note),
    ):
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
            code = 0
        except SystemExit as stopped:
            code = stopped.code or 0
    text, errors = capsys.readouterr()
    assert code == 0, f"{module} {' '.join(words)} --help ends with {code}: {errors}"
    return text, [
        name
        for parser in shown
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
        for name in action.choices
    ]


def test_the_commands_are_those_that_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    text, _ = help_page("jax_mdlm", [], capsys)
    listed = re.findall(r"python -m (jax_mdlm\.\w+)", text)
    assert sorted(listed) == [name for name in commands() if name != "jax_mdlm"]


@pytest.mark.parametrize("module", commands())
@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_every_page_of_help(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    waiting: list[list[str]] = [[]]
    pages = []
    while waiting:
        words = waiting.pop()
        text, below = help_page(module, words, capsys)
        assert len(text.split()) > 10, f"{module} {' '.join(words)} --help says nothing: {text!r}"
        assert not re.search(r"%[(%]", text), f"{module} {words}: {text}"
        pages.append(words)
        waiting += [[*words, name] for name in below]
    least = {"jax_mdlm.evaluate": 12, "jax_mdlm.convert": 4}
    assert len(pages) >= least.get(module, 1), pages


@pytest.mark.parametrize("words", [["jax_mdlm"], ["jax_mdlm.evaluate", "judge"]])
def test_help_as_it_is_typed(words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *words, "--help"], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "judge" in done.stdout
