"""What answers rows in bf16: served where its answers are the trained model's, refused where they are not."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from zenspeed.errors import InputError
from zenspeed.models.build import build_model
from zenspeed.models.hf import to_huggingface
from zenspeed.models.layers import FeedForward
from zenspeed.models.presets import ModelConfig
from zenspeed.serve.gate import open_rows
from zenspeed.serve.opened import Opened, open_model
from zenspeed.serve.packed import PackedLinear, can_pack, pack
from zenspeed.text.tokenizer import Tokenizer

PROBES = ("The quick brown fox jumps.", "It sleeps.", "In 1987 the price was 4.50 dollars")


def opened(folder: Path, head: Any, labels: int, louder: float = 1.0) -> Opened:
    tokenizer = Tokenizer.train("wordpiece", [*PROBES] * 20, 200)
    config = ModelConfig(preset="bert", layers=2, width=32, heads=2, feed_forward=64, context=64)
    model: Any = build_model(config, tokenizer.vocab_size, head, labels)
    model.init_weights(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(louder)
    to_huggingface(model, folder, tokenizer.end_of_text)
    tokenizer.save(folder)
    return open_model(folder)


@pytest.mark.parametrize(("head", "labels"), [("label", 3), ("embedding", 0)])
def test_products_are_in_bf16_and_answers_the_same(tmp_path: Path, head: str, labels: int) -> None:
    trained = opened(tmp_path, head, labels)
    half, outcome = open_rows(trained, "bf16", PROBES, None)
    assert outcome["weights"] == "bf16" and 0 < outcome["worst"] < 0.02
    linear = [part.weight.dtype for part in half.model.modules() if isinstance(part, nn.Linear)]
    packed = [part for part in half.model.modules() if isinstance(part, PackedLinear)]
    assert set(linear) <= {torch.bfloat16}
    assert not linear if can_pack() else linear
    assert len(linear) + len(packed) == sum(isinstance(part, nn.Linear) for part in trained.model.modules())
    assert all(p.dtype == torch.float32 for p in trained.model.parameters())
    if head == "label":
        rows = [{"text": text} for text in PROBES]
        assert trained.task is not None and half.task is not None
        before, after = (o.task.predict(o.model, rows, o.place) for o in (trained, half))  # type: ignore[union-attr]
        assert [a["prediction"] for a in after] == [b["prediction"] for b in before]
        assert np.allclose([list(a["scores"].values()) for a in after], [list(b["scores"].values()) for b in before], atol=0.02)


@pytest.mark.skipif(not can_pack(), reason="this processor has no products in bf16")
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu", "geglu"])
@pytest.mark.parametrize("bias", [True, False])
def test_packed_layers_are_those_they_stand_for(activation: Any, bias: bool) -> None:
    config = ModelConfig(preset="bert", layers=1, width=32, heads=2, feed_forward=48, activation=activation, bias=bias)
    trained = nn.Sequential(FeedForward(config))
    for seed, parameter in enumerate(trained.parameters()):
        nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(seed))
    packed = copy.deepcopy(trained)
    pack(packed)
    assert not any(isinstance(part, nn.Linear) for part in packed.modules())
    x = torch.randn(1, 24, 32, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        wanted, found = trained(x), packed(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), wanted, atol=0.02 * float(wanted.abs().max()), rtol=0)


def test_a_model_that_bf16_is_too_coarse_for_is_not_served(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"--weights bf16: not served: probabilities of probe \d differ by .* take --weights fp32"
    ):
        open_rows(opened(tmp_path, "label", 3, louder=40.0), "bf16", PROBES, None)
