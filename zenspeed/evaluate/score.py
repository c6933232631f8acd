"""One evaluation as a mapping for JSON: figures over all rows and by slice, curves, mistakes, and warnings.

The same for a file of predictions and for what a model has just said; docs/evaluation.md says what each key holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from zenspeed.errors import InputError
from zenspeed.evaluate.calibration import reliability
from zenspeed.evaluate.classify import confusion_of
from zenspeed.evaluate.curves import choose_threshold, precision_recall_points, roc_points, wanted
from zenspeed.evaluate.fairness import gaps_of
from zenspeed.evaluate.interval import RESAMPLES, SEED, Figure, Figures, Undefined
from zenspeed.evaluate.measures import figures_of, scores_of
from zenspeed.evaluate.mistakes import confused_pairs, contradictions, mistakes_of
from zenspeed.evaluate.predictions import Predictions, read_predictions
from zenspeed.evaluate.slices import Slice, slices_of

SCHEMA = "zenspeed.evaluation"
VERSION = 1
_FEW = 100
_FEW_OF_LABEL = 30
_WIDE = 0.2
_MOST_CURVES = 20
_SHARES = ("accuracy", "exact_match")


class Options(NamedTuple):
    """What is looked at beside the figures over all rows."""

    slices: Sequence[str] = ()
    """Rules, as `slices_of` reads them."""
    protected: Sequence[str] = ()
    """Columns whose groups are to be treated alike."""
    thresholds: Sequence[str] = ()
    """`precision=0.9` or `recall=0.95`: the threshold of each label that reaches it."""
    mistakes: int = 20


NOTHING_MORE = Options()


def score_file(path: Path, options: Options = NOTHING_MORE) -> dict[str, Any]:
    """The evaluation of a file of predictions."""
    return evaluation(read_predictions(path), options)


def evaluation(
    predictions: Predictions,
    options: Options,
    score: Callable[[Predictions], Figures] = figures_of,
    known: Mapping[str, Figure | Undefined] | None = None,
) -> dict[str, Any]:
    """The evaluation of rows with answers.

    Args:
        score: figures of all rows or of some. known: figures over all rows that the rows do not hold, such as a model's loss.
    """
    parts = slices_of(predictions.rows, options.slices)
    figures: Figures = {**(known or {}), **score(predictions)}
    tables = [table_of(figures)]
    tables += [table_of(score(predictions.take(part.rows)), part.name, part.value) for part in parts]
    found: dict[str, Any] = {
        "schema": SCHEMA,
        "version": VERSION,
        "source": str(predictions.path),
        "kind": predictions.kind,
        "n": predictions.n,
        "resamples": RESAMPLES,
        "seed": SEED,
        "figures": [figure for table in tables for figure in table],
    }
    if predictions.kind == "labels":
        found |= _of_labels(predictions, options)
    elif options.protected or options.thresholds:
        raise InputError(f"--protected, --threshold: are for labels; these predictions are {predictions.kind}")
    if predictions.kind != "other" and options.mistakes:
        found["mistakes"] = mistakes_of(predictions, options.mistakes)
    found["warnings"] = _warnings(figures, predictions.n, parts, found)
    return found


def table_of(figures: Mapping[str, Figure | Undefined], slice_: str = "all", value: str = "") -> list[dict[str, Any]]:
    """Figures as rows of a table that pandas reads."""
    where = {"slice": slice_, "value_of_slice": value}
    empty = {"value": None, "low": None, "high": None, "p": None}
    return [{"name": k, **where, **empty, **f._asdict()} for k, f in figures.items()]


def _of_labels(predictions: Predictions, options: Options) -> dict[str, Any]:
    names, truth, said = predictions.labels[:3]
    matrix = confusion_of(names, truth, said)
    found: dict[str, Any] = {"confusion": {"labels": matrix.labels, "counts": matrix.counts.tolist()}}
    scores = scores_of(predictions)
    if scores is not None:
        two = [label for label in scores.labels if scores.of(label)[0].any() and not scores.of(label)[0].all()]
        found["curves"] = {
            label: {
                "roc": roc_points(*scores.of(label)),
                "precision_recall": precision_recall_points(*scores.of(label)),
            }
            for label in two[:_MOST_CURVES]
        }
        found["reliability"] = reliability(scores.values, scores.truth)
    if options.thresholds:
        if scores is None:
            raise InputError(f"{predictions.path}: --threshold needs `scores`, a mapping of label to score, in every row")
        wants = [(text, wanted(text)) for text in options.thresholds]
        found["thresholds"] = [
            {"label": label, "wanted": text, **choose_threshold(*scores.of(label), want)}
            for text, want in wants
            for label in scores.labels
        ]
    if options.protected:
        found["fairness"] = [
            figure
            for column in options.protected
            for figure in table_of(gaps_of(predictions.column(column), names, truth, said), column)
        ]
    if options.mistakes:
        found["confused"] = confused_pairs(matrix, options.mistakes)
        found["contradictions"] = contradictions(predictions, options.mistakes)
    return found


def _warnings(figures: Figures, n: int, parts: Sequence[Slice], found: Mapping[str, Any]) -> list[str]:
    warnings = [f"{n} rows only: the intervals are wide and approximate below {_FEW}"] if n < _FEW else []
    for name in _SHARES:
        figure = figures.get(name)
        if isinstance(figure, Figure) and figure.low is not None and figure.high is not None:
            width = figure.high - figure.low
            if width > _WIDE:
                need = round(n * (2 * width / _WIDE) ** 2, -2)
                warnings.append(f"{name} is uncertain by ±{50 * width:.0f} points; about {need:,.0f} rows would make it ±5")
    if alike := [name for name, f in figures.items() if isinstance(f, Figure) and f.low is not None and f.low == f.high]:
        shown = ", ".join(alike[:5]) + (" …" if len(alike) > 5 else "")
        warnings.append(f"intervals without width, for every resample gives the same value; other rows may not: {shown}")
    if "confusion" in found:
        rows = {name: sum(counts) for name, counts in zip(*found["confusion"].values(), strict=True)}
        few = [f"{name!r} ({count})" for name, count in rows.items() if count < _FEW_OF_LABEL]
        if few:
            shown = ", ".join(few[:5]) + (" …" if len(few) > 5 else "")
            warnings.append(f"labels with fewer than {_FEW_OF_LABEL} rows, whose figures say little: {shown}")
        if conflicting := found.get("contradictions", {}).get("n"):
            texts = "text is" if conflicting == 1 else "texts are"
            warnings.append(f"{conflicting:,} {texts} equal or nearly equal to another with another label")
    for name in dict.fromkeys(part.name for part in parts):
        sizes = [len(part.rows) for part in parts if part.name == name]
        if small := sum(size < _FEW for size in sizes):
            warnings.append(f"slice {name}: {small} of {len(sizes)} values have fewer than {_FEW} rows")
    return warnings


def figure_from(row: Mapping[str, Any]) -> Figure | Undefined:
    """The figure that a row of the table was made of."""
    kind = Undefined if row["value"] is None else Figure
    return kind(**{k: row[k] for k in kind._fields if k in row})


def lines_of(found: Mapping[str, Any]) -> list[str]:
    """The evaluation for a terminal."""
    lines = _table_lines(found["figures"], "")
    if "fairness" in found:
        lines += ["", "gaps between groups", *_table_lines(found["fairness"], "by ")]
    for effect in found.get("robustness", ()):
        changed = Figure(**effect["answers_changed"])
        lines.append(
            f"{effect['change']}: {effect['metric']} {effect['before']:.4f} → {effect['after']:.4f}, difference "
            f"{effect['difference']:+.4f} [{effect['low']:+.4f}, {effect['high']:+.4f}], p {effect['p']:.3g}; "
            f"{effect['texts_changed']:,} texts changed, {100 * changed.value:.1f} % of the answers"
        )
    for choice in found.get("thresholds", ()):
        at = f"label {choice['label']}, {choice['wanted']}: "
        if choice["threshold"] is None:
            lines.append(at + choice["reason"])
        else:
            reached = ", ".join(f"{k} {Figure(**choice[k])}" for k in ("precision", "recall"))
            lines.append(f"{at}threshold {choice['threshold']:.4f}: {reached}")
    return [*lines, *(f"warning: {warning}" for warning in found["warnings"])]


def _table_lines(figures: Iterable[Mapping[str, Any]], prefix: str) -> list[str]:
    figures = list(figures)
    width = max(len(f["name"]) for f in figures)
    lines, at = [], ("all", "")
    for f in figures:
        if (here := (f["slice"], f["value_of_slice"])) != at:
            lines += ["", f"{prefix}{here[0]} = {here[1]}" if here[1] else f"{prefix}{here[0]}"]
            at = here
        lines.append(f"{f['name']:<{width}}  {figure_from(f)}  n {f['n']:,}")
    return lines
