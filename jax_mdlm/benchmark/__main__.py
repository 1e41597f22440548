"""The entry of `python -m jax_mdlm.benchmark`."""

from jax_mdlm import command
from jax_mdlm.benchmark.flags import main

if __name__ == "__main__":
    command.run(main)
