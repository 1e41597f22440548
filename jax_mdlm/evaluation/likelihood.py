"""Likelihood of held-out responses, and multiple choice by it."""

import argparse
import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jax_mdlm.config import ConfigError, DataConfig
from jax_mdlm.data.batches import assemble
from jax_mdlm.data.examples import SplitRows, check_text
from jax_mdlm.data.files import find_files
from jax_mdlm.data.jsonl import shown_name
from jax_mdlm.data.rows import parse_files, read_rows
from jax_mdlm.data.table import make_table
from jax_mdlm.evaluation.intervals import share_of
from jax_mdlm.evaluation.tasks import open_held_out
from jax_mdlm.likelihood import (
    Estimate,
    add_up,
    log_likelihood,
    marginal_log_likelihood,
)
from jax_mdlm.mdlm import Mdlm
from jax_mdlm.opening import console, open_model

_CHUNK = 1024  # rows that are assembled at a time


@dataclasses.dataclass(frozen=True)
class _Text:
    """A row: what is scored, and how much of it is the response itself."""

    prompt: list[int]
    response: list[int]  # with the end padding
    tokens: int  # of the response, terminator included, without the padding


def run(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Scores rows, or questions, and prints what was found."""
    if args.samples < 2:
        raise ConfigError(
            f"--samples must be at least 2, got {args.samples}: one draw has no standard error"
        )
    if args.choices and (args.split or args.marginal):
        flag = "--split" if args.split else "--marginal"
        raise ConfigError(f"--choices reads questions from --file, without {flag}; leave it out")
    model = open_model(args.workdir, overrides)
    data = model.config.data
    padding = model.end_padding if args.end_padding is None else args.end_padding
    data = dataclasses.replace(data, end_padding=padding)
    record = (_choices if args.choices else _rows)(args, model, data)
    if args.json:
        print(json.dumps(record))
        return
    for line in (_describe_choices if args.choices else _describe_rows)(record):
        print(line)


def _rows(args: argparse.Namespace, model: Mdlm, data: DataConfig) -> dict[str, Any]:
    if args.file:
        read = read_rows(args.file, "--file", data.pretraining)
        rows = SplitRows(args.file, read.examples, read.origins)
    else:
        rows = open_held_out(data, model.path, args.split)
    table = make_table(
        rows,
        data,
        model.tokenizer,
        slack_max=model.config.objective.slack_max,
    )
    # Laid out as training lays them out: prompt, response, end padding.
    pairs = np.arange(len(table.history))[: args.limit or None]
    texts: list[_Text] = []
    for begin in range(0, len(pairs), _CHUNK):
        batch = assemble(table, pairs[begin : begin + _CHUNK], data)
        for tokens, response, count in zip(
            np.asarray(batch.tokens),
            np.asarray(batch.response),
            np.asarray(batch.label_count),
            strict=True,
        ):
            prompt = tokens[: int(np.argmax(response))].tolist()
            texts.append(_Text(prompt, tokens[response].tolist(), int(count)))
    # First: it is quick, and refuses rows that the rest would be scored for in vain.
    marginal = _marginal(model, texts) if args.marginal else []
    found = _score(model, texts, args.samples)
    # Sums over all rows, with what drawing adds to them.
    tokens = sum(text.tokens for text in texts)
    whole = add_up(found)
    low, high = whole.interval(0.95)
    record: dict[str, Any] = {
        "split": args.split,
        "file": args.file,
        "step": model.step,
        "samples": args.samples,
        "end_padding": data.end_padding,
        "truncated": table.counts.truncated,
        "dropped": table.counts.dropped,
        "tokens": tokens,
        "nats_per_token": -whole.value / tokens,
        "bits_per_token": -whole.value / tokens / math.log(2),
        "standard_error": whole.standard_error / tokens,
        "interval": [-high / tokens, -low / tokens],
        "rows": [
            {
                "tokens": text.tokens,
                "log_likelihood": one.value,
                "standard_error": one.standard_error,
            }
            for text, one in zip(texts, found, strict=True)
        ],
    }
    if args.marginal:
        fits = [value for value in marginal if value > -math.inf]
        for row, value in zip(record["rows"], marginal, strict=True):
            row["marginal"] = value if value > -math.inf else None
        length = sum(
            text.tokens for text, value in zip(texts, marginal, strict=True) if value > -math.inf
        )
        record["marginal_nats_per_token"] = -sum(fits) / length if fits else None
        record["without_alignment"] = len(marginal) - len(fits)
    return record


def _marginal(model: Mdlm, texts: Sequence[_Text]) -> list[float]:
    return marginal_log_likelihood(
        model.params,
        model.config.model,
        [(text.prompt, text.response[: text.tokens]) for text in texts],
        model.tokenizer.ids,
        frames=model.config.sample.length,
        collapse=model.config.objective.collapse,
        batch_size=model.config.sample.batch_size,
        layout=model.layout,
    )


def _choices(args: argparse.Namespace, model: Mdlm, data: DataConfig) -> dict[str, Any]:
    files = find_files(args.file, "--file")
    questions = list(parse_files(files, parse_multiple_choice))[: args.limit or None]
    # Every choice is a row, its answer the response.
    tokenizer, texts = model.tokenizer, []
    for question in questions:
        try:
            prompt = model.encode(question.prompt)
            choices = [tokenizer.encode(choice.strip()) for choice in question.choices]
        except ConfigError as error:
            raise ConfigError(f"{question.origin}: {error}") from error
        for choice in choices:
            response = [*choice, tokenizer.ids.terminator]
            length, limit = len(prompt) + len(response), model.config.model.max_length
            if length > limit:
                raise ConfigError(
                    f"{question.origin} with {length} tokens of its prompt and a choice must fit "
                    f"model.max_length={limit}; shorten it or leave the row out"
                )
            room = max(data.length - len(prompt) - len(response), 0)
            padded = [*response, *[tokenizer.ids.eos] * min(data.end_padding, room)]
            texts.append(_Text(prompt, padded, len(response)))
    # Back to questions: which choice is likeliest?
    found = iter(_score(model, texts, args.samples))
    rows = []
    for question in questions:
        own = [next(found) for _ in question.choices]
        rows.append(
            {
                "answer": question.answer,
                "chosen": likeliest(own),
                "chosen_normalised": likeliest(own, [len(choice) for choice in question.choices]),
                "log_likelihoods": [one.value for one in own],
                "standard_errors": [one.standard_error for one in own],
            }
        )
    record: dict[str, Any] = {"file": args.file, "step": model.step, "samples": args.samples}
    for name, field in (("accuracy", "chosen"), ("accuracy_normalised", "chosen_normalised")):
        right = share_of(np.array([row[field] == row["answer"] for row in rows]))
        record |= {name: right.value, f"{name}_interval": [right.low, right.high]}
    return record | {"rows": rows}


def _score(model: Mdlm, texts: Sequence[_Text], samples: int) -> list[Estimate]:
    sample = model.config.sample
    with console(len(texts)) as progress:
        return log_likelihood(
            model.params,
            model.config.model,
            [(text.prompt, text.response) for text in texts],
            model.tokenizer.ids,
            jax.random.key(sample.seed),
            samples=samples,
            batch_size=sample.batch_size,
            guidance=sample.guidance,
            layout=model.layout,
            report=progress.advance,
        )


def _describe_rows(record: dict[str, Any]) -> Iterator[str]:
    rows, low, high = record["rows"], *record["interval"]
    source = record["file"] or record["split"]
    yield f"{len(rows):,} rows of {source}, {record['tokens']:,} response tokens"
    if record["truncated"] or record["dropped"]:
        yield f"{record['truncated']:,} of the source truncated, {record['dropped']:,} dropped"
    yield (
        f"{record['nats_per_token']:.4f} nats a token at most (drawing alone, 95 %: {low:.4f} to "
        f"{high:.4f}), {record['bits_per_token']:.4f} bits"
    )
    if "marginal_nats_per_token" in record:
        value, lost = record["marginal_nats_per_token"], record["without_alignment"]
        shown = "no row fits" if value is None else f"{value:.4f} nats a token"
        yield f"single step, all alignments: {shown}; {lost:,} rows without an alignment"


def _describe_choices(record: dict[str, Any]) -> Iterator[str]:
    yield f"{len(record['rows']):,} questions of {record['file']}"
    for name, title in (
        ("accuracy", "accuracy"),
        ("accuracy_normalised", "accuracy, by nats per character"),
    ):
        low, high = record[f"{name}_interval"]
        yield f"{title} {100 * record[name]:.1f} % (95 %: {100 * low:.1f} to {100 * high:.1f})"


@dataclasses.dataclass(frozen=True)
class MultipleChoice:
    """A prompt with answers to choose from.

    Attributes:
      prompt: Text of the prompt.
      choices: Text of each answer, two or more.
      answer: Index of the right one.
      origin: Where it comes from, for messages, e.g. "questions.jsonl:3".
    """

    prompt: str
    choices: tuple[str, ...]
    answer: int
    origin: str


def likeliest(estimates: Sequence[Estimate], lengths: Sequence[int] | None = None) -> int:
    """Picks one of several responses to the same prompt.

    Args:
      estimates: Log-likelihood of each response.
      lengths: What each is divided by: characters of the answers for lm-eval's `acc_norm`, or
        tokens; a long answer is less likely whatever it says. None = nothing (`acc`).

    Returns:
      The index of the largest, the first of equals.
    """
    values = np.array([estimate.value for estimate in estimates])
    return int(np.argmax(values if lengths is None else values / np.asarray(lengths)))


def parse_multiple_choice(row: Mapping[str, Any], origin: str) -> MultipleChoice:
    """One row, `{"prompt": str, "choices": [str, ...], "answer": index}`.

    Args:
      row: Its fields.
      origin: Opens the error's text, "file:line".

    Raises:
      ConfigError: the row is no such object.
    """
    choices, answer = row.get("choices"), row.get("answer")
    if not isinstance(row.get("prompt"), str) or "choices" not in row:
        form = '{"prompt": text, "choices": [text, text, ...], "answer": index}'
        found = ", ".join(map(shown_name, row)) or "none"
        raise ConfigError(f"{origin} must be {form}; its fields are: {found}")
    if (
        not isinstance(choices, list)
        or len(choices) < 2
        or not all(isinstance(choice, str) and choice.strip() for choice in choices)
    ):
        raise ConfigError(f"{origin}: choices must be two or more texts, got {repr(choices)[:60]}")
    if type(answer) is not int or not 0 <= answer < len(choices):  # True is an int, and no index
        raise ConfigError(
            f"{origin}: answer must be an index of its {len(choices)} choices, counted from 0, "
            f"got {repr(answer)[:60]}"
        )
    for number, choice in enumerate(choices, start=1):
        check_text(choice, f"{origin}: choice {number}")
    return MultipleChoice(
        check_text(row["prompt"], f"{origin}: prompt"), tuple(choices), answer, origin
    )
