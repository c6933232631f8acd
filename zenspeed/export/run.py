"""`zenspeed export`: a run becomes a folder that other programs open, and that gives the trainer's answers, or nothing."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import torch

from zenspeed.config import InputError, write_atomically
from zenspeed.errors import missing
from zenspeed.evaluate.interval import Figure
from zenspeed.export import gate, gguf_gate, runtimes, targets
from zenspeed.export.card import card
from zenspeed.export.gguf import write_gguf
from zenspeed.export.llama_cpp import LlamaCpp, find_python
from zenspeed.export.probe import Probe, measurable, probes_of, writes
from zenspeed.run import OpenRun, open_run
from zenspeed.tasks.open import ROW_TASKS
from zenspeed.tasks.pairs import PairTask

Target = Literal["hf", "onnx", "torch", "aoti", "gguf"]
CHECKSUMS, PARITY, GGUF = "checksums.json", "parity.json", "model.gguf"


def export(
    run: Path,
    target: Target,
    out: Path | None = None,
    *,
    quantize: targets.Bits | None = None,
    checkpoint: str | None = None,
    license_name: str | None = None,
    runtime_python: Path | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Writes the folder `out` (default: RUN/export-TARGET) and gives it back.

    Args:
        runtime_python: a Python that imports llama_cpp, for gguf; default: this one. Without one nothing is run, and the
            outcome says so.

    Raises:
        InputError: the model cannot be written so, or its answers differ from the trained model's; then nothing is left.
    """
    if quantize is not None and target not in ("onnx", "gguf"):
        raise InputError(f"--quantize {quantize}: is for --to onnx and gguf; {target} keeps the weights as they are")
    python = find_python(runtime_python) if target == "gguf" else None
    opened = open_run(run, checkpoint)
    kind = opened.recipe.task.kind
    if quantize is not None and not measurable(opened.recipe):
        raise InputError(
            f"--quantize {quantize}: what it costs can be measured of a classification and of what writes text, not {kind}"
        )
    folder = out or run / f"export-{target}{f'-{quantize}' if quantize else ''}"
    if folder.exists() and any(folder.iterdir()) and not (folder / CHECKSUMS).exists():
        raise InputError(f"--out {folder}: holds other files; give an empty or a new folder")
    probes = probes_of(opened)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _write(opened, target, partial, quantize)
        say(f"written: {target}{f', {quantize}' if quantize else ''}; now its answers beside the trained model's")
        outcome = _judge(opened, target, partial, probes, quantize, python)
        (partial / PARITY).write_text(json.dumps(outcome, indent=1) + "\n", encoding="utf-8")
        (partial / "README.md").write_text(card(run, opened, target, outcome, license_name), encoding="utf-8")
        _sums(partial)
        shutil.rmtree(folder, ignore_errors=True)
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for line in lines_of(outcome):
        say(line)
    return folder


def _write(opened: OpenRun, target: Target, folder: Path, quantize: targets.Bits | None) -> None:
    model, tokenizer = opened.model, opened.tokenizer
    if target == "hf":
        targets.write_huggingface(model, tokenizer, folder, list(opened.recipe.task.labels or []))
        return
    tokenizer.save(folder / "tokenizer")
    if target == "gguf":
        write_gguf(model, tokenizer, folder / "tokenizer", folder / GGUF, opened.checkpoint.folder.parent.name, quantize)
    elif target == "torch":
        targets.write_programs(model, folder)
    elif target == "aoti":
        targets.write_compiled(model, folder)
    else:
        targets.write_onnx(model, folder, quantize)
    recipe = opened.recipe
    facts: dict[str, Any] = {"task": recipe.task.kind, "labels": recipe.task.labels, "context": recipe.model.context}
    facts |= {"opset": targets.OPSET} if target == "onnx" else {}
    task = ROW_TASKS.get(recipe.task.kind)
    if task is not None and issubclass(task, PairTask):
        facts["begin"] = task.of_run(recipe, tokenizer).begin
    write_atomically(folder / "model.json", json.dumps(facts, indent=1, ensure_ascii=False) + "\n")


def _judge(
    opened: OpenRun, target: Target, folder: Path, probes: list[Probe], quantize: targets.Bits | None, python: Path | None
) -> dict[str, Any]:
    own, recipe = runtimes.Own(opened.model), opened.recipe
    versions = {"torch": torch.__version__} | _version({"hf": "transformers", "onnx": "onnxruntime"}.get(target))
    outcome: dict[str, Any] = {"target": target, "checkpoint": opened.checkpoint.folder.name, "versions": versions}
    if quantize is not None:
        outcome["quantize"] = quantize
    if target == "gguf" and python is None:
        return outcome | gguf_gate.read_back(opened, folder / GGUF, quantize)
    with ExitStack() as stack:
        if target == "gguf":
            assert python is not None
            llama = LlamaCpp(python, folder / GGUF, recipe.model.context)
            stack.callback(llama.close)
            versions["llama_cpp"] = llama.version
            gguf_gate.same_text(opened, llama, probes)
            other: runtimes.Runtime = llama
        elif target == "hf":
            other = runtimes.Transformers(folder, recipe.task.kind, recipe.model.pool, writes(recipe))
            _same_tokens(opened, folder, probes)
        else:
            other = runtimes.OF_GRAPHS[target](folder, opened.model)
        if quantize is not None:
            figures = gate.cost(own, other, probes)
            return outcome | {"figures": {name: figure._asdict() for name, figure in figures.items()}}
        return outcome | gate.check(own, other, probes, recipe.model.context, writes(recipe))


def _same_tokens(opened: OpenRun, folder: Path, probes: list[Probe]) -> None:
    """The saved tokenizer, opened by transformers, reads texts as ours does."""
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder)
    for number, probe in enumerate(probes[:8]):
        text = opened.tokenizer.decode(probe.tokens)
        ours, found = opened.tokenizer.encode(text), theirs(text, add_special_tokens=False)["input_ids"]
        if list(ours) != list(found):
            pairs = enumerate(zip(ours, found, strict=False))
            place = next((i for i, (a, b) in pairs if a != b), min(len(ours), len(found)))
            raise InputError(
                f"export: not kept: transformers' tokenizer reads probe {number} differently from token {place} on"
            )


def _version(package: str | None) -> dict[str, str]:
    import importlib.metadata

    return {} if package is None else {package: importlib.metadata.version(package)}


def _sums(folder: Path) -> None:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != CHECKSUMS)
    sums = {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
    (folder / CHECKSUMS).write_text(json.dumps(sums, indent=1) + "\n", encoding="utf-8")


def verify(folder: Path) -> int:
    """Compares the files of an exported folder with their checksums; how many there are.

    Raises:
        InputError: one is missing, changed, or was not there when the folder was written.
    """
    try:
        sums: dict[str, str] = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise missing(folder, "export", f"has no readable {CHECKSUMS}" if folder.exists() else None) from None
    for name, wanted in sums.items():
        path = folder / name
        if not path.is_file():
            raise InputError(f"{path}: is missing; export again")
        if hashlib.sha256(path.read_bytes()).hexdigest() != wanted:
            raise InputError(f"{path}: is not the file that was written (its checksum differs); export again")
    return len(sums)


def lines_of(outcome: dict[str, Any]) -> list[str]:
    """The outcome for people."""
    if "not_run" in outcome:
        return [f"NOT RUN: {outcome['not_run']}", f"instead: {outcome['instead']}"]
    if "figures" in outcome:
        figures = {name: Figure(**figure) for name, figure in outcome["figures"].items()}
        return [f"{name.replace('_', ' '):<15} {figure}  {figure.definition}" for name, figure in figures.items()]
    greedy = outcome["greedy_tokens_equal"]
    said = f"{outcome['probes']} texts: logits within {outcome['largest_difference']:.1e} of the largest"
    return [said + (f", {greedy} generated tokens equal" if greedy else "") + f" ({outcome['versions']})"]
