import numpy as np
import pytest

from lungml.sampling import balanced_order, batches

POSITIVES, NEGATIVES = np.arange(3), np.arange(3, 100)


def order(seed: int = 0, samples: int = 40) -> np.ndarray:
    return balanced_order([POSITIVES, NEGATIVES], [0.5, 0.5], samples, np.random.default_rng(seed))


def test_each_group_fills_its_share() -> None:
    assert (order() < 3).sum() == 20
    assert len(order()) == 40


def test_rare_samples_repeat_evenly_and_common_ones_do_not() -> None:
    counts = np.bincount(order(), minlength=100)
    assert set(counts[:3].tolist()) <= {6, 7}
    assert counts[3:].max() == 1


def test_the_seed_decides() -> None:
    np.testing.assert_array_equal(order(1), order(1))
    assert (order(1) != order(2)).any()


def test_positives_and_negatives_are_mixed() -> None:
    assert (np.diff(order(samples=200) < 3) != 0).sum() > 10


def test_odd_sizes_add_up() -> None:
    drawn = balanced_order([POSITIVES, NEGATIVES, POSITIVES], [0.5, 0.25, 0.25], 7, np.random.default_rng(0))
    assert len(drawn) == 7


def test_an_empty_group_is_named() -> None:
    with pytest.raises(ValueError, match="group 1 of 2 has no samples"):
        balanced_order([POSITIVES, POSITIVES[:0]], [0.5, 0.5], 10, np.random.default_rng(0))
    assert len(balanced_order([POSITIVES, POSITIVES[:0]], [1, 0], 10, np.random.default_rng(0))) == 10


def test_batches_leave_out_a_last_partial_one() -> None:
    assert [b.tolist() for b in batches(np.arange(7), 3)] == [[0, 1, 2], [3, 4, 5]]
    assert [b.tolist() for b in batches(np.arange(2), 3)] == [[0, 1]]
