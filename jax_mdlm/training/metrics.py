"""Metrics of a run: collected on the device, divided once, written to console, JSONL, TensorBoard.

`Mean`s of single steps enter; numbers per window leave. A window's metrics are fetched one step
late, so that the host never waits for the step that is running.
"""

import json
import time
from collections.abc import Mapping

import jax
import numpy as np
from etils import epath
from tensorboardX import SummaryWriter

from jax_mdlm.config import ModelConfig
from jax_mdlm.containers import Mean
from jax_mdlm.model import table

# bfloat16 FLOP/s of one chip, from the vendor's documentation; MFU is left out for others.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
}


class Window:
    """Metrics of the steps since the last report."""

    def __init__(self) -> None:
        self._steps: list[tuple[int, Mapping[str, Mean]]] = []

    def add(self, step: int, metrics: Mapping[str, Mean]) -> None:
        """Keeps a step's metrics on the device; `step` counts the updates made before it."""
        self._steps.append((step, metrics))

    def check(self, steps: int | None = None) -> None:
        """Fetches the oldest `steps` (default: all, waiting for the running one) and looks at them.

        Raises:
          FloatingPointError: loss or gradient of a step is NaN or infinite; names the steps.
        """
        numbers = [number for number, _ in self._steps[:steps]]
        values = jax.device_get([metrics for _, metrics in self._steps[:steps]])
        self._steps[: len(numbers)] = list(zip(numbers, values, strict=True))
        for name in ("loss", "grad_norm"):
            finite = [np.isfinite(metrics[name].total) for metrics in values]
            if not all(finite):
                raise FloatingPointError(
                    f"{name} must be finite, but is NaN or infinite at step "
                    f"{numbers[finite.index(False)]} (seen in steps {numbers[0]} to {numbers[-1]});"
                    " the newest checkpoint is from before that: lower optimizer.learning_rate or "
                    "look at the data of these steps"
                )

    def report(self) -> dict[str, float]:
        """Averages and forgets all steps but the newest, which may still run.

        Returns:
          Numbers per metric; {} where there is no step.

        Raises:
          FloatingPointError: as `check`.
        """
        cut = max(len(self._steps) - 1, 0)
        self.check(cut)
        taken, self._steps = self._steps[:cut], self._steps[cut:]
        names = taken[0][1] if taken else ()
        return {name: mean_value([metrics[name] for _, metrics in taken]) for name in names}


def mean_value(parts: list[Mean]) -> float:
    """One number from the parts of a mean, on the host."""
    total = sum(float(part.total) for part in parts)
    count = sum(float(part.count) for part in parts)
    return total / count if count else 0.0


class Throughput:
    """Tokens per second and, where the device's peak is known, the share of it that is used.

    FLOPs per token: 6 per parameter that is multiplied (all but the embedding) and
    12 * layers * L * N * H for attention (arXiv 2204.02311, appendix B).
    """

    def __init__(self, config: ModelConfig, length: int) -> None:
        multiplied = table.num_parameters(config) - config.vocab_size * config.embed
        attention = 12 * config.layers * length * config.heads * config.head_dim
        self._flops_per_token = 6 * multiplied + attention
        self._peak = PEAK_FLOPS.get(jax.devices()[0].device_kind, 0.0) * jax.device_count()
        self.restart()

    def restart(self) -> None:
        """Starts the clock anew, e.g. after an evaluation."""
        self._since, self._steps = time.perf_counter(), 0

    def step(self) -> None:
        """Counts an update."""
        self._steps += 1

    def read(self, tokens_per_step: float) -> dict[str, float]:
        """`steps_per_second`, `tokens_per_second` and perhaps `mfu` since the last restart."""
        seconds = max(time.perf_counter() - self._since, 1e-9)
        steps = self._steps / seconds
        tokens = steps * tokens_per_step
        self.restart()
        rates = {"steps_per_second": steps, "tokens_per_second": tokens}
        if self._peak:
            rates["mfu"] = tokens * self._flops_per_token / self._peak
        return rates


class Log:
    """Writes numbers to `<workdir>/metrics.jsonl` and TensorBoard; on the first process only."""

    def __init__(self, workdir: epath.Path, *, resumed_at: int, tensorboard: bool) -> None:
        self._active = jax.process_index() == 0
        self._path = workdir / "metrics.jsonl"
        self._board = None
        if not self._active:
            return
        if self._path.exists():
            self._forget_after(resumed_at)
        if tensorboard:
            self._board = SummaryWriter(
                str(workdir / "tensorboard"), purge_step=resumed_at, write_to_disk=True
            )

    def write(self, step: int, group: str, values: Mapping[str, float]) -> None:
        """Appends a line; `group` is `train`, `validation` or `test`."""
        if not self._active:
            return
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, "group": group, **values}) + "\n")
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{group}/{name}", value, step)
            self._board.flush()

    def close(self) -> None:
        """Closes the event file."""
        if self._board is not None:
            self._board.close()

    def _forget_after(self, step: int) -> None:
        # A killed run wrote lines beyond its last checkpoint; the resumed one writes them again.
        kept = []
        for line in self._path.read_text().splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, KeyError):  # the line that the kill cut short
                continue
        self._path.write_text("".join(kept))
