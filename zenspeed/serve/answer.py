"""The text of an answer while it is written: whole characters, nothing from a stop string on, logarithms beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from zenspeed.serve.batching import Reason, Token
from zenspeed.text.tokenizer import Tokenizer


class Answer:
    """Collects the tokens of one answer and gives out events of text.

    Args:
        give: gets `{"event": "text", …}` for each new piece, and `{"event": "end", …}` once.
        stop: strings before which the text ends.
    """

    def __init__(self, tokenizer: Tokenizer, give: Callable[[dict[str, Any]], None], stop: Sequence[str]) -> None:
        self._tokenizer, self._stream, self._give, self._stop = tokenizer, tokenizer.stream(), give, stop
        self._held = ""
        self._logprobs: list[dict[str, Any]] = []
        self._tokens = 0
        self._stopped = False

    def token(self, token: Token) -> bool:
        """Takes a token; false when a stop string is complete."""
        self._tokens += 1
        if token.logprob is not None:
            top = [{"token": self._tokenizer.decode([i]), "logprob": round(p, 6)} for i, p in token.top]
            entry = {"token": self._tokenizer.decode([token.number]), "logprob": round(token.logprob, 6), "top": top}
            self._logprobs.append(entry)
        if token.number < self._tokenizer.vocab_size:  # a model may have more rows than its tokenizer has tokens
            self._held += self._stream.push(token.number)
        found = [place for place in (self._held.find(s) for s in self._stop) if place >= 0]
        if found:
            self._held, self._stopped = self._held[: min(found)], True
            return False
        keep = max(
            (n for s in self._stop for n in range(1, min(len(s), len(self._held) + 1)) if _ends(self._held, s, n)), default=0
        )
        self._send(self._held[: len(self._held) - keep])
        self._held = self._held[len(self._held) - keep :]
        return True

    def end(self, reason: Reason) -> None:
        rest = self._held if self._stopped else self._held + self._stream.flush()
        self._held = ""
        self._send(rest)
        self._give({"event": "end", "reason": reason, "tokens": self._tokens})

    def _send(self, text: str) -> None:
        if text or self._logprobs:
            event: dict[str, Any] = {"event": "text", "text": text}
            if self._logprobs:
                event["logprobs"], self._logprobs = self._logprobs, []
            self._give(event)


def _ends(text: str, stop: str, length: int) -> bool:
    return text.endswith(stop[:length])
