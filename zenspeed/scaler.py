"""Loss scales for half precision: the loss is multiplied by a scale so that small gradients do not vanish.

    static    one scale for ever; 1 is none (fp32, bf16)
    dynamic   halved when gradients overflow, doubled after `window` clean updates (Micikevicius et al. 2018, arXiv 1710.03740)

Both stop training with an explanation where going on cannot help: gradients that are not finite update after update.
"""

from __future__ import annotations

from zenspeed.errors import InputError


class LossScaler:
    """A loss scale that never changes; 1 is none."""

    def __init__(self, scale: float = 1.0, patience: int = 50) -> None:
        self.scale = scale
        self.patience = patience
        """Skipped updates in a row after which training stops."""
        self.skipped = 0

    def update(self, *, overflow: bool) -> None:
        """Hears whether the last update was skipped for gradients that were not finite.

        Raises:
            InputError: that was so `patience` times in a row.
        """
        self.skipped = self.skipped + 1 if overflow else 0
        if self.skipped >= self.patience:
            raise InputError(
                f"{self.skipped} updates in a row had gradients that are not finite, with loss scale {self.scale:g}, which "
                "does not change: the model or its data give NaN or infinity; lower the learning rate, clip gradients, look at "
                "the module named in the warnings, and go on from the last good checkpoint"
            )

    def state_dict(self) -> dict[str, float]:
        return {"scale": self.scale}

    def load_state_dict(self, state: dict[str, float]) -> None:
        for key, value in state.items():
            if hasattr(self, key):
                setattr(self, key, type(getattr(self, key))(value))


class DynamicLossScaler(LossScaler):
    """Halves at overflow, doubles after clean updates; a budget (`hysteresis`) of overflows is forgiven first.

    Args:
        scale: the first scale, usually a power of two.
        window: clean updates between doublings.
        hysteresis: the overflow that halves: 2 forgives one. Restored at a doubling, or by any clean update with `consecutive`.
        minimum: never below; an overflow that would have to go below ends training.
    """

    def __init__(
        self,
        scale: float = 2.0**16,
        window: int = 1000,
        hysteresis: int = 2,
        consecutive: bool = False,
        minimum: float = 1.0,
    ) -> None:
        super().__init__(scale)
        self.window, self.hysteresis, self.consecutive, self.minimum = window, hysteresis, consecutive, minimum
        self.left = hysteresis
        self.iteration = 0
        self.last_overflow = -1

    def update(self, *, overflow: bool) -> None:
        """Raises:
        InputError: an overflow at the minimum scale.
        """
        if overflow:
            self._shrink()
            self.last_overflow = self.iteration
        else:
            self._grow()
        self.iteration += 1

    def _shrink(self) -> None:
        self.skipped += 1
        if self.hysteresis > 1 and self.left > 1:
            self.left -= 1
            return
        if self.scale <= self.minimum:
            raise InputError(
                f"gradients overflow at the smallest loss scale, {self.scale:g} ({self.skipped} skipped updates in a row): a "
                "smaller scale cannot help, so the loss itself is not finite or too large for half precision; use bf16, lower "
                "the learning rate, or look at the module named in the warnings"
            )
        self.scale = max(self.scale / 2, self.minimum)

    def _grow(self) -> None:
        self.skipped = 0
        if self.consecutive:
            self.left = self.hysteresis
        clean = self.iteration - self.last_overflow - 1  # clean updates before this one
        if clean > 0 and clean % self.window == 0:
            self.left = self.hysteresis
            self.scale *= 2

    def state_dict(self) -> dict[str, float]:
        return {
            "scale": self.scale, "left": self.left, "iteration": self.iteration, "last_overflow": self.last_overflow
        }  # fmt: skip
