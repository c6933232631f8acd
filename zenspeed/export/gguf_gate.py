"""What is compared of a GGUF file beside logits and tokens: how it reads text, how it renders a chat, and what it holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zenspeed.config import InputError
from zenspeed.export.llama_cpp import LlamaCpp
from zenspeed.export.probe import PROBES, Probe
from zenspeed.models.hf import huggingface_layout
from zenspeed.run import OpenRun
from zenspeed.text.chat import ChatTemplate

TEXTS = (
    "The quick brown fox can't jump 12345 times.\n\n\tHe   said: \"it's 3.14!\"  ",
    "中文和English混排，２０２６年。\r\n\r\n  CamelCase naïve हिन्दी ไทย 🙂👩‍👩‍👧 <|endoftext|> ~~ \u2028x",
)
"""Read besides the probes: what splits of tokenizers differ in."""
CHAT = [
    {"role": "user", "content": "1 + 1 = ?"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "再问一次"},
]


def same_text(opened: OpenRun, llama: LlamaCpp, probes: Sequence[Probe]) -> None:
    """llama.cpp reads texts into our tokens, and the file's template writes a chat as ours does.

    Raises:
        InputError: it does not; the text and the first token are named.
    """
    tokenizer = opened.tokenizer
    for text in (*TEXTS, *(tokenizer.decode(probe.tokens) for probe in probes[:PROBES])):
        ours, found = list(tokenizer.encode(text)), llama.encode(text)
        if ours != found:
            pairs = enumerate(zip(ours, found, strict=False))
            place = next((i for i, (a, b) in pairs if a != b), min(len(ours), len(found)))
            after = tokenizer.decode(ours[:place])[-20:]
            raise InputError(
                f"export: not kept: llama.cpp reads {text[:40]!r} otherwise from token {place} on, after {after!r}"
            )
    if tokenizer.chat_template is not None:
        ours_text, found_text = ChatTemplate(tokenizer).render(CHAT, add_generation_prompt=True), llama.chat(CHAT)
        if ours_text != found_text:
            raise InputError(f"export: not kept: the chat template gives {found_text[:80]!r}, ours {ours_text[:80]!r}")


def read_back(opened: OpenRun, path: Path, quantize: str | None) -> dict[str, Any]:
    """The outcome where llama.cpp is not there: the file's weights and tokens are those that were to be written.

    Raises:
        InputError: they are not.
    """
    import gguf

    reader = gguf.GGUFReader(path)
    weights = huggingface_layout(opened.model).tensors
    if len(reader.tensors) != len(weights):
        raise InputError(f"export: not kept: {len(reader.tensors)} weights in the file, {len(weights)} in the model")
    sizes = sorted(weight.numel() for weight in weights.values())
    if sizes != sorted(int(np.prod(tensor.shape)) for tensor in reader.tensors):
        raise InputError("export: not kept: weights of the file have other sizes than those of the model")
    sums = [float(gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float64).sum()) for t in reader.tensors]
    wanted = [float(weight.double().sum()) for weight in weights.values()]
    if quantize is None and not np.allclose(sorted(sums), sorted(wanted), rtol=1e-5, atol=1e-4):
        raise InputError("export: not kept: weights of the file have other sums than those of the model")
    return {
        "not_run": "llama.cpp is not there (no llama_cpp in this Python, and no --runtime-python): its answers are not known",
        "instead": f"{len(weights)} weights read back from the file" + ("" if quantize else ", their sums equal"),
    }
