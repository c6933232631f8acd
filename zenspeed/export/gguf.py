"""GGUF, the file of llama.cpp: weights under its names, with all it must know of the model and the tokenizer.

The weights go by the way of Hugging Face (models/hf.py), whose names the package `gguf` translates. What llama.cpp does
otherwise: Llama's queries and keys turn in neighbouring pairs, so their rows are put in that order; GPT-2's matrices are not
transposed; a tokenizer's split is not in the file, but goes by a name that llama.cpp has compiled in.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from zenspeed.config import InputError
from zenspeed.models.hf import huggingface_layout
from zenspeed.models.presets import ModelConfig
from zenspeed.models.transformer import Transformer
from zenspeed.text.splits import RANK_FILE_SPLITS
from zenspeed.text.tokenizer import Tokenizer

ARCHITECTURES = ("gpt2", "llama", "qwen2", "qwen3")
"""Names that Hugging Face and llama.cpp share, and whose blocks we have."""
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""Types of tokens (llama.h)."""
BLOCK = 32
"""Weights that share a scale; rows of another multiple stay as they are."""

PRE_TOKENIZERS = {
    RANK_FILE_SPLITS["kimi"]: "kimi-k2",
    RANK_FILE_SPLITS["qwen"]: "qwen2",
    RANK_FILE_SPLITS["llama3"]: "llama-bpe",
    RANK_FILE_SPLITS["gpt2"]: "gpt-2",
}
"""llama.cpp's names of splits."""


def write_gguf(
    model: nn.Module, tokenizer: Tokenizer, saved: Path, path: Path, name: str, bits: Literal["int8", "int4"] | None
) -> None:
    """Writes `path`, weights in fp32, or with `bits` those of products in llama.cpp's Q8_0 or Q4_0.

    Args:
        saved: folder of the saved tokenizer.

    Raises:
        InputError: llama.cpp has no such architecture or tokenizer; what stands in the way is named.
    """
    try:
        import gguf
    except ImportError:
        raise InputError("--to gguf: needs the package gguf; install zenspeed[export]") from None
    if not isinstance(model, Transformer):
        raise InputError(f"--to gguf: is for decoders that write text, not {type(model).__name__}; take --to onnx or hf")
    layout, config = huggingface_layout(model, tokenizer.end_of_text), model.config
    kind = "llama" if layout.kind == "mistral" and config.window is None else layout.kind
    if kind not in ARCHITECTURES or config.activation == "gelu":
        needs = "activation gelu_tanh (is gelu)" if config.activation == "gelu" else f"window null (is {config.window})"
        raise InputError(f"--to gguf: llama.cpp would need {needs}")
    vocabulary = _vocabulary(tokenizer, saved, model.vocab_size)
    writer = gguf.GGUFWriter(path, kind)
    _write_config(writer, config, name)
    _write_vocabulary(writer, vocabulary, tokenizer)
    arch = next(number for number, known in gguf.MODEL_ARCH_NAMES.items() if known == kind)
    names = gguf.get_tensor_name_map(arch, config.layers)
    for theirs, tensor in layout.tensors.items():
        there = names.get_name(theirs, try_suffixes=(".weight", ".bias"))
        assert there is not None, theirs
        data = _arranged(theirs, tensor, config, kind).float().contiguous().numpy()
        number = gguf.GGMLQuantizationType[_type(there, data.shape, bits)]
        writer.add_tensor(there, gguf.quants.quantize(data, number), raw_dtype=number)
    writer.add_file_type({None: 0, "int8": 7, "int4": 2}[bits])
    writer.add_quantization_version(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_config(writer: Any, config: ModelConfig, name: str) -> None:
    writer.add_name(name)
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.width)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.inner_width)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.num_kv_heads)
    if config.position == "learned":
        writer.add_layer_norm_eps(config.norm_epsilon)
        return
    writer.add_layer_norm_rms_eps(config.norm_epsilon)
    writer.add_key_length(config.head_width)
    writer.add_value_length(config.head_width)
    writer.add_rope_dimension_count(config.head_width)
    writer.add_rope_freq_base(config.rotary_base)


def _arranged(theirs: str, tensor: Tensor, config: ModelConfig, kind: str) -> Tensor:
    """A weight as llama.cpp has it."""
    if kind == "gpt2" and tensor.ndim == 2 and (".attn." in theirs or ".mlp." in theirs):
        return tensor.t()
    if kind == "llama" and (".q_proj." in theirs or ".k_proj." in theirs):
        # Ours turns feature i of a head with i + D/2, llama.cpp's 2i with 2i + 1.
        return tensor.unflatten(0, (-1, 2, config.head_width // 2)).transpose(1, 2).reshape(tensor.shape)
    return tensor


def _type(there: str, shape: tuple[int, ...], bits: str | None) -> str:
    """The head and the embedding, which may be one, keep 8 bits where the others have 4, as in llama.cpp's own files."""
    if bits is None or len(shape) < 2 or shape[-1] % BLOCK or there.startswith("position_embd"):
        return "F32"
    return "Q8_0" if bits == "int8" or there.startswith(("token_embd", "output")) else "Q4_0"


class _Vocabulary:
    """Tokens by number, with merges and the name of the split."""

    def __init__(self, pre: str, tokens: list[str], types: list[int], merges: list[str]) -> None:
        self.pre, self.tokens, self.types, self.merges = pre, tokens, types, merges


def _vocabulary(tokenizer: Tokenizer, saved: Path, size: int) -> _Vocabulary:
    """`size`: rows of the embedding; those that no token has are marked as not used."""
    whole = json.loads((saved / "tokenizer.json").read_text(encoding="utf-8"))
    model, split = whole["model"], _split(whole.get("pre_tokenizer") or {})
    normalizer, splits = (whole.get("normalizer") or {}).get("type"), ", ".join(PRE_TOKENIZERS.values())
    if model["type"] != "BPE" or split not in PRE_TOKENIZERS or normalizer not in (None, "NFC"):
        found = (whole.get("pre_tokenizer") or {}).get("type")
        raise InputError(
            f"--to gguf: llama.cpp and we share byte-level BPE with the split of {splits}; this tokenizer is {model['type']}, "
            f"pre-tokenizer {found}, normalizer {normalizer}; train with tokenizer.kind bpe"
        )
    tokens, types = [f"[UNUSED{i}]" for i in range(size)], [UNUSED] * size
    for token, number in model["vocab"].items():
        tokens[number], types[number] = token, NORMAL
    for token in whole.get("added_tokens", []):
        tokens[token["id"]], types[token["id"]] = token["content"], CONTROL if token["special"] else USER_DEFINED
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    return _Vocabulary(PRE_TOKENIZERS[split], tokens, types, merges)


def _split(pre_tokenizer: dict[str, Any]) -> str:
    """The pattern that a byte-level pre-tokenizer splits by; empty where it is no such."""
    parts = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    if not parts or parts[-1].get("type") != "ByteLevel" or parts[-1].get("add_prefix_space"):
        return ""
    if len(parts) == 1:
        return RANK_FILE_SPLITS["gpt2"] if parts[0].get("use_regex", True) else ""
    return str(parts[0].get("pattern", {}).get("Regex", "")) if len(parts) == 2 else ""


def _write_vocabulary(writer: Any, vocabulary: _Vocabulary, tokenizer: Tokenizer) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    writer.add_bos_token_id(tokenizer.end_of_text)
    writer.add_eos_token_id(tokenizer.end_of_text)
    writer.add_add_bos_token(True)  # every document of training began with it
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.chat_template)
