"""Memory and time of a layout on a cluster, part by part.

Memory: model states by ZeRO's formulas (Rajbhandari et al. 1910.02054, section 5), activations and logits from the model's
shape, buffers of collectives, and an allowance for fragmentation. Time: every product and every elementwise kernel by the
roofline max(operations / rate, bytes / bandwidth), collectives by their volume over the slowest link, of which a part hides
behind computation; then the pipeline's bubble and the optimizer.
"""

from __future__ import annotations

from typing import NamedTuple

from zenspeed.plan.hardware import Cluster
from zenspeed.plan.layout import Kernel, Layout
from zenspeed.plan.work import Product, Shape


class Rates(NamedTuple):
    """Shares of published rates that long runs reach. benchmarks/plan.py says on which published rows they were fitted."""

    eight_bits: float = 0.95
    """Of the rate of products (`Accelerator.hot`), in fp8."""
    bandwidth: float = 0.80
    """Of the memory's bandwidth."""
    links: float = 0.75
    """Of links."""
    launch: float = 4e-6
    """Seconds from one kernel's start to the next, at least."""
    hidden: float = 0.9
    """Of a layer's computation behind which data-parallel messages can travel."""
    tensor_hidden: float = 0.25
    """Of tensor-parallel messages, where they are overlapped."""
    fragmentation: float = 0.06
    """Of memory in use that the allocator cannot give out."""


KERNELS: dict[Kernel, tuple[float, float]] = {
    "flash": (1 / 2.26, 1 / 2.26), "triton": (1 / 1.80, 1 / 1.80), "flash2": (1.0, 1.0), "flash3": (1.73, 1.62),
}  # fmt: skip
"""Speed of attention's kernels, forward and backward, in FlashAttention-2's. The papers give ranges, of which these are the
geometric middles: 1.7 to 3.0 times FlashAttention's and 1.3 to 2.5 times the one in Triton (Dao 2307.08691, section 4.1);
FlashAttention-3 is 1.5 to 2.0 times as fast forward and 1.5 to 1.75 backward (Shah et al. 2407.08608)."""


class Memory(NamedTuple):
    """Bytes of the fullest rank."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    buffers: float
    fragmentation: float

    @property
    def total(self) -> float:
        return sum(self)

    @property
    def states(self) -> float:
        return self.weights + self.gradients + self.optimizer


class Time(NamedTuple):
    """Seconds of one update, by what a rank waits for."""

    products: float
    attention: float
    elementwise: float
    recompute: float
    tensor: float
    context: float
    data: float
    bubble: float
    optimizer: float

    @property
    def total(self) -> float:
        return sum(self)


class Estimate(NamedTuple):
    layout: Layout
    memory: Memory
    time: Time
    tokens_per_second: float
    """Of all ranks."""
    mfu: float
    """Model FLOPs (all scores counted) over the peak of the precision."""
    fits: bool


def zero_bytes(weights: float, layout: Layout) -> tuple[float, float, float]:
    """Bytes of weights, gradients and optimizer states for `weights` weights of one rank's part of the model."""
    n, stage = layout.shards, layout.zero
    return (
        weights * layout.weight_bytes / (n if stage >= 3 else 1),
        weights * layout.gradient_bytes / (n if stage >= 2 else 1),
        weights * layout.optimizer_bytes / (n if stage >= 1 else 1),
    )


def communication_volume(weights: float, layout: Layout) -> float:
    """Elements a rank sends for data parallelism in one update: 2Ψ at stages 0-2, 3Ψ at stage 3 (1910.02054, section 7)."""
    return weights * (3 if layout.zero >= 3 else 2) if layout.shards > 1 else 0.0


def memory_of(shape: Shape, layout: Layout, cluster: Cluster, rates: Rates, *, fused: bool, chunked: bool) -> Memory:
    """Bytes of the fullest rank: the first of a pipeline for activations, or the last one for logits."""
    stages = layout.pipeline
    blocks = -(-shape.layers // stages)
    tokens = layout.micro_batch * shape.context / layout.context
    ends = max(shape.embedding_weights, shape.head_weights) if stages > 1 else shape.embedding_weights + shape.head_weights
    weights = (blocks * shape.block_weights + ends) / layout.tensor
    states = zero_bytes(weights, layout)
    kept = blocks * shape.kept_bytes(tokens, layout, fused=fused) * in_flight(layout)
    if layout.recompute != "none":  # one block is whole while its backward runs
        kept += shape.kept_bytes(tokens, layout._replace(recompute="none"), fused=fused)
    logits = shape.logit_bytes(tokens, layout, chunked=chunked)
    buffers = 0.0
    if layout.zero >= 3 and layout.shards > 1:  # the group in use and the next one, and a group's gradients
        group = max(2 * shape.block_weights, shape.vocab * shape.width + shape.block_weights) / layout.tensor
        buffers = group * (layout.gather_bytes + layout.gradient_bytes)
    used = sum(states) + kept + logits + buffers
    return Memory(*states, kept, logits, buffers, used * rates.fragmentation)


def in_flight(layout: Layout) -> float:
    """Micro-batches that the first rank of a pipeline holds activations of at most, with one backward for each forward (1F1B,
    and interleaved 1F1B by Narayanan et al. 2104.04473, figure 4, as torch's ScheduleInterleaved1F1B does it).

    With v stages on a rank it is their forwards that are counted, each a v-th of a micro-batch: all stages but the last take
    a round of micro-batches, then come two for each rank behind, and one more; but never more than there are.
    """
    ranks, stages, micro_batches = layout.pipeline, layout.interleave, layout.accumulation
    if stages == 1:
        return min(micro_batches, ranks)
    a_round = micro_batches // max(1, micro_batches // ranks)
    forwards = (stages - 1) * a_round + 2 * (ranks - 1) + 1
    return min(forwards, micro_batches * stages) / stages


def time_of(shape: Shape, layout: Layout, cluster: Cluster, rates: Rates, *, fused: bool) -> Time:
    """Seconds of one update, of the slowest stage of the pipeline."""
    device = cluster.device
    peak = device.peak.get(layout.precision) or device.peak["fp16"]
    half = device.peak.get("bf16") or device.peak["fp16"]
    tokens = layout.micro_batch * shape.context / layout.context
    blocks = shape.layers / layout.pipeline
    products = shape.block_products(tokens, layout.tensor, fused=fused)

    def seconds(product: Product) -> float:
        if product.attention:
            return product.flops / (half * device.achievable * (device.attention if fused else device.hot))
        eight = layout.precision == "fp8"
        rate = peak * device.achievable * device.hot * _filled(product) * (rates.eight_bits if eight else 1.0)
        operands = product.repeats * (product.m * product.k + product.k * product.n)
        casts = 5.0 * operands / (device.bandwidth * rates.bandwidth) if eight else 0.0  # largest value, then scaled copy
        moved = 2.0 * (product.m * product.k + product.k * product.n + product.m * product.n) * product.repeats
        return max(product.flops / rate, moved / (device.bandwidth * rates.bandwidth)) + casts

    plain = sum(seconds(p) for p in products if not p.attention)
    attention = sum(seconds(p) for p in products if p.attention)
    forward, backward = KERNELS[layout.attention] if fused else (1.0, 1.0)
    traffic = shape.block_traffic(tokens, layout, fused=fused) / (device.bandwidth * rates.bandwidth)
    head = Product(tokens, shape.width, shape.vocab / layout.tensor)
    head_traffic = tokens * shape.vocab / layout.tensor * (14 if layout.compiled else 26) / (device.bandwidth * rates.bandwidth)
    head_time = 3 * head.flops / (half * device.achievable * device.hot) + head_traffic
    # Where recomputing stops as soon as backward has what it needs, the block's last product is not made again.
    last = seconds(products[-1]) if layout.early_stop else 0.0
    again = {
        "none": 0.0, "selective": 0.45 * plain + traffic, "full": plain - last + attention / forward + traffic,
    }[layout.recompute]  # fmt: skip
    tensor = _tensor_seconds(shape, tokens, layout, cluster, rates)
    # Forward once, backward twice (attention 2.5 / 0.8), elementwise twice more.
    passes = 3 if layout.recompute == "full" else 2  # of messages: forward, backward, and forward again
    # Keys and values travel in each of them, and in backward their gradients as well, in fp32.
    context = _context_seconds(shape, tokens, layout, cluster, rates) * (passes + 2)
    scores = attention * (1 / forward + 2.5 / 0.8 / backward if fused else 3)
    block = [3 * plain, scores, 3 * traffic, again, tensor * passes, context]
    # Small kernels end sooner than the next one can be started.
    block[2] += max(0.0, 3 * rates.launch * (14 if layout.compiled else 30) - sum(block))
    count = layout.accumulation
    parts = [blocks * part * count for part in block]
    parts[0] += head_time * count  # on the last stage, which is the slowest by it
    busy = sum(parts)
    bubble = busy * (layout.pipeline - 1) / (count * layout.interleave) if layout.pipeline > 1 else 0.0
    weights = shape.weights / (layout.pipeline * layout.tensor)
    data = _data_seconds(weights, layout, cluster, rates, busy)
    states = weights * (layout.weight_bytes + layout.gradient_bytes + 2 * layout.optimizer_bytes)
    update = states / (layout.shards if layout.zero else 1) / (device.bandwidth * rates.bandwidth)
    return Time(parts[0], parts[1], parts[2], parts[3], parts[4], parts[5], data, bubble, update)


def _filled(product: Product) -> float:
    """Share of full rate that the sizes of a product allow: short sides leave units idle."""
    return product.m / (product.m + 64) * product.n / (product.n + 64) * product.k / (product.k + 64)


def _tensor_seconds(shape: Shape, tokens: float, layout: Layout, cluster: Cluster, rates: Rates) -> float:
    """Two all-reduces (or their halves: gather and scatter) of the residual stream for one block's forward."""
    t = layout.tensor
    if t == 1:
        return 0.0
    bandwidth = (cluster.device.link if t <= cluster.device.per_machine else cluster.device.network) * rates.links
    seconds = 2 * 2 * (t - 1) / t * tokens * shape.width * 2.0 / bandwidth
    return seconds * (1 - rates.tensor_hidden) if layout.overlapped_tensor else seconds


def _context_seconds(shape: Shape, tokens: float, layout: Layout, cluster: Cluster, rates: Rates) -> float:
    """A gather of the other context ranks' keys and values for one block's forward, which nothing hides."""
    if layout.context == 1:
        return 0.0
    device, inside = cluster.device, layout.context * layout.tensor <= cluster.device.per_machine
    heads = shape.heads if layout.repeated_keys else shape.kv_heads
    received = (layout.context - 1) * tokens * 2 * heads * shape.head / layout.tensor * 2.0
    return received / ((device.link if inside else device.network) * rates.links)


def _data_seconds(weights: float, layout: Layout, cluster: Cluster, rates: Rates, busy: float) -> float:
    """What of the data-parallel messages does not hide behind computation."""
    ranks = layout.data * layout.context
    if ranks == 1:
        return 0.0
    device, inside = cluster.device, ranks * layout.tensor <= cluster.device.per_machine
    # Rings through a machine leave it by another accelerator's network each: its ranks of one group share all of theirs.
    together = max(1, device.per_machine // layout.tensor)
    bandwidth = (device.link if inside else min(device.link, together * device.network)) * rates.links
    share = (ranks - 1) / ranks
    reductions = layout.accumulation if layout.zero >= 2 else 1
    volume = weights * share * layout.gradient_bytes * reductions  # scatter of sums
    gathers = 2 * layout.accumulation if layout.zero >= 3 else 1
    volume += weights * share * (layout.gather_bytes if layout.zero >= 3 else layout.gradient_bytes) * gathers
    hideable = busy if layout.zero >= 2 else busy / layout.accumulation * 2 / 3
    return max(0.0, volume / bandwidth - rates.hidden * hideable) + 0.02 * volume / bandwidth


def estimate(
    shape: Shape, layout: Layout, cluster: Cluster, rates: Rates | None = None, *, fused: bool = True, chunked: bool = False
) -> Estimate:
    """Memory, time and throughput of a layout.

    Args:
        fused: attention is one kernel that keeps no scores and skips the causal half.
        chunked: the loss is made in chunks of the vocabulary, so that logits never exist as a whole.
    """
    rates = rates or Rates()
    layout.check(shape.layers, shape.heads, shape.context)
    memory = memory_of(shape, layout, cluster, rates, fused=fused, chunked=chunked)
    time = time_of(shape, layout, cluster, rates, fused=fused)
    tokens = layout.sequences * shape.context / time.total
    peak = cluster.device.peak.get("bf16") or cluster.device.peak["fp16"]
    mfu = tokens * shape.flops_per_token() / (peak * layout.ranks)
    return Estimate(layout, memory, time, tokens, mfu, memory.total <= cluster.device.memory_bytes)
