"""Statistics of robust accuracy: intervals, paired and sequential tests, ranks, sample sizes.

There are three errors. The intervals here are the *sampling* error, for points drawn at random from
a population or from a finite set. They do not cover the *attack* error (robust accuracy is an upper
bound: a stronger attack lowers it) nor the *numerical* one (a record counts its flips).
"""

from __future__ import annotations

from robustkit.core.stats.intervals import (
    Interval,
    clopper_pearson,
    finite_population,
    mean_interval,
    wilson,
)
from robustkit.core.stats.paired import fisher, mcnemar, paired_interval, paired_score
from robustkit.core.stats.power import Need, Runs, needs, simulate
from robustkit.core.stats.ranks import Outcomes, compare, holm, rank_ranges
from robustkit.core.stats.sequential import (
    confidence_sequence,
    growth,
    log_wealth,
    lower_bound,
    peak,
)

__all__ = [
    "Interval",
    "Need",
    "Outcomes",
    "Runs",
    "clopper_pearson",
    "compare",
    "confidence_sequence",
    "finite_population",
    "fisher",
    "growth",
    "holm",
    "log_wealth",
    "lower_bound",
    "mcnemar",
    "mean_interval",
    "needs",
    "paired_interval",
    "paired_score",
    "peak",
    "rank_ranges",
    "simulate",
    "wilson",
]
