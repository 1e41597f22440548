"""How a batch is cut for a mesh: over its devices, and into parts that are accumulated."""

import dataclasses

from jax_mdlm.config import Config, ConfigError
from jax_mdlm.data.order import length_buckets
from jax_mdlm.sharding import Layout


def fit_batch(config: Config, layout: Layout) -> Config:
    """The config with `train.microbatches` filled in where it is 0.

    Then a device has one row of the longest canvas at a time, on whatever slice the run goes on.

    Raises:
      ConfigError: the batch (of any canvas) does not divide into the mesh's shards and the parts.
    """
    train, shards = config.train, layout.batch_shards
    if train.microbatches == 0:
        train = dataclasses.replace(train, microbatches=max(train.batch_size // shards, 1))
    for canvas in length_buckets(config.data, config.objective, train.batch_size):
        rows, rest = divmod(canvas.rows, train.microbatches)
        if rest or rows % shards:
            raise ConfigError(
                "train.batch_size / train.microbatches must be a multiple of the mesh's "
                f"{shards} batch shards, got {canvas.rows / train.microbatches:g} (rows of "
                f"{canvas.length} slots); change the batch size or the mesh"
            )
    return dataclasses.replace(config, train=train)
