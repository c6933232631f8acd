"""The engine in one process: what it says of a blocked update, leaf modules, recomputation, and calls it refuses."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import zenspeed
from zenspeed.compat import checkpointing
from zenspeed.errors import InputError

ADAMW = {"train_micro_batch_size_per_gpu": 2, "optimizer": {"type": "AdamW", "params": {"lr": 0.01}}}


def start(module: nn.Module | None = None, **config: Any) -> Any:
    torch.manual_seed(0)
    module = module or nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Linear(8, 1))
    return zenspeed.initialize(model=module, config=ADAMW | config)[0]


def update(engine: Any, value: float, plain: bool) -> None:
    loss = engine(torch.full((2, 4), value, dtype=torch.float16)).float().mean()
    loss.backward() if plain else engine.backward(loss)
    engine.step()


@pytest.mark.parametrize("plain", [False, True])
def test_the_first_module_and_parameter_that_went_wrong_are_named(plain: bool) -> None:
    engine = start(fp16={"enabled": True, "initial_scale_power": 8})
    update(engine, 1.0, plain)
    assert engine.last_overflow is None
    with torch.no_grad():
        engine.module[2].bias[3] = torch.inf
    weights = [p.detach().clone() for p in engine.module.parameters()]
    update(engine, 1.0, plain)
    said = engine.last_overflow
    assert said.startswith("step 2 (micro-batch 2, loss scale 256): the update is blocked")
    assert "module 2 (Linear, whose parameter bias is not finite) gave inf in micro-batch 0" in said
    assert ("the loss of micro-batch 0 is" in said) != plain
    assert "the gradient of parameter 3.weight of module 3 (Linear) has" in said  # backward reaches it first
    assert engine.optimizer.overflow and engine.skipped_steps == 1
    assert all(torch.equal(a, b) for a, b in zip(weights, engine.module.parameters(), strict=True))


@pytest.mark.parametrize("plain", [False, True])
def test_a_gradient_that_overflows_is_named_where_backward_met_it(plain: bool) -> None:
    engine = start(fp16={"enabled": True, "initial_scale_power": 24, "hysteresis": 1})
    update(engine, 1.0, plain)
    assert "module 3 (Linear) has inf" in engine.last_overflow and "gave" not in engine.last_overflow
    assert engine.optimizer.cur_scale == 2**23


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.leaves = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        for leaf in self.leaves:
            x = x + leaf(x)
        return x


def tree() -> nn.Module:
    return nn.Sequential(OrderedDict(only=nn.Sequential(OrderedDict(stem=nn.Linear(4, 4))), branch=Branch()))


@pytest.mark.parametrize(
    ("section", "units"),
    [
        ({}, 3), ({"classes": ["Branch"]}, 1), ({"names": ["branch"]}, 1), ({"name_suffixes": ["stem"]}, 4),
        ({"classes": ["tests.unit.test_deepspeed_engine.Branch"], "names": ["only.stem"]}, 2),
    ],
)  # fmt: skip
def test_leaf_modules_of_the_config_are_gathered_as_one(section: dict[str, list[str]], units: int) -> None:
    engine = start(tree(), zero_optimization={"stage": 3, "leaf_module": section})
    assert sum(bool(buckets) for unit, buckets in engine.core.zero._unit_buckets.items() if unit >= 0) == units
    engine.backward(engine(torch.ones(2, 4)).sum())
    engine.step()


def test_leaf_modules_that_are_not_there_are_named() -> None:
    with pytest.raises(InputError, match="no module 'brunch'; did you mean branch"):
        start(tree(), zero_optimization={"stage": 3, "leaf_module": {"names": ["brunch"]}})


class MovesToHost(TorchFunctionMode):
    count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is Tensor.cpu or func is Tensor.to
        return func(*args, **(kwargs or {}))


@pytest.fixture
def settings() -> Iterator[None]:
    yield
    checkpointing.configure(checkpoint_in_cpu=False)


@pytest.mark.usefixtures("settings")
def test_recomputation_keeps_its_inputs_on_the_host_where_asked_for() -> None:
    gradients, moves = [], []
    for on_host in (False, True):
        start(activation_checkpointing={"cpu_checkpointing": on_host, "partition_activations": True})
        checkpointing.configure(None, {"train_batch_size": 1, "activation_checkpointing": {"cpu_checkpointing": on_host}})
        x = torch.linspace(-1, 1, 6).requires_grad_()
        with MovesToHost() as mode:
            y = checkpointing.checkpoint(lambda t: t.sin().exp(), x)
        y.sum().backward()
        gradients.append(x.grad)
        moves.append(mode.count)
    assert moves == [0, 1]
    assert torch.equal(gradients[0], gradients[1])


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        ({"type": "OneBitAdam"}, "it changes the result to send less"),
        ({"type": "AdamW", "params": {"lrr": 1.0}}, "optimizer.params.lrr: AdamW has no such argument; did you mean lr"),
        ({"type": "Adma"}, "no such optimizer; did you mean"),
    ],
)
def test_optimizers_that_cannot_be_had(optimizer: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        start(optimizer=optimizer)


def test_an_attribute_of_neither_is_named() -> None:
    with pytest.raises(AttributeError, match="neither the engine nor its module, Sequential, has 'set_lr'"):
        _ = start().set_lr


@pytest.mark.parametrize(("stage", "by_hand"), [(0, False), (0, True), (3, False)])
def test_weights_that_are_loaded_last(stage: int, by_hand: bool) -> None:
    """In bf16 the masters are what an update starts from; weights that did not reach them would come back as they were."""
    engine = start(bf16={"enabled": True}, zero_optimization={"stage": stage})
    state = {name: torch.full_like(value, 3.0) for name, value in engine.state_dict().items()}
    if by_hand:
        engine.module.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
        engine.optimizer.refresh_fp32_params()
    else:
        engine.load_state_dict(state)
    engine.backward(engine(torch.ones(2, 4, dtype=torch.bfloat16)).float().mean())
    engine.step()
    assert all(float((value - 3.0).abs().max()) < 0.05 for value in engine.state_dict().values())


@pytest.mark.parametrize("stage", [0, 3])
def test_a_compiled_module_trains_the_same(stage: int) -> None:
    losses = []
    for compiled in (False, True):
        torch.manual_seed(1)
        engine = start(tree(), zero_optimization={"stage": stage})
        if compiled:
            engine.compile(backend="eager")
        for _ in range(3):
            loss = engine(torch.ones(2, 4)).square().mean()
            engine.backward(loss)
            engine.step()
        losses.append(float(loss.detach()))
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


def test_the_accelerator_of_this_machine() -> None:
    accelerator = zenspeed.get_accelerator()
    x = torch.ones(1, device=accelerator.current_device_name())
    assert accelerator.on_accelerator(x) and accelerator.device_name(0).startswith(x.device.type)
    assert 0 < accelerator.memory_allocated() <= accelerator.max_memory_reserved() <= accelerator.total_memory()
    state = accelerator.get_rng_state()
    drawn = torch.rand(3, device=x.device)
    accelerator.set_rng_state(state)
    assert torch.equal(torch.rand(3, device=x.device), drawn)
