"""From a request to the tokens that the model reads, as in training, and no way for a text to forge a special token.

A completion is the prompt behind what a document begins with. A chat is the model's own template (Jinja, in a sandbox without
access to anything), or, where it has none, lines of `role: text`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from zenspeed.errors import InputError
from zenspeed.text.tokenizer import Tokenizer

_BREAK = "\ue000"  # a private character: put into names of special tokens in what people write, and taken out again

PLAIN = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
"""Template of a model that brings none."""
PLAIN_STOP = ("\nuser:", "\nsystem:")
"""Where an answer under the plain template ends, since such a model knows no end of a turn."""


class Prompts:
    """Encodes prompts for one model.

    Args:
        folder: where tokenizer_config.json, and chat_template.jinja if there is one, lie.
        begin: tokens before every completion's prompt.
    """

    def __init__(self, tokenizer: Tokenizer, folder: Path, begin: Sequence[int]) -> None:
        self._tokenizer, self._begin = tokenizer, list(begin)
        self._special = tokenizer.special_tokens()
        self._longest_first = sorted(self._special, key=len, reverse=True)
        self._settings = _settings(folder)
        source = _template(folder, self._settings)
        self.has_template = source is not None
        self._template = _compile(source or PLAIN, folder)

    @property
    def stop(self) -> tuple[str, ...]:
        """Where the answer in a chat ends beside the end of text."""
        return () if self.has_template else PLAIN_STOP

    def completion(self, prompt: str) -> list[int]:
        return [*self._begin, *self._tokenizer.encode(prompt)]

    def chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        text = self._render([{**m, "content": self._broken(m["content"])} for m in messages])
        tokens = [] if self.has_template else list(self._begin)
        for part in self._parts(text):
            plain = part.replace(_BREAK, "")
            tokens += [self._special[part]] if part in self._special else self._tokenizer.encode(plain) if plain else []
        return tokens

    def rendered(self, messages: Sequence[dict[str, str]]) -> str:
        """The text of a chat, as `transformers` renders it."""
        return self._render(messages)

    def _render(self, messages: Sequence[dict[str, str]]) -> str:
        from jinja2 import TemplateError

        tokens = {name: _name(self._settings.get(name)) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
        try:
            return self._template.render(messages=list(messages), add_generation_prompt=True, tools=None, **tokens)
        except TemplateError as error:  # what a template refuses: roles out of turn, for instance
            raise InputError(f"messages: the model's chat template refuses them: {error}") from None

    def _broken(self, text: str) -> str:
        text = text.replace(_BREAK, "")
        for name in self._longest_first:
            text = text.replace(name, name[0] + _BREAK + name[1:])
        return text

    def _parts(self, text: str) -> list[str]:
        """`text` cut before and after each name of a special token."""
        parts = [text]
        for name in self._longest_first:
            cut: list[str] = []
            for part in parts:
                if part in self._special or name not in part:
                    cut.append(part)
                    continue
                for i, piece in enumerate(part.split(name)):
                    cut += [name, piece] if i else [piece]
            parts = [part for part in cut if part]
        return parts


def flatten(messages: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """Messages with their contents as text: a list of parts is joined, null is empty.

    Raises:
        InputError: a part that is no text.
    """
    out = []
    for number, message in enumerate(messages):
        content = message.get("content")
        if isinstance(content, list):
            kinds = {str(part.get("type")) for part in content} - {"text"}
            if kinds:
                raise InputError(f"messages[{number}].content: parts of type {', '.join(sorted(kinds))}; this model reads text")
            content = "".join(str(part.get("text", "")) for part in content)
        out.append({"role": str(message["role"]), "content": content or ""})
    return out


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _template(folder: Path, settings: dict[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.exists():
        return file.read_text(encoding="utf-8")
    found = settings.get("chat_template")
    if isinstance(found, list):  # several by name
        found = next((t["template"] for t in found if t.get("name") == "default"), None)
    return found


def _compile(source: str, folder: Path) -> Any:
    """As `transformers` does: trimmed blocks, loop controls, `raise_exception`, `strftime_now`."""
    from jinja2 import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = lambda x, **options: json.dumps(x, ensure_ascii=False, **options)
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    environment.globals["raise_exception"] = _refuse
    try:
        return environment.from_string(source)
    except TemplateError as error:
        raise InputError(f"{folder}: the chat template is broken: {error}") from None


def _refuse(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)


def _name(entry: Any) -> str:
    return str(entry.get("content", "")) if isinstance(entry, dict) else entry or ""
