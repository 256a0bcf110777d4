"""The house: which module may import which, what a script may take from common/, and copies of scripts."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from common import suites
from tests.conftest import REPOSITORY, SMALL, environment

# A module may import those of the rows above its own, and of its own row. Nothing imports `tools` or `algorithms`.
FLOORS = (
    ("common.remedies",),
    ("common.files", "common.seeds"),
    ("common.buffers", "common.states", "common.suites.base"),
    ("common.suites.metaworld", "common.suites.robomimic", "common.suites.d4rl", "common.suites.gym"),
    ("common.suites.minari",),
    ("common.suites",),
    ("common.rollouts",),
    ("common.data", "common.cli", "common.folder"),
    ("common.runs",),
)
NO_TORCH = ("common.files", "common.seeds", "common.suites", "common.rollouts")


def imports(path: Path) -> list[tuple[str, bool]]:
    """(module of this house, whether inside a function) for every import of a file."""
    tree, found = ast.parse(path.read_text()), []
    top = set(map(id, tree.body))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            places = {name: REPOSITORY / name.replace(".", "/") for name in names}
            known = [name for name, at in places.items() if at.is_dir() or at.with_suffix(".py").exists()]
            found += [(name, id(node) in top) for name in known or [node.module]]
    return [
        (name, at_top) for name, at_top in found if name.split(".")[0] in ("common", "tools", "algorithms", "tests")
    ]


def test_arrows_go_one_way():
    floor = {name: level for level, names in enumerate(FLOORS) for name in names}
    for path in (REPOSITORY / "common").rglob("*.py"):
        name = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")
        if name == "common":
            continue
        assert name in floor, f"{name}: give it a floor in FLOORS"
        for other, at_top in imports(path):
            assert at_top, f"{name} imports {other} inside a function"
            assert floor[other] <= floor[name] and other != name, f"{name} imports {other}, which stands above it"
    for folder in ("tools", "algorithms"):
        for path in (REPOSITORY / folder).glob("*.py"):
            others = {other.split(".")[0] for other, _ in imports(path)}
            assert others <= {"common", folder} if folder == "tools" else others <= {"common"}, path


def test_a_worker_imports_no_torch():
    code = f"import {', '.join(NO_TORCH)}, sys; print('torch' in sys.modules, 'metaworld' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("name", suites.SUITES)
def test_a_suite_keeps_the_contract(name):
    contract = [line.split("(")[0].split()[0] for line in suites.__doc__.splitlines() if line.startswith("    ")]
    wanted = [word for word in contract if word.isidentifier()]
    assert {"canonical", "find", "make", "score", "dataset", "describe", "remote", "LABELS"} <= set(wanted)
    assert not [word for word in wanted if not hasattr(suites.SUITES[name], word)]


def test_no_suite_is_named_outside_its_file():
    for path in (*(REPOSITORY / "common").glob("*.py"), *(REPOSITORY / "tools").glob("*.py")):
        comparisons = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Compare)]
        constants = {part.value for node in comparisons for part in ast.walk(node) if isinstance(part, ast.Constant)}
        assert not set(map(str, constants)) & set(suites.SUITES), f"{path}: compares with the name of a suite"


@pytest.mark.parametrize("path", sorted((REPOSITORY / "algorithms").glob("*.py")), ids=lambda path: path.stem)
def test_sizes_of_a_script(path):
    tree = ast.parse(path.read_text())
    length = {node.name: node.end_lineno - node.lineno + 1 for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert length["train"] + length["train_seeds"] <= 40
    assert all(lines <= 60 for lines in length.values()), max(length, key=length.get)
    shared = [n for n in tree.body if isinstance(n, ast.ImportFrom) and str(n.module).startswith("common")]
    names = [alias.name for node in shared for alias in node.names]
    assert len(names) <= (13 if path.stem == "pt_iql" else 8), names


def test_sizes_of_common():
    for path in (REPOSITORY / "common").rglob("*.py"):
        text = path.read_text()
        assert text.count("\n") <= 500, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{path}: {node.name}"


# ---------------------------------------------------------------- a copy with another actor
LAYER_NORM = {
    "def policy(": '''def normed(x):
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()


def policy(''',
    "    return mlp(layers, obs, masks)[:, 0].tanh()": "    return mlp(layers, normed(obs), masks)[:, 0].tanh()",
    "    x, depth = obs.astype(np.float32), (len(actor) - 1) // 2  # layers: all but log_std\n":
'''    x, depth = obs.astype(np.float32), (len(actor) - 1) // 2
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
''',
}  # fmt: skip


def test_another_actor_changes_one_file(data_dir, tmp_path):
    """A copy of ipl_iql.py whose actor normalises its input: trained, evaluated, resumed, and run by tools.evaluate."""
    text = (REPOSITORY / "algorithms/ipl_iql.py").read_text()
    for old, new in LAYER_NORM.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    for name in ("algorithms", "common", "tools", "tests"):
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    script = tmp_path / "algorithms/ipl_norm.py"
    script.write_text(text)
    options = environment(data_dir, tmp_path)
    options["env"] |= {"PYTHONPATH": str(tmp_path)}
    line = [sys.executable, script, *SMALL]
    for steps in (20, 40):  # without a schedule a finished run can be trained longer
        done = subprocess.run([*line, "--total-steps", str(steps)], **options)
        assert done.returncode == 0, done.stderr
    seed = tmp_path / "runs/drawer-open-v2/ipl_norm/seed-1"
    assert json.loads((seed / "config.json").read_text())["algorithm"] == "ipl_norm"
    whole = subprocess.run([*line, "--run-dir", "whole"], **options)
    assert (
        whole.returncode == 0 and (seed / "eval.csv").read_bytes() == (tmp_path / "whole/seed-1/eval.csv").read_bytes()
    )
    call = [sys.executable, "-m", "tools.evaluate", seed / "final.pt", "--episodes", "2"]
    assert "ipl_norm on drawer-open-v2 after 40 updates" in subprocess.run(call, **options).stdout
    style = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_update.py", "-k"]
    done = subprocess.run([*style, "same_names or same_words or (ipl_norm and not compiled)"], **options)
    assert done.returncode == 0 and "6 passed" in done.stdout, done.stdout
