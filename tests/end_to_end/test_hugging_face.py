"""Accelerate and Transformers' Trainer run on the shim: they find `deepspeed`, its version, and everything they call.

On a machine without accelerator Accelerate counts one process unless it is told the backend, or the Trainer `use_cpu=True`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("accelerate")

ACCELERATE = """
import json, sys, torch
from accelerate import Accelerator, DeepSpeedPlugin, InitProcessGroupKwargs
stage = int(sys.argv[1])
config = {"train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 2, "gradient_clipping": 1.0,
          "zero_optimization": {"stage": stage}}
accelerator = Accelerator(deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=config),
                          kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")])
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
x = torch.randn(64, 8)
data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True)), batch_size=4)
schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
model, optimizer, data, schedule = accelerator.prepare(model, optimizer, data, schedule)
losses = []
for epoch in range(4):
    for inputs, targets in data:
        with accelerator.accumulate(model):
            loss = ((model(inputs) - targets) ** 2).mean()
            accelerator.backward(loss)
            optimizer.step(); schedule.step(); optimizer.zero_grad()
        losses.append(accelerator.gather(loss.detach()).mean().item())
accelerator.save_state("state")
before = model(x[:4]).sum().item()
for _ in range(2):
    accelerator.backward(model(x[:4]).sum()); optimizer.step()
accelerator.load_state("state")
after = model(x[:4]).sum().item()
whole = accelerator.get_state_dict(model)
shapes = {k: list(v.shape) for k, v in whole.items()} if accelerator.is_main_process else None
out = {"losses": losses, "ranks": accelerator.num_processes, "kind": str(accelerator.distributed_type),
       "engine": type(model).__module__, "plain": type(accelerator.unwrap_model(model)).__name__, "shapes": shapes,
       "steps": model.global_steps, "norm": model.get_global_grad_norm(), "before": before, "after": after}
if accelerator.is_main_process:
    json.dump(out, open("out.json", "w"))
accelerator.end_training()
"""

TRAINER = """
import json, os, sys, torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
stage, accumulation = int(sys.argv[1]), int(sys.argv[2])
torch.manual_seed(0)
sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
model = LlamaForCausalLM(LlamaConfig(**sizes, max_position_embeddings=64))
rows = [(7 * i + torch.arange(16)) % 16 for i in range(64)]
config = json.load(open("ds.json"))
config["zero_optimization"]["stage"] = stage
arguments = TrainingArguments(
    "out", per_device_train_batch_size=4, gradient_accumulation_steps=accumulation, max_steps=4, logging_steps=1,
    learning_rate=1e-2, warmup_steps=1, save_steps=2, save_strategy="steps", report_to=[],
    deepspeed=config, use_cpu=True, max_grad_norm=0.5)
trainer = Trainer(model=model, args=arguments, train_dataset=[{"input_ids": r, "labels": r} for r in rows])
trainer.train(resume_from_checkpoint=sys.argv[3] if len(sys.argv) > 3 else None)
log = [e for e in trainer.state.log_history if "loss" in e]
out = {"losses": [e["loss"] for e in log], "rates": [e["learning_rate"] for e in log], "ranks": arguments.world_size,
       "norms": [e["grad_norm"] for e in log], "engine": type(trainer.model_wrapped).__module__}
trainer.save_model("final")
if trainer.is_world_process_zero():
    json.dump(out, open("out.json", "w"))
"""
AUTO = Path(__file__).parents[1] / "unit" / "data" / "ds_configs" / "hugging_face_auto.json"


def start(folder: Path, script: str, ranks: int, *arguments: object) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    (folder / "script.py").write_text(script, encoding="utf-8")
    (folder / "ds.json").write_text(AUTO.read_text(encoding="utf-8"), encoding="utf-8")
    line = [sys.executable, "-m", "zenspeed", "launch", "--as-deepspeed", "--no-local-rank", "-n", str(ranks), "script.py"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*line, *map(str, arguments)], cwd=folder, env=environment, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return json.loads((folder / "out.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("stage", "ranks"), [(1, 1), (3, 2)])
def test_accelerate(tmp_path: Path, stage: int, ranks: int) -> None:
    out = start(tmp_path, ACCELERATE, ranks, stage)
    assert (out["ranks"], out["kind"], out["steps"]) == (ranks, "DistributedType.DEEPSPEED", 32 // ranks)
    assert out["engine"].startswith("zenspeed.") and out["plain"] == "Sequential"
    assert out["losses"][-1] < 0.8 * out["losses"][0] and out["norm"] > 0
    assert out["after"] == pytest.approx(out["before"], rel=1e-5)
    assert out["shapes"]["2.bias"] == [1]


def test_trainer(tmp_path: Path) -> None:
    """Stage 2 on one rank and 3 on two: the same batches, the same losses, norms and rates; and a run goes on where it was."""
    runs = []
    for stage, ranks in ((2, 1), (3, 2)):
        folder = tmp_path / str(stage)
        out = start(folder, TRAINER, ranks, stage, 2 // ranks)
        assert out["engine"].startswith("zenspeed.") and out["ranks"] == ranks
        assert len(out["losses"]) == 4 and out["losses"][-1] < out["losses"][0]
        assert out["rates"] == pytest.approx([0.0, 0.01, 0.01, 0.01], abs=1e-9)
        assert (folder / "final" / "model.safetensors").stat().st_size > 10_000
        assert (folder / "out" / "checkpoint-2" / "latest").is_file()
        runs.append(out)
    whole, other = runs
    assert other["losses"] == pytest.approx(whole["losses"], rel=1e-5)
    assert other["norms"] == pytest.approx(whole["norms"], rel=1e-4)
    resumed = start(tmp_path / "2", TRAINER, 1, 2, 2, "out/checkpoint-2")
    assert resumed["losses"] == pytest.approx(whole["losses"], rel=1e-4)
    assert resumed["rates"] == pytest.approx(whole["rates"])
