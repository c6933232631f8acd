"""Words: WordPiece and whole-word vocabularies, and Chinese cut into words by jieba (its Rust port, rjieba).

Hugging Face's format has no place for a segmenter. So Chinese is cut before: a zero-width space is put between words, which
the saved tokenizer.json takes as a border; given text cut like this, Hugging Face's library makes the same tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from zenspeed.text.splits import HAN_RUN

BORDER = "\N{ZERO WIDTH SPACE}"
BERT_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

# A run of Han (a word, once it is cut), a word with its apostrophes, or one sign.
_WORD = r"\p{Han}+|(?:(?!\p{Han})[\p{L}\p{M}\p{N}])+(?:['’](?:(?!\p{Han})[\p{L}\p{M}])+)*|[^\s\p{L}\p{M}\p{N}\u200b]"


def segment(text: str) -> str:
    """`text` with a border between the words of every run of Han characters; the rest as it is."""
    if not HAN_RUN.search(text):
        return text
    import rjieba

    return HAN_RUN.sub(lambda run: BORDER.join(rjieba.cut(run.group())), text)


def train_words(texts: Iterable[str], vocab_size: int, special: Sequence[str]) -> tokenizers.Tokenizer:
    """The most frequent words, in lower case; a word that was not among them becomes [UNK]."""
    inner = tokenizers.Tokenizer(models.WordLevel(vocab={}, unk_token="[UNK]"))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(_WORD), behavior="removed", invert=True)
    trainer = trainers.WordLevelTrainer(vocab_size=vocab_size, show_progress=False, special_tokens=_special(special))
    inner.train_from_iterator(map(segment, texts), trainer)
    return _with_bert_frame(inner)


def train_wordpiece(texts: Iterable[str], vocab_size: int, special: Sequence[str]) -> tokenizers.Tokenizer:
    """WordPiece as BERT uses it (Devlin et al. 1810.04805): lower case, accents off, each Han character by itself.

    The trainer numbers the letters inside words in the order of a hash table, which is another one every time, and breaks
    ties between pairs by these numbers. So it is given them as special tokens, in order; they are plain ones afterwards.
    """
    texts = list(texts)
    inner = read_wordpiece([], lowercase=True)
    first = [*_special(special), *_inside_words(texts, inner)]
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, show_progress=False, special_tokens=first)
    inner.train_from_iterator(texts, trainer)
    numbers = inner.get_vocab()
    trained = read_wordpiece(sorted(numbers, key=numbers.__getitem__), lowercase=True)
    trained.add_special_tokens(_special(special))
    return trained


def _inside_words(texts: Iterable[str], inner: tokenizers.Tokenizer) -> list[str]:
    """`##x` for every character that can follow another in a word, sorted."""
    found: set[str] = set()
    for character in set().union(*texts):
        shown = inner.normalizer.normalize_str(f"a{character}a")
        for piece, _ in inner.pre_tokenizer.pre_tokenize_str(shown):
            found.update(piece[1:])
    return [f"##{character}" for character in sorted(found)]


def read_wordpiece(vocabulary: Sequence[str], lowercase: bool) -> tokenizers.Tokenizer:
    """The tokenizer of a BERT vocabulary, one token a line of vocab.txt."""
    numbers = {token: i for i, token in enumerate(vocabulary)}
    inner = tokenizers.Tokenizer(models.WordPiece(vocab=numbers, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    inner.add_special_tokens([token for token in BERT_TOKENS if token in numbers])
    return _with_bert_frame(inner)


def settings(segments: bool) -> dict[str, Any]:
    """tokenizer_config.json of a trained vocabulary of words or pieces of words."""
    named = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    shared = {"eos_token": "[SEP]", "bos_token": "[CLS]", "split_special_tokens": True, "clean_up_tokenization_spaces": False}
    more = {"word_segmentation": "jieba"} if segments else {}
    return {"tokenizer_class": "PreTrainedTokenizerFast", **named, **shared, **more}


def _special(more: Sequence[str]) -> list[str]:
    return [*BERT_TOKENS, *(token for token in more if token not in BERT_TOKENS)]


def _with_bert_frame(inner: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    begin, end = inner.token_to_id("[CLS]"), inner.token_to_id("[SEP]")
    if begin is not None and end is not None:
        inner.post_processor = processors.BertProcessing(("[SEP]", end), ("[CLS]", begin))
    return inner
