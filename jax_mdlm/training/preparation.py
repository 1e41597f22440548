"""The command `prepare`: the tokenizer that a run would have, and rows written with it."""

import argparse
import contextlib
import sys
from collections.abc import Sequence

import jax
from etils import epath

from jax_mdlm import command
from jax_mdlm.config import Config, ConfigError
from jax_mdlm.data.corpus import open_tokenizer, tokenizer_folder
from jax_mdlm.data.inspecting import describe
from jax_mdlm.data.prepared import Manifest, read_manifest, together
from jax_mdlm.data.preparing import check_new, prepare_rows, recorded_path
from jax_mdlm.data.rows import file_texts
from jax_mdlm.data.tokenizer import is_kept, read_tokenizer, same_tokens
from jax_mdlm.storage import alone_in, given_path
from jax_mdlm.training.claim import take_over


def run(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Prepares rows, or says what was prepared; raises ConfigError for what the user can mend."""
    jax.config.update("jax_platforms", "cpu")  # nothing is computed: chips stay free
    config = command.parse_config(args.config, overrides)
    folder = given_path(args.output)
    command.start_processes(detect=not args.inspect)
    if config.data.source != "chat_jsonl":
        raise ConfigError(
            f"data.source={config.data.source} must be chat_jsonl: the rows of other sources are "
            "prepared by TensorFlow Datasets, at the first train"
        )
    if args.inspect:
        manifest = read_manifest(folder)
        if manifest is None:
            raise ConfigError(f"{folder} must hold prepared rows; prepare them without --inspect")
        tokenizer = read_tokenizer(config.data.tokenizer, tokenizer_folder(folder))
        for line in describe(folder, manifest, config, tokenizer, sys.stdout.isatty()):
            print(line)
        return
    if config.init.source:
        config, _ = take_over(config, folder)
    with contextlib.ExitStack() as stack:
        with together(folder):
            if jax.process_index() == 0 and read_manifest(folder) is None:
                stack.enter_context(alone_in(folder))  # two would write one tokenizer
                check_new(folder)
            _check_tokenizer(config, folder)
        tokenizer = open_tokenizer(config.data, folder, lambda: file_texts(config.data))
    manifest = prepare_rows(config, tokenizer, folder, workers=args.workers, note=_note)
    if jax.process_index() == 0:
        _say(manifest, folder)


def _check_tokenizer(config: Config, folder: epath.Path) -> None:
    """Raises ConfigError where the folder keeps another tokenizer than `data.tokenizer.path`."""
    asked, kept = config.data.tokenizer, tokenizer_folder(folder)
    if not asked.path or not is_kept(kept) or recorded_path(folder) == asked.path:
        return
    if not same_tokens(read_tokenizer(asked), read_tokenizer(asked, kept)):
        raise ConfigError(
            f"{folder} was begun with another tokenizer than data.tokenizer.path={asked.path}; "
            "choose another folder"
        )


def _note(line: str) -> None:
    command.note(line if jax.process_count() == 1 else f"process {jax.process_index()} {line}")


def _say(manifest: Manifest, folder: epath.Path) -> None:
    for line in manifest.lines():
        command.note(line)
    counts = manifest.counts
    print(
        f"{counts['rows']:,} rows ({counts['held_out']:,} held out, {counts['duplicates']:,} of "
        f"them twice), {counts['responses']:,} responses, {counts['tokens']:,} tokens in {folder}"
    )
