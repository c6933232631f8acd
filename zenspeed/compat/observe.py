"""What a config asks to be told of a run: times, memory, traffic, FLOPs, monitors. An engine without any of it pays nothing."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from zenspeed.compat import memory
from zenspeed.compat.flops import FlopsProfiler
from zenspeed.compat.monitor import Monitor
from zenspeed.compat.timers import BACKWARD, FORWARD, REDUCE, STEP, Timers
from zenspeed.parallel.traffic import Traffic

if TYPE_CHECKING:
    from zenspeed.compat.engine import DeepSpeedEngine


class Observer:
    """Watches one engine."""

    def __init__(self, engine: DeepSpeedEngine, settings: Any) -> None:
        self._engine, self._settings = engine, settings
        self.timers, self.monitor = Timers(), Monitor(settings, engine.global_rank)
        self._timed = bool(settings.wall_clock_breakdown)
        self._printed_at, self._printed_samples = time.perf_counter(), 0
        self.traffic = self._traffic(settings.comms_logger)
        if self.traffic is not None or self._timed:
            for bucket in engine.core.zero.buckets:
                bucket.traffic = self.traffic
        if self._timed:
            engine.core.zero.reducing = lambda: self.timers.time(REDUCE)
        profile = settings.flops_profiler
        self.profiler = FlopsProfiler(engine.module, profile.recompute_fwd_factor) if profile.enabled else None
        self._profiled = False

    def _traffic(self, section: Any) -> Traffic | None:
        if not section.enabled:
            return None
        say = (lambda line: print(f"rank {self._engine.global_rank} | {line}", flush=True)) if section.verbose else None
        return Traffic(() if section.prof_all else tuple(section.prof_ops), say)

    def time(self, name: str) -> AbstractContextManager[None]:
        return self.timers.time(name) if self._timed else nullcontext()

    @property
    def counts_flops(self) -> bool:
        """A profile is under way: it counts torch's own operations."""
        return self.profiler is not None and self.profiler.started

    # FLOPs ------------------------------------------------------------------------------------------------------------

    def before_forward(self) -> None:
        """Starts the profile in the first forward of its step."""
        engine = self._engine
        if self.profiler is None or self._profiled or not engine.module.training:
            return
        if engine.global_rank == 0 and engine.global_steps + 1 >= self._settings.flops_profiler.profile_step:
            shapes = {s.name: s.size for b in engine.core.zero.buckets for s in b.slots}
            sizes = {n: shapes.get(n, p.numel()) for n, p in engine.module.named_parameters()}
            self.profiler.start_profile(sizes)

    def after_forward(self) -> None:
        if self.profiler is None or not self.profiler.started:
            return
        self.profiler.stop_profile()
        self._profiled = True
        section, engine = self._settings.flops_profiler, self._engine
        sharing = f"ranks: {engine.world_size}; micro-batch {engine.train_micro_batch_size_per_gpu()}"
        self.profiler.print_model_profile(
            engine.global_steps + 1, section.module_depth, section.top_modules, section.detailed, section.output_file, [sharing]
        )

    # After an update --------------------------------------------------------------------------------------------------

    def after_update(self, loss: float | None) -> None:
        """Events to the monitors; every `steps_per_print` updates a line, times and memory.

        Args:
            loss: the mean over micro-batches and ranks, where the engine knows it.
        """
        engine = self._engine
        if self.monitor.enabled and engine.global_rank == 0:
            at = engine.global_samples
            events = [("Train/Samples/train_loss", loss, at)] if loss is not None else []
            events += [("Train/Samples/lr", engine.get_lr()[0], at)] if engine.get_lr() else []
            events += [("Train/Samples/loss_scale", engine.loss_scale(), at)] if engine.fp16_enabled() else []
            self.monitor.write_events(events)
        every = self._settings.steps_per_print
        if not every or every == float("inf") or engine.global_steps % int(every):
            return
        if engine.global_rank == 0:
            now = time.perf_counter()
            rate = (engine.global_samples - self._printed_samples) / max(1e-9, now - self._printed_at)
            self._printed_at, self._printed_samples = now, engine.global_samples
            print(
                f"step={engine.global_steps}, skipped={engine.skipped_steps}, lr={engine.get_lr()}, mom={engine.get_mom()}, "
                f"samples/s={rate:.2f}",
                flush=True,
            )
            if self._timed:
                self.timers.log([FORWARD, BACKWARD, REDUCE, STEP], normalizer=int(every))
        if self._settings.memory_breakdown:
            print(memory.report(engine.core, engine.global_rank), flush=True)

    def mean_loss(self, losses: list[torch.Tensor]) -> float | None:
        """The mean over micro-batches and ranks; a collective, made only where a monitor wants it."""
        if not self.monitor.enabled or not losses:
            return None
        total = torch.stack([v.float() for v in losses]).mean()
        dist.all_reduce(total)
        return float(total) / self._engine.world_size

    def close(self) -> None:
        self.monitor.close()
