"""What did an epoch's batches show, so that its training metrics can be told at the end?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch


class Tally:
    """Values noted batch by batch, on the batches' own device: noting does not wait for a GPU.

    A checkpoint within an epoch keeps it, and where several processes train, theirs are put together.
    """

    def __init__(self) -> None:
        self._noted: dict[str, list[torch.Tensor]] = {}

    def note(self, **values: torch.Tensor) -> None:
        """Note one batch: tensors (n, ...), whose first axes are joined over the batches."""
        for name, value in values.items():
            self._noted.setdefault(name, []).append(value.detach())

    def together(self) -> dict[str, torch.Tensor]:
        """All that was noted since the last `clear`, joined, where it was noted."""
        return {name: torch.cat(parts) for name, parts in self._noted.items()}

    def state(self) -> dict[str, torch.Tensor]:
        """All that was noted since the last `clear`, joined, on the CPU."""
        return {name: value.cpu() for name, value in self.together().items()}

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Forget what was noted, and go on from such a state."""
        self._noted = {name: [value] for name, value in state.items()}

    def clear(self) -> None:
        """Forget everything: an epoch begins."""
        self._noted = {}


def joined(states: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The states of several processes as one."""
    return {name: torch.cat([state[name] for state in states]) for name in states[0]}
