"""What a set of predictions is scored by, whatever it holds: figures with intervals, and measures that two systems share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from zenspeed.evaluate.calibration import calibration_figures
from zenspeed.evaluate.classify import confusion, label_figures, label_measures
from zenspeed.evaluate.correlation import number_figures, number_measures
from zenspeed.evaluate.curves import average_precision, mean_area, precision_area, roc_area, roc_steps
from zenspeed.evaluate.interval import Array, Figure, Figures, Measure, Undefined
from zenspeed.evaluate.predictions import Predictions, ranks_of
from zenspeed.evaluate.ranking import ranking_figures, ranking_measures
from zenspeed.evaluate.written import written_figures, written_measures


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
    rows = predictions.rows
    if predictions.kind != "labels" or "scores" not in rows[0]:
        return None
    labels = list(rows[0]["scores"])
    if not all("scores" in row and row["scores"].keys() == rows[0]["scores"].keys() for row in rows):
        return None
    columns = [np.fromiter((row["scores"][label] for row in rows), np.float64, len(rows)) for label in labels]
    values = np.stack(columns, 1)
    number = {label: i for i, label in enumerate(labels)}
    return Scores(labels, values, np.fromiter((number[str(row["label"])] for row in rows), np.int64, len(rows)))


def figures_of(predictions: Predictions) -> Figures:
    """Figures by name, of labels, numbers or texts, as the rows hold them."""
    if predictions.kind == "ranks":
        return ranking_figures(ranks_of(predictions))
    truth, answers = predictions.column(predictions.truth), predictions.column("prediction")
    if predictions.kind == "texts":
        return written_figures(truth, answers)
    if predictions.kind == "numbers":
        return number_figures(np.array(truth), np.array(answers))
    figures = label_figures(confusion(truth, answers))
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
    if predictions.kind == "ranks":
        found = ranking_measures(ranks_of(predictions))
        return {name: measure for name, measure in found.items() if wanted is None or name in wanted}
    truth, answers = predictions.column(predictions.truth), predictions.column("prediction")
    if predictions.kind == "texts":
        return written_measures(truth, answers, wanted)
    if predictions.kind == "numbers":
        found = number_measures(np.array(truth), np.array(answers))
        found = {"spearman": found.pop("spearman")} | found
    else:
        found = label_measures(truth, answers, labels)
    return {name: measure for name, measure in found.items() if wanted is None or name in wanted}
