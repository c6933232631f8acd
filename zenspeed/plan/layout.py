"""How a model is laid out over a cluster, and what numbers are kept in: the input of every estimate."""

from __future__ import annotations

from typing import Literal, NamedTuple

from zenspeed.config import InputError
from zenspeed.plan.hardware import Precision

Recompute = Literal["none", "selective", "full"]
Kernel = Literal["flash", "triton", "flash2", "flash3"]


class Layout(NamedTuple):
    """One way to train. `data × tensor × pipeline × context` ranks.

    `recompute` selective: attention's output and every second product are kept, the rest of a block is computed again;
    full: only the input of a block is kept.
    """

    data: int = 1
    tensor: int = 1
    pipeline: int = 1
    context: int = 1
    zero: int = 1
    shard_ranks: int | None = None
    """Ranks that share one copy of the model states; None: all data and context ranks."""
    micro_batch: int = 1
    accumulation: int = 1
    recompute: Recompute = "none"
    early_stop: bool = True
    """A block that is computed again is so up to what its backward needs, as torch does from 2.1 on without reentrance; false:
    to its end, as Megatron-LM does."""
    compiled: bool = False
    fused_loss: bool = False
    """The loss is compiled together with what follows it: logits and their gradient exist in two bytes, nothing in fp32."""
    attention: Kernel = "flash2"
    """The fused attention kernel: FlashAttention, the same in Triton (as models with ALiBi had in 2023), FlashAttention-2 (what
    PyTorch calls), FlashAttention-3."""
    interleave: int = 1
    """Stages of the pipeline on each of its ranks."""
    precision: Precision = "bf16"
    weight_bytes: int = 4
    """Of a weight in the module: 4 with autocast, 2 where fp32 masters are kept beside it."""
    gradient_bytes: int = 4
    optimizer_bytes: int = 8
    """Of optimizer state for a weight, masters included: Adam 8 beside fp32 weights, 12 beside 2-byte ones."""
    gather_bytes: int = 2
    """Of a weight when it travels at stage 3."""
    sequence_parallel: bool = True
    """Activations between tensor-parallel products are cut along the sequence (Korthikanti et al. 2205.05198)."""
    repeated_keys: bool = False
    """Keys and values are copied for each of the queries' heads before they go to other context ranks (torchtitan's Llama)."""
    overlapped_tensor: bool = False
    """Tensor-parallel messages travel in pieces beside the products (asynchronous tensor parallelism)."""

    @property
    def ranks(self) -> int:
        return self.data * self.tensor * self.pipeline * self.context

    @property
    def shards(self) -> int:
        """Ranks that one copy of the model states is spread over."""
        return self.shard_ranks or self.data * self.context

    @property
    def sequences(self) -> int:
        """In one update, over all ranks."""
        return self.data * self.micro_batch * self.accumulation

    def check(self, layers: int, heads: int, context: int) -> None:
        """InputError where the model cannot be cut so, or the ranks not be shared."""
        for name, parts, whole, what in (
            ("pipeline", self.pipeline * self.interleave, layers, "layers"),
            ("tensor", self.tensor, heads, "heads"),
            ("context", self.context, context, "tokens of model.context"),
            ("shard_ranks", self.shards, self.data * self.context, "data and context ranks"),
        ):
            if parts > whole or (name != "pipeline" and whole % parts):
                raise InputError(f"layout: {name}={parts} does not cut {whole} {what}; take a divisor of {whole}")
        if self.interleave > 1 and self.pipeline == 1:
            raise InputError(f"layout: interleave={self.interleave} is for the ranks of a pipeline; add pipeline=2")

    def __str__(self) -> str:
        axes = [f"{n} {v}" for n in ("data", "tensor", "pipeline", "context") if (v := getattr(self, n)) > 1]
        shard = f"/{self.shard_ranks}" if self.shard_ranks else ""
        parts = [*(axes or ["1 rank"]), f"ZeRO {self.zero}{shard}", f"micro-batch {self.micro_batch} × {self.accumulation}"]
        return " · ".join([*parts, *([f"recompute {self.recompute}"] if self.recompute != "none" else [])])
