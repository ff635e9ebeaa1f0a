from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from lungml.answers import Answers, read_answers, write_answers
from lungml.candidates import Candidates
from lungml.marked import Marked


def answers(voxels: list[int]) -> Answers:
    return Answers(
        marked=Marked(
            shape=(3, 5, 7),
            voxels=np.array(voxels, dtype=np.int64),
            probs=np.linspace(0.4, 0.9, len(voxels), dtype=np.float32),
            floor=0.3,
        ),
        candidates=Candidates(
            centers_irc=np.array([[1.25, 2.5, 3.75], [0, 4, 6]]),
            diameters_mm=np.array([5.5, math.nan]),
            scores=np.array([0.7, 0.6]),
            left_out=3,
        ),
        prob_nodule=np.array([0.9, 0.1 + 1e-12]),
        prob_malignant=np.array([0.3, math.nan]),
    )


@pytest.mark.parametrize("voxels", [[0, 1, 2, 50, 104], [104], []])
def test_what_was_said_is_read_again_to_the_last_bit(tmp_path: Path, voxels: list[int]) -> None:
    said, path = answers(voxels), tmp_path / "a" / "answers.npz"
    write_answers(path, said, "key")
    again = read_answers(path, "key")
    assert again is not None
    assert (again.marked.shape, again.marked.floor, again.candidates.left_out) == ((3, 5, 7), 0.3, 3)
    np.testing.assert_array_equal(again.marked.voxels, said.marked.voxels)
    np.testing.assert_array_equal(again.marked.probs, said.marked.probs)
    assert (again.marked.voxels.dtype, again.marked.probs.dtype) == (np.int64, np.float32)
    for name in ("centers_irc", "diameters_mm", "scores"):
        np.testing.assert_array_equal(getattr(again.candidates, name), getattr(said.candidates, name))
    np.testing.assert_array_equal(again.prob_nodule, said.prob_nodule)
    np.testing.assert_array_equal(again.prob_malignant, said.prob_malignant)


def test_answers_to_another_question_are_none(tmp_path: Path) -> None:
    path = tmp_path / "answers.npz"
    assert read_answers(path) is None
    write_answers(path, answers([1]), "key")
    assert read_answers(path, "other") is None
    assert read_answers(path) is not None


def test_a_damaged_file_is_asked_anew_wherever_the_damage_is(tmp_path: Path) -> None:
    path = tmp_path / "answers.npz"
    write_answers(path, answers(list(range(0, 100, 3))), "key")
    whole = path.read_bytes()
    for place in range(0, len(whole), 97):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        again = read_answers(path, "key")
        if again is not None:  # a byte that says nothing, such as a time
            np.testing.assert_array_equal(again.marked.voxels, np.arange(0, 100, 3))
            np.testing.assert_array_equal(again.prob_nodule, [0.9, 0.1 + 1e-12])
    path.write_bytes(whole[: len(whole) // 2])
    assert read_answers(path, "key") is None


def test_equal_answers_are_equal_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_answers(tmp_path / name, answers([1, 2]), "key")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
