"""The processes of a run: whether there are several on Cloud TPU, and how they agree.

`jax.distributed.initialize()` finds out who the others are, but must be called only where there are
any: on a single host it waits, for minutes, for names that lead nowhere (Colab, Kaggle), or fails
where no metadata server is. What it goes by is asked here first: the variables that GKE sets for
each pod (and libtpu reads), else the attributes of a TPU VM on its metadata server.
"""

import os
import urllib.error
import urllib.request

import jax
import numpy as np
from jax.experimental import multihost_utils

_ATTRIBUTES = "computeMetadata/v1/instance/attributes"
_PATIENCE = 5.0  # seconds; the server is on the same machine


def on_pod() -> bool:
    """Whether the slice has several hosts, or belongs to several slices."""
    if "tpu" not in (_platforms() or "").split(","):
        return False
    hosts = os.environ.get("TPU_PROCESS_ADDRESSES") or os.environ.get("TPU_WORKER_HOSTNAMES")
    slices = os.environ.get("MEGASCALE_NUM_SLICES", "")
    if not hosts and "TPU_SKIP_MDS_QUERY" not in os.environ:  # JAX sets it where there is no chip
        hosts = _attribute("worker-network-endpoints")
        slices = slices or _slices(_attribute("tpu-env"))
    return "," in (hosts or "") or slices not in ("", "1")


def barrier(name: str) -> None:
    """Waits until all processes have come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def from_first_process(number: int) -> int:
    """The number that the first process passed, on all of them."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def anywhere(here: bool) -> bool:
    """Whether it is so in any process."""
    if jax.process_count() == 1:
        return here
    return bool(multihost_utils.process_allgather(np.int32(here)).any())


def _platforms() -> str | None:
    """What the user chose; JAX sets "tpu,cpu" where it finds chips and libtpu."""
    return jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]


def _attribute(name: str) -> str:
    """An attribute of this machine; empty where there is no metadata server or not this one."""
    server = os.environ.get("GCE_METADATA_IP", "metadata.google.internal")
    request = urllib.request.Request(
        f"http://{server}/{_ATTRIBUTES}/{name}", headers={"Metadata-Flavor": "Google"}
    )
    try:
        with urllib.request.urlopen(request, timeout=_PATIENCE) as answer:
            return answer.read().decode()
    except (urllib.error.URLError, OSError):
        return ""


def _slices(tpu_env: str) -> str:
    """The number of slices in `tpu-env`, lines of `KEY: 'value'`; empty for one."""
    for line in tpu_env.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "MEGASCALE_NUM_SLICES":
            return value.strip().strip("'")
    return ""
