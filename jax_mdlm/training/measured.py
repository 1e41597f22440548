"""What an evaluation during training found: numbers, and rows that were decoded.

Enters: from `evaluation.periodic`, which training does not know. Leaves: lines of the console, of
`samples.jsonl` and of TensorBoard.
"""

import dataclasses
from typing import Any

from jax_mdlm.data.tokenizer import visible

SHOWN = 3  # samples on the console and in TensorBoard
_PROMPT, _LINE = 60, 160  # characters on the console


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


def _shortened(text: str) -> str:
    return text if len(text) <= _LINE else text[:_LINE] + "…"
