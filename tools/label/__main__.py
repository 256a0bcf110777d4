"""Label your own pairs of segments in a browser, and read the command that trains on them.

    python -m tools.label --env drawer-open-v2 --pairs 100
    python -m tools.label --env drawer-open-v2 --merge       # the answers of several people -> one NPZ

A question is a pair of segments of the offline dataset, shown as two videos. After each ten pairs, one of them is asked
again with its sides swapped. Every answer is a line of labels/ENV.jsonl, on disk before the next question is shown. The
same command resumes. The answers of ENV.jsonl are written as labels/ENV.npz, which `--preferences` reads.
"""

from __future__ import annotations

import getpass
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
from typing import Annotated

from common import suites
from common.arrays import fingerprint
from common.cli import Signals, default_data_dir, parse_args, user_errors
from common.errors import InputError, Interrupted
from common.rollouts import require_rendering
from common.suites.base import Task
from common.workers import Workers, available_cpus
from tools.label.answers import MERGED, dataset_of, merge, open_answers, write_pairs
from tools.label.clips import Clips
from tools.label.questions import draw_questions
from tools.label.server import Session, serve

FEW = 16
"""pairs of a batch by default in most scripts: fewer pairs need a smaller batch"""


@dataclass
class LabelArgs:
    """Label pairs of segments of an environment's offline dataset in a browser."""

    env: str = "drawer-open-v2"
    """environment, of MetaWorld, D4RL or robomimic"""
    pairs: Annotated[int, "[1, inf)"] = 100
    """pairs to label; more may be asked for later"""
    question: str = ""
    """what the page asks; empty: which robot does ENV better"""
    name: str = ""
    """the labeller: each has files of their own, labels/ENV-NAME.jsonl and .npz"""
    seed: Annotated[int, "[0, 4294967295]"] = 0
    """of the pairs and their sides; labellers of one project share it"""
    balance: bool = False
    """draw one segment of each pair from the better half by return"""
    merge: bool = False
    """write the answers of all labellers as labels/ENV-merged.npz, print their agreement, and end"""
    keep_all: bool = False
    """with --merge: keep every labeller's answer; else the majority's, and a tie where there is none"""
    labels_dir: Path = Path("labels")
    """folder of the answers"""
    dataset: str = ""
    """offline dataset (.hdf5) instead of the environment's own"""
    data_dir: Path = Path("data")
    """folder of the datasets and of the videos (IPL_DATA_DIR, if set, is the default)"""
    host: str = "127.0.0.1"
    """address of this machine that the page is served at; others than 127.0.0.1 can be reached from outside"""
    port: Annotated[int, "[0, 65535]"] = 0
    """port; 0: any free one"""
    remote: bool = False
    """print the command that makes the page visible on another machine through SSH"""
    frames: Annotated[int, "[2, inf)"] = 16
    """frames of a video, whatever the length of a segment; 8 are shown a second, and fewer are rendered sooner"""
    workers: Annotated[int, "[0, 1024]"] = 0
    """processes that render; 0: one a core"""


def files_of(args: LabelArgs) -> tuple[Path, Path]:
    """The labeller's answers and NPZ. InputError: the name cannot be part of a file's name."""
    if (args.name and not re.fullmatch(r"[A-Za-z0-9_]{1,40}", args.name)) or args.name == MERGED:
        raise InputError(f"--name {args.name}: choose letters, digits and _, at most 40, and not {MERGED}")
    stem = re.sub(r"[^A-Za-z0-9_.-]", "-", args.env) + (f"-{args.name}" if args.name else "")
    return args.labels_dir / f"{stem}.jsonl", args.labels_dir / f"{stem}.npz"


def training_command(args: LabelArgs, npz: Path, labelled: int) -> str:
    """The command that trains on the answers, as it is typed in the current folder."""
    script = os.path.relpath(Path(__file__).resolve().parents[2] / "algorithms/ipl_iql.py")
    words = ["python", script, "--env", args.env, "--preferences", str(npz)]
    if labelled < FEW:
        words += ["--preference-batch-size", str(max(1, labelled // 2))]
    if args.dataset:
        words += ["--dataset", args.dataset]
    if args.data_dir != default_data_dir():
        words += ["--data-dir", str(args.data_dir)]
    return shlex.join(words)


def label(args: LabelArgs, task: Task, workers: Workers, signals: Signals) -> None:
    """Serve the page until Ctrl-C. Every answer is on disk by then."""
    suite, (path, npz) = suites.SUITES[task.suite], files_of(args)
    if args.host in ("0.0.0.0", "::"):
        raise InputError(f"--host {args.host}: name one address of this machine, such as {socket.gethostname()}")
    if not path.exists():  # the first start: before a dataset is built for nothing
        require_rendering(workers, task, f"--env {task.env}")
    dataset = dataset_of(args, task, workers)
    episodes = suite.read_episodes(dataset, task)
    project = {"env": task.env, "dataset": fingerprint(dataset), "seed": args.seed, "balance": args.balance,
               "steps": suite.segment(task)}  # fmt: skip
    with open_answers(path, project) as answers:
        pairs = draw_questions(episodes, max(args.pairs, answers.pairs), project)
        folder = args.data_dir / "videos" / f"{task.env}_{project['dataset']}"
        clips = Clips(task, episodes, pairs, folder, args.frames, workers)
        order = [question.pair for question in pairs.questions if question.number not in answers.given]
        print(f"{len(answers.given)} of {len(pairs.questions)} questions are answered", flush=True)
        if order and not all(video.exists() for video in clips.paths(order[0])):
            require_rendering(workers, task, f"--env {task.env}")
            clips.render(order[:1])
            for why in clips.failed.values():
                raise InputError(f"{dataset}: {why}; its segments cannot be shown here, build it again")

        def save() -> str:
            """Write the NPZ; the command that trains on it."""
            labelled = write_pairs(npz, episodes, pairs, answers.labels(pairs).items(), task)
            return training_command(args, npz, labelled) if labelled else ""

        session, token = Session(answers, pairs, clips, save), secrets.token_urlsafe(16)
        asked = args.question or f"Which robot does {task.env} better?"
        with serve(args.host, args.port, token, asked, session) as port:
            print(f"http://{args.host}:{port}/{token}/", flush=True)
            if args.remote:
                print("on the machine with the browser, before opening that address:\n"
                      f"ssh -N -L {port}:{args.host}:{port} {getpass.getuser()}@{socket.getfqdn()}")  # fmt: skip
            print("Ctrl-C ends; the same command resumes", file=sys.stderr, flush=True)
            renderer = threading.Thread(target=clips.render_all, args=(order,))
            renderer.start()
            while not signals:
                time.sleep(0.2)
        renderer.join()  # the signal stops it too
        print(*filter(None, [*answers.summary(pairs), save()]), sep="\n")


def main(args: LabelArgs) -> None:
    """Label, or merge what was labelled."""
    task = suites.resolve(args.env)
    args.env = task.env
    with (Signals() as signals, closing(Workers(args.workers or available_cpus(), lambda: bool(signals))) as workers,
          suppress(Interrupted)):  # fmt: skip
        if args.merge:
            path, labelled = merge(args, task, workers)
            print(training_command(args, path, labelled))
        else:
            label(args, task, workers, signals)


if __name__ == "__main__":
    sys.argv[0] = "tools.label"  # what errors and --help call the command, not __main__.py
    with user_errors():
        main(parse_args(LabelArgs(data_dir=default_data_dir())))
