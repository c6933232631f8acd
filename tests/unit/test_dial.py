"""The dial: what is asked of it, the laws, and the choice among what fits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from zenspeed.config import load
from zenspeed.dial.candidates import Text, candidates, heads_of
from zenspeed.dial.choose import _seconds, _within
from zenspeed.dial.draft import draft, is_plain
from zenspeed.dial.ends import Ends, ends_of, parse_bytes, parse_count, parse_seconds
from zenspeed.dial.laws import LAW, byte_entropy, effective_bytes
from zenspeed.dial.places import Place, Probes, best_place, counts
from zenspeed.dial.rate import Probe, Rate, fit, muon_flops
from zenspeed.errors import InputError
from zenspeed.parallel.mesh import World
from zenspeed.plan.work import Shape
from zenspeed.recipe import Recipe

RATE = Rate(token=1e-5, flop=1e-11, weight=1e-9, muon=1e-11)
TEXT = Text(tokens=900_000, bytes=2_400_000, held_out_tokens=40_000, vocab_size=1024, entropy=1.77)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("1h30m", 5400), ("1.5 h", 5400), ("2 minutes", 120), ("2d", 172_800)]
)
def test_times(text: str, seconds: float) -> None:
    assert parse_seconds("--budget", text) == seconds


@pytest.mark.parametrize("text", ["10", "ten minutes", "10 bananas", "-5m", "0s", "5m5m", "m", "", "10m!", "nan s"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(InputError, match=r"--budget .*: is no time.*give"):
        parse_seconds("--budget", text)


def test_sizes_and_counts() -> None:
    assert (parse_bytes("--memory", "2GB"), parse_bytes("--memory", "1.5 GiB")) == (2e9, 1.5 * 2**30)
    assert (parse_count("--max-parameters", "5M"), parse_count("--max-parameters", "300_000")) == (5e6, 3e5)
    for text in ("2", "2 bananas", "0GB", "GB"):
        with pytest.raises(InputError, match="--memory"):
            parse_bytes("--memory", text)
    for text in ("many", "-1M", "0", "5MB"):
        with pytest.raises(InputError, match="--max-parameters"):
            parse_count("--max-parameters", text)


def test_a_budget_in_which_nothing_can_be_trained_and_a_loss_that_is_none() -> None:
    with pytest.raises(InputError, match=r"--budget 3s: nothing can be trained in 3 s.*give 30s"):
        ends_of("3s", None, None, None)
    for text in ("low", "0", "-1", "99"):
        with pytest.raises(InputError, match=f"--target-loss {text}: is no loss; give bits per byte"):
            ends_of(None, text, None, None)


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (["train.steps=5"], "train.steps .5. and a budget both end the run"),
        (["train.epochs=2"], "train.epochs .2. and a budget both end the run"),
        (["train.minutes=2"], "train.minutes .2. says the time as well"),
        (["task.kind=classification"], "is for language models, not for task.kind=classification"),
        (["model.from_run=runs/x"], "chooses a model, and model.from_run gives one"),
        (["model.preset=lstm"], "not model.architecture=recurrent"),
    ],
)
def test_a_budget_beside_what_contradicts_it(sets: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        draft(load(Recipe, None, sets), Ends(seconds=60))


def test_minutes_too_few_are_refused_as_a_budget_is() -> None:
    with pytest.raises(InputError, match=r"train.minutes: nothing can be trained in 3 s"):
        draft(load(Recipe, None, ["train.minutes=0.05"]), Ends())


def test_a_text_and_a_time_alone_turn_the_dial_on() -> None:
    assert is_plain(load(Recipe, None, ["train.minutes=2", "run.seed=3", "data.validation=0.1"]))
    for key in ("train.steps=2", "model.width=64", "optim.lr=0.1", "tokenizer.kind=char", "train.batch_size=4"):
        assert not is_plain(load(Recipe, None, [key]))


def test_the_draft_suits_text_and_time_and_leaves_what_is_given(tmp_path: Path) -> None:
    chinese, english = tmp_path / "zh.txt", tmp_path / "en.txt"
    chinese.write_text("房间很大,服务也很好。\n\n" * 9000, encoding="utf-8")
    english.write_text("The room was large, the service good.\n\n" * 9000, encoding="utf-8")
    plain = [draft(load(Recipe, None, [f"data.source={path}"]), Ends(seconds=300)).recipe for path in (chinese, english)]
    assert all(one.tokenizer.or_fewer for one in plain)  # these texts repeat themselves and hold fewer
    assert plain[0].tokenizer.vocab_size == 2 * (plain[1].tokenizer.vocab_size or 0)
    kept = draft(
        load(Recipe, None, [f"data.source={english}", "tokenizer.vocab_size=400", "data.validation=0.2"]), Ends(seconds=300)
    )
    assert (kept.recipe.tokenizer.vocab_size, kept.recipe.data.validation) == (400, 0.2)
    assert not kept.recipe.tokenizer.or_fewer
    english.write_text("The room was large, the service good.\n\n" * 900_000, encoding="utf-8")  # 35 MB in 60 s
    short = draft(load(Recipe, None, [f"data.source={english}"]), Ends(seconds=60)).recipe
    assert isinstance(short.data.validation, float) and short.data.validation < 0.01


def test_the_law_falls_with_size_and_text_and_repeats_are_worth_less() -> None:
    assert LAW.ratio(1e6, 2e6, 1e7) > LAW.ratio(4e6, 2e6, 1e7) > LAW.ratio(4e6, 8e6, 1e7) > LAW.floor
    assert effective_bytes(1e6, 2e6, 1.5) == 1e6
    assert 2e6 < effective_bytes(4e6, 2e6, 1.5) < 4e6
    assert effective_bytes(1e9, 2e6, 1.5) == pytest.approx(5e6)


def test_the_law_gives_back_the_runs_it_was_fitted_on() -> None:
    """Python's documentation, 2.38 MB with 1.77 bits a byte: weights of the blocks, bytes seen, bits per byte measured."""
    for weights, seen, measured in (
        (1.77e6, 0.72e6, 2.098),
        (0.79e6, 1.16e6, 2.025),
        (3.15e6, 0.46e6, 2.208),
        (0.79e6, 4.38e6, 1.813),
    ):
        assert 1.773 * LAW.ratio(weights, seen, 2.38e6) == pytest.approx(measured, abs=0.015)


def test_entropy_of_bytes() -> None:
    assert byte_entropy(b"abcd" * 1000) == pytest.approx(0, abs=1e-6)
    assert byte_entropy(bytes(range(256)) * 10 + b"") < 0.01
    assert byte_entropy(b"ab") > 0


def _shape(layers: int, width: int) -> Shape:
    model = {"layers": layers, "width": width, "heads": heads_of(width), "ngrams": [2, 3]}
    return Shape(load(Recipe, None, base={"model": model}).model, 1024)


def test_a_rate_is_found_again_from_two_probes() -> None:
    small, large = _shape(3, 128), _shape(5, 320)
    probes = [
        Probe(s, RATE.token + RATE.flop * s.flops_per_token(), RATE.weight * s.weights + RATE.muon * muon_flops(s))
        for s in (small, large)
    ]
    assert fit(*probes) == pytest.approx(RATE)
    noisy = fit(probes[0]._replace(token_seconds=1.0, update_seconds=9.0), probes[1])  # the small one as slow as none can be
    assert min(noisy) >= 0 and noisy.update_seconds(large, 1024) > noisy.update_seconds(small, 1024)


def _found(seconds: float, sets: tuple[str, ...] = ()) -> list[Recipe]:
    given = frozenset(part.partition("=")[0] for part in sets)
    found = sorted(candidates(load(Recipe, None, sets), given, TEXT, RATE, seconds, 1, 2), key=lambda c: c.bits_per_byte)
    return [c.recipe for c in found]


def test_more_time_makes_a_larger_model_and_batch_and_rereading_brings_dropout() -> None:
    short, long = _found(30)[0], _found(3000)[0]
    assert short.model.width < long.model.width
    assert short.train.batch_size * short.model.context < long.train.batch_size * long.model.context
    assert short.model.dropout == 0 < long.model.dropout < long.model.ngram_dropout


def test_what_was_given_stays() -> None:
    assert {(r.model.width, r.model.heads) for r in _found(300, ("model.width=96",))} == {(96, 1)}
    assert all(
        r.model.dropout == 0.4 and r.train.batch_size == 6 for r in _found(3000, ("model.dropout=0.4", "train.batch_size=6"))
    )


def test_limits_of_memory_and_size_hold_and_too_little_is_named() -> None:
    def of(seconds: float) -> list:
        return list(candidates(Recipe(), frozenset(), TEXT, RATE, seconds, 1, 2))

    small = _within(of(3000), Ends(parameters=6e6, memory=1e9), 3000, 10)
    assert small and all(c.shape.weights <= 6e6 and c.memory <= 1e9 for c in small)
    with pytest.raises(InputError, match=r"--max-parameters: 1,000 are too few: the smallest model has"):
        _within(of(300), Ends(parameters=1000), 300, 10)
    with pytest.raises(InputError, match=r"--memory: 100 MB are too few.*give --memory .*MB or more"):
        _within(of(300), Ends(memory=1e8), 300, 10)
    with pytest.raises(InputError, match=r"--budget: 3 s are too few.*give --budget 11s or more"):
        _within(of(1), Ends(), 3, 10)


def _place(processes: int, speed: float, error: float = 0.0, start: float = 0.0) -> Place:
    rate = Rate(*(value / speed for value in RATE[:4]), error)
    return Place(processes, 8 // processes, 1, "fp32", rate, start)


@pytest.mark.parametrize(
    ("fresh", "again", "taken"),
    [
        ({2: 0.9, 4: 2.0}, 1.0, 1),  # what is slower is not gone on with
        ({2: 1.2, 4: 1.5, 8: 1.4}, 1.0, 4),
        ({2: 1.2, 4: 1.21}, 1.0, 2),  # too little to pay
        ({2: 1.02}, 1.0, 1),
        ({2: 1.2}, 1.25, 1),  # one process was slow by chance when it was measured first
        ({2: "ended with codes -9"}, 1.0, 1),
    ],
)
def test_processes_are_added_while_they_pay(
    fresh: dict[int, float | str], again: float, taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(work: object, ranks: int, *_: object, seconds: float) -> list[Place] | str:
        found = fresh[ranks]
        return found if isinstance(found, str) else [_place(ranks, found)]

    monkeypatch.setattr("zenspeed.dial.places.in_processes", run)
    probes = Probes(Recipe(), frozenset(), ((3, 128), (5, 320)), 128, 1024, 1024)
    shape = _shape(4, 192)
    found, said = best_place(_place(1, 1.0), lambda: _place(1, again), sorted(fresh), probes, shape, 2048, 3600)
    assert found.processes == taken and ("is taken" if taken > 1 else "stays") in said
    assert all(str(n) in said for n in fresh if n <= 2 * taken)


def test_processes_are_left_alone_where_measuring_costs_too_much_or_says_too_little(monkeypatch: pytest.MonkeyPatch) -> None:
    probes, shape = Probes(Recipe(), frozenset(), ((3, 128), (5, 320)), 128, 1024, 1024), _shape(4, 192)
    own = _place(1, 1.0)
    found, said = best_place(own, lambda: own, [2], probes, shape, 2048, 120)
    assert found is own and "one; more are tried where" in said
    assert best_place(own, lambda: own, [], probes, shape, 2048, 3600) == (own, "")
    monkeypatch.setattr("zenspeed.dial.places.in_processes", lambda *_, **__: [_place(2, 1.3, error=0.2)])
    assert best_place(own, lambda: own, [2], probes, shape, 2048, 3600)[0].processes == 1  # 30 % more, give or take 40
    monkeypatch.setattr("zenspeed.dial.places.in_processes", lambda *_, **__: [_place(2, 1.3)])
    assert best_place(own, lambda: own, [2], probes, shape, 2048, 3600)[0].processes == 2


def test_numbers_of_processes_are_divisors_and_nobodys_decision_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("zenspeed.dial.places.usable_cores", lambda: 12)
    here = World(0, 1, 0, torch.device("cpu"))
    assert counts(Recipe(), set(), here, 1e6) == [2, 4]
    assert counts(Recipe(), set(), here, 1e15) == []  # bytes that no machine has
    batch = load(Recipe, None, ["train.batch_size=6"])
    assert counts(batch, {"train.batch_size"}, here, 1e6) == [2]
    assert counts(Recipe(), {"train.lanes"}, here, 1e6) == []
    monkeypatch.setenv("RANK", "0")
    assert counts(Recipe(), set(), here, 1e6) == []


def test_a_target_gets_the_least_time_and_one_out_of_reach_is_refused() -> None:
    def of(seconds: float) -> list:
        return list(candidates(Recipe(), frozenset(), TEXT, RATE, seconds, 1, 2))

    (low, _), (high, _) = (_seconds(Ends(target=t), of) for t in (2.0, 2.3))
    assert high < low
    assert min(c.bits_per_byte for c in of(low)) <= 2.0 < min(c.bits_per_byte for c in of(low / 1.2))
    assert _seconds(Ends(target=2.0, seconds=20), of)[0] == 20
    assert "hardly" in _seconds(Ends(target=2.0, seconds=20), of)[1][0]
    with pytest.raises(InputError, match=r"--target-loss 0\.5: out of reach"):
        _seconds(Ends(target=0.5), of)
