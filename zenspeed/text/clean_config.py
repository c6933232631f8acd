"""The recipe's `data.clean`: what is done to texts before anything else; no step is on unless asked for."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from zenspeed.config import Config


class CleanConfig(Config):
    repair: bool = False
    """Repairs text that was decoded wrongly: `cafÃ©` to `café` (the package ftfy)."""
    unicode: Literal["NFC", "NFKC"] | None = None
    """Unicode normalisation; NFKC also makes full-width letters and ligatures plain ones."""
    markup: Literal["tags", "article"] | None = None
    """`tags`: HTML to its text; `article`: the main text of a web page, without menus and footers (trafilatura)."""
    pii: bool = False
    """Puts tags in the place of mail addresses, phone, card and identity numbers."""
    languages: list[str] = Field(default_factory=list)
    """Keeps texts in these languages (ISO 639-1, as `en`, `zh`), by py3langid."""
    lowercase: bool = False
    """Small letters only."""
    punctuation: bool = False
    """Takes punctuation out, with a space in its place."""
    stop_words: list[str] = Field(default_factory=list)
    """Takes the stop words of these languages out (ISO 639-1, as `en`, `zh`), by stopwordsiso, whose lists are wide."""
    min_characters: int = Field(1, ge=1)
    """Leaves out texts that are shorter after all this; blank ones always."""
    max_characters: int | None = Field(None, ge=1)
    """Leaves out texts that are longer."""
    duplicates: Literal["keep", "exact", "near"] = "keep"
    """Of texts that are equal (`exact`), or whose 4-grams agree to 80 % (`near`), only the first stays."""

    @model_validator(mode="after")
    def _check(self) -> CleanConfig:
        if self.max_characters is not None and self.max_characters < self.min_characters:
            raise ValueError(f"max_characters: {self.max_characters} is below min_characters ({self.min_characters})")
        return self

    @property
    def does_anything(self) -> bool:
        return self != CleanConfig()

    @property
    def changes_text(self) -> bool:
        """Whether a text may come out other than it went in, and not only be left out."""
        return any((self.repair, self.unicode, self.markup, self.pii, self.lowercase, self.punctuation, self.stop_words))
