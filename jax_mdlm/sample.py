"""Samples: `python -m jax_mdlm.sample --workdir runs/pronounce alignment slacken`.

Prompts come as arguments, from `--file` (text lines, or JSONL rows with `prompt` or `messages`), or
from stdin. Answers go to stdout as `prompt -> answer`, or as JSON lines with `--json`.
`--show slack` also prints the final canvas, slack visible, and the call that fixed each slot.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

import jax
from etils import epath

from jax_mdlm import command
from jax_mdlm.config import ConfigError
from jax_mdlm.data.chat import make_template, render_prompt
from jax_mdlm.data.tokenizer import Tokenizer
from jax_mdlm.sampling import Answer, generate, options_from
from jax_mdlm.sharding import make_layout
from jax_mdlm.training.run import load_run
from jax_mdlm.workdir import load_config

SLACK_SIGN = "·"


def main(argv: Sequence[str]) -> None:
    """Runs the command; raises ConfigError for what the user can mend."""
    parser = argparse.ArgumentParser(prog="python -m jax_mdlm.sample", description=__doc__)
    parser.add_argument("prompts", nargs="*", metavar="TEXT", help="prompts; none: read stdin")
    parser.add_argument("--workdir", required=True, help="work directory of a training run")
    parser.add_argument("--file", help="prompts from a file; *.jsonl is read as JSON lines")
    parser.add_argument("--json", action="store_true", help="one JSON object per answer")
    parser.add_argument("--show", choices=["slack"], help="print the canvas and the commit order")
    args, overrides = command.split_overrides(parser, argv)

    workdir = epath.Path(args.workdir)
    config = command.apply_overrides(load_config(workdir), overrides, section="sample")
    prompts = _read_prompts(args.prompts, args.file)
    command.use_compilation_cache(workdir / "compilation_cache")
    layout = make_layout(config.mesh)
    run = load_run(workdir, config, layout)

    template = make_template(config.data.template, run.tokenizer, config.data.prompt_slots)
    ids = [render_prompt(run.tokenizer, prompt, template) for prompt in prompts]
    options = options_from(config.sample, config.objective.collapse, run.tokenizer.ids)
    answers = generate(
        run.params,
        config.model,
        ids,
        options,
        jax.random.key(config.sample.seed),
        batch_size=min(config.sample.batch_size, len(ids)),
        layout=layout,
    )
    for prompt, answer in zip(prompts, answers, strict=True):
        print(_show(run.tokenizer, prompt, answer, as_json=args.json, canvas=bool(args.show)))


def _read_prompts(words: Sequence[str], file: str | None) -> list[Any]:
    """Texts or lists of messages; one line or one JSON row each."""
    if words and file:
        raise ConfigError("prompts must come as arguments or from --file, got both; drop one")
    if words:
        return list(words)
    name = file or "stdin"
    if file:
        path = epath.Path(file)
        if not path.is_file():
            raise ConfigError(f"prompt file {file} was not found; check --file")
        lines = path.read_text().splitlines()
    else:
        lines = sys.stdin.read().splitlines()
    as_json = name.endswith(".jsonl")
    prompts = [
        _parse(line, f"{name}:{number}") if as_json else line.strip()
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not prompts:
        raise ConfigError(f"{name} must hold at least one prompt, it is empty")
    return prompts


def _parse(line: str, origin: str) -> Any:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{origin} must be a JSON object, but {error.msg}") from error
    keys = ("prompt", "messages", "question")
    found = [key for key in keys if isinstance(row, dict) and key in row]
    if not found:
        shown = ", ".join(row) if isinstance(row, dict) else type(row).__name__
        raise ConfigError(f"{origin} must have one of {', '.join(keys)}, got {shown}")
    return row[found[0]]


def _show(tokenizer: Tokenizer, prompt: Any, answer: Answer, *, as_json: bool, canvas: bool) -> str:
    text = tokenizer.decode(answer.tokens)
    slots, calls = answer.response.tolist(), answer.committed_at.tolist()
    if as_json:
        record: dict[str, Any] = {"prompt": prompt, "response": text}
        if canvas:
            record |= {"canvas": _tokens(tokenizer, slots), "committed_at": calls}
        return json.dumps(record, ensure_ascii=False)
    line = f"{prompt if isinstance(prompt, str) else prompt[-1]['content']} -> {text}"
    while slots and slots[-1] == tokenizer.ids.eos:  # the tail that says nothing
        slots.pop()
    return f"{line}\n{_table(_tokens(tokenizer, slots), calls)}" if canvas else line


def _tokens(tokenizer: Tokenizer, slots: Sequence[int]) -> list[str]:
    return [SLACK_SIGN if slot == tokenizer.ids.slack else tokenizer.token(slot) for slot in slots]


def _table(tokens: Sequence[str], order: Sequence[int]) -> str:
    """Two aligned lines: what stands in each slot, and the call (from 0) that put it there."""
    calls = [str(call) if call >= 0 else "" for call in order[: len(tokens)]]
    widths = [max(len(token), len(call)) for token, call in zip(tokens, calls, strict=True)]
    top = " ".join(token.ljust(width) for token, width in zip(tokens, widths, strict=True))
    bottom = " ".join(call.ljust(width) for call, width in zip(calls, widths, strict=True))
    return f"  slot {top.rstrip()}\n  call {bottom.rstrip()}"


if __name__ == "__main__":
    command.run(main)
