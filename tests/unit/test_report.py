"""The report of a run: one file that needs no other, what it says, axes, both languages, and its JSON."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas
import pytest

from zenspeed.config import dump
from zenspeed.data.report import report_of
from zenspeed.data.report_page import as_json
from zenspeed.errors import InputError
from zenspeed.evaluate.interval import Figure, Undefined
from zenspeed.evaluate.measures import figures_of
from zenspeed.evaluate.predictions import checked
from zenspeed.evaluate.score import Options, evaluation
from zenspeed.recipe import Recipe
from zenspeed.report import charts, parts
from zenspeed.report.collect import read_report
from zenspeed.report.figures import chinese_of, defined, named
from zenspeed.report.page import compare_runs, write_report
from zenspeed.report.words import ZH, Words, escape, sentence
from zenspeed.text.tokenizer import Tokenizer

EVIL = '<script>alert("x")</script>'


def make(folder: Path, better: int = 0) -> Path:
    folder.mkdir()
    (folder / "recipe.yaml").write_text(dump(Recipe.model_validate({"optim": {"lr": 0.01 + better / 1000}})), encoding="utf-8")
    records = [{"step": i, "tokens": 100 * i, "loss": 3 / i, "lr": 0.01, "grad_norm": 1.0} for i in range(1, 2000)]
    records += [{"step": i, "tokens": 100 * i, "validation_loss": 3.1 / i} for i in range(200, 2000, 200)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    (folder / "environment.json").write_text('{"python": "3.11", "packages": {"torch": "2.13"}}', encoding="utf-8")
    rows = [
        {
            "text": f"{EVIL if i == 5 else '影片'} number {i} {'very ' * (i % 9)}", "label": "ab"[i % 2],
            "prediction": "ab"[(i % 2) if i % 5 or i < better else 0], "scores": {"a": 0.4 + i % 2 / 10, "b": 0.6 - i % 2 / 10},
        }
        for i in range(200)
    ]  # fmt: skip
    (folder / "predictions.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    figures = {"loss": Figure(1.2, 1.1, 1.3, 200, "mean loss"), "mcc": Undefined(200, "correlation", "only one label occurs")}
    write_report(folder, figures, {"model": "2 layers"}, {"rows": {"train": 1000}})
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    place = tmp_path_factory.mktemp("runs")
    return [make(place / "one"), make(place / "two", 150)]


def test_a_page_holds_all_and_loads_nothing(runs: list[Path]) -> None:
    page = (runs[0] / "report.html").read_text(encoding="utf-8")
    for title in (
        "Summary", "Loss", "Figures", "Confusion matrix", "ROC curve", "Precision and recall", "Calibration", "By part",
        "Examples", "Data", "Recipe", "Environment", "How to repeat it",
    ):  # fmt: skip
        assert f'<span lang="en">{title}</span><span lang="zh">{ZH[title]}</span>' in page, title
    assert not re.search(r"<script|<link(?! rel=.icon. href=.data:)|src=|@import|url\(|https?://", page)
    assert "alert(&quot;x&quot;)" in page and "only one label occurs" in page
    assert len(page.encode()) < 300_000


def test_the_data_report_is_shown_whole_in_both_languages(tmp_path: Path) -> None:
    rows = [{"text": f"{EVIL} {'long ' * 900 if i == 3 else ''}{i % 30} 中文", "label": "abc"[i % 3 % 2]} for i in range(60)]
    rows += [{"text": text, "label": "c"} for text in ("", "a\0b", "a\x01b", "cafÃ©", "\ufffd", "x<br>y")]
    splits = {"train": (rows, 500), "validation": (rows[:20], 20)}
    found = as_json(report_of(splits, "text", "label", Tokenizer.train("char", ["abc"], 50)))
    folder = make(tmp_path / "run")
    (folder / "data_report.json").write_text(json.dumps(found), encoding="utf-8")
    page = compare_runs([folder])
    titles = [s["title"].split(":")[0].split(" (")[0] for s in found["sections"]]
    assert titles == [
        "Rows", "Labels of train", "Labels of validation",
        "Lengths of train", "Tokens a row, train", "What cutting train would lose",
        "Lengths of validation", "Tokens a row, validation", "What cutting validation would lose",
        "Language", "Tokens of a sample", "Odd rows", "Validation rows that are in the training set",
    ]  # fmt: skip
    for section in found["sections"]:
        assert f"<h3>{Words(section['title'], section['zh'])}</h3>" in page and section["zh"]
        words = [
            *section["head"],
            *(row[0] for row in section["rows"] if section["named"] and "Tokens of" not in section["title"]),
        ]
        assert all(word in ZH or word.rstrip(" %").isdigit() for word in words if word), words
        assert all(escape(cell) in page for row in section["rows"] for cell in row)
    for finding in found["findings"]:
        assert escape(finding["text"]) in page and escape(finding["zh"]) in page
    assert "66 of 500 rows of train were looked at" in page and "均匀抽取了 500 行中的 66 行" in page
    assert "<script" not in page and "\0" not in page and len(page.encode()) < 2_000_000


def test_every_reason_and_warning_is_said_in_chinese() -> None:
    twin = "a text that is long enough to be compared with others"
    sets: list[list[dict]] = [
        [{"text": "", "label": "a", "prediction": "a"}],
        [{"text": twin, "label": "ab"[i % 5 == 0], "prediction": "a", "g": i % 9} for i in range(9)],
        [{"label": "a", "scores": {"a": 2.0, "b": 1.0}}, {"label": "b", "scores": {"a": 0.0, "b": 1.0}}],
        [{"label": "ab"[i % 2], "scores": {"a": 1 - i % 2, "b": i % 2}, "g": i} for i in range(30)],
        [{"label": "a", "scores": {"a": 0.7, "b": 0.3}} for _ in range(30)],
        [{"label": 1.0, "prediction": 0.5}, {"label": 1.0, "prediction": 0.25}],
        [{"label": i, "prediction": float(i)} for i in range(9)],
        [{"reference": "", "prediction": "x"}] * 3,
    ]
    said = set()
    for rows in sets:
        scored = all("scores" in row for row in rows)
        options = Options(
            slices=["g"] if "g" in rows[0] else [],
            protected=["g", "label"] if "g" in rows[0] else [],
            thresholds=["precision=0.99"] if scored else [],
        )
        found = evaluation(checked(rows), options)
        said |= {f["reason"] for f in [*found["figures"], *found.get("fairness", ())]} | set(found["warnings"])
        said |= {choice["reason"] for choice in found.get("thresholds", ())}
    said -= {None}
    assert len(said) > 15 and {text for text in said if sentence(text).zh is None} == set()


def test_gaps_between_groups_stand_beside_their_p_value() -> None:
    rows = [{"label": "a", "prediction": "ab"[i % 2], "sex": "fm"[i % 2]} for i in range(40)]
    found = evaluation(checked(rows), Options(protected=["sex"]))
    (gap,) = [f for f in found["fairness"] if f["name"] == "equal_opportunity_gap[a]"]
    page = parts.by_part(found)
    assert gap["p"] < 0.01 and "<th>p</th>" in page and f">{gap['p']:.3g}</td>" in page
    assert "机会均等差距 [a]" in page and page.count("f 1.000 (n 20), m 0.000 (n 20)") >= 4
    assert "<th>p</th>" not in parts.figure_table(found["figures"]), "no other figure comes with a test"


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs the browser chromium")
def test_a_browser_shows_it_without_fault(runs: list[Path]) -> None:
    """Wide and narrow, light and dark, in both languages: no console error, no labels that overlap, nothing off the screen."""
    script = [sys.executable, str(Path(__file__).resolve().parents[2] / "benchmarks" / "look_at_page.py")]
    done = subprocess.run([*script, str(runs[0] / "report.html")], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout.count(": good") == 4, done.stdout + done.stderr


def test_the_json_is_read_by_pandas(runs: list[Path]) -> None:
    content = json.loads((runs[0] / "report.json").read_text(encoding="utf-8"))
    assert (content["schema"], content["version"], content["run"]) == ("zenspeed.report", 1, "one")
    frame = pandas.DataFrame(content["figures"])
    assert frame.set_index("name").loc["loss", "value"] == 1.2
    assert pandas.DataFrame(content["predictions"]["figures"]).query("slice == 'all' and name == 'accuracy'").n.item() == 200


def test_two_runs_side_by_side(runs: list[Path]) -> None:
    page = compare_runs(runs)
    assert "two is better than one" in page and "optim.lr" in page and "run.folder" not in page
    assert page.count("<svg") >= 3
    with pytest.raises(InputError, match="7 runs"):
        compare_runs([runs[0]] * 7)
    with pytest.raises(InputError, match="holds no run"):
        read_report(runs[0].parent)


def test_ticks_are_round_and_inside() -> None:
    for low, high in ((0, 1), (0.013, 0.029), (-3, 1234567), (5, 5.000001), (1e-9, 4e-9)):
        found = charts.ticks(low, high, 6)
        assert 2 <= len(found) <= 6 and low <= found[0] + 1e-15 and found[-1] <= high * (1 + 1e-9), (low, high, found)
    assert [charts.tick_text(t, 2.5) for t in (0, 2.5, 5)] == ["0.0", "2.5", "5.0"]
    assert (
        charts.tick_text(1500, 500) == "1.5k" and charts.tick_text(2e6, 1e6) == "2M" and charts.tick_text(0.25, 0.05) == "0.25"
    )


def test_labels_on_an_axis_do_not_touch() -> None:
    drawing = charts.chart([charts.Series("", [(1234.5678, 1), (1234.5699, 2)])], "x", "y")
    found = re.findall(r'x="([\d.]+)" y="24\d" text-anchor="middle">([^<]+)', drawing)
    ends = [(float(x), len(t) * charts._CHARACTER / 2) for x, t in found]
    assert ends and all(a + u < b - v for (a, u), (b, v) in itertools.pairwise(ends))
    assert charts.chart([charts.Series("", [])], "x", "y") == ""


def test_control_characters_are_shown() -> None:
    assert parts.escape("a\x00<b>") == "a\\x00&lt;b&gt;"


def test_every_figure_has_a_chinese_name() -> None:
    probabilities = {"a": 0.7, "b": 0.3}
    rows: list[list[dict]] = [
        [{"label": "ab"[i % 2], "scores": probabilities} for i in range(30)],
        [{"label": i / 2, "prediction": i / 3 + 0.1} for i in range(9)],
        [{"reference": "a b", "prediction": "a c"}] * 3,
        [{"rank": 1}, {"rank": 3}],
    ]
    names = {name: f.definition for some in rows for name, f in figures_of(checked(some)).items()}
    names |= dict.fromkeys(("loss", "perplexity", "bits_per_byte", "test_accuracy", "validation_loss"), "defined")
    assert [name for name in names if chinese_of(name)[0] is None] == []
    assert str(named("test_recall[<b>]")) == (
        '<span lang="en">test recall[&lt;b&gt;]</span><span lang="zh">测试集召回率 [&lt;b&gt;]</span>'
    )
    assert "前 5 名" in str(defined("recall@5", names["recall@5"])) and str(named("my_own")) == "my own"
