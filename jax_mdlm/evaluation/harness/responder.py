"""Texts in, texts and log-likelihoods out: what lm-evaluation-harness asks of a model.

Enters: contexts as strings. Leaves: answers decoded by `sampling`, and estimates of
`evaluation.likelihood`. Nothing here knows lm-eval; `harness.tasks` has the plug.
"""

import dataclasses
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from jax_mdlm.config import ConfigError
from jax_mdlm.data.chat import Written, encode_written, history
from jax_mdlm.data.examples import Message, check_text, parse_messages
from jax_mdlm.evaluation.harness.decoding import cut, plan
from jax_mdlm.likelihood import Estimate, log_likelihood
from jax_mdlm.mdlm import Mdlm
from jax_mdlm.sampling import SampleOptions

Row = tuple[list[int], list[int]]  # prompt and response, token ids
_DLE = "\x10"
_CUT = f"{_DLE};{_DLE}"
_SIGN = re.compile(f"{_DLE}(?:(?P<id>[0-9]+){_DLE}|(?P<cut>;{_DLE})|{_DLE})")


@dataclasses.dataclass(frozen=True)
class Asked:
    """One answer that is wanted.

    Attributes:
      context: The prompt: text, or what `Responder.render` gave (`Responder.chat`).
      wishes: `generation_kwargs` of the task.
      origin: Where it comes from, for messages: task and document.
    """

    context: str
    wishes: Mapping[str, Any]
    origin: str


@dataclasses.dataclass(frozen=True)
class Scored:
    """One continuation whose likelihood is wanted.

    Attributes:
      context: The prompt, or "".
      continuation: The text that is scored.
      origin: Where it comes from, for messages.
    """

    context: str
    continuation: str
    origin: str


@dataclasses.dataclass(frozen=True)
class Responder:
    """A model that answers.

    Attributes:
      model: Answers; its settings say how, before a task has its say.
      samples: Draws of the likelihood's estimate, per continuation.
      greedy: Whether continuations are also decoded, for tasks that ask if they are the first
        choice; a model call a token. Else none is.
      fixed: Fields of the `sample` section that a task cannot change.
      chat: Whether contexts come from `render`. Else they are text, whatever they spell.
      report: Called with what is being done, how many are done, and of how many.
    """

    model: Mdlm
    samples: int = 128
    greedy: bool = False
    fixed: frozenset[str] = frozenset()
    chat: bool = False
    report: Callable[[str, int, int], None] = lambda what, done, total: None

    def render(self, messages: Sequence[Mapping[str, Any]], *, open_answer: bool = True) -> str:
        """A conversation as one string (see `to_string`); its ids are those of `render_prompt`.

        Args:
          messages: Objects with role and content.
          open_answer: Whether the response follows. False: the last message is the beginning of
            the response, and the model goes on from there.

        Raises:
          ConfigError: a message lacks its role or content.
        """
        parsed, begun = parse_messages(list(messages), "conversation"), ""
        if not open_answer and parsed[-1].role == "assistant":
            *parsed, last = parsed
            begun = last.content
        past = history(self.model.template, parsed)
        if self.model.template.slots:
            filled = sum(map(len, encode_written(self.model.tokenizer, past)))
            past.append([self.model.tokenizer.ids.pad] * (self.model.template.slots - filled))
        opening = self.model.template.opening
        return to_string([*past, [*opening, begun] if begun else opening])

    def template_text(self) -> str:
        """The template around the word `content`, which tells templates apart."""
        parts = [
            *history(self.model.template, [Message("user", "content")]),
            self.model.template.opening,
        ]
        return "".join(
            piece if isinstance(piece, str) else self.model.tokenizer.token(piece)
            for part in parts
            for piece in part
        )

    def answer(self, asked: Sequence[Asked]) -> list[str]:
        """Decodes an answer to each request.

        Requests that are decoded alike go together, longest first: what does not fit the memory
        fails at once, and rows of a batch have few slots of padding.

        Raises:
          ConfigError: a prompt that does not fit or cannot be encoded, a setting that the sampler
            does not have.
        """
        plans = [
            plan(self.model.options, one.wishes, fixed=self.fixed, origin=one.origin)
            for one in asked
        ]
        prompts = self._encode(
            [self._parts(one.context) for one in asked], [one.origin for one in asked]
        )
        groups: dict[SampleOptions, list[int]] = {}
        for number, (one, how, prompt) in enumerate(zip(asked, plans, prompts, strict=True)):
            self._check_fits(len(prompt), how.options.settings.length, one.origin)
            groups.setdefault(how.options, []).append(number)

        texts, done = [""] * len(asked), 0
        for options, numbers in groups.items():
            numbers.sort(key=lambda number: -len(prompts[number]))
            answers = self.model.decode(
                [prompts[number] for number in numbers],
                options=options,
                batch_size=min(self.model.settings.batch_size, len(numbers)),
                first_row=done,
            )
            for number, answer in zip(numbers, answers, strict=True):
                text = self.model.tokenizer.decode(answer.tokens[: plans[number].limit])
                texts[number] = cut(text, plans[number].until)
                done += 1
                self.report("answer", done, len(asked))
        return texts

    def rows(self, scored: Sequence[Scored]) -> list[Row]:
        """Token ids of context and continuation.

        As in LLaDA's `eval_llada.py` (and lm-eval's own models): white space at the context's end
        is moved to the continuation, because tokenizers join it to the next word; then the two are
        encoded together, and the continuation has what the context alone does not. White space
        that a chat template ends with stays where it is: the model was trained with it there.

        Raises:
          ConfigError: the row does not fit the model, or cannot be encoded.
        """
        pairs = [self._move_space(one.context, one.continuation) for one in scored]
        lefts = [self._parts(left) for left, _ in pairs]
        rights = [right for _, right in pairs]
        origins = [one.origin for one in scored]
        whole = self._encode(
            [[*left, [*last, right]] for (*left, last), right in zip(lefts, rights, strict=True)],
            origins,
        )
        contexts = self._encode(lefts, origins)
        for ids, one in zip(whole, scored, strict=True):
            self._check_fits(len(ids), 0, one.origin)
        return [
            (ids[: len(left)], ids[len(left) :]) for ids, left in zip(whole, contexts, strict=True)
        ]

    def score(self, scored: Sequence[Scored]) -> list[Estimate]:
        """Log-likelihood of each continuation given its context, in nats, summed over its tokens.

        Raises:
          ConfigError: as `rows`.
        """
        return self._estimate(self.rows(scored))

    def score_texts(self, texts: Sequence[str], origins: Sequence[str]) -> list[float]:
        """Log-likelihood of whole texts, in nats, summed over their tokens.

        Raises:
          ConfigError: a text cannot be encoded.
        """
        rows = [self.windows(text, origin) for text, origin in zip(texts, origins, strict=True)]
        estimates = iter(self._estimate([row for of_text in rows for row in of_text]))
        return [sum(next(estimates).value for _ in of_text) for of_text in rows]

    def windows(self, text: str, origin: str) -> list[Row]:
        """The whole of a text as response, in as few rows as the model's length allows.

        Each token is a response once. Whole windows have no context; the last has as much of the
        text before it as fits.
        """
        (ids,) = self._encode([[[text]]], [origin])
        most, rows = self.model.config.model.max_length, []
        for start in range(0, len(ids), most):
            end = min(start + most, len(ids))
            rows.append((ids[max(0, end - most) : start], ids[start:end]))
        return rows

    def _estimate(self, rows: Sequence[Row]) -> list[Estimate]:
        estimates = [Estimate(0.0, 0.0, True)] * len(rows)  # of nothing: certain
        some = [number for number, (_, response) in enumerate(rows) if response]
        found = log_likelihood(
            self.model.params,
            self.model.config.model,
            [rows[number] for number in some],
            self.model.tokenizer.ids,
            jax.random.key(self.model.settings.seed),
            samples=self.samples,
            batch_size=self.model.settings.batch_size,
            guidance=self.model.settings.guidance,
            layout=self.model.layout,
            greedy=self.greedy,
            report=lambda done: self.report("likelihood", done, len(some)),
        )
        for number, estimate in zip(some, found, strict=True):
            estimates[number] = estimate
        return estimates

    def _parts(self, context: str) -> Sequence[Written]:
        return from_string(context) if self.chat else [[context]]

    def _move_space(self, context: str, continuation: str) -> tuple[str, str]:
        opening = to_string([self.model.template.opening])
        if self.chat and opening and context.endswith(opening):
            return context, continuation
        end = len(context.rstrip())
        return context[:end], context[end:] + continuation

    def _encode(
        self, contexts: Sequence[Sequence[Written]], origins: Sequence[str]
    ) -> list[list[int]]:
        """Ids of each context, whose parts are encoded one by one."""
        for parts, origin in zip(contexts, origins, strict=True):
            for piece in itertools.chain.from_iterable(parts):
                if isinstance(piece, str):
                    check_text(piece, f"{origin}: the text")
        try:
            ids = iter(
                encode_written(self.model.tokenizer, itertools.chain.from_iterable(contexts))
            )
        except ConfigError:
            for parts, origin in zip(contexts, origins, strict=True):
                try:
                    encode_written(self.model.tokenizer, parts)
                except ConfigError as error:
                    raise ConfigError(f"{origin}: {error}") from error
            raise
        return [[index for _ in parts for index in next(ids)] for parts in contexts]

    def _check_fits(self, tokens: int, slots: int, origin: str) -> None:
        if tokens + slots > self.model.config.model.max_length:
            more = f" and {slots} new slots" if slots else ""
            raise ConfigError(
                f"{origin}: a text of {tokens} tokens{more} must fit "
                f"model.max_length={self.model.config.model.max_length}; lower --num-fewshot"
                + (" or --config.sample.length" if slots else "")
            )


def to_string(parts: Sequence[Written]) -> str:
    """One string for parts that are encoded each alone.

    lm-eval asks for a conversation to be rendered, and gives the string back as a request's
    context. Control tokens stand in it as signs that no content can spell: an id between two DLE
    (U+0010). `;` in the id's place parts messages that are encoded alone. A DLE of a content is
    doubled.
    """
    return _CUT.join("".join(map(_spell, part)) for part in parts if part)


def from_string(text: str) -> Sequence[Written]:
    """The parts of a string; one that was not rendered is text as it stands."""
    parts: list[list[int | str]] = [[]]
    end = 0
    for sign in _SIGN.finditer(text):
        parts[-1].append(text[end : sign.start()])
        end = sign.end()
        if sign["cut"]:
            parts.append([])
        else:
            parts[-1].append(int(sign["id"]) if sign["id"] else _DLE)
    parts[-1].append(text[end:])
    return parts


def _spell(piece: int | str) -> str:
    if isinstance(piece, int):
        return f"{_DLE}{piece}{_DLE}"
    return piece.replace(_DLE, 2 * _DLE)
