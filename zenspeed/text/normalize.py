"""Text as the rest of the project may assume it: a `str` that has a UTF-8 form."""

from __future__ import annotations


def replace_surrogates(text: str) -> str:
    """`text` with every lone surrogate replaced by U+FFFD; all other text comes back as it is.

    A Python `str` can hold half of a surrogate pair (JSON allows the escape \\ud83d alone, and undecodable bytes of a command
    line arrive so). It is no Unicode character, has no UTF-8 form and cannot be tokenized.
    """
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
