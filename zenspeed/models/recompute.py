"""A block whose activations are computed again in backward, so that only its input is kept (Chen et al. 2016, 1604.06174).

torch's non-reentrant checkpointing; the random numbers of dropout come out the same the second time, also where a block has a
generator of its own (parallel/lanes.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def recompute_blocks(model: nn.Module) -> None:
    """From now on every block of `model` computes its activations again in backward."""
    for part in model.modules():
        if hasattr(part, "recompute"):
            part.recompute = True  # type: ignore[assignment]


def run_again(block: nn.Module, x: Tensor, shared: Any) -> Tensor:
    """`block(x, shared)`, whose backward runs it once more."""
    generator = next((g for part in block.modules() if (g := getattr(part, "generator", None)) is not None), None)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        if generator is None:
            return nullcontext(), nullcontext()
        return nullcontext(), _from(generator, generator.get_state())

    # Lanes share torch's own generator, which is left alone where blocks have theirs.
    return checkpoint(block, x, shared, use_reentrant=False, context_fn=contexts, preserve_rng_state=generator is None)


@contextmanager
def _from(generator: torch.Generator, state: Tensor) -> Iterator[None]:
    """Numbers are drawn as from `state`; afterwards as if none had been drawn."""
    now = generator.get_state()
    generator.set_state(state)
    try:
        yield
    finally:
        generator.set_state(now)
