"""`zenspeed export`: a run becomes a folder that other programs open, and that gives the trainer's answers, or nothing."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch

from zenspeed.config import InputError, write_atomically
from zenspeed.evaluate.interval import Figure
from zenspeed.export import gate, runtimes, targets
from zenspeed.export.card import card
from zenspeed.export.probe import Probe, measurable, probes_of
from zenspeed.run import OpenRun, open_run

Target = Literal["hf", "onnx", "torch"]
NAMES: dict[str, str] = {"onnx": "model.onnx", "torch": "model.pt2"}
CHECKSUMS, PARITY = "checksums.json", "parity.json"


def export(
    run: Path,
    target: Target,
    out: Path | None = None,
    *,
    quantize: targets.Bits | None = None,
    checkpoint: str | None = None,
    license_name: str | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Writes the folder `out` (default: RUN/export-TARGET) and gives it back.

    Raises:
        InputError: the model cannot be written so, or its answers differ from the trained model's; then nothing is left.
    """
    if quantize is not None and target != "onnx":
        raise InputError(f"--quantize {quantize}: is for --to onnx; {target} keeps the weights as they are")
    opened = open_run(run, checkpoint)
    kind = opened.recipe.task.kind
    if quantize is not None and not measurable(opened.recipe):
        raise InputError(
            f"--quantize {quantize}: what it costs can be measured for language_model and classification, not {kind}"
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
        outcome = _judge(opened, target, partial, probes, quantize)
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
    path = folder / NAMES[target]
    if target == "torch":
        targets.write_program(model, path)
    else:
        targets.write_onnx(model, path, quantize)
    facts = {"task": opened.recipe.task.kind, "labels": opened.recipe.task.labels, "context": opened.recipe.model.context}
    opset = {"opset": targets.OPSET} if target == "onnx" else {}
    write_atomically(folder / "model.json", json.dumps(facts | opset, indent=1, ensure_ascii=False) + "\n")


def _judge(opened: OpenRun, target: Target, folder: Path, probes: list[Probe], quantize: targets.Bits | None) -> dict[str, Any]:
    own, recipe = runtimes.Own(opened.model), opened.recipe
    kind = recipe.task.kind
    if target == "hf":
        other: runtimes.Runtime = runtimes.Transformers(folder, kind, recipe.model.pool)
        _same_tokens(opened, folder, probes)
    else:
        runtime = runtimes.Onnx if target == "onnx" else runtimes.Program
        other = runtime(folder / NAMES[target], opened.model)
    versions = {"torch": torch.__version__} | _version({"hf": "transformers", "onnx": "onnxruntime"}.get(target))
    outcome: dict[str, Any] = {"target": target, "checkpoint": opened.checkpoint.folder.name, "versions": versions}
    if quantize is not None:
        figures = gate.cost(own, other, probes)
        return outcome | {"quantize": quantize, "figures": {name: figure._asdict() for name, figure in figures.items()}}
    return outcome | gate.check(own, other, probes, recipe.model.context, kind == "language_model")


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
        raise InputError(f"{folder}: has no readable {CHECKSUMS}; it was not written by zenspeed export") from None
    for name, wanted in sums.items():
        path = folder / name
        if not path.is_file():
            raise InputError(f"{path}: is missing; export again")
        if hashlib.sha256(path.read_bytes()).hexdigest() != wanted:
            raise InputError(f"{path}: is not the file that was written (its checksum differs); export again")
    return len(sums)


def lines_of(outcome: dict[str, Any]) -> list[str]:
    """The outcome for people."""
    if "figures" in outcome:
        figures = {name: Figure(**figure) for name, figure in outcome["figures"].items()}
        return [f"{name.replace('_', ' '):<15} {figure}  {figure.definition}" for name, figure in figures.items()]
    greedy = outcome["greedy_tokens_equal"]
    said = f"{outcome['probes']} texts: logits within {outcome['largest_difference']:.1e} of the largest"
    return [said + (f", {greedy} generated tokens equal" if greedy else "") + f" ({outcome['versions']})"]
