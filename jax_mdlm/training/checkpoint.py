"""How a run comes back from its work directory bit by bit.

A checkpoint holds the state, the position in the data and the config. The position is the step
itself: step s owns fixed rows of a seeded order (`data/pipeline`).
"""

import dataclasses
from typing import Any

import jax
from etils import epath

from jax_mdlm.containers import Params, TrainState
from jax_mdlm.storage import Checkpoints, DamagedError, open_checkpoints
from jax_mdlm.workdir import Base, base_folder, damaged_base, open_base


def save_state(checkpoints: Checkpoints, state: TrainState, config_json: str) -> None:
    """Starts an asynchronous save of state, data position and config under the state's step."""
    step = int(jax.device_get(state.step))
    record = {"step": step, "data_position": step, "config": config_json}
    checkpoints.save(step, _as_tree(state), record)


def restore_state(checkpoints: Checkpoints, step: int, abstract: TrainState) -> TrainState:
    """Reads a state into its places; what a LoRA run never changes from beside the checkpoints.

    Raises:
      CheckpointError: damaged, or of another shape.
    """
    tree = checkpoints.restore(step, _abstract_tree(abstract))
    return TrainState(
        step=tree["step"],
        params=tree[_trained(abstract)],
        opt_state=tree["opt_state"],
        key=jax.random.wrap_key_data(tree["key_data"]),
        frozen=abstract.frozen and restore_base(checkpoints.folder.parent, abstract.frozen),
    )


def save_base(workdir: epath.Path, frozen: Params, about: Base) -> None:
    """Writes what a LoRA run never changes; returns when it is on disk."""
    base = open_checkpoints(base_folder(workdir), keep=1)
    try:
        base.save(0, {"params": frozen}, {"step": 0, "base": dataclasses.asdict(about)})
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
        return base.restore(0, {"params": abstract})["params"]
    except DamagedError as error:
        raise damaged_base(workdir, error) from error
    finally:
        base.close()


def _trained(state: TrainState) -> str:
    """The name of what is trained: adapters are no parameters that could be read alone."""
    return "params" if state.frozen is None else "adapters"


def _as_tree(state: TrainState) -> dict[str, Any]:
    return {
        "step": state.step,
        _trained(state): state.params,
        "opt_state": state.opt_state,
        "key_data": jax.random.key_data(state.key),
    }


def _abstract_tree(abstract: TrainState) -> dict[str, Any]:
    data = jax.eval_shape(jax.random.key_data, abstract.key)
    place = abstract.key.sharding
    return {
        "step": abstract.step,
        _trained(abstract): abstract.params,
        "opt_state": abstract.opt_state,
        "key_data": jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=place),
    }
