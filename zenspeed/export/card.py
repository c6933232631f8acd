"""The model card: what a stranger must know of an exported model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zenspeed.run import OpenRun
from zenspeed.runlog import read_metrics

PIPELINES = {
    "language_model": "text-generation", "chat": "text-generation", "classification": "text-classification",
    "masked_lm": "fill-mask", "span_qa": "question-answering", "similarity": "sentence-similarity",
}  # fmt: skip


def card(run: Path, opened: OpenRun, target: str, outcome: dict[str, Any], license_name: str | None) -> str:
    """Markdown with the header that model hubs read."""
    recipe = opened.recipe
    weights = sum(p.numel() for p in opened.model.parameters())
    head = [
        "---",
        f"license: {license_name or 'other'}",
        f"pipeline_tag: {PIPELINES.get(recipe.task.kind, 'other')}",
        "library_name: " + {"hf": "transformers", "onnx": "onnxruntime", "gguf": "gguf"}.get(target, "pytorch"),
        "---",
        f"# {run.resolve().name}",
        "",
        f"{weights:,} weights, {recipe.model.preset}, {recipe.model.layers} layers × {recipe.model.width}, context "
        f"{recipe.model.context}, vocabulary {opened.tokenizer.vocab_size:,}. Trained with zenspeed for {recipe.task.kind}, "
        f"{opened.checkpoint.step:,} updates.",
        "",
        f"License: {license_name or 'not stated; give --license when exporting'}. Data: `{recipe.data.source}`, whose own "
        "licence applies to what the model repeats of it.",
        "",
        "## Figures",
        "",
    ]
    return "\n".join([*head, *_figures(run), "", "## Answers beside the trained model's", "", *_parity(outcome), ""])


def _figures(run: Path) -> list[str]:
    last: dict[str, Any] = {}
    for record in read_metrics(run):
        last |= {k: v for k, v in record.items() if k.startswith("validation_")}
    names = [name for name in last if not name.endswith("_interval")]
    if not names:
        return ["None were taken."]
    lines = ["| figure | value | 95 % interval |", "|---|---|---|"]
    for name in names:
        low, high = last.get(f"{name}_interval") or (None, None)
        interval = f"{low:.4f} … {high:.4f}" if isinstance(low, float) and isinstance(high, float) else "none"
        lines.append(f"| {name.removeprefix('validation_').replace('_', ' ')} | {last[name]:.4f} | {interval} |")
    return lines


def _parity(outcome: dict[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in outcome["versions"].items())
    if "not_run" in outcome:
        return [f"**Not run**: {outcome['not_run']}. Instead: {outcome['instead']}."]
    if "figures" in outcome:
        d = outcome["figures"]["difference"]
        bounds = f" ({d['low']:.4f} … {d['high']:.4f})" if d["low"] is not None else ""
        return [
            f"Quantized to {outcome['quantize']}: {d['value']:+.4f}{bounds}, {d['definition']}, {d['n']} texts; {versions}."
        ]
    return [
        f"Logits of {outcome['probes']} validation texts within {outcome['largest_difference']:.1e} of the largest, "
        f"{outcome['greedy_tokens_equal']} generated tokens equal; {versions}."
    ]
