"""Tuning without training: spaces, choices from noisy curves, the noise scale, and searches whose trials are made up."""

from __future__ import annotations

import math
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from zenspeed.config import InputError, load
from zenspeed.parallel.mesh import world
from zenspeed.recipe import Recipe
from zenspeed.tasks.language import LanguageTask
from zenspeed.tune import micro_batch
from zenspeed.tune import search as searching
from zenspeed.tune.layouts import Option, Tried, candidates, choice_of, pick_few
from zenspeed.tune.micro_batch import largest_that_pays, words
from zenspeed.tune.noise import critical_batch, fastest_batch
from zenspeed.tune.rate import choose, ended, factors
from zenspeed.tune.search import Interrupted, Metric, Plan, best_of, importances, open_study, search, sets_of
from zenspeed.tune.space import Dimension, check, parse
from zenspeed.tune.trial import Outcome, Place, metric_of, trial_recipe
from zenspeed.tune.tune import Options, Tuning
from zenspeed.tune.verify import judge


def make(sets: Any) -> Recipe:
    return load(Recipe, None, ["train.steps=18", *sets])


# The space ------------------------------------------------------------------------------------------------------------


def test_spaces() -> None:
    rate, layers, name, decay = parse(
        ["optim.lr=1e-4..1e-1", "model.layers=2..8", "optim.name=[adamw, muon]", "optim.weight_decay=0..0.1"]
    )
    assert (rate.log, rate.whole, layers.log, layers.whole, decay.log) == (True, False, False, True, False)
    assert name.choices == ("adamw", "muon")
    check([rate, layers, name, decay], make, [], ["loss"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("optim.lr", r"expected KEY=LOW..HIGH or KEY=\[A, B\]"),
        ("optim.lr=0.1..0.001", "is empty: 0.1 is not below 0.001; write the lower first"),
        ("optim.name=[muon, muon]", r"1 value\(s\), nothing to choose from; give two, or --set optim.name="),
        ("optim.lr=a..b", "expected optim.lr=LOW..HIGH"),
        ("optim.learning_rate=1e-3..1e-1", r"optim.learning_rate: unknown key; did you mean optim.lr\?"),
        ("model.layers=0..4", "--search model.layers=0: model.layers: 0 is not valid"),
        ("optim.name=[adam, muon]", "--search optim.name=adam"),
        ("optim.lr=1e-4..inf", "has no end; give two numbers"),
        ("optim.lr=nan..1", "is empty: nan is not below 1"),
        ("run.seed=1..9", "is not to be chosen: it names the run or is its luck"),
        ("data.validation=0.1..0.2", "changes what is measured"),
        ("train.batch_size=[4, 8]", "contradicts --set train.batch_size, which gives it one value"),
        ("tokenizer.vocab_size=300..600", "not comparable between vocabularies; take --metric bits_per_byte"),
    ],
)
def test_a_space_that_cannot_be_is_refused(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        check(parse([text]), make, ["train.batch_size=8"], ["loss"])


def test_a_folder_that_cannot_be_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"--folder .*file: cannot be written in: File exists; give another"):
        Tuning(make, Options(tmp_path / "file"), "recipe", print)
    for content in ("{", "[]", "{}"):
        (tmp_path / "tune.json").write_text(content)
        with pytest.raises(InputError, match=r"tune.json: is no record of a tuning .* give --folder NEW"):
            Tuning(make, Options(tmp_path), "recipe", print)


def test_an_empty_space_and_a_key_twice() -> None:
    with pytest.raises(InputError, match="the search space is empty; give --search"):
        check([], make, [], ["loss"])
    with pytest.raises(InputError, match=r"--search optim.lr: given twice; keep one"):
        parse(["optim.lr=1e-3..1e-1", "optim.lr=[1, 2]"])


def test_a_metric_that_is_not_there_is_answered_with_those_that_are() -> None:
    with pytest.raises(InputError, match=r"--metric acuracy: .* nearest first: accuracy, .*loss"):
        metric_of("acuracy", ["loss", "f1_macro", "accuracy"])


# Rates, batch, verdict ------------------------------------------------------------------------------------------------


def curves(best: float, noise: float, seeds: int) -> list[list[float]]:
    """Losses that fall up to the rate `best`, then climb."""
    rng, rates = np.random.default_rng(0), factors(80)
    falls = 6 - 2 / (1 + np.exp(-2 * np.log(rates / (best / 8))))
    return [list(falls + 3 * np.maximum(0, np.log(rates / best)) ** 2 + noise * rng.standard_normal(80)) for _ in range(seeds)]


@pytest.mark.parametrize("best", [0.3, 1.0, 10.0])
def test_the_rate_is_one_at_which_the_loss_still_falls(best: float) -> None:
    found = choose(factors(80), curves(best, 0.05, 4))
    assert found.found
    assert best / 10 < found.factor <= best
    assert found.low <= found.factor <= found.high < 10 * found.low


def test_one_lucky_minimum_does_not_decide() -> None:
    several = curves(1.0, 0.05, 4)
    before = choose(factors(80), several).factor
    several[0][75] = 0.0  # at 60 times the recipe's rate, one loss of one seed
    assert choose(factors(80), several).factor == pytest.approx(before, rel=0.5)


def test_noise_alone_gives_no_rate() -> None:
    rng = np.random.default_rng(1)
    assert not choose(factors(80), [list(5 + 0.01 * rng.standard_normal(80)) for _ in range(3)]).found
    assert ended([5.0, 4.0, math.nan])
    assert not ended([5.0, 4.0, 4.5])


def test_the_noise_scale_of_gradients_that_are_known() -> None:
    """|G|² = 4 and a noise of trace 400: the critical batch is 100 sequences."""
    rng, dims = np.random.default_rng(0), 1000
    truth = np.full(dims, 2 / math.sqrt(dims))
    small, big = [], []
    for _ in range(60):
        parts = truth + rng.standard_normal((8, dims)) * math.sqrt(400 / dims / 4)  # micro-batches of 4
        small.append(float((parts**2).sum(1).mean()))
        big.append(float((parts.mean(0) ** 2).sum()))
    found = critical_batch(small, big, 4, 32)
    assert found.critical == pytest.approx(100, rel=0.15)
    assert found.low is not None and found.high is not None
    assert found.low < 100 < found.high
    assert critical_batch([1.0, 1.0], [0.01, 0.01], 1, 100).critical is None


def test_the_batch_that_is_soonest() -> None:
    assert fastest_batch(100, update_seconds=0.04, sequence_seconds=0.01, multiple=1) == 16  # √400 = 20
    assert fastest_batch(100, update_seconds=1e-9, sequence_seconds=1.0, multiple=4) == 4


def test_the_verdict_over_fresh_seeds() -> None:
    clear = judge([3.0, 3.1, 3.05], [3.5, 3.62, 3.54], seen=2.9, maximize=False)
    assert (clear.better, clear.certain) == (True, True)
    assert clear.optimism == pytest.approx(0.15)
    assert "certain at 95 %; optimism of the search +0.15" in clear.words("loss").replace(")", "")
    luck = judge([3.0, 3.6, 3.2], [3.1, 3.3, 3.3], seen=2.9, maximize=False)
    assert (luck.better, luck.certain) == (False, False)
    assert "the recipe's own values stay" in luck.words("loss")
    assert judge([0.8, 0.81], [0.7, 0.71], seen=0.85, maximize=True).optimism == pytest.approx(0.045)


# Layouts --------------------------------------------------------------------------------------------------------------


def test_layouts_are_ranked_and_one_that_dies_is_a_result() -> None:
    recipe = make(["train.batch_size=8", "model.layers=2", "model.width=64", "tokenizer.vocab_size=512"])
    ranked = candidates(recipe, None)
    assert {option.micro_batch for option, _ in ranked} == {1, 2, 4, 8}
    assert [speed for _, speed in ranked] == sorted((speed for _, speed in ranked), reverse=True)
    own = Option(1, None, 1, False, False)
    few = pick_few(ranked, own, 4)
    assert few[0][0] == own
    assert len(few) == 5

    def tried(micro: int, speed: float, died: str | None = None) -> Tried:
        return Tried(own._replace(micro_batch=micro), None, Outcome({} if died else {"tokens_per_second": speed}, 1.0, died))

    assert choice_of([tried(1, 100), tried(2, 0, "code -9: killed"), tried(4, 150)]).option.micro_batch == 4
    assert choice_of([tried(1, 100), tried(2, 102)]).option.micro_batch == 1  # within the noise
    assert choice_of([tried(1, 0, "code 1"), tried(2, 50)]).option.micro_batch == 2


@pytest.mark.parametrize(
    ("speeds", "taken"),
    [
        ([(1, 10.0), (2, 20.0), (4, 30.0), (8, 30.5), (16, 31.5)], 16),  # 5 % over what was taken, in two doublings
        ([(1, 10.0), (2, 20.0), (4, 20.5), (8, 20.4)], 2),
        ([(1, 10.0), (2, 9.0), (4, 14.0)], 4),  # one slow measurement in between ends nothing
        ([(1, 10.0), (2, 20.0), (4, None)], 2),
        ([(1, None)], None),
    ],
)
def test_the_micro_batch_is_the_largest_that_pays(speeds: list[tuple[int, float | None]], taken: int | None) -> None:
    assert largest_that_pays(speeds) == taken
    said = words(speeds, taken)
    assert (f"micro-batch: {taken}, the largest that is 3% faster" in said) if taken else ("not even one" in said)
    assert ("too little memory" in said) == any(speed is None for _, speed in speeds)


def test_micro_batches_are_measured_up_to_the_share_of_a_rank_and_to_what_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n\n".join(f"document {i} of {i * i} words, of which {i % 7} are new" for i in range(300)))
    keys = [
        f"data.source={corpus}", f"data.cache={tmp_path / 'cache'}",
        "model.layers=1", "model.width=32", "model.heads=1", "model.context=16",
        "tokenizer.vocab_size=300", "train.batch_size=8", "train.precision=fp32",
    ]  # fmt: skip
    with world() as here:
        speeds, resolved = micro_batch._measure(here, make(keys))
        assert [size for size, speed in speeds if speed and speed > 0] == [1, 2, 4, 8] and resolved in (4, 8)
        loss = LanguageTask.loss

        def no_room(task: LanguageTask, module: Any, batch: Any) -> Any:
            if len(batch.targets) > 2:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
            return loss(task, module, batch)

        monkeypatch.setattr(LanguageTask, "loss", no_room)
        assert micro_batch._measure(here, make(keys))[0][2] == (4, None)


# Searches -------------------------------------------------------------------------------------------------------------


class Made:
    """In the place of a trial's processes: its loss is (log10 lr + 2)² + 1, there at once."""

    begun: ClassVar[list[Recipe]] = []
    stopped: ClassVar[int] = 0
    interrupt_at: ClassVar[int | None] = None

    def __init__(self, recipe: Recipe, folder: Path, place: Place) -> None:
        Made.begun.append(recipe)
        self.recipe, self.looks = recipe, 0
        self.loss = (math.log10(recipe.optim.lr) + 2) ** 2 + 1

    def validations(self, metric: str) -> list[float]:
        return [self.loss + 5 / (i + 1) for i in range(self.looks)]

    def poll(self) -> Outcome | None:
        self.looks += 1
        if Made.interrupt_at == len(Made.begun):
            raise KeyboardInterrupt
        if self.looks < 9 and self.recipe.model.layers != 3:
            return None
        if self.recipe.model.layers == 3:
            return Outcome({}, 1.0, "code 1: MemoryError")
        return Outcome({"loss": self.loss, "seconds": float(self.recipe.model.layers)}, 1.0)

    def stop(self) -> None:
        Made.stopped += 1


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> type[Made]:
    Made.begun, Made.stopped, Made.interrupt_at = [], 0, None
    monkeypatch.setattr(searching, "Running", Made)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    return Made


LOSS, SECONDS = Metric("loss", False), Metric("seconds", False)
RATE = Dimension("optim.lr", (), 1e-4, 1.0)
Say = Callable[[str], None]


def plan(trials: int = 14, dimensions: tuple[Dimension, ...] = (RATE,), metrics: tuple[Metric, ...] = (LOSS,)) -> Plan:
    return Plan(list(dimensions), list(metrics), trials, None, None, Place(), 2, 1)


def quiet(line: str) -> None:
    pass


def states(study: Any) -> list[str]:
    return [trial.state.name for trial in study.trials]


def test_a_search_finds_prunes_and_remembers(made: type[Made], tmp_path: Path) -> None:
    study = open_study(tmp_path, plan(), "recipe")
    study.enqueue_trial({"optim.lr": 1.0})
    search(study, plan(), make, tmp_path, quiet)
    best = best_of(study)
    assert best is not None
    assert abs(math.log10(best.params["optim.lr"]) + 2) < 1
    assert made.begun[0].optim.lr == 1.0
    assert made.begun[0].evaluate.every == 2  # 18 steps, 9 looks
    assert "PRUNED" in states(study)
    assert made.stopped == states(study).count("PRUNED")
    assert importances(study) == {"optim.lr": 1.0}
    rounded = float(f"{best.params['optim.lr']:.3g}")
    assert sets_of(best, [RATE]) == [f"optim.lr={rounded}"]
    again = open_study(tmp_path, plan(), "recipe")
    search(again, plan(), make, tmp_path, quiet)
    assert len(again.trials) == len(study.trials)


def test_trials_that_die_are_data_points(made: type[Made], tmp_path: Path) -> None:
    said: list[str] = []
    space = (RATE, Dimension("model.layers", (), 2, 5, True))
    study = open_study(tmp_path, plan(7, space), "recipe")
    search(study, plan(7, space), make, tmp_path, said.append)
    assert "FAIL" in states(study)
    assert "COMPLETE" in states(study)
    assert len(study.trials) == 7
    assert any("died, code 1: MemoryError" in line for line in said)


def test_values_that_do_not_go_together_are_a_trial_that_died(made: type[Made], tmp_path: Path) -> None:
    space = (Dimension("model.width", (64, 96)), Dimension("model.heads", (4, 5, 3)))
    study = open_study(tmp_path, plan(8, space), "recipe")
    search(study, plan(8, space), make, tmp_path, quiet)
    died = [t.user_attrs["died"] for t in study.trials if "died" in t.user_attrs]
    assert died
    assert "not divisible by heads" in died[0]


def test_where_every_trial_dies_the_search_says_so(made: type[Made], tmp_path: Path) -> None:
    study = open_study(tmp_path, plan(), "recipe")
    with pytest.raises(InputError, match=r"the last 6 trials died, the last of them so: code 1: MemoryError; narrow"):
        search(study, plan(), lambda sets: make([*sets, "model.layers=3"]), tmp_path, quiet)


def test_ctrl_c_leaves_a_search_that_goes_on(made: type[Made], tmp_path: Path) -> None:
    made.interrupt_at = 5
    study = open_study(tmp_path, plan(8), "recipe")
    with pytest.raises(Interrupted):
        search(study, plan(8), make, tmp_path, quiet)
    assert best_of(study) is not None
    assert "RUNNING" not in states(study)
    lost = [recipe.optim.lr for recipe in made.begun[3:5]]
    made.interrupt_at = None
    again = open_study(tmp_path, plan(8), "recipe")
    search(again, plan(8), make, tmp_path, quiet)
    assert sum(state in ("COMPLETE", "PRUNED") for state in states(again)) == 8
    assert {recipe.optim.lr for recipe in made.begun[5:7]} >= set(lost) - {r.optim.lr for r in made.begun[:3]}


def test_a_trial_of_a_process_that_is_gone_is_begun_again(made: type[Made], tmp_path: Path) -> None:
    study = open_study(tmp_path, plan(2), "recipe")
    trial = study.ask()
    trial.suggest_float("optim.lr", 1e-4, 1.0, log=True)
    trial.set_user_attr("pid", 2**22 + 1)  # killed with -9
    again = open_study(tmp_path, plan(2), "recipe")
    search(again, plan(2), make, tmp_path, quiet)
    assert made.begun[0].optim.lr == pytest.approx(trial.params["optim.lr"], rel=0.01)


def test_several_metrics_give_a_front(made: type[Made], tmp_path: Path) -> None:
    both = plan(8, (RATE, Dimension("model.layers", (1, 2, 4))), (LOSS, SECONDS))
    study = open_study(tmp_path, both, "recipe")
    search(study, both, make, tmp_path, quiet)
    front = [tuple(trial.values) for trial in study.best_trials]
    assert best_of(study).values[0] == min(loss for loss, _ in front)
    assert not any(a[0] <= b[0] and a[1] <= b[1] and a != b for a in front for b in front)


def test_a_metric_that_trials_do_not_give(made: type[Made], tmp_path: Path) -> None:
    wrong = plan(2, (RATE,), (Metric("los", False),))
    study = open_study(tmp_path, wrong, "recipe")
    with pytest.raises(InputError, match=r"--metric los: .*nearest first: loss, seconds"):
        search(study, wrong, make, tmp_path, quiet)


def test_a_storage_that_is_locked_or_broken(tmp_path: Path) -> None:
    open_study(tmp_path, plan(), "recipe")
    with sqlite3.connect(tmp_path / "study.db", isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(InputError, match=r"study\.db: is locked by another program; end it and repeat the command"):
            open_study(tmp_path, plan(), "recipe", lock_seconds=0.1)
        other.execute("ROLLBACK")
    with pytest.raises(InputError, match=r"holds another search .*; give another --folder"):
        open_study(tmp_path, plan(dimensions=(RATE._replace(low=1e-3),)), "recipe")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "study.db").write_text("no database, but long enough to look like one" * 30)
    with pytest.raises(InputError, match=r"cannot be used as a study: .*give another --folder"):
        open_study(tmp_path / "b", plan(), "recipe")


def test_what_a_trial_leaves_out(tmp_path: Path) -> None:
    short = trial_recipe(make([]), tmp_path, steps=7, evaluations=0)
    assert (short.train.steps, short.evaluate.every, short.sample.prompts, short.log.tensorboard) == (7, 0, [], False)
    assert short.run.folder == tmp_path / "run"
