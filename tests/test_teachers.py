"""Simulated teachers (B-Pref): each fault alone, on the real dataset; the perfect one changes nothing."""

from __future__ import annotations

import json

import numpy as np
import pytest

from common import suites
from common.data import read_preferences
from common.errors import InputError
from common.suites.base import Preferences, describe_pairs
from tools import dataset, teachers

ENV = "drawer-open-v2"
TASK = suites.resolve(ENV)


def taught(data_dir, folder, *words):
    """The pairs that the command writes."""
    out = folder / "pairs.npz"
    dataset.main(dataset.DatasetArgs(env=ENV, data_dir=data_dir, teacher=words, out=str(out)))
    return read_preferences(out, TASK), json.loads(str(np.load(out)["teacher"]))


def segments(p: Preferences) -> tuple[np.ndarray, np.ndarray]:
    rows = p.start[..., None] + np.arange(p.length)
    return p.obs[rows], p.action[rows]


@pytest.fixture
def own(data_dir):
    return read_preferences(dataset.find_datasets(dataset.DatasetArgs(env=ENV, data_dir=data_dir), TASK)[0], TASK)


def test_the_perfect_teacher_gives_the_same_labels_and_segments(own, data_dir, tmp_path):
    p, teacher = taught(data_dir, tmp_path, "perfect")
    assert p.label.tobytes() == own.label.tobytes() and p.label.dtype == own.label.dtype
    for ours, theirs in zip(segments(own), segments(p), strict=True):
        assert ours.tobytes() == theirs.tobytes()
    assert teacher == {"mistake": 0, "equal": 0, "skip": "-inf", "beta": "inf", "myopic": 1, "seed": 0}


def test_the_file_is_the_same_each_time_and_depends_on_the_seed(data_dir, tmp_path):
    labels = [taught(data_dir, tmp_path, "mistake=0.3", f"seed={seed}")[0].label for seed in (1, 1, 2)]
    assert np.array_equal(labels[0], labels[1]) and not np.array_equal(labels[0], labels[2])


def drawn(pairs: int = 4000) -> Preferences:
    """Pairs of 4 steps, returns about normal."""
    rng = np.random.default_rng(0)
    reward, start = rng.normal(size=5000), rng.integers(0, 4996, (pairs, 2))
    p = Preferences(np.zeros((5000, 1)), np.zeros((5000, 1)), start, np.zeros(pairs), 4, reward)
    return teachers.labelled_by(p, teachers.Teacher())


def returns(p: Preferences) -> np.ndarray:
    return p.reward[p.start[..., None] + np.arange(4)].sum(-1)


def test_mistakes_flip_their_share_and_more_are_the_same_and_others():
    p = drawn()
    wrong = [teachers.labelled_by(p, teachers.parse((f"mistake={share}",))).label != p.label for share in (0.1, 0.4, 1)]
    assert [flips.mean() for flips in wrong] == pytest.approx([0.1, 0.4, 1], abs=0.02)
    assert not (wrong[0] & ~wrong[1]).any()


def test_equal_and_skip():
    p = drawn()
    equal, skip = (teachers.labelled_by(p, teachers.parse((word,))) for word in ("equal=1.5", "skip=0"))
    assert np.array_equal(equal.label == 0.5, np.abs(np.diff(returns(p)))[:, 0] < 1.5)
    assert np.array_equal(skip.start, p.start[returns(p).max(1) >= 0]) and len(skip.label) < len(p.label)


def test_beta_is_bradley_terrys_and_myopia_counts_the_last_steps():
    p = drawn()
    better = np.diff(returns(p))[:, 0]
    label, near = teachers.labelled_by(p, teachers.parse(("beta=0.5",))).label, (better > 1) & (better < 2)
    assert label[near].mean() == pytest.approx((1 / (1 + np.exp(-0.5 * better[near]))).mean(), abs=0.06)
    last = teachers.labelled_by(p, teachers.parse(("myopic=0",))).label
    assert np.array_equal(last, 0.5 + 0.5 * np.sign(np.diff(p.reward[p.start + 3])[:, 0]))


@pytest.mark.parametrize("word", ["mistake", "mistake=", "mistake=1.1", "mistake=nan", "beta=-1", "seed=0.5", "typo=1"])
def test_bad_words_are_refused_in_one_line(word, tmp_path):
    with pytest.raises(InputError, match=f"--teacher {word}") as error:
        dataset.main(dataset.DatasetArgs(env=ENV, data_dir=tmp_path, teacher=(word,), out=str(tmp_path / "x.npz")))
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_what_cannot_be_taught_is_refused(tmp_path):
    with pytest.raises(InputError, match="skips all pairs"):
        teachers.labelled_by(drawn(), teachers.parse(("skip=1e9",)))
    with pytest.raises(InputError, match=r"--out x\.txt"):
        dataset.main(dataset.DatasetArgs(env=ENV, data_dir=tmp_path, teacher=("perfect",), out="x.txt"))


def test_described():
    p = teachers.labelled_by(drawn(), teachers.parse(("mistake=0.25",)))
    assert "4000 pairs of 4 steps" in describe_pairs(p)[0] and "74 % of the 4000" in describe_pairs(p)[1]
