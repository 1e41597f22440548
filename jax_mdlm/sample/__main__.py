"""The entry of `python -m jax_mdlm.sample`."""

from jax_mdlm import command
from jax_mdlm.sample.flags import main

if __name__ == "__main__":
    command.run(main)
