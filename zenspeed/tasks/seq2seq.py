"""From one text to another: translation, summaries, corrections; with what is asked of the text as tokens before it.

    source   <|to:en|> <|words:12|> text [end]        controls: columns of `task.control`, and the length of `task.length`
    target   [begin] text [end]

A control is one token where the vocabulary has it, as one trained for the task does; else it is spelled, as T5's prefixes are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from zenspeed.config import InputError
from zenspeed.data.examples import Ragged
from zenspeed.data.packing import PADDING
from zenspeed.decode import Hypothesis, beam_search
from zenspeed.evaluate.interval import Figure, Undefined, figure_of
from zenspeed.evaluate.measures import figures_of, measures_of
from zenspeed.evaluate.predictions import checked
from zenspeed.evaluate.written import length_figures, num_words
from zenspeed.recipe import Recipe
from zenspeed.tasks.base import Place
from zenspeed.tasks.controls import Controls
from zenspeed.tasks.data import open_rows
from zenspeed.tasks.pairs import PairTask
from zenspeed.tasks.rows import Examples, by_tokens, column_of
from zenspeed.tasks.writing import beam_options, writing
from zenspeed.text.coverage import check_unknown

DECODE_TOKENS = 8192
"""Source tokens that are decoded together, times the beams."""


class Seq2SeqTask(PairTask):
    """Rows with a text and a target; `predict` writes the target by beam search."""

    writes = True

    def __init__(self, recipe: Recipe, progress: Callable[[str], None] | None) -> None:
        data = open_rows(recipe, progress)
        self.recipe, self.tokenizer, self.report = recipe, data.tokenizer, data.report
        self.prepare()
        self._set_up(data)
        if progress is not None:
            for what, count in self.report["cut"].items():
                if count:
                    progress(f"data: {count:,} of {what} are longer than {self.longest} tokens; their end is cut off")

    def prepare(self) -> None:
        super().prepare()
        self.controls = Controls(self.recipe.task, self.tokenizer)

    def encode(self, rows: list[dict[str, Any]], split: str) -> Examples:
        sources, cut_sources = self._sources(rows, split)
        targets = self.tokenizer.encode_batch(column_of(rows, self.recipe.task.target, "task.target", split))
        self._check_known(targets, f"task.target of {split}")
        room = self.longest - 1  # of [begin] and a text, or a text and [end]
        # A target that was cut does not end there, so it must not be learned that it does.
        written = [np.concatenate([[self.begin], t[: room + 1], [self.end][: len(t) <= room]]) for t in targets]
        cut_targets = sum(len(t) > room for t in targets)
        self.report.setdefault("cut", {}).update({split: cut_sources, f"the targets of {split}": cut_targets})
        return Examples(Ragged(sources), np.arange(len(rows)), np.arange(len(rows)), rows, written=Ragged(written))

    def _sources(self, rows: list[dict[str, Any]], split: str) -> tuple[list[np.ndarray], int]:
        texts = self.tokenizer.encode_batch(column_of(rows, self.recipe.task.text, "task.text", split))
        self._check_known(texts, f"task.text of {split}")
        controls = [self.controls.tokens(row, f"row {number} of {split}") for number, row in enumerate(rows, 1)]
        room = self.longest - 1
        cut = sum(len(c) + len(t) > room for c, t in zip(controls, texts, strict=True))
        sources = [np.concatenate([c, t[: max(0, room - len(c))], [self.end]]) for c, t in zip(controls, texts, strict=True)]
        return [source.astype(np.int64) for source in sources], cut

    def _check_known(self, texts: Sequence[np.ndarray], where: str) -> None:
        if (unknown := self.tokenizer.unknown) is not None:
            count = sum(int((text == unknown).sum()) for text in texts)
            total = sum(map(len, texts))
            # Of one text of a few words a single unknown one is a large share.
            limit = self.recipe.tokenizer.max_unknown if total > 100 else max(0.5, self.recipe.tokenizer.max_unknown)
            check_unknown(count, total, limit, where)

    # Writing ----------------------------------------------------------------------------------------------------------

    def predict(self, model: nn.Module, rows: list[dict[str, Any]], place: Place) -> list[dict[str, Any]]:
        """`source`, `prediction`, the controls, and `reference` where the row has a target."""
        task = self.recipe.task
        sources, _ = self._sources(rows, "the rows")
        asked = [self.controls.words(row) for row in rows]
        found = self.write(model, sources, place)
        answers = []
        for row, words, texts in zip(rows, asked, found, strict=True):
            answer: dict[str, Any] = {"source": str(row[task.text]), "prediction": _best(self._texts(texts), words)}
            answer |= {column: str(row[column]) for column in task.control}
            answer |= {} if words is None else {"asked_words": words}
            answer |= {} if row.get(task.target) is None else {"reference": str(row[task.target])}
            answers.append(answer)
        return answers

    def _texts(self, texts: list[Hypothesis]) -> list[str]:
        return [self.tokenizer.decode(text.tokens).strip() for text in texts]

    def write(self, model: nn.Module, sources: Sequence[np.ndarray], place: Place) -> list[list[Hypothesis]]:
        """The likeliest targets of each source; every rank writes them all, for a sharded model computes together."""
        lengths = np.array([len(source) for source in sources])
        found: list[list[Hypothesis]] = [[] for _ in sources]
        with writing(model, place) as device:
            most = min(self.longest, self.recipe.model.context)
            options = beam_options(model, self.recipe, self.tokenizer, self.end, most)
            for batch in by_tokens(lengths, max(self.longest, DECODE_TOKENS // options.beams)):
                tokens = torch.full((len(batch), int(lengths[batch].max())), self.padding)
                for row, index in enumerate(batch):
                    tokens[row, : lengths[index]] = torch.from_numpy(sources[index])
                real = torch.arange(tokens.shape[1]) < torch.from_numpy(lengths[batch])[:, None]
                documents = torch.where(real, torch.arange(len(batch))[:, None], PADDING)
                cache = model.new_cache(tokens.to(device), options.max_tokens + 1, documents.to(device))  # type: ignore[operator]
                begin = torch.full((len(batch), 1), self.begin, device=device)
                for index, texts in zip(batch, beam_search(model, cache, begin, options), strict=True):
                    found[index] = texts
        return found

    def score(self, predictions: Sequence[dict[str, Any]]) -> dict[str, Figure | Undefined]:
        """Figures of texts over all rows; BLEU and chrF for each control by itself; how well lengths were kept."""
        if "reference" not in predictions[0]:
            raise InputError(f"task.target: no row has {self.recipe.task.target!r}, so there is nothing to compare with")
        rows, groups, asked = checked(predictions), defaultdict[str, list[int]](list), "asked_words" in predictions[0]
        for i, row in enumerate(predictions):
            groups[",".join(row[column] for column in self.recipe.task.control)].append(i)
        figures = figures_of(rows)
        for name, places in sorted(groups.items()) if len(groups) > 1 else []:
            measures = measures_of(rows.take(np.array(places)), ("bleu", "chrf"))
            figures |= {f"{key}[{name}]": figure_of(measure, "every reference is empty") for key, measure in measures.items()}
        return figures | (length_figures((r["asked_words"], r["prediction"]) for r in predictions) if asked else {})


def _best(texts: list[str], words: int | None) -> str:
    """The likeliest text of those whose length is within a tenth of `words`, else the one nearest to it."""
    if words is None:
        return texts[0]
    return min(texts, key=lambda text: max(abs(num_words(text) - words) / words, 0.1))
