"""Prompts answered: to stdout, to a file, as traces and pages, or in a conversation."""

import argparse
import dataclasses
import itertools
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from etils import epath

from jax_mdlm import command
from jax_mdlm.config import ConfigError
from jax_mdlm.data.chat import template_of
from jax_mdlm.data.corpus import open_tokenizer, unfixed
from jax_mdlm.data.lines import to_line
from jax_mdlm.mdlm import Run, load_for_sampling
from jax_mdlm.progress import Progress
from jax_mdlm.sampling import (
    Answer,
    SampleOptions,
    batches,
    generate,
    options_from,
)
from jax_mdlm.sharding import Layout, barrier, make_layout
from jax_mdlm.viewing import chat, show, web
from jax_mdlm.viewing.dialogue import Dialogue
from jax_mdlm.viewing.job import Job
from jax_mdlm.viewing.player import open_page
from jax_mdlm.viewing.prompts import Encoded, Prompt, Refused, prepare, read_prompts
from jax_mdlm.viewing.traces import TraceWriter, open_traces
from jax_mdlm.workdir import load_config

_REASONS = 20  # refused prompts that have a line each on the terminal


def run(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Samples; raises ConfigError for what the user can mend."""
    command.start_processes()

    workdir = epath.Path(args.workdir)
    stored = load_config(workdir)
    config = command.apply_overrides(
        stored, overrides, section="sample", unfixed=lambda: unfixed(stored.data, workdir)
    )
    if args.chat or args.web:
        _check_conversation(args)
        prompts = []
    else:
        prompts = read_prompts(args.prompts, args.file, args.response)
        _say_what_is_left_out(prompts)
    # What can be refused is refused before the parameters are read, which may take minutes.
    tokenizer = open_tokenizer(config.data, workdir)
    template = template_of(config.data, tokenizer)
    options = options_from(
        config.sample,
        config.objective.collapse,
        tokenizer.ids,
        trace=bool(args.trace or args.html or args.web),
    )
    length = config.model.max_length
    prepared = prepare(prompts, tokenizer, template, options, length) if prompts else []
    command.use_compilation_cache(workdir / "compilation_cache")
    layout = make_layout(config.mesh)
    run = load_for_sampling(workdir, config, layout)
    if args.chat or args.web:
        dialogue = Dialogue(run, options, template, layout)
        web.serve(dialogue, args.share) if args.web else chat.converse(dialogue)
        return
    if args.output:
        _work_through(args, run, options, layout, prompts, prepared)
        _report_refused(prepared)
        return
    answers = _answers(run, options, layout, prepared)
    with (
        open_traces(args.trace) as write_trace,
        open_page(args.html, workdir.name, args.beside) as add_to_page,
    ):
        for prompt, known, answer in zip(prompts, prepared, answers, strict=True):
            if isinstance(known, Refused):
                if args.json and jax.process_index() == 0:
                    print(to_line(show.refused_record(prompt, known)), flush=True)
                continue
            text = show.answer_text(answer, known, run.tokenizer)
            for write in (write_trace, add_to_page):
                write(prompt, text, answer, run.tokenizer)
            if jax.process_index() == 0:
                print(_shown(args, run, prompt, text, answer), flush=True)
    _report_refused(prepared)


def _say_what_is_left_out(prompts: Sequence[Prompt]) -> None:
    """Rows of a conversation with its answer are asked for that answer."""
    ended = sum("messages" in one.row and one.reference is not None for one in prompts)
    if ended and jax.process_index() == 0:
        print(
            f"{ended:,} of {len(prompts):,} rows end with an answer of the assistant, which is "
            "left out of the prompt",
            file=sys.stderr,
        )


def _report_refused(prepared: Sequence[Encoded | Refused]) -> None:
    """A line for every prompt that was not answered, and one that counts them."""
    reasons = [one.reason for one in prepared if isinstance(one, Refused)]
    if reasons and jax.process_index() == 0:
        for reason in reasons[:_REASONS]:
            print(f"error: {reason}", file=sys.stderr)
        were = "was" if len(reasons) == 1 else "were"
        print(f"{len(reasons):,} of {len(prepared):,} prompts {were} not answered", file=sys.stderr)


def _check_conversation(args: argparse.Namespace) -> None:
    own = "--web" if args.web else "--chat"
    others = ("prompts", "file", "response", "output", "json", "show", "trace", "html", "beside")
    given = [name for name in (*others, *(["chat"] if args.web else [])) if getattr(args, name)]
    if given:
        shown = "TEXT" if given[0] == "prompts" else f"--{given[0]}"
        raise ConfigError(f"{own} asks for its prompts itself and takes no {shown}; drop one")
    if jax.process_count() > 1:
        raise ConfigError(f"{own} runs in one process, not on the workers of a pod")
    if args.chat and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ConfigError("--chat needs a terminal; give prompts as arguments or with --file")


def _answers(
    run: Run,
    options: SampleOptions,
    layout: Layout,
    prepared: Sequence[Encoded | Refused],
    done: int = 0,
) -> Iterator[Answer]:
    """The answers behind the first `done`; an empty one for a prompt that was refused.

    Batches are cut as from the beginning: another batch may be padded otherwise and round
    otherwise, and a list that goes on shall end with the rows of one that was not interrupted.
    """
    config, size = run.config, min(run.config.sample.batch_size, len(prepared))
    ids = [None if isinstance(one, Refused) else one.ids for one in prepared]
    parts = batches(ids, options, config.model.max_length, size)
    first = max(part.start for part in parts if part.start <= done)
    answers = generate(
        run.params,
        config.model,
        ids[first:],
        options,
        jax.random.key(config.sample.seed),
        batch_size=size,
        first_row=first,
        layout=layout,
    )
    return itertools.islice(answers, done - first, None)


def _work_through(
    args: argparse.Namespace,
    run: Run,
    options: SampleOptions,
    layout: Layout,
    prompts: list[Prompt],
    prepared: list[Encoded | Refused],
) -> None:
    """The prompts to a file; what is there already is not done again."""
    settings = dataclasses.asdict(run.config.sample) | {
        "collapse": options.collapse,
        "step": run.step,
    }
    del settings["batch_size"]  # what a prompt gets does not depend on it
    job = Job(args.output, settings, prompts)
    todo = slice(job.done, None)

    def records(write_trace: TraceWriter) -> Iterator[dict[str, Any]]:
        answers = _answers(run, options, layout, prepared, job.done)
        for prompt, known, answer in zip(prompts[todo], prepared[todo], answers, strict=True):
            if isinstance(known, Refused):
                yield show.refused_record(prompt, known)
                continue
            text = show.answer_text(answer, known, run.tokenizer)
            write_trace(prompt, text, answer, run.tokenizer)
            yield _record(args, run, prompt, text, answer)

    first = jax.process_index() == 0
    traced = sum(isinstance(one, Encoded) for one in prepared[: job.done])
    with (
        open_traces(args.trace, keep=traced) as write_trace,
        Progress(len(prompts), start=job.done, unit="row", active=first) as progress,
    ):
        for done in job.write(records(write_trace)) if prompts[todo] else ():
            progress.advance(done)
    barrier("sample: output written")
    if first:
        print(f"{len(prompts):,} rows in {args.output}", file=sys.stderr)


def _record(
    args: argparse.Namespace, run: Run, prompt: Prompt, text: str, answer: Answer
) -> dict[str, Any]:
    record = show.answer_record(prompt, text)
    return record | (show.slot_record(answer, run.tokenizer) if args.show else {})


def _shown(args: argparse.Namespace, run: Run, prompt: Prompt, text: str, answer: Answer) -> str:
    if args.json:
        return to_line(_record(args, run, prompt, text, answer))
    return show.show_line(prompt, text, answer, run.tokenizer, canvas=bool(args.show))
