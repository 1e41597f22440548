"""The stored parameters of a work directory, those of a LoRA run with its adapters added.

What an export reads: arrays on disk, any box of which is read without the rest. The sum
`weight + scale * down up` is made box by box, in float32, so that memory does not grow with the
model.
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
from etils import epath

from jax_mdlm.config import ModelConfig
from jax_mdlm.conversion import boxes
from jax_mdlm.model import table
from jax_mdlm.parameters import has_adapters, open_base
from jax_mdlm.storage import Checkpoints, StoredArray
from jax_mdlm.storage.chunks import Index


@dataclasses.dataclass(frozen=True)
class Merged:
    """A frozen matrix on disk with the change of its adapter; float32, so that it rounds once.

    Attributes:
      weight: [layers, I..., O...].
      down: [layers, I, r].
      up: [layers, r, O].
      scale: alpha / r.
      num_inputs: Input axes of the weight.
    """

    weight: StoredArray
    down: StoredArray
    up: StoredArray
    scale: float
    num_inputs: int
    dtype: np.dtype = boxes.FLOAT32

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the weight."""
        return self.weight.shape

    def read(self, index: Index, out: np.ndarray) -> None:
        """See `StoredArray`; a box cut along the first output axis only, as `boxes.boxes` does."""
        weight = read_box(self.weight, *index)
        cut = index[1 + self.num_inputs]
        each = math.prod(self.shape[2 + self.num_inputs :])  # columns per entry of that axis
        columns = slice(cut.start * each, cut.stop * each)
        down = read_box(self.down, index[0])
        up = read_box(self.up, index[0], slice(0, self.up.shape[1]), columns)
        change = self.scale * np.matmul(down, up)
        np.add(weight, change.reshape(weight.shape), out=out.reshape(weight.shape))


@dataclasses.dataclass(frozen=True)
class WithSlack:
    """The embedding or the head on disk with the change of the slack token's row; float32.

    Attributes:
      weight: [V, D] or [D, V].
      change: float32 [D].
      slack_id: The row.
      axis: 0 for the embedding, 1 for the head.
    """

    weight: StoredArray
    change: np.ndarray
    slack_id: int
    axis: int
    dtype: np.dtype = boxes.FLOAT32

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the weight."""
        return self.weight.shape

    def read(self, index: Index, out: np.ndarray) -> None:
        """See `StoredArray`."""
        wide = read_box(self.weight, *index)
        tokens, embed = index[self.axis], index[1 - self.axis]
        if tokens.start <= self.slack_id < tokens.stop:
            row = self.slack_id - tokens.start
            np.moveaxis(wide, self.axis, 0)[row] += self.change[embed]
        out[...] = wide.reshape(out.shape)


def stored_params(
    workdir: epath.Path, checkpoints: Checkpoints, step: int, config: ModelConfig
) -> Mapping[str, StoredArray]:
    """The parameters of a step by name (`params/wte`), to be read in boxes.

    Args:
      workdir: The directory.
      checkpoints: Its checkpoints.
      step: Which of them.
      config: The network.

    Raises:
      CheckpointError: files are missing or damaged.
    """
    stored = checkpoints.arrays(step)
    if not has_adapters(checkpoints, step):
        return stored
    base, about = open_base(workdir)
    try:
        frozen = base.arrays(0)
    finally:
        base.close()
    params: dict[str, StoredArray] = dict(frozen)
    for row in table.rows(config):
        name, path = "params/" + "/".join(row.path), "adapters/" + "/".join(row.path)
        if f"{path}/down" in stored:
            down, up = stored[f"{path}/down"], stored[f"{path}/up"]
            params[name] = Merged(frozen[name], down, up, about.scale, row.num_inputs)
        elif f"{path}/slack" in stored:
            change = read_box(stored[f"{path}/slack"])
            axis = row.axes.index("vocab")
            params[name] = WithSlack(frozen[name], change, about.slack_id, axis)
    return params


def read_box(array: StoredArray, *index: slice) -> np.ndarray:
    """A box as float32; axes that `index` leaves out are read whole."""
    index += tuple(slice(0, size) for size in array.shape[len(index) :])
    own = np.empty([part.stop - part.start for part in index], array.dtype)
    array.read(index, own)
    return own.astype(np.float32)
