"""Prompts answered: to stdout, to a file, as traces and pages, or in a conversation.

A file has one output row per input row, in order, and goes on where it was interrupted.
"""

import argparse
import dataclasses
import itertools
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from jax_mdlm.config import ConfigError
from jax_mdlm.data.jsonl import to_line
from jax_mdlm.mdlm import Mdlm
from jax_mdlm.opening import configure, read_kept
from jax_mdlm.processes import barrier, from_first_process
from jax_mdlm.progress import Progress
from jax_mdlm.sampling import Answer, batches
from jax_mdlm.viewing import chat, show, web
from jax_mdlm.viewing.dialogue import Dialogue
from jax_mdlm.viewing.player import open_page
from jax_mdlm.viewing.prompts import (
    EncodedPrompt,
    Prompt,
    encode_prompts,
    read_prompts,
)
from jax_mdlm.viewing.show import WRITTEN, TraceWriter, open_traces

_REASONS = 20  # refused prompts that have a line each on the terminal


def run(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Samples; raises ConfigError for what the user can mend."""
    setup = configure(args.workdir, overrides)
    if args.chat or args.web:
        _check_conversation(args)
        prompts = []
    else:
        prompts = read_prompts(args.prompts, args.file, args.response)
        _say_what_is_left_out(prompts)
    # What can be refused is refused before the parameters are read, which may take minutes.
    setup = dataclasses.replace(setup, trace=bool(args.trace or args.html or args.web))
    prepared = encode_prompts(prompts, setup) if prompts else []
    model = read_kept(setup, rows=len(prepared) or 1)
    if args.chat or args.web:
        dialogue = Dialogue(model)
        web.serve(dialogue, args.share) if args.web else chat.converse(dialogue)
        return
    if args.output:
        _work_through(args, model, prompts, prepared)
        _report_refused(prepared)
        return
    # To the terminal, as soon as an answer is there.
    answers = _answers(model, prepared)
    with (
        open_traces(args.trace) as write_trace,
        open_page(args.html, setup.path.name, args.beside) as add_to_page,
    ):
        for prompt, known, answer in zip(prompts, prepared, answers, strict=True):
            if isinstance(known, str):
                if args.json and jax.process_index() == 0:
                    print(to_line(show.refused_record(prompt, known)), flush=True)
                continue
            text = show.answer_text(answer, known, model.tokenizer)
            for write in (write_trace, add_to_page):
                write(prompt, text, answer, model.tokenizer)
            if jax.process_index() == 0:
                print(_shown(args, model, prompt, text, answer), flush=True)
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


def _report_refused(prepared: Sequence[EncodedPrompt | str]) -> None:
    """A line for every prompt that was not answered, and one that counts them."""
    reasons = [one for one in prepared if isinstance(one, str)]
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
    model: Mdlm,
    prepared: Sequence[EncodedPrompt | str],
    done: int = 0,
) -> Iterator[Answer]:
    """The answers after the first `done`; an empty one for a prompt that was refused.

    Batches are cut as from the beginning: another batch may be padded otherwise and round
    otherwise, and a list that goes on shall end with the rows of one that was not interrupted.
    """
    size = min(model.settings.batch_size, len(prepared))
    ids = [None if isinstance(one, str) else one.ids for one in prepared]
    parts = batches(ids, model.options, model.config.model.max_length, size)
    first = max(part.start for part in parts if part.start <= done)
    answers = model.decode(ids[first:], batch_size=size, first_row=first)
    return itertools.islice(answers, done - first, None)


def _work_through(
    args: argparse.Namespace,
    model: Mdlm,
    prompts: list[Prompt],
    prepared: list[EncodedPrompt | str],
) -> None:
    """The prompts to a file; what is there already is not done again."""
    settings = dataclasses.asdict(model.settings) | {
        "collapse": model.options.collapse,
        "step": model.step,
    }
    del settings["batch_size"]  # what a prompt gets does not depend on it
    job = ResumableOutput(args.output, settings, prompts)
    todo = slice(job.done, None)

    def records(write_trace: TraceWriter) -> Iterator[dict[str, Any]]:
        answers = _answers(model, prepared, job.done)
        for prompt, known, answer in zip(prompts[todo], prepared[todo], answers, strict=True):
            if isinstance(known, str):
                yield show.refused_record(prompt, known)
                continue
            text = show.answer_text(answer, known, model.tokenizer)
            write_trace(prompt, text, answer, model.tokenizer)
            yield _record(args, model, prompt, text, answer)

    first = jax.process_index() == 0
    traced = sum(isinstance(one, EncodedPrompt) for one in prepared[: job.done])
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
    args: argparse.Namespace, model: Mdlm, prompt: Prompt, text: str, answer: Answer
) -> dict[str, Any]:
    record = show.answer_record(prompt, text)
    return record | (show.slot_record(answer, model.tokenizer) if args.show else {})


def _shown(args: argparse.Namespace, model: Mdlm, prompt: Prompt, text: str, answer: Answer) -> str:
    if args.json:
        return to_line(_record(args, model, prompt, text, answer))
    return show.show_line(prompt, text, answer, model.tokenizer, canvas=bool(args.show))


class ResumableOutput:
    """An output file and how far it got.

    All processes of a pod run the same batches; the first one writes. Beside `OUT.jsonl` stands
    `OUT.jsonl.settings.json`, the settings that made its rows: a list is not continued with others.
    Each finished row is compared with its prompt.
    """

    def __init__(self, output: str, settings: dict[str, Any], prompts: list[Prompt]) -> None:
        """Opens or continues `output`.

        Raises:
          ConfigError: it is no local file, or holds rows of other settings or other prompts.
        """
        if "://" in output:
            raise ConfigError(f"--output must be a local file, got {output}; copy it afterwards")
        self._path = Path(output)
        self._aside = Path(f"{output}.settings.json")
        done, error = -1, None
        if jax.process_index() == 0:
            try:
                done = self._open(settings, prompts)
            except ConfigError as caught:
                error = caught
            except OSError as caught:
                error = ConfigError(
                    f"--output {output} must be a file that can be written, but {caught}"
                )
        # The other processes must not wait for one that has given up.
        self.done = from_first_process(done)
        if error is not None:
            raise error
        if self.done < 0:
            raise ConfigError("--output was refused by the first process; see its message")

    def write(self, records: Iterable[dict[str, Any]]) -> Iterator[int]:
        """Appends a row per record and says how many rows the file has."""
        target = self._path if jax.process_index() == 0 else os.devnull
        with open(target, "a", encoding="utf-8") as file:
            for number, record in enumerate(records, start=self.done + 1):
                file.write(to_line(record) + "\n")
                file.flush()
                yield number

    def _open(self, settings: dict[str, Any], prompts: list[Prompt]) -> int:
        """Rows that are there; a row that was cut off in the middle is taken away."""
        if self._path.is_dir():
            raise IsADirectoryError("it is a directory")
        if not self._path.exists() or not self._path.stat().st_size:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch()
            self._aside.write_text(json.dumps(settings, indent=2) + "\n")
            return 0
        self._check_settings(settings)
        data = self._path.read_bytes()
        whole = data.rfind(b"\n") + 1
        rows = data[:whole].splitlines()
        if len(rows) > len(prompts):
            raise ConfigError(
                f"--output {self._path} has {len(rows)} rows for {len(prompts)} prompts; "
                "choose another file"
            )
        for number, (line, prompt) in enumerate(zip(rows, prompts, strict=False), start=1):
            self._check_row(number, line, prompt)
        os.truncate(self._path, whole)
        return len(rows)

    def _check_settings(self, settings: dict[str, Any]) -> None:
        try:
            old = json.loads(self._aside.read_text())
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"--output {self._path} holds rows but its {self._aside.name} cannot be "
                "read; choose another file"
            ) from error
        changed = [
            f"{name}={old.get(name)} there, {settings.get(name)} here"
            for name in sorted(old.keys() | settings.keys())
            if old.get(name) != settings.get(name)
        ]
        if changed:
            raise ConfigError(
                f"--output {self._path} was begun with other settings ({'; '.join(changed)}); "
                "choose another file"
            )

    def _check_row(self, number: int, line: bytes, prompt: Prompt) -> None:
        try:
            row = json.loads(line)
            kept = prompt.row.keys() - WRITTEN
            same = all(row[key] == prompt.row[key] for key in kept)
        except (ValueError, KeyError, TypeError):
            same = False
        if not same:
            raise ConfigError(
                f"--output {self._path}:{number} must be the answer to prompt {number}, it is not; "
                "choose another file"
            )
