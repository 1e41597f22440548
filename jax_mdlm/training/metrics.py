"""Metrics of a run: collected on the device, divided once, written to console, JSONL, TensorBoard.

`Mean`s of single steps enter; numbers per window leave. A window is read when the step after it is
under way, so that the host never waits for the step that is running.
"""

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from tensorboardX import SummaryWriter

from jax_mdlm.config import ModelConfig
from jax_mdlm.containers import Mean
from jax_mdlm.model import table
from jax_mdlm.training.chips import find_chip


class Window:
    """Metrics of the steps since the last report."""

    def __init__(self) -> None:
        self._steps: list[tuple[int, Mapping[str, Mean]]] = []

    def add(self, step: int, metrics: Mapping[str, Mean]) -> None:
        """Keeps a step's metrics on the device; the first step is 1."""
        self._steps.append((step, metrics))

    def keep_up(self, ahead: int = 2) -> None:
        """Waits until at most `ahead` steps are under way.

        Enough that the device never waits for the host; a host that runs further ahead holds a
        batch on the device for each step, and its clock says nothing of the steps.
        """
        if len(self._steps) > ahead:
            jax.block_until_ready(self._steps[-1 - ahead][1])

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

    def report(self, running: int = 1) -> dict[str, float]:
        """Averages and forgets all steps but the newest, which may still run.

        Args:
          running: So many of them stay; 0: all are averaged, the newest is waited for.

        Returns:
          Numbers per metric; {} where there is no step.

        Raises:
          FloatingPointError: as `check`.
        """
        cut = max(len(self._steps) - running, 0)
        self.check(cut)
        taken, self._steps = self._steps[:cut], self._steps[cut:]
        names = taken[0][1] if taken else ()
        return {name: mean_value([metrics[name] for _, metrics in taken]) for name in names}


def mean_value(parts: list[Mean]) -> float:
    """One number from the parts of a mean, on the host."""
    total = sum(float(part.total) for part in parts)
    count = sum(float(part.count) for part in parts)
    return total / count if count else 0.0


def training_flops(config: ModelConfig, length: int) -> tuple[int, int]:
    """FLOPs per token that a training step needs, what is computed twice counted once.

    6 per parameter that is multiplied (all but the embedding) and 12 * layers * L * N * H for
    attention (arXiv 2204.02311, appendix B).

    Args:
      config: The network.
      length: Slots of the canvas.

    Returns:
      Those of the matrices, and those of attention.
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


class Log:
    """Writes to the work directory and TensorBoard; on the first process only.

    Numbers go to `metrics.jsonl`, decoded texts to `samples.jsonl`.
    """

    def __init__(self, workdir: epath.Path, *, resumed_at: int, tensorboard: bool) -> None:
        self._active = jax.process_index() == 0
        self._path = workdir / "metrics.jsonl"
        self._samples = workdir / "samples.jsonl"
        self._board = None
        self.lost_steps = 0  # made before a kill, after its last checkpoint: made again now
        if not self._active:
            return
        for path in (self._path, self._samples):
            if path.exists():
                self._forget_after(path, resumed_at)
        if tensorboard:
            self._board = SummaryWriter(
                str(workdir / "tensorboard"), purge_step=resumed_at, write_to_disk=True
            )

    def write(self, step: int, group: str, values: Mapping[str, float]) -> None:
        """Appends a line; `group` is `train`, `validation`, `test` or `goodput`."""
        if not self._active:
            return
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, "group": group, **values}) + "\n")
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{group}/{name}", value, step)
            self._board.flush()

    def write_samples(
        self, step: int, records: Sequence[Mapping[str, Any]], shown: Sequence[str]
    ) -> None:
        """Appends a line for each decoded row; `shown` are texts in Markdown for TensorBoard."""
        if not self._active or not records:
            return
        with self._samples.open("a") as file:
            for record in records:
                file.write(json.dumps({"step": step, **record}, ensure_ascii=False) + "\n")
        if self._board is not None:
            for number, text in enumerate(shown, start=1):
                self._board.add_text(f"samples/{number}", text, step)
            self._board.flush()

    def close(self) -> None:
        """Closes the event file."""
        if self._board is not None:
            self._board.close()

    def _forget_after(self, path: epath.Path, step: int) -> None:
        # A killed run wrote lines beyond its last checkpoint; the resumed one writes them again.
        kept = []
        for line in path.read_text().split("\n"):
            try:
                number = json.loads(line)["step"]
                self.lost_steps = max(self.lost_steps, number - step)
                if number <= step:
                    kept.append(line + "\n")
            except (ValueError, KeyError):  # the line that the kill cut short
                continue
        path.write_text("".join(kept))
