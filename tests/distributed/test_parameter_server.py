"""The parameter server: equal to data parallel, bounded staleness, whoever comes, leaves or dies."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.distributed.parameter_server import (
    BATCH,
    CONTEXT,
    Running,
    Worker,
    batch_of,
    engine_of,
    loss_sum,
    model,
    run_until_finished,
)
from tests.distributed.ranks import run_ranks
from zenspeed.engine import Engine
from zenspeed.errors import InputError
from zenspeed.guard import Guard
from zenspeed.optim import lr_factor, plan_optimizers
from zenspeed.parallel.mesh import build_mesh, start_world, world
from zenspeed.parallel.zero import ZeroOptions
from zenspeed.recipe import GuardConfig, OptimConfig
from zenspeed.runlog import read_events
from zenspeed.server.client import Servers
from zenspeed.server.clocks import Clocks, Share
from zenspeed.server.compress import Feedback, decode, encode, num_bytes
from zenspeed.server.keys import divide, gather, keys_of, scatter
from zenspeed.server.replica import Ticket
from zenspeed.server.wire import Kind, Refused
from zenspeed.server.worker import Work

STEPS = 50
ADAMW = OptimConfig(name="adamw", lr=3e-3, weight_decay=0.1)
MUON = OptimConfig(name="muon", lr=0.01)
PLAIN = OptimConfig(name="sgd", lr=0.1, momentum=0.0, schedule="constant")


@pytest.fixture(scope="module", autouse=True)
def one_process() -> Iterator[None]:
    with world():
        yield


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Starts servers, each with its own folder, and ends them."""
    running: list[Running] = []

    def begin(folder: str = "server", port: int = 0, **limits: float) -> Running:
        running.append(Running(tmp_path / folder, port, **limits))
        return running[-1]

    yield begin
    for server in running:
        if server._thread.is_alive():
            server.crash()


def data_parallel(optim: OptimConfig, steps: int, clip: float | None) -> tuple[list[float], list[float]]:
    """Losses and last weights of the ranks of a process group."""
    here = start_world()
    module = model()
    engine = Engine(module, plan_optimizers(module, optim), build_mesh(here), ZeroOptions(stage=1), clip=clip)
    losses = []
    for step in range(steps):
        batch = batch_of(step)
        mine = [tuple(part.chunk(here.size)[here.rank] for part in batch)]
        factor = lr_factor(optim, step / steps, step, steps)
        losses.append(engine.train_step(mine, loss_sum, float(batch[1].numel()), factor)[0])
    return losses, gather(list(module.parameters())).tolist()


def largest(a: list[float], b: list[float]) -> float:
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


def run(
    start: Callable[..., Running],
    optim: OptimConfig,
    workers: int = 2,
    steps: int = STEPS,
    name: str = "server",
    **options: Any,
) -> tuple[list[float], Tensor]:
    """Losses and last weights of a whole run."""
    server = start(name)
    crew = [Worker([server.address], options, optim, steps) for _ in range(workers)]
    run_until_finished(crew)
    return server.losses, crew[0].weights()


def samples(first: int, count: int) -> list[tuple[Tensor, Tensor]]:
    """Samples one by one; those of the second half of a batch are a quarter as long."""
    out = []
    for sample in range(first, first + count):
        step, row = divmod(sample, BATCH)
        length = CONTEXT if row < BATCH // 2 else CONTEXT // 4
        inputs, targets = (part[row : row + 1, :length] for part in batch_of(step))
        out.append((inputs, targets))
    return out


def work_of(worker: Worker, folder: Path, loss: Callable[..., Tensor]) -> Work:
    """What computes a share in the loop of `worker`, on `samples`."""
    task = SimpleNamespace(
        micro_batches=lambda first, sizes: samples(first, sum(sizes)),
        num_targets=lambda batch: batch[1].numel(),
        num_tokens=lambda batch: batch[0].numel(),
        loss=loss,
    )
    train = SimpleNamespace(batch_size=BATCH, micro_batch_size=None)
    work: Any = object.__new__(Work)
    work.shift = 0
    work.run = SimpleNamespace(recipe=SimpleNamespace(run=SimpleNamespace(seed=0), train=train), folder=folder, task=task)
    work.spec, work.servers, work.engine, work.replica = worker.spec, worker.servers, worker.engine, worker.replica
    work.guard = Guard(GuardConfig(), worker.spec.clip)
    return work  # type: ignore[no-any-return]


def ticket_of(clock: int, number: int) -> Ticket:
    return Ticket(0, 0, lead=True, finished=False, records=[], clock=clock, number=number)


# Must hold --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("optim", "clip"), [(ADAMW, 0.5), (MUON, None)], ids=("adamw", "muon"))
def test_synchronous_equals_data_parallel(start: Callable[..., Running], optim: OptimConfig, clip: float | None) -> None:
    """50 updates, 2 workers, 2 ranks: the same losses."""
    reference, weights = run_ranks(2, data_parallel, optim, STEPS, clip)[0]
    assert reference[-1] < 0.9 * reference[0]
    losses, ours = run(start, optim, clip=clip)
    assert len(losses) == STEPS and largest(losses, reference) < 1e-6
    assert largest(ours.tolist(), weights) < 1e-4


def test_staleness_zero_is_synchronous_bit_for_bit(start: Callable[..., Running]) -> None:
    _, synchronous = run(start, ADAMW, name="a")
    _, bounded = run(start, ADAMW, name="b", consistency="bounded", staleness=0)
    assert torch.equal(synchronous, bounded)


def test_two_servers_share_the_parameters_and_clip_by_one_norm(start: Callable[..., Running]) -> None:
    one, weights = run(start, ADAMW, steps=20, name="one")
    servers = [start("a"), start("b")]
    crew = [Worker([s.address for s in servers], {}, ADAMW, 20) for _ in range(2)]
    run_until_finished(crew)
    assert largest(servers[0].losses, one) < 1e-6
    assert (crew[0].weights() - weights).abs().max() < 1e-5
    sizes = [sum(k.size for f in s.server.updates.started()[0].fragments for k in f) for s in servers]
    assert min(sizes) > 0.3 * sum(sizes)


# Who computes does not matter -------------------------------------------------------------------------------------------


def test_workers_join_leave_and_die_without_a_trace(start: Callable[..., Running]) -> None:
    """The weights are bit for bit those of one worker that computed everything."""
    _, alone = run(start, ADAMW, workers=1, steps=12, name="alone")
    server = start("crowd")
    first = Worker([server.address], {}, ADAMW, 12)
    dead = Worker([server.address], {}, ADAMW, 12)
    for _ in range(3):
        dead.take(), first.take(), first.push(), dead.push()
    dead.take()
    dead.vanish()  # with a share that it never brings
    late = Worker([server.address], {}, ADAMW, 12)
    for _ in range(2):
        first.take(), first.push()
    leaver = Worker([server.address], {}, ADAMW, 12)
    leaver.take(), leaver.push(), leaver.servers.close()
    run_until_finished([first])
    assert late.take().finished
    assert torch.equal(first.weights(), alone)
    assert any("its shares are free again" in line for line in server.said)


def test_a_share_that_is_not_brought_in_time_is_given_to_another(start: Callable[..., Running]) -> None:
    server = start()
    slow, fast = (Worker([server.address], {"lease_seconds": 0.2}, ADAMW, 3) for _ in range(2))
    slow.take()
    run_until_finished([fast])
    slow.push()  # too late
    assert server.server.updates.discarded == 1 and len(server.losses) == 3
    assert any("in time: free again" in line for line in server.said)


def test_a_server_that_dies_comes_back_with_all_it_acknowledged(start: Callable[..., Running]) -> None:
    """Between updates, and with one of two shares there; twice, so that the second life's journal is read as well."""
    _, undisturbed = run(start, ADAMW, steps=12, name="undisturbed")
    server = start("mortal")
    crew = [Worker([server.address], {}, ADAMW, 12) for _ in range(2)]
    for _ in range(2):
        for _ in range(2):
            for worker in crew:
                worker.take()
            for worker in crew:
                worker.push()
        for worker in crew:
            worker.take()
        crew[0].push()
        server.crash()
        server = start("mortal", server.port)
        assert any("came back" in line for line in server.said)
        assert [part.head.number for part in server.server.updates.started()[0].pending()] == [0]
        crew[1].push()
    run_until_finished(crew)
    assert torch.equal(crew[0].weights(), undisturbed)


def test_a_journal_cut_off_anywhere_and_begun_anew(start: Callable[..., Running], tmp_path: Path) -> None:
    server = start("long")
    server.server.updates.journal.log_bytes = 0
    import zenspeed.server.journal as journal

    assert journal.LOG_FACTOR * 4 < 1000
    worker = Worker([server.address], {"shares": 1}, ADAMW, 60)
    for _ in range(40):
        worker.take(), worker.push()
    expected = worker.weights()
    server.crash()
    logs = list((tmp_path / "long").glob("log-*"))
    assert len(logs) == 1 and logs[0].name != "log-00000000"  # a checkpoint was made, the old log is gone
    with logs[0].open("ab") as file:
        file.write(b"\x10\x00\x00\x00half a record")
    server = start("long", server.port)
    assert torch.equal(worker.weights(), expected)


# Consistency ------------------------------------------------------------------------------------------------------------


def test_a_worker_waits_when_it_is_too_far_ahead(start: Callable[..., Running]) -> None:
    server = start()
    slow, fast = (Worker([server.address], {"consistency": "bounded", "staleness": 2}, ADAMW, 20) for _ in range(2))
    assert slow.take().clock == 0
    clocks = []
    for _ in range(5):
        clocks.append(fast.take().clock)
        fast.push()
    assert clocks == [0, 1, 1, 2, 2]  # two updates ahead of the servers, which still lack the slow worker's share
    waiting = threading.Thread(target=fast.take)
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive()
    slow.push()
    waiting.join(20)
    assert fast.ticket is not None and fast.ticket.clock == 3 and fast.ticket.version == 3
    fast.push()
    slow.servers.close()
    run_until_finished([fast])
    assert max(record["staleness_max"] for record in server.server.updates.records) == 2


def test_clocks_hold_the_bound_and_give_back() -> None:
    clocks = Clocks(shares=2, staleness=1)
    assert [clocks.take(0, 9.0) for _ in range(5)] == [Share(0, 0), Share(0, 1), Share(1, 0), Share(1, 1), None]
    assert clocks.finish(Share(0, 1)) and not clocks.finish(Share(0, 1)) and not clocks.finish(Share(0, 2))
    assert clocks.lost(0) == 3
    assert clocks.take(1, 5.0) == Share(0, 0)
    assert clocks.overdue(4.9) == [] and clocks.overdue(5.0) == [(Share(0, 0), 1)]
    clocks.closed = True
    assert [clocks.take(2, 9.0) for _ in range(4)] == [Share(0, 0), Share(1, 0), Share(1, 1), None]


def test_asynchronous_updates_take_smaller_steps_the_staler_they_are(start: Callable[..., Running]) -> None:
    server = start()
    options = {"consistency": "asynchronous", "shares": 1}
    slow, fast = (Worker([server.address], options, PLAIN, 8) for _ in range(2))
    slow.take()
    for _ in range(4):
        fast.take(), fast.push()
    before = fast.weights()
    slow.push()
    record = server.server.updates.records[-1]
    assert record["staleness"] == 4 and record["lr"] == pytest.approx(0.1 / 4)
    assert torch.linalg.vector_norm(slow.weights() - before) <= 0.1 / 4 * 0.5 * (1 + 1e-5)  # rate × clipped norm
    slow.servers.close()
    run_until_finished([fast])
    assert len(server.losses) == 8


def test_local_steps_of_one_with_plain_averaging_are_data_parallel(start: Callable[..., Running]) -> None:
    reference, _ = run_ranks(2, data_parallel, PLAIN, STEPS, None)[0]
    losses, _ = run(start, PLAIN, consistency="local", clip=None)
    assert largest(losses, reference) < 1e-6


def weighted(weight_of: Callable[[float], float], steps: int, each: int) -> Tensor:
    """Two workers, `each` updates of plain SGD of their own, the mean of both by `weight_of` their targets; last weights."""
    module = model()
    parameters = list(module.parameters())
    for clock in range(steps // each):
        shared, ends, weights = gather(parameters), [], []
        for number in range(2):
            scatter(shared, parameters)
            own = range(clock * each, (clock + 1) * each)
            batches = [samples(step * BATCH + number * BATCH // 2, BATCH // 2) for step in own]
            for batch in batches:
                count = sum(part[1].numel() for part in batch)
                loss = torch.stack([loss_sum(module, part) for part in batch]).sum() / count
                gradients = gather(list(torch.autograd.grad(loss, parameters)))
                scatter(gather(parameters) - PLAIN.lr * gradients, parameters)
            ends.append(gather(parameters))
            weights.append(weight_of(float(sum(part[1].numel() for batch in batches for part in batch))))
        scatter(sum((w * e for w, e in zip(weights, ends, strict=True)), torch.zeros(())) / sum(weights), parameters)
    return gather(parameters)


@pytest.mark.parametrize(("consistency", "each"), [("synchronous", 1), ("local", 1), ("local", 3)])
def test_workers_weigh_as_much_as_they_have_targets(
    start: Callable[..., Running], tmp_path: Path, consistency: str, each: int
) -> None:
    """Gradients, deltas and losses; the second share has a quarter of the first one's."""
    server, steps = start(), 12
    options = {"consistency": consistency, "local_steps": each, "clip": None}
    works = [work_of(Worker([server.address], options, PLAIN, steps), tmp_path, loss_sum) for _ in range(2)]
    said = []
    for _ in range(steps // each):
        tickets = [work.replica.take(close=False, progress=None, records=None) for work in works]
        for work, ticket in zip(works, tickets, strict=True):
            said.append(work._compute(ticket))
            work.replica.push(ticket, said[-1], ticket.version)
    wait_for_version([server], steps // each)
    ours = torch.cat([link.ask(Kind.PULL, {"have": -1}).body.view(torch.float32) for link in works[0].servers.links])
    assert [facts["targets"] for facts in said[:2]] == [each * 4 * CONTEXT, each * CONTEXT]
    assert (ours - weighted(lambda targets: targets, steps, each)).abs().max() < 1e-6
    assert (ours - weighted(lambda targets: 1.0, steps, each)).abs().max() > 1e-3
    means = [2 * facts["loss"] for facts in said[:2]]  # what is said is divided by the number of shares
    assert server.losses[0] == pytest.approx((4 * means[0] + means[1]) / 5, rel=1e-6)


@pytest.mark.parametrize("fragments", [1, 4])
def test_local_steps_learn(start: Callable[..., Running], fragments: int) -> None:
    """8 updates between exchanges, an outer step with Nesterov momentum, deltas in int8; in turn, a quarter of the model."""
    options = {"local_steps": 8, "fragments": fragments, "outer_lr": 0.7, "outer_momentum": 0.9, "compress": "int8"}
    losses, _ = run(start, ADAMW, steps=96, consistency="local", **options)
    assert len(losses) == 96 * fragments // 8
    assert losses[-1] < 0.93 * losses[0]


def streamed(workers: int, steps: int, each: int, fragments: int, delay: int, mixing: float) -> Tensor:
    """Streaming DiLoCo (Douillard et al. 2501.18512, algorithm 2) in one process, as plain as it is written; last weights."""
    outer_lr, momentum, module = 0.7, 0.9, model()
    engine = engine_of(module, PLAIN, None)  # without momentum: it holds nothing of a worker
    parts = [[dict(module.named_parameters())[k.name] for k in part] for part in divide(keys_of(module), fragments)]
    shared = [gather(part) for part in parts]
    speed = [torch.zeros_like(part) for part in shared]
    anchors, own = [list(shared) for _ in range(workers)], [list(shared) for _ in range(workers)]
    for clock in range(steps // each):
        for worker in range(workers):
            for made in range(each + 1):
                if made == delay and clock > 0:
                    late = (clock - 1) % fragments
                    own[worker][late] = mixing * own[worker][late] + (1 - mixing) * shared[late]
                    anchors[worker][late] = shared[late]
                if made == each:
                    break
                for part, values in zip(parts, own[worker], strict=True):
                    scatter(values, part)
                micro = [tuple(part.chunk(workers)[worker] for part in batch_of(clock * each + made))]
                engine.train_step(micro, loss_sum, float(micro[0][1].numel()), 1.0)
                own[worker] = [gather(part) for part in parts]
        sent = clock % fragments
        delta = sum((anchors[w][sent] - own[w][sent] for w in range(workers)), torch.zeros(())) / workers
        speed[sent] = momentum * speed[sent] + delta
        shared[sent] = shared[sent] - outer_lr * (delta + momentum * speed[sent])  # Nesterov
    return torch.cat(shared)


@pytest.mark.parametrize(("fragments", "delay"), [(1, 2), (2, 1), (2, 4)])
def test_fragments_that_travel_meanwhile_are_as_the_formula_says(
    start: Callable[..., Running], fragments: int, delay: int
) -> None:
    """48 updates, an exchange every four; the averaged fragment is taken in one to four updates after it was sent."""
    formula = streamed(2, 48, 4, fragments, delay, 0.5)
    options = {"local_steps": 4 * fragments, "fragments": fragments, "outer_lr": 0.7, "outer_momentum": 0.9, "clip": None}
    losses, ours = run(start, PLAIN, steps=48, consistency="local", overlap_steps=delay, **options)
    assert len(losses) == 12 and losses[-1] < losses[0] - 0.01
    assert (ours - formula).abs().max() < 1e-6
    _, waited = run(start, PLAIN, steps=48, name="waited", consistency="local", **options)
    assert (waited - formula).abs().max() > 1e-4  # another method, not the same one sooner


def test_a_worker_computes_while_its_fragment_is_on_its_way(start: Callable[..., Running]) -> None:
    """The next share is taken before the other worker has brought its own, so before there is anything to take in."""
    server = start()
    options = {"consistency": "local", "local_steps": 4, "overlap_steps": 2, "clip": None}
    fast, slow = (Worker([server.address], options, PLAIN, 12) for _ in range(2))
    slow.take(), fast.take(), fast.push()
    assert (fast.take().clock, server.server.updates.started()[0].version) == (1, 0)
    slow.push()
    slow.take()
    fast.push(), slow.push()
    run_until_finished([fast, slow])
    assert len(server.losses) == 3


def test_streaming_workers_die_and_one_is_left_with_all_shares(start: Callable[..., Running]) -> None:
    server = start()
    options = {"consistency": "local", "local_steps": 4, "fragments": 2, "overlap_steps": 1, "clip": None}
    left, dead = (Worker([server.address], options, PLAIN, 24) for _ in range(2))
    left.take(), dead.take(), left.push(), dead.push()
    left.take(), dead.take()
    dead.vanish()
    left.push()
    run_until_finished([left])
    assert len(server.losses) == 12


# What looks wrong ---------------------------------------------------------------------------------------------------------


def wait_for_version(servers: list[Running], version: int) -> None:
    """Servers acknowledge a share before they make its update, which several make together."""
    end = time.monotonic() + 20
    while any(server.server.updates.started()[0].version < version for server in servers):
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("num_servers", [1, 2])
def test_a_spike_makes_no_update_and_is_judged_alike_after_a_crash(
    start: Callable[..., Running], tmp_path: Path, num_servers: int
) -> None:
    """A loss far above the last ones, on all servers; the guard's memory outlives them."""
    servers = [start(f"s{n}") for n in range(num_servers)]
    addresses = [s.address for s in servers]
    worker = Worker(addresses, {"shares": 1}, ADAMW, 40)
    for _ in range(20):
        worker.take(), worker.push()
    for n, server in enumerate(servers):
        server.crash()
        servers[n] = start(f"s{n}", server.port)
    wait_for_version(servers, 20)
    before = worker.weights()
    worker.take()
    worker.push(times=10.0)
    wait_for_version(servers, 21)
    assert torch.equal(worker.weights(), before)
    for server in servers:
        record = server.server.updates.records[-1]
        assert record["skipped"] and "deviations above the last 20" in record["reason"]
    worker.take(), worker.push()
    wait_for_version(servers, 22)
    assert not torch.equal(worker.weights(), before)
    assert "skipped" not in servers[0].server.updates.records[-1]


@pytest.mark.parametrize(("losses", "expected"), [([1.0], 1.0), ([float("nan"), 1.0], 1.0), ([float("nan")] * 2, None)])
def test_a_worker_computes_once_more_what_looks_wrong(losses: list[float], expected: float | None, tmp_path: Path) -> None:
    """As after a bit that flipped in memory; what is wrong again is brought as it is, for the servers to judge."""
    left = list(losses)
    zero = SimpleNamespace(zero_grad=lambda: None, grad_norm=lambda: torch.tensor(1.0))
    engine = SimpleNamespace(zero=zero, accumulate=lambda micro, loss, divisor: torch.tensor(left.pop(0)))
    said: list[Any] = []
    work: Any = SimpleNamespace(
        engine=engine,
        spec=SimpleNamespace(shares=1),
        guard=Guard(GuardConfig(), None),
        run=SimpleNamespace(task=SimpleNamespace(loss=None)),
        _note=lambda event, step, number, **facts: said.append((event, facts["outcome"])),
    )
    loss, _ = Work._gradient(work, Ticket(0, 0, True, False, []), [], 1.0)
    assert left == [] and (loss == expected or (expected is None and loss != loss))
    outcomes = {1: [], 2: [("share computed again", "as before" if expected is None else "right at the second try")]}
    assert said == outcomes[len(losses)]


NAN = float("nan")


@pytest.mark.parametrize(
    ("factors", "made", "reason", "outcome"),
    [
        ([1.0], True, None, None),
        ([NAN, 1.0], True, "loss is nan", "made at the second try"),
        ([NAN, NAN], False, "loss is nan", "set aside"),
        ([5.0, 5.0], False, "deviations above the last 20", "set aside"),
    ],
    ids=("good", "bit flipped", "not finite", "spike"),
)
def test_a_worker_judges_its_own_updates(
    start: Callable[..., Running], tmp_path: Path, factors: list[float], made: bool, reason: str | None, outcome: str | None
) -> None:
    """After 20 good ones of share 1 of 2; `factors`: of the loss, at each try. The servers see only what was made of it."""
    worker = Worker([start().address], {"consistency": "local"}, PLAIN, 40)
    left = [1.0] * (20 * BATCH // 2) + [factor for factor in factors for _ in range(BATCH // 2)]
    work = work_of(worker, tmp_path, lambda module, batch: left.pop(0) * loss_sum(module, batch))
    for clock in range(20):
        work._compute(ticket_of(clock, 1))
    before = gather(list(worker.engine.module.parameters()))
    facts = work._compute(ticket_of(20, 1))
    after = gather(list(worker.engine.module.parameters()))
    assert left == [] and facts["loss"] is not None and torch.isfinite(after).all()
    assert torch.equal(before, after) != made
    events = read_events(tmp_path)
    assert len(events) == (reason is not None)
    for event in events:
        assert (event["event"], event["step"], event["outcome"]) == ("update blocked", 21, outcome)
        assert reason is not None and reason in event["reason"]
        assert event["samples"] == [20 * BATCH + BATCH // 2, 21 * BATCH] and event["worker"] == worker.servers.number


# Bytes ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["fp16", "int8"])
def test_error_feedback_loses_no_more_than_one_rounding(form: Any) -> None:
    """After any number of messages the sums differ by one message's rounding: half a scale a number."""
    feedback, generator = Feedback(form), torch.Generator().manual_seed(0)
    meant, got = torch.zeros(1000, dtype=torch.float64), torch.zeros(1000, dtype=torch.float64)
    for _ in range(200):
        values = torch.randn(1000, generator=generator)
        data = feedback.encode(values)
        assert data.numel() == num_bytes(1000, form)
        meant += values
        got += decode(data, 1000, form)
    step = 2 * 6 / 254 if form == "int8" else 6 * 2**-11
    assert (meant - got).abs().max() < step
    plain = torch.zeros(1000, dtype=torch.float64)
    for _ in range(200):
        plain += decode(encode(torch.full((1000,), 0.3) + torch.arange(1000) / 7, form), 1000, form)
    assert decode(encode(torch.zeros(7), form), 7, form).abs().max() == 0


def test_figures_of_every_update(start: Callable[..., Running]) -> None:
    server = start()
    crew = [Worker([server.address], {"compress": "int8"}, ADAMW, 6) for _ in range(2)]
    run_until_finished(crew)
    record = server.server.updates.records[-1]
    assert {"loss", "lr", "grad_norm", "tokens", "staleness", "discarded", "bytes", "waited_seconds", "workers"} <= set(record)
    assert record["tokens"] == 6 * BATCH * 16 and set(record["waited_seconds"]) == {"0", "1"}
    count = sum(key.size for f in server.server.updates.started()[0].fragments for key in f)
    assert record["bytes"] == pytest.approx(2 * (4 + 1 + 1 / 64) * count, rel=0.05)  # weights in fp32, gradients in int8


# Who may come -----------------------------------------------------------------------------------------------------------


def test_wrong_key_and_other_recipe_are_refused(start: Callable[..., Running]) -> None:
    server = start()
    with pytest.raises(InputError, match="does not take this key"):
        Servers([server.address], b"another secret, long enough")
    assert any("does not have the key" in line for line in server.said)
    Worker([server.address], {}, ADAMW, 3)
    with pytest.raises(Refused, match="give every worker the same recipe"):
        Worker([server.address], {"fingerprint": "other"}, ADAMW, 3)


def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(InputError, match=r"127\.0\.0\.1:9: no parameter server for"):
        Servers(["127.0.0.1:9"], b"k" * 16, retry_seconds=0.2)
    assert time.monotonic() - began < 30
    assert engine_of(model(), ADAMW, None)
