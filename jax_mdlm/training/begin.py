"""What a run begins with: the newest checkpoint that is whole, or parameters at step 0."""

import jax
import optax
from etils import epath

from jax_mdlm import command
from jax_mdlm.config import Config
from jax_mdlm.containers import SpecialIds, TrainState
from jax_mdlm.conversion import open_origin
from jax_mdlm.processes import anywhere, barrier, from_first_process
from jax_mdlm.sharding import Layout
from jax_mdlm.storage import CheckpointError, Checkpoints, DamagedError
from jax_mdlm.training import checkpoint
from jax_mdlm.training.state import abstract_state, begun_from, create_state, with_slack_row
from jax_mdlm.workdir import Base, has_base


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
        params = checkpoint.restore_base(workdir, abstract.frozen)
        return create_state(config, optimizer, layout, params)
    if not config.init.source:
        return _keep_base(create_state(config, optimizer, layout), config, ids, workdir)
    origin = open_origin(config.init.source)
    begun = abstract.params if abstract.frozen is None else abstract.frozen
    params = origin.params(begun_from(config), begun, layout, command.warn)
    how = config.init.slack_row
    if how == "auto":
        how = "keep" if origin.knows_slack else "mean"
    params = with_slack_row(params, how, ids, layout, config.train.seed)
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


def _try(
    checkpoints: Checkpoints, step: int, abstract: TrainState
) -> tuple[TrainState | None, str]:
    """The state, or why the checkpoint is damaged."""
    try:
        checkpoints.record(step)
        return checkpoint.restore_state(checkpoints, step, abstract), ""
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
        checkpoint.save_base(workdir, state.frozen, about)
    return state
