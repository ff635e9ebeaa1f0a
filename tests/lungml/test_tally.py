from __future__ import annotations

import torch

from lungml.tally import Tally, joined


def test_what_was_noted_comes_back_in_its_order() -> None:
    tally = Tally()
    tally.note(loss=torch.tensor([1.0]), probs=torch.tensor([0.1, 0.2]))
    tally.note(loss=torch.tensor([2.0]), probs=torch.tensor([0.3], requires_grad=True))
    for seen in (tally.together(), tally.state()):
        assert seen["loss"].tolist() == [1, 2]
        torch.testing.assert_close(seen["probs"], torch.tensor([0.1, 0.2, 0.3]))
        assert not seen["probs"].requires_grad


def test_another_tally_goes_on_from_a_state() -> None:
    tally, other = Tally(), Tally()
    tally.note(loss=torch.tensor([1.0]))
    other.note(loss=torch.tensor([9.0]))
    other.load(tally.state())
    other.note(loss=torch.tensor([2.0]))
    assert other.state()["loss"].tolist() == [1, 2]
    other.clear()
    assert other.state() == {}


def test_tallies_of_several_processes_follow_one_another() -> None:
    assert joined([{"loss": torch.tensor([1.0])}, {"loss": torch.tensor([2.0, 3.0])}])["loss"].tolist() == [1, 2, 3]
