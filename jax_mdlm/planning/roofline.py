"""The time that a program takes at best: the busiest of compute, HBM, links and network.

The roofline model (Williams et al. 2009, doi 10.1145/1498765.1498785) with the vendor's figures:
each part at its full rate, all of them at once. A real step is slower; what it cannot be is faster.
"""

import collections
import dataclasses

from jax_mdlm.planning.collectives import Wiring
from jax_mdlm.planning.cost import Cost


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Per chip and run.

    Attributes:
      seconds: Of `compute`, `hbm`, `ici` and `dcn`.
      exchanged: Bytes that a chip takes in, by kind of collective and mesh axes.
      dcn_bytes: Of those, from other slices.
    """

    seconds: dict[str, float]
    exchanged: dict[tuple[str, str], float]
    dcn_bytes: float

    @property
    def bound(self) -> str:
        """What takes longest."""
        return max(self.seconds, key=lambda name: self.seconds[name])

    @property
    def best(self) -> float:
        """Seconds of the bound."""
        return self.seconds[self.bound]

    @property
    def by_kind(self) -> dict[str, float]:
        """Bytes by kind of collective."""
        total: dict[str, float] = collections.defaultdict(float)
        for (kind, _), size in self.exchanged.items():
            total[kind] += size
        return dict(total)


def roofline(cost: Cost, wiring: Wiring) -> Roofline:
    """Sets what a program does against what the chips can."""
    chip = wiring.machine.chip
    exchanged: dict[tuple[str, str], float] = collections.defaultdict(float)
    ici = dcn = 0.0
    for one, times in cost.collectives.items():
        exchange = wiring.exchange(one)
        exchanged[one.kind, exchange.axes] += times * exchange.bytes
        ici += times * exchange.ici_seconds
        dcn += times * exchange.dcn_bytes
    seconds = {
        "compute": cost.passes / chip.peak_flops,
        "hbm": cost.hbm_bytes / chip.hbm_bandwidth,
        "ici": ici,
        "dcn": dcn / chip.dcn_bandwidth,
    }
    return Roofline(seconds, dict(exchanged), dcn)
