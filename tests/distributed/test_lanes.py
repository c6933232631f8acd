"""Threads that share the micro-batches train the same model as one that takes them one after the other."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from zenspeed.config import load
from zenspeed.engine import Engine
from zenspeed.models.presets import ModelConfig
from zenspeed.models.transformer import Transformer
from zenspeed.optim import plan_optimizers
from zenspeed.parallel.mesh import build_mesh, start_world, world
from zenspeed.parallel.zero import ZeroOptions
from zenspeed.recipe import OptimConfig, Recipe
from zenspeed.resolve import resolve

STEPS, BATCH, CONTEXT, VOCABULARY = 8, 6, 16, 61


def loss_sum(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return module(batch[0], targets=batch[1])


def engine_of(lanes: int, stage: int = 1, tied: bool = True, dropout: float = 0.0) -> Engine:
    config = ModelConfig(
        layers=2, width=32, heads=2, context=CONTEXT, init="gpt2", tie_embeddings=tied, ngrams=(2,), dropout=dropout,
        ngram_dropout=dropout,
    )  # fmt: skip
    model = Transformer(config, VOCABULARY)
    model.init_weights(3)
    plans = plan_optimizers(model, OptimConfig(name="adamw", lr=3e-3, weight_decay=0.1))
    mesh = build_mesh(start_world())
    return Engine(model, plans, mesh, ZeroOptions(stage=stage, bucket_elements=9_000), clip=0.5, lanes=lanes)


def curve(engine: Engine, rows: int = BATCH) -> list[tuple[float, float]]:
    generator = torch.Generator().manual_seed(0)
    out = []
    for _ in range(STEPS):
        data = torch.randint(VOCABULARY, (rows, CONTEXT + 1), generator=generator)
        micro = list(zip(data[:, :-1].split(1), data[:, 1:].split(1), strict=True))
        loss, update = engine.train_step(micro, loss_sum, float(rows * CONTEXT), lr=1.0)
        out.append((loss, update.grad_norm))
    return out


@pytest.mark.parametrize(("lanes", "stage", "tied"), [(2, 1, True), (3, 0, False), (4, 1, False)])
def test_lanes_train_the_same_model(lanes: int, stage: int, tied: bool) -> None:
    """Six micro-batches: even shares for 2 and 3 lanes, uneven ones for 4. Twice the same, bit by bit."""
    with world():
        threads = torch.get_num_threads()
        plain, once, again = (curve(engine_of(n, stage, tied)) for n in (1, lanes, lanes))
        assert torch.get_num_threads() == threads
    assert once == again
    for ours, reference in zip(once, plain, strict=True):
        assert ours == pytest.approx(reference, rel=1e-5)


def test_fewer_micro_batches_than_lanes_leave_a_lane_idle() -> None:
    with world():
        once, plain = curve(engine_of(3), rows=1), curve(engine_of(1), rows=1)
    for ours, reference in zip(once, plain, strict=True):
        assert ours == pytest.approx(reference, rel=1e-6)


def test_dropout_is_of_the_micro_batch_whatever_the_number_of_lanes() -> None:
    def seeded(lanes: int) -> list[tuple[float, float]]:
        torch.manual_seed(5)
        return curve(engine_of(lanes, dropout=0.2))

    with world():
        two, again, three, without = seeded(2), seeded(2), seeded(3), curve(engine_of(2))
    assert two == again
    for ours, reference in zip(three, two, strict=True):
        assert ours == pytest.approx(reference, rel=1e-5)
    assert abs(two[0][0] / without[0][0] - 1) > 1e-4, "nothing is dropped"


def test_lanes_follow_evaluation_mode_and_share_weights() -> None:
    with world():
        engine = engine_of(2)
        first, second = engine.lanes.modules
        assert [a.data_ptr() for a in first.parameters()] == [b.data_ptr() for b in second.parameters()]
        first.eval()
        engine.lanes.run(lambda module, batch, last: torch.tensor(module.training), [0, 0])
        assert not second.training


def test_a_failure_in_any_lane_comes_out_when_all_are_still() -> None:
    running = []

    def work(module: nn.Module, batch: int, last: bool) -> Tensor:
        running.append(batch)
        if batch == failing:
            raise ValueError(f"batch {batch}")
        running.remove(batch)
        return torch.zeros(())

    with world():
        lanes = engine_of(2).lanes
        for failing in (0, 3):
            with pytest.raises(ValueError, match=f"batch {failing}"):
                lanes.run(work, [0, 1, 2, 3])
            assert running == [failing]
            running.clear()


@pytest.mark.parametrize(
    ("changes", "threads", "lanes", "micro"),
    [
        ([], 2, 2, 4),
        (["train.batch_size=9"], 2, 1, 9),
        (["train.batch_size=9"], 3, 3, 3),
        (["train.micro_batch_size=8"], 2, 1, 8),
        (["model.dropout=0.1"], 2, 2, 4),
        (["model={preset: lstm, dropout: 0.1}"], 2, 1, 8),
        (["parallel.zero=2"], 2, 1, 8),
        (["train.lanes=1"], 2, 1, 8),
        (["train.lanes=2", "parallel.zero=3"], 2, 1, 8),
    ],
)
def test_lanes_are_chosen(changes: list[str], threads: int, lanes: int, micro: int) -> None:
    before = torch.get_num_threads()
    with world() as here:
        torch.set_num_threads(threads)
        recipe = resolve(load(Recipe, None, ["train.batch_size=8", "train.precision=fp32", *changes]), here)
        torch.set_num_threads(before)
        assert dist.get_world_size() == 1
    assert (recipe.train.lanes, recipe.train.micro_batch_size) == (lanes, micro)
