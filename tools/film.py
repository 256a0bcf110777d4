"""A film of one episode of a policy, with its learned and its true reward as curves: `tools.reward --film` makes it."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from common import suites
from common.actors import Actor
from common.errors import InputError
from common.locks import atomic
from common.rollouts import require_rendering, success_of, write_video
from common.suites.base import Task
from common.workers import Workers

FRAME_EVERY, STEPS_AFTER_SUCCESS, GIF_BYTES = 4, 24, 1_000_000
"""steps between two pictures; steps after the first success; size of a GIF, which is drawn smaller until it fits"""
LEARNED, TRUE = "#0072B2", "#D55E00"


def scaled(reward: np.ndarray) -> np.ndarray:
    """Mean zero, standard deviation one: what a preference cannot tell of a reward."""
    return (reward - reward.mean()) / max(reward.std(), 1e-12)


def record(task: Task, act: Actor, seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """One episode of n steps, up to a while after its success.

    Returns:
        Pictures (H, W, 3) of every FRAME_EVERY-th step; obs, action, next_obs (n, .), terminal, reward (n,).
    """
    env = suites.make(task, render=True)
    obs, rows, frames, end, done = env.reset(seed=seed)[0], [], [], math.inf, False
    while not done and len(rows) < end:
        if len(rows) % FRAME_EVERY == 0:
            frames.append(env.render())
        action = act(obs)
        next_obs, reward, terminated, truncated, info = env.step(action)
        rows.append((obs, action, next_obs, float(terminated), float(reward)))
        obs, done = next_obs, terminated or truncated
        if success_of(info):
            end = min(end, len(rows) + STEPS_AFTER_SUCCESS)
    return frames, [np.array(column) for column in zip(*rows, strict=True)]


def draw_film(frames: list[np.ndarray], learned: np.ndarray, true: np.ndarray) -> list[Image.Image]:
    """Every picture with the rewards (n,) beside it, bold up to its step, both scaled over the episode."""
    drawn = []
    for k, frame in enumerate(frames):
        figure = Figure(figsize=(7.8, 3.6), dpi=100, layout="constrained")
        picture, axes = figure.subplots(1, 2)
        picture.imshow(frame)
        picture.set_axis_off()
        for reward, words, colour in ((learned, "learned reward", LEARNED), (true, "true reward", TRUE)):
            axes.plot(scaled(reward), color=colour, alpha=0.15)
            axes.plot(scaled(reward)[: k * FRAME_EVERY + 1], color=colour, label=words)
        axes.set(xlabel="step", ylabel="reward, scaled")
        axes.legend(loc="upper left")
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        drawn.append(Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]))
    return drawn


def write_film(path: Path, pictures: list[Image.Image]) -> None:
    """MP4, or a GIF of at most GIF_BYTES."""
    if path.suffix == ".mp4":
        return write_video(path, [np.asarray(p) for p in pictures], 15)
    for factor in (1.0, 0.85, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2):
        small = [p.resize((int(p.width * factor), int(p.height * factor)), Image.Resampling.LANCZOS) for p in pictures]
        palette = small[-1].quantize(64)
        coded = [p.quantize(palette=palette, dither=Image.Dither.NONE) for p in small]
        memory = io.BytesIO()
        wait = [80] * (len(coded) - 1) + [1500]  # ms; the last picture stands
        coded[0].save(memory, "GIF", save_all=True, append_images=coded[1:], duration=wait, loop=0, optimize=True)
        if memory.tell() <= GIF_BYTES:
            break
    with atomic(path) as partial:
        partial.write_bytes(memory.getvalue())


def make_film(path: Path, task: Task, act: Actor, learned_reward: Callable, seed: int) -> None:
    """Record an episode and write its film.

    Args:
        learned_reward: obs, action, next_obs (n, .), terminal (n,) -> rewards (n,).

    Raises:
        InputError: `path` is no .mp4 or .gif, or the environment cannot be rendered here.
    """
    if path.suffix not in (".mp4", ".gif") or not path.parent.is_dir():
        raise InputError(f"--film {path}: must be an .mp4 or .gif in a folder that exists")
    with contextlib.closing(Workers(1)) as workers:
        require_rendering(workers, task, "--film")
    frames, (*transitions, true) = record(task, act, seed)
    write_film(path, draw_film(frames, learned_reward(*transitions), true))
    print(f"{path}: {len(true)} steps, {path.stat().st_size / 1e6:.2f} MB")
