"""From a folder and a sentence to a checked trace: encoders, decoders and encoder-decoders, each under its own head."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from zenspeed.config import InputError
from zenspeed.explain.trace import Memory, Trace, bodies, trace_body
from zenspeed.models.encoder_decoder import EncoderDecoder
from zenspeed.models.heads import EmbeddingHead, LabelHead, MaskedHead, SpanHead
from zenspeed.models.hf import load_huggingface
from zenspeed.models.transformer import Body, Transformer
from zenspeed.run import open_run
from zenspeed.text.tokenizer import Tokenizer

_BEST = 10
"""Likeliest tokens that are shown."""


class Opened(NamedTuple):
    """A Transformer of ours, with what it reads and what its labels are called."""

    model: nn.Module
    tokenizer: Tokenizer
    labels: list[str]


def open_model(folder: Path, checkpoint: str | None = None) -> Opened:
    """The model of a run's folder, or of one of Hugging Face layout.

    Raises:
        InputError: there is none, or it is no Transformer of ours.
    """
    if (folder / "config.json").exists():
        opened = Opened(load_huggingface(folder).model.eval(), Tokenizer.load(folder), [])
    else:
        run = open_run(folder, checkpoint)
        opened = Opened(run.model.eval(), run.tokenizer, list(run.recipe.task.labels or []))
    if not bodies(opened.model):
        raise InputError(f"{folder}: is no Transformer that zenspeed has itself; its inner numbers cannot be explained")
    return opened


def explain(opened: Opened, text: str, target: str | None = None) -> Trace:
    """Every number of `text` through a model.

    Args:
        target: what an encoder-decoder has written so far; default: nothing.

    Raises:
        InputError: the text is too long for the model, or a target is given to a model with one text.
        ArithmeticError: the numbers are not those of the model's own forward pass.
    """
    model, tokenizer, labels = opened
    if target is not None and not isinstance(model, EncoderDecoder):
        raise InputError("--target: is for an encoder-decoder; this model has one text")
    trace = Trace()
    with torch.no_grad(), _Watch(bodies(model)) as seen:
        if isinstance(model, EncoderDecoder):
            out, ours = _encoder_decoder(trace, model, tokenizer, text, target or "")
        else:
            out, ours = _one_body(trace, model, tokenizer, text, labels)
        for name, value in seen.values.items():
            trace.compare(name, _after(trace, name), value)
        trace.compare("output", ours, out)
    return trace


class _Watch:
    """What every block of a model puts out in its next forward pass, by the names of `trace`."""

    def __init__(self, parts: list[tuple[str, Body]]) -> None:
        self.parts = parts
        self.values: dict[str, Tensor] = {}

    def __enter__(self) -> _Watch:
        self.handles = [
            block.register_forward_hook(self._keep(f"{name} block {number}"))
            for name, body in self.parts
            for number, block in enumerate(body.blocks, 1)
        ]
        return self

    def _keep(self, name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
            self.values[name] = output[0]

        return hook

    def __exit__(self, *exception: object) -> None:
        for handle in self.handles:
            handle.remove()


def _after(trace: Trace, part: str) -> Tensor:
    """The last number table of a part: what the block puts out."""
    return next(step.value for step in reversed(trace.steps) if step.part == part)


def _frame(tokenizer: Tokenizer, text: str, causal: bool) -> tuple[Tensor, list[str]]:
    """Tokens as training puts them: [CLS] … [SEP], or behind the token that begins a document; and their names."""
    end = tokenizer.end_of_text
    begin, close = (end if t is None else t for t in (tokenizer.cls, tokenizer.sep))
    ids = [end, *tokenizer.encode(text)] if causal else [begin, *tokenizer.encode(text), close]
    names = [_name(tokenizer, i) for i in ids]
    return torch.tensor(ids), [f"{place} {name}" for place, name in enumerate(names)]


def _name(tokenizer: Tokenizer, token: int) -> str:
    return tokenizer.decode([token]).strip() or tokenizer.name(token)


def _check_length(tokens: Tensor, longest: int | None, what: str) -> None:
    if longest is not None and len(tokens) > longest:
        raise InputError(f"{what}: {len(tokens)} tokens, but the model has places for {longest}; give a shorter one")


def _one_body(trace: Trace, model: nn.Module, tokenizer: Tokenizer, text: str, labels: list[str]) -> tuple[Tensor, Tensor]:
    ((part, body),) = bodies(model)
    head = getattr(model, "head", None)
    causal = not isinstance(head, LabelHead | SpanHead | EmbeddingHead | MaskedHead)
    tokens, rows = _frame(tokenizer, text, causal)
    _check_length(tokens, body.config.context if body.position is not None else None, "the text")
    hidden = trace_body(trace, body, part, tokens, rows, body.embedding)
    out = model(tokens[None])[0]
    if isinstance(head, LabelHead):
        return out, _label(trace, head, hidden, labels)
    if isinstance(head, SpanHead):
        scores = hidden @ head.score.weight.double().T + head.score.bias.double()
        trace.add("head", "scores", "x W + b", scores, rows, ["start", "end"])
        trace.add("head", "probabilities", "softmax over the tokens", scores.softmax(0), rows, ["start", "end"])
        return out, scores
    if isinstance(head, EmbeddingHead):
        pooled = _pool(trace, hidden, head.pool)
        return out, trace.add("head", "of length 1", "x / |x|", pooled / pooled.norm(), ["text"])[0]
    if isinstance(head, MaskedHead):
        hidden = model.head._transform(hidden.float()).double()  # type: ignore[operator, union-attr]
        trace.add("head", "transformed", "norm(activation(x W + b))", hidden, rows)
        weight = body.embedding.weight if head.head is None else head.head.weight
        logits = hidden @ weight.double().T + head.bias.double()
    else:
        assert isinstance(model, Transformer)
        weight = model.head_weight
        logits = _capped(hidden @ weight.double().T, body.config.logit_softcap)
    _likeliest(trace, tokenizer, logits, rows)
    return out, logits


def _encoder_decoder(
    trace: Trace, model: EncoderDecoder, tokenizer: Tokenizer, text: str, target: str
) -> tuple[Tensor, Tensor]:
    end = tokenizer.end_of_text
    source = torch.tensor([*tokenizer.encode(text), end])
    written = torch.tensor([end, *tokenizer.encode(target)])
    longest = model.config.context if model.config.position == "learned" else None
    _check_length(source, longest, "the text")
    _check_length(written, longest, "--target")
    source_rows, rows = ([f"{p} {_name(tokenizer, int(i))}" for p, i in enumerate(t)] for t in (source, written))
    read = trace_body(trace, model.encoder, "encoder", source, source_rows, model.embedding)
    hidden = trace_body(trace, model.decoder, "decoder", written, rows, model.embedding, Memory(read, source_rows))
    out = model(written[None], source=source[None])[0]
    scaled = hidden * model.config.width**-0.5 if model.config.scale_logits else hidden
    logits = _capped(scaled @ model.head_weight.double().T, model.config.logit_softcap)
    _likeliest(trace, tokenizer, logits, rows)
    return out, logits


def _label(trace: Trace, head: LabelHead, hidden: Tensor, labels: list[str]) -> Tensor:
    x = _pool(trace, hidden, head.pool)
    if head.pooler is not None:
        x = torch.tanh(x @ head.pooler.weight.double().T + head.pooler.bias.double())
        trace.add("head", "pooler", "tanh(x W + b)", x, ["text"])
    scores = x @ head.score.weight.double().T
    scores = scores if head.score.bias is None else scores + head.score.bias.double()
    names = labels or [f"label {i}" for i in range(scores.shape[-1])]
    trace.add("head", "scores", "x W + b", scores, ["text"], names)
    trace.add("head", "probabilities", "softmax", scores.softmax(-1), ["text"], names)
    return scores[0]


def _pool(trace: Trace, hidden: Tensor, how: str) -> Tensor:
    pooled = hidden.mean(0) if how == "mean" else hidden[0 if how == "first" else -1]
    said = {"mean": "mean over the tokens", "first": "the first token", "last": "the last token"}[how]
    return trace.add("head", "the whole text", said, pooled[None], ["text"])


def _capped(logits: Tensor, cap: float | None) -> Tensor:
    return logits if cap is None else cap * torch.tanh(logits / cap)


def _likeliest(trace: Trace, tokenizer: Tokenizer, logits: Tensor, rows: list[str]) -> None:
    """Probabilities of what the last place likes best: what comes next, or what stands there."""
    best = logits[-1].topk(min(_BEST, logits.shape[-1])).indices
    names = [_name(tokenizer, int(i)) for i in best]
    trace.add("head", "logits of the likeliest", "x · E[token]", logits[:, best], rows, names)
    trace.add("head", "probabilities", "softmax over the whole vocabulary", logits.softmax(-1)[:, best], rows, names)
