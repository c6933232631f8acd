"""Answers in conversations, of one turn or many: a decoder reads all of it, and learns what the assistant says.

    tokens    <|endoftext|> <|user|> question <|assistant|> answer
    loss                                      answer <|endoftext|>

The template (text/chat.py) is the tokenizer's own, a file of the recipe's, or one of ours; it is saved with the tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from zenspeed.config import InputError, read_text
from zenspeed.data.batch import IGNORE, Batch
from zenspeed.data.examples import Ragged
from zenspeed.data.packing import Layout, fill
from zenspeed.decode import beam_search
from zenspeed.evaluate.interval import Figure, Undefined
from zenspeed.evaluate.measures import figures_of
from zenspeed.evaluate.predictions import checked
from zenspeed.recipe import Recipe
from zenspeed.tasks.base import Place
from zenspeed.tasks.data import conversation, open_rows
from zenspeed.tasks.models import task_model
from zenspeed.tasks.rows import Examples, RowTask, loss_figures, losses_by_document
from zenspeed.tasks.writing import beam_options, writing
from zenspeed.text.chat import ChatTemplate, Message

DECODE_ROWS = 64
"""Prompts that are answered together, times the beams."""


class ChatTask(RowTask):
    """Rows with a question and its answer, or with messages; `predict` answers the last one."""

    writes = True

    def __init__(self, recipe: Recipe, progress: Callable[[str], None] | None) -> None:
        data = open_rows(recipe, progress)
        self.recipe, self.report, self.tokenizer = recipe, data.report, data.tokenizer
        if recipe.task.template is not None:
            self.tokenizer = data.tokenizer.with_chat_template(read_text(recipe.task.template))
        self.prepare()
        self.tokenizer = self.tokenizer.with_chat_template(self.template.source)  # is saved with the run, whichever it is
        self._set_up(data)
        if progress is not None:
            for what, count in self.report["cut"].items():
                if count:
                    progress(f"data: {count:,} of {what} are longer than {self.longest} tokens; their end is cut off")
            for split, count in self._unanswered.items():
                progress(f"data: {count:,} of {split} have no answer within {self.longest} tokens, and are left out")

    def prepare(self) -> None:
        self.template = ChatTemplate(self.tokenizer)
        self._unanswered: dict[str, int] = {}

    def encode(self, rows: list[dict[str, Any]], split: str) -> Examples:
        tokens, targets, owner, cut, left_out = [], [], [], 0, 0
        for number, row in enumerate(rows):
            messages = conversation(self.recipe.task, row, f"row {number + 1} of {split}")
            encoded = self.template.encode(messages)
            if not encoded.answers.any():
                raise InputError(
                    f"task.kind: row {number + 1} of {split} has no message of an assistant, nothing to learn from"
                )
            wanted = np.where(encoded.answers, encoded.tokens, IGNORE)[1:]
            cut += len(wanted) > self.longest
            if (wanted[: self.longest] == IGNORE).all():
                left_out += 1
                continue
            tokens.append(encoded.tokens[:-1][: self.longest])
            targets.append(wanted[: self.longest])
            owner.append(number)
        self.report.setdefault("cut", {})[split] = cut
        if left_out:
            self.report.setdefault("left_out", {})[f"no answer in time, {split}"] = left_out
            self._unanswered[split] = left_out
        if not tokens:
            raise InputError(
                f"model.context: no answer of {split} begins within {self.longest} tokens; give a longer context, or shorter "
                "conversations"
            )
        owners = np.array(owner, np.int64)
        return Examples(Ragged(tokens), np.concatenate(targets), owners, rows)  # a target for each token

    def build_model(self, seed: int, pretrained: bool = True) -> nn.Module:
        return task_model(self.recipe, self.tokenizer, "language", 0, seed, pretrained)

    def with_targets(
        self, inputs: dict[str, Any], examples: Examples, indices: np.ndarray, layout: Layout, seed: int | None
    ) -> Batch:
        starts = examples.tokens.starts
        return Batch(inputs, fill(layout, [examples.targets[starts[i] : starts[i + 1]] for i in indices], IGNORE))

    def judge(self, model: nn.Module, examples: Examples, place: Place) -> dict[str, Figure]:
        """Loss of a token of an answer; intervals over conversations."""
        sums = np.zeros((len(examples.rows), 2))
        np.add.at(sums, examples.owner, self.outputs(model, examples, place, (2,), losses_by_document))
        return loss_figures(sums, "a token of an answer")

    # Answering --------------------------------------------------------------------------------------------------------

    def predict(self, model: nn.Module, rows: list[dict[str, Any]], place: Place) -> list[dict[str, Any]]:
        """`source`, the last message before the answer, `prediction`, and `reference` where the row has the answer."""
        answers, prompts = [], []
        for number, row in enumerate(rows, 1):
            messages = conversation(self.recipe.task, row, f"row {number} of the rows")
            reference = messages.pop()["content"] if messages[-1]["role"] == "assistant" else None
            answers.append({"source": messages[-1]["content"] if messages else ""})
            answers[-1] |= {} if reference is None else {"reference": reference}
            prompts.append(self.prompt(messages))
        found = self.write(model, prompts, place)
        return [answer | {"prediction": text} for answer, text in zip(answers, found, strict=True)]

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Tokens that an answer to `messages` follows; of a conversation that is too long, the last ones."""
        return self.template.encode(messages, add_generation_prompt=True).tokens[-(self.longest - 1) :].tolist()

    def write(self, model: nn.Module, prompts: Sequence[list[int]], place: Place) -> list[str]:
        """The likeliest answer to each prompt; prompts of one length are answered together."""
        lengths = np.array([len(prompt) for prompt in prompts])
        texts = [""] * len(prompts)
        end, context = self.tokenizer.end_of_text, self.recipe.model.context
        with writing(model, place) as device:
            for length in sorted(set(lengths.tolist())):
                same, most = np.flatnonzero(lengths == length), min(self.longest, context - length + 1)
                options = beam_options(model, self.recipe, self.tokenizer, end, most)
                for batch in np.split(same, range(DECODE_ROWS, len(same), DECODE_ROWS)):
                    tokens = torch.tensor([prompts[i] for i in batch], device=device)
                    cache = model.new_cache(len(batch), length + options.max_tokens)  # type: ignore[operator]
                    for index, found in zip(batch, beam_search(model, cache, tokens, options), strict=True):
                        texts[index] = self.tokenizer.decode(found[0].tokens).strip()
        return texts

    def score(self, predictions: Sequence[dict[str, Any]]) -> dict[str, Figure | Undefined]:
        if "reference" not in predictions[0]:
            raise InputError("task.target: no row has an answer, so there is nothing to compare with")
        return figures_of(checked(predictions))
