"""Figures of predictions against scikit-learn, sacrebleu and scipy; bad files; comparisons."""

from __future__ import annotations

import csv
import json
import os
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF, TER
from scipy.stats import binomtest
from sklearn import metrics

from zenspeed.errors import InputError
from zenspeed.evaluate import measures
from zenspeed.evaluate.classify import confusion, label_figures
from zenspeed.evaluate.compare import compare_files
from zenspeed.evaluate.curves import roc_area
from zenspeed.evaluate.interval import Figure, Undefined, wilson
from zenspeed.evaluate.measures import Scores, measures_of, score_figures
from zenspeed.evaluate.paired import holm, mcnemar
from zenspeed.evaluate.predictions import checked, read_predictions
from zenspeed.evaluate.score import Options, evaluation, lines_of, score_file
from zenspeed.evaluate.written import token_f1, written_figures


def write(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def test_figures_equal_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    true = rng.choice(["a", "b", "c"], 500, p=[0.6, 0.3, 0.1]).tolist()
    said = [t if rng.random() < 0.7 else str(rng.choice(["a", "b", "c"])) for t in true]
    figures = label_figures(confusion(true, said))
    assert confusion(true, said).counts.tolist() == metrics.confusion_matrix(true, said).tolist()
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(true, said)
    expected = {
        "accuracy": metrics.accuracy_score(true, said),
        "balanced_accuracy": metrics.balanced_accuracy_score(true, said),
        "precision_macro": metrics.precision_score(true, said, average="macro"),
        "f1_macro": metrics.f1_score(true, said, average="macro"),
        "f1_weighted": metrics.f1_score(true, said, average="weighted"),
        "mcc": metrics.matthews_corrcoef(true, said),
    }
    for i, label in enumerate("abc"):
        expected |= {f"precision[{label}]": precision[i], f"recall[{label}]": recall[i], f"f1[{label}]": f1[i]}
    assert figures.keys() == expected.keys()
    for name, value in expected.items():
        figure = figures[name]
        assert isinstance(figure, Figure) and figure.low is not None and figure.high is not None
        assert figure.value == pytest.approx(value, abs=1e-12)
        assert figure.low < value < figure.high


def test_bootstrap_of_cells_equals_bootstrap_of_rows() -> None:
    rng = np.random.default_rng(2)
    true, said = rng.integers(2, size=400), rng.integers(2, size=400)
    figure = label_figures(confusion(true.tolist(), said.tolist()))["mcc"]
    draws = [metrics.matthews_corrcoef(true[i], said[i]) for i in (rng.integers(400, size=400) for _ in range(600))]
    assert isinstance(figure, Figure)
    assert [figure.low, figure.high] == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=0.02)


def test_roc_area_equals_scikit_learn_with_ties() -> None:
    rng = np.random.default_rng(3)
    positive = rng.random(300) < 0.3
    scores = np.round(rng.normal(size=300) + positive, 1)
    area = roc_area(positive, scores, "")
    assert isinstance(area, Figure)
    assert area.value == pytest.approx(metrics.roc_auc_score(positive, scores), abs=1e-12)
    draws = [metrics.roc_auc_score(positive[i], scores[i]) for i in (rng.integers(300, size=300) for _ in range(500))]
    assert [area.low, area.high] == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=0.015)
    assert isinstance(roc_area(np.ones(3, bool), np.arange(3.0), ""), Undefined)


def test_wilson_equals_scipy() -> None:
    for hits, n in ((0, 10), (7, 10), (10, 10), (123, 1000)):
        found, expected = wilson(hits, n, ""), binomtest(hits, n).proportion_ci(method="wilson")
        assert found[1:3] == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_what_is_not_defined_is_not_zero() -> None:
    figures = label_figures(confusion(["a", "a", "b"], ["a", "a", "a"]))
    assert figures["precision[b]"] == Undefined(0, "share of rows predicted 'b' that are", "'b' is never predicted")
    assert isinstance(figures["mcc"], Undefined)
    one = label_figures(confusion(["a"] * 5, ["a"] * 5))
    assert isinstance(one["balanced_accuracy"], Undefined)
    assert isinstance(one["mcc"], Undefined)


@pytest.mark.parametrize("tokenize", ["13a", "zh"])
def test_written_answers_equal_sacrebleu(tokenize: str) -> None:
    references = (
        ["the cat sat on the mat today", "a dog ran home"]
        if tokenize == "13a"
        else ["今天天气很好，我们去公园", "猫坐在垫子上"]
    )
    answers = (
        ["the cat sat on a red mat today", "dog ran home"] if tokenize == "13a" else ["今天天气很好，我去公园", "猫坐在垫子上"]
    )
    figures = written_figures(references, answers)
    for name, metric in {"bleu": BLEU(tokenize=tokenize), "chrf": CHRF(), "ter": TER(asian_support=tokenize == "zh")}.items():
        figure = figures[name]
        assert isinstance(figure, Figure)
        assert figure.value == metric.corpus_score(answers, [references]).score
        assert str(metric.get_signature()) in figure.definition
    exact = figures["exact_match"]
    assert isinstance(exact, Figure) and exact.value == 0.5
    assert token_f1(["a", "a", "b"], ["a", "c"]) == pytest.approx(0.4)


def test_a_file_is_scored_by_slice(tmp_path: Path) -> None:
    rows = [
        {"label": i % 2, "scores": {"0": 0.4, "1": 0.6 if i % 3 else 0.1}, "lang": "zh" if i < 20 else "en"} for i in range(50)
    ]
    found = json.loads(json.dumps(score_file(write(tmp_path / "p.jsonl", rows), Options(slices=["lang"]))))
    assert (found["schema"], found["version"], found["n"]) == ("zenspeed.evaluation", 1, 50)
    accuracy = {f["value_of_slice"]: (f["value"], f["n"]) for f in found["figures"] if f["name"] == "accuracy"}
    right = [(i % 2) == int(i % 3 > 0) for i in range(50)]
    expected = {"": (sum(right) / 50, 50), "zh": (sum(right[:20]) / 20, 20), "en": (sum(right[20:]) / 30, 30)}
    assert accuracy == expected
    assert {"roc_auc[0]", "roc_auc[1]"} <= {f["name"] for f in found["figures"]}
    assert any("50 rows only" in warning for warning in found["warnings"])
    assert "lang = zh" in lines_of(found)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no rows"),
        ("{\n", "line 1 is no JSON"),
        ("[1]\n", "line 1 is no object"),
        ('{"label": 1, "predictoin": 1}\n', "nearest: predictoin"),
        ('{"label": 1, "prediction": 1}\n{"label": "1", "prediction": "1"}\n', "row 2: .*mixed types"),
        ('{"label": "a", "scores": {"a": NaN}}\n', "row 1: score of 'a' is nan"),
        ('{"label": "a", "scores": {"b": 1}}\n', "label 'a' has no score"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_predictions(path)


def test_comparison_of_two_files(tmp_path: Path) -> None:
    rows = [{"id": i, "label": "x", "prediction": "x" if i % 2 else "y"} for i in range(200)]
    better = [{**row, "prediction": "x" if row["id"] % 2 or row["id"] < 40 else "y"} for row in reversed(rows)]
    a, b = write(tmp_path / "a.jsonl", rows), write(tmp_path / "b.jsonl", better)
    (found,) = compare_files([a, b])
    assert (found.n, found.matched_by, found.test) == (200, "id", "McNemar's exact test")
    assert found.difference == pytest.approx(0.1)
    assert found.low < 0.1 < found.high and found.p == pytest.approx(binomtest(0, 20).pvalue)
    assert "is better than" in str(found)
    (same,) = compare_files([a, a])
    assert same.p == 1 and "do not show" in str(same)
    with pytest.raises(InputError, match="ids are in one file only"):
        compare_files([a, write(tmp_path / "c.jsonl", rows[:9])])


def test_swapping_answers_agrees_with_the_exact_test_and_the_bootstrap_with_theory(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    rows = [{"label": str(rng.integers(3)), "prediction": ""} for _ in range(400)]
    one, two = ([{**r, "prediction": r["label"] if rng.random() < p else "0"} for r in rows] for p in (0.6, 0.66))
    a, b = write(tmp_path / "a.jsonl", one), write(tmp_path / "b.jsonl", two)
    (exact,), (swapped,) = compare_files([a, b]), compare_files([a, b], "f1_macro")
    assert swapped.test.endswith("random swaps of answers") and 0.3 < swapped.p / exact.p < 3
    truth, said = [r["label"] for r in rows], [r["prediction"] for r in two]
    assert swapped.value_second == pytest.approx(metrics.f1_score(truth, said, average="macro"))
    gained = np.array([x["prediction"] == x["label"] for x in two]) * 1.0 - [x["prediction"] == x["label"] for x in one]
    half = 1.96 * gained.std() / 20
    assert [exact.low, exact.high] == pytest.approx([gained.mean() - half, gained.mean() + half], abs=0.01)
    with pytest.raises(InputError, match="no measure of these predictions"):
        compare_files([a, b], "bleu")


def test_texts_are_compared_by_chrf_and_exact_match(tmp_path: Path) -> None:
    rows = [{"reference": f"the answer is {i}", "prediction": f"the answer was {i}"} for i in range(60)]
    better = [{**row, "prediction": row["reference"] if i % 2 else row["prediction"]} for i, row in enumerate(rows)]
    found = compare_files([write(tmp_path / "a.jsonl", rows), write(tmp_path / "b.jsonl", better)])
    assert [c.metric for c in found] == ["exact_match", "chrf"] and all("is better than" in c.conclusion for c in found)


def test_seeds_are_a_source_of_variance(tmp_path: Path) -> None:
    """Three runs of each: on the rows alone B looks better, over its seeds that is not shown."""
    rng = np.random.default_rng(9)
    for name, shares in {"a": (0.70, 0.70, 0.71), "b": (0.60, 0.75, 0.90)}.items():
        for seed, share in enumerate(shares):
            folder = tmp_path / f"{name}{seed}"
            folder.mkdir()
            (folder / "recipe.yaml").write_text(f"run: {{seed: {seed}}}\noptim: {{lr: 0.0{1 if name == 'a' else 2}}}\n")
            rows = [{"label": "x", "prediction": "x" if rng.random() < share else "y"} for _ in range(2000)]
            write(folder / "predictions.jsonl", rows)
    runs = [tmp_path / f"{name}{seed}" for name in "ab" for seed in range(3)]
    (one,) = compare_files([runs[0], runs[4]])
    assert one.p < 0.01
    (found,) = compare_files(runs)
    assert found.runs == (3, 3) and found.p > 0.05 and found.low < 0 < found.high
    with pytest.raises(InputError, match="3 runs of one recipe"):
        compare_files(runs[:3])


def test_p_values() -> None:
    for gained, lost in ((3, 9), (0, 0), (5, 5), (700, 600)):
        expected = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
        assert mcnemar(gained, lost) == pytest.approx(expected, rel=1e-9)
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_rankings(tmp_path: Path) -> None:
    """Those that a run of task similarity writes, and lists where several belong to a query; null is not found."""
    good = [{"text": f"q{i}", "text_pair": "x", "prediction": 0.5, "rank": 1 + i % 3, "candidates": 9} for i in range(60)]
    bad = [{**row, "rank": None if i % 2 else [3, 1]} for i, row in enumerate(good)]
    a, b = write(tmp_path / "a.jsonl", good), write(tmp_path / "b.jsonl", bad)
    found = {f["name"]: f for f in score_file(a)["figures"]}
    assert found["mrr"]["value"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 3) and found["recall@1"]["value"] == pytest.approx(
        1 / 3
    )
    assert found["mrr"]["low"] < found["mrr"]["value"] < found["mrr"]["high"]
    assert score_file(b)["mistakes"][0]["rank"] is None
    (mrr,) = compare_files([a, b])
    assert mrr.metric == "mrr" and mrr.value_second == pytest.approx(0.5) and mrr.low < mrr.difference < mrr.high
    with pytest.raises(InputError, match="row 2: rank is 0"):
        score_file(write(tmp_path / "c.jsonl", [{"rank": 1}, {"rank": 0}]))
    with pytest.raises(InputError, match="nothing to compare it with"):
        score_file(write(tmp_path / "d.jsonl", [{"text": "a", "text_pair": "b", "prediction": 0.3}]))


def test_intervals_of_macro_areas_are_as_wide_as_resampling_says() -> None:
    rng = np.random.default_rng(0)
    truth = rng.choice(3, 400, p=[0.6, 0.3, 0.1])
    values = np.eye(3)[truth] + rng.normal(0, 0.8, (400, 3))
    figures = score_figures(Scores(["a", "b", "c"], values, truth))
    for name, of in (("roc_auc", metrics.roc_auc_score), ("average_precision", metrics.average_precision_score)):
        figure = figures[f"{name}_macro"]
        assert isinstance(figure, Figure) and figure.low is not None and figure.high is not None
        assert figure.value == pytest.approx(of(np.eye(3)[truth], values, average="macro"))
        drawn = [rng.integers(400, size=400) for _ in range(300)]
        spread = np.std([of(np.eye(3)[truth[rows]], values[rows], average="macro") for rows in drawn])
        assert (figure.high - figure.low) / (2 * 1.96 * spread) == pytest.approx(1, abs=0.2)
    one = score_figures(Scores(["a", "b"], values[:20, :2], np.array([0] * 19 + [1])))
    assert isinstance(one["roc_auc_macro"], Figure) and one["roc_auc_macro"].low is None


def as_table(path: Path, rows: list) -> Path:
    """The rows as CSV, scores in columns of their own, other values that are no texts as JSON."""
    flat = []
    for row in rows:
        scores = {f"scores.{label}": value for label, value in row.get("scores", {}).items()}
        cells = {k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items() if k != "scores"}
        flat.append(cells | scores)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(flat[0]))
        writer.writeheader()
        writer.writerows(flat)
    return path


def some_rows(kind: str) -> list:
    rng = np.random.default_rng(4)
    texts = [f'line {i % 50},\n"{"好" * (i % 3)}" {rng.integers(99)}' for i in range(300)]
    if kind == "labels":
        p = rng.random(300).round(3).tolist()
        return [
            {
                "text": t,
                "label": "yes" if rng.random() < x else "no",
                "scores": {"no": round(1 - x, 3), "yes": x},
                "g": "a b"[i % 3],
            }
            for i, (t, x) in enumerate(zip(texts, p, strict=True))
        ]
    if kind == "numbers":
        return [{"text": t, "label": i / 8, "prediction": i / 8 + rng.normal(), "g": str(i % 2)} for i, t in enumerate(texts)]
    if kind == "ranks":
        ranks = [None, 1, [2, None, 5], 7]
        return [{"text": t, "rank": ranks[int(rng.integers(4))], "g": str(i % 2)} for i, t in enumerate(texts)]
    answers = [t if rng.random() < 0.3 else t[:-3] for t in texts]
    return [{"text": "q", "reference": t, "prediction": a, "g": t[:6]} for t, a in zip(texts, answers, strict=True)]


@pytest.mark.parametrize("kind", ["labels", "numbers", "ranks", "texts"])
def test_a_file_is_scored_as_its_rows_are(tmp_path: Path, kind: str) -> None:
    """Rows that are read by their place, from JSON lines or a table, give what rows in memory give."""
    rows = some_rows(kind)
    options = Options(slices=["g", "length:12,14"], protected=["g"] if kind == "labels" else [])
    held = evaluation(checked([dict(row) for row in rows]), options)
    for path in (write(tmp_path / "p.jsonl", rows), as_table(tmp_path / "p.csv", rows)):
        read = score_file(path, options)
        assert read.pop("source") == str(path)
        assert json.dumps(read) == json.dumps({k: v for k, v in held.items() if k != "source"})
        assert read["mistakes"]
        (same,) = {c.difference for c in compare_files([path, path])}
        assert same == 0


def test_chunks_and_groups_do_not_change_figures_of_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"reference": ["a b c d e", "b"][: 1 + i % 2], "prediction": f"a b {'c d' * (i % 2)} {i % 7}"} for i in range(200)]
    whole = score_file(write(tmp_path / "p.jsonl", rows))
    monkeypatch.setattr(measures, "_CHUNK_ROWS", 7)
    assert score_file(tmp_path / "p.jsonl") == whole
    bleu = next(f for f in whole["figures"] if f["name"] == "bleu")
    assert "nrefs:var" in bleu["definition"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label,predictoin\na,b\n", "nearest: predictoin"),
        ("label,prediction\na\n", "line 2 has 1 fields, the first line names 2"),
        ('label,prediction\na,"b\n', "put quotes around"),
        ("label,scores.a\na,x\n", "line 2: scores.a is 'x'"),
        ("label,prediction\n", "holds no rows"),
        ("rank\nx\n", "line 2: rank is 'x'"),
    ],
)
def test_bad_tables_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "p.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_predictions(path)


def test_a_pipe_is_scored(tmp_path: Path) -> None:
    path, rows = tmp_path / "pipe", some_rows("labels")
    os.mkfifo(path)
    writer = threading.Thread(target=write, args=(path, rows))
    writer.start()
    found = score_file(path)
    writer.join()
    assert found["n"] == 300 and found["mistakes"][0]["text"].startswith("line")


@pytest.mark.parametrize(("kind", "most"), [("labels", 120), ("texts", 100)])
def test_memory_does_not_hold_the_rows(tmp_path: Path, kind: str, most: int) -> None:
    """What further rows add to the peak: numbers and temporary arrays of them, not their texts of 600 bytes."""
    rows = [{**row, "more": "x" * 600} for row in some_rows(kind)]
    wanted = None if kind == "labels" else ["exact_match", "length_ratio"]
    peaks = []
    for times in (40, 100):
        path = write(tmp_path / f"{times}.jsonl", rows * times)
        tracemalloc.start()
        if wanted is None:
            score_file(path, Options(slices=["g"], protected=["g"]))
        else:
            measures_of(read_predictions(path), wanted)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (peaks[1] - peaks[0]) / (60 * len(rows)) < most
