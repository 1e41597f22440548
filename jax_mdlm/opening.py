"""How a command opens a model: processes, then settings of the command line, then the door."""

import functools
from collections.abc import Iterator, Sequence

import jax
from etils import epath

from jax_mdlm import command, mdlm
from jax_mdlm.data.corpus import unfixed
from jax_mdlm.mdlm import Mdlm
from jax_mdlm.progress import Progress
from jax_mdlm.sampling import Answer
from jax_mdlm.setup import Setup, open_setup
from jax_mdlm.workdir import load_config


def open_workdir(workdir: epath.PathLike, overrides: Sequence[str] = ()) -> Setup:
    """A work directory with the settings of the command line; its parameters are not read yet.

    Args:
      workdir: Local, or `gs://...`.
      overrides: `--config.sample.NAME=VALUE` and `--config.mesh.NAME=VALUE`.

    Raises:
      ConfigError: no work directory, or settings that cannot be used.
    """
    _join_processes()
    folder = epath.Path(workdir)
    stored = load_config(folder)
    config = command.apply_overrides(
        stored, overrides, section="sample", unfixed=lambda: unfixed(stored.data, folder)
    )
    return open_setup(folder, config)


def read_kept(setup: Setup) -> Mdlm:
    """Reads the parameters; programs are kept in the work directory."""
    command.use_compilation_cache(setup.path / "compilation_cache")
    return mdlm.read(setup)


def open_model(workdir: epath.PathLike, overrides: Sequence[str] = ()) -> Mdlm:
    """Opens a work directory and reads its parameters.

    Raises:
      ConfigError: no work directory, no checkpoint, or settings that cannot be used.
      CheckpointError: damaged, or of another shape.
    """
    return read_kept(open_workdir(workdir, overrides))


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
