"""What a LoRA run never changes: its base, beside its checkpoints in the work directory.

It is written once, as a checkpoint of step 0 in `base/`; the run's checkpoints hold adapters only,
under names of their own: a reader that does not know them fails instead of reading half a model.
"""

import dataclasses

from etils import epath
from flax.serialization import from_state_dict, to_state_dict

from jax_mdlm.containers import Params
from jax_mdlm.storage import CheckpointError, Checkpoints, DamagedError, open_checkpoints


@dataclasses.dataclass(frozen=True)
class Base:
    """What is recorded beside the frozen parameters of a LoRA run.

    Attributes:
      scale: alpha / r of its adapters.
      slack_id: The slack token, whose rows may be trained beside the adapters.
      published: The weights that it was read from, as `init.from` named them; empty: no published
        ones.
      slack_row_set: Whether the slack token's rows were set at the start, so that they are not
        those of `published`.
    """

    scale: float
    slack_id: int
    published: str = ""
    slack_row_set: bool = False


def has_adapters(checkpoints: Checkpoints, step: int) -> bool:
    """Whether a checkpoint is a LoRA run's: adapters, to be read with its base."""
    return any(name.startswith("adapters/") for name in checkpoints.shapes(step))


def has_base(workdir: epath.Path) -> bool:
    """Whether the frozen parameters of a LoRA run are there, and whole."""
    if not _base_folder(workdir).is_dir():
        return False
    base = open_checkpoints(_base_folder(workdir))
    try:
        return base.latest() == 0
    finally:
        base.close()


def open_base(workdir: epath.Path) -> tuple[Checkpoints, Base]:
    """Opens the frozen parameters of a LoRA run: step 0 of the result.

    Raises:
      CheckpointError: they are missing or damaged. It is no `DamagedError`: an older checkpoint of
        the run would not help.
    """
    if has_base(workdir):
        base = open_checkpoints(_base_folder(workdir))
        try:
            return base, Base(**base.record(0)["base"])
        except DamagedError as error:
            raise _damaged_base(workdir, error) from error
    raise _damaged_base(workdir, "they are not there")


def save_base(workdir: epath.Path, frozen: Params, about: Base) -> None:
    """Writes what a LoRA run never changes; returns when it is on disk.

    Of a quantised parameter there are two arrays, `params/wte/values` and `params/wte/scale`.
    """
    base = open_checkpoints(_base_folder(workdir), keep=1)
    try:
        tree = {"params": to_state_dict(frozen)}
        base.save(0, tree, {"step": 0, "base": dataclasses.asdict(about)})
        base.wait()
    finally:
        base.close()


def restore_base(workdir: epath.Path, abstract: Params) -> Params:
    """Reads what `save_base` wrote into its places, bit by bit.

    Raises:
      CheckpointError: missing, damaged, or of another shape.
    """
    base, _ = open_base(workdir)
    try:
        found = base.restore(0, {"params": to_state_dict(abstract)})["params"]
        return from_state_dict(abstract, found)
    except DamagedError as error:
        raise _damaged_base(workdir, error) from error
    finally:
        base.close()


def _damaged_base(workdir: epath.Path, reason: object) -> CheckpointError:
    """What to say where the frozen parameters of a LoRA run cannot be read."""
    return CheckpointError(
        f"work directory {workdir} holds adapters and must hold their frozen parameters in base/0, "
        f"but {reason}; bring that folder back, the adapters mean nothing without it"
    )


def _base_folder(workdir: epath.Path) -> epath.Path:
    return workdir / "base"
