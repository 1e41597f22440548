"""The entry of `python -m jax_mdlm.train`."""

from jax_mdlm import command
from jax_mdlm.train.flags import main

if __name__ == "__main__":
    command.run(main)
