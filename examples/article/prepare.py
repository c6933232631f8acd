"""Makes what train.py reads: train_data.csv and test_data.csv with the columns text,label, and a tiny BERT in tiny-bert/.

`python prepare.py` takes sentences of docstrings of Python's standard library; the label is the family of the module.
`python prepare.py SCORES.txt` takes lines of "id<TAB>score<TAB>text", as the source distribution of vaderSentiment has them.
"""

import ast
import csv
import random
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

FAMILIES = {
    "network": "asyncio email ftplib http imaplib ipaddress mailbox poplib smtplib socket socketserver ssl urllib webbrowser"
    " wsgiref xmlrpc",
    "language": "ast bisect calendar collections copy dataclasses datetime decimal dis enum fractions functools heapq inspect"
    " numbers operator random statistics string textwrap tokenize typing",
}


def docstrings() -> Iterator[tuple[str, str]]:
    """(sentence, family) of every documented definition, each sentence once."""
    seen: set[str] = set()
    library = Path(sysconfig.get_path("stdlib"))
    for family, modules in FAMILIES.items():
        for module in modules.split():
            paths = sorted((library / module).rglob("*.py")) or [library / f"{module}.py"]
            for path in paths:
                for node in ast.walk(ast.parse(path.read_bytes())):
                    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                        for sentence in re.split(r"(?<=\.)\s+|\n\s*\n", ast.get_docstring(node) or ""):
                            text = " ".join(sentence.split())
                            if 30 <= len(text) <= 200 and ">>>" not in text and text not in seen:
                                seen.add(text)
                                yield text, family


def scores(path: Path) -> Iterator[tuple[str, str]]:
    """(text, positive or negative) of rated sentences; those near zero are left out."""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        _, score, text = line.split("\t", 2)
        if abs(float(score)) >= 0.5:
            yield text.strip(), "positive" if float(score) > 0 else "negative"


def write(rows: list[tuple[str, str]], path: str) -> None:
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *rows])


def tiny_bert(texts: list[str], labels: int, folder: str) -> None:
    """A BERT with random weights and a WordPiece vocabulary of its own, small enough for a laptop's CPU."""
    import torch
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    words = BertWordPieceTokenizer(lowercase=True)
    words.train_from_iterator(texts, vocab_size=4000, min_frequency=2, show_progress=False)
    tokenizer = BertTokenizerFast(tokenizer_object=words._tokenizer, model_max_length=64)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128,
        max_position_embeddings=64, num_labels=labels, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)


def main() -> None:
    rows = list(scores(Path(sys.argv[1])) if len(sys.argv) > 1 else docstrings())
    random.Random(0).shuffle(rows)
    rows = rows[:4000]
    cut = len(rows) * 4 // 5
    write(rows[:cut], "train_data.csv")
    write(rows[cut:], "test_data.csv")
    tiny_bert([text for text, _ in rows[:cut]], len({label for _, label in rows}), "tiny-bert")
    most = max(sum(label == name for _, label in rows[cut:]) for name in {label for _, label in rows})
    share = 100 * most / (len(rows) - cut)
    print(f"{cut} sentences to train on, {len(rows) - cut} to test; always the commoner label: {share:.1f}%")


if __name__ == "__main__":
    main()
