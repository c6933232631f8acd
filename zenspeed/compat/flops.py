"""The FLOPs profile of a module: parameters, multiply-adds, operations and time of every part, for one forward.

Operations are counted by `torch.utils.flop_counter` (a multiplication and an addition are two), so they are those of matrix
products, convolutions and attention as torch runs them; time is taken by hooks. Nothing is hooked outside the profiled step.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from zenspeed.config import InputError


class ModuleProfile(NamedTuple):
    """One module in one forward; numbers include what is inside it."""

    name: str
    kind: str
    depth: int
    parameters: int
    flops: int
    seconds: float


class FlopsProfiler:
    """`start_profile`, a forward, `stop_profile`; then the totals and `print_model_profile`."""

    def __init__(self, model: nn.Module, recompute_fwd_factor: float = 0.0) -> None:
        self.model, self.recompute = model, recompute_fwd_factor
        self.started = False
        self._handles: list[Any] = []
        self._seconds: dict[str, float] = {}
        self._began: dict[str, list[float]] = {}
        self._flops: dict[str, int] = {}
        self._shapes = {n: p.shape.numel() for n, p in model.named_parameters()}

    def start_profile(self, parameter_sizes: dict[str, int] | None = None) -> None:
        """Begins to count. `parameter_sizes`: where parameters are cut over ranks (stage 3), their whole sizes by name."""
        self._shapes = parameter_sizes or {n: p.shape.numel() for n, p in self.model.named_parameters()}
        self._seconds, self._began = {}, {}
        for name, module in self.model.named_modules():
            self._handles.append(module.register_forward_pre_hook(lambda m, a, n=name: self._enter(n)))
            self._handles.append(module.register_forward_hook(lambda m, a, o, n=name: self._leave(n), always_call=True))
        self._counter = FlopCounterMode(display=False)
        self._counter.__enter__()
        self.started = True

    def stop_profile(self) -> None:
        if not self.started:
            return
        self._counter.__exit__(None, None, None)
        root = type(self.model).__name__
        for name, operations in self._counter.get_flop_counts().items():
            inside = "" if name in ("Global", root) else name.removeprefix(root + ".")
            self._flops[inside] = max(self._flops.get(inside, 0), int(sum(operations.values())))
        for handle in self._handles:
            handle.remove()
        self._handles, self.started = [], False

    def end_profile(self) -> None:
        self.stop_profile()

    def _enter(self, name: str) -> None:
        self._began.setdefault(name, []).append(time.perf_counter())

    def _leave(self, name: str) -> None:
        if began := self._began.get(name):
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - began.pop()

    # Figures ----------------------------------------------------------------------------------------------------------

    def get_total_flops(self, as_string: bool = False) -> int | str:
        total = int(self._flops.get("", 0) * (1 + self.recompute))
        return _short(total, "FLOPS") if as_string else total

    def get_total_macs(self, as_string: bool = False) -> int | str:
        """Multiply-adds: half of the operations."""
        total = self._flops.get("", 0) // 2
        return _short(total, "MACs") if as_string else total

    def get_total_params(self, as_string: bool = False) -> int | str:
        total = sum(self._shapes.values())
        return _short(total, "") if as_string else total

    def get_total_duration(self, as_string: bool = False) -> float | str:
        """Seconds of the forward."""
        seconds = self._seconds.get("", 0.0)
        return f"{1e3 * seconds:.2f} ms" if as_string else seconds

    def modules(self) -> list[ModuleProfile]:
        """Every module, in the order of the model's definition."""
        out = []
        for name, module in self.model.named_modules():
            prefix = name + "." if name else ""
            parameters = sum(size for n, size in self._shapes.items() if n.startswith(prefix))
            depth = name.count(".") + 1 if name else 0
            out.append(
                ModuleProfile(
                    name, type(module).__name__, depth, parameters, self._flops.get(name, 0), self._seconds.get(name, 0.0)
                )
            )
        return out

    def print_model_profile(
        self,
        profile_step: int = 1,
        module_depth: int = -1,
        top_modules: int = 1,
        detailed: bool = True,
        output_file: str | Path | None = None,
        more: Sequence[str] = (),
    ) -> None:
        """Prints totals, the `top_modules` kinds of each depth, and with `detailed` every module.

        Args:
            module_depth: the deepest level of the summary; -1: all.
            output_file: written instead of standard output.
            more: lines that go below the totals.
        """
        lines = self._lines(profile_step, module_depth, top_modules, detailed, more)
        if output_file is None:
            _write(sys.stdout, lines)
            return
        try:
            with Path(output_file).open("w", encoding="utf-8") as file:
                _write(file, lines)
        except OSError as error:
            raise InputError(f"flops_profiler.output_file: {output_file}: cannot be written: {error.strerror}") from None

    def _lines(self, step: int, depth: int, top: int, detailed: bool, more: Sequence[str]) -> list[str]:
        seconds, flops = float(self.get_total_duration()), int(self.get_total_flops())
        lines = [
            f"---- FLOPs profile of step {step} ----",
            f"parameters:                 {self.get_total_params(as_string=True)}",
            f"forward multiply-adds:      {self.get_total_macs(as_string=True)}",
            f"forward operations:         {_short(flops, 'FLOPS')}",
            f"forward time:               {1e3 * seconds:.2f} ms",
            f"forward operations a second: {_short(flops / max(seconds, 1e-12), 'FLOPS')}",
            *more,
            "",
        ]
        modules = self.modules()
        deepest = max(m.depth for m in modules)
        for level in range(deepest + 1 if depth < 0 else min(depth, deepest) + 1):
            lines.append(f"depth {level}: " + "; ".join(_top([m for m in modules if m.depth == level], top)))
        if detailed:
            lines += ["", f"{'parameters':>12} {'operations':>12} {'share':>7} {'ms':>9}  module"]
            for m in modules:
                share = m.flops / max(1, self._flops.get("", 0))
                lines.append(
                    f"{_short(m.parameters, ''):>12} {_short(m.flops, ''):>12} {100 * share:6.1f}% {1e3 * m.seconds:9.2f}  "
                    f"{'  ' * m.depth}{m.name.rpartition('.')[2] or 'model'} ({m.kind})"
                )
        return lines


def get_model_profile(
    model: nn.Module,
    input_shape: tuple[int, ...] | None = None,
    args: Sequence[Any] = (),
    kwargs: dict[str, Any] | None = None,
    print_profile: bool = True,
    detailed: bool = True,
    module_depth: int = -1,
    top_modules: int = 1,
    warm_up: int = 1,
    as_string: bool = True,
    output_file: str | None = None,
    ignore_modules: Any = None,
    mode: str = "forward",
) -> tuple[Any, Any, Any]:
    """(operations, multiply-adds, parameters) of one forward of `model`.

    Args:
        input_shape: of one float input, where `args` and `kwargs` are not given.

    Raises:
        InputError: no input is given, or a mode other than forward is asked for.
    """
    if mode != "forward" or ignore_modules:
        raise InputError("get_model_profile: only mode='forward' over all modules; leave mode and ignore_modules out")
    if input_shape is not None:
        weight = next(model.parameters())
        args = (torch.ones(input_shape, device=weight.device, dtype=weight.dtype),)
    if not args and not kwargs:
        raise InputError("get_model_profile: no input; give input_shape, args or kwargs")
    profiler = FlopsProfiler(model)
    with torch.no_grad():
        for _ in range(warm_up):
            model(*args, **(kwargs or {}))
        profiler.start_profile()
        try:
            model(*args, **(kwargs or {}))
        finally:
            profiler.stop_profile()
    if print_profile:
        profiler.print_model_profile(
            module_depth=module_depth, top_modules=top_modules, detailed=detailed, output_file=output_file
        )
    return profiler.get_total_flops(as_string), profiler.get_total_macs(as_string), profiler.get_total_params(as_string)


def _top(modules: list[ModuleProfile], count: int) -> list[str]:
    """The kinds of module with the most operations, largest first."""
    kinds: dict[str, tuple[int, int, float]] = {}
    for m in modules:
        parameters, flops, seconds = kinds.get(m.kind, (0, 0, 0.0))
        kinds[m.kind] = (parameters + m.parameters, flops + m.flops, seconds + m.seconds)
    ranked = sorted(kinds.items(), key=lambda item: -item[1][1])[:count]
    return [f"{k} {_short(p, '')} parameters, {_short(f, 'FLOPS')}, {1e3 * s:.2f} ms" for k, (p, f, s) in ranked]


def _short(number: float, unit: str) -> str:
    for factor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "K")):
        if number >= factor:
            return f"{number / factor:.2f} {letter}{unit}"
    return f"{number:.0f} {unit}".strip()


def _write(file: TextIO, lines: Sequence[str]) -> None:
    file.write("\n".join(lines) + "\n")
    file.flush()
