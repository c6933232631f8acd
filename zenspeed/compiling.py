"""Whether torch.compile pays within the length of a run, and the compiling of a model's blocks."""

from __future__ import annotations

import shutil
from typing import NamedTuple

from zenspeed.engine import Engine
from zenspeed.recipe import Recipe


class Gain(NamedTuple):
    rate: float
    """Tokens a second compiled over not compiled."""
    seconds: float
    """What compiling costs once."""


# Measured on two CPU cores (docs/LOG.md, "Inside the model"); of accelerators: torchtitan's Llama 3 8B on 8 × H100, 6,667 over
# 5,762 tokens/s, with a minute for compiling, never measured here.
CPU = Gain(1.07, 20.0)
ACCELERATOR = Gain(1.16, 60.0)


def pick_compile(recipe: Recipe, device: str, seconds: float) -> tuple[bool, str]:
    """Whether to compile, and why. `seconds`: what the run is expected to take without.

    `train.compile` true and false decide; `auto` compiles where it saves at least twice what it costs.
    """
    if recipe.train.compile != "auto":
        return recipe.train.compile, "as the recipe says"
    if recipe.task.kind != "language_model":
        return False, f"batches of {recipe.task.kind} have many shapes, each would be compiled anew"
    if recipe.model.architecture in ("recurrent", "transformers"):
        return False, f"{recipe.model.architecture} models are not made of our blocks"
    if recipe.parallel.zero > 1 or recipe.train.recompute:
        return False, "weights that come and go, or are computed again, were not measured with it"
    if device == "cpu" and (recipe.train.lanes or 1) > 1:
        return False, "1.00 × as fast here: the lanes' own kernels have fused what it would"
    if device == "cpu" and shutil.which("g++") is None:
        return False, "it needs g++ on a CPU, and there is none on PATH"
    gain = CPU if device == "cpu" else ACCELERATOR
    saved = seconds * (1 - 1 / gain.rate)
    return (
        saved > 2 * gain.seconds,
        f"{gain.rate} × as fast saves {saved:.0f} s of {seconds:.0f}, compiling takes {gain.seconds:.0f}",
    )


def compile_blocks(engine: Engine) -> None:
    for lane in engine.lanes.modules:
        for block in lane.get_submodule("blocks").children():
            block.compile(dynamic=False)
