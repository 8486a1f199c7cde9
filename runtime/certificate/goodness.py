"""Do counts come from a distribution? The G-test, with its power stated."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]
Probabilities = npt.NDArray[np.float64]
LEAST_EXPECTED = 5.0
POWER = 0.9


@dataclass(frozen=True, kw_only=True)
class GTest:
    """Outcome of a G-test.

    Attributes:
        samples: number of draws.
        bins: outcomes compared, after pooling those expected fewer than five times.
        statistic: G = 2 sum O ln(O / E).
        p_value: probability of a G at least as large if the counts come from the distribution.
        level: p values below it are called a difference.
        impossible: draws of outcomes that have probability zero; any is a difference.
        detectable: the smallest effect (Cohen's w, the root of sum (p1 - p0)^2 / p0) that this many draws
            find with probability 0.9 at that level.
    """

    samples: int
    bins: int
    statistic: float
    p_value: float
    level: float
    impossible: int
    detectable: float

    @property
    def agrees(self) -> bool:
        """Whether no difference was found."""
        return not self.impossible and self.p_value >= self.level


def g_test(counts: Counts, expected: Probabilities, *, level: float) -> GTest:
    """Compare counts ``[K]`` with probabilities ``[K]`` that sum to one.

    Outcomes that are expected fewer than five times are pooled into one bin: the statistic's distribution is
    an approximation that fails for them.

    Source: Sokal and Rohlf, Biometry, chapter 17 (G-test); Cohen, Statistical Power Analysis, chapter 7 (w).
    """
    from scipy.optimize import brentq
    from scipy.stats import chi2, ncx2

    samples = int(counts.sum())
    wanted = expected * samples
    large = wanted >= LEAST_EXPECTED
    observed, want = counts[large].astype(float), wanted[large]
    rest = float(wanted[~large].sum())
    if rest > 0:
        observed, want = np.append(observed, counts[~large].sum()), np.append(want, rest)
    held = observed > 0
    statistic = float(2 * (observed[held] * np.log(observed[held] / want[held])).sum())
    freedom = max(len(want) - 1, 1)
    critical = chi2.isf(level, freedom)

    def missing(effect: float) -> float:
        return float(ncx2.sf(critical, freedom, samples * effect**2)) - POWER

    return GTest(
        samples=samples,
        bins=len(want),
        statistic=statistic,
        p_value=float(chi2.sf(statistic, freedom)),
        level=level,
        impossible=int(counts[expected <= 0].sum()),
        detectable=float(brentq(missing, 1e-6, 1e3)),
    )
