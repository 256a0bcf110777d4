"""The command line, the device, and signals. The same for every script."""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import fnmatch
import inspect
import os
import shutil
import signal
import sys
import textwrap
import typing
import warnings
from pathlib import Path
from typing import Annotated

import torch
import tyro

from common import suites
from common.errors import InputError, NotFinite, WorkersError, remedy
from common.workers import available_cpus

# ---------------------------------------------------------------- arguments
RESULTS = ("--run-dir", "--out", "--labels-dir")
"""flags that name where results go"""
PATHS: dict[str, str] = {}
"""flag -> path, of the command that runs: what names the way out of a full or read-only folder"""


def default_data_dir() -> Path:
    """IPL_DATA_DIR, or `data` in the repository (not in the working folder: a dataset is built once)."""
    return Path(os.environ.get("IPL_DATA_DIR") or Path(__file__).resolve().parent.parent / "data").expanduser()


@contextlib.contextmanager
def user_errors():
    """One line on stderr, not a traceback: for wrong input (exit status 2), a fault of the machine or a number (1).

    Any other error, an OSError without a known remedy too, is one of the code, and shows its traceback.
    """
    try:
        yield
    except (InputError, OSError, WorkersError, NotFinite, torch.OutOfMemoryError, torch.AcceleratorError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, torch.AcceleratorError):
            reason = str(error).splitlines()[0]
        elif isinstance(error, OSError):
            flag = flag_of(error.filename)
            named = error.filename and str(error.filename) == PATHS.get(flag)  # the folder itself cannot be made
            if not (way := remedy(error, flag=flag) or (f"choose another {flag}" if named else "")):
                raise
            reason = f"{reason}; {way}"
        print(f"{Path(sys.argv[0]).name}: error: {reason}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, InputError) else 1) from None
    except KeyboardInterrupt:
        print(f"{Path(sys.argv[0]).name}: interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except RuntimeError as error:
        if type(error).__module__.startswith("torch._"):
            print("torch.compile failed; --no-compile runs the update eager", file=sys.stderr)
        raise


def flag_of(file: str | None) -> str:
    """The flag of the command that runs whose path is, or holds, `file`; else the one that names its results."""
    at = Path(file or "").absolute()
    inside = [flag for flag, path in PATHS.items() if path and at.is_relative_to(Path(path).absolute())]
    longest = max(inside, key=lambda flag: len(PATHS[flag]), default="")
    return longest or next((flag for flag in RESULTS if flag in PATHS), "")


def main(train, cls, table: dict[str, dict]) -> None:
    """A script's last line: parse the command line over the defaults of its environment, and train."""
    with user_errors():
        train(parse_args(default_args(cls, table)))


def default_args(cls, table: dict[str, dict], argv: list[str] | None = None):
    """The defaults for the environment that --env names: those of the dataclass `cls`, then those of every pattern in
    `table` that fits its "SUITE:ID". With --preferences, all pairs of the file. Wrong --env: InputError.
    """
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)  # ahead of tyro
    peek.add_argument("--env", nargs="?", const=cls.env, default=cls.env)
    peek.add_argument("--preferences", nargs="*", default=())
    peek.add_argument("--dataset", nargs="*", default=())
    given, _ = peek.parse_known_args(argv)
    suite, env = suites.identify(next(filter(suites.env_of, given.dataset), given.env))
    changes: dict = {}
    for pattern, values in table.items():
        if fnmatch.fnmatchcase(f"{suite}:{env}", pattern):
            changes |= values
    if given.preferences:
        changes["num_preferences"] = 0
    return cls(**{"env": env, "data_dir": default_data_dir(), **changes})


def parse_args(defaults, argv: list[str] | None = None):
    """Parse the command line over the values of the dataclass `defaults`. Exit status 2, in tyro's words, where it
    cannot be parsed; InputError: a number is out of its bounds.
    """
    args = cli_in_groups(defaults, argv)
    check_args(args)
    args = dataclasses.replace(args, **{field.name: expanded(getattr(args, field.name))
                                        for field in dataclasses.fields(args)})  # fmt: skip
    PATHS.clear()
    for name, value in vars(args).items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, Path) or flag in RESULTS:
            PATHS[flag] = str(value)
    return args


def cli_in_groups(defaults, argv: list[str] | None):
    """tyro.cli over the dataclass `defaults`; --help has the groups that comments `# ---- NAME` make of its fields."""
    cls, mark = type(defaults), "    # ---- "
    source = textwrap.dedent(inspect.getsource(cls))
    heads = {i: line.removeprefix(mark) for i, line in enumerate(source.splitlines(), 1) if line.startswith(mark)}
    if not heads:
        return tyro.cli(cls, default=defaults, args=argv, description=cls.__doc__)
    hints, body = typing.get_type_hints(cls, include_extras=True), ast.parse(source).body[0].body
    groups: dict[str, list] = {}
    for node, below in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign):  # a field; the string below it, where there is one, says what it is
            name, head = node.target.id, heads[max((i for i in heads if i < node.lineno), default=min(heads))]
            said = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            hint = Annotated[hints[name], tyro.conf.arg(help=inspect.cleandoc(below.value.value) if said else "")]
            groups.setdefault(head, []).append((name, hint, dataclasses.field(default=getattr(defaults, name))))
    parts = {head: dataclasses.make_dataclass("Group", part) for head, part in groups.items()}
    whole = [(head.replace(" ", "_"), tyro.conf.OmitArgPrefixes[part]) for head, part in parts.items()]
    found = tyro.cli(dataclasses.make_dataclass("Groups", whole), args=argv, description=cls.__doc__)
    return cls(**{name: value for part in vars(found).values() for name, value in vars(part).items()})


def expanded(value):
    """A path, or several, that begin with ~: with the home folder in its place, which shells leave in --flag=~/x."""
    if isinstance(value, tuple):
        return tuple(map(expanded, value))
    return type(value)(os.path.expanduser(value)) if isinstance(value, str | Path) else value


def check_args(args) -> None:
    """Raises InputError for the first number outside the interval that stands beside its flag, as in
    `gamma: Annotated[float, "[0, 1)"]`; "[": the end itself is allowed, "(": it is not.
    """
    for name, hint in typing.get_type_hints(type(args), include_extras=True).items():
        several = typing.get_origin(hint) is tuple
        if several:
            hint = typing.get_args(hint)[0]
        interval = next((str(note) for note in getattr(hint, "__metadata__", ()) if str(note)[:1] in "[("), "")
        if not interval or getattr(args, name) is None:  # None: not given
            continue
        values = getattr(args, name) if several else [getattr(args, name)]
        if not values or not all(inside(value, interval) for value in values):
            shown, what = " ".join(map(str, values)), "one or more numbers in" if several else "in"
            raise InputError(f"--{name.replace('_', '-')} {shown}: must be {what} {interval}")


def inside(value: float, interval: str) -> bool:
    """Whether `value` lies in an interval as it is written: "[0, 1)"."""
    low, high = map(float, interval[1:-1].split(","))
    above = low <= value if interval[0] == "[" else low < value
    return above and (value <= high if interval[-1] == "]" else value < high)


# ---------------------------------------------------------------- device
def setup_device(args) -> torch.device:
    """Choose the device, the threads and the matrix precision. Raises InputError where there is no such device."""
    try:
        name = ("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0] if args.device.split(":")[0] in ("cuda", "mps") else "no such device"
        raise InputError(f"--device {args.device}: {reason}; choose auto, cpu, cuda, cuda:1 or mps") from None
    if device.type == "cuda":
        torch.cuda.set_device(device)
    elif (args.device == "auto" and torch.version.cuda and Path("/dev/nvidiactl").exists()
          and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1")):  # fmt: skip
        print("this torch cannot use the GPU here: training on the CPU (--device cuda says why)", file=sys.stderr)
    # A CPU takes many times as long for numbers below 1e-38, which Adam's moments and the steps of a trained Preference
    # Transformer come to hold. Threads inherit this when they start.
    torch.set_flush_denormal(True)
    # Matrices of a few hundred rows do not feed more than a handful of threads.
    torch.set_num_threads(args.threads or min(4, available_cpus()))
    precision = args.matmul_precision
    if precision == "highest" and device.type == "cpu" and onednn_is_faster() and onednn_keeps_float32():
        precision = "medium"
    torch.set_float32_matmul_precision(precision)
    warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")  # advice against the default, at each start
    return device


def onednn_is_faster() -> bool:
    """AMD with AVX-512, which MKL does not use there: products take oneDNN half the time (docs/speed.md)."""
    cpu = Path("/proc/cpuinfo")
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and cpu.exists() and "AuthenticAMD" in cpu.read_text()


def onednn_keeps_float32() -> bool:
    """Whether oneDNN's products are float32 ones from now on in this process; then ONEDNN_MAX_CPU_ISA is set.

    torch hands float32 products to oneDNN at medium precision only. With no wider instructions than AVX-512's first
    ones oneDNN computes them in float32. It reads that limit at its first product, so it is set neither where somebody
    types, who may have multiplied before, nor where a product, of the sizes of a run, then loses digits.
    """
    if hasattr(sys, "ps1") or "IPython" in sys.modules:
        return False
    before = os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "")
    os.environ["ONEDNN_MAX_CPU_ISA"] = before or "AVX512_CORE"
    torch.set_float32_matmul_precision("medium")
    a, b = torch.full((2, 480, 256), 1 + 2**-12), torch.eye(256).repeat(2, 1, 1)  # bfloat16 has 8 of the 13 digits
    kept = bool((a @ b == a).all() and (a[0] @ b[0] == a[0]).all())
    if not kept:
        torch.set_float32_matmul_precision("highest")
        os.environ["ONEDNN_MAX_CPU_ISA"] = before
    return kept


def compiled(update, device: torch.device):
    """`update` as one compiled graph; as it is, with a word on stderr, where something is missing."""
    if missing := can_compile(device):
        print(f"torch.compile needs {missing}: the update runs eager, somewhat slower", file=sys.stderr)
        return update
    torch.compiler.reset()  # graphs of an earlier batch of seeds count against dynamo's limit
    torch._dynamo.config.trace_autograd_ops = True  # torch.autograd.grad inside the graph
    return torch.compile(update, fullgraph=True)


def can_compile(device: torch.device) -> str:
    """Empty, or what torch.compile lacks here: it makes C++, or launchers in C for CUDA; both include Python.h."""
    import sysconfig

    if device.type == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            return "Triton and a GPU of compute capability 7.0"
        if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
            return "a C compiler (Debian: gcc)"
    elif " " in torch.__file__:  # the linker would get the folder in pieces
        return f"a path without spaces, unlike {Path(torch.__file__).parent}"
    elif not shutil.which(os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")):
        return "a C++ compiler (Debian: g++)"
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        return "Python.h (Debian: python3-dev)"
    return ""


# ---------------------------------------------------------------- signals
class Signals:
    """Remembers SIGTERM, SIGINT, SIGHUP and SIGUSR1, so that the loop ends between two steps with a checkpoint."""

    def __init__(self):
        self.received = 0

    def __enter__(self) -> Signals:
        wanted = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
        # what nohup and the like told us to ignore stays ignored
        self.before = {s: signal.signal(s, self._remember) for s in wanted if signal.getsignal(s) != signal.SIG_IGN}
        return self

    def __exit__(self, *_) -> None:
        for signum, handler in self.before.items():
            signal.signal(signum, handler)

    def __bool__(self) -> bool:
        return bool(self.received)

    def _remember(self, signum, _frame) -> None:
        self.received = signum

    @property
    def exit_status(self) -> int:
        """0 for SIGUSR1 (a launcher asked for a checkpoint and will start the run again), else 128 + the signal."""
        return 0 if self.received == signal.SIGUSR1 else 128 + self.received
