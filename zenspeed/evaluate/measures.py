"""What a set of predictions is scored by, whatever it holds: figures with intervals, and measures that two systems share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from zenspeed.evaluate.calibration import calibration_figures
from zenspeed.evaluate.classify import confusion, label_figures, label_measures
from zenspeed.evaluate.correlation import number_figures, number_measures
from zenspeed.evaluate.curves import precision_area, roc_area
from zenspeed.evaluate.interval import Array, Figure, Figures, Measure, Undefined
from zenspeed.evaluate.predictions import Predictions
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
    for area, name, curve in ((roc_area, "roc_auc", "ROC"), (precision_area, "average_precision", "precision-recall")):
        found: Figures = {}
        for label in scores.labels:
            definition = f"area under the {curve} curve of {label!r} against the rest"
            found[f"{name}[{label}]"] = area(*scores.of(label), definition)
        figures[f"{name}_macro"] = _mean_area(found, f"mean over labels of the area under the {curve} curve against the rest")
        figures |= found
    return figures | calibration_figures(scores.values, scores.truth)


def _mean_area(areas: Figures, definition: str) -> Figure | Undefined:
    values = [figure.value for figure in areas.values() if isinstance(figure, Figure)]
    n = next(iter(areas.values())).n
    if not values:
        return Undefined(n, definition, "only one class occurs")
    return Figure(float(np.mean(values)), None, None, n, definition, "each label's area has its own")


def measures_of(
    predictions: Predictions, wanted: Sequence[str] | None = None, labels: Sequence[Any] | None = None
) -> dict[str, Measure]:
    """Measures that are functions of sums over rows, the one that a comparison is about first.

    Args:
        wanted: names of those to count; None: all. labels: of all systems; None: those that occur here.
    """
    truth, answers = predictions.column(predictions.truth), predictions.column("prediction")
    if predictions.kind == "texts":
        return written_measures(truth, answers, wanted)
    if predictions.kind == "numbers":
        found = number_measures(np.array(truth), np.array(answers))
        found = {"spearman": found.pop("spearman")} | found
    else:
        found = label_measures(truth, answers, labels)
    return {name: measure for name, measure in found.items() if wanted is None or name in wanted}
