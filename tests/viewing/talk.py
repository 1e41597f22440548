"""A conversation of a tiny run that is printed to a string."""

import dataclasses
import io

from rich.console import Console

from jax_mdlm.data.chat import make_template
from jax_mdlm.mdlm import Run
from jax_mdlm.sampling import SampleOptions, options_from
from jax_mdlm.viewing.chat import Conversation
from jax_mdlm.viewing.dialogue import Dialogue
from tests.viewing.conftest import talking_config

# Long enough for one bucket with whatever else these tests ask: programs are what takes time here.
QUESTION = "what stands in a slot that is masked? " * 2


@dataclasses.dataclass
class Talk:
    """A conversation that is printed to a string."""

    run: Run
    options: SampleOptions
    console: Console = dataclasses.field(
        default_factory=lambda: Console(file=io.StringIO(), width=60, height=16, highlight=False)
    )
    conversation: Conversation = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.template = make_template("llada", self.run.tokenizer)
        dialogue = Dialogue(self.run, self.options, self.template, None)
        self.conversation = Conversation(dialogue, self.console)

    def ask(self, message: str) -> str:
        """What is printed for it."""
        before = len(self.printed)
        self.conversation.ask(message)
        return self.printed[before:]

    @property
    def printed(self) -> str:
        return self.console.file.getvalue()  # pyright: ignore


def talk(run: Run, **settings: object) -> Talk:
    """With noise, and every slot to the end, unless told otherwise."""
    config = talking_config(**{"temperature": 1.0, "early_stop": False, **settings})
    options = options_from(config.sample, config.objective.collapse, run.tokenizer.ids)
    return Talk(dataclasses.replace(run, config=config), options)
