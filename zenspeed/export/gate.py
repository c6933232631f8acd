"""The gate: an exported file is only kept when its own runtime answers as the trainer's model does.

Logits within a tolerance, greedy tokens and labels equal. Where a text differs, the first place is named. A quantized file
cannot be equal: what it costs is measured on the same texts, paired, and shown with its interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from zenspeed.config import InputError
from zenspeed.evaluate.interval import Figure, ratio_interval
from zenspeed.export.probe import PROBES, Probe, loss_of
from zenspeed.export.runtimes import Own, Runtime

TOLERANCE = 1e-3
"""Largest difference of a logit, as a share of the largest logit of the text."""
GREEDY = 16
"""Tokens that are generated after the first half of a probe, or from its source."""


def check(own: Own, other: Runtime, probes: Sequence[Probe], context: int, generates: bool) -> dict[str, Any]:
    """The outcome, as it is written beside the file.

    Raises:
        InputError: an answer differs; the probe, the first token, and the first layer where the runtime shows it, are named.
    """
    worst = 0.0
    for number, probe in enumerate(probes[:PROBES]):
        wanted, found = own.output(probe), other.output(probe)
        if wanted.shape != found.shape:
            raise InputError(f"export: not kept: probe {number} gives shape {found.shape}, the trained model {wanted.shape}")
        scale = max(1.0, float(np.abs(wanted).max()))
        difference = np.abs(found - wanted) / scale
        worst = max(worst, float(np.nan_to_num(difference, nan=np.inf).max()))
        if not difference.max() <= TOLERANCE:
            layer = other.first_layer(own, probe, TOLERANCE)
            raise InputError(f"export: not kept: {_first(number, probe, difference)}" + (f"; first {layer}" if layer else ""))
        if probe.target is not None and wanted.argmax() != found.argmax():
            raise InputError(
                f"export: not kept: probe {number} gets label {found.argmax()}, the trained model {wanted.argmax()}"
            )
    tokens = _greedy(own, other, probes, context) if generates else 0
    return {
        "probes": min(len(probes), PROBES),
        "tolerance": TOLERANCE,
        "largest_difference": worst,
        "greedy_tokens_equal": tokens,
    }


def _greedy(own: Runtime, other: Runtime, probes: Sequence[Probe], context: int) -> int:
    """How many generated tokens were compared, all of them equal."""
    count = 0
    for number, probe in enumerate(probes[:PROBES]):
        num = min(GREEDY, context // 2)
        length = 1 if probe.source is not None else min(max(1, len(probe.tokens) // 2), context - num)
        prompt = probe._replace(tokens=probe.tokens[:length])
        wanted, found = own.greedy(prompt, num), other.greedy(prompt, num)
        if wanted != found:
            place = next(i for i, (a, b) in enumerate(zip(wanted, found, strict=True)) if a != b)
            raise InputError(
                f"export: not kept: probe {number}: generated token {place} is {found[place]}, "
                f"the trained model's is {wanted[place]}"
            )
        count += num
    return count


def _first(number: int, probe: Probe, difference: np.ndarray) -> str:
    over = ~(difference <= TOLERANCE)
    size = f"logits differ by {float(np.nan_to_num(difference, nan=np.inf).max()):.2g} of the largest, allowed is {TOLERANCE:g}"
    if difference.ndim == 1:
        return f"probe {number}: {size}"
    place = int(over.any(axis=1).argmax())
    return f"probe {number}, first at token {place} ({probe.tokens[place]}): {size}"


def cost(own: Runtime, other: Runtime, probes: Sequence[Probe]) -> dict[str, Figure]:
    """Loss of the trained model, of the quantized one, and the difference, each with its interval over texts.

    Raises:
        InputError: the quantized model gives what is no number.
    """
    ours, theirs, targets, same = [], [], [], []
    for number, probe in enumerate(probes):
        wanted, found = own.output(probe), other.output(probe)
        if not np.isfinite(found).all():
            raise InputError(f"export: not kept: the quantized model's answer to probe {number} is not finite")
        loss, count = loss_of(probe, wanted)
        ours.append(loss)
        theirs.append(loss_of(probe, found)[0])
        targets.append(count)
        same.append(float((wanted.argmax(-1) == found.argmax(-1)).mean()))
    a, b, n = np.array(ours), np.array(theirs), np.array(targets, np.float64)
    unit = "label" if probes[0].target is not None else "token"
    return {
        "loss": ratio_interval(a, n, f"of the trained model, nats a {unit}"),
        "quantized_loss": ratio_interval(b, n, f"of the quantized model, nats a {unit}"),
        "difference": ratio_interval(b - a, n, f"quantized − trained, the same texts, nats a {unit}"),
        "same_answer": ratio_interval(np.array(same), np.ones(len(same)), "share of likeliest answers that are equal"),
    }
