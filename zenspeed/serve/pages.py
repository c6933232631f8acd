"""Pages of keys and values: who has which, and which hold a beginning that another prompt shares.

A page is 16 tokens of a sequence. It is known by all tokens up to its end, and keeps its content when its sequence ends, until
the room is needed. A prompt that begins with the same tokens takes the page instead of computing it again. The content is the
same bit for bit however it was computed (kernel.cpp), so that a reused page never changes an answer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

PAGE = 16
"""Tokens of a page."""


class PagePool:
    """`count` pages, handed out by number."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = list(range(count - 1, -1, -1))
        self._users = [0] * count
        self._known: dict[bytes, int] = {}
        self._name: list[bytes | None] = [None] * count
        self._idle: OrderedDict[int, None] = OrderedDict()
        """Pages with a name and without a user, the longest unused first."""

    @property
    def available(self) -> int:
        """Pages that can be had now."""
        return len(self._free) + len(self._idle)

    def find(self, tokens: Sequence[int]) -> tuple[list[int], list[bytes]]:
        """Pages that hold the beginning of `tokens`, all but the last at most, and the names of all whole pages of it."""
        names = page_names(tokens)
        found = []
        for name in names[: (len(tokens) - 1) // PAGE]:
            if name not in self._known:
                break
            found.append(self._known[name])
        return found, names

    def take(self, shared: Sequence[int], new: int) -> list[int] | None:
        """`shared` and `new` fresh pages; None if there is no room, and then nothing is taken."""
        if new > self.available - sum(page in self._idle for page in shared):
            return None
        for page in shared:
            self._users[page] += 1
            self._idle.pop(page, None)
        fresh = [self._fresh() for _ in range(new)]
        for page in fresh:
            self._users[page] = 1
        return [*shared, *fresh]

    def name(self, page: int, name: bytes) -> None:
        """`page` is full, and from now on found by its name."""
        if name not in self._known:
            self._known[name], self._name[page] = page, name

    def give_back(self, pages: Sequence[int]) -> None:
        for page in reversed(pages):  # so that the end of a text is forgotten before its beginning
            self._users[page] -= 1
            if self._users[page] == 0:
                if self._name[page] is None:
                    self._free.append(page)
                else:
                    self._idle[page] = None

    def _fresh(self) -> int:
        if self._free:
            return self._free.pop()
        page, _ = self._idle.popitem(last=False)
        name, self._name[page] = self._name[page], None
        assert name is not None
        del self._known[name]
        return page


def page_names(tokens: Sequence[int]) -> list[bytes]:
    """The name of each whole page of `tokens`: a hash of all tokens up to its end."""
    content = np.asarray(tokens, dtype="<u4").tobytes()
    names, last, size = [], b"", 4 * PAGE
    for start in range(0, len(content) - size + 1, size):
        last = blake2b(last + content[start : start + size], digest_size=16).digest()
        names.append(last)
    return names
