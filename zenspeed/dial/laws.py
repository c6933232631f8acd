"""What a run comes to, and what suits it, by laws fitted on the small runs of benchmarks/results/dial_fit.jsonl (docs/LOG.md).

    bits per byte / Y = E + A · (N / 10⁶)^-α + B · (D / 10⁶)^-β          the form of Hoffmann et al. 2203.15556

N weights of the blocks; D bytes of text seen, of which those seen again count less (Muennighoff et al. 2305.16264, equation 5):
D = U + U · r · (1 − exp(−(epochs − 1) / r)) with U bytes of different text. Y is the text's entropy of a byte after the three
before it, which takes most of the difference between languages out: the two texts of the fit differ by 1.09 in it and by 1.11
in what models reach. Choices depend on the law's slopes; its level is for what is said beforehand.

A, B, E and β are fitted to five runs of one reading or two (error 0.007 bits per byte at most); α and r are not to be told
from so few and are set. r is lower than published: texts of a few megabytes are not read as often with profit.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

SAMPLE_BYTES = 500_000


class Law(NamedTuple):
    """Constants of the law above."""

    floor: float
    by_weights: float
    weights_power: float
    by_bytes: float
    bytes_power: float
    repeats: float
    """r: about so many further readings of the text pay."""

    def ratio(self, block_weights: float, seen: float, different: float) -> float:
        """Bits per byte over Y, of a model of `block_weights` after `seen` bytes, of which `different` are not a repetition."""
        effective = effective_bytes(seen, different, self.repeats)
        weights, text = (block_weights / 1e6) ** -self.weights_power, (effective / 1e6) ** -self.bytes_power
        return self.floor + self.by_weights * weights + self.by_bytes * text


LAW = Law(floor=0.601, by_weights=0.106, weights_power=0.2, by_bytes=0.449, bytes_power=0.282, repeats=1.0)
FITTED_WEIGHTS = (2e5, 7e6)
"""Where the law holds or nearly: runs of 0.8 to 3.1 million weights."""
FITTED_BYTES = (4e5, 2e7)


def effective_bytes(seen: float, different: float, repeats: float) -> float:
    """Bytes of new text that are worth as much as `seen` bytes of a text of `different` bytes."""
    if seen <= different:
        return seen
    return different * (1 + repeats * (1 - math.exp(-(seen / different - 1) / repeats)))


def byte_entropy(text: bytes) -> float:
    """Bits of a byte of `text` when the three before it are known, by counting in up to half a megabyte."""
    sample = np.frombuffer(text[:SAMPLE_BYTES], np.uint8).astype(np.uint32)
    if len(sample) < 5:
        return 1.0
    three = (sample[:-3] << 16) | (sample[1:-2] << 8) | sample[2:-1]
    return _entropy((three << 8) | sample[3:]) - _entropy(three)


def _entropy(values: np.ndarray) -> float:
    counts = np.unique(values, return_counts=True)[1] / len(values)
    return float(-(counts * np.log2(counts)).sum())


def vocabulary(text_bytes: float, seconds: float, wide: bool) -> int:
    """Tokens: few for a small text and a short time, in which many would stay unseen.

    Args:
        wide: characters are mostly of several bytes, as in Chinese: there are then more of them, each with more to say.
    """
    reach = math.sqrt(text_bytes / 1e6 * seconds)
    size = next((size for most, size in ((3, 512), (300, 1024), (3000, 4096)) if reach <= most), 16_384)
    return size * 2 if wide else size


def batch_tokens(tokens: float) -> int:
    """Tokens of an update in a run of `tokens`: with their root (noise of the gradient matters less early), a power of two."""
    return 2 ** max(10, min(17, round(math.log2(1024 * math.sqrt(max(1.0, tokens / 1e6))))))


def dropout(epochs: float) -> float:
    """Grows with the logarithm of how often a text is read: none for the first time."""
    return round(min(0.3, 0.1 * math.log2(max(1.0, epochs))), 2)
