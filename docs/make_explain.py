"""Writes docs/explain.md: how to explain a sentence, and the article's worked example with its arithmetic done."""

from __future__ import annotations

from pathlib import Path

from zenspeed.explain.article import claims, consistent
from zenspeed.explain.show import number, terminal

HEAD = """# Every number of a sentence

```bash
zenspeed explain out "The film was good" --html explained.html
zenspeed explain out "The film was good" --part "block 1" --columns 12
zenspeed explain --article
```

`out` is a run's folder (`zenspeed train …`) or one of Hugging Face layout that zenspeed has the architecture of: a decoder,
an encoder under any head, or an encoder-decoder (`--target` is what it has written so far). Shown are embedding, positions, for
each block and head queries, keys, values, scores, softmax and result, the heads mixed, the feed-forward part, every norm and
sum, and the head with its probabilities. The terminal shows some columns, `--html` all numbers.

The numbers are not read out of the model: they are computed a second time, in fp64, by the plain formula of each part over the
model's weights. Then every block and the output are compared with what the model itself gives in fp32; where they differ by
more than 1e-4 of the largest number, it says so and ends with code 1.

## The article's worked example (section 4.3)

Two heads, three words of four numbers, two numbers of position. What it says, and what its own numbers give, each line with the
numbers that the article has before it (written by `python docs/make_explain.py` from `zenspeed/explain/article.py`):

| line | the article | right | |
|---|---|---|---|
"""

MIDDLE = """
Beside the arithmetic:

- Its matrices have one row of two numbers, its vectors six: the products do not exist. No other reading gives its results
  either: [2, 4] is 2 · [1, 2], [12, 16] is 4 · [3, 4], [25, 30] is 5 · [5, 6].
- Q_1 and Q_2 are at once of head 1 and head 2 and of word 1 and word 2. A head looks at all words: three scores for each word.
- Scores are not divided by √d_k = √2, as its own formula in section 4.1 has it.
- Positions are put beside the embedding; in section 4.1 they are added. Words 1 and 3 have the same position, so order is
  lost. The sinusoidal ones of two numbers are [0, 1], [0.8415, 0.5403], [0.9093, −0.4161].
- A Transformer mixes the joined heads by a matrix, adds what went in, normalizes, and only then has one feed-forward part for
  all heads.

The whole example in one consistent reading, in which the matrix of a head is its row six times, one below the other, and the
rest is done number by number:

```text
"""


def main() -> None:
    rows = [f"| {c.line} | {_row(c.article)} | {_row(c.right)} | {c.why} |" for c in claims()]
    example = "\n".join(terminal(consistent(), 6)).strip("\n")
    text = HEAD + "\n".join(rows) + "\n" + MIDDLE + "\n".join(line.rstrip() for line in example.splitlines()) + "\n```\n"
    Path(__file__).with_name("explain.md").write_text(text, encoding="utf-8")


def _row(values: list[float]) -> str:
    return ", ".join(number(value) for value in values)


if __name__ == "__main__":
    main()
