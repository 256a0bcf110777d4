"""A script's arguments -> its buffers. What is missing is built or downloaded."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from common import suites
from common.arrays import fingerprint
from common.buffers import PreferenceBuffer, ReplayBuffer
from common.errors import InputError
from common.suites.base import Labels, Preferences, Task, Transitions, read_npz_pairs
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


def join_pairs(parts: list[Preferences]) -> Preferences:
    """The pairs of several files as those of one, in the order given. Rewards: where all have them. The discount of
    returns: the first one's.
    """
    if len(parts) == 1:
        return parts[0]
    before = np.cumsum([0, *(len(p.obs) for p in parts[:-1])])  # rows ahead of each file's own
    lengths = np.repeat([p.length for p in parts], [len(p.label) for p in parts])
    shortest = int(lengths.min())
    start = np.concatenate([p.start + row for p, row in zip(parts, before, strict=True)])
    obs, action, label, reward = (joined([getattr(p, name) for p in parts])
                                  for name in ("obs", "action", "label", "reward"))  # fmt: skip
    lengths = lengths if shortest < lengths.max() else None
    return Preferences(obs, action, start, label, shortest, reward, parts[0].gamma, lengths)


def read_transitions(paths: list[Path], task: Task) -> Transitions:
    """The transitions of offline datasets, one file after the other. Rewards: where all have them.

    Raises:
        InputError: a key is missing, a shape or number is wrong, or a file is another environment's.
    """
    parts = [suites.SUITES[task.suite].read_transitions(path, task) for path in paths]
    if len(parts) == 1:
        return parts[0]
    return Transitions(**{name: joined([getattr(t, name) for t in parts]) for name in vars(parts[0])})


def listed(paths: list[Path]) -> str:
    """Files as a message names them."""
    return " ".join(map(str, paths))


def joined(columns: list[np.ndarray | None]) -> np.ndarray | None:
    """Columns of several files as one; None where a file lacks it."""
    return None if any(column is None for column in columns) else np.concatenate(columns)


WITHOUT = "name one with --dataset FILE, or take --preferences FILE with --no-use-replay"
"""what a script can do without its environment's own dataset"""


def find_files(args, task: Task, workers: Workers, advice: str = WITHOUT) -> tuple[list[Path], list[Path], Labels]:
    """The files of the pairs, the offline dataset's (none where nothing needs it), and how labels by index count.

    Args:
        advice: what the command that asks can do without the offline dataset.

    Raises:
        InputError: they cannot be had.
    """
    names, files, labels = suites.several(args.dataset), list(map(Path, suites.several(args.preferences))), Labels(())
    if not files and args.preference_labels != "script":
        labels = suites.labels_of(task, args.preference_labels)
        if labels.segment and len(names) > 1:
            raise InputError(f"--dataset {' '.join(names)}: the pairs of --preference-labels {args.preference_labels} "
                             "are rows of one dataset; name one, or take --preferences FILE")  # fmt: skip
        with suites.advised(advice):
            files = suites.fetch(labels, args.data_dir, workers.stop)
    if not (args.use_replay or not files or labels.segment):
        names = tuple(name for name in names if name != task.env)  # what nothing needs is not built
        return files, list(map(Path, names)), labels
    datasets = suites.find_datasets(names, task, args.data_dir, workers, advice)
    return files or datasets, datasets, labels


def read_pairs(files: list[Path], datasets: list[Path], labels: Labels, task: Task) -> Preferences:
    """The pairs of what `find_files` found."""
    if labels.segment:
        return suites.SUITES[task.suite].read_labels(labels, files, datasets[0], task)
    return join_pairs([read_preferences(path, task) for path in files])


def load_buffers(args, task: Task, workers: Workers, device: torch.device, pairs: bool = True):
    """
    Args:
        pairs: whether to read pairs; else the offline dataset alone.

    Returns:
        PreferenceBuffer or None; ReplayBuffer, or None without --use-replay; fingerprints of their files.

    Raises:
        InputError: a file is wrong, or there are fewer than --num-preferences pairs.
    """
    preferences, replay, fingerprints = None, None, {}
    if pairs:
        files, datasets, labels = find_files(args, task, workers)
        preferences = load_pairs(args, files, read_pairs(files, datasets, labels, task), device)
        if args.dataset and not args.preferences and files == datasets:
            print(f"{listed(files)}: {len(preferences)} pairs of the dataset itself, as its rewards or its file label "
                  "them; --preferences FILE takes a person's answers", file=sys.stderr)  # fmt: skip
        fingerprints["preferences"] = fingerprint(*files)
    else:
        datasets = suites.find_datasets(suites.several(args.dataset), task, args.data_dir, workers, WITHOUT)
    if args.use_replay or (pairs and labels.segment):
        fingerprints["dataset"] = fingerprint(*datasets)
    if args.use_replay:
        t = read_transitions(datasets, task)
        replay = ReplayBuffer(t.obs, t.action, t.reward, t.next_obs, t.terminal, device)
    return preferences, replay, fingerprints


def load_pairs(args, files: list[Path], p: Preferences, device: torch.device) -> PreferenceBuffer:
    """The first --num-preferences of the pairs `p`, which come from `files`. InputError: there are fewer."""
    count, where = args.num_preferences or len(p.label), listed(files)
    if count > len(p.label):
        raise InputError(f"--num-preferences {count}: there are {len(p.label)} pairs in {where}; 0 takes all of them")
    lengths = None if p.lengths is None else p.lengths[:count]
    length = p.length if lengths is None else int(lengths.min())  # of those that are taken
    if lengths is not None and lengths.max() == length:
        lengths = None
    pairs = PreferenceBuffer(p.obs, p.action, p.start[:count], p.label[:count], length, p.reward, device, lengths)
    pairs.check(args.preference_batch_size, args.segment_length)
    if lengths is not None and not args.segment_length:
        print(f"{where}: segments have {length} to {lengths.max()} steps; windows of {length} are taken from all",
              file=sys.stderr)  # fmt: skip
    ties = (p.label[:count] == 0.5).sum()
    if ties > 0.8 * count:
        print(f"{where}: {ties} of {count} pairs are ties, which say little about what is better", file=sys.stderr)
    return pairs
