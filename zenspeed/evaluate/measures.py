"""What a set of predictions is scored by, whatever it holds: figures with intervals, and measures that two systems share."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from zenspeed.evaluate.calibration import calibration_figures
from zenspeed.evaluate.classify import confusion_of, label_figures, label_measures_of
from zenspeed.evaluate.correlation import number_figures, number_measures
from zenspeed.evaluate.curves import average_precision, mean_area, precision_area, roc_area, roc_steps
from zenspeed.evaluate.interval import Array, Figure, Figures, Measure, Undefined
from zenspeed.evaluate.predictions import Predictions
from zenspeed.evaluate.ranking import ranking_figures, ranking_measures
from zenspeed.evaluate.written import Pairs, figures_of_pairs, measures_of_pairs

_CHUNK_ROWS = 5_000
"""Texts that are held at a time."""


class Scores(NamedTuple):
    """Scores of all labels: `labels` K names as JSON has them, `values` (n, K), `truth` (n,) number of each row's label."""

    labels: list[str]
    values: Array
    truth: np.ndarray

    def of(self, label: str) -> tuple[np.ndarray, Array]:
        """Whether each row has the label, and its score for it."""
        k = self.labels.index(label)
        return self.truth == k, self.values[:, k]


def scores_of(predictions: Predictions) -> Scores | None:
    """The scores, if every row has them for the same labels."""
    if predictions.kind != "labels" or predictions.labels.scored is None:
        return None
    found = predictions.labels
    assert found.scored is not None
    number = {label: i for i, label in enumerate(found.scored)}
    of_name = np.array([number.get(str(name), -1) for name in found.names], np.int32)
    return Scores(found.scored, found.scores, of_name[found.truth])


def texts_of(predictions: Predictions) -> Pairs:
    """The answers and references of texts, which are read when they are counted."""

    def chunks() -> Iterator[tuple[list[list[str]], list[str]]]:
        rows = iter(predictions.rows)
        while some := list(itertools.islice(rows, _CHUNK_ROWS)):
            references = [row["reference"] for row in some]
            yield [[r] if isinstance(r, str) else r for r in references], [row["prediction"] for row in some]

    found = predictions.texts
    return Pairs(predictions.n, chunks, bool(found.chinese.any()), np.unique(found.references).tolist(), not found.filled.any())


def figures_of(predictions: Predictions) -> Figures:
    """Figures by name, of labels, numbers or texts, as the rows hold them."""
    if predictions.kind == "ranks":
        return ranking_figures(predictions.ranks)
    if predictions.kind == "texts":
        return figures_of_pairs(texts_of(predictions))
    if predictions.kind == "numbers":
        return number_figures(*predictions.numbers)
    figures = label_figures(confusion_of(*predictions.labels[:3]))
    scores = scores_of(predictions)
    return figures if scores is None else figures | score_figures(scores)


def score_figures(scores: Scores) -> Figures:
    """Areas under the curves of each label against the rest, their means over labels, and calibration."""
    figures: Figures = {}
    areas: tuple[tuple[Any, Any, str, str], ...] = (
        (roc_area, roc_steps, "roc_auc", "ROC"),
        (precision_area, average_precision, "average_precision", "precision-recall"),
    )
    for area, steps, name, curve in areas:
        found: Figures = {}
        for label in scores.labels:
            definition = f"area under the {curve} curve of {label!r} against the rest"
            found[f"{name}[{label}]"] = area(*scores.of(label), definition)
        definition = f"mean over labels of the area under the {curve} curve against the rest"
        figures[f"{name}_macro"] = _mean_area(scores, list(found.values()), steps, definition)
        figures |= found
    return figures | calibration_figures(scores.values, scores.truth)


def _mean_area(scores: Scores, areas: list[Figure | Undefined], steps: Any, definition: str) -> Figure | Undefined:
    """Over labels whose area is defined."""
    defined = [
        (scores.of(label), area.value) for label, area in zip(scores.labels, areas, strict=True) if isinstance(area, Figure)
    ]
    if not defined:
        return Undefined(areas[0].n, definition, "only one class occurs")
    return mean_area([of for of, _ in defined], steps, float(np.mean([value for _, value in defined])), definition)


def measures_of(
    predictions: Predictions, wanted: Sequence[str] | None = None, labels: Sequence[Any] | None = None
) -> dict[str, Measure]:
    """Measures that are functions of sums over rows, the one that a comparison is about first.

    Args:
        wanted: names of those to count; None: all. labels: of all systems; None: those that occur here.
    """
    if predictions.kind == "texts":
        return measures_of_pairs(texts_of(predictions), wanted)
    if predictions.kind == "ranks":
        found = ranking_measures(predictions.ranks)
    elif predictions.kind == "numbers":
        found = number_measures(*predictions.numbers, wanted)
        found = ({"spearman": found.pop("spearman")} if "spearman" in found else {}) | found
    else:
        names, truth, said = predictions.labels[:3]
        if labels is not None:
            number = {name: i for i, name in enumerate(labels)}
            place = np.array([number[name] for name in names], np.int32)
            truth, said = place[truth], place[said]
        found = label_measures_of(truth, said, len(names if labels is None else labels), wanted)
    return {name: measure for name, measure in found.items() if wanted is None or name in wanted}
