"""Sampling: every number in a batch must be the one that belongs there."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from common.buffers import REPLAY_CHUNK, PreferenceBuffer, ReplayBuffer
from common.errors import InputError

PAIRS, LENGTH = 10, 8


def make(pairs: int = PAIRS) -> PreferenceBuffer:
    """Rows that name themselves: obs = (row, segment), action = row + 0.5; segments lie beside each other."""
    rows = np.arange(2 * pairs * LENGTH)
    obs = np.stack([rows, rows // LENGTH], 1)
    start = np.arange(2 * pairs).reshape(pairs, 2) * LENGTH
    return PreferenceBuffer(obs, rows[:, None] + 0.5, start, np.arange(pairs) % 3 / 2, LENGTH)


@pytest.mark.parametrize("window", [2, 5, LENGTH])
def test_rows_stay_together_and_inside_their_segment(window):
    batches = make().batches([0, 1], 0, 3, window)
    for _ in range(50):
        batch = next(batches)
        shape = (2, 2, 3, window - 1)
        obs, next_obs = batch["obs"].view(*shape, 2), batch["next_obs"].view(*shape, 2)
        action = batch["action"].view(shape)
        assert torch.equal(next_obs[..., 0], obs[..., 0] + 1)
        assert torch.equal(action, obs[..., 0] + 0.5)
        assert torch.equal(obs[..., 1:, 0], obs[..., :-1, 0] + 1)
        assert torch.equal(next_obs[..., 1], obs[..., 1])  # never across the border of a segment
        segment = obs[..., 0, 1]
        assert torch.equal(segment[:, 1], segment[:, 0] + 1) and torch.all(segment[:, 0] % 2 == 0)  # first, then second
        assert torch.equal(batch["label"], (segment[:, 0] // 2) % 3 / 2)
        assert torch.equal(obs[:, 0, :, 0, 0] % LENGTH, obs[:, 1, :, 0, 0] % LENGTH)  # one offset a pair
        last = batch["last_obs"].view(2, 2, 3, 2)
        assert torch.equal(last, next_obs[..., -1, :]) and torch.equal(
            batch["last_action"].view(2, 2, 3), last[..., 0] + 0.5
        )


def test_every_window_offset_is_reached_evenly():
    window, count = 5, np.zeros(LENGTH - 5 + 1)
    batches = make().batches([0], 0, PAIRS, window)
    for _ in range(400):
        first = next(batches)["obs"].view(1, 2, PAIRS, window - 1, 2)[0, 0, :, 0, 0]
        count += np.bincount(first.long().numpy() % LENGTH, minlength=len(count))
    assert count.sum() == 4000 and abs(count / 1000 - 1).max() < 0.15  # 5 standard deviations


def test_an_epoch_repeats_no_pair_and_the_next_one_has_another_order():
    batches = make().batches([7], 0, 3, 4)
    epochs = [
        torch.cat([next(batches)["obs"].view(2, 3, 3, 2)[0, :, 0, 1] for _ in range(PAIRS // 3)]).tolist()
        for _ in range(20)
    ]
    assert all(len(set(epoch)) == 9 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 20
    assert {pair for epoch in epochs for pair in epoch} == set(range(0, 2 * PAIRS, 2))  # none is always dropped


def same(a: dict, b: dict) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_batches_depend_on_seed_and_step_alone():
    preferences, replay = (
        make(),
        ReplayBuffer(np.arange(60).reshape(30, 2), *np.zeros((2, 30)), np.zeros((30, 2)), np.zeros(30)),
    )
    for name, size, steps in (("preferences", (3, 4), 11), ("replay", (5,), REPLAY_CHUNK + 3)):
        buffer = {"preferences": preferences, "replay": replay}[name]
        whole = buffer.batches([4, 9], 0, *size)
        resumed, alone = buffer.batches([4, 9], steps, *size), buffer.batches([9], 0, *size)
        for _ in range(steps):
            both, one = next(whole), next(alone)
            assert all(torch.equal(both[key][1:], one[key]) for key in both)
        assert same(next(whole), next(resumed))
        assert not same(next(whole), next(whole))


def test_replay_rows_stay_together():
    n = np.arange(40, dtype=np.float32)
    buffer = ReplayBuffer(n[:, None], n[:, None] + 100, n + 200, n[:, None] + 300, n % 2)
    batch = next(buffer.batches([0, 1], 0, 500))
    row = batch["obs"][..., 0]
    assert set(row.flatten().tolist()) == set(range(40))
    assert torch.equal(batch["action"][..., 0], row + 100) and torch.equal(batch["reward"], row + 200)
    assert torch.equal(batch["next_obs"][..., 0], row + 300) and torch.equal(batch["terminal"], row % 2)


def test_window_0_is_the_whole_segment():
    assert same(next(make().batches([0], 5, 3, 0)), next(make().batches([0], 5, 3, LENGTH)))


@pytest.mark.parametrize(("pairs", "window"), [(PAIRS + 1, 4), (0, 4), (2, LENGTH + 1), (2, 1)])
def test_impossible_sizes_are_refused(pairs, window):
    with pytest.raises(InputError, match="choose"):
        next(make().batches([0], 0, pairs, window))
