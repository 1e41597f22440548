"""How a command opens a model: processes, then settings of the command line, then the door."""

import functools
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import jax
from etils import epath

from jax_mdlm import command, mdlm
from jax_mdlm.conversion.source import is_published, open_source
from jax_mdlm.data.corpus import open_tokenizer, tokenizer_folder, unfixed
from jax_mdlm.data.tokenizer import holds_tokenizer, is_kept, read_tokenizer
from jax_mdlm.mdlm import Mdlm
from jax_mdlm.progress import Progress
from jax_mdlm.sampling import Answer
from jax_mdlm.setup import Setup, open_setup
from jax_mdlm.storage import reaching
from jax_mdlm.workdir import load_config


def configure(path: epath.PathLike, overrides: Sequence[str] = ()) -> Setup:
    """A model with the settings of the command line; its parameters are not read yet.

    Args:
      path: A work directory, or a folder of published weights.
      overrides: `--config.sample.NAME=VALUE` and `--config.mesh.NAME=VALUE`.

    Raises:
      ConfigError: nothing usable is there, or settings that cannot be used.
    """
    _join_processes()
    path = os.fspath(path)
    with reaching(path):
        source = open_source(path) if is_published(path) else None
    folder = source.folder if source else epath.Path(path)
    stored = source.run_config(folder.name) if source else load_config(folder)

    def left_open() -> Collection[str]:
        if source:
            tokenizer = stored.data.tokenizer
            return unfixed(holds_tokenizer(folder), lambda: read_tokenizer(tokenizer, folder))
        kept = is_kept(tokenizer_folder(folder))
        return unfixed(kept, lambda: open_tokenizer(stored.data, folder))

    config = command.apply_overrides(stored, overrides, section="sample", unfixed=left_open)
    return open_setup(source or path, config)


def read_kept(setup: Setup, rows: int = 0) -> Mdlm:
    """Reads the parameters; programs are kept in the work directory, or in the user's cache.

    Args:
      setup: How the model is decoded; says where it is kept.
      rows: Prompts of a compiled call at most; 0 = `sample.batch_size`.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jax_mdlm"
    command.use_compilation_cache((home if setup.source else setup.path) / "compilation_cache")
    return mdlm.read(setup, rows=rows)


def open_model(path: epath.PathLike, overrides: Sequence[str] = ()) -> Mdlm:
    """Opens a model as `configure` does, and reads its parameters.

    Raises:
      ConfigError: nothing usable is there, no checkpoint, or settings that cannot be used.
      CheckpointError: damaged, or of another shape.
    """
    return read_kept(configure(path, overrides))


def with_progress(answers: Iterator[Answer], total: int, unit: str = "row") -> list[Answer]:
    """All answers, with a bar while they come."""
    found = []
    with console(total, unit) as progress:
        for answer in answers:
            found.append(answer)
            progress.advance(len(found))
    return found


def console(total: int, unit: str = "row") -> Progress:
    """The console of an evaluation; one process speaks."""
    return Progress(total, unit=unit, active=jax.process_index() == 0)


@functools.cache
def _join_processes() -> None:
    """Once, before the first device is asked for: on a pod all workers run the same command."""
    command.start_processes()
