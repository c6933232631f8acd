"""lm-evaluation-harness on a model trained here, with a local task file; skipped where the extra is not installed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.end_to_end.conftest import Cli
from zenspeed.errors import InputError
from zenspeed.harness import Scorer, run_harness
from zenspeed.tasks.opening import open_for_evaluation

TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: {kind}
{more}
"""
KINDS = {
    "multiple_choice": 'doc_to_text: "{{question}}"\ndoc_to_target: "{{answer}}"\ndoc_to_choice: "{{choices}}"\n'
    "metric_list: [{metric: acc}]",
    "generate_until": 'doc_to_text: "{{question}}"\ndoc_to_target: "{{written}}"\n'
    'generation_kwargs: {until: ["."], max_gen_toks: 8}\nmetric_list: [{metric: exact_match}]',
    "loglikelihood_rolling": 'doc_to_text: ""\ndoc_to_target: "{{question}}"\nmetric_list: [{metric: bits_per_byte}]',
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from zenspeed.models.build import build_model
    from zenspeed.models.hf import to_huggingface
    from zenspeed.models.presets import ModelConfig
    from zenspeed.text.tokenizer import Tokenizer

    folder = tmp_path_factory.mktemp("harness") / "model"
    tokenizer = Tokenizer.train("bpe", ["the cat is red. the dog is blue."] * 20, 270)
    config = ModelConfig.model_validate({"preset": "gpt2", "layers": 1, "width": 32, "heads": 2, "context": 16, "dropout": 0.0})
    built = build_model(config, tokenizer.vocab_size)
    to_huggingface(built, folder, tokenizer.end_of_text)
    tokenizer.save(folder)
    return folder


@pytest.fixture(scope="module")
def scorer(model: Path) -> Scorer:
    opened = open_for_evaluation(model)
    return Scorer(opened.model, opened.tokenizer, opened.recipe.model.context, opened.place())


def test_log_likelihoods_are_those_of_one_text_alone(scorer: Scorer) -> None:
    encode = scorer.tokenizer.encode
    pairs = [
        ([int(t) for t in encode(a)], [int(t) for t in encode(b)]) for a, b in (("the", " cat is"), ("the dog", " is red."))
    ]
    found = scorer.log_likelihoods(pairs)
    for (before, after), (value, greedy) in zip(pairs, found, strict=True):
        logits = scorer.model(torch.tensor([before + after[:-1]])).detach().log_softmax(-1)[0, len(before) - 1 :]
        expected = sum(float(logits[i, t]) for i, t in enumerate(after))
        assert value == pytest.approx(expected, abs=1e-4)
        assert greedy == (logits.argmax(-1).tolist() == after)


def test_a_long_text_is_predicted_once_a_token(scorer: Scorer) -> None:
    text = "the cat is red. " * 12
    tokens = [scorer.tokenizer.end_of_text, *map(int, scorer.tokenizer.encode(text))]
    assert len(tokens) > 2 * scorer.context
    expected, seen = 0.0, 0
    for start in range(1, len(tokens), scorer.context):
        end = min(start + scorer.context, len(tokens))
        first = max(0, end - scorer.context - 1)
        logits = scorer.model(torch.tensor([tokens[first : end - 1]])).log_softmax(-1)[0]
        for place in range(start, end):
            expected += float(logits[place - first - 1, tokens[place]])
            seen += 1
    assert seen == len(tokens) - 1 and scorer.rolling(text) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_local_task_file(kind: str, model: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    rows = [{"question": "the cat is", "choices": [" red", " blue"], "answer": i % 2, "written": " red"} for i in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    name = f"local_{kind}"
    text = TASK.format(name=name, rows=tmp_path / "rows.jsonl", kind=kind, more=KINDS[kind])
    (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    figures = run_harness(model, [name], include=tmp_path)["results"][name]
    values = [v for k, v in figures.items() if "," in k and "_stderr" not in k]
    assert len(values) == 1 and 0 <= values[0] < 100


def test_what_cannot_be_asked_is_refused(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    with pytest.raises(InputError, match="no task of the harness"):
        run_harness(model, ["not_a_task"])


def test_without_the_package_it_says_what_to_install(model: Path, cli: Cli) -> None:
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        assert "pip install 'zenspeed[harness]'" in cli("harness", model, "--tasks", "piqa", code=2).stderr
