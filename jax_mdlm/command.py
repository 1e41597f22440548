"""What all commands share at their edge: the config from a file and flags, errors, processes.

`--config FILE[:preset]` loads `get_config(preset)`; `--config.section.field=value` replaces one
field, cast to its type. Whatever a user can mend ends as one line on stderr and exit code 2.

This module and those named `flags` import nothing that takes long: `--help` and a mistyped flag are
answered before JAX is loaded. `run_of` brings in the rest.
"""

import argparse
import dataclasses
import difflib
import gc
import importlib
import importlib.util
import os
import sys
import traceback
import typing
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import pydantic

from jax_mdlm.config import Config, ConfigError, from_json, validate

AGAIN = 75  # exit code (EX_TEMPFAIL): nothing is wrong with the run, start it again

# Without a heartbeat for so long JAX's coordination service takes a process for dead. Its own
# default, 100, keeps a pod waiting that could have been restarted.
HEARTBEAT_SECONDS = 60

_PREFIX = "--config."
_TOKENIZER = "data.tokenizer."
# `from` is a keyword: no field can have that name, but a flag can.
_SPELLINGS = {"init.from": "init.source"}


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Runs a command's `main`, with errors as one line and an exit code.

    Exit codes: 0 done; 1 the run failed (loss not finite, a bug); 2 something that the user can
    mend; 75 (`AGAIN`) another process was lost, 134 where JAX noticed it first: the same command
    goes on from there; 130 Ctrl-C, 143 SIGTERM.
    """
    # What imports leave behind stays. To look through it again and again for garbage would take a
    # fifth of a short call.
    gc.disable()
    try:
        main(sys.argv[1:])
    except ConfigError as error:
        _fail(str(error), 2)
    except FloatingPointError as error:
        _fail(str(error), 1)
    except KeyboardInterrupt:
        _fail("interrupted; nothing that is not whole will be used", 130)
    except BrokenPipeError:  # `... | head`: the reader left, nothing is wrong
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception:
        if not _has_joined():
            raise
        traceback.print_exc()
        _leave(1)


def run_of(module: str) -> Callable[..., Any]:
    """The function `run` of a module that is imported when it is called.

    What a command computes with takes seconds to import, its flags nothing.

    Args:
      module: Full name.
    """

    def run_it(*given: Any) -> Any:
        found = importlib.import_module(module).run
        if not gc.isenabled():  # by `run`
            gc.freeze()
            gc.enable()
        return found(*given)

    return run_it


def parse_config(path: str, overrides: Sequence[str]) -> Config:
    """Loads a config file and applies `--config.section.field=value` overrides.

    Args:
      path: `FILE[:preset]`; a bare name such as `pronounce` finds the shipped file. The
        `config.json` of a work directory has the settings of its run.
      overrides: Arguments that start with `--config.`, each as `--config.a.b=value` or followed
        by its value.

    Returns:
      The validated config.

    Raises:
      ConfigError: file, preset, field or value that cannot be used.
    """
    name, _, preset = path.partition(":")
    if name.endswith(".json"):
        if preset:
            raise ConfigError(f"config file {name} has no presets, got {preset!r}; leave it out")
        text = _find(name).read_text()
        if '"objective"' not in text:  # of published weights, e.g.
            raise ConfigError(
                f"config file {name} must be the config.json of a work directory, it has no "
                "settings of a run; name one of those, or a .py file"
            )
        return apply_overrides(from_json(text, name), overrides)
    return apply_overrides(load_function(name, "get_config")(preset), overrides)


def load_function(name: str, function: str) -> Callable[..., Any]:
    """A function of a config file.

    Args:
      name: A path, or the name of a shipped file.
      function: What the file must define.

    Raises:
      ConfigError: no such file, or the function is not in it.
    """
    file = _find(name)
    spec = importlib.util.spec_from_file_location(f"config_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"config file {file} must be a Python file, name it *.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, function):
        raise ConfigError(f"config file {file} must define {function}, it does not")
    return getattr(module, function)


def apply_overrides(
    config: Config,
    overrides: Sequence[str],
    section: str = "",
    unfixed: Callable[[], Collection[str]] = tuple,
) -> Config:
    """Applies `--config.section.field=value` arguments.

    Args:
      config: What is changed.
      overrides: Arguments `--config.section.field=value`.
      section: The only section that may be changed, e.g. `sample` for a finished run; "" = all.
      unfixed: Asked where a setting of the tokenizer is given: those that the model leaves open
        (`data.corpus.unfixed`), by their beginnings.

    Returns:
      The validated config.

    Raises:
      ConfigError: unknown field (the nearest one is named), wrong type, other section.
    """
    for field, text in _pairs(overrides):
        field = _SPELLINGS.get(field, field)
        if section and field.startswith(_TOKENIZER):
            if not field.startswith(tuple(unfixed())):
                raise ConfigError(
                    f"--config.{field} cannot be changed here: the model has the tokenizer that it "
                    "was trained with; leave it out"
                )
        elif section and field.split(".")[0] not in (section, "mesh"):
            raise ConfigError(
                f"--config.{field} cannot be changed here: the model fixes everything but "
                f"--config.{section}.* and --config.mesh.*"
            )
        config = _replace(config, field.split("."), text, field)
    return validate(config)


def split_overrides(
    parser: argparse.ArgumentParser, argv: Sequence[str]
) -> tuple[argparse.Namespace, list[str]]:
    """Parses the command's own flags; what begins with `--config.` is left for `parse_config`."""
    own, overrides, take_next = [], [], False
    for word in argv:
        if take_next or word.startswith(_PREFIX):
            overrides.append(word)
            take_next = not take_next and "=" not in word
        else:
            own.append(word)
    return parser.parse_args(own), overrides


def warn(text: str) -> None:
    """Prints a line on stderr for what is odd but no error."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


def note(text: str) -> None:
    """Prints a line on stderr: what is being done, before it takes long."""
    print(text, file=sys.stderr, flush=True)


def start_processes(*, detect: bool = True) -> None:
    """Joins the other processes of a pod, before the first use of a device.

    On Cloud TPU, where a slice has several hosts or there are several slices, JAX finds the others
    by itself (variables on GKE, the metadata server on TPU VMs); one host alone starts nothing: it
    has nobody to wait for. Elsewhere set JAX_COORDINATOR_ADDRESS (host:port), JAX_NUM_PROCESSES
    and JAX_PROCESS_ID for each process.

    Args:
      detect: False: only where the variables are set, so that a command may run on one worker of
        a pod.
    """
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    if address:
        for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
            if not os.environ.get(name, "").isdigit():
                raise ConfigError(
                    f"{name} must be a number where JAX_COORDINATOR_ADDRESS is set, got "
                    f"{os.environ.get(name)!r}; set it for each process"
                )
        number, own = int(os.environ["JAX_NUM_PROCESSES"]), int(os.environ["JAX_PROCESS_ID"])
        _join(address, number, own)
    elif detect:
        from jax_mdlm.processes import on_pod  # loads JAX

        if on_pod():
            _join()


def _join(*where: Any) -> None:
    import jax

    try:
        jax.distributed.initialize(*where, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    except RuntimeError as error:  # a peer that is not there yet, or never came
        _fail(
            "the processes of this run must find each other, they did not "
            f"({str(error).splitlines()[0]}); start the same command again on all of them",
            AGAIN,
        )


def use_compilation_cache(folder: os.PathLike[str]) -> None:
    """Keeps compiled programs in `folder`, unless JAX_COMPILATION_CACHE_DIR names another."""
    import jax

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", os.fspath(folder))
        if "://" not in os.fspath(folder):
            # Programs that compile in less than a second, all those of a small model, are kept too;
            # in a bucket each would be a request.
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _fail(message: str, code: int) -> typing.NoReturn:
    # A list of findings has a line each in Python; here all is one line.
    text = "; ".join(line.strip() for line in message.splitlines()).replace(":; ", ": ")
    print("error: " + " ".join(text.split()), file=sys.stderr)
    sys.stderr.flush()
    _leave(code)


def _leave(code: int) -> typing.NoReturn:
    if _has_joined():
        # A normal exit waits at a barrier for peers that may still be in a collective with us.
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _has_joined() -> bool:
    """Whether this process is one of several; JAX is not loaded for the answer."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def _find(name: str) -> Path:
    folders = _folders()
    candidates = [Path(name)] + [folder / f"{name}.py" for folder in folders]
    candidates += [folder / Path(name).name for folder in folders[1:]]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise ConfigError(
        f"config file {name!r} was not found; give a path to a .py file or one of the shipped "
        f"names: {', '.join(shipped_configs())}"
    )


def _folders() -> list[Path]:
    """Where config files are: here, in a checkout, in an installed package."""
    package = Path(__file__).parent
    return [Path("configs"), package.parent / "configs", package / "configs"]


def shipped_configs() -> list[str]:
    """Names of the config files that came with the package."""
    return sorted({file.stem for folder in _folders() for file in folder.glob("*.py")})


def _pairs(overrides: Sequence[str]) -> list[tuple[str, str]]:
    pairs, words = [], list(overrides)
    while words:
        field, equals, text = words.pop(0).removeprefix(_PREFIX).partition("=")
        if not equals:
            if not words:
                raise ConfigError(f"--config.{field} needs a value: --config.{field}=VALUE")
            text = words.pop(0)
        pairs.append((field, text))
    return pairs


def _replace(section: Any, path: list[str], text: str, field: str) -> Any:
    name, rest = path[0], path[1:]
    names = [entry.name for entry in dataclasses.fields(section)]
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
        parent = field.split(".")[: -len(path)]
        hint = f"did you mean {'.'.join([*parent, near[0]])}?" if near else "known are "
        hint += "" if near else ", ".join(names)
        raise ConfigError(f"--config.{field} is not a setting; {hint}")
    value = getattr(section, name)
    if dataclasses.is_dataclass(value):
        if not rest:
            inner = ", ".join(entry.name for entry in dataclasses.fields(value))
            raise ConfigError(f"--config.{field} is a section, set one of its fields: {inner}")
        return dataclasses.replace(section, **{name: _replace(value, rest, text, field)})
    if rest:
        raise ConfigError(f"--config.{field} is not a setting; {'.'.join([name])} has no fields")
    annotation = typing.get_type_hints(type(section))[name]
    return dataclasses.replace(section, **{name: _cast(annotation, text, field)})


def _cast(annotation: Any, text: str, field: str) -> Any:
    value: Any = text
    if typing.get_origin(annotation) is tuple:
        value = tuple(part for part in text.split(",") if part)
    try:
        return pydantic.TypeAdapter(annotation).validate_python(value)
    except pydantic.ValidationError as error:
        if typing.get_origin(annotation) is typing.Literal:
            expected = "one of " + ", ".join(typing.get_args(annotation))
        else:
            expected = f"of type {getattr(annotation, '__name__', annotation)}"
        raise ConfigError(f"--config.{field} must be {expected}, got {text!r}") from error
