"""The entry of `python -m jax_mdlm.convert`."""

from jax_mdlm import command
from jax_mdlm.convert.flags import main

if __name__ == "__main__":
    command.run(main)
