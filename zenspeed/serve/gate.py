"""Before a model is served: does what answers agree with the trained model?

The same probe texts go through the model in torch, its weights rounded as those that serve, and through the core that serves.
Logits are to be within a tolerance, and wherever the likeliest token is clear, it is to be the same one. Rows are answered by
the run's own task, its model's blocks through a kernel: their probabilities and vectors are compared.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from zenspeed.errors import InputError
from zenspeed.serve.compiled import build
from zenspeed.serve.core import Core, Feed
from zenspeed.serve.encoder import SOURCE, obstacle, with_kernel
from zenspeed.serve.opened import Opened
from zenspeed.serve.packed import can_pack, pack
from zenspeed.tasks.base import Place
from zenspeed.tasks.classification import ClassificationTask
from zenspeed.tasks.similarity import SimilarityTask

TOLERANCE = {"fp32": 1e-3, "bf16": 2e-2, "int8": 2e-2}
"""Of the largest logit's size. bf16 and int8 keep keys and values in bf16, which has 8 bits."""


def check(model: nn.Module, core: Core, weights: str, probes: Sequence[Sequence[int]]) -> dict[str, Any]:
    """The outcome, to be shown beside the model.

    Raises:
        InputError: the answers differ; names the probe and the place.
    """
    reference: Any = _rounded(model, weights)
    worst, agreed, count = 0.0, 0, 0
    for number, probe in enumerate(probes):
        tokens = list(probe[: core.context - 1])
        with torch.inference_mode():
            wanted = reference(torch.tensor([tokens]))[0].float().numpy()
        found = _logits(core, tokens)
        size = max(1.0, float(np.abs(wanted).max()))
        error = np.abs(found - wanted).max(axis=1) / size
        worst = max(worst, float(error.max()))
        if not error.max() <= TOLERANCE[weights]:
            place = int((~(error <= TOLERANCE[weights])).argmax())
            raise InputError(
                f"not served: answers differ from the trained model's: probe {number}, token {place} ({tokens[place]}): logits "
                f"differ by {error[place]:.2g} of the largest, allowed is {TOLERANCE[weights]:g}"
            )
        top = np.partition(wanted, -2, axis=1)
        clear = (top[:, -1] - top[:, -2]) > 2 * TOLERANCE[weights] * size
        same = found.argmax(1) == wanted.argmax(1)
        agreed, count = agreed + int(same.sum()), count + len(same)
        if not same[clear].all():
            place = int((clear & ~same).argmax())
            raise InputError(f"not served: the likeliest token behind probe {number}, token {place}, is another one")
    return {"weights": weights, "core": core.kind, "worst_logit": worst, "same_token": agreed / max(1, count), "tokens": count}


def open_rows(opened: Opened, weights: str, probes: Sequence[str], cache: Path | None) -> tuple[Opened, dict[str, Any]]:
    """A model of rows as it is served, and the outcome: through the kernel where it can be, else through torch.

    Args:
        weights: `bf16` (or `int8`) computes products in bf16; so does a run that was trained in it.
        cache: folder of compiled kernels; None: torch alone.

    Raises:
        InputError: bf16 is asked for, and probabilities or vectors of a probe are not within the tolerance of the trained
            model's.
    """
    asked = weights != "fp32"
    if not isinstance(opened.task, ClassificationTask | SimilarityTask):
        return opened, {"weights": "fp32", "why": "bf16 is for what writes, labels or embeds"} if asked else {}
    kind: Literal["fp32", "bf16"] = "bf16" if asked or isinstance(opened.place.autocast, torch.autocast) else "fp32"
    why = "kernel off" if cache is None else obstacle(opened.model, kind)
    library = build(cache, SOURCE) if cache is not None and why is None else None
    if library is not None:
        model: nn.Module = with_kernel(opened.model, library, kind)
        served, core = opened._replace(model=model, place=Place(nullcontext())), f"kernel, {kind}"
    elif asked:
        served, core = _with_torch_in_bf16(opened), "torch"
    else:
        return opened, {"weights": "fp32", "core": "torch", "why": why or "no C++ compiler found, or it failed"}
    wanted, found = _answers(opened, probes), _answers(served, probes)
    error = np.abs(found - wanted).max(axis=1)
    if error.max() <= TOLERANCE[kind]:
        return served, {"weights": kind, "core": core, "worst": float(error.max())}
    what = "vectors" if isinstance(opened.task, SimilarityTask) else "probabilities"
    differ = (
        f"{what} of probe {int(error.argmax())} differ by {error.max():.2g} from the trained model's, allowed is "
        f"{TOLERANCE[kind]:g}"
    )
    if asked:
        raise InputError(f"--weights bf16: not served: {differ}; take --weights fp32")
    return opened, {"weights": "fp32", "core": "torch", "why": differ}


def _with_torch_in_bf16(opened: Opened) -> Opened:
    model = copy.deepcopy(opened.model)
    if can_pack():
        pack(model)
    for part in model.modules():
        if isinstance(part, nn.Linear):
            part.bfloat16()  # once, instead of for every batch
    return opened._replace(model=model, place=Place(torch.autocast("cpu", torch.bfloat16)))


def _answers(opened: Opened, probes: Sequence[str]) -> np.ndarray:
    """(probes, labels) probabilities or (probes, width) vectors."""
    task = opened.task
    if isinstance(task, SimilarityTask):
        return task.embed(opened.model, probes, opened.place)
    assert isinstance(task, ClassificationTask)
    columns = [column for column in (task.recipe.task.text, task.recipe.task.text_pair) if column is not None]
    rows = [dict.fromkeys(columns, probe) for probe in probes]
    return np.array([list(answer["scores"].values()) for answer in task.predict(opened.model, rows, opened.place)])


def _logits(core: Core, tokens: list[int]) -> np.ndarray:
    """(T, V): behind each token."""
    stream = core.open(tokens, len(tokens))
    assert stream is not None, "nothing else runs yet"
    start = stream.num_read
    assert start == 0, "probes are the first to be read"
    out = [core.step([Feed(stream, 1, True)])[0].copy() for _ in tokens]
    core.close(stream)
    return np.stack(out)


def _rounded(model: nn.Module, weights: str) -> nn.Module:
    if weights == "fp32":
        return model
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim != 2 or name.startswith(("position", "token_types", "ngrams")):
                continue
            if weights == "bf16" or name.startswith("embedding"):
                p.copy_(p.bfloat16().float())
            else:
                scale = p.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
                p.copy_((p / scale).round() * scale)
    return model
