"""Every option of `ModelConfig` against a plain formula, Hugging Face or torch; cached against uncached; recurrent models."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zenspeed.config import InputError, validate
from zenspeed.generate import generate
from zenspeed.models.build import Model, build_model
from zenspeed.models.hf import from_huggingface, to_huggingface
from zenspeed.models.layers import Experts
from zenspeed.models.presets import ModelConfig
from zenspeed.models.transformer import Transformer
from zenspeed.ops import attention as attention_module
from zenspeed.ops.attention import attention, make_mask, places_of
from zenspeed.ops.loss import IGNORE
from zenspeed.ops.position import alibi_bias, relative_buckets, sinusoidal

transformers = pytest.importorskip("transformers")
VOCAB = 97
HF = {
    "Qwen2": {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "Qwen3": {"num_key_value_heads": 2, "head_dim": 12},
    "Qwen3-usual": {"num_key_value_heads": 4, "head_dim": 8, "tie_word_embeddings": True},
    "Mistral": {"num_key_value_heads": 2, "sliding_window": 7},
}
OPTIONS: dict[str, dict[str, Any]] = {
    "sinusoidal": {"position": "sinusoidal"},
    "relative": {"position": "relative", "relative_buckets": 8, "relative_distance": 12},
    "alibi": {"position": "alibi", "heads": 4, "kv_heads": 2},
    "alibi-6": {"position": "alibi", "heads": 6, "width": 48},
    "window": {"window": 5},
    "window-alibi": {"window": 5, "position": "alibi"},
    "head-size": {"head_size": 10},
    "qk-norm": {"qk_norm_weights": True, "preset": "qwen"},
    "post": {"norm_placement": "post", "norm": "layernorm", "bias": True, "embedding_norm": True, "scale_embeddings": True},
    "rezero": {"preset": "rezero"},
    "experts": {"experts": 4},
    "geglu": {"activation": "geglu", "scale_attention": False},
    "rnn": {"preset": "rnn"},
    "lstm": {"preset": "lstm", "tie_embeddings": True},
}


def scrambled(**fields: Any) -> Any:
    options: dict[str, Any] = {"preset": "gpt", "layers": 2, "width": 32, "heads": 4, "context": 24} | fields
    model = build_model(ModelConfig(**options), VOCAB)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + ("norm" in name))
    return model.eval()


def some_tokens(*shape: int) -> Tensor:
    return torch.randint(0, VOCAB, shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", HF)
def test_logits_and_greedy_tokens_equal_hugging_face_both_ways(name: str, tmp_path: Path) -> None:
    kind = name.partition("-")[0]
    torch.manual_seed(3)
    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 72}
    common = {"vocab_size": VOCAB, "max_position_embeddings": 48, "initializer_range": 0.3, "pad_token_id": None}
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    config = getattr(transformers, f"{kind}Config")(**sizes, **common, **ends, **HF[name])
    theirs = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    theirs.save_pretrained(tmp_path / "theirs")
    ours, _ = from_huggingface(tmp_path / "theirs")
    assert isinstance(ours, Transformer)
    to_huggingface(ours, tmp_path / "ours", end_of_text=0)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    assert type(again) is type(theirs)
    tokens = some_tokens(3, 40)
    with torch.no_grad():
        expected = theirs(tokens).logits
        assert expected.std() > 0.5, "logits that hardly vary would agree whatever we do"
        assert (ours(tokens) - expected).abs().max() <= 1e-4
        assert (again(tokens).logits - expected).abs().max() <= 1e-4
    greedy = theirs.generate(tokens[:1, :8], max_new_tokens=30, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert list(generate(ours, tokens[0, :8].tolist(), max_tokens=30, temperature=0)) == greedy[0, 8:].tolist()


@pytest.mark.parametrize(
    ("kind", "change", "expected"),
    [
        ("Qwen2", {"use_sliding_window": True}, "use_sliding_window True is not supported for qwen2"),
        ("Qwen3", {"attention_bias": True}, "attention_bias True is not supported for qwen3"),
        ("T5", {"feed_forward_proj": "gated-relu"}, "feed_forward_proj 'gated-relu'"),
    ],
)
def test_options_that_we_do_not_have_are_refused(kind: str, change: dict[str, Any], expected: str, tmp_path: Path) -> None:
    config = getattr(transformers, f"{kind}Config")().to_dict() | {"vocab_size": 9} | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=expected):
        from_huggingface(tmp_path)


@pytest.mark.parametrize("name", OPTIONS)
def test_cached_equals_uncached_and_rows_are_selected(name: str) -> None:
    model, tokens = scrambled(**OPTIONS[name]), some_tokens(3, 24)
    with torch.no_grad():
        full, cache = model(tokens), model.new_cache(3, 24)
        steps = [model.hidden_states(tokens[:, a:b], cache=cache) for a, b in ((0, 7), (7, 8), (8, 12))]
        torch.testing.assert_close(model.logits(torch.cat(steps, 1)), full[:, :12], atol=2e-5, rtol=1e-4)
        rows = torch.tensor([1, 1, 0])
        cache.select(rows)
        rest = [model.hidden_states(tokens[rows, t : t + 1], cache=cache) for t in range(12, 24)]
        torch.testing.assert_close(model.logits(torch.cat(rest, 1)), full[rows, 12:], atol=2e-5, rtol=1e-4)
        assert cache.num_tokens == 24


@pytest.mark.parametrize("name", ["window", "alibi", "relative", "window-alibi"])
def test_beyond_the_cache_places_are_still_right(name: str) -> None:
    model, tokens = scrambled(**OPTIONS[name], layers=1), some_tokens(1, 40)[0]
    cache = model.new_cache(1, 16)
    with torch.no_grad():
        model.hidden_states(tokens[None, :15], cache=cache)
        for end in range(16, 41):
            step = model.hidden_states(tokens[None, end - 1 : end], cache=cache)[0, -1]
            window = model.hidden_states(tokens[None, max(0, end - 16) : end])[0, -1]
            torch.testing.assert_close(step, window, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_document_in_a_pack_is_as_alone(name: str) -> None:
    model, tokens = scrambled(**OPTIONS[name]), some_tokens(2, 24)
    targets = tokens.roll(-1, 1)
    lengths = [(5, 1, 18), (11, 13)]
    documents = torch.stack([torch.arange(len(n)).repeat_interleave(torch.tensor(n)) for n in lengths])
    packed = model(tokens, documents=documents, targets=targets, reduction="none")
    for row, row_lengths in enumerate(lengths):
        pieces = zip(tokens[row].split(row_lengths), targets[row].split(row_lengths), strict=True)
        alone = torch.cat([model(t[None], targets=u[None], reduction="none")[0] for t, u in pieces])
        torch.testing.assert_close(packed[row], alone, atol=5e-5, rtol=1e-5)
    assert (packed - model(tokens, targets=targets, reduction="none")).abs().max() > 0.01, "documents must have mattered"
    assert model(tokens, documents=documents, targets=targets).item() == pytest.approx(packed.sum().item(), rel=1e-5)


@pytest.mark.parametrize("name", OPTIONS)
def test_no_token_sees_what_follows(name: str) -> None:
    model, tokens = scrambled(**OPTIONS[name]), some_tokens(1, 24)
    other = tokens.clone()
    other[0, 12] = (other[0, 12] + 1) % VOCAB
    with torch.no_grad():
        a, b = model(tokens)[0], model(other)[0]
    torch.testing.assert_close(a[:12], b[:12])
    assert not torch.allclose(a[12:], b[12:])
    if "window" in name:  # two layers reach back twice the window
        torch.testing.assert_close(a[12 + 2 * 4 + 1 :], b[12 + 2 * 4 + 1 :])


def test_alibi_slopes_and_bias_are_those_of_bloom() -> None:
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    places = places_of(10, 10, torch.device("cpu"))
    for heads in (4, 6, 8, 12):
        theirs = build_alibi_tensor(torch.ones(1, 10), heads, torch.float32)[:, 0]  # (H, S): slope · place of the key
        ours = alibi_bias(heads, *places)[0, :, -1]  # the last query sees all; softmax does not see a constant
        torch.testing.assert_close(ours - ours[:, :1], theirs - theirs[:, :1])


def test_buckets_are_those_of_t5() -> None:
    from transformers.models.t5.modeling_t5 import T5Attention

    distances = torch.arange(-300, 301)
    for causal in (True, False):
        for num, furthest in ((32, 128), (8, 12)):
            theirs = T5Attention._relative_position_bucket(distances, not causal, num, furthest)
            assert torch.equal(relative_buckets(distances, num, furthest, causal), theirs)


def test_sinusoidal_is_the_formula() -> None:
    table = sinusoidal(torch.arange(50), 16)
    for p in (0, 1, 7, 49):
        for i in range(8):
            angle = p / 10000 ** (2 * i / 16)
            assert table[p, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-5)
            assert table[p, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-5)


@pytest.mark.parametrize("stripe", [3, 128])
def test_gradient_of_a_learned_bias_and_the_fused_way_agree(stripe: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 4, 9, 8, generator=generator, requires_grad=True) for _ in range(3))
    bias = torch.randn(1, 4, 9, 9, generator=generator, requires_grad=True)
    documents = torch.tensor([[0] * 4 + [1] * 5, [2] * 9])
    monkeypatch.setattr(attention_module, "STRIPE_TOKENS", stripe)
    mask = make_mask(9, 9, torch.float32, q.device, documents, bias=lambda places: bias, window=4)
    assert mask.plain
    weight = torch.randn(2, 4, 9, 8, generator=generator)
    got = torch.autograd.grad((attention(q, k, v, mask, 0.7) * weight).sum(), (q, k, v, bias), retain_graph=True)
    fused = (attention(q, k, v, mask._replace(plain=False), 0.7) * weight).sum()
    for a, b in zip(got, torch.autograd.grad(fused, (q, k, v, bias)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["relative", "alibi", "window"])
def test_long_inputs_take_the_fused_way(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_module, "PLAIN_TOKENS", 512)
    length = 512 + 40
    model = scrambled(**OPTIONS[name], layers=1)
    tokens = some_tokens(1, length)
    with torch.no_grad():
        long = model.hidden_states(tokens)[0, -1]
        cache = model.new_cache(1, length)
        for part in tokens.split(256, dim=1):
            hidden = model.hidden_states(part, cache=cache)
    torch.testing.assert_close(long, hidden[0, -1], atol=5e-5, rtol=1e-4)


def test_experts_are_a_weighted_sum_and_balance_is_in_the_training_loss_alone() -> None:
    model, tokens = scrambled(experts=4, experts_per_token=3, expert_balance=0.5), some_tokens(2, 24)
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    part = model.blocks[0].feed_forward
    assert isinstance(part, Experts)

    class Nothing:
        balance = None

    got = part(x, Nothing())  # type: ignore[arg-type]
    for b in range(2):
        for t in range(5):
            scores = part.router(x[b, t])
            chosen = scores.argsort(descending=True)[:3]
            weights = scores[chosen].softmax(0)
            expected = sum(w * part.experts[i](x[b, t]) for w, i in zip(weights, chosen.tolist(), strict=True))
            torch.testing.assert_close(got[b, t], expected, atol=1e-4, rtol=1e-4)
    plain = model(tokens, targets=tokens)
    model.train()
    balance = model(tokens, targets=tokens) - plain
    with torch.no_grad():
        torch.testing.assert_close(model(tokens, targets=tokens), plain.detach())
    assert 0.5 * tokens.numel() * 0.9 < balance < 0.5 * tokens.numel() * 4
    grads = torch.autograd.grad(balance, model.blocks[0].feed_forward.router.weight)
    assert grads[0].abs().max() > 0


def test_evenly_used_experts_cost_nothing_more_than_their_least() -> None:
    from zenspeed.models.layers import _balance

    even = torch.eye(4).repeat(3, 1) * 20
    assert _balance(even, even.topk(1).indices).item() == pytest.approx(1)
    one = torch.tensor([[20.0, 0, 0, 0]]).repeat(8, 1)
    assert _balance(one, one.topk(1).indices).item() == pytest.approx(4, rel=1e-3)


def test_rezero_begins_as_the_identity_and_has_no_norms() -> None:
    model = Transformer(ModelConfig(preset="rezero", layers=3, width=32, heads=4, context=24), VOCAB)
    tokens = some_tokens(1, 9)
    start = model.embedding(tokens) + model.position(torch.arange(9))  # type: ignore[misc]
    assert torch.equal(model.hidden_states(tokens), start)
    assert not [name for name, _ in model.named_parameters() if "norm" in name]
    loss = model(tokens, targets=tokens)
    loss.backward()
    assert all(block.alpha.grad.abs() > 0 for block in model.blocks)  # type: ignore[union-attr, operator]


@pytest.mark.parametrize("preset", ["rnn", "lstm"])
def test_recurrent_models_are_torchs_and_reset_at_documents(preset: str) -> None:
    model = build_model(ModelConfig(preset=preset, width=16, pool="last"), VOCAB, "label", 3).eval()  # type: ignore[arg-type]
    assert isinstance(model, Model)
    rnn = (nn.LSTM if preset == "lstm" else nn.RNN)(16, 16, 2, batch_first=True)
    rnn.load_state_dict(model.body.rnn.state_dict())  # type: ignore[union-attr]
    texts = [some_tokens(n) for n in (9, 3, 6)]
    tokens, documents = torch.zeros(2, 14, dtype=torch.int64), torch.full((2, 14), -1)
    for row, column, number in ((0, 0, 1), (0, 3, 0), (1, 0, 2)):
        place = slice(column, column + len(texts[number]))
        tokens[row, place], documents[row, place] = texts[number], number
    logits = model(tokens, documents=documents, num_documents=3)
    for number, text in enumerate(texts):
        out, _ = rnn(model.embedding(text[None]))
        torch.testing.assert_close(logits[number], model.head.score(out[0, -1]), atol=1e-6, rtol=1e-5)  # type: ignore[union-attr, operator]
    loss = model(tokens, documents=documents, num_documents=3, targets=torch.tensor([0, IGNORE, 2]))
    torch.testing.assert_close(loss, F.cross_entropy(logits[[0, 2]], torch.tensor([0, 2]), reduction="sum"))


@pytest.mark.parametrize("preset", ["rnn", "lstm"])
def test_recurrent_models_write_text(preset: str) -> None:
    model, tokens = scrambled(preset=preset), some_tokens(1, 6)
    written = list(generate(model, tokens[0].tolist(), max_tokens=9, temperature=0))
    whole = torch.cat([tokens, torch.tensor([written])], dim=1)
    with torch.no_grad():
        assert model(whole)[0, 5:-1].argmax(-1).tolist() == written


@pytest.mark.parametrize("preset", ["qwen", "bert", "transformer", "t5", "rezero", "rnn", "lstm"])
def test_first_weights_are_a_function_of_the_seed_and_the_first_loss_is_sane(preset: str) -> None:
    config = ModelConfig(preset=preset, width=64, layers=2, heads=4, dropout=0)  # type: ignore[arg-type]
    head: Any = "masked" if preset == "bert" else "language"
    torch.manual_seed(11)
    first = build_model(config, VOCAB, head)
    with torch.device("meta"):
        empty = build_model(config, VOCAB, head)
    second: Any = empty.to_empty(device="cpu")
    second.init_weights(11)
    assert first.state_dict().keys() == second.state_dict().keys()
    assert all(torch.equal(first.state_dict()[name], weight) for name, weight in second.state_dict().items())
    tokens = some_tokens(4, 32)
    source = {"source": tokens} if config.architecture == "encoder_decoder" else {}
    loss = first(tokens, targets=tokens.flip(1), **source).item() / tokens.numel()
    assert loss == pytest.approx(math.log(VOCAB), rel=0.35)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"experts": 2, "experts_per_token": 3}, "experts_per_token 3, but there are 2 experts"),
        ({"position": "sinusoidal", "width": 33, "heads": 3}, "sinusoidal positions need an even width, not 33"),
        ({"position": "relative", "relative_distance": 9}, "relative_distance 9 is too small for 32 buckets"),
        ({"qk_norm": False, "qk_norm_weights": True}, "qk_norm_weights true needs qk_norm true"),
    ],
)
def test_combinations_that_cannot_be(fields: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        validate(ModelConfig, fields)
