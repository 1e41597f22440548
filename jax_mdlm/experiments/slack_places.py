"""Where slack stands: in augmented targets, as training draws it, and in decoded responses.

Enters: held-out rows and decoded answers. Leaves: shares over positions, runs, gaps between tokens,
neighbours, and the calls that fixed each slot. Counting is NumPy only.

A response here is what stands before its terminator. Its text tokens leave *gaps*: one before the
first, one between any two, and one between the last and the terminator, the tail. A gap holds a run
of slack or nothing. Random placement fills all gaps alike (`diffusion/slack`), so every difference
between gaps is something a model has learned, or `separate_repeats`.
"""

import collections
import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from jax_mdlm.config import Config, ConfigError
from jax_mdlm.containers import SpecialIds
from jax_mdlm.data.batches import evaluation_batches
from jax_mdlm.data.chat import Conversation
from jax_mdlm.data.examples import Example, Message, SplitRows, parse_messages
from jax_mdlm.data.table import make_table
from jax_mdlm.data.tokenizer import Tokenizer
from jax_mdlm.diffusion import corrupt
from jax_mdlm.evaluation.tasks import Task
from jax_mdlm.sampling import Answer, response_end

START = -1  # stands for the token before a gap at the response's start
LONGEST = 4  # runs of so many slacks or more are counted together


@dataclasses.dataclass(frozen=True)
class Response:
    """One response.

    Attributes:
      slots: int [n]; tokens and slack before the terminator.
      behind: Slack after it.
      calls: int [n]; the call that fixed each slot, from 0; None for a target. A slack that the
        merge step made has the call of the token whose place it took.
      terminator: What stands after the tail.
    """

    slots: np.ndarray
    behind: int
    calls: np.ndarray | None
    terminator: int


class Gap(NamedTuple):
    """The token before, the token after, and how much slack stands between."""

    before: int
    after: int
    slack: int


class Neighbour(NamedTuple):
    """A token beside gaps.

    Attributes:
      gaps: Gaps that it is beside.
      filled: Those with slack.
      lift: Its share of filled gaps / the share of filled gaps among all; 1 = no difference.
    """

    gaps: int
    filled: int
    lift: float


@dataclasses.dataclass(frozen=True)
class Timing:
    """When slots are fixed; calls are relative: 0 = the row's first, 1 = the last of its text.

    Attributes:
      slack: float64 [bins]; share of the slack that is fixed in each part of the calls.
      text: float64 [bins]; the same of text tokens.
      mean_slack: Mean relative call of slack; nan where there is none.
      mean_text: Mean relative call of text.
    """

    slack: np.ndarray
    text: np.ndarray
    mean_slack: float
    mean_text: float


@dataclasses.dataclass(frozen=True)
class SlackPlaces:
    """What is said of a set of responses.

    Attributes:
      rows: Responses.
      slots: Slots before terminators.
      slack: Slack among them.
      position: float64 [bins]; slack per slot in equal parts of a response, from start to end.
      runs: float64 [LONGEST]; share of the runs of slack that have 1, 2, ... slots, or more.
      per_gap: Mean slack in a gap: "start", "between" (two tokens), "equal" (two equal tokens),
        "tail"; nan where no such gap is.
      tail_share: Slack in tails / all slack; nan where there is none.
      behind: Slack after the terminator, mean over responses.
      before: What slack comes after: token id -> its gaps; `START` for the response's start.
      after: What slack comes before: token id -> its gaps; the terminator for tails.
      timing: None for targets.
    """

    rows: int
    slots: int
    slack: int
    position: np.ndarray
    runs: np.ndarray
    per_gap: dict[str, float]
    tail_share: float
    behind: float
    before: dict[int, Neighbour]
    after: dict[int, Neighbour]
    timing: Timing | None

    @property
    def share(self) -> float:
        """Slack per slot before the terminator."""
        return self.slack / max(self.slots, 1)


def of_answer(answer: Answer, ids: SpecialIds) -> Response:
    """A decoded response; without a terminator all of its region counts."""
    end = response_end(answer.response, ids)
    return Response(
        slots=answer.response[:end],
        behind=int((answer.response[end:] == ids.slack).sum()),
        calls=answer.committed_at[:end],
        terminator=ids.terminator,
    )


def of_target(tokens: np.ndarray, frames: np.ndarray, ids: SpecialIds) -> Response:
    """An augmented row: tokens int [L], and frames bool [L], its labels and slack."""
    slots = tokens[frames]
    if len(slots) and slots[-1] == ids.terminator:
        slots = slots[:-1]
    return Response(slots, behind=0, calls=None, terminator=ids.terminator)


def draw_targets(config: Config, task: Task, tokenizer: Tokenizer) -> list[Response]:
    """Rows as a training step would see them: slack drawn once for each.

    Args:
      config: Of the run: sizes, slack share, separators, and `train.seed` of the draws.
      task: Rows; the first reference of each is its response.
      tokenizer: Of the run.

    Raises:
      ConfigError: as `make_table`; a pre-training run.
    """
    if config.data.pretraining:
        raise ConfigError(
            "where slack stands is compared between answers and targets, and a run with "
            "data.pretraining=true has no answers; name another run"
        )
    ids = tokenizer.ids
    examples = [
        (*_messages(conversation), Message("assistant", references[0]))
        for conversation, references in zip(task.conversations, task.references, strict=True)
    ]
    rows = SplitRows(task.name, examples, [f"{task.name}:{at}" for at in range(len(examples))])
    table = make_table(rows, config.data, tokenizer, slack_max=config.objective.slack_max)
    # The training step's own draw, so that targets are what the model learned from.
    draw = jax.jit(functools.partial(corrupt, ids=ids, config=config.objective))
    key = jax.random.key(config.train.seed)
    found = []
    batches = evaluation_batches(table, config.data, batch_size=config.sample.batch_size)
    for number, batch in enumerate(batches):
        drawn = draw(jax.random.fold_in(key, number), batch)
        targets, frames = jax.device_get((drawn.targets, drawn.frames))
        found += [
            of_target(tokens, own, ids)
            for tokens, own in zip(targets, frames, strict=True)
            if own.any()  # rows that fill up the last batch have none
        ]
    return found


def _messages(conversation: Conversation) -> Example:
    if isinstance(conversation, str):
        return (Message("user", conversation),)
    return parse_messages(conversation, "conversation")


def measure_places(
    responses: Sequence[Response], ids: SpecialIds, *, bins: int = 10
) -> SlackPlaces:
    """Counts everything once.

    Args:
      responses: All targets, or all decoded.
      ids: Special tokens.
      bins: Parts into which a response, and the calls of a row, are cut.

    Raises:
      ValueError: no responses, or some with calls and some without.
    """
    if not responses:
        raise ValueError("places of slack need at least one response, got none")
    timed = {response.calls is not None for response in responses}
    if len(timed) > 1:
        raise ValueError("responses must be all decoded or all targets, got both")
    own = [list(gaps(one, ids)) for one in responses]
    lengths = collections.Counter(
        min(gap.slack, LONGEST) for row in own for gap in row if gap.slack
    )
    slack = [one.slots == ids.slack for one in responses]
    total = int(sum(is_slack.sum() for is_slack in slack))
    tails = sum(row[-1].slack for row in own if len(row) > 1)
    return SlackPlaces(
        rows=len(responses),
        slots=sum(len(one.slots) for one in responses),
        slack=total,
        position=_by_position(slack, bins),
        runs=_shares(np.array([lengths[size] for size in range(1, LONGEST + 1)], float)),
        per_gap=_per_gap(own),
        tail_share=tails / total if total else float("nan"),
        behind=sum(one.behind for one in responses) / len(responses),
        before=_neighbours((gap.before, gap.slack > 0) for row in own for gap in row),
        after=_neighbours((gap.after, gap.slack > 0) for row in own for gap in row),
        timing=_timing(responses, slack, bins) if timed == {True} else None,
    )


def gaps(response: Response, ids: SpecialIds) -> Iterator[Gap]:
    """The gaps of a response in order, one more than it has text tokens."""
    before, slack = START, 0
    for token in map(int, response.slots):
        if token == ids.slack:
            slack += 1
        else:
            yield Gap(before, token, slack)
            before, slack = token, 0
    yield Gap(before, response.terminator, slack)


def top(
    neighbours: Mapping[int, Neighbour], count: int, least: int = 30
) -> list[tuple[int, Neighbour]]:
    """The tokens of the highest lift among those beside at least `least` gaps."""
    often = [(token, one) for token, one in neighbours.items() if one.gaps >= least]
    return sorted(often, key=lambda entry: (-entry[1].lift, entry[0]))[:count]


def _per_gap(rows: Sequence[Sequence[Gap]]) -> dict[str, float]:
    """A response without text is one gap, start and tail at once: it counts as neither."""
    found: dict[str, list[int]] = {"start": [], "between": [], "equal": [], "tail": []}
    for first, *between, last in (row for row in rows if len(row) > 1):
        found["start"].append(first.slack)
        found["tail"].append(last.slack)
        found["between"] += [gap.slack for gap in between]
        found["equal"] += [gap.slack for gap in between if gap.before == gap.after]
    return {name: float(np.mean(v)) if v else float("nan") for name, v in found.items()}


def _by_position(slack: Sequence[np.ndarray], bins: int) -> np.ndarray:
    """Slack per slot in each part; a slot at a border counts in both by what lies in each."""
    edges = np.linspace(0, 1, bins + 1)
    inside, slots = np.zeros(bins), 0
    for is_slack in slack:
        if len(is_slack):
            so_far = np.concatenate([[0], np.cumsum(is_slack)])
            inside += np.diff(np.interp(edges, np.linspace(0, 1, len(so_far)), so_far))
            slots += len(is_slack)
    return inside / max(slots / bins, 1e-30)


def _neighbours(beside: Iterable[tuple[int, bool]]) -> dict[int, Neighbour]:
    total, filled = collections.Counter(), collections.Counter()
    for token, has_slack in beside:
        total[token] += 1
        filled[token] += has_slack
    usual = sum(filled.values()) / max(sum(total.values()), 1)
    return {
        token: Neighbour(
            count, filled[token], filled[token] / count / usual if usual else float("nan")
        )
        for token, count in total.items()
    }


def _timing(responses: Sequence[Response], slack: Sequence[np.ndarray], bins: int) -> Timing:
    relative = []
    for response in responses:
        assert response.calls is not None
        # Within one row calls differ by what is unmasked, between rows by how long the text is.
        relative.append(response.calls / max(response.calls.max(initial=0), 1))
    when = np.concatenate(relative)
    is_slack = np.concatenate(list(slack)) if slack else np.zeros(0, bool)
    parts = [when[is_slack], when[~is_slack]]
    shares = [_shares(np.histogram(part, bins, (0, 1))[0].astype(float)) for part in parts]
    means = [float(part.mean()) if len(part) else float("nan") for part in parts]
    return Timing(shares[0], shares[1], means[0], means[1])


def _shares(counts: np.ndarray) -> np.ndarray:
    return counts / max(counts.sum(), 1)
