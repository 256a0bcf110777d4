"""The house: which module may import which, what a script may take from common/, and copies of scripts."""

from __future__ import annotations

import ast
import inspect
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from common import suites
from common.suites.suite import Suite
from tests.conftest import REPOSITORY, SHIPPED

# A module may import those of the rows above its own, and of its own row. Nothing imports `tools` or `algorithms`.
FLOORS = (
    ("common.errors", "common.seeds"),
    ("common.locks",),
    ("common.arrays", "common.download"),
    ("common.actors", "common.buffers", "common.trees", "common.suites.base"),
    ("common.suites.suite",),
    ("common.suites.metaworld", "common.suites.robomimic", "common.suites.d4rl", "common.suites.gym"),
    ("common.suites.minari",),
    ("common.suites", "common.workers"),
    ("common.rollouts",),
    ("common.data", "common.cli", "common.provenance", "common.run_log"),
    ("common.seed_folder",),
    ("common.training",),
)
NO_TORCH = ("common.arrays", "common.seeds", "common.suites", "common.rollouts", "common.workers", "tools.label.clips")


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


@pytest.mark.house
def test_arrows_go_one_way():
    floor, seen = {name: level for level, names in enumerate(FLOORS) for name in names}, set()
    for path in (REPOSITORY / "common").rglob("*.py"):
        name = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")
        if name == "common":
            continue
        assert name in floor, f"{name}: give it a floor in FLOORS"
        seen.add(name)
        for other, at_top in imports(path):
            assert at_top, f"{name} imports {other} inside a function"
            assert floor[other] <= floor[name] and other != name, f"{name} imports {other}, which stands above it"
    assert seen == set(floor)
    for path in (REPOSITORY / "tools").rglob("*.py"):
        assert {other.split(".")[0] for other, _ in imports(path)} <= {"common", "tools"}, path
    for script in SHIPPED:
        others = {other.split(".")[0] for other, _ in imports(REPOSITORY / f"algorithms/{script}.py")}
        assert others <= {"common"}, script


def test_every_package_is_installed():
    files = [path for top in ("common", "tools") for path in (REPOSITORY / top).rglob("*.py")]
    listed = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {".".join(path.parent.relative_to(REPOSITORY).parts) for path in files}
    assert folders | {"algorithms"} == set(listed)


def test_a_worker_imports_no_torch():
    code = f"import {', '.join(NO_TORCH)}, sys; print('torch' in sys.modules, 'metaworld' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("name", suites.SUITES)
def test_a_suite_keeps_the_contract(name):
    """Its public names are the contract's, and its methods take what those of `Suite` take."""
    suite = suites.SUITES[name]
    assert isinstance(suite, Suite)
    own = {name: what for name, what in vars(type(suite)).items() if not name.startswith("_")}
    assert own.keys() <= vars(Suite).keys()
    for method in filter(inspect.isfunction, own.values()):
        wanted = inspect.signature(getattr(Suite, method.__name__))
        assert inspect.signature(method).parameters == wanted.parameters, method


def test_no_suite_is_named_outside_its_file():
    for path in (*(REPOSITORY / "common").rglob("*.py"), *(REPOSITORY / "tools").rglob("*.py")):
        comparisons = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Compare)]
        constants = {part.value for node in comparisons for part in ast.walk(node) if isinstance(part, ast.Constant)}
        assert not set(map(str, constants)) & set(suites.SUITES), f"{path}: compares with the name of a suite"


@pytest.mark.house
@pytest.mark.parametrize("script", SHIPPED)
def test_sizes_of_a_script(script):
    tree = ast.parse((REPOSITORY / f"algorithms/{script}.py").read_text())
    length = {node.name: node.end_lineno - node.lineno + 1 for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert length["train"] + length["train_seeds"] <= 40
    assert all(lines <= 60 for lines in length.values()), max(length, key=length.get)
    shared = [n for n in tree.body if isinstance(n, ast.ImportFrom) and str(n.module).startswith("common")]
    names = [alias.name for node in shared for alias in node.names]
    assert len(names) <= (13 if script == "pt_iql" else 8), names


def test_sizes_of_common():
    for path in (REPOSITORY / "common").rglob("*.py"):
        text = path.read_text()
        assert text.count("\n") <= 500, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{path}: {node.name}"


# ---------------------------------------------------------------- a copy is its author's
HIDDEN = "F.relu(x * masks[i] if masks else x)\n"
UPDATED, EXPLAINED = "        metrics = update(state, batch)\n", '    """discount, of environment steps"""\n'
TRAINING = "# ---------------------------------------------------------------- training\n"
COPY = {
    # LayerNorm in `mlp`
    HIDDEN: HIDDEN + "            x = F.layer_norm(x, x.shape[-1:])\n",
    # other words of a flag, another flag without any, another loop; more names of common/; a function of 90 lines
    EXPLAINED: '    """how far to look"""\n    repeats: int = 1  # updates on a batch\n',
    UPDATED: "        for _ in range(args.repeats):\n    " + UPDATED,
    TRAINING: "from common import buffers, cli, seeds\n\n\n"
              "def long(x):\n" + 88 * "    x = x + 1\n" + "    return x\n\n\n",
}  # fmt: skip
BROKEN = (
    "metrics = update(state, batch)\n",
    """metrics = update(state, batch)
            state["actor"]["w0"] += 0.01 * torch.randn(state["actor"]["w0"].shape)  # not of the seed and the step
""",
)


@pytest.mark.slow
def test_a_copy_is_its_authors(data_dir, tmp_path):
    """my_method.py, a copy of ipl_iql.py: no test of the suite knows it, unless its author asks for it."""
    away = shutil.ignore_patterns(".*", "__pycache__", "data", "runs", "results", "slurm_logs", "*.egg-info")
    shutil.copytree(REPOSITORY, tmp_path / "copy", ignore=away)
    script, text = tmp_path / "copy/algorithms/my_method.py", (REPOSITORY / "algorithms/ipl_iql.py").read_text()
    for old, new in COPY.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    script.write_text(text)
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "copy"), "PYTEST_ADDOPTS": "", "IPL_SMALL_DATA": str(data_dir)}

    def tests(*words: str) -> subprocess.CompletedProcess:
        line = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-vv", *words]
        return subprocess.run(line, cwd=tmp_path / "copy", env=env, capture_output=True, text=True)

    def passed(done: subprocess.CompletedProcess) -> set[str]:
        """Names of tests; those of a parameter count once."""
        return set(re.findall(r"::(\w+)\S* PASSED", done.stdout))

    house = tests("-m", "house")
    assert house.returncode == 0 and passed(house) >= {
        "test_sizes_of_a_script", "test_same_names_mean_the_same_code", "test_shared_arguments_have_the_same_words",
        "test_arrows_go_one_way"}, house.stdout  # fmt: skip
    collected = tests("--collect-only", "-q")
    assert collected.returncode == 0 and "[ipl_iql" in collected.stdout, collected.stdout + collected.stderr
    assert "my_method" not in collected.stdout and "test_own_script" not in collected.stdout
    asked = tests("--script", "my_method")
    wanted = {"test_it_parses", "test_it_trains", "test_it_resumes", "test_it_is_evaluated"}
    assert asked.returncode == 0 and passed(asked) == wanted, asked.stdout
    script.write_text(text.replace(*BROKEN))
    broken = tests("--script", "my_method", "-k", "trains or resumes")
    assert broken.returncode == 1 and passed(broken) == {"test_it_trains"}, broken.stdout
    missing = tests("--script", "your_method")
    assert missing.returncode == 4 and "there is no algorithms/your_method.py" in missing.stderr
