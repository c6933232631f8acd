"""Encoder-decoders: T5 against Hugging Face's, the Transformer of 2017 against torch's, caches and packing against plain."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from zenspeed.models.build import build_model
from zenspeed.models.encoder_decoder import EncoderDecoder
from zenspeed.models.hf import from_huggingface, to_huggingface
from zenspeed.models.presets import ModelConfig
from zenspeed.ops.loss import IGNORE

transformers = pytest.importorskip("transformers")
VOCAB = 97
PAIRS = [(9, 5), (3, 11), (14, 2), (1, 7)]  # tokens of source and target
T5 = {
    "t5": {},
    "t5-1.1": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "num_decoder_layers": 3},
    "t5-silu": {"feed_forward_proj": "gated-silu", "d_kv": 12},
}


def hf_t5(name: str) -> Any:
    torch.manual_seed(3)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 72, "num_layers": 2, "num_heads": 4, "vocab_size": VOCAB}
    buckets = {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 12}
    config = transformers.T5Config(**(sizes | buckets | {"decoder_start_token_id": 0} | T5[name]))
    model = transformers.T5ForConditionalGeneration(config).eval()
    if name == "t5-1.1":  # made anew it is tied; the published ones are not
        model.lm_head.weight = nn.Parameter(torch.randn(VOCAB, 32) * 0.1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def scrambled(preset: str, **fields: Any) -> EncoderDecoder:
    options = {"layers": 2, "width": 32, "heads": 4, "context": 24, "dropout": 0.0, "relative_distance": 20} | fields
    model = build_model(ModelConfig(preset=preset, **options), VOCAB)  # type: ignore[arg-type]
    assert isinstance(model, EncoderDecoder)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + ("norm" in name))
    return model.eval()


NGRAMS: dict[str, Any] = {"architecture": "encoder_decoder", "ngrams": (2, 3), "ngram_rows": 64}
VARIANTS = pytest.mark.parametrize(("preset", "fields"), [("transformer", {}), ("t5", {}), ("gpt", NGRAMS)])


def some_tokens(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(1, VOCAB, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", T5)
def test_t5_equals_hugging_face_both_ways(name: str, tmp_path: Path) -> None:
    theirs = hf_t5(name)
    theirs.save_pretrained(tmp_path / "theirs")
    ours, config = from_huggingface(tmp_path / "theirs")
    assert isinstance(ours, EncoderDecoder)
    assert config.tie_embeddings is config.scale_logits is (name != "t5-1.1")
    to_huggingface(ours, tmp_path / "ours", end_of_text=1)
    again = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "ours").eval()
    assert from_huggingface(tmp_path / "ours")[1] == config
    source, tokens = some_tokens(3, 20), some_tokens(3, 17, seed=2)
    numbers = torch.arange(3)[:, None].expand(3, 20)
    documents = numbers.masked_fill(torch.arange(20) >= torch.tensor([[20], [13], [1]]), -1)
    mask = (documents >= 0).long()
    with torch.no_grad():
        expected = theirs(input_ids=source, attention_mask=mask, decoder_input_ids=tokens).logits
        assert expected.std() > 0.5, "logits that hardly vary would agree whatever we do"
        got = ours(tokens, source=source, source_documents=documents)
        assert (got - expected).abs().max() <= 1e-4
        assert (again(input_ids=source, attention_mask=mask, decoder_input_ids=tokens).logits - expected).abs().max() <= 1e-4


def test_greedy_tokens_through_the_cache_equal_hugging_face(tmp_path: Path) -> None:
    theirs = hf_t5("t5")
    theirs.save_pretrained(tmp_path)
    ours, _ = from_huggingface(tmp_path)
    assert isinstance(ours, EncoderDecoder)
    source = some_tokens(3, 20)
    expected = theirs.generate(source, max_new_tokens=16, do_sample=False, eos_token_id=None, pad_token_id=0)
    cache, tokens = ours.new_cache(source, 24), torch.zeros(3, 1, dtype=torch.int64)
    with torch.no_grad():
        for _ in range(16):
            following = ours(tokens[:, -1:], cache=cache)[:, -1].argmax(-1, keepdim=True)
            tokens = torch.cat([tokens, following], dim=1)
    assert torch.equal(tokens, expected[:, :17])


def test_the_transformer_equals_torchs() -> None:
    """Post-norm, ReLU, embeddings times √C plus sinusoids by the formula of the paper, head tied to the embedding."""
    ours = scrambled("transformer", decoder_layers=3)
    theirs = nn.Transformer(32, 4, 2, 3, 128, dropout=0.0, batch_first=True).eval()
    theirs.encoder.norm = theirs.decoder.norm = None  # type: ignore[assignment] – torch adds one more at the end
    for stack in ("encoder", "decoder"):
        for block, layer in zip(ours.get_submodule(stack).blocks, getattr(theirs, stack).layers, strict=True):  # type: ignore[arg-type]
            pairs = {"self_attn.in_proj_": block.attention.qkv, "self_attn.out_proj.": block.attention.out,
                     "linear1.": block.feed_forward.up, "linear2.": block.feed_forward.down, "norm1.": block.attention_norm,
                     f"norm{3 if block.cross else 2}.": block.feed_forward_norm}  # fmt: skip
            if block.cross:
                pairs |= {"multihead_attn.out_proj.": block.cross.out, "norm2.": block.cross_norm}
            state = {f"{name}{kind}": getattr(part, kind) for name, part in pairs.items() for kind in ("weight", "bias")}
            if block.cross:
                for kind in ("weight", "bias"):
                    both = torch.cat([getattr(block.cross.q, kind), getattr(block.cross.kv, kind)])
                    state[f"multihead_attn.in_proj_{kind}"] = both
            layer.load_state_dict(state)
    source, tokens = some_tokens(2, 9), some_tokens(2, 7, seed=2)
    table = torch.tensor([[(math.sin, math.cos)[i % 2](p / 10000 ** (2 * (i // 2) / 32)) for i in range(32)] for p in range(9)])
    weight = ours.embedding.weight
    embed = lambda t: weight[t] * math.sqrt(32) + table[: t.shape[1]]  # noqa: E731
    causal = nn.Transformer.generate_square_subsequent_mask(7)
    with torch.no_grad():
        expected = theirs(embed(source), embed(tokens), tgt_mask=causal) @ weight.t()
        torch.testing.assert_close(ours(tokens, source=source), expected, atol=1e-4, rtol=1e-4)


def pairs_packed() -> dict[str, torch.Tensor]:
    """Sources and targets of a pair are in the same row, in another order."""
    source, source_documents = torch.zeros(2, 20, dtype=torch.int64), torch.full((2, 20), -1)
    tokens, documents = torch.zeros(2, 18, dtype=torch.int64), torch.full((2, 18), -1)
    for row, numbers in ((0, (2, 1)), (1, (0, 3))):
        for order, texts, owners, side in ((numbers, source, source_documents, 0), (numbers[::-1], tokens, documents, 1)):
            start = 0
            for number in order:
                length = PAIRS[number][side]
                texts[row, start : start + length] = some_tokens(length, seed=10 * number + side)
                owners[row, start : start + length] = number
                start += length
    return {"tokens": tokens, "documents": documents, "source": source, "source_documents": source_documents}


@VARIANTS
def test_packed_equals_one_by_one_in_logits_and_gradients(preset: str, fields: dict[str, Any]) -> None:
    model, batch = scrambled(preset, **fields), pairs_packed()
    documents = batch["documents"]
    targets = torch.where(documents >= 0, batch["tokens"].roll(-1, 1), IGNORE)
    packed = model(**batch)
    assert torch.isfinite(packed).all()
    loss = model(**batch, targets=targets)
    got = torch.autograd.grad(loss, list(model.parameters()))
    total = torch.zeros(())
    for number, (s, t) in enumerate(PAIRS):
        source, tokens = some_tokens(1, s, seed=10 * number), some_tokens(1, t, seed=10 * number + 1)
        alone = model(tokens, source=source)
        torch.testing.assert_close(packed[documents == number], alone[0], atol=2e-5, rtol=1e-4)
        total = total + F.cross_entropy(alone[0], targets[documents == number], reduction="sum")
    torch.testing.assert_close(loss, total, atol=1e-3, rtol=1e-5)
    wanted = torch.autograd.grad(total, list(model.parameters()))
    for (name, _), a, b in zip(model.named_parameters(), got, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3, msg=name)


@VARIANTS
def test_cached_equals_uncached_and_rows_are_selected(preset: str, fields: dict[str, Any]) -> None:
    model, source, tokens = scrambled(preset, **fields), some_tokens(3, 9), some_tokens(3, 12, seed=2)
    documents = torch.arange(3)[:, None].expand(3, 9).masked_fill(torch.arange(9) >= torch.tensor([[9], [4], [7]]), -1)
    with torch.no_grad():
        full = model(tokens, source=source, source_documents=documents)
        cache = model.new_cache(source, 12, documents)
        steps = [model(tokens[:, a:b], cache=cache) for a, b in ((0, 3), (3, 4), (4, 5))]
        torch.testing.assert_close(torch.cat(steps, 1), full[:, :5], atol=2e-5, rtol=1e-4)
        rows = torch.tensor([2, 0, 0, 1])
        cache.select(rows)
        rest = [model(tokens[rows, t : t + 1], cache=cache) for t in range(5, 12)]
        torch.testing.assert_close(torch.cat(rest, 1), full[rows, 5:], atol=2e-5, rtol=1e-4)


def test_a_target_without_source_sees_nothing_of_others() -> None:
    model, batch = scrambled("t5"), pairs_packed()
    batch["source_documents"] = batch["source_documents"].masked_fill(batch["source_documents"] == 2, -1)
    alone = batch | {"source": batch["source"].masked_fill(batch["source_documents"] == 1, 5)}
    with torch.no_grad():
        a, b = model(**batch), model(**alone)
    chosen = batch["documents"] == 2
    assert torch.isfinite(a).all()
    assert torch.equal(a[chosen], b[chosen])
    assert not torch.equal(a[batch["documents"] == 1], b[batch["documents"] == 1])
