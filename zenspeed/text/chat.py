"""Conversations as tokens, by a template in Hugging Face's form: one way for training, for answering, and for serving.

    [{role, content}, …] ─ template (Jinja, in a sandbox) ─ text ─ cut at special tokens ─ tokens, and which of them are answers

A template writes special tokens by their names; a message that holds such a name keeps it as plain text, so that nobody can
forge a turn. An answer is what the template adds when an assistant's message follows a prompt: with it the model learns to end
its turn. Each answer is encoded by itself, so the tokens of a prompt are the same in training and in use.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np

from zenspeed.errors import InputError
from zenspeed.text.tokenizer import Tokenizer

ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
"""Special tokens of the built-in template."""
BUILT_IN = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('role ' + message['role'] + ' is none of system, user, assistant') }}{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""Every turn begins with its role and only an answer has an end, so each border is a special token."""

_BREAK = "\ue000"  # a private character: put into names of special tokens in messages, and taken out again

Message = dict[str, str]


class Conversation(NamedTuple):
    tokens: np.ndarray
    """(n,) int64."""
    answers: np.ndarray
    """(n,) bool: tokens that an assistant says, the end of its turn included."""


class ChatTemplate:
    """The template of `tokenizer`, else `otherwise`.

    Raises:
        InputError: the template is broken.
    """

    def __init__(self, tokenizer: Tokenizer, otherwise: str = BUILT_IN) -> None:
        self._tokenizer, self._special = tokenizer, tokenizer.special_tokens()
        names = sorted(self._special, key=len, reverse=True)
        self._borders = re.compile("(" + "|".join(map(re.escape, names)) + ")")
        self.source = tokenizer.chat_template or otherwise
        self._template = _compile(self.source)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """The text, as `transformers` renders it.

        Raises:
            InputError: the template refuses the messages.
        """
        from jinja2 import TemplateError

        names = self._tokenizer.token_names()
        try:
            return str(
                self._template.render(
                    messages=list(messages), add_generation_prompt=add_generation_prompt, tools=None, documents=None, **names
                )
            )
        except TemplateError as error:  # what it refuses: roles out of turn, for instance
            raise InputError(f"chat template: refuses these messages: {error}") from None
        except (TypeError, KeyError, ValueError) as error:
            raise InputError(f"chat template: fails on these messages: {error}; put the template right") from None

    def encode(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> Conversation:
        """The tokens of a conversation. `add_generation_prompt`: an answer is to follow.

        Raises:
            InputError: the template refuses the messages; or, without a generation prompt, it writes earlier turns otherwise
                once another follows, so that answers cannot be told from prompts.
        """
        messages = [{**m, "content": self._borders.sub(_broken, m["content"])} for m in messages]
        whole = self.render(messages, add_generation_prompt=add_generation_prompt)
        ends = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        borders = [text for i in ends for text in (self.render(messages[:i], add_generation_prompt=True),
                                                   self.render(messages[: i + 1]))]  # fmt: skip
        tokens: list[int] = []
        answers: list[bool] = []
        done = ""
        for number, text in enumerate([*borders, whole]):
            if not text.startswith(done):
                if add_generation_prompt:  # it leaves out the thoughts in earlier answers, for instance
                    tokens = self._encode(whole)
                    return Conversation(np.array(tokens, np.int64), np.zeros(len(tokens), bool))
                raise InputError(
                    f"chat template: a conversation of {len(messages)} messages does not begin as its first ones do, "
                    "so that answers cannot be told from prompts; take a template that only adds"
                )
            part = self._encode(text[len(done) :])
            tokens += part
            answers += [number % 2 == 1] * len(part)
            done = text
        return Conversation(np.array(tokens, np.int64), np.array(answers, bool))

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Tokens that an answer to `messages` follows as one text, which any template allows; errors of `render`."""
        messages = [{**m, "content": self._borders.sub(_broken, m["content"])} for m in messages]
        return self._encode(self.render(messages, add_generation_prompt=True))

    def _encode(self, text: str) -> list[int]:
        tokens: list[int] = []
        for piece in self._borders.split(text):
            if piece in self._special:
                tokens.append(self._special[piece])
            elif piece:
                tokens += self._tokenizer.encode(piece.replace(_BREAK, ""))
        return tokens


def messages_of(value: Any, place: str) -> list[Message]:
    """A conversation: a list of {role, content}, or that as JSON. `place`: for people.

    Raises:
        InputError: it is something else.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise InputError(f"{place}: not JSON: {error.msg}; write [{{role, content}}, …]") from None
    if not isinstance(value, list) or not value:
        raise InputError(f"{place}: {str(value)[:40]!r} is no conversation; write [{{role, content}}, …]")
    for number, message in enumerate(value, 1):
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise InputError(f"{place}: message {number} has no text in role and content: {str(message)[:60]}")
    return [{"role": m["role"], "content": m["content"]} for m in value]


def _broken(name: re.Match[str]) -> str:
    return name[0][0] + _BREAK + name[0][1:]


def _compile(source: str) -> Any:
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
        raise InputError(f"chat template: broken in line {getattr(error, 'lineno', 1)}: {error}") from None


def _refuse(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)
