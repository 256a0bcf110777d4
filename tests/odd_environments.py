"""Small environments that broke the project: one kind of fault each. Import registers them; episodes have 7 steps."""

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, Tuple


class Base(gymnasium.Env):
    """Random observations (3,); the reward is minus the squared action."""

    observation_space = Box(-np.inf, np.inf, (3,), np.float64)
    action_space = Box(-1, 1, (2,), np.float32)

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.np_random.normal(size=3), {}

    def step(self, action):
        self.t += 1
        reward = -float(np.square(np.asarray(action, float)).sum())
        return self.np_random.normal(size=3), reward, False, False, {}


class SuccessWhenSolved(Base):
    """Half of the episodes are solved at step 5, and only that step's info has `success`. Right: about 0.5."""

    def step(self, action):
        obs, reward, _, truncated, _ = super().step(action)
        solved = self.t == 5 and self.np_random.random() < 0.5
        return obs, reward, solved, truncated, {"success": True} if solved else {}


class SuccessArray(Base):
    """Success as an array of one element."""

    def step(self, action):
        return *super().step(action)[:4], {"success": np.array([self.t > 2])}


class NanReward(Base):
    """A reward that is NaN in about one episode of ten."""

    def step(self, action):
        obs, reward, *rest = super().step(action)
        return obs, float("nan") if self.t == 3 and self.np_random.random() < 0.1 else reward, *rest


class LockedGripper(Base):
    """One action cannot move: low equals high."""

    action_space = Box(np.array([-1, 0.5], np.float32), np.array([1, 0.5], np.float32))


class WholeNumbers(Base):
    """A bounded vector of integers."""

    action_space = Box(0, 10, (2,), np.int64)


class WholeRange(Base):
    """Bounds that are finite and useless."""

    action_space = Box(-np.finfo(np.float32).max, np.finfo(np.float32).max, (2,), np.float32)


class OldReset(Base):
    """The API before Gymnasium: `reset` gives an observation alone."""

    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed)[0]


class OldStep(Base):
    """The API before Gymnasium: `step` gives four things."""

    def step(self, action):
        return *super().step(action)[:3], {}


class NoSeed(Base):
    """`reset` takes no seed."""

    def reset(self):
        self.t = 0
        return np.zeros(3), {}


class RewardArray(Base):
    """A reward of shape (1,), and flags likewise."""

    def step(self, action):
        obs, reward, *_, info = super().step(action)
        return obs, np.array([reward]), np.array([False]), np.array([False]), info


class Follow(gymnasium.Env):
    """Reward -|action - target|. The keys of the observation are declared in another order than the alphabet's, as a
    dataset may store them. Right: trained by cloning of actions equal to the target, the return nears 0."""

    action_space = Box(-1, 1, (1,))

    def __init__(self, render_mode=None):
        self.render_mode = render_mode
        self.observation_space = Dict(target=Box(-1, 1, (1,)), noise=Box(-1, 1, (1,)))

    def _obs(self):
        return {name: self.np_random.uniform(-1, 1, 1).astype(np.float32) for name in ("target", "noise")}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.now = self._obs()
        return self.now, {}

    def step(self, action):
        reward = -abs(float(action[0] - self.now["target"][0]))
        self.now = self._obs()
        return self.now, reward, False, False, {}


for kind in Base.__subclasses__():
    gymnasium.register(f"{kind.__name__}-v0", kind, max_episode_steps=7)
gymnasium.register("Follow-v0", "tests.odd_environments:Follow", max_episode_steps=60)


class DictSuccess(Base):
    """Success as a dict, which nobody can average."""

    def step(self, action):
        return *super().step(action)[:4], {"success": {"reached": True}}


class FinalInfo(Base):
    """Success as a wrapper that resets by itself keeps it: in `final_info` of the last step, as numpy's bool."""

    def step(self, action):
        return *super().step(action)[:4], {"final_info": {"is_success": np.bool_(True)}} if self.t == 7 else {}


class NanObservation(Base):
    """An observation that is NaN from step 3 on."""

    def step(self, action):
        obs, *rest = super().step(action)
        return obs * (np.nan if self.t >= 3 else 1), *rest


class WrongShape(Base):
    """Observations of another shape than the space says."""

    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed)[0][:2], {}


for kind in (DictSuccess, FinalInfo, NanObservation, WrongShape):
    gymnasium.register(f"{kind.__name__}-v0", kind, max_episode_steps=7)


class OwnArray(Base):
    """Returns its own state, which it goes on to change."""

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = np.zeros(3)
        return self.state, {}

    def step(self, action):
        self.state += 0.1
        return self.state, 1.0, False, False, {}


gymnasium.register("OwnArray-v0", OwnArray, max_episode_steps=7)


class Nested(gymnasium.Env):
    """What worked, and stays so: nested spaces, float64, a goal, an episode that ends with its first step."""

    observation_space = Dict(
        arm=Box(-1, 1, (2, 2), np.float64), mode=Tuple((Discrete(3), MultiBinary(2))),
        goal=Dict(achieved_goal=Box(-1, 1, (3,)), desired_goal=Box(-1, 1, (3,))),
    )  # fmt: skip
    action_space = Box(np.array([-2.0, 0.0]), np.array([3.0, 1.0]), dtype=np.float64)

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 1.0, True, False, {}


gymnasium.register("Nested-v0", Nested, max_episode_steps=9)


# ---------------------------------------------------------------- recorded by tools.record
XML = """
<mujoco>
  <visual><global offwidth="64" offheight="64"/></visual>
  <worldbody>
    <light pos="0 0 3"/><camera name="above" pos="0 0 3"/>
    <geom type="plane" size="1 1 .1"/>
    <body>
      <joint name="x" type="slide" axis="1 0 0" damping="1"/><joint name="y" type="slide" axis="0 1 0" damping="1"/>
      <geom type="sphere" size=".2" mass="1" rgba="1 0 0 1" contype="0" conaffinity="0"/>
    </body>
  </worldbody>
  <actuator><motor joint="x" gear="10"/><motor joint="y" gear="10"/></actuator>
</mujoco>
"""


class Disc(gymnasium.Env):
    """A disc in MuJoCo that thrusters push to the centre: Dict observations, actions in [0, 2], where 1 is no push.
    Episodes have 30 steps, and end at the edge of the table."""

    def __init__(self, render_mode=None):
        import mujoco

        self.render_mode, self.mujoco = render_mode, mujoco
        self.model = mujoco.MjModel.from_xml_string(XML)
        self.data, self.renderer = mujoco.MjData(self.model), None
        self.action_space = Box(0, 2, (2,), np.float32)
        self.observation_space = Dict(place=Box(-np.inf, np.inf, (2,)), velocity=Box(-np.inf, np.inf, (2,)))

    def _obs(self):
        return {"velocity": self.data.qvel.copy(), "place": self.data.qpos.copy()}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:] = self.np_random.uniform(-0.9, 0.9, 2)
        self.mujoco.mj_forward(self.model, self.data)
        return self._obs(), {}

    def step(self, action):
        self.data.ctrl[:] = np.clip(action, 0, 2) - 1
        self.mujoco.mj_step(self.model, self.data, nstep=20)
        away = float(np.abs(self.data.qpos).max())
        return self._obs(), -away, away > 1, False, {"success": away < 0.1} if away < 0.5 else {}

    def render(self):
        self.renderer = self.renderer or self.mujoco.Renderer(self.model, 64, 64)
        self.renderer.update_scene(self.data, "above")
        return self.renderer.render()


class Forgetful(Disc):
    """Its start is not a function of the seed."""

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.data.qpos[:] = np.random.default_rng().uniform(-0.8, 0.8, 2)
        self.mujoco.mj_forward(self.model, self.data)
        return self._obs(), {}


for kind in (Disc, Forgetful):
    gymnasium.register(f"{kind.__name__}-v0", kind, max_episode_steps=30)
gymnasium.register("Endless-v0", Disc)


class Drunk:
    """Towards the centre, with an error that it draws at each reset from a generator of its own, and at each step."""

    def __init__(self):
        self.rng = np.random.default_rng(0)

    def reset(self):
        self.turn, self.steps = self.rng.normal(0, 0.5), 0

    def __call__(self, obs):  # [place, velocity]: in the order of the space
        self.steps += 1
        assert self.steps <= 30 and obs.shape == (4,)
        cos, sin = np.cos(self.turn), np.sin(self.turn)
        push = -np.array([[cos, -sin], [sin, cos]]) @ (2 * obs[:2] + obs[2:]) + 0.1 * self.rng.normal(size=2)
        return (push.clip(-1, 1) + 1).astype(np.float32)


def still(obs):
    return np.ones(2)


def dice(obs):
    """By numpy's own generator, which all of a process share."""
    return np.random.uniform(0, 2, 2)


def far(obs):
    return np.array([3.0, 1.0])


def flat(obs):
    return np.ones(3)


def nan(obs):
    return np.array([np.nan, 1.0])


def broken(obs):
    return [1 / 0, 1.0]


def two(obs, more):
    return np.ones(2)


class BornRandom:
    """Draws when it is made."""

    def __init__(self):
        self.torque = np.random.uniform(0, 2)

    def __call__(self, obs):
        return np.full(2, self.torque)


class Needy:
    def __init__(self, path):
        self.path = path


number = 7
