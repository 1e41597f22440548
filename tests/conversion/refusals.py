"""How a folder or a work directory is refused: by everything that takes one, with one text."""

import subprocess
import sys
from pathlib import Path

import pytest

import jax_mdlm.sample
import jax_mdlm.train
from jax_mdlm import conversion
from jax_mdlm.config import ConfigError
from jax_mdlm.convert import main
from tests.conversion.folders import hashes

UNFINISHED = "holds an import that was not finished; run python -m jax_mdlm.convert import"
_NOTES = {"_CHECKPOINT_METADATA", "commit_success.txt"}  # when and where Orbax wrote


def refusal(folder: Path) -> str:
    """The text with which everything refuses `folder`; nothing is written, there or elsewhere."""
    before, workdir = hashes(folder), folder.parent / "run"
    texts = []
    for use in (
        lambda: main(["import", str(folder), str(workdir)]),
        lambda: main(["inspect", str(folder)]),
        lambda: conversion.load(folder),
    ):
        with pytest.raises(ConfigError) as caught:
            use()
        texts.append(str(caught.value))
    assert len(set(texts)) == 1
    assert not workdir.exists()
    assert hashes(folder) == before
    return texts[0]


def assert_refused(workdir: Path, text: str) -> None:
    """Everything that starts from a work directory refuses it, and writes nothing."""
    path, other = str(workdir), workdir.parent / "other"
    for use in (
        lambda: jax_mdlm.sample.main(["--workdir", path, "hello"]),
        lambda: jax_mdlm.train.main(["--config", "pronounce", "--workdir", path]),
        lambda: main(["export", path, str(other)]),
        lambda: main(["inspect", path]),
        lambda: conversion.load(path),
    ):
        with pytest.raises(ConfigError, match=text):
            use()
    assert not other.exists()


def command(*words: object, limit: int | None = None) -> subprocess.CompletedProcess[str]:
    """Runs `convert` as users do; `limit`: largest file in bytes that it may write."""
    line = [sys.executable, "-B", "-m", "jax_mdlm.convert", *map(str, words)]
    if limit is not None:
        confine = "import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, "
        confine += f"({limit}, {limit})); os.execv(sys.executable, {line})"
        line = [sys.executable, "-c", confine]
    return subprocess.run(line, capture_output=True, text=True)


def the_error_of(done: subprocess.CompletedProcess[str]) -> str:
    """What the user is told; there must be nothing but this line, and exit code 2."""
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert done.stdout == ""
    return line.removeprefix("error: ")


def content(workdir: Path) -> dict[str, str]:
    """`hashes` of what two imports of the same weights have in common: all but Orbax's notes."""
    return {name: value for name, value in hashes(workdir).items() if Path(name).name not in _NOTES}
