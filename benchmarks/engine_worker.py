"""One rank of one system of benchmarks/engine.py: one model, the same tokens and steps under each.

Needs torch and numpy, and the system it runs; so it also runs in an environment of DeepSpeed's own.
"""

import json
import os
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

VOCAB, WIDTH, HEADS, LAYERS, CONTEXT = 4096, 384, 6, 6, 256
LR, BETAS, DECAY, CLIP = 6e-4, (0.9, 0.95), 0.1, 1.0


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm1(x)).view(*x.shape[:2], 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(x.shape))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class GPT(nn.Module):
    """GPT-2's shape, 6 × 384."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCAB, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.ModuleList([Block() for _ in range(LAYERS)])
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCAB, bias=False)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1).float(), targets.flatten())


def adamw(parameters: object) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=LR, betas=BETAS, weight_decay=DECAY, fused=True)  # type: ignore[arg-type]


def door(name: str, stage: int, micro: int, ranks: int, model: nn.Module):
    """zenspeed and DeepSpeed: the same calls, the same config."""
    config = {
        "train_batch_size": micro * ranks,
        "train_micro_batch_size_per_gpu": micro,
        "bf16": {"enabled": True},
        "gradient_clipping": CLIP,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }
    if name == "zenspeed":
        import zenspeed as system
    else:
        import deepspeed as system
    system.init_distributed(dist_backend="gloo")
    engine, *_ = system.initialize(model=model, optimizer=adamw(model.parameters()), config=config)

    def step(tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        loss = engine(tokens, targets)
        engine.backward(loss)
        engine.step()
        return loss

    return step


def plain(name: str, stage: int, model: nn.Module):
    """DDP under autocast; fully_shard with bf16 weights in use and fp32 ones kept."""
    dist.init_process_group("gloo")
    if name == "ddp":
        wrapped: nn.Module = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
    else:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        for block in model.blocks:  # type: ignore[union-attr]
            fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=stage == 3)
        fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=stage == 3)
        wrapped = model
    optimizer = adamw(wrapped.parameters())

    def step(tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=name == "ddp"):
            loss = wrapped(tokens, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(wrapped.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return step


def main() -> None:
    name, stage, micro, steps, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5])
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    stream = np.load(folder / "tokens.npy", mmap_mode="r")
    torch.manual_seed(1)
    model = GPT()
    step = door(name, stage, micro, ranks, model) if name in ("zenspeed", "deepspeed") else plain(name, stage, model)
    count = 0
    for number in range(1000):
        while not (folder / f"{name}-go-{number}").exists():
            if (folder / "end").exists():
                dist.destroy_process_group()
                return
            time.sleep(0.01)
        dist.barrier()
        start, losses = time.perf_counter(), []
        for _ in range(steps):
            rows = [(count * ranks + rank) * micro + i for i in range(micro)]
            count += 1
            windows = np.stack([stream[r * CONTEXT : r * CONTEXT + CONTEXT + 1] for r in rows]).astype(np.int64)
            tokens = torch.from_numpy(windows)
            losses.append(float(step(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()).detach()))
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        result = {"seconds": seconds, "losses": losses, "peak_mib": peak}
        temporary = folder / f".{name}-{number}-{rank}"
        temporary.write_text(json.dumps(result))
        temporary.rename(folder / f"{name}-done-{number}-{rank}")


if __name__ == "__main__":
    main()
