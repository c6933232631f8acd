"""Our count of floating-point operations against torch's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from zenspeed.models.build import build_model
from zenspeed.models.presets import ModelConfig
from zenspeed.models.transformer import Transformer
from zenspeed.ops import attention


@pytest.fixture(autouse=True)
def whole_squares(monkeypatch: pytest.MonkeyPatch) -> None:
    """A count is of all T² scores; attention leaves out the upper half and may make scores twice."""
    monkeypatch.setattr(attention, "STRIPE_TOKENS", 10**6)
    monkeypatch.setattr(attention, "KEPT_TOKENS", 10**6)


@pytest.mark.parametrize(
    "fields",
    [{"preset": "gpt"}, {"preset": "gpt2"}, {"preset": "llama"}, {"preset": "llama", "kv_heads": 2, "context": 2048}],
    ids=["gpt", "gpt2", "llama", "llama-gqa-long"],
)
def test_flops_per_token_agree_with_the_counter(fields: dict[str, Any]) -> None:
    model = Transformer(ModelConfig(**({"layers": 2, "width": 128, "heads": 4, "context": 256} | fields)), 1000)
    context = model.config.context
    tokens = torch.randint(0, 1000, (2, context))
    # The counter does not know the CPU's fused attention and would count nothing for it.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(tokens, targets=tokens).backward()
    assert counter.get_total_flops() / tokens.numel() == pytest.approx(model.flops_per_token(context), rel=0.02)


@pytest.mark.parametrize(
    ("fields", "head"),
    [
        ({"preset": "bert"}, "masked"),
        ({"preset": "bert"}, "label"),
        ({"preset": "bert"}, "span"),
        ({"preset": "qwen", "kv_heads": 2, "head_size": 48}, "language"),
        ({"preset": "llama"}, "label"),
        ({"preset": "rezero", "position": "alibi", "window": 9}, "language"),
        ({"preset": "transformer", "decoder_layers": 3}, "language"),
        ({"preset": "t5", "activation": "geglu"}, "language"),
        ({"preset": "gpt", "experts": 4}, "language"),
    ],
)
@pytest.mark.parametrize("source", [256, 64])
def test_flops_of_other_architectures(fields: dict[str, Any], head: Any, source: int) -> None:
    config = ModelConfig(**({"layers": 2, "width": 128, "heads": 4, "context": 256, "dropout": 0.0} | fields))
    two = config.architecture == "encoder_decoder"
    if source != config.context and not two:
        return
    model: Any = build_model(config, 1000, head, 3)
    tokens = torch.randint(0, 1000, (2, 256))
    inputs = {"source": torch.randint(0, 1000, (2, source))} if two else {}
    targets = {"label": torch.tensor([0, 1]), "span": torch.tensor([[0, 1], [300, 301]])}.get(head, tokens)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(tokens, targets=targets, **inputs).backward()
    said = model.flops_per_token(256, source) if two else model.flops_per_token(256)
    assert counter.get_total_flops() / tokens.numel() == pytest.approx(said, rel=0.02)


@pytest.mark.parametrize(("preset", "gates"), [("rnn", 1), ("lstm", 4)])
def test_flops_of_recurrent_models(preset: Any, gates: int) -> None:
    """The counter does not know torch's recurrent kernel: two products of C × C a gate, layer and token."""
    model: Any = build_model(ModelConfig(preset=preset, layers=2, width=128), 1000)
    assert model.flops_per_token(256) == 3 * 2 * (2 * gates * 2 * 128 * 128 + 128 * 1000)


def test_parameters_are_counted_once() -> None:
    config = ModelConfig(preset="gpt2", layers=1, width=64, heads=4, context=32)
    tied, untied = Transformer(config, 500), Transformer(config.model_copy(update={"tie_embeddings": False}), 500)
    assert untied.num_parameters() - tied.num_parameters() == 500 * 64
    block = 12 * 64 * 64 + (3 + 1 + 4 + 1) * 64 + 4 * 64  # matrices, their biases, two LayerNorms
    assert tied.num_parameters() == 500 * 64 + 32 * 64 + block + 2 * 64
