"""A trained run, opened for an evaluation: parameters in their places, template, decoding."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
from etils import epath

from jax_mdlm import command
from jax_mdlm.config import Config
from jax_mdlm.containers import Params
from jax_mdlm.data.chat import Template, template_of
from jax_mdlm.data.corpus import unfixed
from jax_mdlm.data.tokenizer import Tokenizer
from jax_mdlm.evaluation.tasks import Task, TooLong
from jax_mdlm.mdlm import load_for_sampling
from jax_mdlm.progress import Progress
from jax_mdlm.sampling import Answer, SampleOptions, generate, options_from
from jax_mdlm.sharding import Layout, make_layout
from jax_mdlm.workdir import load_config


@dataclasses.dataclass(frozen=True)
class Opened:
    """What an evaluation needs of a run.

    Attributes:
      workdir: Its folder.
      config: As trained, with the `sample` and `mesh` settings of the command line.
      layout: Mesh and rules.
      params: In the form that the sampler reads; `model.apply` takes them too, but for int8.
      tokenizer: Of the run.
      template: Renders prompts.
      options: How to decode.
      step: Training steps behind the parameters.
    """

    workdir: epath.Path
    config: Config
    layout: Layout
    params: Params
    tokenizer: Tokenizer
    template: Template
    options: SampleOptions
    step: int

    def prompts(self, task: Task, too_long: TooLong | None = None) -> list[list[int] | None]:
        """The prompts of a task; None for a row whose answer stays empty."""
        length = self.config.model.max_length
        return task.prompts(self.tokenizer, self.template, self.options, length, too_long)

    def answers(self, prompts: Sequence[Sequence[int] | None]) -> list[Answer]:
        """Decodes every prompt of a task, as the run's `sample` settings say."""
        answers = []
        with self.progress(len(prompts)) as progress:
            for answer in generate(
                self.params,
                self.config.model,
                prompts,
                self.options,
                jax.random.key(self.config.sample.seed),
                batch_size=self.config.sample.batch_size,
                layout=self.layout,
            ):
                answers.append(answer)
                progress.advance(len(answers))
        return answers

    def progress(self, total: int, unit: str = "row") -> Progress:
        """The console of an evaluation; one process speaks."""
        return Progress(total, unit=unit, active=jax.process_index() == 0)


def open_run(workdir: str, overrides: Sequence[str]) -> Opened:
    """Opens a work directory.

    Args:
      workdir: Local, or `gs://...`.
      overrides: `--config.sample.*` and `--config.mesh.*` arguments.

    Raises:
      ConfigError: no work directory, no checkpoint, or settings that cannot be used.
      CheckpointError: damaged, or of another shape.
    """
    _join_processes()
    folder = epath.Path(workdir)
    stored = load_config(folder)
    config = command.apply_overrides(
        stored, overrides, section="sample", unfixed=lambda: unfixed(stored.data, folder)
    )
    command.use_compilation_cache(folder / "compilation_cache")
    layout = make_layout(config.mesh)
    run = load_for_sampling(folder, config, layout)
    return Opened(
        workdir=folder,
        config=config,
        layout=layout,
        params=run.params,
        tokenizer=run.tokenizer,
        template=template_of(config.data, run.tokenizer),
        options=options_from(config.sample, config.objective.collapse, run.tokenizer.ids),
        step=run.step,
    )


def too_long_note(count: int, rows: int) -> str:
    """What is said of rows whose answer was left empty; "" where there is none."""
    if not count:
        return ""
    return f"{count:,} of {rows:,} rows are too long for the model: empty answers, counted as wrong"


@functools.cache
def _join_processes() -> None:
    """Once, before the first device is asked for: on a pod all workers run the same command."""
    command.start_processes()
