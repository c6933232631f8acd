"""Faster ways to compute what a user's own module asks torch for, on a CPU in bf16.

    F.scaled_dot_product_attention   two batched products up to `MOST_TOKENS` keys: 2.7 × as fast as the fused kernel there
                                     with dropout, for which torch takes fp32 products: 2.2 × as fast
    F.gelu(…, approximate="tanh")    by a sigmoid: 1.4 × as fast

The functions are those of `zenspeed/ops`. They are put in place by torch's own extension point (`TorchFunctionMode`) for the
length of one forward in this thread; nothing in torch is replaced. They round to bf16 between steps, as attention written by
hand does; fp32 runs, forward without gradients, compiled modules and recomputed activations are torch's alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from zenspeed.ops.activation import activate
from zenspeed.ops.attention import Mask, attention

MOST_TOKENS = 512
"""The products keep 2 · heads · keys bytes a token and layer for backward, a quarter of what a Transformer's layer keeps anyway
at 256 keys, half at 512. They would still be faster at 1,024 (1.75 ×), but as large as all the rest.
"""


class FastKernels(TorchFunctionMode):
    """Inside, calls that have a faster way take it; every other call, and any call of another form, is torch's."""

    def __init__(self) -> None:
        super().__init__()
        self._causal: dict[int, Tensor] = {}  # the mask of so many tokens

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            found = self._attention(*args, **kwargs)
            return func(*args, **kwargs) if found is None else found
        if func is F.gelu and kwargs.get("approximate") == "tanh" and _is_ours(args[0]) and args[0].dtype == torch.bfloat16:
            return activate(args[0], "gelu_tanh")
        return func(*args, **kwargs)

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor | None:
        """None where torch's own has to do it."""
        q, k, v = (_as_autocast(t) for t in (query, key, value))
        same = all(_is_ours(t) and t.dtype == torch.bfloat16 and t.ndim == 4 for t in (q, k, v))
        if (
            not same
            or (dropout_p and enable_gqa)
            or not 0 < k.shape[2] <= MOST_TOKENS
            or not _shapes_agree(q, k, v, enable_gqa)
        ):
            return None
        bias: Tensor | None = None
        if is_causal:
            if attn_mask is not None or q.shape[2] != k.shape[2]:
                return None
            bias = self._causal_bias(k.shape[2])
        elif attn_mask is not None:
            bias = _bias_of(attn_mask, q, k)
            if bias is None:
                return None
        with torch.autocast("cpu", enabled=False):
            if dropout_p:
                return _with_dropout(q, k, v, bias, scale, dropout_p)
            return attention(q, k, v, Mask(bias, causal=False, plain=True), scale)

    def _causal_bias(self, tokens: int) -> Tensor:
        if tokens not in self._causal:
            allowed = torch.ones(tokens, tokens, dtype=torch.bool).tril()
            self._causal = {tokens: torch.zeros(tokens, tokens, dtype=torch.bfloat16).masked_fill_(~allowed, -math.inf)}
        return self._causal[tokens]


def _with_dropout(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float | None, p: float) -> Tensor:
    """Attention whose weights are dropped with probability `p`; torch itself takes fp32 products for it on a CPU."""
    scores = torch.matmul(q * (q.shape[-1] ** -0.5 if scale is None else scale), k.transpose(-1, -2))
    weights = (scores if bias is None else scores.add_(bias)).softmax(dim=-1)
    return torch.matmul(F.dropout(weights, p), v)


def apply_here(module: nn.Module, precision: torch.dtype, device: torch.device) -> bool:
    """Whether a forward of `module` may run under `FastKernels`: bf16 on a CPU, with gradients, not compiled or recomputed."""
    return (
        device.type == "cpu"
        and precision == torch.bfloat16
        and torch.is_grad_enabled()
        and torch._C._current_graph_task_id() == -1
        and module._compiled_call_impl is None
        and not torch.compiler.is_compiling()
    )


def _is_ours(tensor: Any) -> bool:
    """An ordinary tensor outside of function transforms and of what will be computed again.

    The second run of torch.utils.checkpoint is outside of this mode and should do what the first did. That runs without
    gradients, or with hooks on what is saved for backward.
    """
    plain = type(tensor) in (Tensor, nn.Parameter) and not torch._C._are_functorch_transforms_active()
    return plain and torch.is_grad_enabled() and torch._C._autograd._top_saved_tensors_default_hooks(True) is None


def _as_autocast(tensor: Tensor) -> Tensor:
    """Where the caller's autocast would cast an input of attention, cast."""
    if tensor.dtype == torch.float32 and torch.is_autocast_enabled("cpu"):
        return tensor.to(torch.get_autocast_dtype("cpu"))
    return tensor


def _shapes_agree(q: Tensor, k: Tensor, v: Tensor, grouped: bool) -> bool:
    heads = q.shape[1] % k.shape[1] == 0 if grouped else q.shape[1] == k.shape[1]
    return heads and q.shape[0] == k.shape[0] and k.shape[:3] == v.shape[:3] and q.shape[3] == k.shape[3]


def _bias_of(mask: Tensor, q: Tensor, k: Tensor) -> Tensor | None:
    """`mask` as what is added to the scores; None where torch's own is needed: a row that sees nothing, a learned mask."""
    if mask.requires_grad or mask.ndim not in (2, 4):
        return None
    if mask.shape[-2] not in (1, q.shape[2]) or mask.shape[-1] != k.shape[2]:
        return None
    if mask.ndim == 4 and (mask.shape[0] not in (1, q.shape[0]) or mask.shape[1] not in (1, q.shape[1])):
        return None
    if mask.dtype == torch.bool:
        if not bool(mask.any(-1).all()):
            return None
        return torch.zeros(mask.shape, dtype=q.dtype).masked_fill_(~mask, -math.inf)
    bias = mask.to(q.dtype)
    return bias if bool(torch.isfinite(bias.amax(-1)).all()) else None
