"""Who is asked to stop: by a signal, or by the death of the launcher."""

from __future__ import annotations

import os
import signal

import pytest

from zenspeed.pace import Interrupt


def test_a_signal_asks_once_and_interrupts_twice() -> None:
    with Interrupt() as interrupt:
        assert not interrupt.asked
        signal.raise_signal(signal.SIGTERM)
        assert interrupt.asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("launched", [True, False])
def test_a_rank_ends_without_its_launcher_and_a_single_run_does_not(launched: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if launched:
        monkeypatch.setenv("LOCAL_RANK", "0")
    else:
        monkeypatch.delenv("LOCAL_RANK", raising=False)
    with Interrupt() as interrupt:
        assert not interrupt.asked
        monkeypatch.setattr(os, "getppid", lambda: 1)
        assert interrupt.asked is launched
