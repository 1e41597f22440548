"""How a run comes back from its work directory bit by bit.

A checkpoint holds the state, the position in the data and the config. The position is the step
itself: step s owns fixed rows of a seeded order (`data/pipeline`).
"""

from typing import Any

import jax

from jax_mdlm.containers import TrainState
from jax_mdlm.storage import Checkpoints


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
