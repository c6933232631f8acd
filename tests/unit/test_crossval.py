"""The mean over folds: covered by its interval as often as it says, though folds share their training rows."""

from __future__ import annotations

import numpy as np
import pytest

from zenspeed.crossval import mean_over_folds
from zenspeed.evaluate.interval import Figure, Undefined


def test_interval_over_folds() -> None:
    values = [0.8, 0.9, 0.7, 0.85, 0.75]
    figure = mean_over_folds(values, 0.25)
    assert isinstance(figure, Figure) and figure.low is not None
    # t of 4 degrees at 97.5 % is 2.776.
    half = 2.776 * np.sqrt((1 / 5 + 0.25) * np.var(values, ddof=1))
    assert (figure.value, figure.low, figure.n) == (pytest.approx(0.8), pytest.approx(0.8 - half, abs=2e-3), 5)
    assert isinstance(mean_over_folds([0.8, None], 0.5), Undefined)
