"""`python -m jax_mdlm.sample --chat` on a terminal."""

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jax_mdlm.config import ConfigError
from jax_mdlm.mdlm import Mdlm
from tests.viewing.pseudo_terminal import Session

ROOT = Path(__file__).parent.parent.parent
WIDTH, HEIGHT = 46, 12


@pytest.fixture(scope="module")
def session(talking: tuple[Mdlm, Path]) -> Iterator[Session]:
    command = [sys.executable, "-m", "jax_mdlm.sample", "--workdir", str(talking[1]), "--chat"]
    command += [
        f"--config.sample.{setting}"
        for setting in ("length=512", "steps=512", "early_stop=false", "temperature=1")
    ]
    environment = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
    for name in ("COLUMNS", "LINES"):  # pytest-xdist sets them; they would overrule the terminal
        environment.pop(name, None)
    session = Session(command, environment, ROOT, width=WIDTH, height=HEIGHT)
    yield session
    session.process.kill()
    session.process.wait()


def test_a_session(session: Session) -> None:
    """A tall canvas on a small terminal; what stays is the conversation and nothing else."""

    def asked(text: str) -> bool:
        return text.endswith("you>")

    session.until(asked)

    # Line editing: the cursor goes back, a letter is put in. The answer is stopped midway.
    session.type("hllo\x1b[D\x1b[D\x1b[De\r")
    session.until(lambda text: "masked" in text and "░" in text)
    assert not session.echoes()
    assert "25" not in session.screen.modes, "no cursor in the canvas"
    session.type("\x03")
    session.until(lambda text: "stopped" in text and asked(text))
    assert {"25", "2004"} <= session.screen.modes
    session.type("/new\r")
    session.until(lambda text: "a new conversation" in text and asked(text))

    # A pasted text of two lines is one message, and answered.
    session.type("\x1b[200~two\nlines\x1b[201~\r")
    session.until(lambda text: "masked" in text and "░" in text)
    session.type("too early")  # is not seen before it is asked for
    session.until(lambda text: "tokens/s" in text and text.endswith("you> too early"))
    session.type("\x15\x04")  # what is there is taken back; the end
    assert session.finish() == 0
    assert session.echoed_at_the_end

    said = [*session.screen.scrolled, *str(session.screen).splitlines()]
    assert not any("masked" in line or "░" in line for line in said), "a frame stayed"
    assert said[0] == "tiny at step 7; /help lists the commands"
    assert said[1:4] == ["you> hello", "stopped; this turn is not remembered", "you> /new"]
    assert said[4] == "a new conversation"
    assert said[5] == "you> two"
    assert said[6].strip() == "lines"
    cost = [at for at, line in enumerate(said) if re.match(r"512 calls, [\d.]+ s,", line)]
    assert len(cost) == 1
    assert len(said[7 : cost[0]]) > 3, "the answer"
    assert said[-1] == "you>"
    assert any("compiling..." in frame for frame in session.frames)
    moving = [frame for frame in session.frames if "masked" in frame]
    assert len({frame for frame in moving if "░" in frame}) > 5
    assert any("⋮" in frame for frame in moving), "the canvas is taller than the screen"


def test_no_terminal_is_refused(
    talking: tuple[Mdlm, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    from jax_mdlm.sample import main

    with pytest.raises(ConfigError, match="--chat needs a terminal; give prompts as arguments"):
        main(["--workdir", str(talking[1]), "--chat"])
