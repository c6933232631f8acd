"""Figures of scores, numbers and texts against scikit-learn, scipy, sacrebleu and rouge-score; slices, gaps, mistakes."""

from __future__ import annotations

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, TER
from scipy import stats
from sklearn import metrics

from zenspeed.errors import InputError
from zenspeed.evaluate.calibration import calibration_figures, fit_temperature, reliability, scale
from zenspeed.evaluate.classify import confusion, label_figures, label_measures
from zenspeed.evaluate.correlation import number_figures, number_measures
from zenspeed.evaluate.curves import choose_threshold, precision_area, precision_recall_points, roc_points, wanted
from zenspeed.evaluate.fairness import fairness_gaps
from zenspeed.evaluate.interval import MOST_UNITS, Figure, Undefined, figure_of, mean_interval
from zenspeed.evaluate.measures import figures_of, measures_of
from zenspeed.evaluate.mistakes import confused_pairs, contradictions, mistakes_of
from zenspeed.evaluate.predictions import checked
from zenspeed.evaluate.score import Options, evaluation, figure_from, score_file
from zenspeed.evaluate.slices import slices_of
from zenspeed.evaluate.written import written_figures


def of(figure: Figure | Undefined) -> Figure:
    assert isinstance(figure, Figure), figure
    return figure


@pytest.fixture(scope="module")
def scored() -> tuple[np.ndarray, np.ndarray]:
    """Labels 0, 1, 2 of 600 rows, and probabilities that are too sure of themselves."""
    rng = np.random.default_rng(4)
    truth = rng.choice(3, 600, p=[0.5, 0.3, 0.2])
    logits = 3 * (rng.normal(size=(600, 3)) + 1.2 * np.eye(3)[truth])
    powers = np.exp(logits)
    return truth, powers / powers.sum(1, keepdims=True)


def test_means_over_labels_equal_scikit_learn(scored: tuple[np.ndarray, np.ndarray]) -> None:
    truth, probabilities = scored
    said = probabilities.argmax(1)
    figures = label_figures(confusion(truth.tolist(), said.tolist()))
    assert of(figures["precision_macro"]).value == pytest.approx(metrics.precision_score(truth, said, average="macro"))
    assert of(figures["f1_weighted"]).value == pytest.approx(metrics.f1_score(truth, said, average="weighted"))
    measures = label_measures(truth.tolist(), said.tolist())
    for name in ("accuracy", "balanced_accuracy", "f1_macro", "mcc"):  # the two ways to resample agree
        one, other = of(figures[name]), of(figure_of(measures[name]))
        assert one.value == pytest.approx(other.value, abs=1e-12)
        assert one[1:3] == pytest.approx(other[1:3], abs=0.01)


def test_curves_and_areas_equal_scikit_learn(scored: tuple[np.ndarray, np.ndarray]) -> None:
    truth, probabilities = scored
    positive, scores = truth == 1, np.round(probabilities[:, 1], 2)  # with ties
    area = of(precision_area(positive, scores, ""))
    assert area.value == pytest.approx(metrics.average_precision_score(positive, scores), abs=1e-12)
    rng = np.random.default_rng(5)
    draws = [metrics.average_precision_score(positive[i], scores[i]) for i in (rng.integers(600, size=600) for _ in range(400))]
    assert area[1:3] == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=0.015)
    false_rate, true_rate, _ = metrics.roc_curve(positive, scores, drop_intermediate=False)
    assert roc_points(positive, scores) == [pytest.approx(p, abs=1e-5) for p in zip(false_rate, true_rate, strict=True)]
    precision, recall, _ = metrics.precision_recall_curve(positive, scores)
    expected = list(zip(recall[-2::-1], precision[-2::-1], strict=True))
    found = precision_recall_points(positive, scores)
    assert found == [pytest.approx(p, abs=1e-5) for p in expected[: len(found)]]


def test_a_threshold_reaches_what_is_wanted_and_no_other_does_better(scored: tuple[np.ndarray, np.ndarray]) -> None:
    truth, probabilities = scored
    positive, scores = truth == 1, probabilities[:, 1]
    for of_, other in (("precision", "recall"), ("recall", "precision")):
        found = choose_threshold(positive, scores, wanted(f"{of_}=0.8"))
        assert found[of_]["value"] >= 0.8
        for threshold in scores[::7]:
            said = scores >= threshold
            reached = {
                "precision": metrics.precision_score(positive, said), "recall": metrics.recall_score(positive, said)
            }  # fmt: skip
            assert reached[of_] < 0.8 or reached[other] <= found[other]["value"] + 1e-12 or of_ == "recall"
    never = choose_threshold(np.array([True, False, True]), np.array([0.1, 0.9, 0.8]), wanted("precision=0.9"))
    assert never["threshold"] is None and "no threshold has precision 0.9" in never["reason"]
    with pytest.raises(InputError, match=r"give precision=0\.9 or recall"):
        wanted("f1=0.5")


def test_calibration(scored: tuple[np.ndarray, np.ndarray]) -> None:
    truth, probabilities = scored
    figures = calibration_figures(probabilities, truth)
    assert of(figures["log_loss"]).value == pytest.approx(metrics.log_loss(truth, probabilities))
    expected = metrics.brier_score_loss(truth, probabilities, labels=[0, 1, 2], scale_by_half=False)
    assert of(figures["brier"]).value == pytest.approx(expected)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == truth
    error = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence > low) & (confidence <= low + 1 / 15)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert of(figures["ece"]).value == pytest.approx(error, abs=1e-12)
    assert sum(b["n"] for b in reliability(probabilities, truth)) == 600
    # The logits were made 3 times too large for their noise (and 1.2 too small a mean): scaling is undone and helps.
    assert of(figures["ece_scaled"]).value < of(figures["ece"]).value / 2
    assert fit_temperature(scale(probabilities, 0.5), truth) == pytest.approx(
        2 * fit_temperature(probabilities, truth), rel=1e-3
    )
    assert "no probabilities" in str(calibration_figures(probabilities * 2, truth)["ece"])


def test_numbers_equal_scipy() -> None:
    rng = np.random.default_rng(6)
    truth = np.round(rng.normal(size=300), 1)
    said = truth + rng.normal(size=300)
    figures = number_figures(truth, said)
    pearson = stats.pearsonr(truth, said)
    assert of(figures["pearson"]).value == pytest.approx(pearson.statistic, abs=1e-12)
    assert of(figures["pearson"])[1:3] == pytest.approx(tuple(pearson.confidence_interval()), abs=1e-9)
    assert of(figures["spearman"]).value == pytest.approx(stats.spearmanr(truth, said).statistic, abs=1e-12)
    for name, measure in number_measures(truth, said).items():
        assert of(figure_of(measure)).value == pytest.approx(of(figures[name]).value, abs=1e-12)
    assert "are the same" in str(number_figures(np.ones(9), said[:9])["pearson"])


def test_texts_equal_rouge_score_and_are_resampled() -> None:
    references = ["the cat sat on the mat", "a dog ran home", "it rains", "he said no"] * 10
    answers = ["the cat sat on a mat", "dog ran home today", "it is raining", "he said no"] * 10
    figures = written_figures(references, answers)
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    for name in ("rouge1", "rouge2", "rougeL"):
        expected = np.mean([scorer.score(r, a)[name].fmeasure for r, a in zip(references, answers, strict=True)])
        assert of(figures[name]).value == pytest.approx(expected)
    for name, metric in (("bleu", BLEU()), ("ter", TER())):
        found = of(figures[name])
        theirs = metric.corpus_score(answers, [references], n_bootstrap=500)
        assert found.low is not None and found.high is not None
        assert (found.high - found.low) / 2 == pytest.approx(theirs._ci, rel=0.2)  # type: ignore[attr-defined]
    chinese = written_figures(["今天天气很好", "我们走吧"], ["今天天气好", "我们走吧"])
    assert of(chinese["rouge1"]).value == pytest.approx((2 * 5 / 11 + 1) / 2)
    several = written_figures([["yes", "yes it is"], ["no"]], ["yes it is", "never"])
    assert of(several["exact_match"]).value == 0.5 and "bleu" in several
    assert "every reference is empty" in str(written_figures(["", ""], ["a", "b"])["bleu"])


def test_many_rows_are_resampled_in_groups_with_the_same_interval() -> None:
    values = np.random.default_rng(7).normal(size=4 * MOST_UNITS)
    figure = of(mean_interval(values, ""))
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert [figure.low, figure.high] == pytest.approx([values.mean() - half, values.mean() + half], abs=0.1 * half)


ROWS = [
    {
        "text": f"{'long ' * (i % 7)}word {i} {'今天' if i % 4 == 0 else 'of the day'}", "label": "ab"[i % 2],
        "prediction": "ab"[i % 2 if i % 5 else 0], "scores": {"a": 0.6, "b": 0.4}, "group": "xy"[i % 3 == 0], "age": i,
    }
    for i in range(200)
]  # fmt: skip


def test_slices_by_column_range_and_rule() -> None:
    for rule, count in {"group": 2, "age": 4, "age:50,150": 3, "text~long": 2, "length:12": 2, "words": 7}.items():
        parts = slices_of(ROWS, [rule])
        assert len(parts) == count, (rule, [p.value for p in parts])
        assert sorted(np.concatenate([p.rows for p in parts]).tolist()) == list(range(200))
    assert [p.value for p in slices_of(ROWS, ["age:50,150"])] == ["age < 50", "50 ≤ age < 150", "150 ≤ age"]
    for rule, message in {
        "gruop": "nearest: group",
        "text": "different values",
        "age:9,5": "no rising",
        "text~(": "no regular",
    }.items():
        with pytest.raises(InputError, match=message):
            slices_of(ROWS, [rule])


def test_gaps_between_groups() -> None:
    groups = ["x"] * 100 + ["y"] * 100
    labels = (["p"] * 50 + ["q"] * 50) * 2
    said = ["p"] * 40 + ["q"] * 60 + ["p"] * 20 + ["q"] * 80
    figures = fairness_gaps(groups, labels, said)
    parity, chance = of(figures["demographic_parity_gap[p]"]), of(figures["equal_opportunity_gap[p]"])
    assert parity.value == pytest.approx(0.2) and chance.value == pytest.approx(0.4)
    assert chance.low is not None and chance.low > 0.2 and "x 0.800 (n 50)" in chance.definition
    alike = of(fairness_gaps(groups, labels, ["p"] * 200)["demographic_parity_gap[p]"])
    assert alike.value == 0 and alike.p == 1 and str(alike).endswith("  p 1")
    assert chance.p is not None and 0 < chance.p < 0.01 and f"  p {chance.p:.3g}" in str(chance)
    assert "one group only" in str(fairness_gaps(["x"] * 9, ["p"] * 9, ["p"] * 9)["accuracy_gap"])


def test_mistakes_are_the_most_confident_ones() -> None:
    rows = [dict(row, scores={"a": 0.5 + i / 1000, "b": 0.5 - i / 1000}, prediction="a") for i, row in enumerate(ROWS)]
    found = mistakes_of(checked(rows), 3)
    assert [m["row"] for m in found] == [200, 198, 196] and found[0]["confidence"] == pytest.approx(0.699)
    pairs = confused_pairs(confusion([r["label"] for r in rows], [r["prediction"] for r in rows]), 5)
    assert pairs == [{"label": "b", "prediction": "a", "n": 100, "share": 1.0}]
    text = "a long sentence about the weather of today, which was really quite fine in the morning"
    twice = [{"text": text, "label": "a", "prediction": "a"}, {"text": text + " too", "label": "b", "prediction": "a"}]
    assert contradictions(checked(twice), 5)["n"] == 1
    assert contradictions(checked([dict(row, label="a") for row in twice]), 5)["n"] == 0


def test_an_evaluation_holds_it_all() -> None:
    predictions = checked([dict(row) for row in ROWS])
    options = Options(slices=["group"], protected=["group"], thresholds=["precision=0.5"])
    found = evaluation(predictions, options, lambda rows: figures_of(predictions._replace(rows=rows)))
    assert {"confusion", "curves", "reliability", "thresholds", "fairness", "confused", "contradictions", "mistakes"} <= set(
        found
    )
    names = {(f["slice"], f["value_of_slice"]) for f in found["figures"]}
    assert names == {("all", ""), ("group", "x"), ("group", "y")}
    for row in found["figures"]:
        figure = figure_from(row)
        assert figure.n <= 200 and figure.definition and (isinstance(figure, Figure) or figure.reason)
    with pytest.raises(InputError, match="are for labels"):
        evaluation(
            checked([{"reference": "a", "prediction": "b"}]),
            Options(protected=["g"]),
            lambda rows: {"f": mean_interval(np.ones(2), "")},
        )


def test_an_interval_without_width_is_warned_of() -> None:
    def said(right: int) -> list[str]:
        rows = [{"label": "a", "prediction": "a" if i < right else "b"} for i in range(120)]
        return [w for w in evaluation(checked(rows), Options())["warnings"] if "without width" in w]

    (warning,) = said(120)
    assert warning.endswith("other rows may not: precision_macro, f1_macro, f1_weighted, f1[a]")
    assert not any("f1_macro" in w for w in said(100))


def test_numbers_in_a_file(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "p.jsonl"
    path.write_text('{"label": "4.5", "prediction": 3.5}\n{"label": 1, "prediction": 2.0}\n')
    found = score_file(path)
    assert found["kind"] == "numbers"
    error = next(f for f in found["figures"] if f["name"] == "mean_absolute_error")
    assert error["value"] == 1
    assert next(iter(measures_of(checked([{"label": 0.5, "prediction": 1.0}] * 3)))) == "spearman"
