"""Which key draws which random number. Every draw is a function of its key alone, so nothing random is ever saved.

initial weights            torch.Generator(seed)
a batch of pairs           numpy, [PAIRS, seed, epoch]
a batch of the dataset     numpy, [REPLAY, seed, chunk of updates]
dropout, sampled actions   torch, seed_of(NOISE, seed, update)
the start of an episode    the environment, seed_of(seed, update, episode)
an episode of a dataset    numpy, [seed, episode]; its starts: seed_of(seed, episode, 0 or 1)
pairs that people label     numpy, [LABELS, seed, what is drawn]
"""

from __future__ import annotations

import numpy as np

PAIRS, REPLAY, NOISE, LABELS = 1, 2, 3, 4
"""streams: one key each, so that no two share their draws"""


def seed_of(*key: int) -> int:
    """One 32-bit seed from several numbers, without the collisions of adding them."""
    return int(np.random.SeedSequence((len(key), *key)).generate_state(1)[0])  # (1, 0) alone would equal (1,)
