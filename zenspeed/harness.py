"""lm-evaluation-harness on our models: a run, or a folder of Hugging Face layout, answers its tasks.

The harness asks for two things: how likely a continuation is after a context, and a text written until a stop. Both go through
our own model, so figures of the harness are of what zenspeed trained and serves. Needs the extra `harness` (lm-eval).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zenspeed.errors import InputError
from zenspeed.generate import generate_text
from zenspeed.tasks.base import Place
from zenspeed.tasks.opening import open_for_evaluation
from zenspeed.text.tokenizer import Tokenizer

_BATCH_TOKENS = 8192


def run_harness(
    folder: Path,
    tasks: Sequence[str],
    *,
    include: Path | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    checkpoint: str | None = None,
) -> dict[str, Any]:
    """Results of the harness, as its `simple_evaluate` gives them, without its samples.

    Args:
        tasks: names of the harness, or task files (.yaml). include: a folder with more task files. limit: rows of each task.

    Raises:
        InputError: lm-eval is not installed, the model is no language model, or a task is not known.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise InputError("harness: lm-eval is not installed; pip install 'zenspeed[harness]'") from None
    model = open_for_evaluation(folder, checkpoint)
    if model.recipe.task.kind != "language_model":
        raise InputError(f"{folder}: is a {model.recipe.task.kind}; the harness asks language models")
    manager = TaskManager(include_path=None if include is None else str(include))
    known = set(manager.all_tasks)
    for task in tasks:
        if task not in known and not Path(task).is_file():
            raise InputError(f"--tasks: {task!r} is no task of the harness and no file; name tasks, or a .yaml file")
    scorer = Scorer(model.model, model.tokenizer, model.recipe.model.context, model.place())
    found = simple_evaluate(
        model=as_lm(scorer), tasks=list(tasks), num_fewshot=num_fewshot, limit=limit, task_manager=manager, log_samples=False,
        verbosity=None,
    )  # fmt: skip
    assert found is not None
    return {key: found[key] for key in ("results", "versions", "n-shot", "higher_is_better", "n-samples") if key in found}


class Scorer:
    """What the harness asks for, in our terms."""

    def __init__(self, model: nn.Module, tokenizer: Tokenizer, context: int, place: Place) -> None:
        self.model, self.tokenizer, self.context, self.place = model, tokenizer, context, place

    @torch.no_grad()
    def log_likelihoods(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """Of each (context, continuation), tokens, the continuation's log probability in nats and whether greedy writes it.

        What is longer than the model's context loses its beginning. Pairs go through the model by length.
        """
        sequences = [(before + after)[-(self.context + 1) :] for before, after in pairs]
        kept = [min(len(after), len(s) - 1) for (_, after), s in zip(pairs, sequences, strict=True)]
        found: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
        for part in _by_length([len(s) for s in sequences]):
            width = max(len(sequences[i]) for i in part) - 1
            tokens = torch.zeros(len(part), width, dtype=torch.int64)
            for row, i in enumerate(part):  # what is to the right of a text is not seen by it
                tokens[row, : len(sequences[i]) - 1] = torch.tensor(sequences[i][:-1])
            with self.place.autocast:
                logits = self.model(tokens).float()
            for row, i in enumerate(part):
                end = len(sequences[i]) - 1
                log_probabilities = logits[row, end - kept[i] : end].log_softmax(-1)
                wanted = torch.tensor(sequences[i][len(sequences[i]) - kept[i] :])
                of_wanted = log_probabilities.gather(-1, wanted[:, None])[:, 0]
                found[i] = float(of_wanted.double().sum()), bool((log_probabilities.argmax(-1) == wanted).all())
        return found

    def rolling(self, text: str) -> float:
        """Log probability of a whole text, every token predicted once, in windows of the model's context."""
        tokens = [self.tokenizer.end_of_text, *self.tokenizer.encode(text)]
        pairs = []
        for start in range(1, len(tokens), self.context):
            # A window sees the one before it as far as the context goes, and predicts what is new.
            end = min(start + self.context, len(tokens))
            first = max(0, end - self.context - 1)
            pairs.append((tokens[first:start], tokens[start:end]))
        return sum(value for value, _ in self.log_likelihoods(pairs))

    def write(self, prompt: str, stop: Sequence[str], max_tokens: int, temperature: float) -> str:
        """A continuation until a stop, which is not part of it."""
        room = max(1, min(max_tokens, self.context - 1))
        tokens = [self.tokenizer.end_of_text, *self.tokenizer.encode(prompt)][-(self.context - room) :]
        with self.place.autocast:
            pieces = generate_text(
                self.model, self.tokenizer, [int(t) for t in tokens], max_tokens=room, temperature=temperature,  # type: ignore[arg-type]
                stop=[s for s in stop if s],
            )  # fmt: skip
            return "".join(pieces)


def _by_length(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Places by falling length, as many at once as stay below _BATCH_TOKENS when padded."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    start = 0
    while start < len(order):
        size = max(1, _BATCH_TOKENS // max(1, lengths[order[start]]))
        yield order[start : start + size]
        start += size


def as_lm(scorer: Scorer) -> Any:
    """The scorer as a model of the harness, whose class exists only where lm-eval is installed."""
    from lm_eval.api.model import TemplateLM

    class ZenspeedLM(TemplateLM):
        @property
        def eot_token_id(self) -> int:
            return scorer.tokenizer.end_of_text

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
            return [int(t) for t in scorer.tokenizer.encode(string)]

        def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = False, **kwargs: Any) -> list[tuple[float, bool]]:
            return scorer.log_likelihoods([(list(before), list(after)) for _, before, after in requests])

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
            return [scorer.rolling(request.args[0]) for request in requests]

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            written = []
            for request in requests:
                prompt, how = request.args
                stop = how.get("until") or []
                stop = [stop] if isinstance(stop, str) else stop
                temperature = float(how.get("temperature", 0.0)) if how.get("do_sample") else 0.0
                written.append(scorer.write(prompt, stop, int(how.get("max_gen_toks", 256)), temperature))
            return written

    return ZenspeedLM()
