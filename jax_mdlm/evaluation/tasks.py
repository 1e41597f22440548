"""What is decoded to be scored: prompts with references, and what became of them.

Enters: held-out rows of a run's source, or a file of rows. Leaves: prompts, and how their answers
are scored. Prompts are decoded by `sampling` as a user's are.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import Literal

from etils import epath

from jax_mdlm.config import Config, ConfigError, DataConfig
from jax_mdlm.data.chat import Conversation
from jax_mdlm.data.corpus import open_references, open_split
from jax_mdlm.data.examples import Example, SplitRows, answers, without_answer
from jax_mdlm.data.rows import Split, read_rows
from jax_mdlm.evaluation.scores import METRICS, Metric, Score, metric_named
from jax_mdlm.sampling import Answer, SampleOptions, response_end, why_too_long
from jax_mdlm.setup import Setup

TooLong = Literal["error", "empty"]  # what becomes of a prompt that does not fit the model


@dataclasses.dataclass(frozen=True)
class Kind:
    """How decoded text of a source is scored where nothing else is said.

    Attributes:
      metric: Of `evaluate`.
      scores: What a run reports at every evaluation.
      most: Rows that it decodes for that, at most; 0 = train.evaluate_rows. Texts of a small model
        on short canvases cost seconds, those of a chat minutes.
    """

    metric: str
    scores: tuple[Score, ...]
    most: int = 0


_RIGHT = Score("exact_match", "exact", right=True)
_KINDS = {
    "pronunciations": Kind(
        "symbols",
        (Score("phoneme_error_rate", "symbols"), Score("word_error_rate", "exact")),
    ),
    "numbers": Kind("exact", (_RIGHT,)),
}
_CHAT = Kind("exact", (Score("chrf", "chrf", right=True), _RIGHT), most=32)


@dataclasses.dataclass(frozen=True)
class Task:
    """Rows to be decoded and scored.

    Attributes:
      name: Where they come from, e.g. "pronunciations/test".
      conversations: What is asked, one per row: a prompt, or messages.
      references: Texts that count as right, one tuple per row.
      metric: How an answer is held against them.
      origins: Where each row comes from, e.g. "rows.jsonl:3"; () = they are counted from 1.
      scores: What a run reports of them while it trains.
    """

    name: str
    conversations: list[Conversation]
    references: list[tuple[str, ...]]
    metric: Metric
    origins: Sequence[str] = ()
    scores: tuple[Score, ...] = ()

    @property
    def digest(self) -> str:
        """Names the rows: other rows, other digest."""
        rows = repr((self.conversations, self.references)).encode()
        return hashlib.sha256(rows).hexdigest()[:16]

    def prompts(self, model: Setup, too_long: TooLong | None = None) -> list[list[int] | None]:
        """Token ids after which the answers follow; None for a row whose answer stays empty.

        Args:
          model: Writes the prompts, and says how long they may be.
          too_long: What --too-long says of a row that does not fit; None = there is no such flag.

        Raises:
          ConfigError: a row that does not fit, or that the tokenizer does not know.
        """
        found = []
        for number, conversation in enumerate(self.conversations):
            origin = self.origins[number] if self.origins else f"{self.name}, row {number + 1}"
            try:
                ids = model.encode(conversation)
            except ConfigError as error:
                raise ConfigError(f"{origin}: {error}") from error
            found.append(fitting(ids, origin, model, too_long))
        return found


def fitting(
    prompt: list[int], origin: str, model: Setup, too_long: TooLong | None
) -> list[int] | None:
    """A prompt, or None where it does not fit the model and its answer stays empty.

    Raises:
      ConfigError: it does not fit, and is not said to stay empty.
    """
    reason = why_too_long(prompt, model.options, model.config.model.max_length)
    if reason and too_long != "empty":
        flag = ", or leave its answer empty with --too-long empty" if too_long else ""
        raise ConfigError(f"{origin} {reason}{flag}")
    return None if reason else prompt


def open_held_out(data: DataConfig, workdir: epath.Path, split: Split) -> SplitRows:
    """The rows of a split that training did not learn from.

    Raises:
      ConfigError: the source has no such split, no row in it, or cannot be read. A finished run's
        settings are fixed: what helps is other rows.
    """
    try:
        rows = open_split(data, workdir, split)
    except ConfigError as error:
        raise ConfigError(f"{error}, or give rows with --file ROWS.jsonl") from error
    if not rows.examples:
        raise ConfigError(
            f"{rows.name} must hold rows to be scored, it holds none; give rows with --file "
            "ROWS.jsonl"
        )
    return rows


def open_task(
    config: Config,
    workdir: epath.Path,
    *,
    split: Split = "validation",
    file: str = "",
    limit: int = 0,
    metric: str = "",
) -> Task:
    """The held-out rows of a run, or those of a file.

    Args:
      config: Of the run.
      workdir: Of the run: where its prepared data lives.
      split: Of the run's source; not used with a file.
      file: JSONL rows in the forms that `data.files` takes; the last answer is the reference.
      limit: Rows at most, from the first; 0 = all.
      metric: One of `scores.METRICS`; "" = what is usual for the source.

    Raises:
      ConfigError: no such metric, split or file; a row that cannot be used.
    """
    usual = "characters" if file else usual_of(config).metric
    chosen = metric_named(metric or usual)
    if chosen.name == "symbols" and config.data.source == "pronunciations":
        chosen = dataclasses.replace(chosen, label="phoneme error rate")  # its words are phonemes
    stop = limit or None
    if config.data.source == "pronunciations" and not file:
        words = open_references(config.data, workdir, split)[:stop]
        name = f"pronunciations/{split}"
        return Task(
            name,
            [word for word, _ in words],
            [tuple(references) for _, references in words],
            chosen,
            [f"{name}:{word}" for word, _ in words],
            usual_of(config).scores,
        )
    if file:
        read = read_rows(file, "--file")
        examples, origins, name = read.examples, read.origins, file
    else:
        rows = open_held_out(config.data, workdir, split)
        examples, origins, name = rows.examples, rows.origins, rows.name
    asked, references = [], []
    for example, origin in zip(examples[:stop], origins, strict=False):
        if (pair := _last_pair(example)) is None:
            raise ConfigError(
                f"{origin} must have an answer to be scored against, got "
                f"{'an empty one' if answers(example) else 'a text alone'}; give rows with answers "
                "in --file"
            )
        asked.append(pair[0])
        references.append((pair[1],))
    return Task(name, asked, references, chosen, origins[:stop], usual_of(config).scores)


def usual_of(config: Config) -> Kind:
    """How the rows of a run's source are scored."""
    return _KINDS.get(config.data.source, _CHAT)


def rows_decoded(config: Config) -> int | None:
    """Rows that a run decodes at an evaluation; None = all that are held out."""
    if config.train.decode_rows >= 0:
        return config.train.decode_rows
    most, rows = usual_of(config).most, config.train.evaluate_rows
    return min(most, rows or most) if most else rows or None


def task_of_rows(config: Config, rows: SplitRows, fits: Callable[[Conversation], bool]) -> Task:
    """The first held-out rows that can be asked; a run leaves out the others, whatever they are.

    Args:
      config: Of the run.
      rows: Held out.
      fits: Whether a conversation can be decoded.
    """
    asked, references, stop = [], [], rows_decoded(config)
    for example in rows.examples:
        if stop is not None and len(asked) >= stop:
            break
        pair = _last_pair(example)
        if pair is not None and fits(pair[0]):
            asked.append(pair[0])
            references.append((pair[1],))
    kind = usual_of(config)
    return Task(rows.name, asked, references, METRICS[kind.metric], scores=kind.scores)


def _last_pair(example: Example) -> tuple[Example, str] | None:
    """What is asked last, and the answer; None where there is none, or an empty one."""
    found = answers(example)
    if not found:
        return None
    question, answer = without_answer(example[: found[-1] + 1])
    return (question, answer) if answer and answer.strip() else None


def slack_share(decoded: Sequence[Answer], options: SampleOptions) -> float:
    """Slack per response slot before the terminator, over all answers; 0 where there is no slot."""
    slack = slots = 0
    for answer in decoded:
        text = answer.response[: response_end(answer.response, options.ids)]
        slack += int((text == options.ids.slack).sum())
        slots += len(text)
    return slack / max(slots, 1)


def too_long_note(count: int, rows: int) -> str:
    """What is said of rows whose answer was left empty; "" where there is none."""
    if not count:
        return ""
    return f"{count:,} of {rows:,} rows are too long for the model: empty answers, counted as wrong"
