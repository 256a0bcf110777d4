"""A dot that should come to the middle: it draws itself without OpenGL. Import registers it and two that fail."""

import gymnasium
import numpy as np


class Dot(gymnasium.Env):
    """Observation: position (2,); action: speed (2,) in [0, 2], where 1 is none; 40 steps of 1/20 s."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 (as Gymnasium's own)
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gymnasium.spaces.Box(0.0, 2.0, (2,), np.float32)

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at = self.np_random.uniform(-0.9, 0.9, 2)
        return self.at.copy(), {}

    def step(self, action):
        self.at = (self.at + 0.1 * (np.asarray(action) - 1)).clip(-1, 1)
        distance = np.linalg.norm(self.at)
        return self.at.copy(), -float(distance), False, False, {"success": bool(distance < 0.1)}

    def render(self):
        picture = np.full((64, 64, 3), 255, np.uint8)
        x, y = (31 + 28 * self.at).astype(int)
        picture[y - 3 : y + 4, x - 3 : x + 4] = (200, 0, 0)
        return picture


class Unseeded(Dot):
    """Starts elsewhere than its seed says."""

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at = np.random.default_rng().uniform(-0.9, 0.9, 2)
        return self.at.copy(), {}


class Blind(Dot):
    """Cannot be asked for pictures."""

    def __init__(self):
        pass


for kind in (Dot, Unseeded, Blind):
    gymnasium.register(f"{kind.__name__}-v0", kind, max_episode_steps=40)
