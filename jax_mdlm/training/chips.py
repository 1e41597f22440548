"""What a TPU chip can do: the vendor's figures, by generation. `plan` and MFU read them here.

Sources: cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e} for compute, HBM bandwidth, links and network;
for v4's links (50 GB/s) arXiv 2304.01433. `hbm_bytes` is what the TPU compiler says that a program
may use ("exceeds available HBM (15.75G)"); the rest of the chip's 16, 32, 95 or 32 GiB is its own.
"""

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip of a generation.

    Attributes:
      name: As topologies are named, e.g. `v5e`.
      kinds: What JAX calls the device (`device_kind`).
      peak_flops: bfloat16 FLOP/s.
      hbm_bytes: HBM that a program may use.
      hbm_bandwidth: bytes/s.
      link_bandwidth: bytes/s of one inter-chip link in one direction; a chip has two links per
        dimension of the torus.
      dcn_bandwidth: bytes/s to other slices, this chip's share of its host's network.
      dimensions: Of the torus.
      wraps_at: A dimension closes to a ring where its size is a multiple of this.
    """

    name: str
    kinds: tuple[str, ...]
    peak_flops: float
    hbm_bytes: float
    hbm_bandwidth: float
    link_bandwidth: float
    dcn_bandwidth: float
    dimensions: int
    wraps_at: int


CHIPS = (
    # v4's network is not in its documentation: 100 Gbit/s for a host of 4 chips.
    Chip("v4", ("TPU v4",), 275e12, 30.75 * GIB, 1200e9, 50e9, 3.125e9, 3, 4),
    Chip("v5e", ("TPU v5 lite", "TPU v5e"), 197e12, 15.75 * GIB, 819e9, 50e9, 3.125e9, 2, 16),
    Chip("v5p", ("TPU v5", "TPU v5p"), 459e12, 95.74 * GIB, 2765e9, 100e9, 6.25e9, 3, 4),
    Chip("v6e", ("TPU v6 lite", "TPU v6e"), 918e12, 31.25 * GIB, 1600e9, 100e9, 12.5e9, 2, 16),
)


def find_chip(device_kind: str) -> Chip | None:
    """The chip that JAX calls so; None for other devices."""
    return next((chip for chip in CHIPS if device_kind in chip.kinds), None)
