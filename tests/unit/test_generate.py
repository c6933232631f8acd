"""Sampling, streaming of text, stop strings, and requests that cannot be met."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from zenspeed.config import InputError
from zenspeed.generate import generate, generate_text, sample
from zenspeed.models.presets import ModelConfig
from zenspeed.models.transformer import Transformer


class Bytes:
    """A tokenizer of bytes: one character may be several tokens."""

    end_of_text, vocab_size = 256, 257

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, tokens: list[int]) -> str:
        return bytes(t for t in tokens if t < 256).decode(errors="replace")


class Parrot(Transformer):
    """Says `script` token by token, whatever the weights are, and keeps what it was given."""

    def __init__(self, script: list[int]) -> None:
        super().__init__(ModelConfig(layers=1, width=8, heads=2, context=64), 257)
        self.script, self.heard = script, [0][:0]

    def hidden_states(self, tokens: Any, *args: Any, cache: Any = None, **kwargs: Any) -> Any:
        self.heard += tokens[0].tolist()
        return torch.zeros(*tokens.shape, 8)

    def logits(self, hidden: Any) -> Any:
        said = len(self.heard) - self.prompt_tokens
        return torch.nn.functional.one_hot(torch.tensor(self.script[said]), 257) * 50.0

    prompt_tokens = 1


def model(preset: str = "llama", context: int = 24) -> Transformer:
    torch.manual_seed(1)
    config = ModelConfig(preset=preset, layers=2, width=32, heads=4, kv_heads=2, context=context)  # type: ignore[arg-type]
    built = Transformer(config, 257)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.normal_(0, 0.3)
    return built


def say(text: str, **kwargs: Any) -> list[str]:
    parrot = Parrot([*text.encode(), 256, *[0] * 50])
    return list(generate_text(parrot, Bytes(), "", max_tokens=60, temperature=0, **kwargs))


@pytest.mark.parametrize("preset", ["gpt", "gpt2", "llama"])
def test_greedy_tokens_are_those_of_the_model_without_a_cache(preset: str) -> None:
    built, tokens = model(preset), [5, 9, 200]
    expected = list(tokens)
    for _ in range(20):
        expected.append(int(built(torch.tensor([expected]))[0, -1].argmax()))
    assert list(generate(built, tokens, max_tokens=20, temperature=0)) == expected[3:]


def test_same_seed_same_tokens() -> None:
    built = model()
    first, again, other = (list(generate(built, [1], max_tokens=15, seed=s)) for s in (3, 3, 4))
    assert first == again != other
    two = [generate(built, [1], max_tokens=15, seed=3) for _ in range(2)]  # read in turns: no state is shared
    assert list(zip(*two, strict=True)) == list(zip(first, first, strict=True))


def test_goes_on_beyond_the_context_with_rotary_positions() -> None:
    assert len(list(generate(model(context=8), [1, 2, 3], max_tokens=40))) == 40


def test_a_model_in_training_mode_generates_without_dropout_and_stays_in_it() -> None:
    built = Transformer(ModelConfig(layers=1, width=32, heads=4, dropout=0.5, init="gpt2"), 257)
    trained = list(generate(built.train(), [1], max_tokens=10, temperature=0))
    assert built.training
    assert all(block.training for block in built.blocks)
    assert trained == list(generate(built.eval(), [1], max_tokens=10, temperature=0))


def test_stop_tokens_end_it_and_are_not_given() -> None:
    tokens = list(generate(model(), [1], max_tokens=10, temperature=0))
    assert (
        list(generate(model(), [1], max_tokens=10, temperature=0, stop_tokens=[tokens[4]])) == tokens[: tokens.index(tokens[4])]
    )


def draws(n: int = 4000, **kwargs: Any) -> dict[int, float]:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    generator = torch.Generator().manual_seed(0)
    values = {"temperature": 1.0, "top_k": None, "top_p": None} | kwargs
    counts = Counter(sample(logits, generator=generator, **values) for _ in range(n))
    return {token: round(counts[token] / n, 2) for token in sorted(counts)}


def test_sampling_follows_the_probabilities() -> None:
    assert draws() == pytest.approx({0: 0.5, 1: 0.3, 2: 0.15, 3: 0.05}, abs=0.03)
    assert draws(temperature=0.5) == pytest.approx({0: 0.685, 1: 0.247, 2: 0.062, 3: 0.007}, abs=0.03)
    assert draws(temperature=0) == {0: 1}
    assert draws(top_k=2) == pytest.approx({0: 0.625, 1: 0.375}, abs=0.03)
    assert draws(top_k=99) == draws()
    assert draws(top_p=0.75) == pytest.approx({0: 0.625, 1: 0.375}, abs=0.03)
    assert draws(top_p=0.01) == {0: 1}
    assert set(draws(top_p=0.81)) == {0, 1, 2}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"temperature": -0.1}, "temperature -0.1: 0 .* or a positive number"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"top_p": 0.0}, r"top_p 0\.0: above 0, at most 1"),
        ({"top_p": 1.2}, r"top_p 1\.2"),
        ({"top_k": 0}, "top_k 0: at least 1"),
        ({"max_tokens": 0}, "max_tokens 0: at least 1"),
        ({"tokens": []}, "no tokens"),
        ({"tokens": [3, 257]}, "token 257 is not in 0 … 256"),
        ({"tokens": [-1]}, "token -1 is not in"),
        ({"tokens": [1] * 30}, "30 tokens, the model's context 24; shorten it by 6"),
    ],
)
def test_bad_values_are_refused_at_the_call(change: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        generate(model(), **({"tokens": [1], "max_tokens": 5} | change))


def test_learned_positions_bound_the_length() -> None:
    built = model("gpt2", context=10)
    assert len(list(generate(built, [1, 2, 3], max_tokens=8))) == 8
    with pytest.raises(InputError, match=r"3 tokens of prompt \+ max_tokens 9 = 12.*for 10; take max_tokens 8 or less"):
        generate(built, [1, 2, 3], max_tokens=9)


def test_text_comes_in_whole_characters_and_ends_with_end_of_text() -> None:
    text = "naïve 中文 🙂 end"
    assert say(text) == list(text)


def test_bytes_that_are_no_text_are_given_at_the_end() -> None:
    parrot = Parrot([*b"ab", 0xE4, 0xB8, 256])
    assert "".join(generate_text(parrot, Bytes(), "", max_tokens=9, temperature=0)) == "ab�"


def test_prompt_starts_with_end_of_text() -> None:
    parrot = Parrot([65, 66, 256])
    parrot.prompt_tokens = 3
    assert list(generate_text(parrot, Bytes(), "hi", max_tokens=1, temperature=0)) == ["A"]
    assert parrot.heard == [256, *b"hi"]


def test_stop_strings_are_cut_even_when_they_come_in_pieces() -> None:
    assert "".join(say("one\n\ntwo", stop=["\n\n"])) == "one"
    assert "".join(say("aab aac end", stop=["aac"])) == "aab "
    assert "".join(say("stop here", stop=["stop"])) == ""
    assert "".join(say("a then b", stop=["zzz", "b", "then"])) == "a "
    assert "".join(say("ends with sto", stop=["stop"])) == "ends with sto"
    assert say("xyz", stop=["q"]) == ["x", "y", "z"], "text that cannot be part of a stop string is not held back"


def test_text_requests_that_cannot_be_met() -> None:
    with pytest.raises(InputError, match="empty string"):
        generate_text(model(), Bytes(), "a", max_tokens=3, stop=[""])
    small = Transformer(ModelConfig(layers=1, width=8, heads=2), 100)
    with pytest.raises(InputError, match="the tokenizer has 257 tokens, the model 100"):
        generate_text(small, Bytes(), "a", max_tokens=3)
