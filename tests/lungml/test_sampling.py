import numpy as np
import pytest

from lungml.sampling import NegativePlan, balanced_order, batches, kept_negatives, seen_in_epoch

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


ALL = NegativePlan()
FIXED = NegativePlan(kind="fixed", per_scan=4)
TURNS = NegativePlan(kind="per_epoch", per_scan=3, epochs=2)


def kept(total: int, plan: NegativePlan, seed: int = 0) -> list[int]:
    return kept_negatives(total, plan, np.random.default_rng(seed)).tolist()


def test_what_a_plan_keeps_of_a_scan() -> None:
    assert kept(5, ALL) == [0, 1, 2, 3, 4]
    assert [plan.kept_per_scan for plan in (ALL, FIXED, TURNS)] == [None, 4, 6]
    for plan, count in ((FIXED, 4), (TURNS, 6)):
        assert len(set(kept(100, plan))) == count
        assert sorted(kept(3, plan)) == [0, 1, 2]  # a scan with fewer keeps all
        assert kept(0, plan) == []


def test_the_seed_decides_what_is_kept_and_a_larger_sample_begins_with_the_smaller() -> None:
    assert kept(100, FIXED, seed=1) == kept(100, FIXED, seed=1) != kept(100, FIXED, seed=2)
    assert kept(100, TURNS)[:4] == kept(100, FIXED)


def test_all_leaves_the_generator_alone() -> None:
    rng = np.random.default_rng(0)
    kept_negatives(5, ALL, rng)
    assert rng.integers(1000) == np.random.default_rng(0).integers(1000)


def seen(epoch: int, plan: NegativePlan = TURNS, wanted: int = 1) -> list[int]:
    scans = np.array([2, 2, 2, 2, 2, 2, 5, 5, 5, 5, 7])  # six, four and one kept
    return np.flatnonzero(seen_in_epoch(scans, plan, epoch, wanted)).tolist()


def test_epochs_take_turns_by_hand() -> None:
    assert seen(1) == [0, 1, 2, 6, 7, 8, 10]
    assert seen(2) == [3, 4, 5, 6, 7, 9, 10]  # the scan of four goes on with its last and begins again
    assert seen(3) == [0, 1, 2, 6, 8, 9, 10]  # the scan of six begins again


def test_few_scans_give_more_each() -> None:
    assert seen(1, wanted=12) == [0, 1, 2, 3, 6, 7, 8, 9, 10]
    assert seen(2, wanted=12) == [0, 1, 4, 5, 6, 7, 8, 9, 10]


@pytest.mark.parametrize("plan", [ALL, FIXED])
def test_other_plans_show_every_epoch_everything(plan: NegativePlan) -> None:
    assert seen(1, plan) == seen(2, plan) == list(range(11))


def test_no_negatives_are_none_in_any_epoch() -> None:
    assert len(seen_in_epoch(np.array([], dtype=np.int64), TURNS, 1, 10)) == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "some"},
        {"per_scan": 5},
        {"kind": "fixed"},
        {"kind": "fixed", "per_scan": -1},
        {"kind": "fixed", "per_scan": 5, "epochs": 2},
        {"kind": "per_epoch", "per_scan": 5, "epochs": 0},
    ],
)
def test_plans_that_contradict_themselves_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="plan"):
        NegativePlan(**wrong)
