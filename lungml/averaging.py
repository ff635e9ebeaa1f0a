"""What would the weights be without the last steps' noise?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn


class WeightAverage:
    """A running average of a model's weights and batch-norm statistics (Polyak averaging, exponentially forgetting).

    Step t keeps min(share, (1 + t) / (10 + t)) of the old, so that the first weights are forgotten soon.

    Args:
        model: averaged; left as it is.
        share: of the old that a step keeps, in (0, 1).
    """

    def __init__(self, model: nn.Module, share: float) -> None:
        self._model, self._share, self._steps = model, share, 0
        self._average = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the model as it stands after a step."""
        self._steps += 1
        new = 1 - min(self._share, (1 + self._steps) / (10 + self._steps))
        now = self._model.state_dict()
        moving = [name for name, value in now.items() if value.is_floating_point()]
        torch._foreach_lerp_([self._average[n] for n in moving], [now[n] for n in moving], new)
        for name in now.keys() - set(moving):  # counts of batches
            self._average[name].copy_(now[name])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model carries the average inside the block, and its own weights again after it."""
        own = {name: value.detach().clone() for name, value in self._model.state_dict().items()}
        self._model.load_state_dict(self._average)
        try:
            yield
        finally:
            self._model.load_state_dict(own)

    def state_dict(self) -> dict[str, object]:
        """What a checkpoint keeps."""
        return {"steps": self._steps, "average": self._average}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Go on from such a state."""
        steps, average = state["steps"], state["average"]
        assert isinstance(steps, int)
        assert isinstance(average, Mapping)
        self._steps = steps
        for name, value in average.items():
            self._average[name].copy_(value)
