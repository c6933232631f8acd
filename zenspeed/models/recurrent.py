"""Recurrent bodies: torch's own nn.RNN and nn.LSTM, which read one token after the other and carry a state.

Every document begins with a state of zeros. A packed batch is laid out again with one document a row, run, and put back; what
follows a document in its row is read after it and so changes nothing.

Letters: B sequences, T tokens, C width, N documents.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zenspeed.models.layers import Embedding
from zenspeed.models.presets import ModelConfig
from zenspeed.ops.position import positions_in_documents

State = tuple[Tensor, ...]
"""(layers, B, C): the hidden state, and an LSTM's cell."""


class RecurrentCache:
    """The state after the tokens read so far; it does not grow."""

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens, self.num_tokens = max_tokens, 0
        self.state: State | None = None

    def select(self, rows: Tensor) -> None:
        """Keeps these rows (N,), in this order, one of them as often as it is named."""
        self.state = None if self.state is None else tuple(part.index_select(1, rows) for part in self.state)


class RNN(nn.RNN):
    """nn.RNN that leaves its weights unset."""

    def reset_parameters(self) -> None:
        pass


class LSTM(nn.LSTM):
    """nn.LSTM that leaves its weights unset."""

    def reset_parameters(self) -> None:
        pass


class Recurrent(nn.Module):
    """`config.layers` recurrent layers over token embeddings."""

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.config, self.vocab_size = config, vocab_size
        self.embedding = Embedding(vocab_size, config.width)
        cell = LSTM if config.cell == "lstm" else RNN
        dropout = config.dropout if config.layers > 1 else 0.0
        self.rnn = cell(config.width, config.width, config.layers, batch_first=True, dropout=dropout)
        self.blocks = nn.ModuleList()  # nothing to compile: the layers are one kernel of torch

    def hidden_states(
        self,
        tokens: Tensor,
        documents: Tensor | None = None,
        cache: RecurrentCache | None = None,
        token_types: Tensor | None = None,
        balance: list[Tensor] | None = None,
    ) -> Tensor:
        """What a head reads, (B, T, C). Arguments as of `transformer.Body`; there are no token types and no experts here."""
        assert cache is None or documents is None, "a cache holds one document a row"
        x = self.embedding(tokens)
        x = F.dropout(x, self.config.dropout, self.training) if self.config.dropout else x
        if documents is not None:
            return self._by_document(x, documents)
        state = None if cache is None or cache.state is None else cache.state
        if state is not None and not isinstance(self.rnn, nn.LSTM):
            out, after = self.rnn(x, state[0])
        else:
            out, after = self.rnn(x, state)
        if cache is not None:
            cache.state = after if isinstance(after, tuple) else (after,)
            cache.num_tokens += tokens.shape[1]
        return F.dropout(out, self.config.dropout, self.training) if self.config.dropout else out

    def _by_document(self, x: Tensor, documents: Tensor) -> Tensor:
        """A run of equal numbers is a document, as in language modelling; those of different rows are different ones."""
        places = positions_in_documents(documents)  # (B, T)
        number = (places == 0).flatten().cumsum(0) - 1  # (B·T,) of its run, counted over the batch
        place = number, places.flatten()
        rows = x.new_zeros(int(number[-1]) + 1, int(places.max()) + 1, x.shape[2])  # (N, longest, C)
        out, _ = self.rnn(rows.index_put(place, x.flatten(0, 1)))
        out = out[place].view(x.shape[0], x.shape[1], -1)
        return F.dropout(out, self.config.dropout, self.training) if self.config.dropout else out

    def new_cache(
        self, batch: int, max_tokens: int, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> RecurrentCache:
        """An empty cache; arguments as of `transformer.Body`, of which only the number of tokens is kept."""
        return RecurrentCache(max_tokens)

    def body_flops(self, context: int) -> float:
        """Floating-point operations of the forward products of the layers for one token."""
        return 2.0 * sum(p.numel() for p in self.rnn.parameters() if p.ndim == 2)
