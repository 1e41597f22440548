"""The alignment-marginal likelihood: what one parallel step makes of a masked canvas.

A model that was trained with slack spreads a response over many canvases. Here all of them are
counted, through the CTC lattice, for the one distribution in which that can be done: the product of
the slots' distributions at a fully masked canvas. It is no bound on decoding in many steps: no sum
over alignments exists there.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_mdlm.config import Collapse, ConfigError, ModelConfig
from jax_mdlm.containers import Params, SpecialIds
from jax_mdlm.diffusion import ctc_loss
from jax_mdlm.likelihood.canvases import Row, make_groups, place_batch
from jax_mdlm.likelihood.program import Canvases, ScoringSetting, logits_of_masks
from jax_mdlm.sharding import Layout, constrain


def marginal_log_likelihood(
    params: Params,
    config: ModelConfig,
    rows: Sequence[Row],
    ids: SpecialIds,
    *,
    frames: int,
    collapse: Collapse,
    batch_size: int = 16,
    layout: Layout | None = None,
) -> list[float]:
    """`log P(response)` where all `frames` masks after the prompt are drawn at once.

    Each slot l gets a token of its own from the model's distribution p_l at the fully masked
    canvas. What comes before the first token that closes a text (terminator or EOS) is collapsed;
    P is the probability that this is exactly the response:

        P = sum_F P_ctc(response in the slots before F) * p_F(terminator or EOS)

    with P_ctc the sum over alignments of `diffusion.ctc_loss` (arXiv 2601.22947), which hold slack
    and the response's tokens only. The sum runs over the place F of the closing token, 1..frames.

    Nothing is estimated: this is the distribution of the sampler with a single step (responses sum
    to less than 1, since canvases without a closing token are none). It is not the likelihood of
    decoding in many steps, where slots see each other's tokens, nor a bound of it.

    Args:
      params: As from `model.init` or `model.prepare`.
      config: The network.
      rows: Ids of prompts and of responses; a response ends with the terminator.
      ids: Special tokens.
      frames: Masks after each prompt; what `sample.length` is in decoding.
      collapse: The map that the model was trained with.
      batch_size: Rows per compiled call; rounded up to the batch's shards.
      layout: Mesh and rules; None = one device.

    Returns:
      Nats of the whole response, one number per row; -inf where no alignment fits.

    Raises:
      ConfigError: as `make_groups`; a response that does not end with the terminator, or that no
        canvas reads as (it holds slack, a closing token, or with `merge` a token that is never
        merged).
    """
    _check(rows, ids, frames, collapse)
    shards = 1 if layout is None else layout.batch_shards
    batch = -(-batch_size // shards) * shards
    values = np.zeros(len(rows))
    # Laid out with as many slots as there are masks; their text goes along as labels.
    blank = [(prompt, [ids.terminator] * frames) for prompt, _ in rows]
    most = max((len(response) for _, response in rows), default=1)
    labels = np.full((len(rows) + 1, max(most - 1, 1)), ids.pad, np.int32)
    count = np.zeros(len(rows) + 1, np.int32)
    for number, (_, response) in enumerate(rows):
        labels[number, : len(response) - 1] = response[:-1]
        count[number] = len(response) - 1
    # Scored group by group, rows of a batch together.
    for group in make_groups(blank, ids, config.max_length):
        setting = ScoringSetting(config, ids, group.region, 0.0, layout)
        for begin in range(0, len(group.numbers), batch):
            index = np.arange(begin, min(begin + batch, len(group.numbers)))
            own = np.append(group.numbers[index], np.full(batch - len(index), len(rows)))
            inputs = place_batch(layout, (group.take(index, batch), labels[own], count[own]))
            found = _score(params, *inputs, setting, collapse)
            values[group.numbers[index]] = jax.device_get(found)[: len(index)]
    return values.tolist()


@functools.partial(jax.jit, static_argnames=("setting", "collapse"))
def _score(
    params: Params,
    canvases: Canvases,
    labels: jax.Array,
    label_count: jax.Array,
    setting: ScoringSetting,
    collapse: Collapse,
) -> jax.Array:
    """Log-probability of each row's labels [B, U] and a closing token, float32 [B]."""
    ids, width = setting.ids, setting.region.length
    closing = jnp.array(sorted({ids.terminator, ids.eos}))
    logits = logits_of_masks(params, canvases, setting)  # [B, R, V]
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    closes = jax.nn.logsumexp(log_probs[:, :, closing], axis=-1)  # [B, R]
    classes = jnp.pad(labels, ((0, 0), (1, 0)), constant_values=ids.slack)
    own = jnp.take_along_axis(log_probs, classes[:, None, :], axis=2)  # [B, R, 1 + U]
    before = jnp.arange(width) < jnp.arange(width)[:, None]  # [F, R]; slots before the closing one

    def row(arrays: tuple[jax.Array, ...]) -> jax.Array:
        own, closes, labels, label_count, frames = arrays

        def repeat(array: jax.Array) -> jax.Array:
            return jnp.broadcast_to(array, (width, *array.shape))

        nll, fits = ctc_loss(
            repeat(own), before, repeat(labels), repeat(label_count), collapse=collapse
        )
        fits &= jnp.arange(width) < frames
        return jax.nn.logsumexp(jnp.where(fits, closes - nll, -jnp.inf))

    # Row by row: all places of the closing token at once make [R, R, 1 + U] of each.
    whole: Any = constrain(setting.layout, own, None, None, None)
    result = jax.lax.map(row, (whole, closes, labels, label_count, canvases.count))
    return constrain(setting.layout, result, None)


def _check(rows: Sequence[Row], ids: SpecialIds, frames: int, collapse: Collapse) -> None:
    if frames < 1:
        raise ConfigError(f"frames must be at least 1, got {frames}; it counts masks")
    unreadable = {ids.slack, ids.mask, ids.eos, ids.terminator}
    if collapse == "merge":
        unreadable |= set(ids.never_merged)
    for number, (_, response) in enumerate(rows):
        if not len(response) or response[-1] != ids.terminator:
            raise ConfigError(
                f"response of row {number} must end with the terminator (id {ids.terminator}), "
                "it does not; add it, or more room where the row was cut off (data.max_labels)"
            )
        found = sorted(unreadable.intersection(response[:-1]))
        if found:
            raise ConfigError(
                f"response of row {number} must be text before its terminator, it holds the "
                f"special token {found[0]}; remove it"
            )
