"""Text out of a model: one token at a time, with the keys and values of earlier tokens kept.

    prompt ─ prefill: one forward over the whole prompt ─ logits ─ sample ─ token ─ forward of that token ─ logits …

A model with rotary positions goes on for ever, each token attending to the last `context` tokens; one with learned positions
has none for token `context` + 1, so that a request which would need it is refused before it starts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from zenspeed.config import InputError
from zenspeed.models.layers import KeyValueCache
from zenspeed.models.transformer import Transformer


class Tokenizer(Protocol):
    """What is needed of a tokenizer."""

    @property
    def end_of_text(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    def encode(self, text: str) -> list[int]: ...
    def decode(self, tokens: list[int]) -> str: ...


def generate(
    model: Transformer,
    tokens: list[int],
    *,
    max_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    stop_tokens: Sequence[int] = (),
) -> Iterator[int]:
    """Continues `tokens` by up to `max_tokens` tokens; a token of `stop_tokens` ends it and is not given out.

    Args:
        temperature: divides the logits; 0 takes the likeliest token each time.
        top_k: draws among the k likeliest. top_p: among the fewest likeliest whose probabilities add up to p; after top_k.
        seed: the same seed gives the same tokens on the same machine, in whatever steps the iterator is read.

    Raises:
        InputError: at the call, not at the first token: a value out of its range, or a prompt that does not fit.
    """
    _check(model, tokens, max_tokens, temperature, top_k, top_p)
    return _generate(model, list(tokens), max_tokens, temperature, top_k, top_p, seed, frozenset(stop_tokens))


def generate_text(
    model: Transformer,
    tokenizer: Tokenizer,
    prompt: str | list[int],
    *,
    max_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    stop: Sequence[str] = (),
) -> Iterator[str]:
    """Continues `prompt`, in pieces as they come: whole characters only, and nothing from a string of `stop` onward.

    A text is put behind end_of_text, as every training document is; tokens, as of a chat, stand as they are. end_of_text ends
    the continuation.
    Other arguments and errors are those of `generate`.
    """
    if any(not s for s in stop):
        raise InputError("stop: an empty string would stop before the first character; take it away")
    if tokenizer.vocab_size > model.vocab_size:
        raise InputError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model {model.vocab_size}; use the tokenizer of its training"
        )
    tokens = [tokenizer.end_of_text, *tokenizer.encode(prompt)] if isinstance(prompt, str) else prompt
    stream = generate(
        model, tokens, max_tokens=max_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed,
        stop_tokens=(tokenizer.end_of_text,),
    )  # fmt: skip
    return _cut_at(stop, _decode(tokenizer, stream))


def sample(logits: Tensor, temperature: float, top_k: int | None, top_p: float | None, generator: torch.Generator) -> int:
    """One token drawn from `logits` (V,). `generator` is the CPU's."""
    logits = logits.float().cpu()
    if temperature == 0:
        return int(logits.argmax())
    logits = logits / temperature
    if top_k is not None and top_k < len(logits):
        logits = logits.masked_fill(logits < logits.topk(top_k).values[-1], -torch.inf)
    probabilities = logits.softmax(dim=0)
    if top_p is not None and top_p < 1:
        ordered, order = probabilities.sort(descending=True, stable=True)
        # A token stays while those before it do not yet reach p; the likeliest always stays.
        ordered[1:][ordered.cumsum(0)[:-1] >= top_p] = 0
        probabilities = torch.zeros_like(probabilities).scatter_(0, order, ordered)
    return int(torch.multinomial(probabilities, 1, generator=generator))


def _check(
    model: Transformer, tokens: list[int], max_tokens: int, temperature: float, top_k: int | None, top_p: float | None
) -> None:
    context = model.config.context
    if not tokens:
        raise InputError("the prompt has no tokens; start from the end_of_text token")
    if not 0 <= min(tokens) <= max(tokens) < model.vocab_size:
        raise InputError(f"token {max(tokens) if min(tokens) >= 0 else min(tokens)} is not in 0 … {model.vocab_size - 1}")
    if len(tokens) > context:
        raise InputError(
            f"the prompt has {len(tokens)} tokens, the model's context {context}; shorten it by {len(tokens) - context}"
        )
    if max_tokens < 1:
        raise InputError(f"max_tokens {max_tokens}: at least 1")
    if model.config.position == "learned" and len(tokens) + max_tokens > context + 1:  # the last token is never read
        raise InputError(
            f"{len(tokens)} tokens of prompt + max_tokens {max_tokens} = {len(tokens) + max_tokens}, and this model has "
            f"learned positions for {context}; take max_tokens {context + 1 - len(tokens)} or less"
        )
    if not 0 <= temperature < float("inf"):
        raise InputError(f"temperature {temperature}: 0 (the likeliest token) or a positive number")
    if top_k is not None and top_k < 1:
        raise InputError(f"top_k {top_k}: at least 1")
    if top_p is not None and not 0 < top_p <= 1:
        raise InputError(f"top_p {top_p}: above 0, at most 1")


def _generate(
    model: Transformer,
    tokens: list[int],
    max_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    seed: int,
    stop_tokens: frozenset[int],
) -> Iterator[int]:
    generator = torch.Generator().manual_seed(seed)
    cache = model.new_cache(1, min(model.config.context, len(tokens) + max_tokens))
    logits = _next_logits(model, tokens, cache)
    for count in range(1, max_tokens + 1):
        token = sample(logits, temperature, top_k, top_p, generator)
        if token in stop_tokens:
            return
        yield token
        if count < max_tokens:
            logits = _next_logits(model, [token], cache)


@torch.inference_mode()
def _next_logits(model: Transformer, tokens: list[int], cache: KeyValueCache) -> Tensor:
    """Logits (V,) of the token that follows `tokens`, which are appended to the cache."""
    training = model.training
    if training:
        model.eval()
    try:
        batch = torch.tensor([tokens], device=model.embedding.weight.device)
        return model.logits(model.hidden_states(batch, cache=cache)[0, -1])
    finally:
        if training:
            model.train()


def _decode(tokenizer: Tokenizer, tokens: Iterator[int]) -> Iterator[str]:
    """Text of a stream of tokens. A character may take several tokens, so text is held back while it ends in U+FFFD.

    Decodes only from the last piece on: a decoder may treat the first token of a text differently (a leading space).
    """
    seen: list[int] = []
    start = done = 0  # seen[start:done] is given out already and decoded again as the left context
    for token in tokens:
        seen.append(token)
        before, now = tokenizer.decode(seen[start:done]), tokenizer.decode(seen[start:])
        if len(now) > len(before) and not now.endswith("�"):
            yield now[len(before) :]
            start, done = done, len(seen)
    rest = tokenizer.decode(seen[start:])[len(tokenizer.decode(seen[start:done])) :]
    if rest:
        yield rest


def _cut_at(stop: Sequence[str], pieces: Iterator[str]) -> Iterator[str]:
    """The pieces up to the first string of `stop`. What may be the beginning of one is held back until it is clear."""
    held = ""
    for piece in pieces:
        held += piece
        found = [place for place in (held.find(s) for s in stop) if place >= 0]
        if found:
            if min(found):
                yield held[: min(found)]
            return
        keep = max((n for s in stop for n in range(1, min(len(s), len(held) + 1)) if held.endswith(s[:n])), default=0)
        if len(held) > keep:
            yield held[: len(held) - keep]
            held = held[len(held) - keep :]
    if held:
        yield held
