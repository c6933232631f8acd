"""A run's copy in object storage, and how ranks meet that have no folder in common.

    s3://bucket/run/
      checkpoints/step-00000120.1a2b3c4d/   as in the run's folder; complete when checkpoint.json, its last object, is there
      recipe.yaml, metrics.jsonl, tokenizer/ …

Everything is written to the run's folder first, as without storage. Each rank then sends its part of a checkpoint; rank 0
waits for the others' parts in the folder or, from machines that do not share it, in storage, and sends the manifest last.
The ending names the attempt, so that parts of an attempt that was killed are never taken for those of the next.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from zenspeed.config import load
from zenspeed.errors import InputError
from zenspeed.recipe import Recipe
from zenspeed.storage import WAITS_SECONDS, Store, local_place

MANIFEST = "checkpoint.json"
LOOK_SECONDS = 0.5
"""Between looks for other ranks' parts."""


class RunStore:
    """Where a run is kept besides its folder.

    Raises:
        InputError: in all methods, where storage cannot be reached.
    """

    def __init__(self, url: str, *, patient: bool = True) -> None:
        """`patient`: tries again for half a minute, as a run should that has hours behind it."""
        self.url = url
        self.store = Store(url, WAITS_SECONDS if patient else ())
        self._sent: dict[Path, tuple[int, int]] = {}
        self._looked = 0.0

    # Writing ----------------------------------------------------------------------------------------------------------

    def put_part(self, partial: Path, name: str, rank: int, *, remove: bool) -> None:
        """One rank's part: what describes it is sent last. `remove`: where rank 0 has another folder, it is not kept here."""
        for suffix in (".safetensors", ".json"):
            file = f"rank-{rank:05d}{suffix}"
            self.store.put(partial / file, f"checkpoints/{name}/{file}")
            if remove:
                (partial / file).unlink()
        if remove:
            with contextlib.suppress(OSError):
                partial.rmdir()

    def get_parts(self, partial: Path, name: str, ranks: Sequence[int]) -> None:
        """Parts of ranks whose machines have another folder, as far as they are there."""
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        there = self.store.names(f"checkpoints/{name}/*")
        for rank in ranks:
            files = [f"rank-{rank:05d}{suffix}" for suffix in (".safetensors", ".json")]
            if f"checkpoints/{name}/{files[1]}" in there:
                for file in files:
                    self.store.get(f"checkpoints/{name}/{file}", partial / file)

    def commit(self, final: Path, name: str) -> None:
        """The manifest of a checkpoint whose parts are all there, which makes it complete, and the run's other files."""
        self.store.put(final / MANIFEST, f"checkpoints/{name}/{MANIFEST}")
        self.put_files(final.parent.parent)

    def put_files(self, run: Path) -> None:
        """What the run has besides checkpoints, where it has changed."""
        for place, folders, files in os.walk(run):
            folders[:] = [f for f in folders if not f.startswith(".") and not (Path(place) == run and f == "checkpoints")]
            for path in (Path(place, f) for f in files if not f.startswith(".")):
                status = path.stat()
                state = status.st_size, status.st_mtime_ns
                if self._sent.get(path) != state:
                    self.store.put(path, path.relative_to(run).as_posix())
                    self._sent[path] = state

    def forget(self, checkpoint: str) -> None:
        """Takes away a checkpoint, whichever attempt it is of."""
        for name in self._folders():
            if name.partition(".")[0] == checkpoint:
                self.store.remove(f"checkpoints/{name}")

    def forget_after(self, step: int) -> None:
        """Takes away checkpoints of later steps: the run went back and goes on another way."""
        for name in self.checkpoints():
            if int(name.removeprefix("step-")) > step:
                self.forget(name)

    def clean(self) -> None:
        """Takes away what attempts left that were killed."""
        for name, files in self._folders().items():
            if MANIFEST not in files:
                self.store.remove(f"checkpoints/{name}")

    # Reading ----------------------------------------------------------------------------------------------------------

    def checkpoints(self) -> dict[str, str]:
        """Complete checkpoints, oldest first: name -> folder; of two attempts at one step the later."""
        whole = [
            (name.partition(".")[0], files[MANIFEST], name) for name, files in self._folders().items() if MANIFEST in files
        ]
        return {step: name for step, _, name in sorted(whole)}

    def fetch(self, run: Path, checkpoint: str | None = None) -> None:
        """Makes `run` hold a checkpoint (`best`: all that there are; None: the newest) and, where it was older, the rest.

        A folder that another run lies in is refused. Processes that fetch into one folder take turns.
        """
        with _alone(run):
            there = self.checkpoints()
            if not there:
                return
            self._check_is_this_run(run)
            newer = max(there) > max((p.name for p in (run / "checkpoints").glob("step-*")), default="")
            wanted = [max(there)] if checkpoint in (None, "latest") else [c for c in there if checkpoint in (c, "best")]
            if newer:
                for name in self.store.names():
                    if not name.startswith("checkpoints/"):
                        self.store.get(name, run / name)
            for step in wanted:
                self._fetch_checkpoint(run / "checkpoints" / step, there[step])

    def _fetch_checkpoint(self, final: Path, name: str) -> None:
        if final.exists():
            return
        partial = final.with_name(f"{name}.fetched.partial")
        shutil.rmtree(partial, ignore_errors=True)
        for file in self.store.names(f"checkpoints/{name}/*"):
            self.store.get(file, partial / Path(file).name)
        partial.rename(final)

    def _check_is_this_run(self, run: Path) -> None:
        if (run / "recipe.yaml").exists() and load(Recipe, run / "recipe.yaml").run.storage != self.url:
            raise InputError(f"{run}: holds another run than {self.url}; go to another folder, or move it away")

    def _folders(self) -> dict[str, dict[str, float]]:
        """Folder of a checkpoint -> its files, with a number that grows with the time of writing."""
        out: dict[str, dict[str, float]] = {}
        for path, written in self.store.names("checkpoints/*/*").items():
            _, folder, file = path.split("/")
            out.setdefault(folder, {})[file] = written
        return out


def local_run(text: str) -> Path:
    """The folder of a run kept in object storage, here: runs/<its last part>, with all its checkpoints."""
    run = local_place(text)
    RunStore(text.rstrip("/"), patient=False).fetch(run, "best")
    if not run.exists():
        raise InputError(f"{text}: holds no complete checkpoint")
    return run


def meet(folder: Path, mark: str, wait_seconds: float, stored: bool) -> bool:
    """Whether this rank sees rank 0's folder. All ranks call it, and all raise when one does not and nothing is `stored`.

    Rank 0 has left a file named `mark`. Others look again for a while: network folders show what is new late.
    """
    until = time.monotonic() + wait_seconds
    while not (seen := (folder / mark).exists()) and time.monotonic() < until:
        time.sleep(0.1)
    blind = torch.zeros(dist.get_world_size())
    blind[dist.get_rank()] = not seen
    dist.all_reduce(blind)
    if dist.get_rank() == 0:
        (folder / mark).unlink(missing_ok=True)
    if blind.any() and not stored:
        ranks = ", ".join(str(rank) for rank, missing in enumerate(blind.tolist()) if missing)
        raise InputError(
            f"{folder}: is not one folder for all: rank {ranks} does not see it; put the run on a folder that all machines "
            "share, or keep it in object storage: --set run.folder=s3://bucket/run"
        )
    return seen


@contextlib.contextmanager
def _alone(run: Path) -> Iterator[None]:
    run.parent.mkdir(parents=True, exist_ok=True)
    with (run.parent / f".{run.name}.lock").open("w") as file:
        with contextlib.suppress(OSError):  # folders without locks: each fetches for itself, the last one is as good
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
