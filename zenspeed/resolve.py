"""What a recipe leaves open is decided here, once, before anything is built: the run's recipe then holds every choice."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist

from zenspeed.config import validate
from zenspeed.errors import InputError
from zenspeed.machine import device_name, has_float8, pick_precision
from zenspeed.parallel.mesh import World
from zenspeed.recipe import Recipe, fresh_folder

MICRO_BATCH_TOKENS = 8192
DEFAULT_MINUTES = 2.0
MAX_LANES = 8  # each but the first costs a gradient of the whole model


def resolve(recipe: Recipe, here: World, *, resumed: bool = False) -> Recipe:
    """The recipe with folder, length, lanes, micro-batch and precision decided. Shows the arithmetic where it fails.

    A run that is `resumed` may be so on any number of ranks: its micro-batch size is then the most a rank takes.
    """
    data = recipe.model_dump(mode="json")
    train, run = data["train"], data["run"]
    run["folder"] = run["folder"] or _of_rank_0(str(fresh_folder(recipe)))
    run["name"] = run["name"] or Path(run["folder"]).name
    if train["steps"] is None and train["minutes"] is None and train["epochs"] is None:
        train["minutes"] = DEFAULT_MINUTES
    batch, ranks = recipe.train.batch_size, _shares(recipe, here)
    if recipe.parallel.mode == "parameter_server" and batch % ranks:
        raise InputError(
            f"train.batch_size: {batch} sequences cannot be given out in {ranks} equal shares: {batch} / {ranks} = "
            f"{batch / ranks:.2f}; take {max(1, round(batch / ranks)) * ranks}"
        )
    if batch < ranks:
        raise InputError(
            f"train.batch_size: {batch} sequences cannot be shared by {ranks} ranks; take {ranks} or more, or fewer ranks"
        )
    share, micro = -(-batch // ranks), recipe.train.micro_batch_size
    if micro is not None and batch % ranks == 0 and share % micro and not resumed:
        raise InputError(
            f"train.micro_batch_size: batch_size = micro_batch_size × accumulation × ranks has no whole solution: "
            f"{batch} = {micro} × {batch / (micro * ranks):.2f} × {ranks}; take a micro_batch_size that divides {share}"
        )
    lanes = train["lanes"] = _pick_lanes(recipe, here, share)
    if micro is None:
        fits = max(1, MICRO_BATCH_TOKENS // recipe.model.context)
        micro = max(d for d in range(1, share + 1) if (share // lanes) % d == 0 and d <= fits)
    train["micro_batch_size"] = micro
    if train["precision"] == "auto":
        train["precision"] = _agree(pick_precision(here.device)[0])
    if train["precision"] == "fp8" and not has_float8(here.device):
        raise InputError(
            f"train.precision fp8: {device_name(here.device)} has no fast products in fp8 (NVIDIA's do from L40S and H100 on); "
            "set train.precision=bf16"
        )
    return validate(Recipe, data)


def _of_rank_0(folder: str) -> str:
    """Ranks that were started by hand may not have begun in the same second."""
    said = [folder]
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.broadcast_object_list(said, src=0)
    return said[0]


def _shares(recipe: Recipe, here: World) -> int:
    """Parts of a batch that are computed apart: one a rank, or the shares that a parameter server gives out."""
    return here.size if recipe.parallel.mode == "data_parallel" else recipe.parallel.server.shares or 1


def _pick_lanes(recipe: Recipe, here: World, share: int) -> int:
    """As many lanes as threads, where lanes can be and the micro-batches can be shared evenly; or what was asked for."""
    if not _lanes_can_be(recipe, here):
        return 1  # also where the recipe says otherwise: a run may be resumed on other processes than it began on
    if recipe.train.lanes is not None:
        return recipe.train.lanes
    micro_batches = share // (recipe.train.micro_batch_size or 1)
    most = min(torch.get_num_threads(), MAX_LANES)
    return max(n for n in range(1, most + 1) if micro_batches % n == 0)


def _lanes_can_be(recipe: Recipe, here: World) -> bool:
    """On a CPU, with one process that keeps whole gradients, and a model all of whose dropout is ours."""
    drawing = recipe.model.architecture == "recurrent" and recipe.model.dropout
    ours = recipe.model.architecture != "transformers" and not drawing
    return here.device.type == "cpu" and _shares(recipe, here) == 1 and recipe.parallel.zero <= 1 and ours


def _agree(precision: str) -> str:
    """Rank 0's measurement decides for all."""
    choice = torch.tensor(int(precision == "bf16"))
    dist.broadcast(choice, src=0)
    return "bf16" if choice.item() else "fp32"
