"""The entry of `python -m jax_mdlm.evaluate`."""

from jax_mdlm import command
from jax_mdlm.evaluate.flags import main

if __name__ == "__main__":
    command.run(main)
