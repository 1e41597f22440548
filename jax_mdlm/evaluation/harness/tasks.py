"""Tasks of lm-evaluation-harness: found, loaded with errors in one line, run.

The only place that imports `lm_eval` (extra `eval`), and only when it is used.
"""

import difflib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jax_mdlm.config import ConfigError
from jax_mdlm.evaluation.harness.presets import Preset
from jax_mdlm.extras import how_to_install

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager

import hashlib
import math
from typing import TYPE_CHECKING

from jax_mdlm.evaluation.harness.responder import Asked, Responder, Scored

if TYPE_CHECKING:
    from lm_eval.api.model import LM

Results = dict[str, Any]  # what lm-eval returns


def require_lm_eval() -> None:
    """Raises ConfigError where lm-eval is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError(
            "evaluate harness needs lm-evaluation-harness, which is not installed: "
            f"{how_to_install('eval')}"
        )


def open_tasks(names: Sequence[str], include: Sequence[str]) -> "TaskManager":
    """Looks tasks up in own folders, and among lm-eval's own where those do not have them all.

    Its own are some 14,000 YAML files, which take ten seconds to read.

    Args:
      names: Tasks, groups or tags.
      include: Folders with YAML files of tasks; theirs win over those of lm-eval.

    Raises:
      ConfigError: no such folder, or no such task (the nearest one is named).
    """
    require_lm_eval()
    from lm_eval.tasks import TaskManager

    for folder in include:
        if not Path(folder).is_dir():
            raise ConfigError(f"--include {folder} must be a folder with task files, it is none")
    manager = TaskManager(include_path=list(include), include_defaults=False)
    known = set(manager.all_tasks)
    if not all(task_members(manager, name) <= known for name in names):
        manager = TaskManager(include_path=list(include))
    for name in names:
        if name not in manager.all_tasks:
            near = difflib.get_close_matches(name, manager.all_tasks, n=1)
            hint = f"did you mean {near[0]}?" if near else "give its folder with --include"
            raise ConfigError(f"task {name} is known neither to lm-eval nor in --include; {hint}")
    return manager


def task_members(manager: "TaskManager", name: str) -> set[str]:
    """The names of a task, group or tag and of everything in it."""
    found: set[str] = set()
    todo: list[Any] = [name]
    while todo:
        entry = todo.pop()
        if isinstance(entry, Mapping):  # written inside a group
            inner = entry.get("task", [])
            todo += inner if isinstance(inner, list) else [inner]
            todo += [entry["group"]] if "group" in entry else []
        elif entry not in found:
            found.add(entry)
            known = manager.task_index.get(entry)
            inner = known.cfg.get("task") if known and known.cfg else None
            todo += inner if isinstance(inner, list) else []
            todo += sorted(known.tags) if known and known.cfg is None else []
    return found


def runs_code(manager: "TaskManager", name: str) -> bool:
    """Whether a task, or one of a group, executes what the model wrote."""
    entries = [manager.task_index.get(member) for member in task_members(manager, name)]
    return any(entry and entry.cfg and entry.cfg.get("unsafe_code") for entry in entries)


def find_preset(manager: "TaskManager", presets: Mapping[str, Preset], name: str) -> Preset | None:
    """The settings of a task: its own, or those of a group that it belongs to."""
    groups = [group for group in presets if name in task_members(manager, group)]
    return presets.get(name) or next((presets[group] for group in groups), None)


def load_tasks(
    manager: "TaskManager", names: Sequence[str], *, allow_code: bool
) -> dict[str, list[Any]]:
    """Loads tasks with their data.

    Args:
      manager: From `open_tasks`.
      names: Tasks, groups or tags.
      allow_code: Whether they may execute what the model wrote.

    Returns:
      For each name what `run` takes: the group, or the tasks.

    Raises:
      ConfigError: a task executes code and may not, is named twice, or cannot be loaded: the hub
        cannot be reached, a package is missing, its file is wrong.
    """
    loaded, origin = {}, {}
    for name in names:
        if runs_code(manager, name) and not allow_code:
            raise ConfigError(
                f"task {name} executes code that the model wrote, and nothing confines it; add "
                "--allow-code on a machine where that can do no harm"
            )
    for name in names:
        groups, tasks = _load(manager, name)
        for task in tasks:
            if task in origin:
                raise ConfigError(
                    f"task {task} must be run once, it belongs to {origin[task]} and to {name}; "
                    "name one of them"
                )
            origin[task] = name
        loaded[name] = [groups[name]] if name in groups else list(tasks.values())
    return loaded


def _load(manager: "TaskManager", name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Groups and tasks by name."""
    try:
        loaded = manager.load([name])
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"task {name} needs the package {error.name}, which is not installed: "
            f"pip install {error.name}"
        ) from error
    except OSError as error:  # of the hub's client and of datasets, files included
        raise ConfigError(
            f"task {name} needs data that cannot be had ({_first_line(error)}); a stock task needs "
            "its hub, or a cache of datasets that was filled where there is one; a local task has "
            "dataset_path: json and its files in dataset_kwargs"
        ) from error
    except Exception as error:  # a task file may fail in any way
        raise ConfigError(
            f"task {name} cannot be loaded ({_first_line(error)}); correct its file"
        ) from error
    return loaded.get("groups", {}), loaded["tasks"]


def run(
    model: "LM",
    tasks: Sequence[Any],
    manager: "TaskManager",
    *,
    num_fewshot: int | None,
    chat: bool,
    limit: int | float | None,
    allow_code: bool,
) -> Results:
    """One `simple_evaluate` over tasks that are run alike.

    Args:
      model: See `language_model`.
      tasks: From `load_tasks`.
      manager: From `open_tasks`.
      num_fewshot: Worked examples in a prompt; None = as the tasks say.
      chat: Whether prompts are rendered with the chat template, examples as turns of their own.
      limit: Documents per task at most, or below 1 the share of them; None = all.
      allow_code: Whether tasks may execute what the model wrote.
    """
    from lm_eval.evaluator import simple_evaluate

    results = simple_evaluate(
        model=model,
        tasks=list(tasks),
        num_fewshot=num_fewshot,
        limit=limit,
        apply_chat_template=chat,
        task_manager=manager,
        log_samples=False,
        confirm_run_unsafe_code=allow_code,
    )
    assert results is not None  # only of processes that are not the first, by lm-eval's count
    return dict(results)


def join_results(parts: Sequence[Results]) -> Results:
    """The results of several runs as one; `config` has a list of theirs."""
    joined: Results = {}
    for part in parts:
        for name, value in part.items():
            if name == "config":
                joined.setdefault(name, []).append(value)
            elif isinstance(value, Mapping):
                joined.setdefault(name, {}).update(value)
            else:
                joined.setdefault(name, value)
    return joined


def tables(results: Results) -> str:
    """lm-eval's table of tasks, and that of groups where there are any."""
    from lm_eval.utils import make_table

    columns = ["results", *(["groups"] if results.get("groups") else [])]
    return "\n".join(make_table(results, column) for column in columns)


def as_json(results: Results) -> str:
    """JSON as lm-eval writes it."""
    from lm_eval.utils import handle_non_serializable

    text = json.dumps(results, indent=2, default=handle_non_serializable, ensure_ascii=False)
    return text + "\n"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def language_model(responder: Responder, *, name: str, settings: Mapping[str, Any]) -> "LM":
    """A model for `lm_eval.simple_evaluate`.

    Every process of a pod runs all requests, in the same order: the rows are shared out by JAX.
    For lm-eval there is one process.

    Args:
      responder: Answers.
      name: Of the run; tells caches of requests apart.
      settings: Go into the results, under `config`.

    Raises:
      ConfigError: lm-eval is not installed.
    """
    require_lm_eval()
    from lm_eval.api.model import LM

    class MaskedDiffusion(LM):
        """Requests (`lm_eval.api.instance.Instance`), answered."""

        def __init__(self) -> None:
            super().__init__()
            self._errors: list[float] = []  # standard errors of the likelihoods, in nats

        def generate_until(self, requests: Sequence[Any], **_: Any) -> list[str]:
            asked = [Asked(one.args[0], one.args[1], _origin(one)) for one in requests]
            return responder.answer(asked)

        def loglikelihood(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
            scored = [Scored(one.args[0], one.args[1], _origin(one)) for one in requests]
            estimates = responder.score(scored)
            self._errors += [one.standard_error for one in estimates]
            return [(one.value, bool(one.greedy)) for one in estimates]

        def loglikelihood_rolling(self, requests: Sequence[Any], **_: Any) -> list[float]:
            texts = [one.args[0] for one in requests]
            return responder.score_texts(texts, [_origin(one) for one in requests])

        def apply_chat_template(
            self, chat_history: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True
        ) -> str:
            return responder.render(chat_history, open_answer=add_generation_prompt)

        @property
        def tokenizer_name(self) -> str:
            # of what requests hold: one that is kept must not be read in another way
            rendered = responder.render([{"role": "user", "content": "content"}])
            digest = hashlib.sha256(rendered.encode()).hexdigest()[:12]
            return f"{name}-{digest}"

        def chat_template(self, chat_template: bool | str = False) -> str:
            return responder.template_text() if chat_template else ""

        def get_model_info(self) -> dict[str, Any]:
            """What lm-eval adds to `config` of its results, after the run."""
            known = [error for error in self._errors if math.isfinite(error)]  # not of one draw
            mean = sum(known) / len(known) if known else None
            return {**settings, "mean_standard_error_of_log_likelihood": mean}

    return MaskedDiffusion()


def _origin(request: Any) -> str:
    return f"task {request.task_name}, document {request.doc_id}"
