"""Which shares of which updates are free, out with a worker, or done. No I/O and no clock of its own: time is an argument."""

from __future__ import annotations

from typing import NamedTuple


class Share(NamedTuple):
    """Part `number` of update `clock`."""

    clock: int
    number: int


class Clocks:
    """Gives out shares, the oldest first.

    `version` counts the updates that are made. A share of `clock` is given out only while `clock - version <= staleness`, so
    no worker computes on weights that lack more than `staleness` earlier updates: one that would run further ahead waits
    (stale synchronous parallel, Ho et al. 2013). None: never waits.
    """

    def __init__(self, shares: int, staleness: int | None, first: int = 0) -> None:
        self.shares, self.staleness = shares, staleness
        self.version = first
        self.opened = first
        """Updates of which a share was given out: clocks below this one."""
        self.closed = False
        """No further update is begun; those that were begun are completed."""
        self._floor = first  # every clock below is done
        self._out: dict[Share, tuple[int, float]] = {}  # share -> worker, when it is overdue
        self._done: set[Share] = set()

    def take(self, worker: int, overdue_at: float, last: int | None = None) -> Share | None:
        """A share for `worker`; None: there is none now. `last`: how many updates there are to be in all."""
        end = self.opened if self.closed else self.opened + 1
        if self.staleness is not None:
            end = min(end, self.version + self.staleness + 1)
        end = end if last is None else min(end, last)
        for clock in range(self._floor, end):
            for number in range(self.shares):
                share = Share(clock, number)
                if share not in self._done and share not in self._out:
                    self._out[share] = worker, overdue_at
                    self.opened = max(self.opened, clock + 1)
                    return share
        return None

    def finish(self, share: Share) -> bool:
        """Marks a share as done, whoever brought it; False if it was done before or does not exist."""
        if share.clock < self._floor or share in self._done or not 0 <= share.number < self.shares:
            return False
        self._out.pop(share, None)
        self._done.add(share)
        self.opened = max(self.opened, share.clock + 1)
        while all(Share(self._floor, n) in self._done for n in range(self.shares)):
            self._done -= {Share(self._floor, n) for n in range(self.shares)}
            self._floor += 1
        return True

    def lost(self, worker: int) -> int:
        """Frees what `worker` had; how many shares."""
        mine = [share for share, (who, _) in self._out.items() if who == worker]
        for share in mine:
            del self._out[share]
        return len(mine)

    def overdue(self, now: float) -> list[tuple[Share, int]]:
        """Frees shares that did not come back in time, with the workers that had them."""
        late = [(share, who) for share, (who, at) in self._out.items() if at <= now]
        for share, _ in late:
            del self._out[share]
        return late

    def finished(self, last: int | None) -> bool:
        """All updates are made that will be: `last` of them, or all that were begun when closed."""
        if last is not None and self.version >= last:
            return True
        return self.closed and self.version >= self.opened
