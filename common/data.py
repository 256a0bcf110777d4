"""A script's arguments -> its buffers. What is missing is built or downloaded."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from common import suites
from common.arrays import fingerprint
from common.buffers import PreferenceBuffer, ReplayBuffer
from common.errors import InputError
from common.suites.base import Labels, Preferences, Task, read_npz_pairs
from common.workers import Workers


def read_preferences(path: Path, task: Task) -> Preferences:
    """The pairs of an NPZ, or those of an offline dataset, labelled from its rewards.

    Raises:
        InputError: a key is missing, a shape, number or label is wrong, or the file is another environment's.
    """
    suite = suites.SUITES[task.suite]
    p = read_npz_pairs(path, task) if path.suffix == ".npz" else suite.read_pairs(path, task)
    suite.hint(path, p, task)
    return p


WITHOUT = "name one with --dataset FILE, or take --preferences FILE with --no-use-replay"
"""what a script can do without its environment's own dataset"""


def find_files(args, task: Task, workers: Workers, advice: str = WITHOUT) -> tuple[list[Path], Path | None, Labels]:
    """The files of the pairs, the offline dataset's (None where nothing needs it), and how labels by index count.

    Args:
        advice: what the command that asks can do without the offline dataset.

    Raises:
        InputError: they cannot be had.
    """
    dataset = Path(args.dataset) if args.dataset not in ("", task.env) else None  # the task's own
    files, labels = [Path(args.preferences)] if args.preferences else [], Labels(())
    if not files and args.preference_labels != "script":
        labels = suites.labels_of(task, args.preference_labels)
        with suites.advised(advice):
            files = suites.fetch(labels, args.data_dir, workers.stop)
    if dataset is None and (args.use_replay or not files or labels.segment):
        dataset = suites.own_dataset(task, args.data_dir, workers, advice)
    return files or [dataset], dataset, labels


def read_pairs(files: list[Path], dataset: Path | None, labels: Labels, task: Task) -> Preferences:
    """The pairs of what `find_files` found."""
    if labels.segment:
        return suites.SUITES[task.suite].read_labels(labels, files, dataset, task)
    return read_preferences(files[0], task)


def load_buffers(args, task: Task, workers: Workers, device: torch.device):
    """
    Returns:
        PreferenceBuffer; ReplayBuffer, or None without --use-replay; fingerprints of their files.

    Raises:
        InputError: a file is wrong, or there are fewer than --num-preferences pairs.
    """
    files, dataset, labels = find_files(args, task, workers)
    p = read_pairs(files, dataset, labels, task)
    count = args.num_preferences or len(p.label)
    if count > len(p.label):
        raise InputError(f"--num-preferences {count}: {files[0]} holds {len(p.label)} pairs; 0 takes all of them")
    pairs = PreferenceBuffer(p.obs, p.action, p.start[:count], p.label[:count], p.length, p.reward, device)
    pairs.check(args.preference_batch_size, args.segment_length)
    ties = (p.label[:count] == 0.5).sum()
    if ties > 0.8 * count:
        print(f"{files[0]}: {ties} of {count} pairs are ties, which say little about what is better", file=sys.stderr)
    fingerprints, replay = {"preferences": fingerprint(*files)}, None
    if args.use_replay or labels.segment:
        fingerprints["dataset"] = fingerprint(dataset)
    if args.use_replay:
        t = suites.SUITES[task.suite].read_transitions(dataset, task)
        replay = ReplayBuffer(t.obs, t.action, t.reward, t.next_obs, t.terminal, device)
    return pairs, replay, fingerprints
