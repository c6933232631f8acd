"""The kernels, compiled by the machine's C++ compiler in some seconds, into a cache, under a name that holds the source, the
compiler and the processor.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

FLAGS = ["-std=c++20", "-O3", "-march=native", "-fPIC", "-shared", "-pthread", "-w"]
_FOLDER = Path(__file__).parent
_HEADER = _FOLDER / "simd.h"


def compiler() -> str | None:
    """The machine's C++ compiler."""
    return next((found for name in ("c++", "g++", "clang++") if (found := shutil.which(name))), None)


def library_path(cache: Path, source: str) -> Path:
    """Where the kernel of `source`, a file beside this one, lies once it is compiled on this machine."""
    command = compiler()
    version = subprocess.run([command, "--version"], capture_output=True, check=False).stdout if command else b""
    read = (_FOLDER / source).read_bytes() + _HEADER.read_bytes()
    name = hashlib.sha256(read + version + _processor() + " ".join(FLAGS).encode()).hexdigest()[:16]
    return cache / f"{Path(source).stem}-{name}.so"


def build(cache: Path, source: str) -> Path | None:
    """The compiled kernel in `cache`, made if it is not there; None: no compiler, or it cannot."""
    command, library = compiler(), library_path(cache, source)
    if command is None or library.exists():
        return library if library.exists() else None
    cache.mkdir(parents=True, exist_ok=True)
    temporary = cache / f".{library.name}.{os.getpid()}"
    done = subprocess.run([command, *FLAGS, "-o", str(temporary), str(_FOLDER / source)], capture_output=True, check=False)
    if done.returncode != 0:
        return None
    temporary.replace(library)
    return library


def processor_has(flag: str) -> bool:
    """Whether /proc/cpuinfo lists it."""
    return flag.encode() in _processor().split()


def _processor() -> bytes:
    info = Path("/proc/cpuinfo")
    lines = info.read_bytes().splitlines() if info.exists() else []
    return next((line for line in lines if line.startswith((b"flags", b"Features"))), b"")
