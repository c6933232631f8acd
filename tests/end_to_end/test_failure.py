"""A run that loses, regains and misses ranks trains on the same samples as one process; what went wrong is named."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from tests.end_to_end.conftest import Cli, hold_at
from zenspeed.chaos.faults import Fault, parts_of
from zenspeed.chaos.network import FAR, network
from zenspeed.chaos.trial import Curve, Trial, broken_promises, curve_of, step_seconds
from zenspeed.checkpoint import Checkpoint, list_checkpoints, newest_whole
from zenspeed.config import load
from zenspeed.display import Display
from zenspeed.health import FOLDER, read_beat
from zenspeed.launch.supervise import _free_port
from zenspeed.launch.train import scale
from zenspeed.recipe import ParallelConfig, Recipe
from zenspeed.runlog import read_events, read_metrics
from zenspeed.server.run import train

RECIPE = Path(__file__).parents[2] / "recipes" / "chaos.yaml"
STEPS = 24


@pytest.fixture(scope="module")
def recipe(corpus: Path, cache: Path) -> Recipe:
    return load(Recipe, RECIPE, [f"data.source={corpus}", f"data.cache={cache}"])


@pytest.fixture(scope="module")
def one_process(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Curve:
    trial = Trial(recipe, tmp_path_factory.mktemp("one") / "run", None)
    assert trial.run(1) == 0
    return curve_of(trial.folder)


def lasting(recipe: Recipe, steps: int) -> Recipe:
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"steps": steps})})


def test_scaled_while_it_runs(recipe: Recipe, tmp_path: Path) -> None:
    """`zenspeed scale` under the launcher: 8 samples a step over 4, 2, 3 and 4 ranks, and the curve of one process."""
    steps = 130
    alone = Trial(lasting(recipe, steps), tmp_path / "alone", None)
    assert alone.run(1) == 0
    trial = Trial(lasting(recipe, steps), tmp_path / "run", None)
    asking = threading.Thread(target=_scale_at, args=(trial.folder, [(10, 2), (40, 3), (75, 4)]), daemon=True)
    asking.start()
    assert trial.run(4) == 0
    assert broken_promises(trial, 0, curve_of(alone.folder), 4) == []
    sizes = [e["why"].split("on ")[1].split(" of")[0] for e in read_events(trial.folder) if e["event"] == "restarted"]
    assert sizes == ["2", "3", "4"]


def _scale_at(folder: Path, wanted: list[tuple[int, int]]) -> None:
    for step, ranks in wanted:
        while read_beat(folder / FOLDER, 0).step < step:
            time.sleep(0.001)
        scale(folder, ranks)


@pytest.mark.parametrize("kind", ["kill", "hang", "checkpoint bit", "weight bit", "nan batch"])
def test_promises_are_kept(kind: str, recipe: Recipe, one_process: Curve, tmp_path: Path) -> None:
    fault = Fault(kind, 1, 13, 0.01, 5)
    if kind == "nan batch":
        alone = Trial(recipe, tmp_path / "alone", fault._replace(rank=-1))
        assert alone.run(1) == 0
        one_process = curve_of(alone.folder)
    trial = Trial(recipe, tmp_path / "run", fault)
    assert broken_promises(trial, trial.run(3), one_process, 3) == []
    for event in read_events(trial.folder):
        if event["event"] == "update blocked":
            assert event["samples"] == [12 * 8, 13 * 8]
        if event["event"] == "restarted" and kind == "hang":
            assert "wait for rank 1 at" in event["why"] and "on 2 of 3 ranks" in event["why"]
            assert (trial.folder / event["why"].split("stacks: ")[1].split(")")[0].split("/")[-1] / "rank-00002.txt").exists()


def test_a_far_network_only_takes_time(recipe: Recipe, one_process: Curve, tmp_path: Path) -> None:
    with network(2) as there:
        if there is None:
            pytest.skip("needs root and `ip`")
        trial = Trial(recipe, tmp_path / "run", Fault("network delay", 1, 20, 0.0, 0), there)
        assert broken_promises(trial, trial.run(2), one_process, 2) == []
    seconds = step_seconds(trial.folder, 20)
    assert trial.attempt == 1 and seconds is not None and seconds[1] >= FAR.delay_seconds - FAR.jitter_seconds
    trial.attempt = 2
    assert "was started 2 times" in broken_promises(trial, 0, one_process, 2)[0]


def test_copies_that_differ_after_the_last_checkpoint_are_not_saved(recipe: Recipe, one_process: Curve, tmp_path: Path) -> None:
    trial = Trial(recipe, tmp_path / "run", Fault("weight bit", 2, 21, 0.03, 1858720976))
    assert broken_promises(trial, trial.run(3), one_process, 3) == []
    assert [e["step"] for e in read_events(trial.folder) if e["event"] == "copies of weights differ"] == [STEPS]


@pytest.mark.parametrize(("zero", "shard_ranks", "ranks"), [(0, None, 3), (1, 2, 4)])
def test_what_a_lost_rank_held_comes_from_its_replica(
    zero: int, shard_ranks: int | None, ranks: int, recipe: Recipe, one_process: Curve, tmp_path: Path
) -> None:
    """No checkpoint but the last is ever due: the run goes on from what the ranks that were left held."""
    changes = {
        "parallel": recipe.parallel.model_copy(update={"zero": zero, "shard_ranks": shard_ranks}),
        "checkpoint": recipe.checkpoint.model_copy(update={"every": STEPS}),
    }
    trial = Trial(recipe.model_copy(update=changes), tmp_path / "run", Fault("hang", 1, 13, 0.0, 0))
    assert broken_promises(trial, trial.run(ranks), one_process, ranks) == []
    said = [e["why"] for e in read_events(trial.folder) if e["event"] in ("rescued", "restarted")]
    assert "step-00000012" in said[0] and "from step-00000012" in said[1]


def test_torch_elastic_begins_anew_when_a_rank_is_held(cli: Cli, corpus: Path, tiny: list[str], tmp_path: Path) -> None:
    """The launcher of a machine watches its ranks where several machines meet: no rank goes on by itself after this."""
    arguments = [
        "train",
        corpus,
        *tiny,
        *(f"--set={key}" for key in ("train.steps=200", "train.lanes=1", "checkpoint.every=10")),
    ]
    cli(*arguments, "--set", "run.folder=one")
    threading.Thread(target=hold_at, args=(tmp_path / "run", 1, 30), daemon=True).start()
    meet = ["--nnodes", "1", "-n", "2", "--rdzv", f"127.0.0.1:{_free_port()}", "--max-restarts", "2"]
    done = cli(
        "launch",
        *meet,
        *arguments,
        "--resume",
        "--set",
        "guard.step_seconds=4",
        "--set",
        "guard.start_seconds=20",
        "--set",
        "run.folder=run",
    )
    assert "the ranks wait for rank 1 at " in done.stderr and "rank-" not in done.stderr
    (said,) = [event["why"] for event in read_events(tmp_path / "run") if event["event"] == "hung"]
    assert (tmp_path / said.split("stacks: ")[1].split(")")[0] / "rank-00001.txt").read_text().count("most recent call first")
    one, two = ([(r["step"], r["loss"]) for r in read_metrics(tmp_path / name) if "lr" in r] for name in ("one", "run"))
    assert [step for step, _ in two] == list(range(1, 201))
    assert [loss for _, loss in two] == pytest.approx([loss for _, loss in one], abs=1e-4)


def test_rolls_back_with_other_data(recipe: Recipe, tmp_path: Path) -> None:
    """Three batches in a row that are NaN each time: back to the checkpoint before, and on behind them."""
    trial = Trial(recipe, tmp_path / "run", Fault("nan batches", 0, 14, 0.0, 0))
    assert trial.run(2) == 0
    events = [e for e in read_events(trial.folder) if e["event"] in ("update blocked", "rolled back")]
    assert [e["event"] for e in events] == ["update blocked"] * 3 + ["rolled back"]
    assert (events[-1]["to"], events[-1]["samples_from"]) == (12, 16 * 8)
    updates = curve_of(trial.folder).updates
    assert [step for step, _, _ in updates] == list(range(1, STEPS + 1))
    assert [samples for _, samples, _ in updates] == [8 * s for s in range(1, 13)] + [8 * s for s in range(17, 29)]
    assert all(loss == loss for _, _, loss in updates)


def test_a_parameter_server_rolls_back_as_data_parallel_does(recipe: Recipe, tmp_path: Path) -> None:
    fault = Fault("nan batches", 0, 14, 0.0, 0)
    alone = Trial(recipe, tmp_path / "alone", fault)
    assert alone.run(1) == 0
    changes = {
        "run": recipe.run.model_copy(update={"folder": tmp_path / "run"}),
        "parallel": ParallelConfig(mode="parameter_server"),
        "train": recipe.train.model_copy(update={"lanes": 1}),
    }
    train(recipe.model_copy(update=changes), display=Display(enabled=False), parts=parts_of(fault, 0, True))
    told = [[e for e in read_events(at) if e["event"] == "rolled back"] for at in (alone.folder, tmp_path / "run")]
    (before,), (after,) = [[{k: e[k] for k in ("step", "to", "samples_from", "rollbacks")} for e in events] for events in told]
    assert before == after
    one, two = (curve_of(at).updates for at in (alone.folder, tmp_path / "run"))
    assert [update[:2] for update in two] == [update[:2] for update in one], "steps, and samples read"
    assert [loss for *_, loss in two] == pytest.approx([loss for *_, loss in one], abs=1e-6)


def test_a_launched_worker_that_hangs_is_started_again(cli: Cli, corpus: Path, tiny: list[str], tmp_path: Path) -> None:
    sets = [
        "train.steps=300",
        "train.lanes=1",
        "guard.step_seconds=3",
        "guard.start_seconds=20",
        "parallel.mode=parameter_server",
        "run.folder=run",
    ]
    threading.Thread(target=hold_at, args=(tmp_path / "run", 1, 10), daemon=True).start()
    arguments = ["train", corpus, *tiny, *(f"--set={key}" for key in sets)]
    done = cli("launch", "-n", "2", "--max-restarts", "1", *arguments)
    (said,) = [event["why"] for event in read_events(tmp_path / "run") if event["event"] == "hung"]
    assert "worker 1 did not go on within " in said and "s of phase step" in said and said in done.stderr
    assert "worker 1 was ended by signal 9; it is started again" in done.stderr
    assert [r["step"] for r in read_metrics(tmp_path / "run") if "lr" in r] == list(range(1, 301))


def test_launched_workers_begin_anew_after_a_roll_back(cli: Cli, corpus: Path, tiny: list[str], tmp_path: Path) -> None:
    """Ordinary norms are taken for spikes here: the run goes back once, with the same batches left out as in data parallel."""
    guard = ["guard.norm_factor=1.04", "train.clip=0.01", "guard.events=2", "guard.rollbacks=1"]
    sets = ["train.steps=60", "train.lanes=1", "checkpoint.every=5", *guard]
    arguments = ["train", corpus, *tiny, *(f"--set={key}" for key in sets)]
    cli(*arguments, "--set", "run.folder=one")
    cli("launch", "-n", "2", *arguments, "--set", "run.folder=two", "--set", "parallel.mode=parameter_server")
    told = [[e["samples_from"] for e in read_events(tmp_path / n) if e["event"] == "rolled back"] for n in ("one", "two")]
    assert told[0] == told[1] and len(told[0]) == 1
    one, two = ([(r["step"], r["loss"]) for r in read_metrics(tmp_path / name) if "lr" in r] for name in ("one", "two"))
    assert [step for step, _ in two] == list(range(1, 61))
    assert [loss for _, loss in two] == pytest.approx([loss for _, loss in one], abs=1e-5)


def test_a_copy_in_a_second_place(recipe: Recipe, tmp_path: Path) -> None:
    checkpoint = recipe.checkpoint.model_copy(update={"copy_to": tmp_path / "second", "keep": 1, "keep_best": False})
    trial = Trial(lasting(recipe, 8).model_copy(update={"checkpoint": checkpoint}), tmp_path / "run", None)
    assert trial.run(1) == 0
    places = [tmp_path / "run" / "checkpoints", tmp_path / "second" / "run" / "checkpoints"]
    first, second = ([p.name for p in list_checkpoints(place)] for place in places)
    assert first == second == ["step-00000008"]
    file = next(places[0].glob("step-*/rank-00000.safetensors"))
    file.write_bytes(file.read_bytes()[:-1])
    found, wrong = newest_whole(places)
    assert found == places[1] / "step-00000008" and len(wrong) == 1 and "rank-00000.safetensors: damaged" in wrong[0]
    assert Checkpoint(found).step == 8
