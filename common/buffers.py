"""Buffers that live on the training device and are sampled by index, for several seeds at once.

Shape letters: S seeds, B pairs, L transitions of a window, R replay transitions, T rows of the stored data,
O observation, A action. A window has L + 1 observations and L transitions.

Batch t of seed k is a function of (k, t) alone: indices come from `numpy.random.default_rng([stream, k, epoch])`, so
they are the same on every device, beside whichever other seeds, and after a resume, with no random state to save.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from common.errors import InputError
from common.seeds import PAIRS, REPLAY

REPLAY_CHUNK = 256  # steps whose replay indices are drawn and moved to the device together


class PreferenceBuffer:
    """Pairs of labelled segments, stored once as rows of trajectories and two start rows a pair.

    Args:
        obs: (T, O), action: (T, A); row t + 1 follows row t inside a segment.
        start: (P, 2) row of the first step of both segments.
        label: (P,) 1: the second is preferred, 0: the first, 0.5: a tie.
        length: steps of a segment, the last one's action included; where they differ, of the shortest.
        reward: (T,) of the environment where the data hold it, or (S, T), one reward model's a seed.
        lengths: (P,) steps of each pair's segments, where they differ.
    """

    def __init__(self, obs, action, start, label, length: int, reward=None, device: str | torch.device = "cpu",
                 lengths: np.ndarray | None = None):  # fmt: skip
        self.obs = torch.as_tensor(obs, dtype=torch.float32, device=device)
        self.action = torch.as_tensor(action, dtype=torch.float32, device=device)
        self.start = torch.as_tensor(start, dtype=torch.int64, device=device)
        self.label = torch.as_tensor(label, dtype=torch.float32, device=device)
        self.reward = None if reward is None else torch.as_tensor(reward, dtype=torch.float32, device=device)
        self.length, self.lengths, self.device = int(length), lengths, torch.device(device)

    def __len__(self) -> int:
        return len(self.label)

    def check(self, pairs: int, window: int) -> None:
        """Raises InputError where there are fewer than `pairs` pairs, or no window of `window` steps (0: all) fits."""
        if not 1 <= pairs <= len(self):
            raise InputError(f"--preference-batch-size {pairs}: there are {len(self)} pairs; choose at most as many")
        if self.length < 2:
            raise InputError("segments of one step hold no transition to learn from; label longer ones")
        if not 2 <= (window or self.length) <= self.length:
            which = "segments" if self.lengths is None else "the shortest segments"
            raise InputError(f"--segment-length {window}: {which} have {self.length} steps; choose 2 to {self.length}")

    def batches(self, seeds: list[int], step: int, pairs: int, window: int) -> Iterator[dict[str, Tensor]]:
        """Batches from update `step` on, without end.

        Each epoch of a seed visits the pairs in a fresh random order, without replacement, in full batches. Each pair
        draws the start of its window, shared by its two segments, uniformly from all length - window + 1 offsets of its
        own length.

        Args:
            pairs: B; window: observations of a window, L + 1; 0: as many as the shortest segments have.

        Yields:
            obs, next_obs (S, 2BL, O), action (S, 2BL, A): the first segments of all pairs, then the second ones, each
            window's L transitions in order; last_obs, last_action: (S, 2B, .) the window's last row, whose next state
            lies outside the window; label (S, B); reward (S, 2BL), where the data hold it.
        """
        self.check(pairs, window)
        window = window or self.length
        per_epoch = len(self) // pairs
        epoch, skip = divmod(step, per_epoch)
        along = torch.arange(window, device=self.device)
        while True:
            rngs = [np.random.default_rng([PAIRS, seed, epoch]) for seed in seeds]
            order = [rng.permutation(len(self))[: per_epoch * pairs] for rng in rngs]
            offset = [rng.integers(0, (self.length if self.lengths is None else self.lengths[drawn]) - window + 1,
                                   len(drawn)) for rng, drawn in zip(rngs, order, strict=True)]  # fmt: skip
            shape = (len(seeds), per_epoch, pairs)
            pair = torch.as_tensor(np.stack(order), device=self.device).view(shape)
            first = self.start[pair] + torch.as_tensor(np.stack(offset), device=self.device).view(*shape, 1)
            rows = first.transpose(2, 3).unsqueeze(-1) + along  # (S, per_epoch, 2, B, L+1)
            flat, last = rows[..., :-1].flatten(2), rows[..., -1].flatten(2)  # (S, ., 2BL), (S, ., 2B)
            for i in range(skip, per_epoch):
                r, end = flat[:, i], last[:, i]
                batch = {
                    "obs": take(self.obs, r), "next_obs": take(self.obs, r + 1), "last_obs": take(self.obs, end),
                    "action": take(self.action, r), "last_action": take(self.action, end),
                    "label": take(self.label, pair[:, i]),
                }  # fmt: skip
                yield batch if self.reward is None else batch | {"reward": rewards_of(self.reward, r)}
            epoch, skip = epoch + 1, 0


class ReplayBuffer:
    """Transitions of the offline dataset.

    Args:
        obs, next_obs: (T, O), action: (T, A), reward: (T,) or None.
        terminal: (T,) 1 where the episode ended in a terminal state; a time limit is none.
    """

    def __init__(self, obs, action, reward, next_obs, terminal, device: str | torch.device = "cpu"):
        def tensor(x) -> Tensor:
            return torch.as_tensor(x, dtype=torch.float32, device=device)

        self.obs, self.action, self.reward = tensor(obs), tensor(action), None if reward is None else tensor(reward)
        self.next_obs, self.terminal, self.device = tensor(next_obs), tensor(terminal), torch.device(device)

    def __len__(self) -> int:
        return len(self.obs)

    def batches(self, seeds: list[int], step: int, size: int) -> Iterator[dict[str, Tensor]]:
        """Batches of `size` = R transitions from update `step` on, uniform with replacement, without end.

        Yields:
            obs, next_obs (S, R, O), action (S, R, A), terminal (S, R); reward (S, R), where the data hold it.
        """
        chunk, skip = divmod(step, REPLAY_CHUNK)
        while True:
            draws = [
                np.random.default_rng([REPLAY, seed, chunk]).integers(0, len(self), (REPLAY_CHUNK, size))
                for seed in seeds
            ]
            rows = torch.as_tensor(np.stack(draws), device=self.device)
            for i in range(skip, REPLAY_CHUNK):
                r = rows[:, i]
                batch = {"obs": take(self.obs, r), "action": take(self.action, r), "next_obs": take(self.next_obs, r),
                         "terminal": take(self.terminal, r)}  # fmt: skip
                yield batch if self.reward is None else batch | {"reward": rewards_of(self.reward, r)}
            chunk, skip = chunk + 1, 0


def take(table: Tensor, rows: Tensor) -> Tensor:  # (T, D), (S, N) -> (S, N, D)
    """table[rows], in half the time on a CPU."""
    return table.index_select(0, rows.flatten()).unflatten(0, rows.shape)


def rewards_of(reward: Tensor, rows: Tensor) -> Tensor:  # (T,) or (S, T), (S, N) -> (S, N)
    """The rewards of `rows`."""
    return take(reward, rows) if reward.dim() == 1 else reward.gather(1, rows)
