"""The labels of a classification: found in the training rows or given, and checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from zenspeed.config import InputError, nearest

MOST_LABELS = 1000
MOST_FRACTIONS = 20
"""Different numbers with fractions, above which they measure something: ratings from 1 to 5 by halves are labels."""


def labels_of(texts: Sequence[str], wanted: list[str] | None, column: str) -> list[str]:
    """The labels among `texts`, the column of all training rows, sorted; or those the recipe names.

    Raises:
        InputError: there is one only, they are no labels, or one of them is not among `wanted`.
    """
    counts = Counter(texts)
    if wanted is not None:
        check_known(texts, wanted, column, "the training rows", "task.labels")
        return wanted
    if len(counts) == 1:
        raise InputError(f"task.label: column {column!r} holds one label only, {texts[0]!r}; there is nothing to tell apart")
    if len(counts) > MOST_LABELS or (len(texts) >= 20 and len(counts) > len(texts) / 2):
        raise InputError(
            f"task.label: column {column!r} holds {len(counts):,} different values in {len(texts):,} rows ({_some(counts)}), "
            "which are no labels; name the column that holds them"
        )
    if len(counts) > MOST_FRACTIONS and all(map(_is_number, counts)) and not all(float(t).is_integer() for t in counts):
        raise InputError(
            f"task.label: column {column!r} holds measured numbers ({_some(counts)}), {len(counts):,} different ones, and no "
            "labels; make classes of them first, such as negative below 0 and positive above"
        )
    return sorted(counts, key=float) if all(map(_is_number, counts)) else sorted(counts)


def _some(counts: Counter[str]) -> str:
    return ", ".join(repr(t if len(t) <= 30 else f"{t[:30]}…") for t in list(counts)[:3]) + ", …"


def check_known(
    texts: Sequence[str], labels: Sequence[str], column: str, split: str, source: str = "the training rows"
) -> None:
    """Raises InputError where a text is not one of `labels`."""
    known = set(labels)
    for number, text in enumerate(texts, 1):
        if text not in known:
            raise InputError(
                f"task.label: {text!r} in column {column!r} of {split} (row {number}) is not a label of {source}"
                f"{nearest(text, labels)} (labels: {', '.join(labels[:20])})"
            )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
