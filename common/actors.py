"""A trained actor at work: what a script's own `policy` does, one observation after the other."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

Policy = Callable[..., Tensor | tuple[Tensor, ...]]
"""a script's `policy`: parameters (S, ...), obs (S, N, O) -> mean action (S, N, A), or a tuple that begins with it"""


def mean_action(policy: Policy, params: dict[str, Tensor], obs: Tensor) -> Tensor:  # (S, N, O) -> (S, N, A)
    """The mean action, clipped to [-1, 1]."""
    found = policy(params, obs)
    return (found[0] if isinstance(found, tuple) else found).clamp(-1, 1)


class Actor:
    """One seed's actor as a function of one observation (O,) or of several (..., O): numpy in and out.

    Args:
        policy: the script's.  arrays: the seed's parameters, without the S axis; as arrays they travel to workers.
    """

    def __init__(self, policy: Policy, arrays: dict[str, np.ndarray]):
        self.policy, self.arrays = policy, arrays

    @functools.cached_property
    def params(self) -> dict[str, Tensor]:
        return {name: torch.from_numpy(array).unsqueeze(0) for name, array in self.arrays.items()}

    @torch.inference_mode()
    def __call__(self, obs: np.ndarray) -> np.ndarray:  # (..., O) -> (..., A)
        rows = torch.from_numpy(np.asarray(obs, np.float32)).reshape(1, -1, obs.shape[-1])
        return mean_action(self.policy, self.params, rows)[0].numpy().reshape(*obs.shape[:-1], -1)
