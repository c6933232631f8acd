"""llama.cpp's side of benchmarks/serving.py, for a Python that has `llama-cpp-python` and `gguf`.

    python benchmarks/serving_llama.py FOLDER bf16 1,8,32 32 128 THREADS

Writes FOLDER (Hugging Face layout, Llama) as GGUF beside it, then decodes greedily in as many sequences of one batch as asked.
Prints one line of JSON.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np

KINDS = {"fp32": gguf.GGMLQuantizationType.F32, "bf16": gguf.GGMLQuantizationType.BF16, "int8": gguf.GGMLQuantizationType.Q8_0}
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def tensors(path: Path) -> dict[str, np.ndarray]:
    """A safetensors file of fp32, read by hand: 8 bytes of length, a JSON header, the data."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    out = {}
    for name, entry in header.items():
        if name != "__metadata__":
            a, b = entry["data_offsets"]
            out[name] = np.frombuffer(data[8 + size + a : 8 + size + b], "<f4").reshape(entry["shape"])
    return out


def convert(folder: Path, kind: str) -> Path:
    """The GGUF file; rows of queries and keys in llama.cpp's order of rotating pairs."""
    path = folder / f"{kind}.gguf"
    if path.exists():
        return path
    config = json.loads((folder / "config.json").read_text())
    heads, layers = config["num_attention_heads"], config["num_hidden_layers"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(layers)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config.get("rope_theta") or config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    names = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight"}  # fmt: skip
    names |= {f"model.layers.{i}.{a}.weight": f"blk.{i}.{b}.weight" for i in range(layers) for a, b in NAMES.items()}
    for name, values in tensors(folder / "model.safetensors").items():
        if ".q_proj" in name or ".k_proj" in name:
            values = values.reshape(heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        quantized = KINDS["fp32"] if values.ndim == 1 else KINDS[kind]
        coded = gguf.quantize(np.ascontiguousarray(values), quantized)
        writer.add_tensor(names[name], coded, raw_dtype=quantized)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


class Llama:
    """A context for `streams` sequences."""

    def __init__(self, model: Any, streams: int, length: int, threads: int) -> None:
        options = llama_cpp.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_seq_max = streams * length, 2048, streams
        options.n_threads = options.n_threads_batch = threads
        options.no_perf = True
        self.context = llama_cpp.llama_init_from_model(model, options)
        self.batch = llama_cpp.llama_batch_init(2048, 0, 1)
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))

    def run(self, rows: list[tuple[int, int, int, bool]]) -> np.ndarray:
        """`rows` of token, position, sequence, wanted -> logits of the wanted."""
        b = self.batch
        b.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            b.token[i], b.pos[i], b.n_seq_id[i], b.logits[i] = token, position, 1, wanted
            b.seq_id[i][0] = sequence
        assert llama_cpp.llama_decode(self.context, b) == 0
        found = [i for i, row in enumerate(rows) if row[3]]
        out = [np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(self.context, i), (self.vocab,)) for i in found]
        return np.stack(out)

    def clear(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)


def main() -> None:
    folder, kind, counts, prompt, new, threads = sys.argv[1:]
    prompt_len, new_len = int(prompt), int(new)
    quiet = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
    llama_cpp.llama_log_set(quiet, None)
    llama_cpp.llama_backend_init()
    path = convert(Path(folder), kind)
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
    out: dict[str, Any] = {}
    for streams in map(int, counts.split(",")):
        llama = Llama(model, streams, prompt_len + new_len, int(threads))
        rng = np.random.default_rng(0)
        prompts = rng.integers(0, llama.vocab, (streams, prompt_len)).tolist()
        for length in (4, new_len):  # the first warms up
            llama.clear()
            begun = time.perf_counter()
            rows = [(t, i, s, i == prompt_len - 1) for s, p in enumerate(prompts) for i, t in enumerate(p)]
            tokens = llama.run(rows).argmax(1).tolist()
            first = time.perf_counter() - begun
            answers = [[t] for t in tokens]
            for position in range(prompt_len, prompt_len + length - 1):
                tokens = llama.run([(t, position, s, True) for s, t in enumerate(tokens)]).argmax(1).tolist()
                for answer, token in zip(answers, tokens, strict=True):
                    answer.append(token)
            seconds = time.perf_counter() - begun
        out[str(streams)] = {
            "tokens_per_second": streams * new_len / seconds,
            "first_token_seconds": first,
            "answer": answers[0],
        }
    print(json.dumps(out))


if __name__ == "__main__":
    main()
