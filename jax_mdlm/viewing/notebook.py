"""What a notebook shows below a cell: answers while they are made, generations that replay.

Enters: a dialogue, or records of `--trace`. Leaves: outputs of IPython, which Colab, Jupyter and
VS Code draw.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jax_mdlm.viewing.dialogue import Dialogue, Turn, open_dialogue
from jax_mdlm.viewing.player import framed, page
from jax_mdlm.viewing.web import pictures

__all__ = ["Chat", "describe_device", "open_dialogue", "replay", "weights_that_fit"]

_GIB = 2**30
ROOM = {"full": 24 * _GIB, "int8": 12 * _GIB}  # of a chip, for LLaDA-8B and its canvas


class Chat:
    """A conversation below the cells of a notebook."""

    def __init__(self, dialogue: Dialogue) -> None:
        """Begins one; `dialogue` as from `open_dialogue`."""
        self.turns: list[Turn] = []
        self.records: list[dict[str, Any]] = []  # of `--trace`, for `replay` and `page`
        self._dialogue, self._number = dialogue, 0

    def say(self, message: str) -> str:
        """Answers a message: the canvas while it is denoised, then a page that replays it.

        Returns:
          The answer's text.

        Raises:
          ConfigError: a message that the tokenizer or the model cannot take.
        """
        from IPython.display import display

        picture, handle = None, None
        for picture in pictures(self._dialogue, message, self.turns, self._number):
            shown = _Shown(f"{picture.html}<p>{picture.notes}</p>")
            if handle is None:
                handle = display(shown, display_id=True)
            else:
                handle.update(shown)
        assert picture is not None
        self.turns, self._number = picture.turns, self._number + 1
        self.records.append(picture.record)
        return picture.text


def replay(runs: Mapping[str, Sequence[Mapping[str, Any]]], height: int = 480) -> None:
    """Shows generations that replay, of one run or of two side by side.

    Args:
      runs: Records of `--trace` (`read_traces`) by the name of their run.
      height: Pixels.
    """
    from IPython.display import display

    display(_Shown(framed(page(runs), height)))


def describe_device() -> str:
    """What this runtime computes on, as a line to print."""
    first = jax.devices()[0]
    room = _memory(first)
    if not room:
        return f"{first.device_kind}, no accelerator: what is shown here uses a small model"
    return f"{jax.device_count()} x {first.device_kind}, {room / _GIB:.0f} GiB each"


def weights_that_fit() -> str:
    """`sample.weights` with which LLaDA-8B fits one chip of this runtime; empty: none does."""
    room = _memory(jax.devices()[0])
    return next((name for name, least in ROOM.items() if room >= least), "")


class _Shown:
    """HTML as an output; IPython's own class warns of every `iframe`."""

    def __init__(self, html: str) -> None:
        self._html = html

    def _repr_html_(self) -> str:
        return self._html


def _memory(device: Any) -> int:
    """Bytes of an accelerator; 0 of a CPU."""
    if device.platform == "cpu":
        return 0
    return (device.memory_stats() or {}).get("bytes_limit", 0)
