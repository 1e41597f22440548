"""A plan: one program on one machine, and everything that is known of it."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from jax_mdlm.config import Config
from jax_mdlm.data.order import count_steps
from jax_mdlm.model import table
from jax_mdlm.planning import program
from jax_mdlm.planning.collectives import Wiring
from jax_mdlm.planning.cost import Cost, Roofline, count, roofline
from jax_mdlm.planning.program import Argument, Memory
from jax_mdlm.planning.topologies import Machine
from jax_mdlm.sharding import make_layout
from jax_mdlm.training.step import fit_batch
from jax_mdlm.training.timing import training_flops

# Left free of what a program may use: the program's own code, the runtime, fragmentation.
HEADROOM = 0.03


@dataclasses.dataclass(frozen=True)
class Plan:
    """Figures are per chip and run (a step, or a generation of a batch).

    Attributes:
      machine: What it runs on.
      config: The run.
      mode: `train` or `sample`.
      mesh: Size of each axis.
      arguments: Arrays that the program takes.
      memory: As the compiler gives it.
      tokens: Slots of a run, over all chips.
      cost: What it does; None where it did not fit and nothing was compiled.
      roofline: The time that takes at best; None as `cost`.
    """

    machine: Machine
    config: Config
    mode: str
    mesh: dict[str, int]
    arguments: list[Argument]
    memory: Memory
    tokens: int
    cost: Cost | None
    roofline: Roofline | None

    @property
    def fits(self) -> bool:
        """Whether the peak leaves `HEADROOM` of the HBM that a program may use."""
        return self.memory.peak <= (1 - HEADROOM) * self.machine.chip.hbm_bytes

    def part_bytes(self, part: str) -> int:
        """Of the arguments of one part."""
        return sum(argument.bytes for argument in self.arguments if argument.part == part)

    @property
    def tokens_per_second(self) -> float | None:
        """At best, over all chips."""
        return None if self.roofline is None else self.tokens / self.roofline.best

    @property
    def mfu(self) -> float | None:
        """Share of the peak that a step needs at best, as the log of a run counts it."""
        rate = self.tokens_per_second
        if rate is None or self.mode != "train":
            return None
        needed = sum(training_flops(self.config.model, self.config.data.length))
        return rate * needed / (self.machine.chip.peak_flops * len(self.machine.devices))

    @property
    def checkpoint_bytes(self) -> int | None:
        """Of one save of a run, by all chips together: what is trained, and its moments."""
        if self.mode != "train":
            return None
        saved = [one for one in self.arguments if one.part in ("parameters", "optimizer")]
        return int(sum(math.prod(one.shape) * one.itemsize for one in saved))

    def updates(self, rows: int) -> int:
        """Of a run over so many training rows, as `train` counts them."""
        return count_steps(self.config.train.epochs, rows, self.config.train.batch_size)

    def hours(self, rows: int) -> float | None:
        """At best, of all updates over so many training rows; no start, save or evaluation."""
        return self.roofline and self.updates(rows) * self.roofline.best / 3600

    @property
    def flops_ratio(self) -> float | None:
        """FLOPs outside attention in 6 x parameters x tokens: 1.25 under full remat."""
        if self.cost is None or self.mode != "train":
            return None
        done = (self.cost.flops - self.cost.attention_flops) * len(self.machine.devices)
        return done / (6 * table.num_parameters(self.config.model) * self.tokens)


def make_plan(
    config: Config, machine: Machine, mode: str, say: Callable[[str], None] = lambda text: None
) -> Plan:
    """Lowers, compiles and counts.

    Args:
      config: The run.
      machine: What it shall run on.
      mode: `train` or `sample`.
      say: Told what is compiled, before the minutes that it takes.

    Raises:
      ConfigError: config and machine do not go together.
    """
    lower = {"train": program.train_step, "sample": program.sampler}[mode]
    if mode == "train":
        config = fit_batch(config, make_layout(config.mesh, machine.devices))
    job = lower(config, machine.devices)
    axes = [f"{name}={size}" for name, size in job.layout.mesh.shape.items() if size > 1]
    shown = " ".join([f"compiling for {machine.title}, mesh", *(axes or ["of one chip"])])
    say(f"{shown}: about 3 minutes for LLaDA-8B ...")
    memory = program.compile_job(job)
    cost = bound = None
    if memory.text:
        cost = count(memory.text, job.turns)
        bound = roofline(cost, Wiring(machine, job.layout.mesh))
    mesh: dict[str, Any] = dict(job.layout.mesh.shape)
    return Plan(machine, config, mode, mesh, job.arguments, memory, job.tokens, cost, bound)
