"""Beam search against transformers' on the same weights, for encoder-decoders and decoders; what it may not write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.parity.test_model_t5 import VOCAB, some_tokens
from tests.parity.test_models import hf_model
from zenspeed.config import InputError
from zenspeed.decode import BeamOptions, Hypothesis, beam_search
from zenspeed.models.hf import from_huggingface

transformers = pytest.importorskip("transformers")
END, NEW = 5, 12
PLAIN = {"do_sample": False, "early_stopping": False, "eos_token_id": END, "pad_token_id": 0}
CASES: dict[str, dict[str, Any]] = {
    "greedy": {"beams": 1},
    "four beams": {"beams": 4},
    "long texts": {"beams": 4, "length_penalty": 2.0},
    "short texts": {"beams": 3, "length_penalty": -1.0},
    "a minimum length": {"beams": 4, "min_tokens": 5, "length_penalty": 0.5},
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return both(untied_t5(), tmp_path_factory.mktemp("t5"))


def untied_t5() -> Any:
    torch.manual_seed(3)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 72, "num_layers": 2, "num_heads": 4, "vocab_size": VOCAB}
    config = transformers.T5Config(**sizes, decoder_start_token_id=0, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    return transformers.T5ForConditionalGeneration(config).eval()


def both(theirs: Any, folder: Path) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():  # of unlike texts, that end at unlike lengths
        for parameter in theirs.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        head = theirs.get_output_embeddings().weight
        head.copy_(torch.randn(head.shape, generator=generator) * 0.2)
        head[END] *= 3
    theirs.save_pretrained(folder)
    return theirs, from_huggingface(folder)[0]


def sources() -> tuple[torch.Tensor, torch.Tensor]:
    tokens = some_tokens(6, 11)
    lengths = torch.tensor([11, 3, 7, 1, 11, 5])
    numbers = torch.arange(6)[:, None].expand(6, 11)
    return tokens, numbers.masked_fill(torch.arange(11) >= lengths[:, None], -1)


def ours_of(model: Any, **options: Any) -> list[list[Hypothesis]]:
    tokens, documents = sources()
    cache = model.new_cache(tokens, NEW + 1, documents)
    begin = torch.zeros(len(tokens), 1, dtype=torch.int64)
    return beam_search(model, cache, begin, BeamOptions(max_tokens=NEW, end=END, **options))


def same(found: list[list[Hypothesis]], sequences: torch.Tensor, scores: torch.Tensor | None, prompt: int) -> None:
    beams = len(sequences) // len(found)
    assert len({len(h.tokens) for texts in found for h in texts}) > 2, "texts of one length would say little"
    for i, texts in enumerate(found):
        for k, text in enumerate(texts):
            row = sequences[i * beams + k, prompt:].tolist()
            theirs = row[: row.index(END)] if END in row else row[:NEW]
            assert text.tokens == theirs, (i, k)
            if scores is not None:
                assert text.score == pytest.approx(float(scores[i * beams + k]), rel=1e-5, abs=2e-5)


@pytest.mark.parametrize("name", CASES)
def test_encoder_decoder_equals_transformers(name: str, pair: tuple[Any, Any]) -> None:
    theirs, ours = pair
    options = CASES[name]
    tokens, documents = sources()
    beams = options["beams"]
    more = {"min_new_tokens": options["min_tokens"]} if "min_tokens" in options else {}
    out = theirs.generate(
        input_ids=tokens, attention_mask=(documents >= 0).long(), max_new_tokens=NEW, num_beams=beams,
        num_return_sequences=beams, length_penalty=options.get("length_penalty", 1.0), return_dict_in_generate=True,
        output_scores=True, **more, **PLAIN,
    )  # fmt: skip
    same(ours_of(ours, **options), out.sequences, out.sequences_scores if beams > 1 else None, 1)


def test_decoder_equals_transformers(tmp_path: Path) -> None:
    theirs, ours = both(hf_model("llama"), tmp_path)
    prompts = some_tokens(5, 6, seed=4)
    out = theirs.generate(
        input_ids=prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=NEW, num_beams=3, num_return_sequences=3,
        return_dict_in_generate=True, output_scores=True, **PLAIN,
    )  # fmt: skip
    cache = ours.new_cache(5, 6 + NEW)
    found = beam_search(ours, cache, prompts, BeamOptions(max_tokens=NEW, end=END, beams=3))
    same(found, out.sequences, out.sequences_scores, 6)


def test_only_allowed_tokens_are_written(pair: tuple[Any, Any]) -> None:
    allowed = torch.zeros(6, VOCAB, dtype=torch.bool)
    for i in range(6):
        allowed[i, [END, *range(10 + i, 20 + i)]] = True
    for i, texts in enumerate(ours_of(pair[1], allowed=allowed)):
        assert all(10 + i <= token < 20 + i for text in texts for token in text.tokens)
    only = torch.zeros(VOCAB, dtype=torch.bool)
    only[END] = True
    assert [[h.tokens for h in texts] for texts in ours_of(pair[1], allowed=only)] == [[[]]] * 6


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match=r"decode\.beams: 0; at least 1"):
        BeamOptions(max_tokens=3, end=1, beams=0)
    with pytest.raises(InputError, match=r"decode\.min_tokens: 3 leaves no room"):
        BeamOptions(max_tokens=3, end=1, min_tokens=3)
