"""Checkpoints: everything a run needs to go on as if it had not been stopped.

    <run>/checkpoints/
      latest                     name of the newest complete checkpoint
      step-00000120/
        checkpoint.json          what it is of: format, step, training state, resolved recipe, files with sizes and sha256
        rank-00000.safetensors   the slices of weights and optimizer state that this rank held, and its random state
        rank-00000.json          which slice of which parameter each tensor is

A checkpoint is written beside its place under a name ending in `.partial`, flushed to disk and renamed when every rank's
files are there, so a folder without that ending is complete. Slices are stored with their place in the whole parameter
(name, kind, start, stop), so a checkpoint loads on any number of ranks and any ZeRO stage. No pickle anywhere.

Ranks meet through the files alone: rank 0 waits for the others' files and names a rank that does not come, it never hangs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from zenspeed.config import InputError, write_atomically
from zenspeed.errors import missing
from zenspeed.runstore import RunStore, meet

FORMAT = 1
Entry = list[Any]  # [name, kind, shape, start, stop, key]


def copy_part(
    shards: Iterable[tuple[str, str, torch.Size, int, int, Tensor]], scalars: Mapping[str, Mapping[str, float]]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A copy of what a rank holds: tensors by key, and which slice of which parameter each of them is."""
    tensors: dict[str, Tensor] = {"rng": torch.get_rng_state()}
    entries: list[Entry] = []
    for parameter, kind, shape, start, stop, tensor in shards:
        key = f"{kind}/{parameter}/{start}"
        tensors[key] = tensor.detach().to("cpu", copy=True).contiguous()
        entries.append([parameter, kind, list(shape), start, stop, key])
    return tensors, {"entries": entries, "scalars": {k: dict(v) for k, v in scalars.items()}}


def write_part(path: Path, tensors: dict[str, Tensor], part: Mapping[str, Any]) -> None:
    """Writes a rank's part, on disk when this returns; its .json comes last, so the part is whole when that is there."""
    save_file(tensors, path)
    _flush(path)
    write_atomically(path.with_suffix(".json"), json.dumps(part))


def write_manifest(folder: Path, step: int, ranks: int, state: Mapping[str, Any]) -> None:
    """Writes checkpoint.json of a folder that holds the parts of all ranks."""
    paths = [folder / f"rank-{rank:05d}{suffix}" for rank in range(ranks) for suffix in (".safetensors", ".json")]
    manifest = {
        "format": FORMAT,
        "step": step,
        "ranks": ranks,
        "files": [_describe(path) for path in paths],
        "state": dict(state),
    }
    write_atomically(folder / "checkpoint.json", json.dumps(manifest | {"sha256": _digest(manifest)}, indent=1))


def restate(folder: Path, **changes: Any) -> None:
    """Changes entries of the state of a whole checkpoint; its tensors stay as they are."""
    checkpoint = Checkpoint(folder)
    write_manifest(folder, checkpoint.step, checkpoint.ranks, checkpoint.state | changes)


class Checkpointer:
    """Saves checkpoints of one run, in the background, and forgets old ones; `keep` None: keeps all."""

    def __init__(
        self,
        folder: Path,
        keep: int | None = 2,
        keep_best: bool = True,
        wait_seconds: float = 300.0,
        store: RunStore | None = None,
        meet_seconds: float | None = None,
        second: Path | None = None,
    ) -> None:
        self.folder, self.keep, self.keep_best, self.wait_seconds = folder, keep, keep_best, wait_seconds
        self.store = store
        """Object storage where each checkpoint is sent as well."""
        self.second = second
        """A folder that gets a copy of each checkpoint."""
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        if self.rank == 0:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                if second is not None:
                    second.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(
                    f"{error.filename or folder}: cannot be written: {error.strerror}; give another --set run.folder=… or "
                    "checkpoint.copy_to=…"
                ) from None
            for left in [*folder.glob("*.partial"), *(second.glob("*.partial") if second else ())]:
                shutil.rmtree(left, ignore_errors=True)
        # A name of this attempt that all ranks know, so that leftovers of a killed one are never mistaken for ours. They get it
        # when rank 0 has cleaned up, so that nothing of theirs is taken away.
        attempt = torch.frombuffer(bytearray(os.urandom(4)), dtype=torch.int32).abs().long()
        if self.rank == 0:
            if store is not None:
                store.clean()
            (folder / f".{int(attempt):08x}").touch()
        dist.broadcast(attempt, src=0)
        self.attempt = f"{int(attempt):08x}"
        # Network folders may show late what is new in them, which matters more where there is no other place to meet.
        meet_seconds = meet_seconds or (5.0 if store else 60.0)
        self.shared = meet(folder, f".{self.attempt}", meet_seconds, store is not None)
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(
        self,
        step: int,
        shards: Iterable[tuple[str, str, torch.Size, int, int, Tensor]],
        scalars: Mapping[str, Mapping[str, float]],
        state: Mapping[str, Any],
        *,
        wait: bool = False,
        name: str | None = None,
    ) -> None:
        """Copies the state now and writes it in the background; with `wait`, returns when it is on disk.

        Args:
            shards: (name, kind, shape of the whole, start, stop, elements) of this rank's part.
            name: of the checkpoint's folder; default: `step-…`.
            state: JSON-safe, the same on all ranks; `state["metric"]`, lower is better, is what `keep_best` goes by.

        Raises:
            InputError: this or the previous save failed (disk full, a rank's files missing); older checkpoints are untouched.
        """
        self.wait()
        tensors, part = copy_part(shards, scalars)
        self._thread = threading.Thread(target=self._write, args=(step, name or f"step-{step:08d}", tensors, part, dict(state)))
        self._thread.start()
        if wait:
            self.wait()

    def wait(self) -> None:
        """Waits for the save under way, and raises what went wrong with it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _write(self, step: int, name: str, tensors: dict[str, Tensor], part: dict[str, Any], state: dict[str, Any]) -> None:
        partial = self.folder / f"{name}.{self.attempt}.partial"
        try:
            partial.mkdir(parents=True, exist_ok=True)
            path = partial / f"rank-{self.rank:05d}.safetensors"
            write_part(path, tensors, part)
            if self.store is not None:
                self.store.put_part(partial, f"{name}.{self.attempt}", self.rank, remove=not self.shared)
            if self.rank == 0:
                self._commit(step, name, partial, state)
        except OSError as error:
            self._error = InputError(self._explain(step, error))
        except SafetensorError as error:  # how the library reports an I/O error
            self._error = InputError(self._explain(step, error))
        except BaseException as error:
            self._error = error
        if self._error is None:
            return
        if self.rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
        else:  # an empty file, for which a full disk has room: rank 0 need not wait
            with contextlib.suppress(OSError):
                (partial / f"rank-{self.rank:05d}.failed").touch()

    def _commit(self, step: int, name: str, partial: Path, state: dict[str, Any]) -> None:
        parts = [partial / f"rank-{rank:05d}.json" for rank in range(self.ranks)]
        deadline = time.monotonic() + self.wait_seconds
        while missing := [rank for rank, path in enumerate(parts) if not path.exists()]:
            if failed := [rank for rank in missing if parts[rank].with_suffix(".failed").exists()]:
                raise OSError(f"rank {failed[0]} could not write its part")
            if time.monotonic() > deadline:
                ranks = ", ".join(map(str, missing))
                raise InputError(f"checkpoint of step {step}: no files from rank {ranks} after {self.wait_seconds:.0f} s")
            if self.store is not None:
                self.store.get_parts(partial, f"{name}.{self.attempt}", missing)
            time.sleep(0.01)
        write_manifest(partial, step, self.ranks, state)
        final = self.folder / name
        if final.exists():
            shutil.rmtree(final)
        partial.rename(final)
        _flush(self.folder)
        write_atomically(self.folder / "latest", final.name)
        if self.store is not None:
            self.store.commit(final, f"{name}.{self.attempt}")
        shutil.rmtree(final.with_name(f"{name}.aside"), ignore_errors=True)
        if self.keep is not None:
            self._forget_old(self.folder, self.keep)
        if self.second is not None:
            self._copy(final, self.second)

    def _copy(self, source: Path, second: Path) -> None:
        """The same checkpoint in a second place, complete when it has its name."""
        partial = second / f"{source.name}.{self.attempt}.partial"
        try:
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(source, partial)
            for file in partial.iterdir():
                _flush(file)
            shutil.rmtree(second / source.name, ignore_errors=True)
            partial.rename(second / source.name)
            _flush(second)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise OSError(f"{source} is whole, its copy in {second} could not be written: {error.strerror or error}") from None
        if self.keep is not None:
            self._forget_old(second, self.keep)

    def _forget_old(self, folder: Path, keep: int) -> None:
        checkpoints = list_checkpoints(folder)
        kept = set(checkpoints[-keep:])
        if self.keep_best:
            scored = [(m, c) for c in checkpoints if (m := _metric(c)) is not None]
            kept |= {min(scored, key=lambda pair: pair[0])[1]} if scored else set()
        for checkpoint in set(checkpoints) - kept:
            shutil.rmtree(checkpoint, ignore_errors=True)
            if self.store is not None:
                self.store.forget(checkpoint.name)

    def _explain(self, step: int, error: Exception) -> str:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        good = list_checkpoints(self.folder)
        fall_back = f"the last good one is {good[-1].name}" if good else "there is none yet"
        free = shutil.disk_usage(self.folder).free / 2**20
        return (
            f"checkpoint of step {step} could not be written in {self.folder}: {reason} ({free:.0f} MiB free); "
            f"{fall_back}; make room, then go on with: zenspeed resume {self.folder.parent}"
        )


class Checkpoint:
    """One complete checkpoint, opened for reading."""

    def __init__(self, folder: Path, *, offer: bool = True) -> None:
        """Raises InputError where it is damaged; with `offer` the error says which one before it is there."""
        self.folder, self._offers = folder, offer
        try:
            self.manifest = json.loads((folder / "checkpoint.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{folder / 'checkpoint.json'}: cannot be read ({error}){self._offer()}") from None
        if self.manifest.pop("sha256", None) != _digest(self.manifest):
            raise InputError(f"{folder / 'checkpoint.json'}: damaged, its checksum is not its own{self._offer()}")
        if self.manifest.get("format") != FORMAT:
            raise InputError(f"{folder}: format {self.manifest.get('format')}, this version reads {FORMAT}")
        self.state: dict[str, Any] = self.manifest["state"]
        self.step: int = self.manifest["step"]
        self.ranks: int = self.manifest["ranks"]
        self.scalars: dict[str, dict[str, float]] = {}
        self.shapes: dict[str, torch.Size] = {}
        self._shapes: dict[tuple[str, str], torch.Size] = {}
        self._entries: dict[tuple[str, str], list[tuple[int, int, Path, str]]] = {}
        for file in self.manifest["files"]:
            self._verify(folder / file["file"], file)
        for rank in range(self.ranks):
            self._read_part(folder / f"rank-{rank:05d}.json")

    def _verify(self, path: Path, file: dict[str, Any]) -> None:
        if not path.exists():
            raise InputError(f"{path}: missing{self._offer()}")
        if _describe(path) != file:
            raise InputError(f"{path}: damaged, its checksum is not the one in checkpoint.json{self._offer()}")

    def _offer(self) -> str:
        return _offer(self.folder) if self._offers else ""

    def _read_part(self, path: Path) -> None:
        part = json.loads(path.read_text(encoding="utf-8"))
        for name, kind, shape, start, stop, key in part["entries"]:
            self._entries.setdefault((name, kind), []).append((start, stop, path.with_suffix(".safetensors"), key))
            self._shapes[name, kind] = torch.Size(shape)
            if kind == "weight":
                self.shapes[name] = torch.Size(shape)
        self.scalars |= part["scalars"]

    def read(self, name: str, kind: str, start: int, stop: int) -> Tensor | None:
        """Elements `start` … `stop` of the flattened state, put together from the slices saved; None if none was saved."""
        found = self._entries.get((name, kind))
        if found is None:
            return None
        out: Tensor | None = None
        filled = 0
        for first, last, path, key in sorted(found):
            low, high = max(first, start), min(last, stop)
            if low >= high:
                continue
            with safe_open(path, framework="pt") as file:
                part = file.get_slice(key)[low - first : high - first]
            if out is None:
                out = torch.empty(stop - start, dtype=part.dtype)
            out[low - start : high - start] = part
            filled += high - low
        if filled != stop - start:
            raise InputError(f"{self.folder}: {name} ({kind}) is not complete: {filled} of {stop - start} elements")
        return out

    def keys(self) -> set[tuple[str, str]]:
        """(parameter, kind) of all that is stored elementwise."""
        return set(self._entries)

    def shapes_of(self, kind: str) -> dict[str, torch.Size]:
        """Whole shapes of what is stored as `kind`, by parameter."""
        return {name: shape for (name, k), shape in self._shapes.items() if k == kind}

    def weights(self) -> dict[str, Tensor]:
        """All weights, whole, fp32."""
        out = {}
        for name, shape in self.shapes.items():
            flat = self.read(name, "weight", 0, shape.numel())
            assert flat is not None
            out[name] = flat.view(shape)
        return out

    def rng(self, rank: int) -> Tensor | None:
        """The random state of `rank`, or None if there were fewer ranks."""
        if rank >= self.ranks:
            return None
        with safe_open(self.folder / f"rank-{rank:05d}.safetensors", framework="pt") as file:
            return file.get_tensor("rng")


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(p for p in folder.glob("step-*") if p.is_dir() and not p.suffix)


def newest_whole(folders: Sequence[Path], before: int | None = None) -> tuple[Path | None, list[str]]:
    """The newest checkpoint in any of `folders` that is whole, and what is wrong with the newer ones.

    A checkpoint of a folder named first is taken before one of the same step elsewhere. `before`: only of earlier steps.
    """
    there = [(path.name, -place, path) for place, folder in enumerate(folders) for path in list_checkpoints(folder)]
    wrong: list[str] = []
    for name, _, path in sorted(there, reverse=True):
        if before is not None and int(name.removeprefix("step-")) >= before:
            continue
        try:
            Checkpoint(path, offer=False)
        except InputError as error:
            wrong.append(str(error))
        else:
            return path, wrong
    return None, wrong


def places(copy_to: Path | None, run: Path) -> list[Path]:
    """Where checkpoints of a run are: its folder, and the second place where there is one."""
    return [run / "checkpoints", *second_place(copy_to, run)]


def second_place(copy_to: Path | None, run: Path) -> list[Path]:
    """Where copies of a run's checkpoints are; none where none are asked for."""
    return [copy_to.expanduser() / run.name / "checkpoints"] if copy_to else []


def set_aside_after(folder: Path, step: int) -> None:
    """Takes the checkpoints of later steps than `step` out of the list: the run goes on from there, in another way."""
    for path in list_checkpoints(folder):
        if int(path.name.removeprefix("step-")) > step:
            aside = path.with_name(f"{path.name}.aside")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)


def find_checkpoint(run: Path, name: str | None = None) -> Path:
    """The checkpoint folder `name` of a run (`latest`, `best`, or a step's folder); None: the latest."""
    folder = run / "checkpoints"
    there = list_checkpoints(folder)
    if not run.exists():
        raise missing(run, "run")
    if not there:
        raise missing(run, "run", "holds no complete checkpoint")
    if name == "best":
        scored = [(m, c) for c in there if (m := _metric(c)) is not None]
        return min(scored, key=lambda pair: pair[0])[1] if scored else there[-1]
    if name is None or name == "latest":
        return there[-1]
    if folder / name not in there:
        raise InputError(f"{run}: no checkpoint {name}; there are {', '.join(p.name for p in there)}")
    return folder / name


def _metric(checkpoint: Path) -> float | None:
    try:
        return json.loads((checkpoint / "checkpoint.json").read_text())["state"].get("metric")
    except (OSError, ValueError, KeyError):
        return None


def _offer(damaged: Path) -> str:
    """What to do about a damaged checkpoint: the newest other one that is whole."""
    for other in reversed(list_checkpoints(damaged.parent)):
        if other.name < damaged.name:
            run = damaged.parent.parent
            return f"; the last one before it is {other.name}: zenspeed resume {run} --checkpoint {other.name}"
    return "; there is no older one"


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256}


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
