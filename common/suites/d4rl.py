"""D4RL's locomotion: Gymnasium's -v4 environments, D4RL's HDF5 files, and labels by people."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import gymnasium
import numpy as np

from common.arrays import read_arrays
from common.download import Remote, on_github
from common.errors import InputError
from common.suites.base import (
    Episode,
    Labels,
    Preferences,
    Task,
    Transitions,
    check,
    check_actions,
    copy_with_rewards,
    describe_episodes,
    describe_pairs,
    pairs_by_index,
    pairs_of_transitions,
    released_by_ipl,
    require,
)
from common.suites.suite import Suite, or_rows

HOSTS = ("https://huggingface.co/datasets/imone/D4RL/resolve/main",
         "http://rail.eecs.berkeley.edu/datasets/offline_rl/gym_mujoco_v2")  # fmt: skip
"""a copy; D4RL's own host, which has been down or has refused since 2025, and has no https"""
SIMS = {  # Gymnasium's id, numbers of an observation and an action, returns of D4RL's random and expert policies
    "hopper": ("Hopper-v4", 11, 3, -20.272305, 3234.3),
    "walker2d": ("Walker2d-v4", 17, 6, 1.629008, 4592.3),
    "halfcheetah": ("HalfCheetah-v4", 17, 6, -280.178953, 12135.0),
}
HUMAN = {  # environment: file of human preferences, its git blob id
    "hopper-medium-expert-v2": (
        "hopper-medium-expert-v2/num100_human_train.npz", "e8104fff8d0a7c548e0850d07459296ac9b7335b"),
    "hopper-medium-replay-v2": (
        "hopper-medium-replay-v2/num500_human_train.npz", "a2fab7441f40ea9c37afc52734ebd29d722c3284"),
    "walker2d-medium-expert-v2": (
        "walker2d-medium-expert-v2/num100_human_train.npz", "ee5205bb6ef318e65d23da12a7300b65099112f2"),
    "walker2d-medium-replay-v2": (
        "walker2d-medium-replay-v2/num500_human_train.npz", "b0074f35a77c0afd9c28b45784f47ce976537d9f"),
}  # fmt: skip
BY_INDEX = {  # environment: pairs, git blob ids of DPPO's labels (An et al. 2023), first and second rows
    "halfcheetah-medium-expert-v2": (100, "0018c8e6100749c2424159348328d51c5d0c715d",
        "d25d487ff50c490c4f3e1112df7cdcfb91bb1c9a", "9226e2efe9f3e91e4f0dced9135bba75a642dce2"),
    "halfcheetah-medium-replay-v2": (500, "2d1f05ae3d8746ccbe768fc8309a2436ca29778f",
        "2f08e55a83e527e6438de2000b987f908a77ea92", "e575c589687df95b6b838f868cc93e38e498b8ec"),
}  # fmt: skip
CROWD = {  # environment: what its files end with, git blob ids of Uni-RLHF's labels, first and second rows
    "hopper-medium-v2": ("56a43ce26c274c57b041859cea924ba4",
        "8049ffbd2e4bd1181e948ea9595d49a90d208723", "e320a0872ec43eedbe2bedbccb976fb5b57f327f",
        "f372846f289754d2d7b434bd13d47ee2df70914c"),
    "hopper-medium-replay-v2": ("dac88b98e362447ca003697ebbb5e848",
        "68dacdb3f86b0ba69382346dfe14ad52047473b4", "a55913f5f82e2253918e47212da628baef61d932",
        "487f72f4cfa84b9fc7f7f6db6a7866a014c76352"),
    "hopper-medium-expert-v2": ("b71f61020bfd4306a301eb588c9adf73",
        "ff19caa29828096d8ab20b3a55afc3c26b9bd886", "f0416f6fc5d479556241e8bfdf11a4543092d04e",
        "a0a711b12c87e813b49ebd938949c86bb4fa27ad"),
    "walker2d-medium-v2": ("816cc972d9f94bcbb62bf31334ae7102",
        "4f81f106d8efeced738ce7c3dd498af168f29969", "375efb057d2c43470729298c06fb3d5679194099",
        "2f9c541a10448afd498d8c6856883313ed9ae1eb"),
    "walker2d-medium-replay-v2": ("1097743e12454b828655a2d7dd3aea4b",
        "249da66f123ad11c0be3b4fe84a5ec5f902bdf33", "c7f240ab3e72d3a934ed8465815b3fefbe1003e2",
        "7d780fa74fa41d2e0b79e3c25d9e99ee0df80926"),
    "walker2d-medium-expert-v2": ("6d00c4e31d9d402da9d9549f8638cbd1",
        "ffed8cbd29177142fafe1c166ac9078c84491699", "db9b9a02cae893f27f776704139d61733d2f9519",
        "af5b62507f68a41656ffd858460e6e8fabe3e1e7"),
    "halfcheetah-medium-v2": ("7d2759efb48a4363bf21e7fb7da88e2e",
        "692af42f68da7df3dd027e4765c14104aea97239", "39b89f590824815c60510e2b046592391ab29319",
        "40f75460e358289bc037c6ff3cc9b118300fe945"),
    "halfcheetah-medium-replay-v2": ("9d588534f41b488689e84a1d389cf7e3",
        "90d9b51d482102dc32ebf25ead42f3c9fe27e715", "88341156b4e509a13016713bdaacd603a5ae50c3",
        "5dcef3e841ae553a2a887e8398dd5800e575ac6c"),
    "halfcheetah-medium-expert-v2": ("974c2c83a5d54f649db18b77a5be8609",
        "d588e48127dc0537c2ff71f1a4ccd20f19c2ec41", "31886f8b001dfb8e0e3b83ae31f1024f06f78760",
        "facedf9693f5de73c3b142df1cc251c999132891"),
}  # fmt: skip


def dppo(env: str, pairs: int, *blobs: str) -> Labels:
    """Human labels of DPPO, on segments of 100 steps drawn as Preference Transformer draws them."""
    commit = ("snu-mllab/DPPO", "bce17567398673acbbddb25ffc5013090eadfb95")
    names = (f"{env}/label_human", f"{env}/indices_num{pairs}", f"{env}/indices_2_num{pairs}")
    files = zip(names, blobs, strict=True)
    return Labels(tuple(on_github(*commit, f"human_label/{name}", f"dppo/{name}", blob) for name, blob in files), 100)


def uni_rlhf(env: str, code: str, *blobs: str) -> Labels:
    """Crowd labels of Uni-RLHF (Yuan et al. 2024): 2,000 pairs of 200 steps. Its sampler loses count where an episode
    runs into its time limit after one that ended early, so that a segment may begin one row before its episode.
    """
    commit = ("pickxiguapi/Clean-Offline-RLHF", "30535018317565115619a5d0063c9bbbad21043e")
    ending = f"domain_mujoco_env_{env}_num_2000_len_200_{code}.pkl"
    names = (f"{env}_human_labels/{what}_{ending}" for what in ("human_label", "indices_1", "indices_2"))
    files = tuple(on_github(*commit, f"crowdsource_human_labels/{name}", f"crowd/{name}", blob)
                  for name, blob in zip(names, blobs, strict=True))  # fmt: skip
    return Labels(files, 200, within=False)


RELEASED = {  # the human pairs labelled by reward
    "hopper-medium-expert-v2": (
        "hopper-medium-expert-v2/num100_script_train.npz", "255acf2fa4d254b01f526c707385b30951fc14a8"),
    "hopper-medium-replay-v2": (
        "hopper-medium-replay-v2/num500_script_train.npz", "1166755174b2323549d07147829d83d311ab6196"),
    "walker2d-medium-expert-v2": (
        "walker2d-medium-expert-v2/num100_script_train.npz", "5033751d3287724c568e55847a1a435e981f8737"),
    "walker2d-medium-replay-v2": (
        "walker2d-medium-replay-v2/num500_script_train.npz", "3f6fc8d7bed67a7b262553f3aa099dd10dbefc84"),
}  # fmt: skip
HORIZON = 1000
"""steps after which an episode is cut off"""


class D4RLSuite(Suite):
    LABELS: ClassVar = {
        "human": {env: released_by_ipl(f"preference_transformer/{name}", blob) for env, (name, blob) in HUMAN.items()}
        | {env: dppo(env, *files) for env, files in BY_INDEX.items()},
        "crowd": {env: uni_rlhf(env, *files) for env, files in CROWD.items()},
        "released": {
            env: released_by_ipl(f"preference_transformer/{name}", blob) for env, (name, blob) in RELEASED.items()
        },
    }

    def names(self) -> list[str]:
        return [f"{task}-{kind}-v2" for task in SIMS for kind in ("medium", "medium-replay", "medium-expert")]

    def about(self, task: Task) -> str:
        return "Run forward as fast as possible without falling."

    def canonical(self, env: str) -> str | None:
        name = f"{env.removesuffix('-v2').removesuffix('-v3')}-v2"
        return name if name in self.names() else None

    def find(self, env: str, max_steps: int) -> Task:
        _, obs_dim, act_dim, *_ = SIMS[env.split("-")[0]]
        return Task("d4rl", env, obs_dim, act_dim, max_steps)

    def make(self, task: Task, render: bool = False) -> gymnasium.Env:
        """Gymnasium's -v4 is the nearest to the environments of the datasets; -v5 has other observations."""
        gymnasium.logger.min_level = gymnasium.logger.ERROR  # it would advise -v5
        extra = {"render_mode": "rgb_array", "camera_name": "track"} if render else {}  # else it walks out of sight
        extra |= {"max_episode_steps": task.max_steps} if task.max_steps else {}  # a wrapper could not lengthen them
        return gymnasium.make(SIMS[task.env.split("-")[0]][0], disable_env_checker=True, **extra)

    def score(self, task: Task, episode_return: float) -> float:
        *_, low, high = SIMS[task.env.split("-")[0]]
        return 100 * (episode_return - low) / (high - low)

    def remote(self, task: Task) -> Remote:
        name = f"{task.env.removesuffix('-v2').replace('-', '_')}-v2.hdf5"
        return Remote(f"d4rl/{name}", tuple(f"{host}/{name}" for host in HOSTS))

    @or_rows
    def read_transitions(self, path: Path, task: Task) -> Transitions:
        """Like D4RL's `qlearning_dataset`: a time limit ends an episode without a terminal state, and that step, whose
        next observation is another episode's, is left out, as is the file's last one. Unlike it, a step that is
        terminal is kept: one that runs into the time limit too, and the file's last. (In IPL's reader a step at the
        time limit leads to its own observation, and an episode within which the file ends is left out.)
        """
        obs, action, reward, terminal, timeout = read_raw(path, task)
        keep = kept(terminal, timeout)
        # nothing follows a terminal state: the row itself stands in, and its value is multiplied by zero
        follows = np.where(terminal[keep], keep, keep + 1)
        return Transitions(obs[keep], action[keep], reward[keep], obs[follows], terminal[keep].astype(np.float32))

    @or_rows
    def write_rewards(self, path: Path, task: Task, target: str, reward: np.ndarray, made: dict) -> None:
        """Steps that `read_transitions` leaves out get 0."""
        _, _, column, terminal, timeout = read_raw(path, task)
        column = np.zeros_like(column)
        column[kept(terminal, timeout)] = reward
        copy_with_rewards(path, target, {"rewards": column}, made)

    @or_rows
    def describe(self, path: Path, task: Task) -> list[str]:
        """In the file's own rewards; those of pairs are scaled, see `read_raw`."""
        raw = read_arrays(path, lambda name: name == "rewards")["rewards"].astype(np.float64)
        lengths = [len(episode.reward) for episode in self.read_episodes(path, task)]
        returns = np.add.reduceat(raw, np.cumsum([0, *lengths[:-1]])).tolist()
        transitions = f"{len(self.read_transitions(path, task).obs)} transitions"
        return [transitions, *describe_episodes(lengths, returns), *describe_pairs(self.read_pairs(path, task))]

    def segment(self, task: Task) -> int:
        return 100  # as long as those that people labelled

    @or_rows
    def read_pairs(self, path: Path, task: Task) -> Preferences:
        return pairs_of_transitions(path, self.read_transitions(path, task), self.segment(task))

    def read_labels(self, labels: Labels, files: list[Path], path: Path, task: Task) -> Preferences:
        obs, action, reward, terminal, timeout = read_raw(path, task)
        keep = rows_of_labels(timeout)
        episode = np.cumsum(np.append(False, (terminal | timeout)[:-1]))[keep]
        rows = Preferences(obs[keep], action[keep], np.empty((0, 2)), np.empty(0), labels.segment, reward[keep])
        return pairs_by_index(labels, files, path, rows, episode)

    @or_rows
    def read_episodes(self, path: Path, task: Task) -> list[Episode]:
        obs, action, reward, terminal, timeout = read_raw(path, task)
        ends = np.append(np.flatnonzero((terminal | timeout)[:-1]) + 1, len(obs))
        return [Episode(obs[i:j], action[i:j], reward[i:j], {})
                for i, j in zip(np.append(0, ends[:-1]), ends, strict=True)]  # fmt: skip

    def replay(self, sim: gymnasium.Env, episode: Episode, first: int) -> Iterator[np.ndarray]:
        """From the observations, which lack only the position along the track: it is the sum of the speeds. (The
        `infos` of some files belong to other steps: github.com/Farama-Foundation/D4RL/issues/100.)
        """
        if episode.state:  # tools.record's
            yield from super().replay(sim, episode, first)
            return
        sim.reset()
        target, position = sim.unwrapped, 0.0
        for obs in episode.obs[first:].astype(np.float64):
            target.set_state(np.append(position, obs[: target.model.nq - 1]), obs[target.model.nq - 1 :])
            position += target.data.qvel[0] * target.dt
            yield target._get_obs()


# ---------------------------------------------------------------- data
def read_raw(path: Path, task: Task) -> tuple[np.ndarray, ...]:
    """D4RL's HDF5 as it is: obs (T, O), action (T, A), reward, terminal, timeout (T,), the last one as counted by
    `at_time_limit` where the file has no `timeouts`.

    Rewards are scaled by 1000 / (largest - smallest return), as IQL and IPL do for locomotion. An episode within which
    the file ends counts for neither, as in their readers, unless it is the only one.
    """
    keys = ("observations", "actions", "rewards", "terminals", "timeouts")
    arrays = read_arrays(path, lambda name: name in keys)
    require(path, arrays, keys[:-1])
    rows = len(check(path, "observations", arrays["observations"], (None, task.obs_dim)))
    if not rows:
        raise InputError(f"{path}: 'observations' is empty; make the file again")
    action = check_actions(path, "actions", arrays["actions"], (rows, task.act_dim))
    reward = check(path, "rewards", arrays["rewards"], (rows,)).astype(np.float32)
    terminal = check(path, "terminals", arrays["terminals"], (rows,), 0, 1).astype(bool)
    timeout = (check(path, "timeouts", arrays["timeouts"], (rows,), 0, 1).astype(bool) if "timeouts" in arrays
               else at_time_limit(terminal))  # fmt: skip
    first = np.flatnonzero(np.append(True, (terminal | timeout)[:-1]))
    returns = np.add.reduceat(reward.astype(np.float64), first)
    if len(returns) > 1 and not (terminal | timeout)[-1]:
        returns = returns[:-1]
    scale = 1000 / max(returns.max() - returns.min(), 1e-6)
    obs = arrays["observations"].astype(np.float32)
    return obs, action, (reward * scale).astype(np.float32), terminal, timeout


def at_time_limit(terminal: np.ndarray) -> np.ndarray:
    """(T,): every HORIZON-th step of an episode, which a file without timeouts does not mark."""
    row = np.arange(len(terminal))
    first = np.maximum.accumulate(np.where(np.append(True, terminal[:-1]), row, 0))  # after the last terminal state
    return (row - first) % HORIZON == HORIZON - 1


def kept(terminal: np.ndarray, timeout: np.ndarray) -> np.ndarray:
    """The rows that `read_transitions` keeps."""
    keep = np.flatnonzero(terminal | ~timeout)
    return keep[(keep < len(terminal) - 1) | terminal[keep]]


def rows_of_labels(timeout: np.ndarray) -> np.ndarray:
    """The rows that `d4rl.qlearning_dataset` keeps, in its numbering, which labels by index count in: all but those at
    a time limit, terminal or not, and the file's last. `read_transitions` keeps more, and must not number labels.
    """
    return np.flatnonzero(~timeout[:-1])
