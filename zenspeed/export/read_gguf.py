"""llama.cpp behind a pipe: run by the Python that has `llama_cpp`, which need not be ours. Imports nothing of zenspeed.

python read_gguf.py MODEL CONTEXT        one JSON request a line on stdin, one JSON answer a line on stdout

{"logits": [tokens], "to": file}         float32 (T, V) into the .npy file
{"greedy": [tokens], "num": n}           the n likeliest next tokens, one by one
{"encode": text}                         its tokens, names of special ones as plain text
{"chat": [messages]}                     the text of a conversation that is to be answered, by the file's own template
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np

FP32 = 0
"""Type of cached keys and values (ggml.h)."""


class Reader:
    def __init__(self, path: str, context: int) -> None:
        import llama_cpp

        self.model = llama_cpp.Llama(
            path, n_ctx=context, n_batch=context, n_ubatch=context, n_threads=1, n_threads_batch=1, logits_all=True,
            type_k=FP32, type_v=FP32, flash_attn=False, verbose=False,
        )  # fmt: skip

    def logits(self, tokens: list[int]) -> np.ndarray:
        self.model.reset()
        self.model.eval(tokens)
        return np.array(self.model.scores[: len(tokens)], np.float32)

    def greedy(self, tokens: list[int], num: int) -> list[int]:
        found: list[int] = []
        row = self.logits(tokens)[-1]
        for _ in range(num):
            found.append(int(row.argmax()))
            self.model.eval(found[-1:])
            row = self.model.scores[self.model.n_tokens - 1]
        return found

    def chat(self, messages: list[dict[str, str]]) -> str:
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        names = [self.model._model.token_get_text(t) for t in (self.model.token_eos(), self.model.token_bos())]
        form = Jinja2ChatFormatter(self.model.metadata["tokenizer.chat_template"], *names)
        return form(messages=messages).prompt

    def answer(self, asked: dict[str, Any]) -> Any:
        if "logits" in asked:
            np.save(asked["to"], self.logits(asked["logits"]))
            return None
        if "greedy" in asked:
            return self.greedy(asked["greedy"], asked["num"])
        if "encode" in asked:
            return self.model.tokenize(asked["encode"].encode(), add_bos=False, special=False)
        return self.chat(asked["chat"])


def main() -> None:
    import llama_cpp

    reader = Reader(sys.argv[1], int(sys.argv[2]))
    print(json.dumps(llama_cpp.__version__), flush=True)
    for line in sys.stdin:
        print(json.dumps(reader.answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
