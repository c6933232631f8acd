"""A recipe in, a better recipe out.

    one update ── layouts ── range test, noise scale ── search ── fresh seeds ── tuned.yaml, tune.json, tune.html
    (it trains,    (speed)    (rates, batch)            (Optuna)   (is it so?)
     its figures)

Each part's result is written into tune.json when it is there: a tuning that was stopped goes on behind it.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zenspeed.config import dump, load, write_atomically
from zenspeed.errors import InputError
from zenspeed.machine import usable_cores
from zenspeed.recipe import Recipe
from zenspeed.tune import page
from zenspeed.tune.layouts import choice_of, try_layouts
from zenspeed.tune.measure import measure
from zenspeed.tune.micro_batch import largest_that_pays, measure_micro_batches
from zenspeed.tune.micro_batch import words as micro_batch_words
from zenspeed.tune.noise import fastest_batch
from zenspeed.tune.rate import factors
from zenspeed.tune.search import Interrupted, Metric, Plan, best_of, importances, open_study, search, sets_of
from zenspeed.tune.search import storage_errors as storage_errors
from zenspeed.tune.space import Dimension, Make, assign, check, parse
from zenspeed.tune.trial import MEASURED, Place, Running, higher_is_better, metric_of, trial_recipe
from zenspeed.tune.verify import verify

PARTS = ("layout", "rate", "search", "verify")
RANGE_STEPS = 80
COMPILE_MINUTES = 10.0
"""Of --minutes, from which on torch.compile is tried as well."""
AROUND = 4.0
"""A search of rates goes from a fourth to four times what the range test chose."""


class Options(NamedTuple):
    """How to tune."""

    folder: Path
    searches: Sequence[str] = ()
    sets: Sequence[str] = ()
    """What the user has set beside the recipe."""
    metrics: Sequence[str] = ("loss",)
    """Names, with `:max` or `:min` where the direction is not plain."""
    trials: int | None = None
    minutes: float | None = None
    steps: int | None = None
    ranks: int | None = None
    jobs: int | None = None
    seeds: int = 3
    parts: Sequence[str] = PARTS


def _read_record(path: Path) -> dict[str, Any]:
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        before = str(error)
    if not isinstance(before, dict) or before.get("schema") != "zenspeed.tune":
        raise InputError(f"{path}: is no record of a tuning that could be gone on with; take it away, or give --folder NEW")
    return before


class Tuning:
    """One tuning, and what it has found so far (`record`, which is tune.json)."""

    def __init__(self, make: Make, options: Options, source: str, say: Callable[[str], None]) -> None:
        self.make, self.options, self.say = make, options, say
        self.started, self.folder = time.monotonic(), options.folder
        self.recipe = make([])
        unknown = [part for part in options.parts if part not in PARTS]
        if unknown:
            raise InputError(f"--only {unknown[0]}: no such part; parts are {', '.join(PARTS)}")
        self.dimensions = parse(options.searches)
        if self.dimensions:
            check(self.dimensions, make, options.sets, [m.partition(":")[0] for m in options.metrics])
        digest = hashlib.sha256(dump(self.recipe).encode()).hexdigest()
        self.path = self.folder / "tune.json"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--folder {self.folder}: cannot be written in: {error.strerror}; give another") from None
        self.record: dict[str, Any] = {
            "schema": "zenspeed.tune",
            "version": 1,
            "source": source,
            "recipe": digest,
            "seconds": 0.0,
        }
        if self.path.exists():
            before = _read_record(self.path)
            if before.get("recipe") != digest:
                raise InputError(f"{self.folder}: holds the tuning of another recipe; give another: --folder NEW")
            self.record = before
        self.spent = float(self.record.get("seconds", 0.0))
        self.record |= {"cores": usable_cores(), "metrics": [m.partition(":")[0] for m in options.metrics]}
        self.chosen: list[str] = []
        """`key=value` of every change, in the order in which they were chosen."""
        self.ranks = options.ranks or 1

    def save(self) -> None:
        self.record["seconds"] = self.spent + time.monotonic() - self.started
        write_atomically(self.path, json.dumps(self.record, ensure_ascii=False, indent=1))

    def seconds_left(self) -> float | None:
        """Of --minutes."""
        return None if self.options.minutes is None else 60 * self.options.minutes - (time.monotonic() - self.started)

    @property
    def place(self) -> Place:
        return Place(self.ranks, max(1, usable_cores() // (self.ranks * self.jobs)))

    @property
    def jobs(self) -> int:
        return self.options.jobs or max(1, min(2, usable_cores() // self.ranks))

    def with_chosen(self, sets: Sequence[str]) -> Recipe:
        return self.make([*self.chosen, *sets])

    # Parts ------------------------------------------------------------------------------------------------------------

    def probe(self) -> list[Metric]:
        """One update of the recipe: it trains, and these are the figures that it gives."""
        if "probe" not in self.record:
            where = self.folder / "probe"
            outcome = Running(trial_recipe(self.recipe, where, steps=1, evaluations=0), where, self.place).wait()
            if outcome.died:
                raise InputError(f"the recipe itself does not train: {outcome.died}")
            self.record["probe"] = {"figures": sorted(outcome.values), "seconds": outcome.seconds}
            self.save()
        metrics = []
        for text in self.options.metrics:
            name, _, way = text.partition(":")
            metric_of(name, self.record["probe"]["figures"])
            if way not in ("", "max", "min"):
                raise InputError(f"--metric {text}: write {name}:max or {name}:min")
            metrics.append(Metric(name, way == "max" if way else higher_is_better(name)))
        return metrics

    def layout(self) -> None:
        if "layout" not in self.record:
            long = (self.options.minutes or 0.0) >= COMPILE_MINUTES
            tried = try_layouts(self.recipe, self.folder, self.options.ranks, 4, self.say, compiled=long)
            best, own = choice_of(tried), tried[0]
            changes = [] if best is own else [
                assign(f"{section}.{key}", value)
                for section, values in best.option.changes().items()
                for key, value in values.items()
                if getattr(getattr(self.recipe, section), key) != value
            ]  # fmt: skip
            gain = best.speed / own.speed if own.speed else float("inf")
            died = sum(t.outcome.died is not None for t in tried)
            what = f"{best.option}, {gain:.2f} × the speed of the recipe as it is" if best is not own else "none pays"
            self.record["layout"] = {
                "said": f"layout: {what} ({len(tried)} tried, {died} died, {sum(t.outcome.seconds for t in tried):.0f} s)",
                "ranks": best.option.ranks,
                "sets": changes,
                "tried": [
                    {
                        "layout": str(t.option), "planned": t.planned, "speed": t.speed, "died": t.outcome.died or "",
                        "gigabytes": t.outcome.values.get("memory_bytes", 0.0) / 1e9,
                    }
                    for t in tried
                ],
            }  # fmt: skip
            self.say(self.record["layout"]["said"])
            self.save()
        self.ranks = int(self.record["layout"]["ranks"])
        self.chosen += self.record["layout"]["sets"]
        self.micro_batch()

    def micro_batch(self) -> None:
        """The largest that pays, in the layout that was chosen; a task whose loss depends on it keeps its own."""
        if "micro_batch" not in self.record:
            recipe = trial_recipe(self.with_chosen([]), self.folder / "micro-batch")
            found = measure_micro_batches(recipe, Place(self.ranks, max(1, usable_cores() // self.ranks)))
            if isinstance(found, str):
                self.record["micro_batch"] = {"said": f"micro-batch: measuring it {found}; it stays", "sets": []}
            elif not found.speeds:
                said = "micro-batch: stays: the loss depends on it, or the batch has no equal shares"
                self.record["micro_batch"] = {"said": said, "sets": []}
            else:
                taken = largest_that_pays(found.speeds)
                sets = [] if taken in (None, found.resolved) else [assign("train.micro_batch_size", taken)]
                said = micro_batch_words(found.speeds, taken)
                self.record["micro_batch"] = {"said": said, "sets": sets, "speeds": found.speeds}
            self.say(self.record["micro_batch"]["said"])
            self.save()
        self.chosen += self.record["micro_batch"]["sets"]

    def rates(self) -> None:
        """Range test and noise scale; what they say of rates is where the search begins, and of the batch what is taken."""
        if "rate" not in self.record:
            recipe = trial_recipe(self.with_chosen([]), self.folder / "measure")
            place = Place(self.ranks, max(1, usable_cores() // self.ranks))
            found = measure(recipe, self.folder / "measure", place, seeds=3, steps=RANGE_STEPS)
            if isinstance(found, str):
                said = f"rates: the measurement died ({found}); the search begins at the recipe's"
                self.record |= {"rate": {"said": said, "factor": 1.0, "curves": []}}
            else:
                self._record_rates(recipe, found)
            self.say(self.record["rate"]["said"])
            self.save()
        if noise := self.record.get("noise"):
            self.chosen += noise["sets"]

    def _record_rates(self, recipe: Recipe, found: Any) -> None:
        rate, noise, lr, batch = found.rate, found.noise, recipe.optim.lr, recipe.train.batch_size
        if rate.found:
            low, high = lr * rate.low, lr * rate.high
            said = f"rates: loss falls for certain up to optim.lr={lr * rate.factor:.2g} ({low:.2g} … {high:.2g} "
            said += f"by seeds left out), {rate.factor:.2g} × the recipe's"
        else:
            said = "rates: no rate makes the loss fall for certain in so few updates; the search begins at the recipe's"
        self.record["rate"] = {
            "said": said, "factor": rate.factor, "curves": found.curves, "seconds": found.seconds,
            "log10_rates": np.log10(lr * factors(RANGE_STEPS)).tolist(), "update_seconds": found.update_seconds,
            "sequence_seconds": found.sequence_seconds,
        }  # fmt: skip
        sets: list[str] = []
        if noise.critical is None:
            said = "batch: the noise of gradients hides their size; the batch stays"
        else:
            best = fastest_batch(noise.critical, found.update_seconds, found.sequence_seconds, self.ranks)
            interval = "" if noise.low is None else f" (95 %: {noise.low:.3g} … {noise.high:.3g})"
            said = f"batch: critical batch {noise.critical:.3g} sequences{interval}; soonest at a loss with about {best}"
            if recipe.train.steps is not None or self.options.steps is not None:
                said += f"; train.batch_size stays {batch}, since steps are given: another would be another amount of data"
            elif not batch / 2 < best < batch * 2:
                sets = [assign("train.batch_size", best)]
                if recipe.train.micro_batch_size is not None and best // self.ranks % recipe.train.micro_batch_size:
                    sets.append(assign("train.micro_batch_size", None))
        self.record["noise"] = {"said": said, "sets": sets, **noise._asdict()}
        self.say(said)

    def space(self) -> list[Dimension]:
        """What is searched: as asked, else the rates around what the range test chose."""
        if self.dimensions:
            return self.dimensions
        optim, factor = self.recipe.optim, float(self.record.get("rate", {}).get("factor", 1.0))
        keys = {"lr": optim.lr} | ({"adam_lr": optim.adam_lr} if optim.name == "muon" else {})
        return [Dimension(f"optim.{key}", (), lr * factor / AROUND, lr * factor * AROUND) for key, lr in keys.items()]

    def trial_steps(self) -> int | None:
        """Updates of a trial: as asked, else the recipe's own; fewer where ten would not fit into the time."""
        asked, left = self.options.steps, self.seconds_left()
        if asked is not None or left is None:
            return asked
        if "steps" not in self.record:
            rate = self.record.get("rate", {})
            recipe = self.with_chosen([])
            each = rate.get("update_seconds", 0.0) + recipe.train.batch_size * rate.get("sequence_seconds", 0.0)
            steps = recipe.train.steps
            if each:
                trial = 0.7 * left * self.jobs / 16 - self.record["probe"]["seconds"]
                fits = max(20, int(trial / (each * (1 if self.jobs == 1 else 1.3))))
                steps = min(recipe.train.steps or fits, fits)
            self.record["steps"] = steps
            self.save()
        return self.record["steps"]

    def search(self, metrics: list[Metric]) -> None:
        steps, options, left = self.trial_steps(), self.options, self.seconds_left()
        reserve = 0.0 if "verify" not in options.parts else 0.3 * (left or 0.0)
        plan = Plan(
            self.space(), metrics, options.trials if left is None or options.trials else None,
            None if left is None else time.monotonic() + max(0.0, left - reserve), steps, self.place, self.jobs,
            self.recipe.run.seed,
        )  # fmt: skip
        if plan.trials is None and plan.deadline is None:
            plan = plan._replace(trials=12)
        base = self.with_chosen([])
        study = open_study(self.folder, plan, dump(base))
        with storage_errors(self.folder / "study.db"):
            if not study.get_trials(deepcopy=False):
                for values in self._first_trials(plan.dimensions, base):
                    study.enqueue_trial(values)
            try:
                search(study, plan, self.with_chosen, self.folder, self.say)
            finally:
                self._record_search(study, plan)

    def _first_trials(self, dimensions: Sequence[Dimension], base: Recipe) -> list[dict[str, Any]]:
        """The recipe as it is, and rates of the range test, where they lie in the space."""
        tree = base.model_dump(mode="json")
        own: dict[str, Any] = {}
        for d in dimensions:
            value: Any = tree
            for part in d.key.split("."):
                value = value.get(part) if isinstance(value, dict) else None
            if d.choices:
                own |= {d.key: json.dumps(value)} if value in d.choices else {}
            elif isinstance(value, (int, float)) and d.low <= value <= d.high:
                own[d.key] = value
        factor = float(self.record.get("rate", {}).get("factor", 1.0))
        tested = dict(own)
        for d in dimensions:
            if d.key in ("optim.lr", "optim.adam_lr"):
                value = getattr(base.optim, d.key.partition(".")[2]) * factor
                tested |= {d.key: value} if d.low <= value <= d.high else {}
        return [values for values in (own, tested if tested != own else {}) if values]

    def _record_search(self, study: Any, plan: Plan) -> None:
        trials = study.get_trials(deepcopy=False)
        names = {"COMPLETE": "done", "PRUNED": "ended early", "FAIL": "died"}
        self.record["trials"] = [
            {
                "number": t.number, "state": names[t.state.name], "params": t.params, "values": t.values if t.values else None,
                "died": t.user_attrs.get("died", ""), "seconds": t.user_attrs.get("seconds"),
            }
            for t in trials
            if t.state.name in ("COMPLETE", "PRUNED") or "died" in t.user_attrs
        ]  # fmt: skip
        best = best_of(study)
        count = {state: sum(t["state"] == state for t in self.record["trials"]) for state in names.values()}
        tally = f"{len(self.record['trials'])} trials, {count['ended early']} ended early, {count['died']} died"
        if best is None:
            self.record["search"] = {"said": f"search: {tally}; none came to its end", "sets": []}
        else:
            sets = sets_of(best, plan.dimensions)
            shown = ", ".join(f"{m.name} {v:.5g}" for m, v in zip(plan.metrics, best.values, strict=True))
            said = f"search: {shown} with {' '.join(sets)} ({tally})"
            self.record["search"] = {"said": said, "sets": sets, "value": best.values[0]}
            if len(plan.metrics) > 1:
                front = [{"sets": sets_of(t, plan.dimensions), "values": t.values} for t in study.best_trials]
                self.record["search"] |= {
                    "front": front,
                    "said": f"{said}; {len(front)} on the front, the best of {plan.metrics[0].name} taken",
                }
            self.record["importance"] = importances(study)
        self.save()

    def verify(self, metric: Metric) -> None:
        """The winner stays if it is better on the mean of fresh seeds."""
        found = self.record.get("search")
        if not found or not found["sets"] or metric.name in MEASURED:
            self.chosen += found["sets"] if found else []
            return
        if "verdict" not in self.record:
            verdict = verify(
                self.with_chosen(found["sets"]), self.with_chosen([]), metric, found["value"], self.folder, self.place,
                seeds=self.options.seeds, jobs=self.jobs, steps=self.trial_steps(), say=self.say,
            )  # fmt: skip
            if isinstance(verdict, str):
                said = f"fresh seeds: a run died ({verdict}); the recipe's own values stay"
                self.record["verdict"] = {"said": said, "better": False}
            else:
                self.record["verdict"] = {"said": verdict.words(metric.name), **verdict._asdict()}
            self.save()
        self.chosen += found["sets"] if self.record["verdict"]["better"] else []

    # Result -----------------------------------------------------------------------------------------------------------

    def write(self) -> Path:
        """tuned.yaml with what was found at its head, tune.json and tune.html."""
        self.record["chosen"] = self.chosen
        self.save()
        recipe = self.with_chosen([])
        lines = page.lines_of(self.record)
        if self.ranks > 1:
            lines.append(f"run with: zenspeed launch -n {self.ranks} train {self.folder / 'tuned.yaml'}")
        head = "".join(f"# {line}\n" for line in lines)
        write_atomically(self.folder / "tuned.yaml", head + dump(recipe))
        page.write(self.folder, self.record)
        return self.folder / "tuned.yaml"


def tune(make: Make, options: Options, source: str, say: Callable[[str], None]) -> dict[str, Any]:
    """Tunes the recipe of `make([])`; the record, as in tune.json. tuned.yaml and tune.html lie beside it.

    Raises:
        InputError: the space is empty or contradicts the recipe, a metric is not there, the storage is locked, or the folder
            holds something else.
        Interrupted: Ctrl-C; the best so far is written, and the same command goes on.
    """
    tuning = Tuning(make, options, source, say)
    try:
        metrics = tuning.probe()
        if "layout" in options.parts:
            tuning.layout()
        if "rate" in options.parts:
            tuning.rates()
        if "search" in options.parts:
            tuning.search(metrics)
            if "verify" in options.parts:
                tuning.verify(metrics[0])
            else:
                tuning.chosen += tuning.record["search"]["sets"]
    except (Interrupted, KeyboardInterrupt):
        tuning.chosen += tuning.record.get("search", {}).get("sets", [])
        tuning.write()
        raise Interrupted from None
    tuning.write()
    return tuning.record


def nested(recipe: Recipe, options: Options, folds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Cross-validation of recipe and tuning together: in each fold the search sees the training rows alone."""
    from zenspeed.crossval import Plan as Folds
    from zenspeed.crossval import crossval

    share = recipe.data.validation if isinstance(recipe.data.validation, float) else 0.1

    def prepare(place: Path) -> None:
        if (place / "tuned.yaml").exists():
            return
        hidden = ["data.test=null", assign("data.validation", share)]

        def make(sets: Sequence[str]) -> Recipe:
            return load(Recipe, place / "recipe.yaml", [*hidden, *sets])

        say(f"{place.name}: search on its training rows")
        inner = options._replace(folder=place / "tune", parts=[p for p in options.parts if p in ("rate", "search")])
        found = tune(make, inner, str(place / "recipe.yaml"), say)
        write_atomically(place / "tuned.yaml", dump(load(Recipe, place / "recipe.yaml", found["chosen"])))

    return crossval(recipe, Folds(options.folder / "folds", folds, jobs=options.jobs, prepare=prepare), say)
