"""Whether the paired comparison keeps its level, and finds what it says it could.

    python -m bench.compare_power [--simulations 4000]

For several numbers of rows and of differing rows it draws pairs of models and counts how often the
exact McNemar test says that they differ (p < 0.05), and how often Tango's interval holds the true
difference. First models that are equally right, then models apart by the difference that
`smallest_detectable` promises to be found in 80 % of draws.
"""

from collections import Counter
from functools import cache
from typing import Annotated

import numpy as np
import typer

from facescan.score.compare import difference, mcnemar

_EQUAL = ((200, 0.1), (500, 0.1), (500, 0.2), (1_000, 0.2), (3_920, 0.2), (10_954, 0.2))
"""Rows, and the share of them on which the two differ."""

_APART = ((15_700, 0.01), (3_920, 0.02), (1_740, 0.03), (630, 0.05))
"""Rows that show a difference with 80 % power where a fifth of them differ, and that difference."""

_LEVEL = 0.05
_mcnemar = cache(mcnemar)
_difference = cache(difference)


def measured(rows: int, differing: float, apart: float, simulations: int) -> tuple[float, float]:
    """How often the test rejects, and how often the interval holds `apart`; shares of the draws."""
    rates = ((differing + apart) / 2, (differing - apart) / 2, 1 - differing)
    draws = np.random.default_rng(0).multinomial(rows, rates, simulations)
    rejected = covered = 0
    for (a_only, b_only, _), count in Counter(map(tuple, draws.tolist())).items():
        rejected += count * (_mcnemar(a_only, b_only) < _LEVEL)
        interval = _difference(a_only, b_only, rows)
        assert interval.low is not None
        assert interval.high is not None
        covered += count * (interval.low <= apart <= interval.high)
    return rejected / simulations, covered / simulations


def main(
    simulations: Annotated[int, typer.Option(help="Draws of each row of the table.")] = 4_000,
) -> None:
    """Print both tables."""
    print("rows    differ  apart  McNemar rejects  Tango's interval holds the difference")
    for rows, differing, apart in (
        *((rows, differing, 0.0) for rows, differing in _EQUAL),
        *((rows, 0.2, apart) for rows, apart in _APART),
    ):
        rejected, covered = measured(rows, differing, apart, simulations)
        print(f"{rows:<6}  {differing:6.2f}  {apart:5.2f}  {rejected:15.3f}  {covered:10.3f}")


if __name__ == "__main__":
    typer.run(main)
