"""A likelihood with its uncertainty: what the draws of one row say together, on the host."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np


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
