"""Training: recipe in, run folder out. The loop is `_loop`; everything it needs is made before it, in `_set_up`.

The order of samples is a pure function of the seed, so all that a checkpoint must hold of the loader is how many samples
have been read. Before each update the ranks agree on its facts (number of targets, progress, what is due) in one small
collective in which only rank 0's clock counts, so that every rank decides alike.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn

from zenspeed import rescue
from zenspeed.checkpoint import Checkpoint, Checkpointer, list_checkpoints, second_place, set_aside_after
from zenspeed.compiling import compile_blocks, pick_compile
from zenspeed.config import InputError, dump, validate, write_atomically
from zenspeed.data.batch import Batch
from zenspeed.display import Display
from zenspeed.engine import Engine
from zenspeed.evaluate.interval import Figure
from zenspeed.evaluate.report import write_report as write_markdown
from zenspeed.health import FOLDER, Pulse
from zenspeed.machine import keep_memory, measure_matmul, resident_bytes, usable_cores
from zenspeed.memory import MemoryLimit, OutOfMemory, is_out_of_memory
from zenspeed.optim import lr_factor, plan_optimizers
from zenspeed.pace import Aim, Clock, Due, Interrupt, Smooth
from zenspeed.parallel.mesh import World, build_mesh, world
from zenspeed.parallel.share import share_of
from zenspeed.parallel.zero import ZeroOptions
from zenspeed.recipe import Recipe
from zenspeed.recovery import Counters, Recovery, restore
from zenspeed.report.page import write_report
from zenspeed.resolve import resolve
from zenspeed.runlog import RunLog, plot_loss
from zenspeed.runstore import RunStore
from zenspeed.tasks.base import Place, Task
from zenspeed.tasks.models import adopt_pretrained, load_report, train_in_float8
from zenspeed.tasks.open import open_task


class Result(NamedTuple):
    """What a run came to. `validation_loss` is of the last evaluation; `interrupted`: stopped by a signal, to be resumed."""

    folder: Path
    step: int
    validation_loss: float | None
    interrupted: bool
    leads: bool = True
    """False: a worker of a parameter server whose run another one reports of."""


def train(
    recipe: Recipe,
    *,
    resume: Path | None = None,
    display: Display | None = None,
    number: int | None = None,
    loop: Callable[[Run, Interrupt], Result] | None = None,
    parts: Parts | None = None,
    began: float | None = None,
) -> Result:
    """Runs a recipe to its end, or from the checkpoint folder `resume` to its end.

    Args:
        number: of this process among workers of a parameter server, which form no process group; above 0 it joins a run.
        loop: instead of this module's own.
        parts: what the run is made of, where that is to be something else.
        began: when the run's time began, on the clock of time.perf_counter; default: now.

    Raises:
        InputError: something the user gave cannot be used; nothing of an earlier run is changed.
    """
    if loop is None and recipe.parallel.mode == "parameter_server":
        raise InputError("parallel.mode: parameter_server is run by zenspeed.train, this is the loop of data_parallel")
    began = time.perf_counter() if began is None else began
    folder = recipe.run.folder
    pulse = Pulse(folder / FOLDER if folder else None, int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))))
    with world() as here, contextlib.closing(pulse):
        set_threads(here)
        if number is not None:
            here = here._replace(rank=number)
        display = display or Display(enabled=here.rank == 0)
        with Interrupt() as interrupt:
            run = _set_up(recipe, here, display, resume, pulse, parts or Parts(), began, joins=bool(number))
            try:
                result = (loop or _loop)(run, interrupt)
            except Exception as error:
                if rescue.is_lost_peer(error):
                    _rescue(run)
                if not is_out_of_memory(error):
                    raise
                raise InputError(f"step {run.counters.step + 1}: {_memory_advice(run.recipe)} ({error})") from None
            finally:
                display.close()
                run.log.close()
            if run.checkpointer.store is not None and here.rank == 0:
                run.checkpointer.store.put_files(run.folder)
            return result


def set_threads(here: World) -> None:
    """This process's share of the cores, and an allocator that keeps its memory."""
    keep_memory()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, usable_cores() // _local_ranks(here)))


STATES = {"adamw": 2, "muon": 1, "sgd": 0}
"""Numbers of optimizer state for a weight, at least."""


class Parts(NamedTuple):
    """Parts of a run that can be others: what breaks things on purpose gives broken ones."""

    open_task: Callable[[Recipe, Callable[[str], None] | None], Task] = open_task
    checkpointer: type[Checkpointer] = Checkpointer


class Run(NamedTuple):
    """What the loop needs."""

    recipe: Recipe
    folder: Path
    world: World
    display: Display
    task: Task
    model: nn.Module
    engine: Engine
    checkpointer: Checkpointer
    log: RunLog
    counters: Counters
    recovery: Recovery
    pulse: Pulse
    peak_flops: float  # of all ranks together
    weights: int
    memory: MemoryLimit
    began: float  # on the clock of time.perf_counter


def _set_up(
    recipe: Recipe,
    here: World,
    display: Display,
    resume: Path | None,
    pulse: Pulse,
    parts: Parts,
    began: float,
    *,
    joins: bool = False,
) -> Run:
    """All that the loop needs. `joins`: a run that others have begun."""
    checkpoint = Checkpoint(resume) if resume else None
    if checkpoint is None:
        recipe = adopt_pretrained(recipe, display.say)
    recipe = resolve(recipe, here, resumed=checkpoint is not None)
    folder = recipe.run.folder
    assert folder is not None
    if checkpoint is None and not joins and list_checkpoints(folder / "checkpoints"):
        raise InputError(
            f"{folder}: holds a run already; go on with it: zenspeed resume {folder}, or give another: --set run.folder=…"
        )
    store = RunStore(recipe.run.storage) if recipe.run.storage else None
    if store is not None and checkpoint is None and store.checkpoints():
        raise InputError(
            f"{store.url}: holds a run already; go on with it: zenspeed resume {store.url}, or give another address"
        )
    pulse.beat("data", 0)
    task = _open_task_once(recipe, here, display, parts)
    recipe = task.recipe
    pulse.beat("build", 0)
    precision = recipe.train.precision
    compute_dtype = torch.bfloat16 if recipe.train.half else torch.float32

    torch.manual_seed(recipe.run.seed + here.rank)  # of dropout; weights have their own generator
    model = task.build_model(recipe.run.seed, pretrained=checkpoint is None).to(here.device)
    if precision == "fp8":
        display.say(train_in_float8(model))
    for remark in task.remarks():
        display.say(remark)
    if (loaded := load_report(model)) is not None:
        display.say(f"weights of {recipe.model.huggingface or recipe.model.from_run}: {loaded}")
    weights = num_parameters(model)  # before the engine: at stage 3 a module's parameters are empty between uses
    mesh = build_mesh(here, recipe.parallel.shard_ranks)
    engine = Engine(
        model,
        plan_optimizers(model, recipe.optim, compute_dtype),
        mesh,
        ZeroOptions(stage=recipe.parallel.zero),
        compute_dtype=compute_dtype,
        clip=recipe.train.clip,
        lanes=recipe.train.lanes or 1,
    )
    peak = torch.tensor(measure_matmul(compute_dtype, here.device), dtype=torch.float64)
    dist.all_reduce(peak)
    recipe, compiling = _compile_where_it_pays(recipe, task, model, engine, here, float(peak))
    counters = Counters()
    log = RunLog(
        folder, enabled=here.rank == 0, tensorboard=recipe.log.tensorboard, resumed_step=checkpoint.step if checkpoint else None
    )
    checkpointer = parts.checkpointer(
        folder / "checkpoints",
        recipe.checkpoint.keep,
        recipe.checkpoint.keep_best,
        store=store,
        second=next(iter(second_place(recipe.checkpoint.copy_to, folder)), None),
    )

    def finish_saving() -> None:
        pulse.beat("save", counters.step)
        checkpointer.wait()

    recovery = Recovery(recipe, folder, here, engine, task, counters, log, display, finish_saving)
    if checkpoint:
        restore(checkpoint, engine, counters, task, here)
        recovery.guard.load_state_dict(checkpoint.state.get("guard", {}))
    if here.rank == 0:
        if checkpoint:
            set_aside_after(folder / "checkpoints", checkpoint.step)
        write_atomically(folder / "recipe.yaml", dump(recipe))
        task.tokenizer.save(folder / "tokenizer")
    display.say(
        f"model: {weights:,} parameters, {recipe.model.layers} layers × {recipe.model.width}, "
        f"context {recipe.model.context}, vocabulary {task.tokenizer.vocab_size:,}"
    )
    display.say(
        f"run: {folder} · {here.size} × {torch.get_num_threads()} threads in {recipe.train.lanes} lanes on "
        f"{here.device.type} · {precision}, "
        f"peak {float(peak) / 1e9:,.0f} GFLOP/s · {recipe.train.batch_size * task.tokens_per_sample:,.0f} tokens an update"
    )
    display.say(compiling)
    limit = MemoryLimit(recipe.train.memory, here.device, _local_ranks(here))
    if (scarce := limit.check(_later_bytes(recipe, engine), "optimizer states and a copy for checkpoints")) is not None:
        display.say(scarce)
    return Run(
        recipe,
        folder,
        here,
        display,
        task,
        model,
        engine,
        checkpointer,
        log,
        counters,
        recovery,
        pulse,
        float(peak),
        weights,
        limit,
        began,
    )


def _later_bytes(recipe: Recipe, engine: Engine) -> float:
    """Bytes that come to this process after it was set up, whatever the micro-batch: optimizer states, at the first update, and
    a copy of them and of the weights while a checkpoint is written."""
    weights = states = 0
    for shard in engine.shards():
        weights += shard.tensor.numel() if shard.kind == "weight" else 0
        states += shard.tensor.numel() if shard.kind != "weight" else 0
    to_come = 0 if states else weights * STATES[recipe.optim.name]  # where a run is resumed they are there already
    return 4.0 * (to_come + weights + states + to_come)


def _compile_where_it_pays(
    recipe: Recipe, task: Task, model: nn.Module, engine: Engine, here: World, peak: float
) -> tuple[Recipe, str]:
    """The recipe with the choice, and what was chosen and why. A step is taken to reach half of the peak."""
    train = recipe.train
    step = train.batch_size * task.tokens_per_sample * task.flops_per_token(model) / (0.5 * peak)
    compiles, why = pick_compile(recipe, here.device.type, 60 * train.minutes if train.minutes else (train.steps or 1) * step)
    if compiles:
        compile_blocks(engine)
    chosen = recipe.model_copy(update={"train": train.model_copy(update={"compile": compiles})})
    return chosen, f"compile: {'on' if compiles else 'off'}: {why}"


def _local_ranks(here: World) -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", here.size))


def _open_task_once(recipe: Recipe, here: World, display: Display, parts: Parts) -> Task:
    """Rank 0 prepares the data, the others then find it done. Epochs become steps in the task's recipe."""
    if here.rank == 0:
        task = parts.open_task(recipe, display.say)
    dist.barrier()
    task = task if here.rank == 0 else parts.open_task(recipe, None)
    if recipe.train.epochs is not None:
        steps = max(1, round(recipe.train.epochs * task.num_samples / recipe.train.batch_size))
        data = task.recipe.model_dump(mode="json")
        data["train"] |= {"steps": steps, "epochs": None}
        task.recipe = validate(Recipe, data)
    return task


def num_parameters(model: nn.Module) -> int:
    """Weights, a shared one counted once."""
    return sum(p.numel() for p in model.parameters())


# The loop -------------------------------------------------------------------------------------------------------------


def _loop(run: Run, interrupt: Interrupt) -> Result:
    recipe, counters, task, recovery = run.recipe, run.counters, run.task, run.recovery
    tokens_per_update = recipe.train.batch_size * task.tokens_per_sample
    clock = Clock(recipe, counters, task.evaluation_tokens / tokens_per_update, run.began)
    due, aim = Due(recipe, counters, clock), Aim(recipe.train.target_loss, task.bytes_per_token, clock)
    losses, every, size = Smooth(), recipe.guard.check_replicas, recipe.train.micro_batch_size or 1
    flops = task.flops_per_token(run.model)

    while True:
        run.pulse.beat("step", counters.step + 1)
        share = share_of(recipe.train.batch_size, run.world.rank, run.world.size, size)
        first = counters.samples + share.first
        micro = task.micro_batches(first, share.sizes)
        wants = due.evaluate() or aim.looks()
        facts = _agree_on(task, micro, clock.progress(), interrupt.asked, not recovery.skipped and due.save(), wants)
        if facts.stop or facts.progress >= 1.0 or (recipe.train.steps and counters.step >= recipe.train.steps):
            if every and recovery.check_replicas():  # what is saved at the end must be right as well
                due.went_back()
                continue
            break
        if facts.evaluate:
            figures = evaluate(run, clock)
            due.evaluated()
            aim.looked()
            if aim.target is not None and aim.reached(figures["bits_per_byte"].high):
                run.display.say(_reached(aim.target, figures["bits_per_byte"], counters.step))
                return finish(run, clock, interrupted=False, figures=figures)
        if every and (facts.save or counters.step % every == 0) and recovery.check_replicas():
            due.went_back()
            continue
        if facts.save:
            save(run, clock)
            due.saved()
        if facts.evaluate or facts.save:
            run.pulse.beat("step", counters.step + 1)
        start = time.perf_counter()
        lr = lr_factor(recipe.optim, facts.progress, counters.step, recipe.train.steps)
        try:
            with run.memory:
                loss, update = recovery.step(micro, facts.num_targets, lr, partial(_smallest, task, first))
        except OutOfMemory:
            size = _halve(run, size, sum(share.sizes))
            continue
        seconds = time.perf_counter() - start
        counters.step += 1
        counters.samples += recipe.train.batch_size
        counters.tokens += facts.num_tokens
        if recovery.after(loss, update):
            due.went_back()
            continue
        rate = facts.num_tokens / seconds
        clock.step_took(seconds)
        record = {
            "step": counters.step,
            "loss": loss,
            "lr": recipe.optim.lr * lr,
            "grad_norm": update.grad_norm,
            "tokens": counters.tokens,
            "samples": counters.samples,
            "tokens_per_second": rate,
            "mfu": rate * flops / run.peak_flops,
            "memory_bytes": resident_bytes(),
            "elapsed_seconds": clock.elapsed(),
        } | ({"skipped": True} if update.skipped else {})
        if counters.step % recipe.log.every == 0:
            run.log.write(record)
        smooth = losses.add(loss)
        aim.saw(smooth)
        run.display.progress(
            record
            | {
                "loss": smooth,
                "steps": recipe.train.steps,
                "progress": clock.progress(),
                "validation_loss": counters.validation_loss,
                "seconds_left": clock.seconds_left(),
            }
        )
    return finish(run, clock, interrupted=facts.stop)


def _reached(target: float, bits: Figure, step: int) -> str:
    return f"target: {target:g} bits per byte are reached for certain, {bits} (95 %); training ends with update {step}"


def _smallest(task: Task, first: int) -> Batch:
    return task.micro_batches(first, [1])[0]


def _halve(run: Run, size: int, per_rank: int) -> int:
    """The micro-batch size with which the update that did not fit is made again: samples and their order stay as they are."""
    if size == 1 or run.task.micro_batch_counts:
        raise InputError(f"step {run.counters.step + 1}: {_memory_advice(run.recipe, size)}")
    smaller = max(d for d in range(1, size) if size % d == 0)
    step, accumulation = run.counters.step + 1, per_rank // smaller
    run.display.say(
        f"step {step}: too little memory for micro-batches of {size}; made again, and gone on with, by micro-batches of "
        f"{smaller}, accumulation {accumulation}: the same samples, the same update"
    )
    run.log.write({"step": step, "out_of_memory": True, "micro_batch_size": smaller, "accumulation": accumulation})
    return smaller


def _memory_advice(recipe: Recipe, size: int | None = None) -> str:
    """What to do where memory is too little, beside smaller micro-batches."""
    what = "too little memory" if size is None else f"too little memory for micro-batches of {size}"
    fixes = [] if size == 1 else [f"a smaller train.micro_batch_size (now {recipe.train.micro_batch_size})"]
    fixes += [] if recipe.train.recompute else ["train.recompute=true"]
    fixes += ["a shorter model.context", "a smaller model"]
    return f"{what}; the last checkpoint stands; take {', '.join(fixes[:-1])} or {fixes[-1]}"


class Facts(NamedTuple):
    num_targets: float
    num_tokens: int
    progress: float
    stop: bool
    save: bool
    evaluate: bool


def _agree_on(task: Task, micro: Sequence[Batch], progress: float, stop: bool, save: bool, evaluate: bool) -> Facts:
    """The same facts on every rank: targets are summed, a signal to any rank stops all, for the rest rank 0's clock counts."""
    targets, tokens = sum(map(task.num_targets, micro)), sum(map(task.num_tokens, micro))
    mine = [progress, float(save), float(evaluate)] if dist.get_rank() == 0 else [0.0, 0.0, 0.0]
    facts = torch.tensor([targets, tokens, float(stop), *mine], dtype=torch.float64)
    dist.all_reduce(facts)
    num_targets, num_tokens, stops, progress, saves, evaluates = facts.tolist()
    return Facts(num_targets, int(num_tokens), progress, stops > 0, saves > 0, evaluates > 0)


def evaluate(run: Run, clock: Clock) -> dict[str, Figure]:
    """Figures over the whole held-out split, on all ranks."""
    start = time.perf_counter()
    run.pulse.beat("evaluate", run.counters.step)
    try:
        with run.memory:
            figures = run.task.evaluate(run.model, _place(run))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        size = run.recipe.evaluate.batch_size or run.recipe.train.micro_batch_size
        raise InputError(
            f"step {run.counters.step}: too little memory to evaluate {size} sequences at a time; the last checkpoint stands; "
            f"take a smaller evaluate.batch_size, and go on with: zenspeed resume {run.folder}"
        ) from None
    seconds = time.perf_counter() - start
    clock.evaluation_took(seconds)
    run.counters.validation_loss, run.counters.validated_step = figures["loss"].value, run.counters.step
    record: dict[str, Any] = {"step": run.counters.step, "tokens": run.counters.tokens, "elapsed_seconds": clock.elapsed()}
    record["evaluation_seconds"] = seconds
    for name, figure in figures.items():
        record |= {f"validation_{name}": figure.value, f"validation_{name}_interval": [figure.low, figure.high]}
    run.log.write(record)
    run.display.say(f"step {run.counters.step}: {run.task.summary(figures)}")
    return figures


def _place(run: Run) -> Place:
    return Place(run.engine.autocast(), run.world.rank, run.world.size)


def save(run: Run, clock: Clock, *, wait: bool = False) -> None:
    run.pulse.beat("save", run.counters.step)
    start = time.perf_counter()
    state = _state(run, clock.elapsed())
    run.checkpointer.save(run.counters.step, run.engine.shards(), run.engine.scalars(), state, wait=wait)
    if not wait:
        run.log.write({"step": run.counters.step, "checkpoint_stall_seconds": time.perf_counter() - start})


def _rescue(run: Run) -> None:
    """Another rank has gone: what this one holds is kept, where others hold the rest of it."""
    engine, copied = run.engine, run.recipe.parallel.zero == 0 or run.engine.mesh["replicate"].size() > 1
    if not copied or engine.updating:
        return
    run.pulse.beat("rescue", run.counters.step)
    state = _state(run, run.counters.elapsed) | {"parameters": sorted({s.name for b in engine.zero.trainable for s in b.slots})}
    rescue.write(run.folder, run.world.rank, run.counters.step, engine.shards(copies=True), engine.scalars(), state)


def _state(run: Run, elapsed: float) -> dict[str, Any]:
    """What a checkpoint holds beside tensors, the same on all ranks."""
    counters = run.counters
    return {
        "step": counters.step,
        "samples": counters.samples,
        "tokens": counters.tokens,
        "elapsed": elapsed,
        "started": counters.started,
        "validation_loss": counters.validation_loss,
        "metric": counters.validation_loss if counters.validated_step == counters.step else None,
        "scaler": run.engine.scaler.state_dict(),
        "guard": run.recovery.guard.state_dict(),
        "vocab_size": run.model.vocab_size,
        "data": run.task.fingerprint,
        "recipe": run.recipe.model_dump(mode="json"),
    }


def finish(run: Run, clock: Clock, *, interrupted: bool, figures: dict[str, Figure] | None = None) -> Result:
    """The end of a run. `figures`: of an evaluation of these very weights."""
    counters, folder = run.counters, run.folder
    run.pulse.beat("finish", counters.step)
    figures = figures or ({} if interrupted else evaluate(run, clock))
    save(run, clock, wait=True)
    run.pulse.beat("finish", counters.step)
    run.display.close()
    if run.world.rank == 0:
        plot_loss(folder)
    if not interrupted:
        with run.engine.zero.whole():  # samples are rank 0's alone
            figures |= run.task.finish(run.model, _place(run), folder, run.display.say)
        if run.world.rank == 0:
            facts = _facts(run, clock)
            write_markdown(folder, figures, facts, run.task.report)
            write_report(folder, figures, facts, run.task.report, run.task.data_report())
    if interrupted:
        run.display.say(f"stopped at step {counters.step}; a checkpoint is saved, go on with: zenspeed resume {folder}")
    return Result(folder, counters.step, counters.validation_loss, interrupted)


def _facts(run: Run, clock: Clock) -> dict[str, str]:
    recipe, counters = run.recipe, run.counters
    return {
        "model": f"{run.weights:,} parameters, {recipe.model.layers} layers × {recipe.model.width}, "
        f"vocabulary {run.task.tokenizer.vocab_size:,}, context {recipe.model.context}",
        "trained": f"{counters.step:,} updates, {counters.tokens:,} tokens, "
        f"{counters.samples / run.task.num_samples:.2f} epochs, in {clock.elapsed():.0f} s",
        "optimizer": f"{recipe.optim.name}, peak rate {recipe.optim.lr}, {recipe.optim.schedule}",
        "precision": str(recipe.train.precision),
        "processes": f"{run.world.size} × {torch.get_num_threads()} threads on {run.world.device.type}",
        "seed": str(recipe.run.seed),
    }
