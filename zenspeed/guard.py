"""Which updates are not made: those of a loss or a gradient that is not finite, or far above what it was.

A batch whose update is blocked is taken once more, since a bit that flipped in memory does not flip twice; when it is
blocked again, it is set aside and the run goes on behind it. When `events` batches are set aside within `window` updates,
weights are suspected, not data: the run rolls back to the last good checkpoint and goes on with the samples behind the last
one set aside, at most `rollbacks` times (as Chowdhery et al. 2022, arXiv 2204.02311, section 5.1, did by hand).

All of it is computed from numbers that are the same on all ranks, so all decide alike.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

from zenspeed.recipe import GuardConfig

LEAST = 16
"""Updates before a spike can be told from ordinary noise."""
LEAST_DEVIATION = 0.1
"""Nats; a loss that hardly varies is not suspected for varying a little."""


class Guard:
    """Judges every update of a run. Its state goes into the checkpoint."""

    def __init__(self, config: GuardConfig, clip: float | None) -> None:
        self.config, self.clip = config, clip
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.aside: list[int] = []
        """Steps whose batch was set aside, since the last rollback."""
        self.rollbacks = 0
        self.reason = ""
        """Why the last update was blocked."""

    def allows(self, loss: float, norm: float) -> bool:
        """Whether to make the update of a batch with this loss and this norm of the gradient."""
        self.reason = self._against(loss, norm)
        if self.reason:
            return False
        window = self.config.window
        self.losses, self.norms = [*self.losses[1 - window :], loss], [*self.norms[1 - window :], norm]
        return True

    def _against(self, loss: float, norm: float) -> str:
        if not math.isfinite(loss):
            return f"loss is {loss}"
        if not math.isfinite(norm):
            return f"norm of the gradient is {norm}"
        if len(self.losses) < LEAST:
            return ""
        sigmas, factor = self.config.spike_sigmas, self.config.norm_factor
        mean, deviation = statistics.fmean(self.losses), max(LEAST_DEVIATION, statistics.pstdev(self.losses))
        if sigmas is not None and loss > mean + sigmas * deviation:
            return f"loss {loss:.4g} is {(loss - mean) / deviation:.0f} deviations above the last {len(self.losses)}"
        usual = statistics.median(self.norms)
        # A gradient that clipping would hardly shorten does no harm, however small the ones before it were.
        if factor is not None and norm > factor * usual and norm > 10 * (self.clip or 0.0):
            return f"norm of the gradient, {norm:.4g}, is {norm / max(usual, 1e-30):.0f} × the usual one"
        return ""

    def set_aside(self, step: int) -> bool:
        """Notes that the batch of `step` is left out; whether it is time to roll back."""
        self.aside = [s for s in self.aside if s > step - self.config.window] + [step]
        return len(self.aside) >= self.config.events and self.rollbacks < self.config.rollbacks

    def rolled_back(self, state: Mapping[str, Any]) -> None:
        """The run is as of a checkpoint whose guard's state was `state`; the count of rollbacks goes on."""
        done = self.rollbacks + 1
        self.load_state_dict(state)
        self.rollbacks, self.aside = done, []

    def state_dict(self) -> dict[str, Any]:
        return {"losses": self.losses, "norms": self.norms, "aside": self.aside, "rollbacks": self.rollbacks}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.losses, self.norms = list(state.get("losses", ())), list(state.get("norms", ()))
        self.aside, self.rollbacks = list(state.get("aside", ())), int(state.get("rollbacks", 0))
