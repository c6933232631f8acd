"""Each operation against its plain formula in float64, values and gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from zenspeed.ops import attention as attention_module
from zenspeed.ops import loss as loss_module
from zenspeed.ops.activation import ACTIVATIONS, activate
from zenspeed.ops.attention import Mask, attention, make_mask
from zenspeed.ops.dropout import dropout
from zenspeed.ops.loss import IGNORE, linear_cross_entropy, token_losses
from zenspeed.ops.norm import layernorm, rmsnorm
from zenspeed.ops.position import apply_rotary, positions_in_documents, rotary_tables, split_heads

CPU = torch.device("cpu")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_same(
    ours: Callable[..., Tensor], plain: Callable[..., Tensor], inputs: Sequence[Tensor], tolerance: float = 1e-9
) -> None:
    """Values and the gradients of all `inputs`, under a random incoming gradient, agree."""
    results = []
    for function in (ours, plain):
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = function(*leaves)
        out.backward(normal(*out.shape, seed=99).to(out.dtype))
        results.append([out.detach(), *(leaf.grad for leaf in leaves)])
    for number, (a, b) in enumerate(zip(*results, strict=True)):
        assert a is not None
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance, msg=lambda m, n=number: f"result {n}: {m}")


def plain_attention(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).masked_fill(~allowed, -math.inf)
    return scores.softmax(-1) @ v


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("with_documents", [False, True])
@pytest.mark.parametrize(("plain", "stripe", "kept"), [(True, 128, 512), (True, 4, 512), (True, 3, 4), (False, 128, 512)])
def test_attention(
    kv_heads: int, with_documents: bool, plain: bool, stripe: int, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`stripe` rows at a time; with more keys than `kept` the weights are made again for the backward pass."""
    monkeypatch.setattr(attention_module, "PLAIN_TOKENS", 512 if plain else 0)
    monkeypatch.setattr(attention_module, "STRIPE_TOKENS", stripe)
    monkeypatch.setattr(attention_module, "KEPT_TOKENS", kept)
    documents = torch.tensor([[0] * 5 + [1] * 8, [0] * 13]) if with_documents else None
    mask = make_mask(13, 13, torch.float64, CPU, documents)
    assert mask.plain is plain
    allowed = torch.ones(13, 13, dtype=torch.bool).tril()
    if documents is not None:
        allowed = (allowed & (documents[:, :, None] == documents[:, None, :]))[:, None]
    inputs = normal(2, 4, 13, 8), normal(2, kv_heads, 13, 8, seed=1), normal(2, kv_heads, 13, 8, seed=2)
    assert_same(lambda *x: attention(*x, mask), lambda *x: plain_attention(*x, allowed), inputs)


@pytest.mark.parametrize("plain", [True, False])
def test_attention_behind_a_cache(plain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last tokens of a sequence see what they saw when all of it was there."""
    monkeypatch.setattr(attention_module, "PLAIN_TOKENS", 512 if plain else 0)
    q, k, v = normal(2, 4, 11, 8), normal(2, 2, 11, 8, seed=1), normal(2, 2, 11, 8, seed=2)
    full = plain_attention(q, k, v, torch.ones(11, 11, dtype=torch.bool).tril())
    for new in (1, 4):
        mask = make_mask(new, 11, torch.float64, CPU)
        torch.testing.assert_close(attention(q[:, :, -new:], k, v, mask), full[:, :, -new:])


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kv_heads", [2, 4])
@pytest.mark.parametrize("more", ["", "window", "bias"])
def test_one_sequence_of_documents_is_computed_in_blocks(causal: bool, kv_heads: int, more: str) -> None:
    """As with the whole square of scores: results, and gradients, of a learned bias as well."""
    lengths = [40, 3, 33, 1, 64, 5, 70, 3]
    numbers = [*np.repeat(np.arange(len(lengths)), lengths).tolist(), -1, -1, -1]
    documents, T = torch.tensor([numbers]), len(numbers)
    places = torch.arange(T)
    distance = places[:, None] - places
    table = normal(1, 4, 2 * T)[0] if more == "bias" else None
    inputs = [normal(1, 4, T, 8), normal(1, kv_heads, T, 8, seed=1), normal(1, kv_heads, T, 8, seed=2)]
    if table is not None:
        inputs.append(table)

    def in_blocks(q: Tensor, k: Tensor, v: Tensor, *bias: Tensor) -> Tensor:
        look_up = (lambda p: bias[0][:, p[0][:, None] - p[1] + T].unsqueeze(0)) if bias else None
        mask = make_mask(T, T, torch.float64, CPU, documents, causal, 9 if more == "window" else None, look_up)
        assert mask.blocks is not None and [t.shape[1] for t in mask.blocks.tokens] == [32, 64, 128]
        return attention(q, k, v, mask)

    def whole(q: Tensor, k: Tensor, v: Tensor, *bias: Tensor) -> Tensor:
        allowed = (documents[0][:, None] == documents[0]) & (distance >= 0 if causal else True)
        if more == "window":
            allowed = allowed & (distance.abs() < 9)
        k, v = (x.repeat_interleave(4 // kv_heads, dim=1) for x in (k, v))
        scores = q @ k.transpose(-1, -2) / math.sqrt(8) + (bias[0][:, distance + T] if bias else 0)
        return scores.masked_fill(~allowed, -math.inf).softmax(-1) @ v

    assert_same(in_blocks, whole, tuple(inputs))


@pytest.mark.parametrize(
    ("lengths", "widths"), [([40, 3, 33, 1, 64, 5, 70, 3], [16, 64, 80]), ([200, 200], [208]), ([9, 9], [])]
)
def test_where_nothing_is_learned_a_block_is_no_wider_than_its_longest_document(lengths: list[int], widths: list[int]) -> None:
    documents = torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths))[None]
    T = documents.shape[1]
    q, k, v = (normal(1, 2, T, 8, seed=seed) for seed in range(3))
    with torch.no_grad():
        mask = make_mask(T, T, torch.float64, CPU, documents, causal=False)
        assert [t.shape[1] for t in (mask.blocks.tokens if mask.blocks else [])] == widths
        torch.testing.assert_close(
            attention(q, k, v, mask), plain_attention(q, k, v, documents[0][:, None] == documents[0]), atol=1e-9, rtol=1e-9
        )


def test_long_attention_builds_no_mask() -> None:
    assert make_mask(5000, 5000, torch.float32, CPU) == Mask(None, causal=True, plain=False)


def test_norms() -> None:
    def plain_rms(x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt() * weight

    inputs = normal(3, 5, 16), normal(16, seed=1)
    assert_same(lambda x, w: rmsnorm(x, w, 1e-3), plain_rms, inputs)
    strided = normal(5, 3, 16).transpose(0, 1)
    assert_same(lambda x, w: rmsnorm(x, w, 1e-3), plain_rms, [strided, inputs[1]])
    torch.testing.assert_close(rmsnorm(inputs[0], None, 1e-3), plain_rms(inputs[0], torch.ones(16, dtype=torch.float64)))
    mean, variance = inputs[0].mean(-1, keepdim=True), inputs[0].var(-1, keepdim=True, correction=0)
    expected = (inputs[0] - mean) / (variance + 1e-3).sqrt() * inputs[1] + 2
    torch.testing.assert_close(layernorm(inputs[0], inputs[1], torch.full((16,), 2.0, dtype=torch.float64), 1e-3), expected)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name: str) -> None:
    def gelu_tanh(x: Tensor) -> Tensor:
        return x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    plain = {
        "gelu": lambda x: x / 2 * (1 + torch.erf(x / math.sqrt(2))),
        "gelu_tanh": gelu_tanh,
        "relu": lambda x: x.clamp(min=0),
        "relu_squared": lambda x: x.clamp(min=0) ** 2,
        "swiglu": lambda x: x[..., :8] * torch.sigmoid(x[..., :8]) * x[..., 8:],
        "geglu": lambda x: gelu_tanh(x[..., :8]) * x[..., 8:],
    }[name]
    assert_same(lambda x: activate(x, name), plain, [normal(4, 16) * 3])
    x = (normal(4000, 16) * 3).bfloat16()
    exact = plain(x.double())
    assert ((activate(x, name).double() - exact).abs() <= 0.02 * exact.abs() + 1e-3).all()
    half, wide = x.clone().requires_grad_(), x.double().requires_grad_()
    activate(half, name).sum().backward()
    plain(wide).sum().backward()
    assert half.grad is not None
    assert wide.grad is not None
    assert ((half.grad.double() - wide.grad).abs() <= 0.02 * wide.grad.abs() + 0.02).all()


def test_positions_restart_with_each_document() -> None:
    documents = torch.tensor([[7, 7, 7, 3, 3, 7], [0, 1, 2, 2, 2, 2]])
    assert positions_in_documents(documents).tolist() == [[0, 1, 2, 0, 1, 0], [0, 0, 0, 1, 2, 3]]


def test_rotary_turns_each_pair_by_its_angle() -> None:
    x, positions = normal(2, 3, 7, 8), torch.tensor([0, 1, 2, 3, 500, 9, 70_000])
    pairs = torch.complex(x[..., :4], x[..., 4:])
    angles = positions[:, None].double() * 100.0 ** (-torch.arange(4) / 4).double()
    turned = pairs * torch.polar(torch.ones_like(angles), angles)
    got = apply_rotary(x, *rotary_tables(positions, 8, 100.0, torch.float64))
    torch.testing.assert_close(got, torch.cat((turned.real, turned.imag), -1), atol=1e-2, rtol=0)  # angles are fp32
    torch.testing.assert_close(got[:, :, :6], torch.cat((turned.real, turned.imag), -1)[:, :, :6], atol=1e-4, rtol=0)
    per_row = rotary_tables(positions.expand(2, 7), 8, 100.0, torch.float64)
    torch.testing.assert_close(apply_rotary(x, *per_row), got)


@pytest.mark.parametrize("epsilon", [None, 1e-3])
@pytest.mark.parametrize("rotary", [None, "shared", "per row"])
def test_split_heads(epsilon: float | None, rotary: str | None) -> None:
    tables = None
    if rotary is not None:
        positions = torch.arange(5) if rotary == "shared" else torch.tensor([[0, 1, 2, 0, 1], [0, 1, 2, 3, 4]])
        tables = rotary_tables(positions, 8, 100.0, torch.float64)

    def plain(qkv: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in qkv.view(2, 5, 8, 8).split((4, 2, 2), dim=2))
        if epsilon is not None:
            q, k = (x / (x.square().mean(-1, keepdim=True) + epsilon).sqrt() for x in (q, k))
        if tables is not None:
            q, k = apply_rotary(q, *tables), apply_rotary(k, *tables)
        return torch.cat((q, k, v), dim=1)

    # The tables are made in fp32, so that a rotation keeps lengths to 1e-7.
    tolerance = 1e-6 if rotary and epsilon else 1e-9
    assert_same(lambda x: torch.cat(split_heads(x, 4, 2, tables, epsilon), dim=1), plain, [normal(2, 5, 64)], tolerance)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("with_bias", [False, True])
def test_linear_cross_entropy(softcap: float | None, with_bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_module, "CHUNK_TOKENS", 7)  # several chunks, the last one shorter
    targets = torch.randint(0, 11, (25,), generator=torch.Generator().manual_seed(4))
    targets[[0, 6, 24]] = IGNORE
    inputs = [normal(25, 6), normal(11, 6, seed=1), *([normal(11, seed=2)] if with_bias else [])]

    def plain(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        logits = F.linear(hidden, weight, bias)
        logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
        return F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum")

    assert_same(lambda h, w, b=None: linear_cross_entropy(h, w, targets, b, softcap), plain, inputs)
    each = token_losses(inputs[0].float(), inputs[1].float(), targets, None, softcap)
    assert each.dtype == torch.float32
    assert (each[targets == IGNORE] == 0).all()
    torch.testing.assert_close(each.sum().double(), plain(*inputs[:2]), rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(linear_cross_entropy(inputs[0], inputs[1], targets, None, softcap), each.sum())


def test_loss_without_any_target_is_zero() -> None:
    hidden, weight = normal(3, 4).requires_grad_(), normal(5, 4, seed=1).requires_grad_()
    loss = linear_cross_entropy(hidden, weight, torch.full((3,), IGNORE))
    loss.backward()
    assert loss.item() == 0
    assert hidden.grad is not None
    assert (hidden.grad == 0).all()


def test_loss_is_finite_where_bf16_probabilities_underflow() -> None:
    hidden, weight = torch.tensor([[200.0]]), torch.tensor([[1.0], [-1.0], [0.0]])
    targets = torch.tensor([1])
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(hidden.requires_grad_(), weight, targets)
    assert loss.item() == pytest.approx(400)


def test_bf16_gradient_of_a_confident_prediction_is_not_rounded_away() -> None:
    weight = torch.tensor([[7.5], [0.0]])
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(torch.ones(1, 1), weight.requires_grad_(), torch.tensor([0]))
    loss.backward()
    assert weight.grad is not None
    assert loss.item() == pytest.approx(math.log1p(math.exp(-7.5)), rel=0.01)
    assert weight.grad[0].item() == pytest.approx(-1 / (1 + math.exp(7.5)), rel=0.01)


def test_loss_under_autocast_holds_no_fp32_of_tokens_times_vocabulary() -> None:
    tokens, vocab_size = 4096, 3000
    hidden, weight = normal(tokens, 8).float().requires_grad_(), normal(vocab_size, 8, seed=1).float().requires_grad_()
    targets = torch.randint(0, vocab_size, (tokens,))
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for t in torch.utils._pytree.tree_leaves(out):
                if isinstance(t, Tensor):
                    largest = max(largest, t.numel() * t.element_size())
            return out

    with torch.autocast("cpu", torch.bfloat16), Watch():
        loss = linear_cross_entropy(hidden, weight, targets)
    assert largest <= tokens * vocab_size, "a quarter of the fp32 logits at most"
    loss.backward()
    assert hidden.grad is not None
    exact = F.cross_entropy(hidden.detach() @ weight.detach().t(), targets, reduction="sum")
    assert loss.item() == pytest.approx(exact.item(), rel=1e-3)


def test_loss_backward_twice_is_refused() -> None:
    loss = linear_cross_entropy(normal(3, 4).requires_grad_(), normal(5, 4), torch.tensor([0, 1, 2]))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="backward runs once"):
        loss.backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
def test_dropout(dtype: torch.dtype, share: float) -> None:
    x = torch.full((501, 403), 2.0, dtype=dtype, requires_grad=True)  # not a multiple of four
    generator = torch.Generator().manual_seed(5)
    y = dropout(x, share, generator)
    kept = y != 0
    spread = (share * (1 - share) / x.numel()) ** 0.5
    assert abs(float(kept.double().mean()) - (1 - share)) < 4 * spread
    torch.testing.assert_close(y[kept], torch.full_like(y[kept], 2 / (1 - share)))
    y.backward(torch.ones_like(y))
    assert x.grad is not None and torch.equal(x.grad, (y / 2).to(dtype))
    assert not torch.equal(dropout(x, share, generator) != 0, kept)
    assert torch.equal(dropout(x, share, generator.manual_seed(5)), y)
    # Neighbours come from one draw: they agree as often as independent ones.
    flat = kept.flatten()
    expected = share**2 + (1 - share) ** 2
    for apart in (1, 2, 3, 4):
        agree = float((flat[apart:] == flat[:-apart]).double().mean())
        assert abs(agree - expected) < 5 * (expected * (1 - expected) / x.numel()) ** 0.5


def test_dropout_of_torchs_own_generator_follows_its_seed() -> None:
    x = torch.ones(100, 100)
    torch.manual_seed(1)
    first = dropout(x, 0.3)
    torch.manual_seed(1)
    assert torch.equal(dropout(x, 0.3), first) and not torch.equal(dropout(x, 0.3), first)
