"""What may stand in the head of a frame. Whatever a worker sends is checked against these before it is used."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from zenspeed.recipe import GuardConfig, OptimConfig
from zenspeed.server.wire import Refused

Count = Annotated[int, Field(ge=0, lt=2**53)]
Number = Annotated[float, Field(allow_inf_nan=False)]


class Head(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Hello(Head):
    """A worker says that it is there. `number`: what it was before it lost the connection."""

    number: Count | None = None
    name: Annotated[str, Field(max_length=200)] = ""
    leads: bool = False
    """It led the run when it lost the connection."""


class Spec(Head):
    """A run, as the servers need to know it. The first worker brings it; what later ones have must be the same."""

    fingerprint: Annotated[str, Field(max_length=100)]
    """Hash of all in the recipe and the data that decides what is computed."""
    keys: Annotated[list[tuple[Annotated[str, Field(max_length=500)], list[Count]]], Field(min_length=1, max_length=1_000_000)]
    """Names and shapes of all parameters, of all servers."""
    optim: OptimConfig
    guard: GuardConfig = GuardConfig()
    compute_dtype: Literal["float32", "bfloat16"]
    clip: Annotated[float, Field(gt=0)] | None
    consistency: Literal["synchronous", "bounded", "asynchronous", "local"]
    staleness: Annotated[int, Field(ge=0, le=1000)]
    shares: Annotated[int, Field(ge=1, le=10_000)]
    local_steps: Annotated[int, Field(ge=1)]
    outer_lr: Annotated[float, Field(gt=0)]
    outer_momentum: Annotated[float, Field(ge=0, lt=1)]
    fragments: Annotated[int, Field(ge=1, le=1000)]
    overlap_steps: Annotated[int, Field(ge=0)] = 0
    mixing: Annotated[float, Field(ge=0, lt=1)] = 0.5
    compress: Literal["none", "fp16", "int8"]
    lease_seconds: Annotated[float, Field(gt=0)]
    steps: Count | None
    """Updates of the run; None: it ends when a worker says so."""
    first: Count
    """Exchanges made before, where a run goes on."""
    tokens: Count
    """Tokens trained on before."""
    shift: Count = 0
    """Samples that the run left out before: update n reads those from shift + n × batch on."""

    @property
    def steps_per_clock(self) -> int:
        """Updates that a worker makes for each share."""
        return self.local_steps // self.fragments if self.consistency == "local" else 1

    @property
    def ahead(self) -> int | None:
        """Updates that the weights a share is computed on may lack; None: any number."""
        if self.consistency == "local":  # a fragment is on its way while the next share is under way
            return 1 if self.overlap_steps else 0
        return {"bounded": self.staleness, "asynchronous": None}.get(self.consistency, 0)

    @property
    def last(self) -> int | None:
        """Number of exchanges in the run."""
        return None if self.steps is None else -(-self.steps // self.steps_per_clock)


class Start(Head):
    """Weights and optimizer state of this server's parameters, in the body, one behind the other."""

    spec: Spec
    index: Count
    """Of this server among `servers`."""
    servers: Annotated[int, Field(ge=1, le=1000)]
    states: list[tuple[str, str, Count]] = Field(default_factory=list, max_length=10_000_000)
    """(parameter, kind, elements) of what stands in the body behind the weights."""
    scalars: dict[str, dict[str, Number]] = Field(default_factory=dict)
    losses: Annotated[list[Number], Field(max_length=100_000)] = []
    norms: Annotated[list[Number], Field(max_length=100_000)] = []
    """Of the updates before, by which the next ones are judged."""
    peer: tuple[str, Annotated[int, Field(ge=1, le=65535)]] | None = None
    """Address of server 0, for the others."""


class Join(Head):
    fingerprint: Annotated[str, Field(max_length=100)]


class Take(Head):
    """Asks for a share."""

    have: Annotated[int, Field(ge=-1)]
    """Version of the weights this worker has; -1: none of the server's."""
    progress: Annotated[float, Field(ge=0, le=1)] | None = None
    """How far the run is, from the first worker, where the run's length is a time."""
    close: bool = False
    """The run is to end: no further update is begun."""
    records: Annotated[int, Field(ge=-1)] | None = None
    """Answer with the records of updates from this version on."""


class Pull(Head):
    """Asks for the weights, once their version is at least `least`."""

    have: Annotated[int, Field(ge=-1)]
    least: Count = 0


class Push(Head):
    """What a worker made of a share: in the body the gradient of its mean loss, or (local) its delta, / shares."""

    clock: Count
    number: Count
    version: Count
    """Of the weights it was computed on."""
    progress: Annotated[float, Field(ge=0, le=1)]
    targets: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """Number of targets; the loss divided by shares × this."""
    tokens: Count
    loss: Number | None
    """Sum of losses / (shares × targets); None: not finite."""
    norm: Number | None = None
    """asynchronous: norm of the whole gradient, over all servers; None: not finite."""
    seconds: Annotated[float, Field(ge=0)] = 0.0
    """Spent on computing."""
    waited: Annotated[float, Field(ge=0)] = 0.0
    """Spent on waiting for a share and on sending and receiving, since the last push."""
    moved: Count = 0
    """Bytes sent and received since the last push, to and from all servers."""


class State(Head):
    """Asks for all that a checkpoint needs, when `version` is reached."""

    version: Count


class Norm(Head):
    """From server to server 0: the squared norm of its part of the gradient of `clock`."""

    clock: Count
    index: Count
    square: Number | None


class Stop(Head):
    """Ends a worker's stay, or (`servers`) the servers."""

    servers: bool = False


H = TypeVar("H", bound=Head)


def check(form: type[H], head: dict[str, Any]) -> H:
    """`head` as a `form`. Raises Refused, which names the field."""
    try:
        return form.model_validate(head)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise Refused(f"{form.__name__.lower()}: {place}: {first['msg']}"[:300]) from None
