"""Vectors that tell texts apart: the loss by its formula, packed as one by one, and figures as scikit-learn's."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import label_ranking_average_precision_score, ndcg_score, top_k_accuracy_score

from zenspeed.config import InputError, load
from zenspeed.evaluate.interval import Figure
from zenspeed.evaluate.ranking import ranking_figures, ranking_scores
from zenspeed.ops.contrastive import in_batch_loss, order_loss
from zenspeed.recipe import Recipe
from zenspeed.tasks.base import Place
from zenspeed.tasks.similarity import SimilarityTask, pair_ranks
from zenspeed.text.tokenizer import Tokenizer

HERE = Place(nullcontext())
ROWS = [{"text": f"word{i % 4} is {i}", "text_pair": f"{'no ' * i}word{i % 4}", "score": i / 7} for i in range(8)]


def task_of(**keys: Any) -> SimilarityTask:
    texts = [row[c] for row in ROWS for c in ("text", "text_pair")]
    tokenizer = Tokenizer.train("wordpiece", texts * 5, 90, special_tokens=["[PAD]", "[CLS]", "[SEP]"])
    model = {"preset": "bert", "layers": 1, "width": 16, "heads": 2, "context": 32, "dropout": 0.0, "pool": "mean"}
    keys = {"kind": "similarity", "text_pair": "text_pair"} | keys
    recipe = load(Recipe, None, [], base={"task": keys, "model": model, "train": {"precision": "fp32", "micro_batch_size": 8}})
    return SimilarityTask.of_run(recipe, tokenizer)


def unit(n: int, seed: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(n, 5, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_in_batch_loss_by_its_formula() -> None:
    a, b = unit(4, 0), unit(4, 1)
    skip = torch.zeros(4, 4, dtype=torch.bool)
    skip[0, 2] = skip[1, 1] = True  # a pair's own text is never left out
    for i, loss in enumerate(in_batch_loss(a, b, 0.1, skip)):
        row = sum(float(torch.exp(a[i] @ b[j] / 0.1)) for j in range(4) if not (skip[i, j] and i != j))
        column = sum(float(torch.exp(a[j] @ b[i] / 0.1)) for j in range(4) if not (skip[j, i] and i != j))
        own = float(a[i] @ b[i]) / 0.1
        assert float(loss) == pytest.approx((np.log(row) + np.log(column)) / 2 - own, rel=1e-5)


def test_order_loss_by_its_formula() -> None:
    cosines, scores = torch.tensor([0.9, 0.1, 0.5]), torch.tensor([1.0, 2.0, 2.0])
    wanted = np.log(1 + np.exp((0.9 - 0.1) / 0.2) + np.exp((0.9 - 0.5) / 0.2))
    assert float(order_loss(cosines, scores, 0.2)) == pytest.approx(wanted)
    assert float(order_loss(cosines, torch.ones(3), 0.2)) == 0


@pytest.mark.parametrize("score", [None, "score"])
def test_the_loss_of_a_batch_is_that_of_its_vectors(score: str | None) -> None:
    task = task_of(score=score)
    model = task.build_model(1)
    examples = task.encode(ROWS, "the rows")
    indices = np.array([5, 0, 3, 7, 1])
    losses = []
    for packed in (True, False):
        batch = task.collate(examples, indices, packed=packed)
        assert task.num_targets(batch) == 5
        losses.append(float(task.loss(model, batch).detach()))
    first, second = (
        torch.from_numpy(task.embed(model, [str(ROWS[i][c]) for i in indices], HERE)) for c in ("text", "text_pair")
    )
    if score:
        wanted = 5 * order_loss((first * second).sum(1), torch.tensor([ROWS[i]["score"] for i in indices]), 0.05)
    else:
        wanted = in_batch_loss(first, second, 0.05).sum()
    assert losses == pytest.approx([float(wanted)] * 2, rel=1e-4)


def test_equal_texts_are_no_negatives() -> None:
    task = task_of()
    model = task.build_model(1)
    rows = [{"text": "word1 is 1", "text_pair": "word1"}, {"text": "word2 is 2", "text_pair": "word1"}]
    batch = task.collate(task.encode(rows, "x"), np.array([0, 1]), packed=True)
    assert float(task.loss(model, batch).detach()) == pytest.approx(0, abs=1e-6)


def test_vectors_do_not_hang_on_what_else_is_embedded() -> None:
    task = task_of()
    model = task.build_model(1)
    texts = [str(row["text_pair"]) for row in ROWS]
    together = task.embed(model, [*texts, texts[0]], HERE)
    assert np.linalg.norm(together, axis=1) == pytest.approx(np.ones(9), abs=1e-5)
    assert np.array_equal(together[0], together[8])
    assert task.embed(model, texts[3:4], HERE)[0] == pytest.approx(together[3], abs=1e-5)
    assert task.embed(model, [], HERE).shape == (0, 16)


def test_predictions_and_their_figures() -> None:
    task = task_of()
    model = task.build_model(1)
    predictions = task.predict(model, ROWS, HERE)
    assert {p["candidates"] for p in predictions} == {8} and set(predictions[0]) >= {"text", "text_pair", "prediction", "rank"}
    figures = task.judge(model, task.encode(ROWS, "x"), HERE)
    scored = task.score(predictions)
    assert next(iter(figures)) == "loss" and all(figures[name] == scored[name] for name in figures if name != "loss")
    alone = task.predict(model, [{"text": "word1"}], HERE)
    assert len(alone[0]["embedding"]) == 16
    rated = task_of(score="score").predict(model, ROWS, HERE)
    assert rated[3]["label"] == 3 / 7 and isinstance(task_of(score="score").score(rated)["spearman"], Figure)


def test_rank_of_a_pair_leaves_out_what_belongs_as_well() -> None:
    first = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    second = np.array([[0.6, 0.8], [1, 0], [0, 1]], np.float32)
    ranks, candidates = pair_ranks(["a", "a", "b"], ["x", "y", "z"], first, second)
    assert (ranks.tolist(), candidates) == ([1, 1, 1], 3)
    ranks, _ = pair_ranks(["a", "c", "b"], ["x", "y", "z"], first, second)
    assert ranks.tolist() == [2, 1, 1]


def test_ranking_figures_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(30, 40))
    one = rng.integers(40, size=30)
    many = rng.random((30, 40)) < 0.1
    many[np.arange(30), one] = True
    order = (-scores).argsort(1).argsort(1) + 1.0
    single = ranking_scores([order[i, [one[i]]] for i in range(30)])
    for k in (1, 5, 10):
        assert single[f"recall@{k}"].mean() == pytest.approx(top_k_accuracy_score(one, scores, k=k, labels=np.arange(40)))
    truth = np.zeros((30, 40))
    truth[np.arange(30), one] = 1
    assert single["mrr"].mean() == pytest.approx(label_ranking_average_precision_score(truth, scores))
    several = ranking_scores([order[i, many[i]] for i in range(30)])
    assert several["ndcg@10"].mean() == pytest.approx(ndcg_score(many.astype(float), scores, k=10))
    figures = ranking_figures([np.array([np.inf]), np.array([2.0])])
    assert [round(f.value, 3) for f in figures.values() if isinstance(f, Figure)] == [0, 0.5, 0.5, 0.25, 0.315]


def test_bad_pairs() -> None:
    with pytest.raises(InputError, match=r"task.score: row 2 of x has 'much' in column 'score'; give a number"):
        task_of(score="score").encode([ROWS[0], ROWS[1] | {"score": "much"}], "x")
    with pytest.raises(InputError, match=r"task.text_pair: row 1 of x has no 'text_pair'; its columns: text"):
        task_of().encode([{"text": "a"}], "x")
    with pytest.raises(InputError, match=r"task.text_pair: similarity needs it"):
        load(Recipe, None, ["task.kind=similarity"])
