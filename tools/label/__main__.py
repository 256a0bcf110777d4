"""Label your own pairs of segments in a browser, and read the commands that train on them.

    python -m tools.label --env drawer-open-v2 --pairs 100
    python -m tools.label --env my_package:My-v0 --dataset data/mine.hdf5 --pairs 50
    python -m tools.label --env drawer-open-v2 --merge       # the answers of several people -> one NPZ
    python -m tools.label --dataset data/both.hdf5 --judge   # which of its policies is better

A question is a pair of segments of the offline dataset, shown as two videos: replayed in the simulator, or cut from the
videos beside the dataset. After each ten pairs, one of them is asked again with its sides swapped. Every answer is a
line of labels/ENV.jsonl, on disk before the next question is shown. The same command resumes. The answers of ENV.jsonl
are written as labels/ENV.npz, which `--preferences` reads.
"""

from __future__ import annotations

import getpass
import hashlib
import inspect
import os
import re
import secrets
import shlex
import socket
import sys
import threading
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import gymnasium
import numpy as np

from common import suites
from common.arrays import fingerprint
from common.cli import Signals, default_data_dir, parse_args, user_errors
from common.data import joined, listed
from common.errors import InputError, Interrupted
from common.rollouts import require_rendering
from common.suites.base import Episode, Preferences, Task, describe_pairs
from common.workers import Workers, available_cpus
from tools import teachers
from tools.label import guess
from tools.label.answers import MERGED, datasets_of, merge, open_answers, stem_of, write_pairs
from tools.label.clips import WAY_OUT, Clips, check_videos, read_source, seconds_of_step, task_of
from tools.label.judge import UNTOLD, WHOLE, check_flags, described, draw_of, names_of, verdict
from tools.label.questions import Pairs, draw_questions, example_of, segment_steps
from tools.label.server import Session, named, serve

FEW = 16
"""pairs of a batch by default in most scripts: fewer pairs need a smaller batch"""
WINDOW = 16
"""steps of a window by default in most scripts: shorter segments need a shorter one"""


@dataclass
class LabelArgs:
    """Label pairs of segments of an environment's offline dataset in a browser."""

    env: str = ""
    """environment; empty: that of --dataset, and without one drawer-open-v2"""
    pairs: Annotated[int, "[1, inf)"] = 100
    """pairs to label; more may be asked for later"""
    segment: Annotated[int, "[0, inf)"] = 0
    """steps of a segment; 0: the suite's own, or of other data a quarter of the median episode, 16 to 50"""
    question: str = ""
    """what the page asks; empty: which one does the task better"""
    task: str = ""
    """a sentence that says what the task is; empty: the suite's own, where it has one"""
    example: Annotated[int, "[-1, inf)"] = -1
    """episode that is shown as a good one; -1: the best by success, then return, where the data have one of them"""
    name: str = ""
    """the labeller: each has files of their own, labels/ENV-NAME.jsonl and .npz"""
    seed: Annotated[int, "[0, 4294967295]"] = 0
    """of the pairs and their sides; labellers of one project share it"""
    same_start: bool = False
    """pair episodes of two policies that began with one seed, at one time"""
    between: bool = False
    """pair two policies, drawn uniformly, so that new behaviour meets old; policies of two files are different ones"""
    judge: bool = False
    """say which policy is better: blind pairs of whole episodes (or of --segment) that began with one seed where they
    can, each pair once; the result is told at the end"""
    balance: bool = False
    """draw one segment of each pair from the better half of the episodes by return"""
    ask: Literal["uniform", "disagreement"] = "uniform"
    """pairs as they are drawn, or, from the 21st on, those on which three learned rewards disagree most, one in ten"""
    guess: bool = True
    """learn a reward while you label, and show how many of your answers it guessed; without a second core: never"""
    teacher: tuple[str, ...] = ()
    """let a simulated teacher answer all questions, without a page: `perfect`, which prefers the larger return, or the
    words of tools.dataset --teacher"""
    merge: bool = False
    """write the answers of all labellers as labels/ENV-merged.npz, print their agreement, and end"""
    keep_all: bool = False
    """with --merge: keep every labeller's answer; else the majority's, and a tie where there is none"""
    labels_dir: Path = Path("labels")
    """folder of the answers"""
    dataset: tuple[str, ...] = ()
    """offline datasets instead of the environment's own: files (.hdf5), or minari:ID. Where FILE.hdf5.videos/ holds
    episode-N.webm or .mp4, one frame a step, these are shown and no simulator is needed"""
    data_dir: Path = Path("data")
    """folder of the datasets and of the videos (IPL_DATA_DIR, if set, is the default)"""
    host: str = "127.0.0.1"
    """address of this machine that the page is served at; others than 127.0.0.1 can be reached from outside"""
    port: Annotated[int, "[0, 65535]"] = 0
    """port; 0: any free one"""
    remote: bool = False
    """print the command that makes the page visible on another machine through SSH"""
    frames: Annotated[int, "[2, inf)"] = 16
    """frames of a video, whatever the length of a segment, and four times as many of a whole episode; 8 are shown a
    second, and fewer are rendered sooner"""
    workers: Annotated[int, "[0, 1024]"] = 0
    """processes that render; 0: one a core"""


def files_of(args: LabelArgs) -> tuple[Path, Path]:
    """The labeller's answers and NPZ. InputError: the name cannot be part of a file's name."""
    if (args.name and not re.fullmatch(r"[A-Za-z0-9_]{1,40}", args.name)) or args.name == MERGED:
        raise InputError(f"--name {args.name}: choose letters, digits and _, at most 40, and not {MERGED}")
    stem = stem_of(args.env) + "-judge" * args.judge + (f"-{args.name}" if args.name else "")
    return args.labels_dir / f"{stem}.jsonl", args.labels_dir / f"{stem}.npz"


def fixed_segment(task: Task) -> int:
    """Steps of a segment where others have labelled data of the suite, 0: nothing fixes them."""
    suite = suites.SUITES[task.suite]
    return suite.segment(task) if suite.LABELS else 0


def training_commands(args: LabelArgs, task: Task, npz: Path, labelled: int, steps: int) -> list[str]:
    """The command that trains on the answers, and the one that clones the dataset without them, as they are typed in
    the current folder.
    """
    folder = Path(os.path.relpath(Path(__file__).resolve().parents[2] / "algorithms"))
    data = [] if any(map(suites.env_of, args.dataset)) else ["--env", task.env]
    data += ["--dataset", *args.dataset] if args.dataset else []
    data += ["--max-episode-steps", str(task.max_steps)] if task.max_steps else []
    pairs = ["--preferences", str(npz)]
    pairs += ["--preference-batch-size", str(max(1, labelled // 2))] if labelled < FEW else []
    pairs += ["--segment-length", str(min(steps, WINDOW))] if steps < max(WINDOW, fixed_segment(task)) else []
    last = ["--use-replay"]
    if suites.SUITES[task.suite].LABELS:  # its defaults are those of papers, for many labels
        last += "--total-steps 10000 --eval-every 1000 --actor-average 0.002".split()
    last += ["--data-dir", str(args.data_dir)] if args.data_dir != default_data_dir() else []
    return [shlex.join(["python", str(folder / "ipl_iql.py"), *data, *pairs, *last]),
            shlex.join(["python", str(folder / "bc.py"), *data, *last])]  # fmt: skip


def texts_of(args: LabelArgs, task: Task, steps: int, seconds: float | None) -> dict[str, str]:
    """What the page says above the videos. `seconds`: simulated time of a step."""
    about = args.task or suites.SUITES[task.suite].about(task)
    about += "" if about.endswith((".", "!", "?")) or not about else "."
    asked = args.question or f"Which one {'does it' if about else 'is'} better?"
    time = f", {steps * seconds:.2g} s of simulated time" if seconds else ""
    shown = f"{steps} steps{time}" if steps else "a whole episode"
    return {"QUESTION": asked, "ABOUT": f"{about} A clip shows {shown}.".strip()}


def label(args: LabelArgs, task: Task, workers: Workers, signals: Signals) -> None:
    """Serve the page until Ctrl-C. Every answer is on disk by then."""
    path, npz = files_of(args)
    if args.host in ("0.0.0.0", "::"):
        raise InputError(f"--host {args.host}: name one address of this machine, such as {socket.gethostname()}")
    check_flags(args)
    guessing = guess.wanted(args)
    if args.teacher and path.exists() and npz.exists():
        raise InputError(f"{npz}: holds the labels of {path}, which --teacher would replace; choose another --name or "
                         "--labels-dir")  # fmt: skip
    if not (path.exists() or args.dataset or args.teacher):  # the first start: before a dataset is built for nothing
        require_rendering(workers, task, f"--env {task.env}")
    datasets = datasets_of(args, task, workers)
    episodes, videos = read_source(datasets, task)
    steps = args.segment or (0 if args.judge else fixed_segment(task) or segment_steps(episodes))
    if short := sum(len(e.action) < steps for e in episodes):
        print(f"{short} of {len(episodes)} episodes are shorter than a segment, {steps} steps, and are not shown; "
              "--segment shortens it")  # fmt: skip
    project = {"env": task.env, "dataset": fingerprint(*datasets), "seed": args.seed, "balance": args.balance,
               "draw": draw_of(args), "steps": steps}  # fmt: skip
    project |= {"ask": args.ask} if args.ask != "uniform" else {}
    if args.teacher:
        labelled = teach(args.teacher, npz, episodes, draw_questions(episodes, args.pairs, project), task.env)
        print(*training_commands(args, task, npz, labelled, steps), sep="\n")
        return
    example = None if args.judge and args.example < 0 else example_of(episodes, args.example)  # it may be of either
    draw_questions(episodes, 1, project)  # what cannot be drawn leaves no file behind
    with open_answers(path, project) as answers:
        pairs = draw_questions(episodes, max(args.pairs, answers.pairs), answers.project)
        pool = guess.open_pool(answers, pairs, episodes) if args.ask != "uniform" else None
        folder = args.data_dir / "videos" / f"{stem_of(task.env)}_{project['dataset']}{mark_of(videos, task)}"
        frames = args.frames if steps else WHOLE * args.frames
        clips = Clips(task, episodes, pairs, folder, frames, workers, videos, example)
        if args.judge:
            print(*described(episodes, pairs, args.pairs), sep="\n")
        order = [question.pair for question in pairs.questions if question.number not in answers.given]
        print(f"{len(answers.given)} of {len(pairs.questions)} questions are answered", flush=True)
        check_first(listed(datasets), clips, order, bool(answers.given), pool is not None)
        seconds = None if videos else workers.run(seconds_of_step, [(task,)])[0]

        def save() -> list[str]:
            """Write the NPZ; the commands that train on it, or the result once all questions are answered."""
            labels = answers.labels(pairs)
            labelled = write_pairs(npz, episodes, pairs, labels.items(), task)
            if args.judge:
                told = len(answers.given) == len(pairs.questions)
                return verdict(episodes, pairs, labels, names_of(datasets)) if told else []
            return training_commands(args, task, npz, labelled, steps) if labelled else []

        session, token = Session(answers, pairs, clips, save, args.judge), secrets.token_urlsafe(16)
        with serve(args.host, args.port, token, texts_of(args, task, steps, seconds), session) as port:
            announce(args, port, token)
            jobs = [(clips.render_all, order) if pool is None else
                    (guess.render_chosen, clips, answers, signals.__bool__)]  # fmt: skip
            if guessing:
                jobs.append((guess.keep_guessing, answers, pairs, pool, episodes, signals.__bool__))
            threads = [threading.Thread(target=job, args=rest) for job, *rest in jobs]
            for thread in threads:
                thread.start()
            while not signals:
                time.sleep(0.2)
        for thread in threads:
            thread.join()  # the signal stops them too
        with session.saving:  # a request may be at it
            told = save() or [UNTOLD] * args.judge
        print(*answers.summary(pairs), *guess.summary(answers.guessed(pairs)), *told, sep="\n")


def teach(words: tuple[str, ...], npz: Path, episodes: list[Episode], pairs: Pairs, env: str) -> int:
    """Write the pairs as a simulated teacher labels them. Returns their number."""
    columns = ([getattr(e, name) for e in episodes] for name in ("obs", "action", "reward"))
    obs, action, reward = map(joined, columns)
    row = np.cumsum([0, *(len(e.action) for e in episodes[:-1])])
    start = row[pairs.segments[..., 0]] + pairs.segments[..., 1]
    p = Preferences(obs, action, start, np.zeros(len(start), np.float32), pairs.steps, reward)
    teacher = teachers.parse(words)
    p = teachers.labelled_by(p, teacher)
    teachers.write(npz, p, teacher, env)
    print(npz, *describe_pairs(p), sep="\n")
    return len(p.label)


def mark_of(videos: list[Path], task: Task) -> str:
    """Tells clips apart that were cut from other videos, or of an own environment whose file was changed since."""
    if not videos:
        return mark_of_code(task.env)
    stamps = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in videos]
    return f"_{hashlib.sha256(repr(stamps).encode()).hexdigest()[:16]}"


def mark_of_code(env: str) -> str:
    """Of the file that defines a registered environment; empty where there is none."""
    with suppress(Exception):  # an entry point may be anything that is called
        made = gymnasium.registry[env.rpartition(":")[2]].entry_point
        made = gymnasium.envs.registration.load_env_creator(made) if isinstance(made, str) else made
        return f"_{fingerprint(Path(inspect.getsourcefile(inspect.unwrap(made))))}"
    return ""


def check_first(dataset: str, clips: Clips, order: list[int], begun: bool, every: bool) -> None:
    """Make the clips of the first question. InputError: they cannot be had, and so most likely no others.

    Args:
        begun: others could be had; then the page says it, and the question can be left out.
        every: any episode may be shown, not only those of the pairs.
    """
    if clips.videos:
        numbers = {int(e) for e in clips.pairs.segments[..., 0].flat} | ({clips.example[0]} if clips.example else set())
        numbers |= set(range(len(clips.episodes))) if every else set()
        check_videos(clips.videos, clips.episodes, sorted(numbers), clips.workers)
    if not order or all(video.exists() for video in clips.paths(order[0])):
        return
    if not clips.videos:
        require_rendering(clips.workers, clips.task, f"--env {clips.task.env}")
    clips.render(clips.clips(order[0]))
    for why in [] if begun else clips.failed.values():
        raise InputError(f"{dataset}: cannot be shown: {why}; {WAY_OUT}")


def announce(args: LabelArgs, port: int, token: str) -> None:
    """Say where the page is."""
    print(f"http://{named(args.host)}:{port}/{token}/", flush=True)
    if args.remote:
        print("on the machine with the browser, before opening that address:\n"
              f"ssh -N -L {port}:{args.host}:{port} {getpass.getuser()}@{socket.getfqdn()}")  # fmt: skip
    print("Ctrl-C ends; the same command resumes", file=sys.stderr, flush=True)


def main(args: LabelArgs) -> None:
    """Label, or merge what was labelled."""
    task = task_of(args.env, args.dataset)
    args.env = task.env
    with (Signals() as signals, closing(Workers(args.workers or available_cpus(), lambda: bool(signals))) as workers,
          suppress(Interrupted)):  # fmt: skip
        if args.merge:
            merged = merge(args, task, workers)
            if merged[1] and not args.judge:
                print(*training_commands(args, task, *merged), sep="\n")
        else:
            label(args, task, workers, signals)


if __name__ == "__main__":
    sys.argv[0] = "tools.label"  # what errors and --help call the command, not __main__.py
    with user_errors():
        main(parse_args(LabelArgs(data_dir=default_data_dir())))
