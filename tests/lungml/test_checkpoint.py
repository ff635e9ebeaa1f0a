from pathlib import Path

import pytest
import torch

from lungml.checkpoint import load_checkpoint, save_checkpoint


def test_a_state_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "stage" / "state.pt"
    assert load_checkpoint(path) is None
    save_checkpoint(path, {"epoch": 3, "model": {"w": torch.ones(2)}, "best_score": float("nan")})
    state = load_checkpoint(path)
    assert state is not None
    assert state["epoch"] == 3
    assert state["model"]["w"].tolist() == [1, 1]


def test_a_failed_save_keeps_the_last_good_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.pt"
    save_checkpoint(path, {"epoch": 1})

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(path, {"epoch": 2})
    assert load_checkpoint(path) == {"epoch": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["state.pt"]
