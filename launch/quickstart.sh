#!/bin/sh
# Trains, evaluates and samples the pronunciation model on this machine: 8 minutes on two CPU
# cores, installation included. Run again, it goes on where it stopped.
#   sh launch/quickstart.sh [--config.section.field=value ...]
set -eu
cd "$(dirname "$0")/.."
. launch/env.sh

install demo
workdir=runs/quickstart
.venv/bin/python -m jax_mdlm.train --config configs/pronounce.py --workdir "$workdir" "$@"
echo
.venv/bin/python -m jax_mdlm.sample --workdir "$workdir" alignment slacken vocabulary
echo
.venv/bin/python -m jax_mdlm.evaluate pronunciations --workdir "$workdir" --split test
