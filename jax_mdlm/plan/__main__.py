"""The entry of `python -m jax_mdlm.plan`."""

from jax_mdlm import command
from jax_mdlm.plan.flags import main

if __name__ == "__main__":
    command.run(main)
