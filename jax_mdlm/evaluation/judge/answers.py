"""A run's answers to the questions of a benchmark, in the file that its judge reads."""

import argparse
import dataclasses
import sys
import time
from collections.abc import Iterator, Sequence

import jax

from jax_mdlm.config import ConfigError
from jax_mdlm.data.examples import Message
from jax_mdlm.evaluation.judge import make_benchmark
from jax_mdlm.evaluation.judge.records import DecodedTurns, ModelAnswer, Question
from jax_mdlm.evaluation.judge.rows import check_settings, output_file
from jax_mdlm.evaluation.tasks import TooLong, fitting
from jax_mdlm.mdlm import Mdlm
from jax_mdlm.opening import open_model
from jax_mdlm.processes import barrier, from_first_process
from jax_mdlm.progress import Progress


def run(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Decodes what is missing and writes after every batch."""
    benchmark = make_benchmark(args.benchmark, args.iterations, args.official_judge)
    questions = benchmark.read_questions(args.questions)[: args.limit or None]
    path = output_file(args.output)
    own = benchmark.read_own(args.output, args.model) if path.is_file() else []
    _check_order(questions, own, args.output)

    model = open_model(args.workdir, overrides)
    first = jax.process_index() == 0
    sample = dataclasses.asdict(model.config.sample)
    settings = sample | {"collapse": model.options.collapse, "step": model.step}
    del settings["batch_size"]  # what a question gets does not depend on it
    if first:
        check_settings(path, args.model, settings, begun=bool(own))
    done = from_first_process(len(own))  # the others may not see the file
    decoder = Decoder(model, args.too_long)
    rows = [answer.row for answer in own]
    todo = iter(questions[done:])
    with Progress(len(questions), start=done, unit="question", active=first) as progress:
        for batch in decoder.answers(questions, done) if questions[done:] else ():
            for decoded, question in zip(batch, todo, strict=False):
                row = benchmark.answer_row(question, args.model, decoded, sample, time.time())
                rows.append(row)
            if first:
                benchmark.write_answers(path, rows)
            progress.advance(len(rows))
    barrier("judge: answers written")
    if first:
        answers = benchmark.read_own(args.output, args.model)
        text = f"{len(answers):,} of {len(questions):,} questions answered in {args.output}"
        least = benchmark.shortest
        short = sum(len(turn) < least for answer in answers for turn in answer.turns)
        if short:
            what = "are empty" if least == 1 else f"have fewer than {least} characters"
            text += f", {short:,} answers {what}"
        print(text, file=sys.stderr)
        print(benchmark.hint.format(model=args.model, file=args.output), file=sys.stderr)


def _check_order(questions: Sequence[Question], own: Sequence[ModelAnswer], output: str) -> None:
    """What is there must be the answers to the first questions, in order."""
    for number, (question, answer) in enumerate(zip(questions, own, strict=False), start=1):
        if question.key != answer.key:
            raise ConfigError(
                f"--output {output}: answer {number} must be to question {question.key}, it is to "
                f"{answer.key}; choose another file, or the --questions that it was begun with"
            )


@dataclasses.dataclass(frozen=True)
class Decoder:
    """What answers.

    Attributes:
      model: Answers; `sample.batch_size` questions are decoded at a time.
      too_long: A prompt that does not fit the model is an error, or its answer is empty.
    """

    model: Mdlm
    too_long: TooLong

    def answers(self, questions: Sequence[Question], done: int = 0) -> Iterator[list[DecodedTurns]]:
        """Decodes the questions after the first `done`.

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

    def _answer(self, questions: Sequence[Question], start: int) -> list[DecodedTurns]:
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
            DecodedTurns(tuple(text for text, _ in own), tuple(length for _, length in own))
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
