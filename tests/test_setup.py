"""setup_shell.sh, on a small repository of its own: it installs once, says what is wrong, and shares."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.conftest import REPOSITORY

SOURCE = ["bash", "-c", ". ./setup_shell.sh && python -c 'import termcolor, sys; print(sys.prefix)'"]


@pytest.fixture
def repository(tmp_path) -> Path:
    """setup_shell.sh beside two small requirements."""
    folder = tmp_path / "a repository"
    folder.mkdir()
    shutil.copy(REPOSITORY / "setup_shell.sh", folder)
    (folder / "requirements.txt").write_text("termcolor==3.3.0\n#no-deps: filelock==4.2.11\n")
    (folder / "pyproject.toml").write_text('[project]\nname = "x"\nversion = "0"\n[tool.setuptools]\npackages = []\n')
    return folder


def options(folder: Path, **env: str) -> dict:
    keep = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "MUJOCO_GL")}
    return {"cwd": folder, "env": {**keep, **env}, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}


def test_two_at_once_install_once_a_third_only_activates_and_a_failure_is_tried_again(repository):
    both = [subprocess.Popen(SOURCE, **options(repository)) for _ in range(2)]
    said = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sorted(err.count("installing requirements.txt") for _, err in said) == [0, 1]
    assert {out.strip() for out, _ in said} == {str(repository / ".venv")}
    third = subprocess.run(SOURCE, **options(repository))
    assert third.returncode == 0 and third.stderr.count("\n") == 1 and "activated .venv" in third.stderr
    (fake := repository / "fake").mkdir()
    for found, renderer in (("libEGL.so.1", "glx"), ("libEGL.so.1 libOpenGL.so.0", "egl"), ("libOSMesa.so", "osmesa")):
        (fake / "ldconfig").write_text(f"#!/bin/sh\nprintf '%s\\n' {found}\n")
        (fake / "ldconfig").chmod(0o755)
        done = subprocess.run(SOURCE, **options(repository, PATH=f"{fake}:{os.environ['PATH']}"))
        assert f"MUJOCO_GL={renderer}\n" in done.stderr
    (repository / ".venv/mine").touch()
    copy = shutil.copytree(repository, repository.parent / "copy", symlinks=True)
    done = subprocess.run(SOURCE, **options(copy))  # made anew: what is activated else is the first one's
    assert done.stdout.strip() == str(copy / ".venv") and not (copy / ".venv/mine").exists(), done.stderr
    (repository / ".venv/bin/python").unlink()
    assert subprocess.run(SOURCE, **options(repository)).returncode == 0 and not (repository / ".venv/mine").exists()
    good = (repository / "requirements.txt").read_text()
    (repository / "requirements.txt").write_text("termcolor==0.0.0.0\n")
    failed = subprocess.run(SOURCE, **options(repository))
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[-1] == "setup_shell: pip install -r requirements.txt failed, see .setup.log"
    (repository / "requirements.txt").write_text(f"{good}# changed\n")
    assert subprocess.run(SOURCE, **options(repository)).returncode == 0


@pytest.mark.parametrize(
    ("setting", "installer"),
    [
        ({"PIP_PREFER_BINARY": "1"}, "pip has the setting prefer-binary"),
        ({"PIP_TIMEOUT": "100", "PIP_FIND_LINKS": "here"}, "Installed 1 package"),  # uv's words
    ],
)
def test_uv_installs_with_the_settings_of_pip_and_pip_where_uv_has_no_word_for_one(repository, setting, installer):
    (repository / "here").mkdir()
    (line,) = re.findall(r"^#installer: .*", (REPOSITORY / "requirements.txt").read_text(), re.M)
    (repository / "requirements.txt").write_text(f"termcolor==3.3.0\n#no-deps: filelock==4.2.11\n{line}\n")
    done = subprocess.run(SOURCE, **options(repository, **setting))
    assert done.returncode == 0 and done.stdout.strip() == str(repository / ".venv"), done.stderr
    log = (repository / ".setup.log").read_text()
    assert re.search(installer, log) and ("Successfully installed termcolor" in log) == ("PIP_PREFER_BINARY" in setting)


def test_a_venv_of_ones_own_is_kept(repository):
    """One without pip, as other tools make it."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", ".venv"], cwd=repository, check=True)
    (repository / ".venv/mine").touch()
    done = subprocess.run(SOURCE, **options(repository))
    assert done.stdout.strip() == str(repository / ".venv") and (repository / ".venv/mine").exists(), done.stderr


@pytest.mark.parametrize(
    ("version", "said"),
    [
        ("3.8", "Python 3.8 does not fit, 3.11 to 3.13 is needed"),
        ("3.14", "Python 3.14 does not fit"),
        ("", "no working"),
    ],
)
def test_wrong_python_is_one_line(repository, version, said):
    fake = repository / "python"
    answer = f"case $2 in *print*) echo {version};; *) exit 1;; esac" if version else "exit 1"
    fake.write_text(f"#!/bin/bash\n{answer}\n")
    fake.chmod(0o755)
    wrong = subprocess.run(SOURCE, **options(repository, PYTHON=str(fake)))
    assert wrong.returncode == 1 and said in wrong.stderr and wrong.stderr.count("\n") == 1


def test_the_versions_of_python_that_setup_takes():
    """Its own check, by the interpreters' numbers; and pyproject.toml says the same."""
    text = (REPOSITORY / "setup_shell.sh").read_text()
    (check,) = re.findall(r"sys.exit\(not (.*?)\)'", text)
    taken = [minor for minor in range(8, 20) if eval(check, {"sys": SimpleNamespace(version_info=(3, minor, 1))})]
    assert taken == [11, 12, 13]
    assert 'requires-python = ">=3.11,<3.14"' in (REPOSITORY / "pyproject.toml").read_text()
