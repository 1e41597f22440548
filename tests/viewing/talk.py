"""A conversation of a tiny run that is printed to a string."""

import dataclasses
import io

from rich.console import Console

from jax_mdlm.mdlm import Mdlm
from jax_mdlm.sampling import SampleOptions
from jax_mdlm.viewing.chat import Conversation
from jax_mdlm.viewing.dialogue import Dialogue
from tests.viewing.conftest import talking_config

# Long enough for one bucket with whatever else these tests ask: programs are what takes time here.
QUESTION = "what stands in a slot that is masked? " * 2


@dataclasses.dataclass
class Talk:
    """A conversation that is printed to a string."""

    model: Mdlm
    console: Console = dataclasses.field(
        default_factory=lambda: Console(file=io.StringIO(), width=60, height=16, highlight=False)
    )
    conversation: Conversation = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.conversation = Conversation(Dialogue(self.model), self.console)

    def ask(self, message: str) -> str:
        """What is printed for it."""
        before = len(self.printed)
        self.conversation.ask(message)
        return self.printed[before:]

    @property
    def options(self) -> SampleOptions:
        return self.model.options

    @property
    def printed(self) -> str:
        return self.console.file.getvalue()  # pyright: ignore


def talk(model: Mdlm, **settings: object) -> Talk:
    """With noise, and every slot to the end, unless told otherwise."""
    config = talking_config(**{"temperature": 1.0, "early_stop": False, **settings})
    return Talk(dataclasses.replace(model, config=config))
