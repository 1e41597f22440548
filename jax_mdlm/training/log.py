"""What is measured: collected on the device, divided once, written to JSONL and TensorBoard.

`Mean`s of single steps enter; numbers per window leave. A window is read when the step after it is
under way, so that the host never waits for the step that is running. What an evaluation finds
enters from `evaluation.periodic`, which training does not know.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from tensorboardX import SummaryWriter

from jax_mdlm.containers import Mean
from jax_mdlm.data.tokenizer import visible

SHOWN = 3  # samples on the console and in TensorBoard
_PROMPT, _LINE = 60, 160  # characters on the console


class StepMetrics:
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


@dataclasses.dataclass(frozen=True)
class Sample:
    """A decoded row.

    Attributes:
      prompt: What was asked; messages are joined by newlines.
      reference: The first text that counts as right.
      text: The answer.
      canvas: The token of each decoded slot, slack by its sign, up to the last that is no padding.
    """

    prompt: str
    reference: str
    text: str
    canvas: list[str]

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)

    def lines(self) -> list[str]:
        """For the console: the end of the prompt and the text, and the canvas below it."""
        prompt, text = (visible(part.strip()) for part in (self.prompt, self.text))
        if len(prompt) > _PROMPT:
            prompt = "…" + prompt[-_PROMPT:]
        shown = " ".join(visible(token) for token in self.canvas)
        return [f"  {prompt} -> {_shortened(text)}", f"    canvas {_shortened(shown)}"]

    def markdown(self) -> str:
        """For TensorBoard, which renders Markdown: indented lines are shown as they stand."""
        parts = {
            "prompt": self.prompt,
            "reference": self.reference,
            "text": self.text,
            "canvas": " ".join(visible(token) for token in self.canvas),
        }
        return "\n".join(f"    {name:<10}{visible(part)}" for name, part in parts.items())


@dataclasses.dataclass(frozen=True)
class Measured:
    """What an evaluation found.

    Attributes:
      values: Numbers by name.
      samples: The rows that were decoded, in order.
    """

    values: dict[str, float]
    samples: list[Sample] = dataclasses.field(default_factory=list)


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


def _shortened(text: str) -> str:
    return text if len(text) <= _LINE else text[:_LINE] + "…"
