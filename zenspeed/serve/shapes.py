"""What requests look like: OpenAI's and our own, strict; and errors in OpenAI's form."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

Text = Annotated[str, StringConstraints(max_length=1_000_000)]
TokenName = Annotated[str, StringConstraints(pattern=r"^\d{1,9}$")]
Bias = Annotated[float, Field(ge=-100, le=100)]
Controls = Annotated[dict[Annotated[str, StringConstraints(max_length=200)], Text | int], Field(max_length=16)]
Stop = Annotated[str, StringConstraints(min_length=1, max_length=256)]
_NOT_HERE = {
    "tools": "no model here calls tools", "tool_choice": "no model here calls tools",
    "functions": "no model here calls functions", "function_call": "no model here calls functions",
    "audio": "no model here speaks", "suffix": "no model here fills gaps", "best_of": "ask for n and choose yourself",
    "web_search_options": "nothing is looked up", "prediction": "no answer is predicted",
    "reasoning_effort": "no model here thinks",
}  # fmt: skip


class Problem(Exception):
    """An answer that is an error."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry_after = status, message, param, code, retry_after

    def body(self) -> dict[str, Any]:
        kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class Strict(BaseModel):
    """A request: no unknown keys, no numbers out of range, no NaN."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    model: str = Field(max_length=200, description="One of /v1/models.")


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")
    include_usage: bool = False


class Generation(Strict):
    """What completions and chats have in common."""

    temperature: float | None = Field(None, ge=0, le=2, description="0: the likeliest token each time. Default 1.")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=1, description="Not OpenAI's: draw among the k likeliest.")
    ignore_eos: bool = Field(False, description="Not OpenAI's: write on past the end of the text.")
    n: int | None = Field(None, ge=1)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: Annotated[dict[TokenName, Bias], Field(max_length=300)] | None = None
    user: str | None = Field(None, max_length=256)

    @model_validator(mode="before")
    @classmethod
    def _refuse_by_name(cls, data: Any) -> Any:
        for name, why in _NOT_HERE.items() if isinstance(data, dict) else ():
            if data.get(name) not in (None, [], "none", "auto") or (name in ("tools", "functions") and data.get(name)):
                raise ValueError(f"{name}: is not supported: {why}")
        if isinstance(data, dict):
            data = {k: v for k, v in data.items() if k not in _NOT_HERE}
            for ignored in (
                "metadata",
                "store",
                "service_tier",
                "safety_identifier",
                "prompt_cache_key",
                "parallel_tool_calls",
            ):
                data.pop(ignored, None)
        return data

    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])


class CompletionRequest(Generation):
    prompt: Text | list[Text] | list[int] | list[list[int]] = Field(description="Text, several texts, or tokens.")
    max_tokens: int | None = Field(None, ge=0, description="Default 16; 0 only checks the prompt, or scores it.")
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool | None = False

    def prompts(self) -> list[Any]:
        if isinstance(self.prompt, str) or (self.prompt and isinstance(self.prompt[0], int)):
            return [self.prompt]
        return list(self.prompt)


class Part(BaseModel):
    model_config = ConfigDict(extra="allow")
    type: str = Field(max_length=64)
    text: Text | None = None


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid")
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Text | list[Part] | None = None
    name: str | None = Field(None, max_length=256)


class ResponseFormat(BaseModel):
    model_config = ConfigDict(extra="allow")
    type: str


class ChatRequest(Generation):
    messages: list[Message] = Field(min_length=1, max_length=1000)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    modalities: list[str] | None = None

    @model_validator(mode="after")
    def _check(self) -> ChatRequest:
        if self.response_format is not None and self.response_format.type != "text":
            raise ValueError(f"response_format: {self.response_format.type[:64]!r} is not supported, only text")
        if self.modalities not in (None, ["text"]):
            raise ValueError("modalities: only text is supported")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: needs logprobs true")
        if wrong := next((m.role for m in self.messages if m.role in ("tool", "function")), None):
            raise ValueError(f"messages: role {wrong!r} is not supported: no model here calls tools")
        return self


class EmbeddingRequest(Strict):
    input: Text | list[Text]
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: int | None = Field(None, ge=1, description="The first so many numbers of each vector, made length 1 again.")
    user: str | None = Field(None, max_length=256)


class ClassifyRequest(Strict):
    input: Text | list[Text]
    pair: Text | list[Text] | None = Field(None, description="Second texts, of a model that reads pairs.")
    explain: bool = Field(False, description="Which words mattered; for one text.")


class TextRequest(Strict):
    """translate and summarize."""

    input: Text | list[Text]
    controls: Controls | None = Field(None, description="What the model was trained to be told, such as the language to write.")


class AnswerRequest(Strict):
    question: Text
    context: Text | None = Field(None, description="The passage that the answer is looked for in; an index finds it itself.")
    controls: Controls | None = None


class SearchRequest(Strict):
    query: Text
    documents: list[Text] | None = Field(None, min_length=1, description="What is searched; of an index its own documents.")
    top: int = Field(10, ge=1, le=1000)


class SwapRequest(Strict):
    version: str = Field(max_length=255, description="Name of a folder in the server's folder of versions.")
    canary: float | None = Field(None, gt=0, lt=1, description="Share of the requests while it is on trial; null: at once.")
