"""Every number of a sentence, by the formulas alone, equals the model's own; the article's example, its arithmetic done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from zenspeed.cli import app
from zenspeed.config import InputError
from zenspeed.explain.article import claims, consistent
from zenspeed.explain.model import Opened, explain, open_model
from zenspeed.explain.show import page, terminal
from zenspeed.models.build import build_model
from zenspeed.models.heads import Head
from zenspeed.models.hf import to_huggingface
from zenspeed.models.presets import ModelConfig
from zenspeed.text.tokenizer import Tokenizer

TEXTS = ["the film was a long story", "good people talk about bad weather"] * 9
MODELS: dict[str, tuple[Head, dict[str, Any]]] = {
    "gpt": ("language", {"preset": "gpt", "ngrams": (2, 3), "ngram_rows": 64}),
    "gpt2": ("language", {"preset": "gpt2"}),
    "llama, grouped, window": ("language", {"preset": "llama", "kv_heads": 2, "window": 3}),
    "qwen": ("language", {"preset": "qwen", "logit_softcap": 5.0}),
    "alibi": ("language", {"position": "alibi"}),
    "rezero": ("language", {"preset": "rezero"}),
    "experts": ("language", {"experts": 3, "activation": "geglu"}),
    "a decoder under a label": ("label", {"preset": "gpt"}),
    "bert, label": ("label", {"preset": "bert"}),
    "bert, masked": ("masked", {"preset": "bert"}),
    "roberta, span": ("span", {"preset": "roberta"}),
    "bert, embedding": ("embedding", {"preset": "bert", "pool": "mean"}),
    "transformer": ("language", {"preset": "transformer"}),
    "t5": ("language", {"preset": "t5", "activation": "gelu_tanh"}),
}


def opened(head: Head, **config: Any) -> Opened:
    tokenizer = Tokenizer.train("wordpiece", TEXTS, 60)
    size: dict[str, Any] = {"layers": 2, "width": 32, "heads": 4, "context": 32, "dropout": 0.1}
    model = build_model(ModelConfig(**size | config), tokenizer.vocab_size, head, labels=3)
    torch.manual_seed(0)
    with torch.no_grad():  # away from where norms are 1, biases and outputs 0
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return Opened(model.eval(), tokenizer, ["bad", "good", "odd"])


@pytest.mark.parametrize("name", MODELS)
def test_formulas_give_the_models_numbers(name: str) -> None:
    head, config = MODELS[name]
    both = config.get("preset") in ("transformer", "t5")
    trace = explain(opened(head, **config), "the long weather", "good people" if both else None)
    assert len(trace.checks) == (5 if both else 3) and trace.checks[-1][0] == "output"
    assert all(difference < 2e-5 for _, difference in trace.checks)
    weights = [step.value for step in trace.steps if step.name.endswith(": weights")]
    assert len(weights) == 4 * (6 if both else 2)  # heads × layers; an encoder-decoder has two kinds in its decoder
    assert all(torch.allclose(w.sum(1), torch.ones(len(w), dtype=w.dtype)) for w in weights)
    lines = "\n".join(terminal(trace, 3))
    assert "head 4: scores" in lines and "(the first 3 of" in lines
    html = page("a <b>", trace, [])
    assert html.count("<table>") == len(trace.steps) and "a &lt;b&gt;" in html


def test_a_difference_is_no_small_thing() -> None:
    """A model whose forward pass is not the formula is refused: here one that lets a token see what follows."""
    model = opened("language", preset="gpt2")
    model.model.get_submodule("blocks.1.feed_forward").activation = "relu"  # type: ignore[assignment]
    explain(model, "the long weather")  # the formula follows the module
    model.model.get_submodule("blocks.1.attention").register_forward_hook(lambda module, inputs, output: output * 1.001)
    with pytest.raises(ArithmeticError, match="model block 2: the formulas give other numbers than the model"):
        explain(model, "the long weather")


def test_a_folder_of_hugging_face_layout_on_the_command_line(tmp_path: Path) -> None:
    model = opened("label", preset="bert")
    to_huggingface(model.model, tmp_path)
    model.tokenizer.save(tmp_path)
    done = CliRunner().invoke(
        app, ["explain", str(tmp_path), "a good film", "--part", "block 2", "--html", f"{tmp_path}/x.html"]
    )
    assert done.exit_code == 0, done.output
    assert "model block 2" in done.output and "model block 1" not in done.output and "in 3 places" in done.output
    assert (tmp_path / "x.html").read_text(encoding="utf-8").count("head 1: scores") == 1
    with pytest.raises(InputError, match="but the model has places for 32; give a shorter one"):
        explain(open_model(tmp_path), "film " * 34)
    with pytest.raises(InputError, match="is for an encoder-decoder"):
        explain(open_model(tmp_path), "film", "film")
    for wrong, message in (
        (["explain"], "give a model and a sentence"),
        (["explain", str(tmp_path), "x", "--part", "y"], "no such"),
    ):
        assert message in str(CliRunner().invoke(app, wrong).exception)


def test_the_articles_example() -> None:
    found = claims()
    right = {claim.line: claim.right for claim in found}
    assert right["Q_1 K_1ᵀ = [2, 4] · [25, 30]"] == [170.0] and right["FFN([20.275, 27.25])"] == [123.375, 359.0]
    assert right["softmax([125, 160])"][1] == pytest.approx(1) and not any(claim.holds for claim in found)
    steps = {(step.part, step.name): step.value for step in consistent().steps}
    assert steps["head 1", "queries"][1].tolist() == pytest.approx([3.1, 6.2])
    by_hand = sum(q * k for q, k in zip([1.1, 2.2], [3.1 * 5, 3.1 * 6], strict=True)) / 2**0.5
    assert float(steps["head 1", "scores"][0, 1]) == pytest.approx(by_hand)
    doc = (Path(__file__).parents[2] / "docs" / "explain.md").read_text(encoding="utf-8")
    assert all(line in doc for line in right), "write it again: python docs/make_explain.py"
