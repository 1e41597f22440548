"""What a chip can do, and what a run makes of it: throughput, goodput, a profile of a few steps.

Figures of chips are the vendor's; `plan` and MFU read them here. Sources:
cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e} for compute, HBM bandwidth, links and network; for v4's
links (50 GB/s) arXiv 2304.01433. `hbm_bytes` is what the TPU compiler says that a program may use
("exceeds available HBM (15.75G)"); the rest of the chip's 16, 32, 95 or 32 GiB is its own.

Goodput is pure bookkeeping over a clock that is passed in. Only what the host waits for counts: an
asynchronous save is counted while it copies, not while it writes.
"""

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import jax
from etils import epath

from jax_mdlm.config import ModelConfig
from jax_mdlm.model import table

GIB = 2**30

# What the time is spent on. `start` is everything before the first step (data, restore, begin);
# `compile` the calls that trace and compile a step; `save` the blocking part of saves.
Phase = Literal["start", "compile", "steps", "data", "evaluate", "save"]
PHASES: tuple[Phase, ...] = ("start", "compile", "steps", "data", "evaluate", "save")


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


def training_flops(config: ModelConfig, length: int) -> tuple[int, int]:
    """FLOPs per token that a training step needs, what is computed twice counted once.

    6 per parameter that is multiplied (all but the embedding) and 12 * layers * L * N * H for
    attention (arXiv 2204.02311, appendix B).

    Returns:
      FLOPs of the matrices, and of attention on a canvas of `length` slots.
    """
    multiplied = table.num_parameters(config) - config.vocab_size * config.embed
    return 6 * multiplied, 12 * config.layers * length * config.heads * config.head_dim


class Throughput:
    """Tokens per second and, where the device's peak is known, the share of it that is used."""

    SHOWN = ("tokens_per_second", "mfu")  # of `read`, on the console

    def __init__(self, config: ModelConfig, length: int) -> None:
        self._config, self._length = config, length
        chip = find_chip(jax.devices()[0].device_kind)
        self._peak = chip.peak_flops * jax.device_count() if chip else 0.0
        self.restart()

    def restart(self) -> None:
        """Starts the clock anew, e.g. after an evaluation."""
        self._since = time.perf_counter()
        self._lengths: list[int] = []  # of the canvases since then

    def step(self, length: int | None = None) -> None:
        """Counts an update, on a canvas of this length; None = the full one."""
        self._lengths.append(self._length if length is None else length)

    def read(self, tokens_per_step: float, running: int = 0) -> dict[str, float]:
        """`steps_per_second`, `tokens_per_second` and perhaps `mfu` since the last restart.

        Args:
          tokens_per_step: Mean of the steps that are counted.
          running: So many of the newest steps are not over; they are counted next time.

        Returns:
          Numbers; {} where no step is over.
        """
        seconds = max(time.perf_counter() - self._since, 1e-9)
        over = max(len(self._lengths) - running, 0)
        made, left = self._lengths[:over], self._lengths[over:]
        self.restart()
        self._lengths = left
        if not made:
            return {}
        steps = len(made) / seconds
        tokens = steps * tokens_per_step
        rates = {"steps_per_second": steps, "tokens_per_second": tokens}
        if self._peak:
            # With length buckets the mean canvas: attention's FLOPs are linear in it per token,
            # and all batches have the same number of slots.
            length = round(sum(made) / len(made))
            rates["mfu"] = tokens * sum(training_flops(self._config, length)) / self._peak
        return rates


class Goodput:
    """A stopwatch that is always in one phase; begins in `start`."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._phase: Phase = "start"
        self._since = clock()
        self._seconds = dict.fromkeys(PHASES, 0.0)

    def enter(self, phase: Phase) -> Phase:
        """Goes on in another phase; the one that ended."""
        now, old = self._clock(), self._phase
        self._seconds[old] += now - self._since
        self._phase, self._since = phase, now
        return old

    @contextlib.contextmanager
    def doing(self, phase: Phase) -> Iterator[None]:
        """A phase within another, which goes on after it."""
        old = self.enter(phase)
        try:
            yield
        finally:
            self.enter(old)

    def report(self) -> dict[str, float]:
        """`seconds` since the beginning, `goodput` (the share of steps), seconds per phase."""
        self.enter(self._phase)
        total = sum(self._seconds.values())
        share = self._seconds["steps"] / total if total else 0.0
        parts = {f"{phase}_seconds": seconds for phase, seconds in self._seconds.items()}
        return {"seconds": total, "goodput": share, **parts}


def goodput_line(values: dict[str, float]) -> str:
    """The report in one line, with shares."""
    total = max(values["seconds"], 1e-9)
    shares = [f"{phase} {values[f'{phase}_seconds'] / total:.1%}" for phase in PHASES]
    lost = f", {values['lost_steps']:.0f} steps made again" if values.get("lost_steps") else ""
    return f"goodput {values['goodput']:.1%} of {total:,.0f} s ({', '.join(shares)}{lost})"


class Capture:
    """Traces the steps of a range on every process.

    The traces of all processes land in one session, which xprof shows side by side:
    `<workdir>/profile/plugins/profile/steps_<first>_<last>/<host>_<process>.xplane.pb`. To see it:
    `xprof <workdir>/profile`, or TensorBoard's profile plugin.
    """

    def __init__(self, steps: range, workdir: epath.Path) -> None:
        self._steps, self._workdir = steps, workdir
        self._begun = self._last = 0  # steps of the trace that is running
        self._aside: tempfile.TemporaryDirectory[str] | None = None

    def step(self, number: int) -> contextlib.AbstractContextManager[object]:
        """To enter around the update `number` (from 1); begins the trace where it is the first."""
        if number not in self._steps:
            return contextlib.nullcontext()
        if self._aside is None:
            # Traced aside: the profiler cannot write into a bucket, and names files by host only.
            self._aside, self._begun = tempfile.TemporaryDirectory(), number
            jax.profiler.start_trace(self._aside.name)
        self._last = number
        return jax.profiler.StepTraceAnnotation("train", step_num=number)

    def done(self, number: int, result: object) -> None:
        """Ends the trace after its last update, when `result` of it has been computed."""
        if self._aside is not None and number == self._steps[-1]:
            jax.block_until_ready(result)
            self._write()

    def close(self) -> None:
        """Writes what there is of a range that the run did not reach the end of."""
        if self._aside is not None:
            self._write()

    def _write(self) -> None:
        assert self._aside is not None
        with self._aside as aside:
            jax.profiler.stop_trace()
            session = f"steps_{self._begun}_{self._last}"
            place = self._workdir / "profile" / "plugins" / "profile" / session
            place.mkdir(parents=True, exist_ok=True)
            for found in Path(aside).rglob("*.xplane.pb"):
                host = found.name.removesuffix(".xplane.pb")
                name = f"{host}_{jax.process_index()}.xplane.pb"
                (place / name).write_bytes(found.read_bytes())
        self._aside = None
