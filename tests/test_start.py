"""What a command loads before it has something to do: nothing that takes long."""

import subprocess
import sys

from jax_mdlm.__main__ import COMMANDS
from jax_mdlm.evaluation import flags
from jax_mdlm.evaluation.judge import make_benchmark

# The dependencies, but for pydantic.
HEAVY = {"jax", "numpy", "flax", "orbax", "tensorstore", "etils", "tokenizers", "rich", "scipy"}
_ALL_HELP = """
import argparse, contextlib, importlib, io, sys
from unittest import mock

def words(parser):
    yield []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                yield from ([name, *rest] for rest in words(inner))

class Seen(Exception):
    pass

def see(parser, argv=None):
    raise Seen(parser)

for name in sys.argv[1:]:
    main = importlib.import_module(f"jax_mdlm.{name}").main
    with mock.patch.object(argparse.ArgumentParser, "parse_args", see):
        try:
            main([])
        except Seen as seen:
            (parser,) = seen.args
    for path in words(parser):
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown):
            try:
                main([*path, "--help"])
            except SystemExit as left:
                assert left.code == 0, path
        called = " ".join([f"python -m jax_mdlm.{name}", *path])
        assert shown.getvalue().startswith(f"usage: {called} "), shown.getvalue()
        print(name, *path)
print("loaded:", *{module.partition(".")[0] for module in sys.modules})
"""


def test_every_help_is_shown_before_anything_is_loaded() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _ALL_HELP, *COMMANDS], capture_output=True, text=True
    )
    assert not done.returncode, done.stderr
    *shown, loaded = done.stdout.splitlines()
    assert {"train", "evaluate", "evaluate judge report", "convert import"} < set(shown)
    assert len(shown) == len(set(shown)) >= 19
    assert not HEAVY & set(loaded.split())


def test_a_mistake_in_the_flags_is_told_before_anything_is_loaded() -> None:
    code = (
        "import sys\n"
        "from jax_mdlm import command, sample\n"
        "sys.argv = ['sample', '--workdir', 'run', '--share']\n"
        "try:\n    command.run(sample.main)\n"
        "except SystemExit as left:\n    assert left.code == 2\n"
        f"assert not {HEAVY} & set(sys.modules), sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    assert done.stderr == "error: --share gives --web a public address; give --web, too\n"


def test_flags_name_the_benchmarks_that_there_are() -> None:
    for name in flags.BENCHMARKS:
        make_benchmark(name)
