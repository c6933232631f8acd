"""The likeliest texts, by beam search: many inputs at once, with a length penalty, a minimum length and forbidden tokens.

    a beam        K unfinished texts of one input, the likeliest seen so far
    a step        every text by every token; of the 2 K likeliest, those that end are kept as finished if they are among the
                  first K, the next K that do not end are the new beam
    the score     of a finished text: Σ log p(token) / length ^ length_penalty, the length with the token that ends it
    an input ends when it has K finished texts and its likeliest unfinished one scores no better than the worst of them

The rules are those of `transformers`' beam search (early_stopping false), whose result it is compared with by a test; inputs
that have ended leave the batch. With one beam the first end is taken: greedy search.

Letters: B inputs, K beams, T tokens, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from zenspeed.config import InputError
from zenspeed.models.layers import KeyValueCache
from zenspeed.models.recurrent import RecurrentCache

NEVER = -1e9
"""Log probability of what must not be chosen; finite, so that sums of it stay ordered."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BeamOptions:
    max_tokens: int
    """Tokens of a text at most, the one that ends it included."""
    end: int
    """Token that ends a text."""
    beams: int = 4
    length_penalty: float = 1.0
    """Power of the length by which a sum of log probabilities is divided; above 0 favours long texts."""
    min_tokens: int = 0
    """Tokens before a text may end."""
    allowed: Tensor | None = None
    """(V,) or (B, V) bool: tokens that may be written; None: all."""

    def __post_init__(self) -> None:
        for name, least in (("beams", 1), ("max_tokens", 1), ("min_tokens", 0)):
            if getattr(self, name) < least:
                raise InputError(f"decode.{name}: {getattr(self, name)}; at least {least}")
        if self.min_tokens >= self.max_tokens:
            raise InputError(f"decode.min_tokens: {self.min_tokens} leaves no room in decode.max_tokens {self.max_tokens}")


class Hypothesis(NamedTuple):
    tokens: list[int]
    """Without the one that ends it."""
    score: float


@torch.inference_mode()
def beam_search(
    model: nn.Module, cache: KeyValueCache | RecurrentCache, tokens: Tensor, options: BeamOptions
) -> list[list[Hypothesis]]:
    """The finished texts of each input, best first, up to `options.beams`.

    Args:
        model: a decoder or encoder-decoder, in evaluation mode.
        cache: of its `new_cache`, for B rows, with room for T + `max_tokens` tokens; it is used up.
        tokens: (B, T) int64 that the texts begin with (a prompt, or the token that begins a target); not given back.
    """
    search = _Search(model, cache, tokens, options)
    while search.rows:
        search.step()
    return search.finished()


class _Search:
    """The state of a search; rows of inputs that have ended are taken out of it."""

    def __init__(self, model: nn.Module, cache: KeyValueCache | RecurrentCache, tokens: Tensor, options: BeamOptions) -> None:
        self.model: Any = model
        self.cache, self.options, self.device = cache, options, tokens.device
        count, beams = len(tokens), options.beams
        self.rows = list(range(count))
        """Inputs that are still searched."""
        self.found: list[list[Hypothesis]] = [[] for _ in range(count)]
        self.written = tokens.new_empty((count, beams, 0))  # (B, K, T)
        self.scores = torch.full((count, beams), NEVER, device=self.device)
        self.scores[:, 0] = 0  # at first all K are the same text, and only one of them counts
        logits = self._logits(tokens)
        self._reorder(torch.arange(count, device=self.device).repeat_interleave(beams), inside=False)
        self.logits = logits.repeat_interleave(beams, 0)  # (B · K, V) of the next token
        self.allowed = options.allowed if options.allowed is None or options.allowed.ndim == 1 else options.allowed.clone()

    def _logits(self, tokens: Tensor) -> Tensor:
        return self.model.logits(self.model.hidden_states(tokens, cache=self.cache)[:, -1]).float()

    def _reorder(self, rows: Tensor, *, inside: bool) -> None:
        """`inside`: beams change places with beams of their own input, which have read the same source."""
        memory = getattr(self.cache, "memory", None)
        if inside and memory is not None:
            assert isinstance(self.cache, KeyValueCache)
            self.cache.memory = None
            self.cache.select(rows)
            self.cache.memory = memory
        else:
            self.cache.select(rows)

    def step(self) -> None:
        """One more token for every beam."""
        options, (count, beams, length) = self.options, self.written.shape
        likely, beam, token = self._candidates()
        ends = token == options.end
        if length + 1 == options.max_tokens:
            ends = torch.ones_like(ends)
        self._finish(likely[:, :beams], beam[:, :beams], token[:, :beams], ends[:, :beams])
        # The next beam: the likeliest that go on. There are K of them, for at most K of the 2 K can end.
        scores, order = (likely + ends * NEVER).topk(beams, dim=1)
        beam, token = beam.gather(1, order), token.gather(1, order)
        written = self.written.gather(1, beam[:, :, None].expand(-1, -1, length))
        self.written, self.scores = torch.cat([written, token[:, :, None]], -1), scores
        keep = [i for i in range(count) if not self._ended(i)]
        self._advance(torch.tensor(keep, device=self.device, dtype=torch.int64), beam)

    def _candidates(self) -> tuple[Tensor, Tensor, Tensor]:
        """Log probability, beam and last token (B, 2 K each) of the likeliest continuations, in falling order."""
        options, (count, beams, length) = self.options, self.written.shape
        logs = self.logits.log_softmax(-1).view(count, beams, -1)
        if self.allowed is not None:
            allowed = self.allowed if self.allowed.ndim == 1 else self.allowed[:, None]
            logs = logs.masked_fill(~allowed, NEVER)
        if length < options.min_tokens:
            logs[:, :, options.end] = NEVER
        total = (logs + self.scores[:, :, None]).flatten(1)
        likely, index = total.topk(min(2 * beams, total.shape[1]), dim=1)
        return likely, index // logs.shape[-1], index % logs.shape[-1]

    def _finish(self, likely: Tensor, beam: Tensor, token: Tensor, ends: Tensor) -> None:
        """Takes up the texts (B, K) that end here, and keeps the best K of each input."""
        options, length = self.options, self.written.shape[2] + 1
        for i, k in ends.nonzero().tolist():
            if likely[i, k] <= NEVER / 2:
                continue
            text = [*self.written[i, beam[i, k]].tolist(), int(token[i, k])]
            if text[-1] == options.end:
                text.pop()
            found = self.found[self.rows[i]]
            found.append(Hypothesis(text, float(likely[i, k]) / length**options.length_penalty))
            found.sort(key=lambda hypothesis: -hypothesis.score)
            del found[options.beams :]

    def _ended(self, i: int) -> bool:
        options, length = self.options, self.written.shape[2]
        found = self.found[self.rows[i]]
        if length == options.max_tokens or (options.beams == 1 and found):
            return True
        best = float(self.scores[i, 0]) / length**options.length_penalty
        return len(found) == options.beams and best <= found[-1].score

    def _advance(self, keep: Tensor, beam: Tensor) -> None:
        """Goes on with the inputs `keep`: their beams in the new order, and logits of what follows."""
        beams = beam.shape[1]
        if len(keep) < len(beam):
            self.rows = [self.rows[i] for i in keep.tolist()]
            self.written, self.scores = self.written[keep], self.scores[keep]
            if self.allowed is not None and self.allowed.ndim == 2:
                self.allowed = self.allowed[keep]
        if not self.rows:
            return
        self._reorder((keep[:, None] * beams + beam[keep]).flatten(), inside=len(keep) == len(beam))
        self.logits = self._logits(self.written[:, :, -1].reshape(-1, 1))

    def finished(self) -> list[list[Hypothesis]]:
        return self.found
