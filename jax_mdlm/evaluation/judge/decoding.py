"""Answers to questions, turn by turn, with the run's own sampler.

Enters: questions and a run. Leaves: texts, batch after batch, in order. `mdlm` is the
neighbour below; the command writes what comes out in a benchmark's format.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import jax

from jax_mdlm.config import ConfigError
from jax_mdlm.data.examples import Message
from jax_mdlm.evaluation.judge.records import Decoded, Question
from jax_mdlm.evaluation.tasks import TooLong, fitting
from jax_mdlm.mdlm import Mdlm


@dataclasses.dataclass(frozen=True)
class Decoder:
    """What answers.

    Attributes:
      model: Answers; `sample.batch_size` questions are decoded at a time.
      too_long: A prompt that does not fit the model is an error, or its answer is empty.
    """

    model: Mdlm
    too_long: TooLong

    def answers(self, questions: Sequence[Question], done: int = 0) -> Iterator[list[Decoded]]:
        """Decodes the questions behind the first `done`.

        Batches are cut as from the beginning, and a question draws from its own number and turn:
        a list that was interrupted ends with the answers of one that was not.

        Args:
          questions: All of them.
          done: How many are answered already.

        Yields:
          The answers of a batch; the first one may be without those that are done.

        Raises:
          ConfigError: a prompt that does not fit, with `too_long="error"`.
        """
        size = self.model.settings.batch_size
        for start in range(done // size * size, len(questions), size):
            batch = questions[start : start + size]
            yield self._answer(batch, start)[max(done - start, 0) :]

    def _answer(self, questions: Sequence[Question], start: int) -> list[Decoded]:
        talks = [list(question.given) for question in questions]
        answers: list[list[tuple[str, int]]] = [[] for _ in questions]
        for turn in range(max(len(question.turns) for question in questions)):
            prompts: list[list[int] | None] = [None] * len(questions)
            for i, question in enumerate(questions):
                if turn < len(question.turns):
                    talks[i].append(Message("user", question.turns[turn]))
                    prompts[i] = self._prompt(talks[i], f"{question.key}, turn {turn + 1}")
            for i, answer in enumerate(self._decode(prompts, start, turn)):
                if turn < len(questions[i].turns):
                    talks[i].append(Message("assistant", answer[0]))
                    answers[i].append(answer)
        return [
            Decoded(tuple(text for text, _ in own), tuple(length for _, length in own))
            for own in answers
        ]

    def _prompt(self, talk: Sequence[Message], name: str) -> list[int] | None:
        """Token ids; None if they do not fit and that is allowed."""
        try:
            prompt = self.model.encode(talk)
        except ConfigError as error:
            raise ConfigError(f"question {name}: {error}") from error
        return fitting(prompt, f"question {name}", self.model, self.too_long)

    def _decode(
        self, prompts: Sequence[list[int] | None], start: int, turn: int
    ) -> list[tuple[str, int]]:
        """Text and length in tokens of the answer to each prompt; nothing for None."""
        seed = jax.random.key(self.model.settings.seed)
        found = self.model.decode(prompts, key=jax.random.fold_in(seed, turn), first_row=start)
        return [(self._text(answer.tokens), len(answer.tokens)) for answer in found]

    def _text(self, tokens: Sequence[int]) -> str:
        return self.model.tokenizer.decode(tokens).strip() if tokens else ""
