"""A folder for every document, with what the front page leaves behind; its blocks run there once.

A reader has the checkout and has run the quickstart: nothing else is assumed. A block may use what
the blocks before it on its page have made.
"""

import contextlib
import dataclasses
import fcntl
import functools
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from tests.docs.commands import Block, documents, read_blocks
from tests.docs.parsing import ROOT
from tests.docs.shell import Result, Shell
from tests.training.forks import Forks

# What launch/quickstart.sh trains.
QUICKSTART = "python -m jax_mdlm.train --config configs/pronounce.py --workdir runs/quickstart\n"


@functools.cache
def all_blocks() -> tuple[Block, ...]:
    """The blocks of all documents."""
    return tuple(
        block
        for page in documents(ROOT)
        for block in read_blocks(page.read_text(), page.relative_to(ROOT).as_posix())
    )


def runs(block: Block) -> bool:
    """Whether a block is to be run."""
    return block.language in ("sh", "python") and not block.needs


class Documents:
    """The blocks of all documents, each run once by whichever worker of pytest comes first.

    Args:
      forks: The warm process.
      root: A folder that all workers share.
    """

    def __init__(self, forks: Forks, root: Path):
        self._forks, self._root = forks, root

    def result(self, block: Block) -> Result:
        """What a block came to, after all that run before it on its page."""
        name = block.file.replace("/", "_")
        with self._alone(name):
            sh = self.shell(name)
            before = [one for one in all_blocks() if one.file == block.file and runs(one)]
            for one in before[: before.index(block) + 1]:
                record = self._root / f"{name}_{one.line}.json"
                if not record.exists():
                    result = sh.run(one.text, one.language)
                    record.write_text(json.dumps(dataclasses.asdict(result)))
        return Result(**json.loads(record.read_text()))

    def shell(self, name: str) -> Shell:
        """A shell in a folder of that name, which is made where there is none."""
        folder = self._root / name
        if not folder.exists():
            with self._alone("checkout"):
                shutil.copytree(self._checkout(), folder)
        return Shell(self._forks, folder, folder / "home")

    def _checkout(self) -> Path:
        """What a reader has; copied, because documents write into it."""
        folder = self._root / "checkout"
        if not folder.exists():
            for name in ("configs", "launch", "docs"):
                shutil.copytree(ROOT / name, folder / name)
            (folder / "home").mkdir()
            result = Shell(self._forks, folder, folder / "home").run(QUICKSTART)
            assert not result.failed, f"{result.failed}\n{result.output}"
        return folder

    @contextlib.contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """One worker at a time."""
        with (self._root / f"{name}.lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def shared(base: Path) -> Path:
    """The folder of a run of pytest that all its workers see."""
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    (root / "documents").mkdir(exist_ok=True)
    return root / "documents"
