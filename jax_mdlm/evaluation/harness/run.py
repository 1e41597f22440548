"""Tasks of lm-evaluation-harness (extra `eval`), stock ones and local ones."""

import argparse
import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from jax_mdlm import command
from jax_mdlm.config import ConfigError
from jax_mdlm.evaluation.harness import tasks as harness
from jax_mdlm.evaluation.harness.presets import PRESETS, Preset
from jax_mdlm.evaluation.harness.responder import Responder
from jax_mdlm.opening import configure, open_model
from jax_mdlm.progress import Progress

_SAMPLE = "--config.sample."


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a task is run; tasks with equal settings run together.

    Attributes:
      num_fewshot: Worked examples; None = as the task says.
      chat: Whether prompts are rendered with the chat template.
      samples: Draws of a likelihood's estimate.
      overrides: `--config.*` arguments, the preset's first.
      fixed: Fields of the `sample` section that the overrides set.
    """

    num_fewshot: int | None
    chat: bool
    samples: int
    overrides: tuple[str, ...]
    fixed: frozenset[str]


def run(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Runs the tasks and prints lm-eval's table."""
    harness.require_lm_eval()
    names = list(dict.fromkeys(name for name in args.tasks.split(",") if name))
    if not names:
        raise ConfigError(f"--tasks must name a task, got {args.tasks!r}; e.g. --tasks gsm8k,mmlu")
    _prepare(args)
    # Tasks that are run alike go together, each group with a config of its own.
    manager = harness.open_tasks(names, args.include)
    groups = _group(manager, names, args, overrides)
    configs = {settings: configure(args.workdir, settings.overrides).config for settings in groups}
    # What can be refused is refused before the parameters are read, which may take minutes.
    loaded = harness.load_tasks(manager, names, allow_code=args.allow_code)
    opened = open_model(args.workdir, next(iter(groups)).overrides)
    limit = args.limit if args.limit is None or args.limit < 1 else int(args.limit)
    parts = []
    for settings, together in groups.items():
        config = configs[settings]
        with _bars() as bars:
            responder = Responder(
                dataclasses.replace(opened, config=config),
                samples=settings.samples,
                greedy=args.greedy,
                fixed=settings.fixed,
                chat=settings.chat,
                report=bars,
            )
            record = {
                "workdir": str(opened.path),
                "step": opened.step,
                "tasks": together,
                "preset": args.preset,
                "num_fewshot": settings.num_fewshot,
                "chat": settings.chat,
                "samples": settings.samples,
                "sample": dataclasses.asdict(config.sample),
            }
            model = harness.language_model(responder, name=opened.config.name, settings=record)
            parts.append(
                harness.run(
                    model,
                    [task for name in together for task in loaded[name]],
                    manager,
                    num_fewshot=settings.num_fewshot,
                    chat=settings.chat,
                    limit=limit,
                    allow_code=args.allow_code,
                )
            )
    # One process of a pod speaks.
    if jax.process_index() == 0:
        results = harness.join_results(parts)
        print(harness.tables(results))
        if args.output:
            Path(args.output).write_text(harness.as_json(results), encoding="utf-8")


def settings_from_flags(
    preset: Preset | None, args: argparse.Namespace, overrides: Sequence[str]
) -> Settings:
    """What the flags say, and where they say nothing the preset.

    Args:
      preset: Of the task; None = there is none.
      args: The flags.
      overrides: `--config.*` arguments.
    """
    own = _own_fields(overrides)
    fields = {} if preset is None else preset.sample_fields(own)
    preset = preset or Preset(None)
    chat = preset.chat if args.apply_chat_template is None else args.apply_chat_template
    return Settings(
        num_fewshot=preset.num_fewshot if args.num_fewshot is None else args.num_fewshot,
        chat=chat,
        samples=preset.samples if args.samples is None else args.samples,
        overrides=(*(f"{_SAMPLE}{name}={value}" for name, value in fields.items()), *overrides),
        fixed=frozenset({*fields, *own}),
    )


def _own_fields(overrides: Sequence[str]) -> dict[str, str]:
    """Fields of the `sample` section that were set by hand, with their values as written."""
    words, own = list(overrides), {}
    while words:
        field, equals, text = words.pop(0).partition("=")
        if not equals and words:
            text = words.pop(0)
        if field.startswith(_SAMPLE):
            own[field.removeprefix(_SAMPLE)] = text
    return own


def _prepare(args: argparse.Namespace) -> None:
    """Checks the flags and sets the variables that lm-eval and its packages read."""
    for flag, least in (("num_fewshot", 0), ("samples", 1)):
        value = getattr(args, flag)
        if value is not None and value < least:
            raise ConfigError(f"--{flag.replace('_', '-')} must be at least {least}, got {value}")
    if args.limit is not None and not args.limit > 0:
        raise ConfigError(f"--limit must be above 0, got {args.limit}; leave it out for all")
    if args.output:
        _check_output(Path(args.output))
    # Else datasets counts its uses at Amazon, of local files too. Read when it is imported.
    os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")
    if args.allow_code:
        os.environ["HF_ALLOW_CODE_EVAL"] = "1"  # what the metric of such tasks asks for


def _check_output(file: Path) -> None:
    """A run may take hours: that its results can be written is known before."""
    is_new = not file.exists()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.open("a").close()
        if is_new:
            file.unlink(missing_ok=True)  # of several processes
    except OSError as error:
        raise ConfigError(f"--output {file} cannot be written ({error}); choose another") from error


def _group(
    manager: Any, names: Sequence[str], args: argparse.Namespace, overrides: Sequence[str]
) -> dict[Settings, list[str]]:
    """Tasks that are run alike."""
    groups: dict[Settings, list[str]] = {}
    for name in names:
        preset = harness.find_preset(manager, PRESETS[args.preset], name) if args.preset else None
        if args.preset and preset is None:
            command.warn(
                f"preset {args.preset} says nothing of task {name}: it runs with the settings of "
                "the work directory and the flags"
            )
        groups.setdefault(settings_from_flags(preset, args, overrides), []).append(name)
    return groups


@contextlib.contextmanager
def _bars() -> Iterator[Callable[[str, int, int], None]]:
    """A function that shows a bar for each kind of request, one after the other."""
    shown: dict[str, Progress] = {}
    with contextlib.ExitStack() as stack:

        def report(what: str, done: int, total: int) -> None:
            if what not in shown:
                stack.close()
                shown.clear()
                bar = Progress(total, unit=what, active=jax.process_index() == 0)
                shown[what] = stack.enter_context(bar)
            shown[what].advance(done)

        yield report
