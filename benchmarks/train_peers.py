"""One rank of one peer of benchmarks/train_speed.py, as its users run it, in an environment of its own (torch and the peer).

    python train_peers.py SYSTEM FOLDER      the folder holds task.json, windows.npy, model/ (GPT-2 in Hugging Face layout)

Writes FOLDER/SYSTEM/metrics-RANK.jsonl, a line for each step: step, loss, elapsed_seconds.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

SYSTEM, FOLDER = sys.argv[1], Path(sys.argv[2])
TASK: dict[str, Any] = json.loads((FOLDER / "task.json").read_text())
LAYERS, WIDTH, HEADS, CONTEXT, VOCAB, BATCH = (TASK[k] for k in ("layers", "width", "heads", "context", "vocab", "batch"))
LR, BETAS, EPSILON, DECAY, CLIP = TASK["lr"], tuple(TASK["betas"]), TASK["epsilon"], TASK["weight_decay"], TASK["clip"]
RANK, RANKS = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
Step = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Log:
    def __init__(self) -> None:
        self._file = (FOLDER / SYSTEM / f"metrics-{RANK}.jsonl").open("w")
        self._step = 0

    def __call__(self, loss: float) -> None:
        self._step += 1
        record = {"step": self._step, "loss": loss, "elapsed_seconds": time.perf_counter()}
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()


def windows() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """This rank's rows of every step, the same tokens that zenspeed reads, round and round."""
    rows, share = np.load(FOLDER / "windows.npy", mmap_mode="r"), BATCH // RANKS
    for first in range(0, 10**9, BATCH):
        index = [(first + RANK * share + i) % len(rows) for i in range(share)]
        tokens = torch.from_numpy(rows[index].astype(np.int64))
        yield tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


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
    """GPT-2 as written by hand in torch: what nanoGPT's model and most loops of one's own are."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCAB, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.ModuleList([Block() for _ in range(LAYERS)])
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCAB, bias=False)
        self.head.weight = self.tokens.weight
        self.load()

    @torch.no_grad()
    def load(self) -> None:
        from safetensors.torch import load_file

        theirs = {k.removeprefix("transformer."): v for k, v in load_file(FOLDER / "model" / "model.safetensors").items()}
        self.tokens.weight.copy_(theirs["wte.weight"])
        self.positions.weight.copy_(theirs["wpe.weight"])
        names = {
            "norm1": "ln_1",
            "norm2": "ln_2",
            "qkv": "attn.c_attn",
            "out": "attn.c_proj",
            "up": "mlp.c_fc",
            "down": "mlp.c_proj",
        }
        for number, block in enumerate(self.blocks):
            for ours, name in names.items():
                part, key = getattr(block, ours), f"h.{number}.{name}"
                part.weight.copy_(theirs[f"{key}.weight"].t() if isinstance(part, nn.Linear) else theirs[f"{key}.weight"])
                part.bias.copy_(theirs[f"{key}.bias"])
        self.norm.weight.copy_(theirs["ln_f.weight"])
        self.norm.bias.copy_(theirs["ln_f.bias"])

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1).float(), targets.flatten())


def adamw(module: nn.Module, fused: bool = True) -> torch.optim.Optimizer:
    parameters = list(module.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": DECAY},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=LR, betas=BETAS, eps=EPSILON, fused=fused)


def by_hand(wrapped: nn.Module, autocast: Callable[[], Any], fused: bool = True) -> Step:
    """The loop that everybody writes."""
    optimizer = adamw(wrapped, fused)

    def step(tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        with autocast():
            loss = wrapped(tokens, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(wrapped.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def bf16() -> Any:
    return torch.autocast("cpu", torch.bfloat16)


def loop_compile() -> Step:
    return by_hand(torch.compile(GPT()), bf16)  # type: ignore[arg-type]


def ddp(compiled: bool) -> Step:
    dist.init_process_group("gloo")
    wrapped: Any = nn.parallel.DistributedDataParallel(GPT(), gradient_as_bucket_view=True)
    return by_hand(torch.compile(wrapped) if compiled else wrapped, bf16)


def sharded() -> Step:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    dist.init_process_group("gloo")
    model, mesh = GPT(), init_device_mesh("cpu", (RANKS,))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    return by_hand(model, nullcontext)


def nanogpt() -> Step:
    """As shipped: on a CPU its bf16 switch does nothing, and its optimizer is not fused there."""
    return by_hand(GPT(), nullcontext, fused=False)


def deepspeed(stage: int) -> Step:
    import deepspeed as system

    config = {
        "train_batch_size": BATCH, "train_micro_batch_size_per_gpu": BATCH // RANKS, "bf16": {"enabled": True},
        "gradient_clipping": CLIP, "zero_optimization": {"stage": stage}, "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False, "steps_per_print": 10**9,
    }  # fmt: skip
    system.init_distributed(dist_backend="gloo")
    model = GPT()
    engine, *_ = system.initialize(model=model, optimizer=adamw(model), config=config)

    def step(tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        loss = engine(tokens, targets)
        engine.backward(loss)
        engine.step()
        return loss.detach()

    return step


def litgpt() -> Step:
    """LitGPT's own model under Fabric, bf16-true. It has rotary positions and weights of its own: its losses are others."""
    import litgpt as system
    from lightning.fabric import Fabric

    torch.manual_seed(1)
    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-true")
    fabric.launch()
    config = system.Config(
        block_size=CONTEXT, n_layer=LAYERS, n_head=HEADS, n_embd=WIDTH, vocab_size=VOCAB, padded_vocab_size=VOCAB,
        bias=True, parallel_residual=False, norm_class_name="LayerNorm", mlp_class_name="GptNeoxMLP",
        gelu_approximate="tanh", intermediate_size=4 * WIDTH,
    )  # fmt: skip
    with fabric.init_module():
        model = system.GPT(config)
        for p in model.parameters():
            if p.ndim >= 2:
                nn.init.normal_(p, std=0.02)
    wrapped: Any = fabric.setup_module(model)
    optimizer: Any = fabric.setup_optimizers(adamw(wrapped))

    def step(tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        loss = F.cross_entropy(wrapped(tokens).flatten(0, 1).float(), targets.flatten())
        fabric.backward(loss)
        fabric.clip_gradients(wrapped, optimizer, max_norm=CLIP)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def hf_trainer(compiled: bool) -> None:
    """`Trainer` with bf16 and fused AdamW. It shifts windows of `context` tokens itself: one target fewer a row."""
    from transformers import GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

    rows, log = np.load(FOLDER / "windows.npy", mmap_mode="r"), Log()

    class Rows(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return 1_000_000

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            tokens = torch.from_numpy(rows[index % len(rows)].astype(np.int64))[:-1]
            labels = tokens.clone()
            labels[0] = -100  # never predicted; else it would count in what the loss is divided by
            return {"input_ids": tokens, "labels": labels}

    class Timed(Trainer):
        """Keeps the losses, so that they can be compared, and the order of rows."""

        def _get_train_sampler(self, *args: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)  # type: ignore[arg-type]

        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            self.loss = super().training_step(*args, **kwargs)
            return self.loss

    class Write(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            log(float(trainer.loss))

    arguments = TrainingArguments(
        output_dir=str(FOLDER / SYSTEM / "out"), per_device_train_batch_size=BATCH, max_steps=100_000, bf16=True, use_cpu=True,
        learning_rate=LR, adam_beta1=BETAS[0], adam_beta2=BETAS[1], adam_epsilon=EPSILON, weight_decay=DECAY,
        max_grad_norm=CLIP, lr_scheduler_type="constant", optim="adamw_torch_fused", save_strategy="no", report_to="none",
        torch_compile=compiled, disable_tqdm=True, logging_steps=100_000,
    )  # fmt: skip
    model = GPT2LMHeadModel.from_pretrained(
        FOLDER / "model", embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0, dtype=torch.float32
    )
    trainer = Timed(model=model, args=arguments, train_dataset=Rows(), callbacks=[Write()])
    trainer.train()


STEPS: dict[str, Callable[[], Step]] = {
    "ddp": lambda: ddp(compiled=False),
    "ddp_compile": lambda: ddp(compiled=True),
    "fully_shard": sharded,
    "deepspeed_zero1": lambda: deepspeed(1),
    "deepspeed_zero2": lambda: deepspeed(2),
    "litgpt": litgpt,
    "nanogpt": nanogpt,
    "loop_compile": loop_compile,
}


def main() -> None:
    (FOLDER / SYSTEM).mkdir(exist_ok=True)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if SYSTEM.startswith("hf"):
        hf_trainer(compiled=SYSTEM == "hf_compile")
        return
    step, log = STEPS[SYSTEM](), Log()
    for tokens, targets in windows():
        log(float(step(tokens, targets)))


if __name__ == "__main__":
    main()
