"""How likely each token of a prompt is after those before it: what `echo` with `logprobs` asks for.

The trained model reads the prompt in torch, whatever core writes answers; logits exist for a few tokens at a time.
"""

from __future__ import annotations

from typing import Any

import torch

from zenspeed.serve.opened import Opened

_TOKENS = 128  # whose logits exist at a time


@torch.inference_mode()
def score(opened: Opened, tokens: list[int], begin: int, top: int) -> dict[str, Any]:
    """`text` of a prompt, and its `entries`: token, logprob (None of the very first), and the `top` likeliest in its place.

    Args:
        tokens: the prompt, one or more. begin: how many of them were put before it, and are not part of it.
    """
    assert opened.tokenizer is not None
    model: Any = opened.model
    read = torch.tensor([tokens])
    decode, logits = opened.tokenizer.decode, getattr(model, "logits", None)
    hidden = model(read)[0] if logits is None else model.hidden_states(read)[0]  # of transformers: whole logits
    entries: list[dict[str, Any]] = []
    if begin == 0:
        entries.append({"token": decode(tokens[:1]), "logprob": None, "top": []})
    for start in range(max(begin, 1) - 1, len(tokens) - 1, _TOKENS):
        end = min(start + _TOKENS, len(tokens) - 1)
        logs = (hidden[start:end] if logits is None else logits(hidden[start:end])).float().log_softmax(-1)
        values = logs.gather(1, read[0, start + 1 : end + 1, None])[:, 0].tolist()
        likely, numbers = logs.topk(max(1, min(top, logs.shape[1])), dim=1)
        for token, value, p, n in zip(tokens[start + 1 : end + 1], values, likely.tolist(), numbers.tolist(), strict=True):
            best = [{"token": decode([i]), "logprob": round(x, 6)} for i, x in zip(n, p, strict=True)]
            entries.append({"token": decode([token]), "logprob": round(value, 6), "top": best[:top]})
    return {"text": decode(tokens[begin:]), "entries": entries}
