"""A text and an end of the dial in, a recipe out, with a line for each choice that says what and why.

    text ── vocabulary ── prepared ──┐
    this machine ── measured ────────┤── candidates ── the best by the law ── recipe
    time, loss, memory, size ────────┘

What the user gave stands; only what was left open is chosen. Choices are rank 0's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Set
from typing import Any, NamedTuple

import torch.distributed as dist

from zenspeed.config import validate
from zenspeed.data.prepare import Prepared, prepare
from zenspeed.dial.candidates import LEAST_UPDATES, SHAPES, Candidate, Text, candidates, set_free, shaped
from zenspeed.dial.ends import DEFAULT_SECONDS, Ends, spell_seconds
from zenspeed.dial.laws import FITTED_BYTES, FITTED_WEIGHTS, byte_entropy
from zenspeed.dial.places import PROBE_SECONDS, Probes, best_place, counts, measured
from zenspeed.dial.rate import Rate
from zenspeed.errors import InputError
from zenspeed.machine import process_age_seconds, resident_bytes
from zenspeed.pace import WRAP_UP_SECONDS
from zenspeed.parallel.mesh import World
from zenspeed.recipe import Recipe

LONGEST_SECONDS = 30 * 86400.0
_PROBES = ((3, 128), (5, 320))
_SMALL_PROBES = ((3, 64), (4, 128))
_SMALL_BYTES = 1.5e9  # with less, the probes are small as well: what they took stays with the process
_PROBE_TOKENS = 1024


class Chosen(NamedTuple):
    """The recipe, and why."""

    recipe: Recipe
    lines: list[str]
    bits_per_byte: float
    """Predicted, of held-out text."""
    seconds: float
    """That the run was given."""
    processes: int
    """To train in: as many as chose, or more that are to be started."""

    def outcome(self, last: dict[str, Any], ends: Ends) -> list[str]:
        """What is to be said of the run's last record: how it compares, and what would reach a target that was missed."""
        bits = last["validation_bits_per_byte"]
        lines = [f"  dial        {self.bits_per_byte:.3f} bits per byte were expected, {bits:.3f} came out"]
        if ends.target is not None and bits > ends.target:
            more = spell_seconds(self.seconds * min(64.0, 2 ** max(1.0, 10 * (bits / ends.target - 1))))
            lines.append(
                f"  target      {ends.target:g} was missed; train anew with --budget {more.replace(' ', '')}, or with more text"
            )
        elif ends.target is not None:
            spent, given = spell_seconds(process_age_seconds()), spell_seconds(self.seconds)
            lines.append(f"  target      {ends.target:g} was reached after {spent} of {given}")
        return lines


def choose(recipe: Recipe, given: Set[str], ends: Ends, here: World, say: Callable[[str], None] | None = None) -> Chosen:
    """Prepares the text, measures the machine, and chooses; the same on all ranks.

    Args:
        recipe: with the data, the vocabulary, and all that the user gave.
        given: `section.key` of what the user gave, which is kept.

    Raises:
        InputError: the ends leave nothing that could be trained; the least that would do is said.
    """
    prepared = _prepare_once(recipe, here, say)
    text = _text_of(prepared)
    began = time.perf_counter()
    shapes = _SMALL_PROBES if ends.memory is not None and ends.memory < _SMALL_BYTES else _PROBES
    probes = Probes(recipe, frozenset(given), shapes, _probe_context(text), _PROBE_TOKENS, text.vocab_size)
    place = measured(here, probes, _probe_seconds(ends))
    measured_in = time.perf_counter() - began

    def of(seconds: float) -> list[Candidate]:
        left = seconds - process_age_seconds() - place.start_seconds
        return list(candidates(recipe, given, text, place.rate, left, place.processes, place.lanes, resident_bytes()))

    seconds, remark = _seconds(ends, of)
    found = _within(of(seconds), ends, seconds, _least_seconds(recipe, given, text, place.rate, here.size))
    best = min(found, key=lambda c: c.bits_per_byte)
    place, said = best_place(
        place, lambda: measured(here, probes, PROBE_SECONDS), counts(recipe, given, here, best.memory), probes, best.shape,
        best.recipe.train.batch_size * best.recipe.model.context, seconds - process_age_seconds(),
    )  # fmt: skip
    if place.processes > here.size:
        seconds, remark = _seconds(ends, of)
    found = _within(of(seconds), ends, seconds, _least_seconds(recipe, given, text, place.rate, here.size))
    best = min(found, key=lambda c: c.bits_per_byte)
    minutes = round(seconds / 60, 4)
    values: dict[str, Any] = {"train.minutes": minutes, "evaluate.every": 0}
    if best.updates * best.shape.context < 5e4:  # the first updates are then a large part of all
        values["optim.warmup"] = 0.0
    if ends.memory is not None:  # and held to
        values["train.memory"] = ends.memory / 2**30
    if ends.target is not None:  # and ended at
        values["train.target_loss"] = ends.target
    final = set_free(best.recipe, values, given - {"train.minutes"})
    machine = (
        f"machine    {place} in {place.lanes} lanes, {place.precision}: "
        f"{place.rate.flops_per_second / 1e9:,.0f} GFLOP/s in training, measured in {measured_in:.1f} s"
    )
    lines = [machine, *([said] if said else []), *_explained(best, found, text, seconds), *remark]
    answer: list[Any] = [final.model_dump(mode="json"), lines, best.bits_per_byte, seconds, place.processes]
    dist.broadcast_object_list(answer, src=0)
    return Chosen(validate(Recipe, answer[0]), *answer[1:])


def _prepare_once(recipe: Recipe, here: World, say: Callable[[str], None] | None) -> Prepared:
    if here.rank == 0:
        prepared = prepare(recipe, say)
    dist.barrier()
    return prepared if here.rank == 0 else prepare(recipe)


def _text_of(prepared: Prepared) -> Text:
    train = prepared.train
    sample = prepared.tokenizer.decode(train.read(0, min(train.num_tokens, 500_000)).tolist())
    return Text(
        tokens=train.num_tokens,
        bytes=int(train.document_bytes.sum()),
        held_out_tokens=prepared.validation.num_tokens,
        vocab_size=prepared.tokenizer.vocab_size,
        entropy=byte_entropy(sample.encode("utf-8", "replace")),
    )


def _probe_seconds(ends: Ends) -> float:
    """A few, of a short budget less."""
    return min(4.0, 0.05 * (ends.seconds or DEFAULT_SECONDS))


def _probe_context(text: Text) -> int:
    return max(2, min(128, (text.tokens - 1) // 2))


# What is asked for -----------------------------------------------------------------------------------------------------


def _seconds(ends: Ends, of: Callable[[float], list[Candidate]]) -> tuple[float, list[str]]:
    """The run's time: the budget, or the least in which the target is to be expected; and what is to be said of it."""
    most = ends.seconds or LONGEST_SECONDS
    if ends.target is None:
        return ends.seconds or DEFAULT_SECONDS, []
    seconds, best = 15.0, math.inf
    while seconds < most:
        fits = [c.bits_per_byte for c in of(seconds) if _fits(c, ends)]
        best = min([best, *fits])
        if best <= ends.target:
            return seconds, [f"target     {ends.target:g} bits per byte are to be expected after {spell_seconds(seconds)}"]
        seconds *= 1.1
    if ends.seconds is not None:
        best = min([best, *(c.bits_per_byte for c in of(most) if _fits(c, ends))])
        enough = "are to be expected" if best <= ends.target else f"will hardly be reached: {best:.2f} is to be expected"
        return most, [f"target     {ends.target:g} bits per byte {enough} in {spell_seconds(most)}"]
    raise InputError(
        f"--target-loss {ends.target:g}: out of reach with this text on this machine: the best to expect is {best:.2f} bits "
        f"per byte{_limits(ends)}; give more text, or a higher target"
    )


def _fits(candidate: Candidate, ends: Ends) -> bool:
    enough = ends.memory is None or candidate.memory <= ends.memory
    return enough and (ends.parameters is None or candidate.shape.weights <= ends.parameters)


def _limits(ends: Ends) -> str:
    named = [name for name, value in (("--memory", ends.memory), ("--max-parameters", ends.parameters)) if value is not None]
    return f" within {' and '.join(named)}" if named else ""


def _within(found: list[Candidate], ends: Ends, seconds: float, least: float) -> list[Candidate]:
    """The candidates that fit; else what is too small is named, with the least that would do."""
    if not found:
        raise InputError(
            f"--budget: {spell_seconds(seconds)} are too few to train anything on this text on this machine: start, "
            f"measurement, {LEAST_UPDATES} updates, evaluation and end take about {least:.0f} s; give --budget "
            f"{math.ceil(1.1 * least)}s or more"
        )
    fits = [c for c in found if _fits(c, ends)]
    if fits:
        return fits
    memory, weights = min(c.memory for c in found), min(c.shape.weights for c in found)
    if ends.memory is not None and memory > ends.memory:
        raise InputError(
            f"--memory: {ends.memory / 1e6:,.0f} MB are too few: the smallest model needs about {memory / 1e6:,.0f} MB, "
            f"most of it for Python and torch; give --memory {math.ceil(memory / 1e8) * 100}MB or more"
        )
    if ends.parameters is not None and weights > ends.parameters:
        raise InputError(
            f"--max-parameters: {ends.parameters:,.0f} are too few: the smallest model has {weights:,}, of which tables of "
            f"n-grams and embeddings most; give {math.ceil(weights / 1e5) / 10:g}M, or --set model.ngrams=[]"
        )
    raise InputError("--memory and --max-parameters leave no model between them; give one of them")


def _least_seconds(recipe: Recipe, given: Set[str], text: Text, rate: Rate, ranks: int) -> float:
    """Of a run with the smallest model."""
    from zenspeed.plan.work import Shape

    one = shaped(recipe, *SHAPES[0], _probe_context(text), _PROBE_TOKENS, ranks, given)
    shape = Shape(one.model, text.vocab_size)
    batch = one.train.batch_size * one.model.context
    training = LEAST_UPDATES * rate.update_seconds(shape, batch)
    return process_age_seconds() + training + 1.1 * rate.evaluation_seconds(shape, text.held_out_tokens) + WRAP_UP_SECONDS


# What is said ----------------------------------------------------------------------------------------------------------


def _explained(best: Candidate, found: list[Candidate], text: Text, seconds: float) -> list[str]:
    model, train, shape = best.recipe.model, best.recipe.train, best.shape
    inner = shape.layers * shape.block_weights
    others = sorted((c for c in found if c is not best), key=lambda c: c.bits_per_byte)[:2]
    beside = "".join(f"; {c.recipe.model.layers} × {c.recipe.model.width} would have {c.bits_per_byte:.2f}" for c in others)
    outside = not (
        FITTED_WEIGHTS[0] <= inner <= FITTED_WEIGHTS[1] and best.tokens * text.bytes_per_token <= 4 * FITTED_BYTES[1]
    )
    again = (
        f"read {best.epochs:.1f} times, so dropout {model.dropout:g}" if best.epochs > 1 else f"{best.epochs:.0%} of it read"
    )
    return [
        f"text       {text.bytes / 1e6:,.1f} MB, {text.tokens:,} tokens of {text.bytes_per_token:.1f} bytes, vocabulary "
        f"{text.vocab_size:,}; {again}",
        f"model      {model.layers} layers × {model.width}, {inner:,} weights in blocks, {shape.weights:,} in all: "
        f"{best.bits_per_byte:.2f} bits per byte expected{beside}",
        f"batch      {train.batch_size} × {model.context} tokens, grown with the root of the run's {best.tokens:,.0f}: about "
        f"{best.updates:,.0f} updates, {best.recipe.optim.name} at {best.recipe.optim.lr:g}, "
        f"falling {best.recipe.optim.schedule}ly with the clock",
        f"time       {spell_seconds(seconds)} from the start of this process, with the evaluation and the checkpoint at the end"
        + ("; beyond what the law was fitted on, so a guess" if outside else ""),
    ]
