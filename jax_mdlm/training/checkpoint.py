"""What a work directory holds, and how a run comes back from it bit by bit.

    <workdir>/config.json            the resolved config
    <workdir>/tokenizer/             the tokenizer, where one is kept
    <workdir>/checkpoints/<step>/    state, position in the data, config

The position is the step itself: step s owns fixed rows of a seeded order (`data/pipeline`).
"""

from typing import Any

import jax
from etils import epath

from jax_mdlm.config import ConfigError
from jax_mdlm.containers import Params, TrainState
from jax_mdlm.storage import Checkpoints, open_checkpoints


def checkpoint_folder(workdir: epath.Path) -> epath.Path:
    """Where a work directory keeps its checkpoints."""
    return workdir / "checkpoints"


def save_state(checkpoints: Checkpoints, state: TrainState, config_json: str) -> None:
    """Starts an asynchronous save of state, data position and config under the state's step."""
    step = int(jax.device_get(state.step))
    record = {"step": step, "data_position": step, "config": config_json}
    checkpoints.save(step, _as_tree(state), record)


def restore_state(checkpoints: Checkpoints, step: int, abstract: TrainState) -> TrainState:
    """Reads a state into its places.

    Raises:
      CheckpointError: damaged, or of another shape.
    """
    tree = checkpoints.restore(step, _abstract_tree(abstract))
    return TrainState(
        step=tree["step"],
        params=tree["params"],
        opt_state=tree["opt_state"],
        key=jax.random.wrap_key_data(tree["key_data"]),
    )


def restore_params(workdir: epath.Path, abstract: Params) -> tuple[int, Params]:
    """Reads only the parameters of the newest checkpoint of a work directory, and its step.

    Raises:
      ConfigError: the work directory has no checkpoint.
      CheckpointError: damaged, or of another shape.
    """
    checkpoints = open_existing(workdir)
    try:
        step = checkpoints.latest()
        assert step is not None  # open_existing has seen one
        return step, checkpoints.restore(step, {"params": abstract})["params"]
    finally:
        checkpoints.close()


def open_existing(workdir: epath.Path) -> Checkpoints:
    """Opens a work directory's checkpoints for reading.

    Raises:
      ConfigError: there is none.
    """
    folder = checkpoint_folder(workdir)
    if folder.is_dir():
        checkpoints = open_checkpoints(folder)
        if checkpoints.latest() is not None:
            return checkpoints
        checkpoints.close()
    raise ConfigError(
        f"work directory {workdir} must hold a checkpoint, none is there; train one with "
        f"python -m jax_mdlm.train --config FILE --workdir {workdir}"
    )


def _as_tree(state: TrainState) -> dict[str, Any]:
    return {
        "step": state.step,
        "params": state.params,
        "opt_state": state.opt_state,
        "key_data": jax.random.key_data(state.key),
    }


def _abstract_tree(abstract: TrainState) -> dict[str, Any]:
    data = jax.eval_shape(jax.random.key_data, abstract.key)
    place = abstract.key.sharding
    return {
        "step": abstract.step,
        "params": abstract.params,
        "opt_state": abstract.opt_state,
        "key_data": jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=place),
    }
