"""A script's arguments -> its buffers. What is missing is built or downloaded."""

from __future__ import annotations

from pathlib import Path

import torch

from common import suites
from common.buffers import PreferenceBuffer, ReplayBuffer
from common.files import InputError, fingerprint
from common.rollouts import Workers
from common.suites.base import Preferences, Task, read_npz_pairs


def read_preferences(path: Path, task: Task) -> Preferences:
    """The pairs of an NPZ, or those of an offline dataset, labelled from its rewards.

    Raises:
        InputError: a key is missing, a shape, number or label is wrong, or the file is another environment's.
    """
    return read_npz_pairs(path, task) if path.suffix == ".npz" else suites.SUITES[task.suite].read_pairs(path, task)


def find_files(args, task: Task, workers: Workers) -> tuple[Path, Path | None]:
    """The file of the pairs and that of the offline dataset (None where nothing needs it), built or downloaded.

    Raises:
        InputError: they cannot be had.
    """
    dataset = Path(args.dataset) if args.dataset else None
    source = Path(args.preferences) if args.preferences else None
    if source is None and args.preference_labels == "human":
        source = suites.human_pairs(task, args.data_dir, workers.stop)
    if dataset is None and (args.use_replay or source is None):
        dataset = suites.SUITES[task.suite].dataset(task, args.data_dir, workers)
    return source or dataset, dataset


def load(args, task: Task, workers: Workers, device: torch.device):
    """
    Returns:
        PreferenceBuffer; ReplayBuffer, or None without --use-replay; fingerprints of their files.

    Raises:
        InputError: a file is wrong, or there are fewer than --num-preferences pairs.
    """
    suite = suites.SUITES[task.suite]
    source, dataset = find_files(args, task, workers)
    p = read_preferences(source, task)
    count = args.num_preferences or len(p.label)
    if count > len(p.label):
        raise InputError(f"--num-preferences {count}: {source} holds {len(p.label)} pairs; 0 takes all of them")
    pairs = PreferenceBuffer(p.obs, p.action, p.start[:count], p.label[:count], p.length, p.reward, device)
    pairs.check(args.preference_batch_size, args.segment_length)
    fingerprints, replay = {"preferences": fingerprint(source)}, None
    if args.use_replay:
        t = suite.read_transitions(dataset, task)
        replay = ReplayBuffer(t.obs, t.action, t.reward, t.next_obs, t.terminal, device)
        fingerprints["dataset"] = fingerprint(dataset)
    return pairs, replay, fingerprints
