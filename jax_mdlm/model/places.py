"""Where parameters live before there are any: shapes, dtypes and shardings, from the table.

Enters: config and layout. Leaves: what checkpoints are restored into, and what jitted functions are
told of their arguments.
"""

import jax

from jax_mdlm.config import ModelConfig
from jax_mdlm.containers import Params
from jax_mdlm.model import table
from jax_mdlm.sharding import Layout


def check_mesh(config: ModelConfig, layout: Layout) -> None:
    """Raises ConfigError if a mesh axis does not divide a parameter's axis."""
    for row in table.rows(config):
        layout.check_divides("model", row.axes, table.shape(row, config))


def abstract_params(config: ModelConfig, layout: Layout) -> Params:
    """Shapes, dtypes and shardings of the parameters; allocates nothing.

    Raises:
      ConfigError: a mesh axis does not divide a parameter's axis.
    """
    check_mesh(config, layout)
    leaves = {
        row.path: jax.ShapeDtypeStruct(
            table.shape(row, config), config.param_dtype, sharding=layout.sharding(row.axes)
        )
        for row in table.rows(config)
    }
    return table.tree(leaves)


def param_shardings(config: ModelConfig, layout: Layout) -> Params:
    """A sharding per parameter, nested like the parameters."""
    return table.tree({row.path: layout.sharding(row.axes) for row in table.rows(config)})
