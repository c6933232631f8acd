"""The compiled blocks of an encoder: the hidden states of torch, and the same bits whoever shares the batch."""

from __future__ import annotations

import queue
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.test_serve_gate import PROBES, opened
from zenspeed.data.packing import document_numbers, fill, pack_in_one, pad
from zenspeed.models.build import build_model
from zenspeed.models.presets import ModelConfig
from zenspeed.serve import gate
from zenspeed.serve.compiled import build, compiler, processor_has
from zenspeed.serve.encoder import SOURCE, obstacle, with_kernel
from zenspeed.serve.predicting import Predictor
from zenspeed.serve.waiting import KERNEL_TOKENS

CACHE = Path.home() / ".cache" / "zenspeed" / "kernels"
runs = pytest.mark.skipif(compiler() is None or not processor_has("avx512f"), reason="no C++ compiler, or no AVX-512")
WEIGHTS = ["fp32", *(["bf16"] if processor_has("avx512_bf16") else [])]
LENGTHS = (5, 40, 1, 17, 16, 61, 33)
SHAPE: dict[str, Any] = {"layers": 2, "width": 64, "heads": 4, "feed_forward": 96, "context": 64}


@pytest.fixture(scope="module")
def library() -> Path:
    built = build(CACHE, SOURCE)
    assert built is not None
    return built


def make(**more: Any) -> Any:
    model: Any = build_model(ModelConfig(**{"preset": "bert", **SHAPE, **more}), 101, "embedding").eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.1 + (p.ndim == 1))
    return model


def texts_of(lengths: Sequence[int]) -> list[np.ndarray]:
    return [np.random.default_rng(n).integers(0, 101, n) for n in lengths]


def hidden(model: Any, texts: Sequence[np.ndarray], layout: Any = pack_in_one, types: bool = False) -> list[np.ndarray]:
    """Of each text, (its tokens, C)."""
    lengths = [len(text) for text in texts]
    at = layout(lengths)
    more = {"token_types": fill(at, [np.arange(n) % 2 for n in lengths], 0)} if types else {}
    with torch.no_grad():
        out = model.body.hidden_states(fill(at, texts, 0), document_numbers(at, lengths), **more).numpy()
    return [out[row, column : column + n] for row, column, n in zip(at.rows, at.columns, lengths, strict=True)]


@runs
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"preset": "roberta", "activation": "gelu_tanh", "kv_heads": 2},
        {"norm_placement": "pre", "norm": "rmsnorm", "position": "sinusoidal", "activation": "relu", "bias": False},
        {"position": "none", "embedding_norm": False, "activation": "relu_squared", "head_size": 32, "token_types": 0},
        {"scale_attention": False, "scale_embeddings": True, "norm_placement": "pre"},
    ],
)
def test_hidden_states_are_those_of_torch(library: Path, weights: Any, more: dict[str, Any]) -> None:
    model = make(**more)
    assert obstacle(model, "fp32") is None
    served = with_kernel(model, library, weights)
    for layout in (pack_in_one, pad):
        wanted = hidden(model, texts_of(LENGTHS), layout, types=not more)
        found = hidden(served, texts_of(LENGTHS), layout, types=not more)
        for ours, theirs in zip(found, wanted, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=(1e-5 if weights == "fp32" else 1e-2) * np.abs(theirs).max())


@runs
@pytest.mark.parametrize("weights", WEIGHTS)
def test_bits_do_not_depend_on_company(library: Path, weights: Any) -> None:
    served = with_kernel(make(), library, weights)
    texts = texts_of(LENGTHS)
    alone = [hidden(served, [text])[0] for text in texts]
    for company in (texts, texts[::-1], texts * 9):  # of 400 tokens and more the rows of a product are cut in two
        found = hidden(served, company)
        for text, ours in zip(company, found, strict=True):
            number = next(i for i, other in enumerate(texts) if other is text)
            assert np.array_equal(ours, alone[number])


@pytest.mark.skipif(not processor_has("avx512f"), reason="no AVX-512")
@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"position": "rotary"}, "position 'rotary'"),
        ({"activation": "geglu"}, "activation 'geglu'"),
        ({"experts": 2}, "experts 2"),
        ({"window": 8}, "window 8"),
        ({"qk_norm": True}, "qk_norm True"),
        ({"feed_forward": 100}, "feed_forward 100"),
        ({"head_size": 24}, "a head's width 24"),
        ({"architecture": "decoder"}, "architecture 'decoder'"),
    ],
)
def test_what_the_kernel_cannot_run_is_named(more: dict[str, Any], named: str) -> None:
    assert obstacle(make(**more), "fp32") == named


@runs
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize(("head", "labels"), [("label", 3), ("embedding", 0)])
def test_rows_are_served_by_the_kernel(tmp_path: Path, head: str, labels: int, weights: str) -> None:
    trained = opened(tmp_path, head, labels)
    served, outcome = gate.open_rows(trained, weights, PROBES, CACHE)
    assert (outcome["weights"], outcome["core"]) == (weights, f"kernel, {weights}")
    assert 0 <= outcome["worst"] < gate.TOLERANCE[weights]
    assert served.model is not trained.model


@runs
def test_torch_answers_where_the_kernel_would_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gate.TOLERANCE, "fp32", -1.0)
    trained = opened(tmp_path, "label", 3)
    served, outcome = gate.open_rows(trained, "fp32", PROBES, CACHE)
    assert served is trained
    assert outcome["core"] == "torch"
    assert "probabilities of probe 0 differ by" in outcome["why"]
    assert gate.open_rows(trained, "fp32", PROBES, None)[1]["why"] == "kernel off"


@runs
def test_small_batches_and_the_same_bits_through_the_worker(tmp_path: Path) -> None:
    trained = opened(tmp_path, "label", 3)
    served, _ = gate.open_rows(trained, "fp32", PROBES, CACHE)
    rows = [{"text": probe} for probe in PROBES] * 40  # of 120 texts some 1,400 tokens
    assert served.tokenizer is not None
    tokens = [[text] for text in served.tokenizer.encode_batch([row["text"] for row in rows])]
    predictor, answers = Predictor(served), queue.Queue[Any]()
    alone = []
    for i in range(len(PROBES)):
        predictor.submit("predict", rows[i : i + 1], answers.put, tokens[i : i + 1])
        alone += answers.get(timeout=30)
    predictor.submit("predict", rows, answers.put, tokens)
    assert answers.get(timeout=30) == alone * 40
    predictor.close()
    assert predictor.batches - len(alone) >= sum(len(texts[0]) for texts in tokens) / KERNEL_TOKENS
