"""What a work directory holds, and who may write into it.

    <workdir>/config.json            the resolved config; written when the directory is usable
    <workdir>/tokenizer/             the tokenizer, where one is kept
    <workdir>/checkpoints/<step>/    parameters (and state), a JSON record; with LoRA adapters
    <workdir>/base/0/                with LoRA the frozen parameters, written once
    <workdir>/source/                files that came beside published weights

Training makes work directories, and so does the import of published weights; sampling, evaluation
and export read them.
"""

import difflib
import os
from pathlib import Path

from etils import epath

from jax_mdlm.config import Config, ConfigError, config_to_json, from_json
from jax_mdlm.foreign import check_folder
from jax_mdlm.storage import Checkpoints, named_steps, open_checkpoints, replace_text

_QUICKSTART = "runs/quickstart"  # what launch/quickstart.sh trains, seen from the checkout
_UNFINISHED = "import_unfinished"  # exists while weights are imported
_IMPORTED = {_UNFINISHED, "checkpoints", "source", "tokenizer", "config.json"}


def checkpoint_folder(workdir: epath.Path) -> epath.Path:
    """Where a work directory keeps its checkpoints."""
    return workdir / "checkpoints"


def source_folder(workdir: epath.Path) -> epath.Path:
    """Where it keeps what stood beside the weights it began from."""
    return workdir / "source"


def load_config(workdir: epath.Path) -> Config:
    """The resolved config of a work directory.

    Raises:
      ConfigError: it is not a work directory, or an import into it was not finished.
    """
    check_finished(workdir)
    path = workdir / "config.json"
    if not path.exists():
        check_folder(workdir, os.fspath(workdir))
        raise ConfigError(
            f"work directory {workdir} must hold config.json, it does not; {_nearest(workdir)}"
            f"train one with {_how_to_train(workdir, 'pronounce')}"
        )
    try:
        text = path.read_text()
        if '"objective"' not in text:
            check_folder(workdir, os.fspath(workdir))
            if '"model_type"' in text:
                raise ConfigError(
                    f"{workdir} must be a work directory, it holds published weights; import them "
                    f"first: python -m jax_mdlm.convert import {workdir} WORKDIR"
                )
        return from_json(text, str(path))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not a config: {error}") from error


def _nearest(workdir: epath.Path) -> str:
    """A work directory beside it whose name is nearly the same, as a question; else empty."""
    beside = Path(workdir).parent
    if "://" in os.fspath(workdir) or not beside.is_dir():
        return ""
    names = [path.parent.name for path in beside.glob("*/config.json")]
    close = difflib.get_close_matches(workdir.name, names, n=1)
    return f"did you mean {beside / close[0]}? Else " if close else ""


def _how_to_train(workdir: epath.Path, config: str) -> str:
    """The command that fills a work directory: the quickstart's script for its own, in a checkout.

    That script also installs what the training needs; an installed wheel does not have it.
    """
    if workdir == epath.Path(_QUICKSTART) and epath.Path("launch/quickstart.sh").exists():
        return "sh launch/quickstart.sh"
    return f"python -m jax_mdlm.train --config {config} --workdir {workdir}"


def save_config(workdir: epath.Path, config: Config) -> None:
    """Writes the resolved config; a kill while writing leaves the old one, or none."""
    workdir.mkdir(parents=True, exist_ok=True)
    replace_text(workdir / "config.json", config_to_json(config))


def check_finished(workdir: epath.Path) -> None:
    """Raises ConfigError if weights were being imported here and that did not end."""
    if (workdir / _UNFINISHED).exists():
        raise ConfigError(
            f"work directory {workdir} holds an import that was not finished; run "
            f"python -m jax_mdlm.convert import SOURCE {workdir} again"
        )


def check_place(workdir: epath.Path) -> None:
    """Raises ConfigError for a place where checkpoints cannot be written."""
    if os.fspath(workdir).startswith("s3://"):
        raise ConfigError(
            f"work directory {workdir} must be local or gs://, where checkpoints can be written; "
            "choose such a one (weights may come from s3:// and go there)"
        )


def begin_import(workdir: epath.Path) -> None:
    """Claims a new or empty directory, or one whose import was not finished; clears the latter.

    Raises:
      ConfigError: anything else is there.
    """
    check_place(workdir)
    marker = workdir / _UNFINISHED
    held = {path.name for path in workdir.iterdir()} if workdir.exists() else set()
    # Only what an import makes is cleared: whatever else was put there may be all there is of it.
    foreign = held
    if marker.name in held:
        foreign = {name for name in held - _IMPORTED if not name.endswith(".partial")}
    if foreign:
        raise ConfigError(
            f"work directory {workdir} must be new or empty for an import, it holds "
            f"{min(foreign)}; choose another"
        )
    workdir.mkdir(parents=True, exist_ok=True)
    marker.write_text("")
    for name in held - {marker.name}:
        path = workdir / name
        if path.is_dir():
            path.rmtree()
        else:
            path.unlink()


def end_import(workdir: epath.Path, config: Config) -> None:
    """Makes the directory usable: the config, then no marker."""
    save_config(workdir, config)
    (workdir / _UNFINISHED).unlink()


def open_existing(workdir: epath.Path) -> Checkpoints:
    """Opens a work directory's checkpoints for reading.

    Raises:
      ConfigError: there is none.
    """
    check_finished(workdir)
    folder = checkpoint_folder(workdir)
    if folder.is_dir():
        checkpoints = open_checkpoints(folder)
        if checkpoints.latest() is not None:
            return checkpoints
        checkpoints.close()
    raise ConfigError(
        f"work directory {workdir} must hold a checkpoint, none is there; wait for its training's "
        f"first one, or begin the training again with {_how_to_train(workdir, 'FILE')}"
    )


def newest_step(workdir: epath.Path) -> int:
    """The step of the newest checkpoint; -1 where there is none."""
    return max(named_steps(checkpoint_folder(workdir)), default=-1)


def choose_step(checkpoints: Checkpoints, step: int | None) -> int:
    """`step` if it is there; the newest where it is None.

    Raises:
      ConfigError: there is no such step.
    """
    steps = checkpoints.steps()
    if step is None:
        return max(steps)
    if step not in steps:
        shown = ", ".join(map(str, steps))
        raise ConfigError(f"step must be one of {shown} in {checkpoints.folder}, got {step}")
    return step
