"""LLaDA's Monte-Carlo estimate of a response's log-likelihood, for any number of rows.

Enters: parameters, and pairs of prompt and response. Leaves: an `Estimate` a row. `canvases` lays
rows out, `program` scores masks, `from_draws` puts draws together.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jax_mdlm.config import ConfigError, ModelConfig
from jax_mdlm.containers import Params, SpecialIds
from jax_mdlm.likelihood.canvases import Group, Row, make_groups, place_batch
from jax_mdlm.likelihood.program import Draws, ScoringSetting, is_greedy, score
from jax_mdlm.sharding import Layout

_MOST_SAMPLES = 2**16  # times a response's tokens that fits int32


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A response's log-likelihood.

    Attributes:
      value: Nats of the whole response.
      standard_error: Of `value`, in nats: 0 where it is exact (all masks were scored), inf where a
        single draw cannot tell.
      greedy: Whether greedy decoding gives the response; None = not asked.
      degrees: Degrees of freedom of `standard_error`; 0 where it is 0 or inf.
    """

    value: float
    standard_error: float
    greedy: bool | None = None
    degrees: float = 0

    def interval(self, level: float = 0.99) -> tuple[float, float]:
        """The ends of the t-interval that holds the exact value in a share `level` of all runs.

        `value -+ t_degrees((1 + level) / 2) * standard_error`. The standard error is drawn too, so
        that a normal interval would be too narrow with few draws.
        """
        from scipy.special import stdtrit  # a tenth of a second that sampling need not wait

        if self.degrees == 0:
            reach = self.standard_error
        else:
            reach = float(stdtrit(self.degrees, (1 + level) / 2)) * self.standard_error
        return self.value - reach, self.value + reach


def log_likelihood(
    params: Params,
    config: ModelConfig,
    rows: Sequence[Row],
    ids: SpecialIds,
    key: jax.Array,
    *,
    samples: int = 128,
    batch_size: int = 16,
    guidance: float = 0.0,
    layout: Layout | None = None,
    greedy: bool = False,
    report: Callable[[int], None] = lambda done: None,
) -> list[Estimate]:
    """Estimates `log p(response | prompt)` in the sense of masked diffusion, without bias.

    Eq. 6 and Algorithm 3 of LLaDA (arXiv 2502.09992): for a response of U tokens draw l uniformly
    from 1..U, mask exactly l of them without replacement, and take

        U / l * sum over masked slots of log p(token | prompt, response outside the mask).

    Its expectation, which is what is estimated, is a lower bound of the log-likelihood; masking an
    exact number of tokens has less variance than masking each with probability t (Eq. 14 there) and
    the same expectation. It is also the mean, over all orders in which the response can be
    generated one token after the other, of that order's log-likelihood: in a random order the token
    that comes when l are missing stands at each masked slot with probability 1 / l, and there are U
    of them, so that both are `sum_l 1 / l sum over masked`, averaged over the masks of l slots.

    - The l of a row's draws are stratified over 1..U (see `program.draw_mask`). LLaDA's script
      (`_forward_process` of `eval_llada.py`) does so with one ticket for all draws and rounds
      halves to even: with 16 draws and U = 8 even l come three times as often as odd ones. Here
      every draw has a ticket of its own in its stratum and whole numbers are divided: l is exactly
      uniform, draws are independent, and their spread is known (`from_draws`).
    - Where all 2^U - 1 masks are no more than `samples`, every one of them is scored once and
      weighed as often as it would be drawn: the value is exact, for fewer calls. An answer of one
      token takes one.
    - What is drawn for a row depends on `key` and the row's number only, not on its batch.
    - Nothing stands after the response, as in LLaDA's script: the model sees how long it is. A
      model that was trained on rows of one length, filled up with EOS, wants those as a part of the
      response.
    - Slack is a token like others here: for a model that was trained with it, this is the
      likelihood of the one canvas without slack, a lower bound of that of the text.

    Args:
      params: As from `model.init` or `model.prepare`.
      config: The network.
      rows: Ids of prompts, perhaps empty, and of responses, of any lengths.
      ids: Special tokens.
      key: Typed PRNG key [].
      samples: Draws a row; its canvases are that many at most.
      batch_size: Canvases per compiled call, of any rows; rounded up to the batch's shards.
      guidance: Scale of classifier-free guidance as in LLaDA's script: logits are
        `without + (guidance + 1) (with - without)`, where "without" sees the prompt masked. Then
        two canvases a draw.
      layout: Mesh and rules; None = one device.
      greedy: Whether to ask also if greedy decoding gives the response (U more calls at most; see
        `program.is_greedy`).
      report: Called with the number of rows that are done, or nearly.

    Returns:
      One estimate per row, in order, in nats of the whole response.

    Raises:
      ConfigError: settings or rows that cannot be scored (see `make_groups`).
    """
    if not 1 <= samples <= _MOST_SAMPLES:
        raise ConfigError(
            f"samples must be between 1 and {_MOST_SAMPLES:,}, got {samples}; 128 are LLaDA's"
        )
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, got {batch_size}; raise it")
    if guidance < 0:
        raise ConfigError(f"guidance must be 0 or more, got {guidance}; 0 turns it off")
    shards = 1 if layout is None else layout.batch_shards
    batch = -(-batch_size // shards) * shards
    estimates: list[Estimate | None] = [None] * len(rows)
    done = 0
    for group in make_groups(rows, ids, config.max_length):
        setting = ScoringSetting(config, ids, group.region, float(guidance), layout)
        found = _estimate(
            params,
            group,
            key,
            samples,
            batch,
            setting,
            lambda rows, before=done: report(before + rows),
        )
        if greedy:
            found = _with_greedy(params, group, found, batch, setting)
        for number, estimate in zip(group.numbers, found, strict=True):
            estimates[number] = estimate
        done += len(found)
        report(done)
    return [estimate for estimate in estimates if estimate is not None]


def _estimate(
    params: Params,
    group: Group,
    key: jax.Array,
    samples: int,
    batch: int,
    setting: ScoringSetting,
    report: Callable[[int], None],
) -> list[Estimate]:
    counts = np.asarray(group.rows.count[:-1]).astype(np.int64)
    # Compared as logarithms: 2^U is too large for most responses.
    every = counts <= math.floor(math.log2(samples + 1))
    canvases = np.where(every, 2 ** np.where(every, counts, 0) - 1, samples)
    at = np.repeat(np.arange(len(counts)), canvases)  # each canvas's row in the group
    sample = np.concatenate([np.arange(number) for number in canvases])
    sums, masked = [], []
    for begin in range(0, len(at), batch):
        part = slice(begin, begin + batch)
        draws: dict[str, Any] = {
            "row": _fill(group.numbers[at[part]], batch),
            "sample": _fill(sample[part], batch),
            "every": _fill(every[at[part]], batch).astype(bool),
        }
        inputs = place_batch(setting.layout, (group.take(at[part], batch), Draws(**draws)))
        # Not read here: the next batch is prepared while this one runs.
        total, number = score(params, *inputs, key, np.int32(samples), setting)
        sums.append(total)
        masked.append(number)
        jax.block_until_ready(sums[-2:-1])
        report(int(at[begin]))
    total = np.concatenate(jax.device_get(sums))[: len(at)].astype(np.float64)
    missing = np.concatenate(jax.device_get(masked))[: len(at)]
    ends = np.cumsum(canvases)[:-1]
    return [
        _exact(sums, missing, int(count)) if whole else from_draws(count / missing * sums)
        for sums, missing, count, whole in zip(
            np.split(total, ends), np.split(missing, ends), counts, every, strict=True
        )
    ]


def _exact(sums: np.ndarray, missing: np.ndarray, count: int) -> Estimate:
    """All masks, each as often as it is drawn: a mask of l slots with `1 / (U C(U, l))`."""
    chance = np.array([1 / (count * math.comb(count, int(number))) for number in missing])
    return Estimate(float(np.sum(chance * count / missing * sums)), 0.0)


def _with_greedy(
    params: Params, group: Group, found: list[Estimate], batch: int, setting: ScoringSetting
) -> list[Estimate]:
    results = []
    for begin in range(0, len(found), batch):
        index = np.arange(begin, min(begin + batch, len(found)))
        (inputs,) = place_batch(setting.layout, (group.take(index, batch),))
        results.append(is_greedy(params, inputs, setting))
    greedy = np.concatenate(jax.device_get(results))
    return [
        dataclasses.replace(estimate, greedy=bool(right))
        for estimate, right in zip(found, greedy, strict=False)
    ]


def _fill(values: np.ndarray, batch: int) -> np.ndarray:
    """[b] -> int32 [batch], filled up with zeros."""
    return np.pad(values.astype(np.int32), (0, batch - len(values)))


def from_draws(draws: np.ndarray) -> Estimate:
    """The mean of one draw from each of n strata, in their order.

    The draws are independent but not alike: each has a range of mask counts of its own. Neighbours
    have nearly the same, so their differences show the spread within a stratum ("collapsed strata",
    Cochran, Sampling Techniques, 5A.12):

        variance of the mean = 1 / n^2 sum_groups h / (h - 1) sum_{i in group} (x_i - mean_group)^2

    over groups of h = 4 neighbours (the last one up to 7). Its expectation is the variance plus
    what the means of a group's strata differ by: exact where groups are of one stratum (n a
    multiple of 4 U), else too large. The variance of all draws around their common mean would count
    all that stratification removes.

    A few groups, those with few masks, hold most of the variance, and degrees of freedom are
    counted as Welch and Satterthwaite do: `(sum v)^2 / sum (v^2 / (h - 1))` over the groups' terms.
    With `n - groups` degrees a 99 % interval of 32 draws would hold the value in 97 % of runs.

    Args:
      draws: float [n]; estimates of the same log-likelihood, in nats.
    """
    number = len(draws)
    if number == 1:
        return Estimate(float(draws[0]), math.inf)
    groups = np.split(draws, range(4, 4 * (number // 4), 4))
    terms = [len(group) * float(np.var(group, ddof=1)) / number**2 for group in groups]
    return _join(float(np.mean(draws)), terms, [len(group) - 1 for group in groups])


def add_up(estimates: Sequence[Estimate]) -> Estimate:
    """The sum of independent estimates, one at least: the likelihood of several responses."""
    return _join(
        sum(one.value for one in estimates),
        [one.standard_error**2 for one in estimates],
        [one.degrees for one in estimates],
    )


def _join(value: float, variances: Sequence[float], degrees: Sequence[float]) -> Estimate:
    """An estimate whose variance is a sum of estimated ones."""
    variance = math.fsum(variances)
    if variance in (0, math.inf):
        return Estimate(value, variance)
    weight = sum(part**2 / own for part, own in zip(variances, degrees, strict=True) if part)
    return Estimate(value, math.sqrt(variance), degrees=variance**2 / weight)
