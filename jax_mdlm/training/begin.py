"""What a run begins with, and how it comes back bit by bit: checkpoints of its state.

A checkpoint holds the state, the position in the data and the config. The position is the step
itself: step s owns fixed rows of a seeded order (`data.order`).
"""

from typing import Any

import jax
import optax
from etils import epath

from jax_mdlm import command
from jax_mdlm.config import Config
from jax_mdlm.containers import SpecialIds, TrainState
from jax_mdlm.conversion import open_origin
from jax_mdlm.model.lora import frozen_form
from jax_mdlm.parameters import Base, has_base, restore_base, save_base
from jax_mdlm.processes import anywhere, barrier, from_first_process
from jax_mdlm.sharding import Layout
from jax_mdlm.storage import CheckpointError, Checkpoints, DamagedError
from jax_mdlm.training.state import abstract_state, begun_from, create_state, with_slack_row


def begin(
    config: Config,
    optimizer: optax.GradientTransformation,
    ids: SpecialIds,
    layout: Layout,
    checkpoints: Checkpoints,
    workdir: epath.Path,
) -> TrainState:
    """The newest whole checkpoint; else drawn parameters, or those that `init.from` names."""
    abstract = abstract_state(config, optimizer, layout)
    if (resumed := resume(checkpoints, abstract)) is not None:
        return resumed
    if abstract.frozen is not None and has_base(workdir):
        # Killed before its first checkpoint; what it began from is there.
        params = restore_base(workdir, abstract.frozen)
        return create_state(config, optimizer, layout, params)
    if not config.init.source:
        return _keep_base(create_state(config, optimizer, layout), config, ids, workdir)
    origin = open_origin(config.init.source)
    form = frozen_form(config.lora)
    params = origin.params(begun_from(config), layout, command.warn, form)
    how = config.init.slack_row
    if how == "auto":
        how = "keep" if origin.knows_slack else "mean"
    params = with_slack_row(params, how, ids, config.train.seed)
    if jax.process_index() == 0:
        origin.keep_files(workdir)
    state = create_state(config, optimizer, layout, params)
    published = config.init.source if origin.source else ""
    return _keep_base(state, config, ids, workdir, published, how != "keep")


def resume(checkpoints: Checkpoints, abstract: TrainState) -> TrainState | None:
    """The state of the newest whole checkpoint; None where there is no checkpoint at all.

    A checkpoint is damaged if its record, a description, an array or any chunk of this process's
    slices is missing, short or unreadable: what a full disk, a lost host or a hand leaves. (A kill
    leaves nothing: folders get their name when they are whole.) It is set aside with a warning, on
    all processes if one of them finds it damaged, so that its step can be saved again.

    Raises:
      CheckpointError: of another model or optimizer, or all of them are damaged.
    """
    damaged = ""
    while (step := from_first_process(max(checkpoints.steps(), default=-1))) >= 0:
        state, reason = _try(checkpoints, step, abstract)
        if not anywhere(bool(reason)):
            return state
        del state
        damaged = reason or f"checkpoint {step} is damaged where another process reads it"
        if jax.process_index() == 0:
            place = checkpoints.set_aside(step)
            command.warn(f"{damaged.partition('; remove')[0]}; set aside as {place}")
        barrier("set_aside")
        checkpoints.reload()
    if damaged:
        raise CheckpointError(
            f"a checkpoint in {checkpoints.folder} must be whole, all were damaged and set aside; "
            "bring one back, or use another --workdir to begin anew"
        )
    return None


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


def _try(
    checkpoints: Checkpoints, step: int, abstract: TrainState
) -> tuple[TrainState | None, str]:
    """The state, or why the checkpoint is damaged."""
    try:
        checkpoints.record(step)
        return restore_state(checkpoints, step, abstract), ""
    except DamagedError as error:
        return None, str(error)


def _keep_base(
    state: TrainState,
    config: Config,
    ids: SpecialIds,
    workdir: epath.Path,
    published: str = "",
    slack_row_set: bool = False,
) -> TrainState:
    """Writes what a LoRA run never changes, once; its checkpoints hold the adapters only."""
    if state.frozen is not None:
        about = Base(config.lora.scale, ids.slack, published, slack_row_set)
        save_base(workdir, state.frozen, about)
    return state


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
