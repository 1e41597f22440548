"""The examples in docstrings say what happens: each is run, beside a small run of its name."""

import ast
import doctest
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.viewing.conftest import workdir

__all__ = ["workdir"]
ROOT = Path(__file__).resolve().parent.parent.parent
MODULES = sorted(
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
    for path in (ROOT / "jax_mdlm").rglob("*.py")
    if any(
        ">>> " in (ast.get_docstring(node) or "")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    )
)


def examples(module: str) -> Iterator[doctest.DocTest]:
    """The examples of a module."""
    for test in doctest.DocTestFinder().find(importlib.import_module(module)):
        if test.examples:
            yield test


@pytest.fixture(scope="module")
def runs(workdir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run where the examples look for one."""
    folder = tmp_path_factory.mktemp("examples")
    (folder / "runs").mkdir()
    (folder / "runs" / "quickstart").symlink_to(workdir)
    return folder


@pytest.mark.parametrize("module", MODULES)
def test_an_example_shows_what_happens(
    module: str, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(runs)
    runner = doctest.DocTestRunner()
    said: list[str] = []
    for test in examples(module):
        runner.run(test, out=said.append)
    assert not runner.summarize(verbose=False).failed, "".join(said)


def test_what_guides_link_to_has_examples() -> None:
    assert sum(len(list(examples(module))) for module in MODULES) >= 10
