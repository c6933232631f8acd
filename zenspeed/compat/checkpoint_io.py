"""save_checkpoint and load_checkpoint on our own format: any layout loads in any other, and no pickle runs on load.

    <save_dir>/latest            name of the newest complete checkpoint
    <save_dir>/global_step12/    checkpoint.json and each rank's slices, see zenspeed/checkpoint.py

Parameters no optimizer has, and buffers, are saved by rank 0 as kinds `frozen` and `buffer`. Ranks meet through the store of
the process group, where waiting has an end: a rank that does not come is named.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn

from zenspeed.checkpoint import Checkpoint, Checkpointer
from zenspeed.compat.jsonsafe import decode, encode
from zenspeed.config import InputError
from zenspeed.engine import Shard

if TYPE_CHECKING:
    from zenspeed.compat.optimizer import EngineOptimizer
    from zenspeed.engine import Engine

logger = logging.getLogger("zenspeed")


class CheckpointCalls:
    """The engine's saving and loading."""

    core: Engine
    module: nn.Module
    optimizer: EngineOptimizer | None
    lr_scheduler: Any
    _config: Any
    global_rank: int
    world_size: int
    global_steps: int
    global_samples: int
    skipped_steps: int
    micro_steps: int

    gathered: Callable[[], AbstractContextManager[None]]
    meeting_place: str
    """A name of this engine that all ranks know, so that engines of one process do not take each other's answers."""

    checkpoint_wait_seconds = 300.0
    """How long saving waits for the other ranks."""

    def save_checkpoint(
        self,
        save_dir: str | Path,
        tag: str | None = None,
        client_state: dict[str, Any] | None = None,
        save_latest: bool = True,
        exclude_frozen_parameters: bool = False,
        asynchronous: bool = False,
    ) -> bool:
        """Saves everything training needs to go on, in `save_dir`/`tag` (default `global_step…`). All ranks call it.

        Args:
            client_state: anything JSON can say (and tuples); given back by `load_checkpoint`.
            asynchronous: return when the state is copied; the files are written in the background.

        Raises:
            InputError: a rank did not come (it is named), tags differ, the disk is full, client state JSON cannot say.
        """
        if not str(save_dir):
            raise InputError("save_checkpoint: save_dir is empty; give a folder")
        name = self._agree_on_tag(str(tag) if tag is not None else f"global_step{self.global_steps}")
        client = {"client_state": encode(client_state or {}, "client_state"), "without_frozen": exclude_frozen_parameters}
        state = self._training_state() | client
        saver = self._checkpointer(Path(save_dir))
        before = _latest(Path(save_dir))
        saver.wait_seconds = self.checkpoint_wait_seconds
        shards = [*self.core.shards(), *self._other_shards(exclude_frozen_parameters)]
        saver.save(self.global_steps, shards, self.core.scalars(), state, wait=not asynchronous, name=name)
        if not asynchronous:
            self._meet("saved", "done")
            if not save_latest and self.global_rank == 0:
                _write_latest(Path(save_dir), before)
        return True

    def save_16bit_model(
        self, save_dir: str | Path, save_filename: str = "model.safetensors", exclude_frozen_parameters: bool = False
    ) -> bool:
        """The whole module's weights in the precision they have, as one safetensors file. All ranks call it.

        Raises:
            InputError: `save_filename` does not end in .safetensors; a pickle can run code where it is loaded.
        """
        if not save_filename.endswith(".safetensors"):
            raise InputError(f"save_16bit_model: {save_filename}: only .safetensors is written, no pickle; rename it")
        with self.gathered():
            if self.global_rank == 0:
                left_out = {n for n, p in self.module.named_parameters() if not p.requires_grad and exclude_frozen_parameters}
                state = {n: t.detach().cpu().clone() for n, t in self.module.state_dict().items() if n not in left_out}
                Path(save_dir).mkdir(parents=True, exist_ok=True)
                save_file(state, Path(save_dir) / save_filename, metadata={"format": "pt"})
        return True

    def _zero3_consolidated_16bit_state_dict(self, exclude_frozen_parameters: bool = False) -> dict[str, Tensor] | None:
        """The whole module's weights in the precision they have: on rank 0, None elsewhere. All ranks call it."""
        with self.gathered():
            if self.global_rank != 0:
                return None
            left_out = self._untrained() if exclude_frozen_parameters else set()
            return {n: t.detach().cpu().clone() for n, t in self.module.state_dict().items() if n not in left_out}

    def wait_for_checkpoint(self) -> None:
        """Waits for a save under way in the background; raises what went wrong with it."""
        for saver in self.__dict__.get("_savers", {}).values():
            saver.wait()

    def load_checkpoint(
        self,
        load_dir: str | Path,
        tag: str | None = None,
        load_module_strict: bool = True,
        load_optimizer_states: bool = True,
        load_lr_scheduler_states: bool = True,
        load_module_only: bool = False,
        custom_load_fn: Any = None,
    ) -> tuple[str | None, dict[str, Any] | None]:
        """(path, client_state) of the checkpoint loaded, from any ranks and stage; (None, None) if none is there.

        Raises:
            InputError: no such tag, a shard is missing or damaged, or it is of another model (names and shapes are listed).
        """
        if custom_load_fn is not None:
            raise InputError("load_checkpoint: custom_load_fn is not supported; load the module's weights before initialize()")
        folder = Path(load_dir)
        self.wait_for_checkpoint()
        if tag is None and (tag := _latest(folder)) is None:
            logger.warning("%s: no file `latest`, so no checkpoint is loaded; give tag=…", folder)
            return None, None
        if not (folder / str(tag)).is_dir():
            there = sorted(p.parent.name for p in folder.glob("*/checkpoint.json"))
            raise InputError(f"{folder}: no checkpoint {tag}; there are: {', '.join(there) or 'none'}")
        saved = Checkpoint(folder / str(tag))
        if "global_steps" not in saved.state:
            raise InputError(f"{saved.folder}: a checkpoint of `zenspeed train`, not of this engine; use zenspeed resume")
        self._check_model(saved, load_module_strict)
        self.core.load(saved.read, saved.scalars, states=load_optimizer_states and not load_module_only)
        self._load_others(saved)
        self.core.zero.zero_grad()
        if not load_module_only:
            self._restore(saved.state, load_optimizer_states, load_lr_scheduler_states)
        return str(saved.folder), decode(saved.state["client_state"])

    # Parts ------------------------------------------------------------------------------------------------------------

    def _training_state(self) -> dict[str, Any]:
        groups = self.optimizer.param_groups if self.optimizer else []
        options = [{k: v for k, v in g.items() if k != "params" and not isinstance(v, Tensor)} for g in groups]
        scheduler = self.lr_scheduler.state_dict() if self.lr_scheduler is not None else None
        return {
            "global_steps": self.global_steps,
            "global_samples": self.global_samples,
            "skipped_steps": self.skipped_steps,
            "micro_steps": self.micro_steps,
            "scaler": self.core.scaler.state_dict(),
            "groups": encode(options, "optimizer.param_groups"),
            "lr_scheduler": encode(scheduler, "lr_scheduler"),
        }

    def _restore(self, state: dict[str, Any], optimizer: bool, scheduler: bool) -> None:
        for key in ("global_steps", "global_samples", "skipped_steps", "micro_steps"):
            setattr(self, key, state[key])
        if optimizer and self.optimizer is not None:
            self.core.scaler.load_state_dict(state["scaler"])
            saved = decode(state["groups"])
            if len(saved) != len(self.optimizer.param_groups):
                raise InputError(
                    f"load_checkpoint: the optimizer was saved with {len(saved)} parameter groups, here it has "
                    f"{len(self.optimizer.param_groups)}; make the same groups, or load_optimizer_states=False"
                )
            for mine, theirs in zip(self.optimizer.param_groups, saved, strict=True):
                mine.update(theirs)
        if scheduler and self.lr_scheduler is not None and state["lr_scheduler"] is not None:
            self.lr_scheduler.load_state_dict(decode(state["lr_scheduler"]))

    def _others(self) -> Iterator[tuple[str, str, Tensor]]:
        """(name, kind, tensor) of whole state outside the optimizer's buckets."""
        for name, parameter in self.module.named_parameters():
            home = self.core.zero.bucket_of(parameter)
            if home is None:
                yield name, "frozen", parameter.data
        for name, buffer in self.module.named_buffers():
            if _is_persistent(self.module, name):
                yield name, "buffer", buffer

    def _other_shards(self, exclude_frozen: bool) -> Iterator[Shard]:
        if self.core.mesh["replicate"].get_local_rank() == 0 and not exclude_frozen:
            for bucket in self.core.zero.buckets:
                if not bucket.trainable:
                    for p in bucket.pieces():
                        part = bucket.weight_slice[p.offset : p.offset + p.stop - p.start]
                        yield Shard(p.name, "frozen", p.shape, p.start, p.stop, part)
        if self.global_rank == 0:
            for name, kind, tensor in self._others():
                if kind == "buffer" or not exclude_frozen:
                    yield Shard(name, kind, tensor.shape, 0, tensor.numel(), tensor.reshape(-1))

    def _load_others(self, saved: Checkpoint) -> None:
        for name, kind, tensor in self._others():
            if (flat := saved.read(name, kind, 0, tensor.numel())) is not None:
                tensor.copy_(flat.view(tensor.shape))
        for bucket in self.core.zero.buckets:
            if bucket.trainable:
                continue
            for p in bucket.pieces():
                if (flat := saved.read(p.name, "frozen", p.start, p.stop)) is not None:
                    bucket.weight_slice[p.offset : p.offset + p.stop - p.start].copy_(flat)

    def _shapes(self) -> dict[str, torch.Size]:
        """Whole shapes of all parameters, also where they are cut."""
        inside = {s.name: s.shape for b in self.core.zero.buckets for s in b.slots}
        return {name: inside.get(name, p.shape) for name, p in self.module.named_parameters()}

    def _untrained(self) -> set[str]:
        trained = {s.name for b in self.core.zero.trainable for s in b.slots}
        return {name for name, _ in self.module.named_parameters() if name not in trained}

    def _check_model(self, saved: Checkpoint, strict: bool) -> None:
        ours = self._shapes()
        theirs = dict(saved.shapes) | saved.shapes_of("frozen")
        if saved.state.get("without_frozen"):  # left out on purpose: they stay as the module was given
            ours = {n: shape for n, shape in ours.items() if n in theirs or n not in self._untrained()}
        lines = [f"{n}: here {tuple(ours[n])}, saved {tuple(theirs[n])}" for n in ours if n in theirs and ours[n] != theirs[n]]
        if strict:
            lines += [f"{n}: here {tuple(ours[n])}, not saved" for n in ours if n not in theirs]
            lines += [f"{n}: saved {tuple(theirs[n])}, not here" for n in theirs if n not in ours]
        if lines:
            shown = lines[:20] + ([f"… and {len(lines) - 20} more"] if len(lines) > 20 else [])
            raise InputError(f"{saved.folder}: of another model:\n  " + "\n  ".join(shown))

    def _checkpointer(self, folder: Path) -> Checkpointer:
        savers = self.__dict__.setdefault("_savers", {})
        if folder not in savers:
            savers[folder] = Checkpointer(folder, keep=None)
        return savers[folder]

    # Meeting ----------------------------------------------------------------------------------------------------------

    def _agree_on_tag(self, tag: str) -> str:
        if not tag or "/" in tag or tag.endswith(".partial"):
            raise InputError(f"save_checkpoint: tag {tag!r} cannot be the name of a folder; use letters, digits, _ and -")
        tags = self._meet("tag", tag)
        mode = str(getattr(self._config.checkpoint, "tag_validation", "Warn")).lower().rpartition(".")[2]
        if len(set(tags)) > 1 and mode != "ignore":
            text = "save_checkpoint: tags differ: " + ", ".join(f"rank {r}: {t}" for r, t in enumerate(tags))
            if mode == "fail":
                raise InputError(text + "; give the same tag on every rank")
            logger.warning("%s; that of rank 0 is used", text)
        return tags[0]

    def _meet(self, subject: str, value: str) -> list[str]:
        """The values of all ranks; a rank that does not come in time is named."""
        count = self.__dict__["_meetings"] = self.__dict__.get("_meetings", 0) + 1
        store = dist.distributed_c10d._get_default_store()
        key = f"zenspeed/{self.meeting_place}/{subject}/{count}"
        store.set(f"{key}/{self.global_rank}", value)
        missing = []
        wait = self.checkpoint_wait_seconds
        for rank in range(self.world_size):
            try:
                store.wait([f"{key}/{rank}"], timedelta(seconds=wait))
            except dist.DistError:
                missing.append(rank)
                wait = 0.1  # the time is over: only see who else is not there
        if missing:
            ranks = ", ".join(map(str, missing))
            raise InputError(
                f"save_checkpoint: rank {ranks} did not come in {self.checkpoint_wait_seconds:g} s; every rank must call it "
                "(not only rank 0), or that process has died"
            )
        return [store.get(f"{key}/{rank}").decode() for rank in range(self.world_size)]


def _is_persistent(module: nn.Module, name: str) -> bool:
    owner = module.get_submodule(name.rpartition(".")[0])
    return name.rpartition(".")[2] not in owner._non_persistent_buffers_set


def _latest(folder: Path) -> str | None:
    path = folder / "latest"
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None


def _write_latest(folder: Path, name: str | None) -> None:
    path = folder / "latest"
    path.write_text(name, encoding="utf-8") if name is not None else path.unlink(missing_ok=True)
