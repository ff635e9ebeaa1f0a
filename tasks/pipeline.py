"""What do the stages of one pipeline run share, and what does each leave?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from prefect.states import State

from lungml.devices import Hardware, Precision
from lungml.errors import LunaError
from lungml.fit import CHECKPOINT_STEPS
from lungml.home import Home
from lungml.recipes.data import Stage
from tasks.rounds import Redo, Round


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """What all stages of one pipeline run share.

    Attributes:
        home: where everything lies.
        pipeline_id: the flow run's.
        origin: "phantom" where the scans are synthetic.
        seed: of everything random.
        device: auto, cpu or cuda.
        devices: how many of them share each batch.
        precision: fp32 or bf16.
        round: what shall be done anew though it is finished; None repeats nothing.
        time_limit_h: hours that one training may take; None sets no limit.
        checkpoint_steps: steps between two checkpoints of a training.
        corrections: which of the readers' corrections were used, see `tasks.corrections.used_corrections`.
    """

    home: Home
    pipeline_id: str
    origin: Literal["real", "phantom"]
    seed: int
    device: str = "auto"
    devices: int = 1
    precision: Precision = "fp32"
    round: Round | None = None
    time_limit_h: float | None = None
    checkpoint_steps: int = CHECKPOINT_STEPS
    corrections: Mapping[str, int] = field(default_factory=dict)

    def round_of(self, stage: Redo) -> str | None:
        """The round in which this stage is done anew, as part of its key; None where finished work will do."""
        return self.round.id if self.round and stage in self.round.stages else None

    @property
    def hardware(self) -> Hardware:
        """What trainings run on."""
        return Hardware(device=self.device, count=self.devices, precision=self.precision)


# How a training's run names the metrics of the epoch that was kept, by split: the others are of every epoch.
LOGGED = {"val": "val/best_", "test": "test/"}


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A finished model: its URI and how its best epoch did; metric names are bare."""

    stage: Stage
    name: str
    uri: str
    best_epoch: int
    val: Mapping[str, float]
    test: Mapping[str, float]


def may_pass(_task: Any, _run: Any, state: State) -> bool:
    """Whether what failed is worth another try: a finding about the data or the settings is not."""
    failure = state.result(raise_on_failure=False)
    return not isinstance(failure, LunaError)
