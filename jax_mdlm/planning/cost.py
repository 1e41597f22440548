"""What a compiled program does in one run, loops multiplied out, and the time that takes at best.

The compiler's own `cost_analysis()` counts the body of a loop once; here each computation counts as
often as it runs. Of a conditional, the branch with the most work counts. The time is that of the
roofline model (Williams et al. 2009, doi 10.1145/1498765.1498785) with the vendor's figures: each
part at its full rate, all of them at once. A real step is slower; what it cannot be is faster.
"""

import collections
import dataclasses

from jax_mdlm.planning.collectives import Collective, Wiring, collective
from jax_mdlm.planning.hlo import Computation, Instruction, Module, parse_hlo
from jax_mdlm.planning.loops import trips
from jax_mdlm.planning.matrices import product_of
from jax_mdlm.planning.traffic import call_target, continues_elsewhere, hbm_bytes, is_collective


@dataclasses.dataclass
class Cost:
    """Per chip and run.

    Attributes:
      flops: Of matrix products, attention included.
      attention_flops: Of scores, values and their gradients.
      passes: `flops`, those of float32 products weighted by the passes they take.
      hbm_bytes: Between the chip and its HBM.
      collectives: How often each exchange happens.
      doubts: What could not be counted, a line each.
    """

    flops: float = 0
    attention_flops: float = 0
    passes: float = 0
    hbm_bytes: float = 0
    collectives: collections.Counter[Collective] = dataclasses.field(
        default_factory=collections.Counter
    )
    doubts: dict[str, None] = dataclasses.field(default_factory=dict)

    def add(self, other: "Cost", times: int = 1) -> None:
        """Adds what another part does so many times."""
        self.flops += times * other.flops
        self.attention_flops += times * other.attention_flops
        self.passes += times * other.passes
        self.hbm_bytes += times * other.hbm_bytes
        for key, count in other.collectives.items():
            self.collectives[key] += times * count
        self.doubts |= other.doubts


@dataclasses.dataclass(frozen=True)
class Turns:
    """How often the loops run that data ends, as far as whoever wrote them knows.

    Attributes:
      outer: One that is in no other of them; 0 = not known.
      inner: Those within it, in the order in which they run.
    """

    outer: int = 0
    inner: tuple[int, ...] = ()


def count(text: str, turns: Turns = Turns()) -> Cost:
    """Counts a program, given as compiled HLO text."""
    module = parse_hlo(text)
    return _Counter(module, turns).of(module.entry)


class _Counter:
    def __init__(self, module: Module, turns: Turns) -> None:
        self._module, self._turns = module, turns
        self._known: dict[tuple[str, bool, bool], Cost] = {}

    def of(self, name: str, *, fused: bool = False, inside: bool = False) -> Cost:
        """The cost of a computation.

        Args:
          name: Of the computation.
          fused: It moves no bytes of its own.
          inside: It is in a loop that data ends.
        """
        key = name, fused, inside
        if key not in self._known:
            total, computation = Cost(), self._module.computations[name]
            given = list(self._turns.inner if inside else (self._turns.outer,))
            for one in computation.instructions.values():
                if one.opcode == "while":
                    total.add(self._loop(computation, one, inside, given))
                else:
                    total.add(self._instruction(computation, one, fused, inside))
            self._known[key] = total
        return self._known[key]

    def _loop(
        self, computation: Computation, one: Instruction, inside: bool, given: list[int]
    ) -> Cost:
        cost = Cost()
        turns = trips(self._module, computation, one)
        if turns is None:
            inside, turns = True, (given.pop(0) if given else 0)
            if not turns:
                turns = 1
                cost.doubts[f"turns of the loop {one.op_name or one.name}, taken as 1"] = None
        cost.add(self.of(one.called("body"), inside=inside), turns)
        cost.add(self.of(one.called("condition"), inside=inside), turns)
        return cost

    def _instruction(
        self, computation: Computation, one: Instruction, fused: bool, inside: bool
    ) -> Cost:
        cost = Cost()
        if one.opcode == "conditional":
            branches = [self.of(name, inside=inside) for name in _branches(one)]
            cost.add(max(branches, key=lambda branch: (branch.passes, branch.hbm_bytes)))
        elif one.opcode in ("call", "async-start"):
            called = one.called("to_apply") or one.called("calls")
            cost.add(self.of(called, inside=inside))
        elif one.opcode == "fusion":
            cost.add(self.of(one.called("calls"), fused=True))
        elif is_collective(one) and not (fused and continues_elsewhere(computation, one)):
            cost.collectives[collective(computation, one)] += 1
        elif found := product_of(self._module, computation, one):
            cost.flops = found.flops
            cost.passes = found.flops * found.passes
            cost.attention_flops = found.flops if found.attention else 0
        elif call_target(one) == "tpu_custom_call":
            cost.doubts[f"FLOPs of kernel {one.op_name.split('/')[-1] or one.name}"] = None
        if not fused:
            cost.hbm_bytes += hbm_bytes(self._module, computation, one)
        return cost


def _branches(one: Instruction) -> list[str]:
    listed = one.attribute("branch_computations").strip("{}")
    names = (
        listed.split(",")
        if listed
        else [
            one.attribute("true_computation"),
            one.attribute("false_computation"),
        ]
    )
    return [name.strip().lstrip("%") for name in names]


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
