"""Search over keys of a recipe with Optuna: TPE proposes, Hyperband ends what does not look good, SQLite remembers.

Every trial is trained in processes of its own; one that dies is a trial without a value, and the search goes on. All is in
`study.db` of the folder, so a search that was stopped goes on, and several `zenspeed tune` on one folder share the work.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from zenspeed.errors import InputError
from zenspeed.tune.space import Dimension, Make, assign
from zenspeed.tune.trial import Outcome, Place, Running, metric_of, trial_recipe

NAME = "zenspeed"
EVALUATIONS = 9
"""In a trial, of which Hyperband looks at each."""


MOST_DIED = 6
"""Trials in a row, after which the search space is taken to be wrong."""


class Metric(NamedTuple):
    """What is to be good."""

    name: str
    maximize: bool


class Plan(NamedTuple):
    """How to search."""

    dimensions: list[Dimension]
    metrics: list[Metric]
    trials: int | None
    deadline: float | None
    """time.monotonic() at which no trial is begun any more."""
    steps: int | None
    """Updates of a trial; None: as the recipe says."""
    place: Place
    jobs: int
    seed: int


class Interrupted(Exception):
    """Ctrl-C; what was found so far stands."""


def open_study(folder: Path, plan: Plan, recipe_text: str, lock_seconds: float = 20.0) -> Any:
    """The study of a folder, new or as it was left.

    Raises:
        InputError: another search lies there, or its storage is locked or broken.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    folder.mkdir(parents=True, exist_ok=True)
    database = folder / "study.db"
    what = json.dumps([recipe_text, [str(d) for d in plan.dimensions], [list(m) for m in plan.metrics], plan.steps])
    digest = hashlib.sha256(what.encode()).hexdigest()
    with storage_errors(database):
        storage = optuna.storages.RDBStorage(f"sqlite:///{database}", engine_kwargs={"connect_args": {"timeout": lock_seconds}})
        pruner = optuna.pruners.HyperbandPruner(min_resource=1, max_resource=EVALUATIONS, reduction_factor=3)
        study = optuna.create_study(
            storage=storage, study_name=NAME, load_if_exists=True,
            pruner=pruner if len(plan.metrics) == 1 else optuna.pruners.NopPruner(),
            directions=["maximize" if m.maximize else "minimize" for m in plan.metrics],
        )  # fmt: skip
        begun, at_random = len(study.get_trials(deepcopy=False)), min(10, max(3, (plan.trials or 10) // 3))
        study.sampler = optuna.samplers.TPESampler(seed=plan.seed + begun, n_startup_trials=at_random)
        if study.user_attrs.get("search", digest) != digest:
            raise InputError(f"{folder}: holds another search (other recipe, space, metrics or steps); give another --folder")
        study.set_user_attr("search", digest)
        _forget_lost(study)
    return study


@contextmanager
def storage_errors(database: Path) -> Iterator[None]:
    """Optuna's and SQLite's errors as one that says what to do."""
    import sqlite3

    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (optuna.exceptions.StorageInternalError, SQLAlchemyError, sqlite3.Error) as error:
        said = str(error.__cause__ or error)
        if "locked" in said:
            raise InputError(
                f"{database}: is locked by another program; end it and repeat the command, or give another --folder"
            ) from None
        raise InputError(f"{database}: cannot be used as a study: {said.splitlines()[0]}; give another --folder") from None


def _forget_lost(study: Any) -> None:
    """Trials of a process that is gone are begun again, with the same values."""
    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if not psutil.pid_exists(trial.user_attrs.get("pid", -1)):
            study.tell(trial.number, state=TrialState.FAIL)
            if trial.params:
                study.enqueue_trial(trial.params)


def search(study: Any, plan: Plan, make: Make, folder: Path, say: Callable[[str], None]) -> None:
    """Runs trials until there are enough or time is over.

    Raises:
        Interrupted: Ctrl-C; trials under way will be begun again when the search goes on.
        InputError: a metric that no trial gives.
    """
    running: dict[int, tuple[Any, Running, int]] = {}
    took: list[float] = []
    try:
        while True:
            while len(running) < plan.jobs and _more(study, plan, took):
                _begin(study, plan, make, folder, running, say)
            if not running:
                return
            for number, (trial, process, seen) in list(running.items()):
                outcome = process.poll()
                if outcome is None:
                    running[number] = (trial, process, _look(trial, process, plan, seen))
                    if len(plan.metrics) == 1 and running[number][2] > seen and trial.should_prune():
                        process.stop()
                        del running[number]
                        study.tell(trial, state=_state("PRUNED"))
                        say(f"trial {number}: ended early, {_words(trial.params)}")
                    continue
                del running[number]
                took.append(outcome.seconds)
                _end(study, trial, outcome, plan, say)
            time.sleep(0.05)
    except KeyboardInterrupt:
        raise Interrupted from None
    finally:
        for trial, process, _ in running.values():
            process.stop()
            _put_back(study, trial)


def _put_back(study: Any, trial: Any) -> None:
    """A trial that did not come to its end through no fault of its own is begun again later."""
    study.tell(trial, state=_state("FAIL"))
    study.enqueue_trial(trial.params)


def _more(study: Any, plan: Plan, took: Sequence[float]) -> bool:
    counted = ("COMPLETE", "PRUNED", "RUNNING")
    trials = study.get_trials(deepcopy=False)
    last = [t.user_attrs.get("died") for t in trials if t.state.name in ("COMPLETE", "PRUNED", "FAIL")][-MOST_DIED:]
    if len(last) == MOST_DIED and all(last):
        raise InputError(f"the last {MOST_DIED} trials died, the last of them so: {last[-1]}; narrow the search space")
    died = sum(t.state.name == "FAIL" and "died" in t.user_attrs for t in trials)
    if plan.trials is not None and sum(t.state.name in counted for t in trials) + died >= plan.trials:
        return False
    if plan.deadline is not None:
        expected = max(took[-5:], default=0.0)
        return time.monotonic() + expected < plan.deadline or not trials
    return True


def _begin(
    study: Any, plan: Plan, make: Make, folder: Path, running: dict[int, tuple[Any, Running, int]], say: Callable[[str], None]
) -> None:
    trial = study.ask()
    trial.set_user_attr("pid", os.getpid())
    sets = [assign(d.key, _suggest(trial, d)) for d in plan.dimensions]
    place = folder / f"trial-{trial.number}"
    try:
        recipe = trial_recipe(make(sets), place, steps=plan.steps, evaluations=EVALUATIONS if len(plan.metrics) == 1 else 0)
    except InputError as error:  # values that are right by themselves, and not together
        _end(study, trial, Outcome({}, 0.0, str(error)), plan, say)
        return
    try:
        running[trial.number] = (trial, Running(recipe, place, plan.place), 0)
    except BaseException:  # Ctrl-C between the two as well
        _put_back(study, trial)
        raise


def _suggest(trial: Any, d: Dimension) -> Any:
    if d.choices:  # as JSON, for Optuna stores plain values only
        return json.loads(trial.suggest_categorical(d.key, [json.dumps(c) for c in d.choices]))
    if d.whole:
        return trial.suggest_int(d.key, int(d.low), int(d.high), log=d.log)
    return _rounded(trial.suggest_float(d.key, d.low, d.high, log=d.log))


def _rounded(value: Any) -> Any:
    """To three digits: nobody wants to read more, and no rate is known better."""
    return float(f"{value:.3g}") if isinstance(value, float) else value


def _look(trial: Any, process: Running, plan: Plan, seen: int) -> int:
    """Tells the pruner of evaluations since the last look."""
    if len(plan.metrics) > 1:
        return 0
    values = process.validations(plan.metrics[0].name)
    for number in range(seen, min(len(values), EVALUATIONS)):
        trial.report(values[number], number + 1)
    return len(values)


def _end(study: Any, trial: Any, outcome: Outcome, plan: Plan, say: Callable[[str], None]) -> None:
    trial.set_user_attr("seconds", outcome.seconds)
    if outcome.died is None:
        for metric in plan.metrics:
            metric_of(metric.name, list(outcome.values))
        trial.set_user_attr("values", outcome.values)
        values = [outcome.values[m.name] for m in plan.metrics]
        study.tell(trial, values)
        shown = ", ".join(f"{m.name} {v:.4g}" for m, v in zip(plan.metrics, values, strict=True))
        say(f"trial {trial.number}: {shown}, {_words(trial.params)}")
        return
    trial.set_user_attr("died", outcome.died)
    study.tell(trial, state=_state("FAIL"))
    say(f"trial {trial.number}: died, {outcome.died}, {_words(trial.params)}")


def _state(name: str) -> Any:
    from optuna.trial import TrialState

    return TrialState[name]


def _words(params: dict[str, Any]) -> str:
    return " ".join(f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in params.items())


def sets_of(trial: Any, dimensions: Sequence[Dimension]) -> list[str]:
    """The values of a trial as `--set` takes them."""
    return [assign(d.key, json.loads(trial.params[d.key]) if d.choices else _rounded(trial.params[d.key])) for d in dimensions]


def best_of(study: Any) -> Any | None:
    """The best trial; of several metrics, that of the first metric on the front. None: no trial ended."""
    from optuna.trial import TrialState

    if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        return None
    if len(study.directions) == 1:
        return study.best_trial
    sign = -1 if study.directions[0].name == "MAXIMIZE" else 1
    return min(study.best_trials, key=lambda t: sign * t.values[0])


def importances(study: Any) -> dict[str, float]:
    """Each key's share in how well trials did, of the first metric (PED-ANOVA, Watanabe et al. 2304.10255); empty with too
    few trials."""
    import optuna

    complete = study.get_trials(deepcopy=False, states=(_state("COMPLETE"),))
    if len(complete) < 6 or len({t.values[0] for t in complete}) < 3:
        return {}
    target = None if len(study.directions) == 1 else lambda t: t.values[0]
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    return dict(optuna.importance.get_param_importances(study, evaluator=evaluator, target=target))
