"""Whether the commands would take what a document tells a reader to type; nothing is run.

A command's own `main` parses; where it has, it is stopped. What it would read next of its settings
(config file, preset, overrides, the list of a sweep) is then read the way it does.
"""

import argparse
import contextlib
import dataclasses
import functools
import importlib
import io
import re
import subprocess
import tomllib
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from jax_mdlm import command
from jax_mdlm.config import Config, ConfigError
from jax_mdlm.experiments import sweep
from tests.docs.commands import Command

ROOT = Path(__file__).parent.parent.parent
COMMANDS = {
    "train": "jax_mdlm.train",
    "sample": "jax_mdlm.sample",
    "evaluate": "jax_mdlm.evaluate",
    "convert": "jax_mdlm.convert",
    "plan": "jax_mdlm.plan",
    "prepare": "jax_mdlm.prepare",
    **{
        f"benchmarks.{name}": f"benchmarks.{name}"
        for name in (
            "loss",
            "lattice",
            "convert",
            "sampler",
            "buckets",
            "data",
            "eight_billion",
            "weights",
        )
    },
}
# Flags of other programs that prose names.
FOREIGN = frozenset({"--internal-ip", "--internal-ips", "--strict"})
# The config that a run named in a block stands for, by the beginning of its folder's name.
RUNS = {"quickstart": "pronounce", "pronounce": "pronounce", "numbers": "numbers", "": "llada_ctc"}


class Refused(ValueError):
    """What a reader would be told, were the command typed."""


@dataclasses.dataclass
class Parsed(Exception):
    """Carries what was parsed out of a command's `main`."""

    parser: argparse.ArgumentParser
    arguments: argparse.Namespace
    overrides: list[str]


_parse_args, _split = argparse.ArgumentParser.parse_args, command.split_overrides


def parse(name: str, argv: Sequence[str]) -> Parsed:
    """What `python -m jax_mdlm.NAME ARGV` makes of its arguments.

    Raises:
      Refused: it takes none of that.
    """

    def stop(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
        raise Parsed(parser, _parse_args(parser, words), [])

    def stop_at_split(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
        # The real function splits; the parser that it is given is the one that does not stop.
        free = types.SimpleNamespace(parse_args=lambda own: _parse_args(parser, own))
        raise Parsed(parser, *_split(free, words))  # pyright: ignore[reportArgumentType]

    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return _run_until(name, argv, stop, stop_at_split)
    except SystemExit:
        raise Refused(errors.getvalue().strip().rpartition("\n")[2]) from None


def _run_until(name: str, argv: Sequence[str], *stops: Callable[..., None]) -> Parsed:
    if name not in COMMANDS:
        raise Refused(f"no command {name}; known are {', '.join(COMMANDS)}")
    main = importlib.import_module(COMMANDS[name]).main
    with (
        mock.patch.object(argparse.ArgumentParser, "parse_args", stops[0]),
        mock.patch.object(command, "split_overrides", stops[-1]),
    ):
        try:
            main(list(argv))
        except Parsed as parsed:
            return parsed
    raise AssertionError(f"{name} did not parse its arguments")


def check_arguments(name: str, argv: Sequence[str]) -> None:
    """Parses, and reads the settings that the arguments name.

    Raises:
      Refused: unknown flag, task, config, preset, setting, or value.
    """
    parsed = parse(name, argv)
    arguments, overrides = parsed.arguments, parsed.overrides
    try:
        if name.startswith("benchmarks."):
            return
        if getattr(arguments, "config", None):
            command.parse_config(arguments.config, overrides)
        elif getattr(arguments, "task", "") == "sweep":
            sweep.list_runs(arguments, overrides)
        elif getattr(arguments, "action", "") in ("compare", "report") and overrides:
            raise Refused(f"judge {arguments.action} has no settings of a run")
        else:
            folder = Path(str(getattr(arguments, "workdir", ""))).name
            run = next(run for begin, run in RUNS.items() if folder.startswith(begin))
            config = command.parse_config(run, [])
            # Which imports lack a tokenizer is not known here: its settings are taken.
            command.apply_overrides(
                config, overrides, section="sample", unfixed=lambda: ("data.tokenizer.",)
            )
    except ConfigError as error:
        raise Refused(str(error)) from error


def check(one: Command) -> None:
    """Checks a command of a document by its first words; what is none of ours passes.

    Raises:
      Refused: it cannot work as it is written.
    """
    words = list(one.words)
    while words and re.fullmatch(r"[A-Za-z_]\w*=.*", words[0]):
        words = words[1:]
    if not words:
        return
    first = words[0].rpartition("/")[2]
    if re.fullmatch(r"python(3(\.\d+)?)?", first):
        if words[1:2] == ["-m"] and len(words) > 2:
            _check_module(words[2], words[3:])
        elif words[1:] and not words[1].startswith("-"):
            _check_file(words[1])
    elif first == "uv" or (first == "pip" and words[1:2] == ["install"]):
        _check_module("pip", words[words.index("install") :] if "install" in words else [])
    elif first == "sh" and len(words) > 1:
        _check_script(words[1], words[2:])
    elif first == "pytest":
        _check_module("pytest", words[1:])


def _check_module(module: str, argv: list[str]) -> None:
    package, _, name = module.partition(".")
    if package == "jax_mdlm" and name:
        check_arguments(name, argv)
    elif package == "benchmarks":
        check_arguments(module, argv)
    elif module == "pip":
        for word in argv[1:]:
            check_requirement(word)
    elif module == "pytest":
        for word in argv:
            if word.startswith("tests"):
                _check_file(word.partition("::")[0])


def check_requirement(word: str) -> None:
    """A word of `pip install`.

    Raises:
      Refused: an extra that `pyproject.toml` does not define; the package by its name alone.
    """
    found = re.fullmatch(r"(?:\.|jax[-_]mdlm|\S*\.whl)\[([\w,-]+)\]\S*( @ \S+)?", word)
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra in found[1].split(",") if found else ():
        if extra not in known:
            raise Refused(f"{word}: no extra {extra}; known are {', '.join(known)}")
    if re.fullmatch(r"jax[-_]mdlm(\[[^]]*\])?([<>=!~]\S*)?", word):
        raise Refused(f"{word}: the package is on no index; name the checkout or a file")


def _check_file(word: str) -> None:
    if not (ROOT / word).exists():
        raise Refused(f"no file {word} in the checkout")


def _check_script(script: str, argv: list[str]) -> None:
    if not script.endswith(".sh"):
        return
    _check_file(script)
    done = subprocess.run(["sh", "-n", ROOT / script], capture_output=True, text=True)
    if done.returncode:
        raise Refused(done.stderr.strip())
    known = script_flags(script)
    behind = next((at for at, word in enumerate(argv) if word in ("--", "run")), len(argv))
    for word in argv[:behind]:
        if word.startswith("--") and word.partition("=")[0] not in known:
            raise Refused(f"{script} has no flag {word}")
    if behind < len(argv):  # what stands there goes to train
        check_arguments("train", argv[behind + 1 :])


def script_flags(script: str) -> set[str]:
    """The flags that a script, or one that stands beside it, names."""
    text = "".join(path.read_text() for path in (ROOT / script).parent.glob("*.sh"))
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text))


@functools.cache
def flags() -> dict[str, frozenset[str]]:
    """The flags of every command and task, by what stands after `python -m jax_mdlm.`."""
    return {
        parser.prog.removeprefix("python -m ").removeprefix("jax_mdlm."): frozenset(
            flag for action in parser._actions for flag in action.option_strings
        )
        for name in COMMANDS
        for parser in _with_tasks(_parser(name))
    }


def check_span(span: str) -> None:
    """Checks inline code of prose: flags, settings, and commands that need not be complete.

    Raises:
      Refused: no command has the flag or task; no section has the setting, or not such a value.
    """
    words = span.split()
    if span.startswith(("python -m jax_mdlm.", "python -m benchmarks.")):
        try:
            check_arguments(words[2].removeprefix("jax_mdlm."), words[3:])
        except Refused as refused:
            # Prose may name a command without all that it needs, or with TASK for any.
            if not re.search(r"arguments are required|choice: '[A-Z]+'", str(refused)):
                raise
    known = frozenset[str]().union(*flags().values()) | script_flags("launch/tpu/pod.sh")
    known |= script_flags("launch/gke/jobset.sh") | FOREIGN
    for word in words:
        if word.startswith("--config."):
            check_setting(word.removeprefix("--config."))
        elif re.match(r"--[a-z]", word) and word.partition("=")[0] not in known:
            raise Refused(f"no command has the flag {word}")
        elif re.match(r"[a-z_]+\.[a-z]", word):
            check_name(word)


def check_setting(text: str) -> None:
    """A setting as the command line has it, `section.field`, perhaps with `=value`.

    A part in capitals, `*` or `...` stands for any.

    Raises:
      Refused: there is no such setting, or it takes no such value.
    """
    path, _, value = text.partition("=")
    path = re.sub(r"^init\.from$", "init.source", path)
    section: Any = Config()
    for part in path.split("."):
        if re.fullmatch(r"[A-Z]+|\*|section|field|", part):
            return
        if not (dataclasses.is_dataclass(section) and hasattr(section, part)):
            raise Refused(f"--config.{text} is not a setting")
        section = getattr(section, part)
    if value and not re.search(r"[A-Z]|\.\.\.", value):
        try:
            command.apply_overrides(Config(), [f"--config.{path}={value}"])
        except ConfigError as error:
            if str(error).startswith("--config."):  # not what it means beside other settings
                raise Refused(str(error)) from error


def check_name(word: str) -> None:
    """A word with a dot: a setting, a file, or a name in one of the package's rooms.

    Raises:
      Refused: it begins with the name of a section and is none of these.
    """
    first, _, rest = word.partition(".")
    sections = {field.name for field in dataclasses.fields(Config)}
    if first not in sections or word.startswith("model.transformer."):  # PyTorch's names
        return
    if re.fullmatch(r"\w+\.(py|json|jsonl|md|html|png|yaml)", word):
        return
    with contextlib.suppress(ImportError, AttributeError):
        getattr(importlib.import_module(f"jax_mdlm.{first}"), rest.partition("(")[0])
        return
    check_setting(word.rstrip(",;"))


def _parser(name: str) -> argparse.ArgumentParser:
    """The parser of a command, which builds it before it parses anything."""

    def show(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
        raise Parsed(parser, argparse.Namespace(), [])

    return _run_until(name, [], show).parser


def _with_tasks(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _with_tasks(below)
