"""The same loop under zenspeed and under released DeepSpeed: losses, norms, scales, rates and answers, side by side.

    python benchmarks/deepspeed_parity.py --deepspeed-python VENV/bin/python     (an environment with torch and deepspeed)

Each case is 20 micro-batches of a small model on fixed numbers. What differs is printed with its first difference; why is in
docs/deepspeed.md. This file is both sides: with `--worker` it runs the cases under the module it is told and prints JSON.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ADAMW = {"optimizer": {"type": "AdamW", "params": {"lr": 0.01, "weight_decay": 0.1, "torch_adam": True}}}
SCALING = {"enabled": True, "initial_scale_power": 8, "loss_scale_window": 3, "hysteresis": 2, "min_loss_scale": 1}
WARMUP = {
    "scheduler": {"type": "WarmupDecayLR", "params": {"total_num_steps": 12, "warmup_num_steps": 4, "warmup_max_lr": 0.01}}
}


def cases() -> dict[str, dict[str, Any]]:
    """name: config, and under `_` what the loop does."""
    out: dict[str, dict[str, Any]] = {}
    for stage in range(4):
        for name, precision in (("fp32", {}), ("bf16", {"bf16": {"enabled": True}})):
            out[f"{name} stage {stage}"] = ADAMW | precision | {"zero_optimization": {"stage": stage}}
        out[f"accumulation, clipping, schedule, stage {stage}"] = ADAMW | WARMUP | {
            "zero_optimization": {"stage": stage}, "gradient_accumulation_steps": 2, "gradient_clipping": 0.1,
        }  # fmt: skip
        if stage:
            fp16 = {"fp16": SCALING, "zero_optimization": {"stage": stage}, "_overflows": [5, 6, 7, 12]}
            out[f"fp16, overflows at 5 6 7 12, stage {stage}"] = ADAMW | fp16
    refill = {"fp16": SCALING | {"consecutive_hysteresis": True}, "_overflows": [4, 6, 8, 9, 10]}
    out["fp16, consecutive hysteresis, stage 1"] = ADAMW | refill | {"zero_optimization": {"stage": 1}}
    static = {"fp16": {"enabled": True, "loss_scale": 64}, "_overflows": [5], "zero_optimization": {"stage": 1}}
    out["fp16, static scale, stage 1"] = ADAMW | static
    for kind, params in (
        ("WarmupLR", {"warmup_num_steps": 5, "warmup_max_lr": 0.01, "warmup_type": "linear"}),
        ("WarmupCosineLR", {"total_num_steps": 15, "warmup_num_steps": 5}),
        ("OneCycle", {"cycle_min_lr": 0.001, "cycle_max_lr": 0.01, "cycle_first_step_size": 5}),
        ("LRRangeTest", {"lr_range_test_min_lr": 0.001, "lr_range_test_step_size": 4, "lr_range_test_step_rate": 0.5}),
    ):
        out[f"schedule {kind}"] = ADAMW | {"scheduler": {"type": kind, "params": params}}
    return out


def scales(system_name: str) -> dict[str, list[float]]:
    """Loss scales under overflows drawn at random, by the scalers alone."""
    import random

    out = {}
    for seed in range(20):
        draw = random.Random(seed)
        power, window, hysteresis = draw.randint(2, 8), draw.randint(1, 6), draw.randint(1, 4)
        again, least = draw.random() < 0.5, float(draw.choice([1, 4]))
        if system_name == "zenspeed":
            from zenspeed.scaler import DynamicLossScaler

            scaler: Any = DynamicLossScaler(2.0**power, window, hysteresis, again, least)
            update = scaler.update
        else:
            from deepspeed.runtime.fp16 import loss_scaler

            scaler = loss_scaler.DynamicLossScaler(2.0**power, window, least, hysteresis, again)
            update = scaler.update_scale
        sequence = []
        for _ in range(100):
            try:
                update(overflow=draw.random() < 0.3)
            except Exception:  # both stop where an overflow comes at the least scale
                sequence.append(-1.0)
                break
            sequence.append(float(scaler.scale if system_name == "zenspeed" else scaler.cur_scale))
        out[f"seed {seed}"] = sequence
    return out


def run_case(system: Any, config: dict[str, Any], folder: Path) -> dict[str, Any]:
    import torch
    import torch.distributed as dist

    settings = {k: v for k, v in config.items() if not k.startswith("_")}
    settings |= {"train_micro_batch_size_per_gpu": 4, "steps_per_print": 10**9, "zero_force_ds_cpu_optimizer": False}
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    engine, *_ = system.initialize(model=model, model_parameters=list(model.parameters()), config=settings)
    generator = torch.Generator().manual_seed(dist.get_rank())
    dtype = torch.bfloat16 if "bf16" in config else torch.float16 if "fp16" in config else torch.float32
    record: dict[str, list[Any]] = {"loss": [], "norm": [], "scale": [], "rate": [], "skipped": [], "returned": []}
    for number in range(20):
        x = torch.randn(4, 8, generator=generator)
        y = x.sum(1, keepdim=True)
        loss = torch.nn.functional.mse_loss(engine(x.to(dtype)).float(), y)
        record["loss"].append(float(loss.detach()))
        returned = engine.backward(loss * (math.inf if number in config.get("_overflows", ()) else 1.0))
        record["returned"].append(float(returned.detach()))
        engine.step()
        norm = engine.get_global_grad_norm()
        record["norm"].append(None if norm is None else float(norm))
        record["scale"].append(float(getattr(engine.optimizer, "cur_scale", 1.0)) if "fp16" in config else 1.0)
        record["rate"].append(engine.get_lr()[0])
        record["skipped"].append(engine.skipped_steps)
    saved = engine.save_checkpoint(str(folder), client_state={"note": 1})
    path, client = engine.load_checkpoint(str(folder))
    answers = {
        "global_steps": engine.global_steps, "global_samples": engine.global_samples, "micro_steps": engine.micro_steps,
        "batch": [engine.train_batch_size(), engine.train_micro_batch_size_per_gpu(), engine.gradient_accumulation_steps()],
        "boundary": engine.is_gradient_accumulation_boundary(), "stage": engine.zero_optimization_stage(),
        "loaded": Path(str(path)).relative_to(folder).as_posix().split("/")[0], "note": (client or {}).get("note"),
        "saved": bool(saved), "applied": engine.was_step_applied(), "latest": (folder / "latest").read_text(),
    }  # fmt: skip
    files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    engine.destroy()
    return record | {"answers": answers, "files": files}


def worker(system_name: str, only: str, folder: Path, out: Path) -> None:
    import torch

    torch.set_num_threads(1)
    system = importlib.import_module(system_name)
    system.init_distributed(dist_backend="gloo")
    if system_name == "deepspeed":  # it refuses fp16 on a CPU; told that the CPU can, it runs, and its scales can be compared
        accelerator: Any = system.accelerator.get_accelerator()
        accelerator.is_fp16_supported = lambda: True
        accelerator.supported_dtypes = lambda: [torch.float32, torch.bfloat16, torch.float16]
    results = {}
    for number, (name, config) in enumerate(cases().items()):
        if only in name:
            try:
                results[name] = run_case(system, config, folder / system_name / str(number))
            except Exception as error:
                results[name] = {"error": f"{type(error).__name__}: {error}"}
    if only in "scaler":
        results["scaler"] = scales(system_name)
    if torch.distributed.get_rank() == 0:
        out.write_text(json.dumps(results))


def run(python: str, system: str, ranks: int, only: str, folder: Path) -> dict[str, Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    out, processes = folder / f"{system}.json", []
    for rank in range(ranks):
        environment = os.environ | {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu",
        }  # fmt: skip
        command = [python, __file__, "--worker", system, "--only", only, "--folder", str(folder)]
        with (folder / f"{system}-{rank}.log").open("wb") as log:
            processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
    end = time.monotonic() + 240
    while any(p.poll() is None for p in processes) and not any(p.poll() for p in processes) and time.monotonic() < end:
        time.sleep(0.1)
    codes = [p.poll() for p in processes]
    for process in processes:
        process.kill()
    if any(codes) or None in codes:
        logs = "\n".join((folder / f"{system}-{rank}.log").read_text()[-3000:] for rank in range(ranks))
        raise SystemExit(f"{system}: exit codes {codes}\n{logs}")
    return json.loads(out.read_text())


def compare(name: str, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    if name == "scaler":
        wrong = {k: (v, theirs[k]) for k, v in ours.items() if v != theirs[k]}
        stopped, number = sum(v[-1] < 0 for v in ours.values()), sum(map(len, ours.values()))
        print(f"{name}: {len(ours)} sequences, {number} scales, {stopped} stopped; different: {wrong or 'none'}")
        return
    if "error" in ours or "error" in theirs:
        print(f"{name}: zenspeed {ours.get('error', 'runs')}; deepspeed {theirs.get('error', 'runs')}")
        return
    notes, tolerance = [], 1e-2 if "16" in name else 1e-5
    for key in ("loss", "norm", "scale", "rate", "skipped", "returned"):
        pairs = list(zip(ours[key], theirs[key], strict=True))
        first = next((i for i, (a, b) in enumerate(pairs) if not _close(a, b, tolerance)), None)
        if first is None:
            relative = max((abs(a / b - 1) for a, b in pairs if a and b and math.isfinite(a)), default=0.0)
            notes.append(f"{key} equal" + (f" within {relative:.0e}" if relative else ""))
        else:
            notes.append(f"{key.upper()} from step {first}: {pairs[first][0]} / {pairs[first][1]}")
    different = {k: (v, theirs["answers"][k]) for k, v in ours["answers"].items() if v != theirs["answers"][k]}
    print(f"{name}: {'; '.join(notes)}" + (f"; answers {different}" if different else ""))


def _close(a: Any, b: Any, relative: float) -> bool:
    if a is None or b is None or not (math.isfinite(a) and math.isfinite(b)):
        return bool(a == b)
    return math.isclose(a, b, rel_tol=relative, abs_tol=1e-9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deepspeed-python", help="the interpreter of an environment with deepspeed")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--show", action="store_true", help="print whole sequences")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.worker, options.only, options.folder, options.folder / f"{options.worker}.json")
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ours = run(sys.executable, "zenspeed", options.ranks, options.only, folder)
        theirs = run(options.deepspeed_python or sys.executable, "deepspeed", options.ranks, options.only, folder)
        for case in ours:
            compare(case, ours[case], theirs[case])
            if options.show:
                for key in ours[case]:
                    print(f"    {key}\n      zenspeed  {ours[case][key]}\n      deepspeed {theirs[case].get(key)}")


if __name__ == "__main__":
    main()
