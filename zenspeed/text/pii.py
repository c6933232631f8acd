"""Personal data out of text: what has the shape, and where there is one the checksum, of an address or number of a person.

| tag | what |
|---|---|
| <MAIL> | mail addresses |
| <ID> | Chinese identity numbers (GB 11643: date of birth, ISO 7064 MOD 11-2), US social security numbers (shape and ranges) |
| <CARD> | card numbers of 13 to 19 digits (ISO/IEC 7812: Luhn) |
| <PHONE> | numbers with a country code, Chinese mobile and area-code numbers, North American ones |
"""

from __future__ import annotations

import datetime
import re
from collections import Counter

_MAIL = re.compile(r"(?<![\w.+-])[A-Za-z0-9][\w.+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9])", re.ASCII)
_CHINESE_ID = re.compile(r"(?<![0-9A-Za-z])[1-9][0-9]{16}[0-9Xx](?![0-9A-Za-z])")
_SSN = re.compile(r"(?<![\d-])(?!000|666|9)\d{3}([- ])(?!00)\d{2}\1(?!0000)\d{4}(?![\d-])", re.ASCII)
_CARD = re.compile(r"(?<![\d.-])[3-6]\d(?:[ -]?\d){11,17}(?![\d-])", re.ASCII)
_PHONE = re.compile(
    r"(?<![\w.-])(?:"
    r"\+[1-9]\d{0,2}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{2,5}(?:[ .-]?\d{2,5}){1,4}"  # +country code
    r"|1[3-9]\d[ -]?\d{4}[ -]?\d{4}"  # Chinese mobile
    r"|0\d{2,3}-\d{7,8}"  # Chinese area code
    r"|(?:\([2-9]\d{2}\) ?|[2-9]\d{2}[.-])[2-9]\d{2}[.-]\d{4}"  # North American
    r")(?![\w-])",
    re.ASCII,
)
_ID_WEIGHTS = tuple(pow(2, 17 - i, 11) for i in range(17))


def scrub(text: str) -> tuple[str, Counter[str]]:
    """`text` with tags for what was found, and how many of each tag."""
    found: Counter[str] = Counter()

    def tag(name: str) -> str:
        found[name] += 1
        return name

    if "@" in text:
        text = _MAIL.sub(lambda m: tag("<MAIL>"), text)
    if re.search(r"\d{2}", text):
        text = _CHINESE_ID.sub(lambda m: tag("<ID>") if is_chinese_id(m[0]) else m[0], text)
        text = _SSN.sub(lambda m: tag("<ID>"), text)
        text = _CARD.sub(lambda m: tag("<CARD>") if passes_luhn(m[0]) else m[0], text)
        text = _PHONE.sub(lambda m: tag("<PHONE>"), text)
    return text, found


def passes_luhn(number: str) -> bool:
    """Whether the digits in `number` end with the check digit of ISO/IEC 7812-1, annex B."""
    digits = [int(c) for c in number if c.isdigit()]
    doubled = [2 * d - 9 * (d > 4) for d in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def is_chinese_id(number: str) -> bool:
    """Whether 18 characters are a Chinese identity number: a day that was, and the check character of GB 11643-1999."""
    try:
        born = datetime.date(int(number[6:10]), int(number[10:12]), int(number[12:14]))
    except ValueError:
        return False
    remainder = sum(w * int(c) for w, c in zip(_ID_WEIGHTS, number, strict=False)) % 11
    return born.year >= 1850 and "10X98765432"[remainder] == number[17].upper()
