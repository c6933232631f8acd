"""The compiled forward: the logits of torch, and the same bits whoever shares the step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from zenspeed.errors import InputError
from zenspeed.generate import generate
from zenspeed.models.presets import ModelConfig
from zenspeed.models.transformer import Transformer
from zenspeed.serve.compiled import build, compiler
from zenspeed.serve.core import Feed
from zenspeed.serve.gate import check
from zenspeed.serve.native import SOURCE, NativeCore, obstacle
from zenspeed.serve.pages import PAGE, PagePool, page_names
from zenspeed.serve.plain import PlainCore

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler")
V, CONTEXT = 101, 96


@pytest.fixture(scope="module")
def library() -> Path:
    built = build(Path.home() / ".cache" / "zenspeed" / "kernels", SOURCE)
    assert built is not None
    return built


def make(preset: str = "llama", **more: Any) -> Transformer:
    config = ModelConfig(preset=preset, layers=2, width=48, heads=4, context=CONTEXT, **more)  # type: ignore[arg-type]
    model = Transformer(config, V).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3 + (p.ndim == 1))
    return model


def tokens_of(length: int, seed: int = 0) -> list[int]:
    return torch.randint(0, V, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def open_stream(core: NativeCore, tokens: Sequence[int], total: int | None = None) -> Any:
    stream = core.open(tokens, total or len(tokens))
    assert stream is not None
    return stream


def read(core: NativeCore, stream: Any, pieces: Sequence[int], others: Sequence[Any] = ()) -> np.ndarray:
    """Logits behind the last token, `stream` read in `pieces`, each beside one token of every other stream."""
    for i, piece in enumerate(pieces):
        feeds = [Feed(stream, piece, i == len(pieces) - 1), *(Feed(other, 1, False) for other in others)]
        logits = core.step(feeds)
    return logits[0].copy()


OPTIONS = [
    ("llama", {}),
    ("gpt", {}),
    ("gpt2", {}),
    ("qwen", {"kv_heads": 2, "tie_embeddings": True}),
    ("llama", {"position": "alibi", "window": 9, "head_size": 12, "activation": "gelu", "feed_forward": 50, "bias": True}),
    ("gpt2", {"position": "sinusoidal", "scale_embeddings": True, "logit_softcap": 5.0, "activation": "relu"}),
    ("gpt", {"ngrams": (2, 4), "ngram_rows": 50}),
    ("llama", {"activation": "geglu", "feed_forward": 40, "embedding_norm": True, "position": "none"}),
]


@pytest.mark.parametrize(("preset", "more"), OPTIONS, ids=lambda value: value if isinstance(value, str) else "-".join(value))
def test_logits_are_those_of_torch(library: Path, preset: str, more: dict[str, Any]) -> None:
    model = make(preset, **more)
    assert obstacle(model) is None
    core = NativeCore(model, library, max_tokens=CONTEXT, threads=2)
    tokens = tokens_of(CONTEXT)
    with torch.no_grad():
        wanted = model(torch.tensor([tokens]))[0].numpy()
    stream = open_stream(core, tokens)
    found = [read(core, stream, [37])] + [read(core, stream, [1]) for _ in range(CONTEXT - 37)]
    core.shut()
    np.testing.assert_allclose(np.stack(found), wanted[36:], atol=3e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("weights", ["fp32", "bf16", "int8"])
def test_bits_do_not_depend_on_company_pieces_or_threads(library: Path, weights: Any) -> None:
    model, tokens = make("qwen", kv_heads=2, ngrams=(3,), ngram_rows=50), tokens_of(50)
    alone = NativeCore(model, library, max_tokens=CONTEXT, weights=weights, threads=1)
    wanted = read(alone, open_stream(alone, tokens), [50])
    core = NativeCore(model, library, max_tokens=20 * CONTEXT, weights=weights, threads=2)
    for count, pieces in ((0, [1] * 50), (1, [7, 43]), (3, [17] * 2 + [16]), (11, [30, 19, 1])):
        others = [open_stream(core, tokens_of(60, seed=9 + i)) for i in range(count)]
        stream = open_stream(core, [(tokens[0] + 1 + count) % V, *tokens], 52)  # another beginning: no page is shared
        core.close(stream)
        stream = open_stream(core, tokens, 50)
        stream.num_read = 0  # also the pages that are known are computed again
        np.testing.assert_array_equal(read(core, stream, pieces, others), wanted)
        for other in [*others, stream]:
            core.close(other)
    alone.shut()
    core.shut()


def test_a_shared_beginning_is_read_once_and_changes_nothing(library: Path) -> None:
    core = NativeCore(make(), library, max_tokens=4 * CONTEXT, threads=1)
    tokens = tokens_of(70)
    first = open_stream(core, tokens)
    wanted = read(core, first, [70])
    second = open_stream(core, [*tokens[:50], *tokens_of(20, seed=3)])
    assert second.num_read == 48
    assert second.pages[:3] == first.pages[:3]
    third = open_stream(core, tokens)
    assert third.num_read == 64
    np.testing.assert_array_equal(read(core, third, [6]), wanted)
    core.shut()


def test_a_step_after_the_gate_of_each_type_of_weight_passes_and_a_wrong_model_does_not(library: Path) -> None:
    model = make()
    probes = [tokens_of(24, seed=i) for i in range(3)]
    for weights in ("fp32", "bf16", "int8"):
        core = NativeCore(model, library, max_tokens=CONTEXT, weights=weights, threads=1)  # type: ignore[arg-type]
        outcome = check(model, core, weights, probes)
        assert outcome["tokens"] == 72
        core.shut()
    core = NativeCore(model, library, max_tokens=CONTEXT, threads=1)
    with torch.no_grad():
        model.blocks[1].feed_forward.down.weight[0] += 0.5
    with pytest.raises(InputError, match="not served: answers differ from the trained model's: probe 0, token 0"):
        check(model, core, "fp32", probes)
    core.shut()


def test_greedy_tokens_are_those_of_generate(library: Path) -> None:
    model, prompt = make("gpt2"), tokens_of(20)
    wanted = list(generate(model, prompt, max_tokens=30, temperature=0))
    for core in (NativeCore(model, library, max_tokens=CONTEXT, threads=1), PlainCore(model, max_tokens=CONTEXT)):
        stream: Any = core.open(prompt, 50)
        found = []
        while len(found) < 30:
            found.append(int(core.step([Feed(stream, len(stream.tokens) - stream.num_read, True)])[0].argmax()))
            stream.tokens.append(found[-1])
        assert found == wanted


def test_what_the_kernel_cannot_run_is_named() -> None:
    assert obstacle(make("rezero")) == "norm_placement 'rezero'"
    assert obstacle(make(experts=2)) == "experts 2"
    assert obstacle(torch.nn.Linear(1, 1)) == "Linear is no decoder of ours"


def test_pages_are_reused_the_longest_unused_first_and_never_while_in_use() -> None:
    pool = PagePool(4)
    tokens = list(range(3 * PAGE))
    names = page_names(tokens)
    held = pool.take([], 3)
    assert held is not None
    assert pool.take([], 2) is None
    for page, name in zip(held, names, strict=True):
        pool.name(page, name)
    pool.give_back(held)
    assert pool.available == 4
    shared, _ = pool.find(tokens)
    assert shared == held[:2]  # the last token is always read, so that there are logits
    again = pool.take(shared, 2)
    assert again is not None
    assert again[:2] == held[:2]
    assert set(again[2:]) == {held[2], 3} - {held[0], held[1]} or len(set(again)) == 4
    assert pool.find([*tokens, 1])[0] == held[:2]  # the third page was taken for something else
    assert page_names([1, *tokens[1:]])[2] != names[2]  # a name holds all that comes before
