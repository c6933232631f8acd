"""What a person sees while a run goes on: one live line on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console

PLAIN_SECONDS = 5.0


class Display:
    """Prints for rank 0 only; `enabled=False` is silent."""

    def __init__(self, *, enabled: bool = True) -> None:
        self.console = Console(highlight=False, soft_wrap=True, quiet=not enabled, file=sys.stdout)
        self._live: Any = None
        self._last_plain = -PLAIN_SECONDS

    def say(self, message: str) -> None:
        self.console.print(message, markup=False)

    def progress(self, status: Mapping[str, Any]) -> None:
        """Shows how a run stands: redraws the live line, or prints it if the last plain one is some seconds old."""
        line = progress_line(status, compact=self.console.is_terminal and self.console.width < 120)
        if not self.console.is_terminal:
            if time.monotonic() - self._last_plain >= PLAIN_SECONDS:
                self._last_plain = time.monotonic()
                self.say(line)
            return
        if self._live is None:
            from rich.live import Live

            self._live = Live(console=self.console, refresh_per_second=8, transient=True)
            self._live.start()
        self._live.update(line)

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


def progress_line(status: Mapping[str, Any], *, compact: bool = False) -> str:
    """One line; `compact` fits a terminal of 80 columns."""
    validation = status.get("validation_loss")
    if compact:
        parts = [
            f"{status['step']}" + (f"/{status['steps']}" if status.get("steps") else ""),
            f"{100 * status['progress']:.0f}%",
            f"loss {status['loss']:.3f}",
            f"val {validation:.3f}" if validation is not None else "",
            f"lr {status['lr']:.0e}",
            f"{status['tokens_per_second'] / 1000:.0f}k tok/s",
            f"MFU {100 * status['mfu']:.0f}%",
            f"{status['memory_bytes'] / 2**30:.1f}G",
            f"{_duration(status['seconds_left'])} left",
        ]
        return " ".join(filter(None, parts))
    parts = [
        f"step {status['step']}" + (f"/{status['steps']}" if status.get("steps") else ""),
        f"{100 * status['progress']:3.0f} %",
        f"loss {status['loss']:.4f}",
        f"val {validation:.4f}" if validation is not None else "",
        f"lr {status['lr']:.2e}",
        f"{status['tokens_per_second']:,.0f} tok/s",
        f"MFU {100 * status['mfu']:.0f} %",
        f"{status['memory_bytes'] / 2**30:.2f} GiB",
        f"{_duration(status['seconds_left'])} left",
    ]
    return " · ".join(filter(None, parts))


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}" if minutes >= 60 else f"{minutes}:{seconds:02d}"
