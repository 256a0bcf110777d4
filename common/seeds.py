"""Which key draws which random number. Every draw is a function of its key alone, so nothing random is ever saved.

initial weights            torch.Generator(seed)
a batch of pairs           numpy, [PAIRS, seed, epoch]
a batch of the dataset     numpy, [REPLAY, seed, chunk of updates]
dropout, sampled actions   torch, noise_seed(seed, update)
reward model of pt_iql     torch, noise_seed(seed, 0, 0) its weights, noise_seed(seed, 0, epoch + 1) order and dropout
the start of an episode    the environment, seed_of(seed, update, episode); of seed 0 with EVALUATION ahead
an episode of a dataset    numpy, [seed, episode]; its starts: seed_of(seed, episode, 0 or 1); of all seeds but 0, which
                           what is published was made with, DATASET stands ahead
pairs that people label    numpy, [LABELS, seed, what is drawn]
a recorded episode         numpy, [RECORD, seed, policy, episode, ...]; its start: seed_of(RECORD, seed, episode, 0),
                           the same for every policy
"""

from __future__ import annotations

import numpy as np

PAIRS, REPLAY, NOISE, LABELS, EVALUATION, DATASET, RECORD = 1, 2, 3, 4, 5, 6, 7
"""streams: one key each, so that no two share their draws"""


def seed_of(*key: int) -> int:
    """One 32-bit seed from several numbers, without the collisions of adding them."""
    return int(np.random.SeedSequence((len(key), *key)).generate_state(1)[0])  # (1, 0) alone would equal (1,)


def noise_seed(seed: int, *step: int) -> int:
    """Of what is random in an update."""
    return seed_of(NOISE, seed, *step)


def start_of_evaluation(seed: int, step: int, episode: int) -> int:
    """The seed of an evaluation episode's `reset`. Without the stream, seed 0 would share starts with datasets."""
    return seed_of(seed, step, episode) if seed else seed_of(EVALUATION, seed, step, episode)


def of_dataset(seed: int, *key: int) -> tuple[int, ...]:
    """The key of what is drawn for a dataset. Without the stream, its starts would be those of that seed's run."""
    return (DATASET, seed, *key) if seed else (seed, *key)
