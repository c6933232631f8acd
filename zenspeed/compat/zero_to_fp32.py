"""The fp32 weights of a checkpoint as one ordinary state dict, without an engine and without as many processes as saved it.

    python -m zenspeed.compat.zero_to_fp32 CHECKPOINTS OUTPUT [--tag TAG] [--max-shard-size 5GB]

Checkpoints load on any number of ranks as they are; this is for other programs, which read `model.safetensors`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from zenspeed.checkpoint import Checkpoint
from zenspeed.config import InputError


def get_fp32_state_dict_from_zero_checkpoint(
    checkpoint_dir: str | Path, tag: str | None = None, exclude_frozen_parameters: bool = False, lazy_mode: bool = False
) -> dict[str, Tensor]:
    """Weights in fp32 as the optimizer keeps them, frozen parameters and buffers, by name.

    Args:
        tag: a folder in `checkpoint_dir`; None: the one in its file `latest`. `checkpoint_dir` may also be that folder itself.
        lazy_mode: has no effect; tensors are plain ones.

    Raises:
        InputError: there is no such checkpoint, or a part of it is missing or damaged.
    """
    saved = Checkpoint(_folder(Path(checkpoint_dir), tag))
    state = saved.weights()
    for kind in ("buffer",) if exclude_frozen_parameters else ("frozen", "buffer"):
        for name, shape in saved.shapes_of(kind).items():
            flat = saved.read(name, kind, 0, shape.numel())
            assert flat is not None
            state[name] = flat.view(shape)
    return state


def load_state_dict_from_zero_checkpoint(model: nn.Module, checkpoint_dir: str | Path, tag: str | None = None) -> nn.Module:
    """`model`, on the CPU, with the checkpoint's weights."""
    state = get_fp32_state_dict_from_zero_checkpoint(checkpoint_dir, tag)
    missing, unexpected = model.cpu().load_state_dict(state, strict=False)
    if wrong := [*(f"{n}: not saved" for n in missing), *(f"{n}: not in the model" for n in unexpected)]:
        raise InputError(f"{checkpoint_dir}: of another model:\n  " + "\n  ".join(wrong[:20]))
    return model


def convert_zero_checkpoint_to_fp32_state_dict(
    checkpoint_dir: str | Path,
    output_dir: str | Path,
    max_shard_size: str | int = "5GB",
    safe_serialization: bool = True,
    tag: str | None = None,
    exclude_frozen_parameters: bool = False,
) -> None:
    """Writes the weights to `output_dir`: model.safetensors, or shards with an index, as Hugging Face's libraries read them.

    Raises:
        InputError: `safe_serialization=False`, which would be a pickle; or the checkpoint cannot be used.
    """
    if not safe_serialization:
        raise InputError("convert_zero_checkpoint_to_fp32_state_dict: only safetensors is written, no pickle; leave it True")
    from huggingface_hub import save_torch_state_dict

    state = get_fp32_state_dict_from_zero_checkpoint(checkpoint_dir, tag, exclude_frozen_parameters)
    Path(output_dir).mkdir(parents=True, exist_ok=True)
    save_torch_state_dict(state, output_dir, max_shard_size=max_shard_size)


def _folder(folder: Path, tag: str | None) -> Path:
    if tag is None and (folder / "checkpoint.json").is_file():
        return folder
    if tag is None:
        latest = folder / "latest"
        if not latest.is_file():
            raise InputError(f"{folder}: no file `latest` in it; give tag=, or the folder of a checkpoint")
        tag = latest.read_text(encoding="utf-8").strip()
    if not (folder / tag).is_dir():
        there = sorted(p.parent.name for p in folder.glob("*/checkpoint.json"))
        raise InputError(f"{folder}: no checkpoint {tag}; there are: {', '.join(there) or 'none'}")
    return folder / tag


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint_dir", help="the folder given to save_checkpoint, or that of one tag")
    parser.add_argument("output_dir", help="where model.safetensors is written")
    parser.add_argument("-t", "--tag", help="the checkpoint; default: the one in the file latest")
    parser.add_argument("--max-shard-size", "--max_shard_size", default="5GB", help="largest file, as 5GB")
    parser.add_argument("--exclude-frozen-parameters", "--exclude_frozen_parameters", action="store_true")
    given: Any = parser.parse_args(arguments)
    try:
        convert_zero_checkpoint_to_fp32_state_dict(
            given.checkpoint_dir,
            given.output_dir,
            given.max_shard_size,
            tag=given.tag,
            exclude_frozen_parameters=given.exclude_frozen_parameters,
        )
    except InputError as error:
        sys.exit(str(error))
    print(f"wrote {given.output_dir}")


if __name__ == "__main__":
    main()
