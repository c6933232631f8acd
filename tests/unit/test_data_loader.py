"""The order of samples, training batches, and evaluation over a whole split."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from zenspeed.config import InputError, load
from zenspeed.data.batch import IGNORE, batch_of_windows
from zenspeed.data.loader import Loader, evaluation_batches, sample_index, sample_indices
from zenspeed.data.shards import TokenDataset, write_shard
from zenspeed.recipe import Recipe

EOT = 0


def make_dataset(folder: Path, lengths: list[int], shards: int = 1) -> TokenDataset:
    """Documents of the given lengths whose tokens are all different, spread over shards."""
    paths, token = [], 1
    for n, part in enumerate(np.array_split(np.array(lengths), shards)):
        tokens, starts = [], []
        for length in part.tolist():
            starts.append(len(tokens))
            tokens += [EOT, *range(token, token + length)]
            token += length
        if n == shards - 1:
            tokens.append(EOT)
        paths.append(folder / f"{n}.ztok")
        write_shard(paths[-1], np.array(tokens, np.uint32), np.array(starts), part)
    return TokenDataset.open(paths)


# ---- order


@pytest.mark.parametrize("num_samples", [1, 2, 3, 4, 5, 15, 16, 17, 1000, 4096, 4097])
def test_order_is_a_permutation(num_samples: int) -> None:
    order = sample_indices(3, 2, np.arange(num_samples), num_samples)
    assert sorted(order.tolist()) == list(range(num_samples))
    assert [sample_index(3, 2, p, num_samples) for p in range(min(num_samples, 50))] == order[:50].tolist()


def test_order_of_a_trillion_samples_costs_no_memory() -> None:
    order = sample_indices(0, 0, np.arange(1000), 10**12)
    assert len(set(order.tolist())) == 1000
    assert 0 <= order.min() < 10**11 < 9 * 10**11 < order.max() < 10**12


def test_order_differs_by_epoch_and_seed() -> None:
    orders = [sample_indices(s, e, np.arange(1000), 1000) for s, e in ((0, 0), (0, 1), (1, 0), (1, 1), (2**63, 0))]
    for n, one in enumerate(orders):
        assert abs(np.corrcoef(one, np.arange(1000))[0, 1]) < 0.15
        for other in orders[:n]:
            assert (one == other).sum() < 10  # one is expected by chance
            assert abs(np.corrcoef(one, other)[0, 1]) < 0.15


def test_every_sample_is_equally_likely_at_every_position() -> None:
    """Also for few samples, where a Feistel network has few bits to mix."""
    for num_samples in (3, 6):
        orders = np.array([sample_indices(1, e, np.arange(num_samples), num_samples) for e in range(3000)])
        for position in range(num_samples):
            share = np.bincount(orders[:, position], minlength=num_samples) / 3000
            assert np.abs(share - 1 / num_samples).max() < 0.04


def test_order_is_fixed_for_ever() -> None:
    """A checkpoint keeps only a number: another order in a later version would break its resume."""
    assert sample_indices(1, 0, np.arange(8), 1000).tolist() == [636, 332, 508, 417, 330, 44, 14, 645]


# ---- training batches


def test_inputs_and_targets_are_neighbours_in_the_stream(tmp_path: Path) -> None:
    loader = Loader(make_dataset(tmp_path, [50, 1, 30, 70], shards=3), 8, 0, False, EOT)
    batch = loader.batch(0, 10)
    tokens = batch.inputs["tokens"]
    assert tokens.shape == batch.targets.shape == (10, 8)
    assert tokens.dtype == batch.targets.dtype == torch.int64
    assert tokens.is_contiguous()
    assert batch.targets.is_contiguous()
    assert torch.equal(tokens[:, 1:], batch.targets[:, :-1])
    inside = (tokens != EOT) & (batch.targets != EOT)
    assert torch.equal(tokens[inside] + 1, batch.targets[inside])


@pytest.mark.parametrize("lengths", [[62], [29, 30, 1, 0], [65], [8]])
def test_an_epoch_takes_each_target_at_most_once_and_leaves_less_than_a_window(lengths: list[int], tmp_path: Path) -> None:
    data, context = make_dataset(tmp_path, lengths), 8
    loader = Loader(data, context, 5, False, EOT)
    assert loader.num_samples == (data.num_tokens - 1) // context
    expected = Counter(data.read(1, data.num_tokens).tolist())
    left_out: set[int] = set()
    for epoch in range(60):
        targets = Counter(loader.batch(epoch * loader.num_samples, loader.num_samples).targets.flatten().tolist())
        assert targets <= expected
        missing = expected - targets
        assert missing.total() == (data.num_tokens - 1) % context
        left_out |= set(missing)
    if (data.num_tokens - 1) % context:
        assert len(left_out) > context - 2, "the same tokens are left out in every epoch"


def test_epochs_are_cut_differently(tmp_path: Path) -> None:
    loader = Loader(make_dataset(tmp_path, [500]), 16, 0, False, EOT)
    firsts = [{w[0] % 16 for w in loader.batch(e * loader.num_samples, 5).inputs["tokens"].tolist()} for e in range(8)]
    assert len({frozenset(f) for f in firsts}) > 3


def test_batches_are_the_same_for_any_split_over_ranks_and_micro_batches(tmp_path: Path) -> None:
    data = make_dataset(tmp_path, [40, 60, 33], shards=2)
    whole = Loader(data, 8, 7, False, EOT).batch(0, 48)  # more than two epochs
    for size in (1, 2, 3, 4, 16, 48):
        parts = [Loader(data, 8, 7, False, EOT).batch(first, size) for first in range(0, 48, size)]
        assert torch.equal(torch.cat([p.inputs["tokens"] for p in parts]), whole.inputs["tokens"])
        assert torch.equal(torch.cat([p.targets for p in parts]), whole.targets)


def test_documents_count_from_the_beginning_of_the_sequence() -> None:
    windows = np.array([[5, 6, EOT, 7, 8, EOT, 9], [EOT, 1, 2, 3, 4, 5, EOT]])
    batch = batch_of_windows(windows, EOT, attend_across_documents=False)
    assert batch.inputs["documents"].tolist() == [[0, 0, 1, 1, 1, 2], [1, 1, 1, 1, 1, 1]]
    assert "documents" not in batch_of_windows(windows, EOT, attend_across_documents=True).inputs
    assert batch_of_windows(np.array([[5, EOT, 7, 8]]), EOT, False).inputs["documents"].tolist() == [[0, 1, 1]]
    # Only the last target is of another document, or the first token begins one: nothing to keep apart.
    assert "documents" not in batch_of_windows(windows[1:], EOT, attend_across_documents=False).inputs


def test_smallest_stream_gives_one_sample_and_a_shorter_one_an_error(tmp_path: Path) -> None:
    data = make_dataset(tmp_path, [7])  # nine tokens
    loader = Loader(data, 8, 0, False, EOT)
    assert loader.num_samples == 1
    assert sorted(loader.batch(3, 1).targets[0].tolist()) == [EOT, *range(1, 8)]
    with pytest.raises(InputError, match=r"model.context: 9 tokens.*has 9; give --set model.context=4"):
        Loader(data, 9, 0, False, EOT)


# ---- evaluation


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("overlap", [0, 3, 7])
@pytest.mark.parametrize(("lengths", "context", "batch_size"), [([5, 0, 17, 1, 40], 8, 2), ([3], 16, 4), ([16, 14], 8, 1)])
def test_evaluation_takes_every_target_once(
    ranks: int, lengths: list[int], context: int, batch_size: int, overlap: int, tmp_path: Path
) -> None:
    data = make_dataset(tmp_path, lengths, shards=min(2, len(lengths)))
    stream = data.read(0, data.num_tokens).astype(int).tolist()
    pairs: Counter[tuple[int, int, int]] = Counter()
    num_batches = set()
    for rank in range(ranks):
        batches = list(evaluation_batches(data, context, batch_size, rank, ranks, overlap=overlap))
        num_batches.add(len(batches))
        for (inputs, targets), documents in batches:
            assert inputs["tokens"].shape == targets.shape == documents.shape
            assert 1 <= len(targets) <= batch_size
            assert torch.equal(targets == IGNORE, documents == -1)
            valid = targets != IGNORE
            for row, first in zip(valid.tolist(), inputs["tokens"].tolist(), strict=True):
                assert not any(row[:overlap]) or first[: len(stream)] == stream[:context]
            rows = zip(inputs["tokens"][valid].tolist(), targets[valid].tolist(), documents[valid].tolist(), strict=True)
            pairs.update(rows)
    assert len(num_batches) == 1, "ranks would wait for each other for ever"
    of_target = [document for document, length in enumerate(lengths) for _ in range(length + 1)]  # its end-of-text included
    assert pairs == Counter(zip(stream[:-1], stream[1:], of_target, strict=True))


def test_windows_that_overlap_by_all_of_themselves_are_refused() -> None:
    with pytest.raises(
        InputError, match=r"evaluate\.overlap: 64 leaves nothing new in windows of model\.context = 64; give less"
    ):
        load(Recipe, None, ["model.context=64", "evaluate.overlap=64"])
    with pytest.raises(InputError, match=r"evaluate\.overlap: is for language_model, not for masked_lm"):
        load(Recipe, None, ["task.kind=masked_lm", "evaluate.overlap=4"])


def test_evaluation_keeps_documents_apart_unless_told_otherwise(tmp_path: Path) -> None:
    data = make_dataset(tmp_path, [3, 9])
    (first, *_) = evaluation_batches(data, 8, 4)
    assert first.batch.inputs["documents"][0].tolist() == [1, 1, 1, 1, 2, 2, 2, 2]
    (first, *_) = evaluation_batches(data, 8, 4, attend_across_documents=True)
    assert "documents" not in first.batch.inputs
