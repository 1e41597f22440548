"""The door: a model with all that it takes to use it, from wherever it is kept.

    import jax_mdlm

    model = jax_mdlm.load("runs/quickstart")
    model.generate(["alignment", "slacken"])

Enters: a path and settings of the sampler. Leaves: `Mdlm`, whose template, collapse map, width of
prompts and decoding are those that the parameters were trained with: nobody passes them by hand.
"""

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from jax_mdlm import model
from jax_mdlm.config import Config, ConfigError, ModelConfig
from jax_mdlm.containers import Params, SampleState
from jax_mdlm.conversion.placing import place_prepared
from jax_mdlm.conversion.reading import opened_params
from jax_mdlm.data.examples import Message
from jax_mdlm.likelihood import Estimate, log_likelihood
from jax_mdlm.model import memory, table
from jax_mdlm.progress import ByteProgress
from jax_mdlm.sampling import Answer, SampleOptions, generate, read_answers, stream
from jax_mdlm.setup import Prompt, Setup, open_setup
from jax_mdlm.sharding import Layout, make_layout
from jax_mdlm.workdir import newest_step

_LONG = 10**9  # bytes; a bar is shown while so many are read


@dataclasses.dataclass(frozen=True)
class Frame:
    """A canvas on its way.

    Attributes:
      answer: What stands in it; finished in the last frame.
      block: Slots of the response that are being decoded.
    """

    answer: Answer
    block: range


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mdlm(Setup):
    """A masked-diffusion language model, ready to answer. `load` opens one.

    Attributes:
      params: Parameters as the sampler reads them.
      layout: Where they are.
      step: Training steps after which they were saved; 0 of published weights.
    """

    params: Params = dataclasses.field(repr=False)
    layout: Layout
    step: int

    @classmethod
    def of(cls, setup: Setup, params: Params, layout: Layout, step: int) -> "Mdlm":
        """A model of these parameters, as from `model.init` or `model.prepare`."""
        own = {field.name: getattr(setup, field.name) for field in dataclasses.fields(Setup)}
        return cls(**own, params=params, layout=layout, step=step)

    def generate(self, prompts: Sequence[Prompt]) -> list[str]:
        """The text of the answer to each prompt.

        Args:
          prompts: Texts, lists of messages, or lists of token ids; any number, of any lengths.

        Raises:
          ConfigError: a prompt that the tokenizer or the model cannot take.
        """
        return [self.tokenizer.decode(answer.tokens) for answer in self.answers(prompts)]

    def answers(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """The answer to each prompt in tokens, with its canvas and the call that fixed each slot.

        Args:
          prompts: Texts, lists of messages, or lists of token ids.

        Raises:
          ConfigError: a prompt that the tokenizer or the model cannot take.
        """
        if isinstance(prompts, str):
            raise ConfigError(f"prompts must be a list, got one text; write [{prompts[:40]!r}]")
        ids = [self.encode(prompt) for prompt in prompts]
        size = min(self.settings.batch_size, len(ids))
        return list(self.decode(ids, batch_size=size)) if ids else []

    def decode(
        self,
        prompts: Sequence[Sequence[int] | None],
        *,
        key: jax.Array | None = None,
        batch_size: int = 0,
        first_row: int = 0,
        options: SampleOptions | None = None,
        strength: float = 0.0,
    ) -> Iterator[Answer]:
        """Answers to prompts in tokens, batch after batch, in order.

        Args:
          prompts: Token ids; with masks to fill in, or without. None: its answer is empty.
          key: Typed PRNG key []; None: that of `sample.seed`.
          batch_size: Prompts per compiled call; 0 = `sample.batch_size`.
          first_row: Number of the first prompt in a longer list: a row draws from its number.
          options: How to decode; None = the model's own.
          strength: Of an intervention, in [0, 1].

        Raises:
          ConfigError: a prompt that does not fit the model, before the first call.
        """
        return generate(
            self.params,
            self.config.model,
            prompts,
            options or self.options,
            jax.random.key(self.settings.seed) if key is None else key,
            batch_size=batch_size or self.settings.batch_size,
            first_row=first_row,
            strength=strength,
            layout=self.layout,
        )

    def stream(
        self, prompt: Prompt, *, every: int | Callable[[], int] = 1, key: jax.Array | None = None
    ) -> Iterator[Frame]:
        """The canvas of one answer while it is denoised, the finished one at the end.

        Args:
          prompt: A text, messages, or token ids.
          every: Model calls between two frames; a function is asked before each part.
          key: Typed PRNG key []; None: that of `sample.seed`.

        Raises:
          ConfigError: a prompt that the tokenizer or the model cannot take.

        Examples:
          >>> import jax_mdlm
          >>> model = jax_mdlm.load("runs/quickstart", length=8, block_length=4, steps=4)
          >>> [frame.answer.calls for frame in model.stream("slack", every=2)]
          [2, 4]
        """
        size = self.settings.block_length
        for state in self._states(self.encode(prompt), every, key):
            (answer,) = read_answers(state, 1, self.options)
            first = int(state.block) * size
            yield Frame(answer, range(first, first + size))

    def chat(self, messages: Sequence[Message] | Sequence[Mapping[str, Any]]) -> str:
        """The answer to a conversation: `[{"role": "user", "content": "Hello"}]`.

        Raises:
          ConfigError: a message lacks its role or content, or the conversation does not fit.
        """
        return self.generate([messages])[0]

    def log_likelihood(
        self, prompt: Prompt, response: str | Sequence[int], *, samples: int = 128
    ) -> Estimate:
        """A lower bound of `log p(response | prompt)` in nats, with its standard error.

        Eq. 6 of arXiv 2502.09992, estimated without bias (`likelihood.log_likelihood`). A text is
        scored with its terminator, and with the end padding that every row of the training had.

        Args:
          prompt: A text, messages, or token ids.
          response: A text, or token ids as they are.
          samples: Masks that are drawn, at least 2 for a standard error.

        Raises:
          ConfigError: they do not fit the model, or cannot be encoded.

        Examples:
          >>> import jax_mdlm
          >>> bound = jax_mdlm.load("runs/quickstart").log_likelihood("ab", "A B", samples=8)
          >>> bound.value < 0 < bound.standard_error
          True
        """
        ids, special = self.encode(prompt), self.tokenizer.ids
        if isinstance(response, str):
            told = [*self.tokenizer.encode(response.strip()), special.terminator]
            room = max(self.config.data.length - len(ids) - len(told), 0)
            response = [*told, *[special.eos] * min(self.end_padding, room)]
        (estimate,) = log_likelihood(
            self.params,
            self.config.model,
            [(ids, list(response))],
            special,
            jax.random.key(self.settings.seed),
            samples=samples,
            batch_size=self.settings.batch_size,
            guidance=self.settings.guidance,
            layout=self.layout,
        )
        return estimate

    def logits(self, token_ids: Sequence[Sequence[int]] | np.ndarray | jax.Array) -> jax.Array:
        """What the network says of every slot: int [B, L] -> float32 [B, L, V].

        Args:
          token_ids: Canvases of one length; slots to be predicted hold `tokenizer.ids.mask`.

        Raises:
          ConfigError: canvases longer than `model.max_length`.
        """
        tokens = jnp.asarray(token_ids, jnp.int32)
        network = self.config.model
        if tokens.ndim != 2 or tokens.shape[1] > network.max_length:
            raise ConfigError(
                f"token_ids must be [B, L] with L at most model.max_length={network.max_length}, "
                f"got shape {list(tokens.shape)}"
            )
        return _logits(self.params, tokens, network, self.layout)

    @property
    def end_padding(self) -> int:
        """EOS slots that every row of its training had after its terminator."""
        data = self.config.data
        return 0 if data.draw_end_padding or data.pretraining else data.end_padding

    def _states(
        self, ids: Sequence[int], every: int | Callable[[], int], key: jax.Array | None
    ) -> Iterator[SampleState]:
        key = jax.random.key(self.settings.seed) if key is None else key
        network, options = self.config.model, self.options
        return stream(self.params, network, [ids], options, key, every=every, layout=self.layout)

    def _configured(self, config: Config) -> Self:
        kept = (self.config.mesh, model.Form.of(self.settings))
        if (config.mesh, model.Form.of(config.sample)) != kept:
            raise ConfigError(
                "sample.weights and mesh settings say how parameters are read, and they have been; "
                "load the model again"
            )
        return super()._configured(config)


def load(
    path: epath.PathLike,
    *,
    weights: Literal["full", "int8", "int4"] = "full",
    layout: Layout | None = None,
    **settings: Any,
) -> Mdlm:
    """Opens a model: a training run, an import, or a folder of published weights.

    Args:
      path: A work directory (its newest checkpoint; adapters of a LoRA run are merged), or a folder
        of weights as PyTorch users load it: local, `gs://`, `s3://`, or `hf://ORG/NAME`.
      weights: `int8` and `int4` quantise matrices and embedding while they are read
        (`model.Form`).
      layout: Where the parameters go (`sharding.make_layout`); None: as the model's config says.
      settings: Fields of `SampleConfig` that differ from those of its training, e.g. `steps=32`; as
        `strategy` an object, too.

    Returns:
      The model. The same settings give what `python -m jax_mdlm.sample` prints, to the token.

    Raises:
      ConfigError: nothing usable is there, a setting cannot be used, or memory is short.
      CheckpointError: damaged, or of another shape.

    Examples:
      >>> import jax_mdlm
      >>> model = jax_mdlm.load("runs/quickstart", steps=4)
      >>> len(model.generate(["alignment", "slacken"]))
      2
    """
    return read(open_setup(path).with_settings(weights=weights, **settings), layout)


def read(setup: Setup, layout: Layout | None = None, *, rows: int = 0) -> Mdlm:
    """Reads the parameters, layer by layer, into the form that the sampler takes.

    Args:
      setup: How the model is decoded; says where it is kept.
      layout: Where they go; None: as `mesh` of the config says, over all devices.
      rows: Prompts of a compiled call, for what memory must hold; 0 = `sample.batch_size`.

    Raises:
      ConfigError: no checkpoint, or too little memory.
      CheckpointError: damaged, or of another shape.
    """
    config = setup.config
    layout = layout or make_layout(config.mesh)
    if setup.source or newest_step(setup.path) >= 0:  # else another sentence is due
        rows = min(rows or config.sample.batch_size, config.sample.batch_size)
        memory.check_sampling(os.fspath(setup.path), config, layout, rows)
    table.check_mesh(config.model, layout)
    network, dtype = config.model, config.model.compute_dtype
    with opened_params(setup.source or setup.path, network, dtype) as (step, arrays):
        total = sum(math.prod(array.shape) * array.dtype.itemsize for array in arrays.values())
        shown = jax.process_count() == 1 and total >= _LONG
        with ByteProgress(total, active=shown) as progress:
            form = model.Form.of(config.sample)
            params = place_prepared(arrays, network, layout, form, progress.add)
    return Mdlm.of(setup, params, layout, step)


@functools.partial(jax.jit, static_argnames=("config", "layout"))
def _logits(params: Params, tokens: jax.Array, config: ModelConfig, layout: Layout) -> jax.Array:
    window = model.Window(0, tokens.shape[1])
    hidden, _ = model.encode_window(params, tokens, config, window, layout=layout)
    return model.project(hidden, model.head(params), layout)
