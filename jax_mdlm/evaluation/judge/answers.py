"""A run's answers to the questions of a benchmark, in the file that its judge reads."""

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence

import jax

from jax_mdlm.config import ConfigError
from jax_mdlm.evaluation.judge import Question
from jax_mdlm.evaluation.judge.choice import make_benchmark
from jax_mdlm.evaluation.judge.decoding import Decoder
from jax_mdlm.evaluation.judge.output import check_settings, output_file
from jax_mdlm.evaluation.judge.records import ModelAnswer
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
