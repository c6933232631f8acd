"""Hashed n-gram embeddings: the same tokens give the same row, nothing leaks across documents, the cache gives the same."""

from __future__ import annotations

import torch

from zenspeed.generate import generate
from zenspeed.models.presets import ModelConfig
from zenspeed.models.transformer import Transformer
from zenspeed.ops.ngram import ngram_rows


def model() -> Transformer:
    out = Transformer(ModelConfig(layers=2, width=32, heads=2, context=16, ngrams=(2, 3, 4), ngram_rows=64, init="gpt2"), 31)
    out.init_weights(0)
    with torch.no_grad():
        out.ngrams.weight.normal_(generator=torch.Generator().manual_seed(1))
    return out.eval()


def test_rows() -> None:
    tokens = torch.randint(50, (4, 5000), generator=torch.Generator().manual_seed(0))
    rows = ngram_rows(tokens, 3, 1000)
    assert rows.min() >= 0 and rows.max() < 1000
    # equal trigrams, equal rows; different ones rarely so: well spread over the table
    assert torch.equal(rows[:, 10:], ngram_rows(tokens[:, 5:], 3, 1000)[:, 5:])
    counts = torch.bincount(rows.flatten(), minlength=1000).double()
    assert counts.std() < 3 * counts.mean().sqrt()
    assert not torch.equal(ngram_rows(tokens.flip(1), 2, 1000), ngram_rows(tokens, 2, 1000).flip(1))


def test_a_document_inside_a_sequence_is_as_alone() -> None:
    net = model()
    tokens = torch.randint(1, 31, (1, 16), generator=torch.Generator().manual_seed(2))
    tokens[0, 0] = tokens[0, 7] = 0
    packed = net(tokens, documents=(tokens == 0).cumsum(1))
    assert torch.allclose(packed[0, 7:], net(tokens[:, 7:])[0], atol=1e-5)
    assert not torch.allclose(net(tokens)[0, 7:], net(tokens[:, 7:])[0], atol=1e-2)  # else the test above shows nothing


def test_token_by_token_with_a_cache_equals_all_at_once() -> None:
    net = model()
    tokens = torch.randint(31, (2, 16), generator=torch.Generator().manual_seed(3))
    cache = net.new_cache(2, 16)
    pieces = [net(tokens[:, i : i + 1], cache=cache) for i in range(16)]  # from a first call shorter than any n-gram
    assert torch.allclose(torch.cat(pieces, 1), net(tokens), atol=1e-5)
    assert len(list(generate(net, [1], max_tokens=40, seed=1))) == 40  # beyond the context
