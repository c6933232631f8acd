"""From a request to the tokens that the model reads, as in training, and no way for a text to forge a special token.

A completion is the prompt behind what a document begins with. A chat is the model's own template (text/chat.py), or, where it
has none, lines of `role: text`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zenspeed.errors import InputError
from zenspeed.text.chat import ChatTemplate, Message
from zenspeed.text.tokenizer import Tokenizer

PLAIN = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
"""Template of a model that brings none."""
PLAIN_STOP = ("\nuser:", "\nsystem:")
"""Where an answer under the plain template ends, since such a model knows no end of a turn."""


class Prompts:
    """Encodes prompts for one model.

    Args:
        begin: tokens before every completion's prompt.
    """

    def __init__(self, tokenizer: Tokenizer, begin: Sequence[int]) -> None:
        self._tokenizer, self._begin = tokenizer, list(begin)
        self.has_template = tokenizer.chat_template is not None
        self._template = ChatTemplate(tokenizer, PLAIN)

    @property
    def stop(self) -> tuple[str, ...]:
        """Where the answer in a chat ends beside the end of text."""
        return () if self.has_template else PLAIN_STOP

    def completion(self, prompt: str) -> list[int]:
        return [*self._begin, *self._tokenizer.encode(prompt)]

    def chat(self, messages: Sequence[Message]) -> list[int]:
        try:
            tokens = self._template.encode(messages, add_generation_prompt=True).tokens.tolist()
        except InputError:  # some templates write earlier turns otherwise once another follows; then as `transformers` does
            tokens = self._template.prompt(messages)
        return tokens if self.has_template else [*self._begin, *tokens]

    def rendered(self, messages: Sequence[Message]) -> str:
        """The text of a chat, as `transformers` renders it."""
        return self._template.render(messages, add_generation_prompt=True)


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
