"""How does any of the models learn? One loop for all recipes, that goes on exactly where a kill stopped it."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed
from torch import nn

from lungml.averaging import WeightAverage
from lungml.checkpoint import Checkpoints
from lungml.devices import Hardware, check_shared
from lungml.errors import TrainingError
from lungml.fit_settings import FitSettings, make_optimizer, make_scheduler
from lungml.loading import Batch
from lungml.metrics import is_better
from lungml.replay import Replay
from lungml.sampling import batches
from lungml.tally import Tally, joined

if TYPE_CHECKING:
    from lightning.fabric import Fabric

log = logging.getLogger(__name__)

CHECKPOINT_STEPS = 200
CUDA_CHECK_STEPS = 50  # between looks at a GPU's losses: each look waits for the GPU
STEP_REPORT_S = 2.0  # a step is shown no more often

Net = Callable[[torch.Tensor], torch.Tensor]


class Problem(Protocol):
    """What one model learns from: the recipes implement it.

    One whose `loss` looks at nothing but a batch's arrays, and never waits for the GPU, may say `replays = True`: its
    steps are then replayed on a GPU, see `lungml.replay`.
    """

    tally: Tally

    @property
    def model(self) -> nn.Module:
        """The network, on its device."""

    def order(self, rng: np.random.Generator, samples: int, epoch: int) -> npt.NDArray[np.int64]:
        """The training rows of one epoch, counted from 1."""

    def loaded(self, wanted: Iterable[npt.NDArray[np.int64]]) -> Generator[Batch, None, None]:
        """The batches at those rows, on the model's device, the next ones being read while one is learned from."""

    def train_mode(self) -> None:
        """Put the model in training mode, frozen parts excepted."""

    def loss(self, net: Net, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        """The mean loss of one batch of `loaded`, augmented; notes in the tally what the training metrics need.

        Args:
            net: the model, or what runs it in another precision or shares its gradients between processes.
            batch: of `loaded`.
            generator: of the augmentation.
        """

    def train_metrics(self, seen: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """Metrics of what an epoch's batches noted in the tally, in all processes."""

    def evaluate(self, split: Literal["val", "test"]) -> dict[str, float]:
        """Metrics of the model as it stands on a split that is neither balanced nor augmented."""


@dataclass(frozen=True, kw_only=True)
class EpochReport:
    """One epoch, as it is shown and logged; metric names are bare (`loss`, `recall`, ...)."""

    epoch: int
    epochs: int
    train: Mapping[str, float]
    val: Mapping[str, float]
    best_epoch: int
    best_score: float
    samples_per_s: float
    seconds_left: float


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """How far an epoch is."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    samples_per_s: float
    seconds_left: float


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """The best epoch by the validation metric; `weights` are its state on the CPU."""

    best_epoch: int
    best_score: float
    weights: dict[str, torch.Tensor]
    val: Mapping[str, float]


def fit(
    problem: Problem,
    settings: FitSettings,
    *,
    seed: int,
    fabric: Fabric | None = None,
    checkpoints: Checkpoints | None = None,
    checkpoint_steps: int = CHECKPOINT_STEPS,
    on_epoch: Callable[[EpochReport], None] | None = None,
    on_step: Callable[[StepReport], None] | None = None,
) -> FitResult:
    """Train a problem's model and leave it with the best epoch's weights.

    Every epoch draws from generators made of (seed, epoch); their states are in the checkpoints, with everything else
    that the next step depends on. A training that was killed and goes on ends with the weights, bit by bit, of one that
    was not (on a CPU; a GPU's 3D max-pooling has no deterministic backward).

    Where several processes train, each takes every n-th row of a batch and the gradients are averaged, so that the
    settings mean the same with any number of them. The first one validates.

    Args:
        problem: model, data and loss.
        settings: how long and how fast.
        seed: of sampling and augmentation; initial weights come with the model.
        fabric: launched; what the model runs on. One process on the model's device when None.
        checkpoints: where the resumable states go; None keeps none.
        checkpoint_steps: steps between two states; there is one after every epoch, too.
        on_epoch: called after every epoch, in the first process; after a kill also with those finished before it.
        on_step: called now and then within an epoch, in the first process.

    Raises:
        TrainingError: when the loss is not finite, the device's memory is too small, or no validation gave a score.
        CheckpointError: when the states belong to another training.
        OSError: when a state cannot be written; the last good one stays.
    """
    return _Fit(problem, settings, seed, fabric or _alone(problem.model), checkpoints, checkpoint_steps).run(
        on_epoch or _ignore, on_step or _ignore
    )


class _Fit:
    """The state of one training between its steps."""

    def __init__(
        self,
        problem: Problem,
        settings: FitSettings,
        seed: int,
        fabric: Fabric,
        checkpoints: Checkpoints | None,
        checkpoint_steps: int,
    ) -> None:
        self.problem, self.settings, self.seed, self.fabric = problem, settings, seed, fabric
        self.checkpoints, self.checkpoint_steps = checkpoints, checkpoint_steps
        self.model = problem.model
        self.device = next(self.model.parameters()).device
        check_shared(settings.batch_size, fabric.world_size)
        if self.device.type == "cuda":
            # Equal seeds, equal weights. The backward of 3D max-pooling has no such kernel: PyTorch warns and goes on.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True, warn_only=True)
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        if fabric.world_size > 1 and self.device.type == "cuda":
            # Statistics of the whole batch, as one device has them. PyTorch has no such layer on the CPU.
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        optimizer = make_optimizer(settings, self.model)
        self.scheduler = make_scheduler(settings, optimizer)
        self.net, self.optimizer = fabric.setup(self.model, optimizer, move_to_device=False)
        self.average = WeightAverage(self.model, settings.average) if settings.average else None
        self.generator = torch.Generator(self.device)
        self.replay: Replay | None = None
        if self.device.type == "cuda" and fabric.world_size == 1 and getattr(problem, "replays", False):
            self.replay = Replay(self._gradients, problem, self.generator)
        self.epoch, self.step = 1, 0  # of the step that comes next; steps are counted from 0
        self.best_epoch, self.best_score, self.best_val = 0, math.nan, dict[str, float]()
        self.best_weights = dict[str, torch.Tensor]()
        self.history: list[dict[str, Any]] = []

    def run(self, on_epoch: Callable[[EpochReport], None], on_step: Callable[[StepReport], None]) -> FitResult:
        first, settings = self.fabric.global_rank == 0, self.settings
        self._resume()
        if first:
            for report in self.history:
                on_epoch(EpochReport(**report))
        while self.epoch <= settings.epochs:
            started, from_step = time.perf_counter(), self.step
            self._train_epoch(on_step if first else _ignore)
            trained_s = time.perf_counter() - started
            train = self._train_metrics()
            val = self._validate()
            self.history.append(
                {
                    "epoch": self.epoch,
                    "epochs": settings.epochs,
                    "train": train,
                    "val": val,
                    "best_epoch": self.best_epoch,
                    "best_score": self.best_score,
                    "samples_per_s": (settings.steps_per_epoch - from_step) * settings.batch_size / trained_s,
                    "seconds_left": (time.perf_counter() - started) * (settings.epochs - self.epoch),
                }
            )
            self.epoch, self.step = self.epoch + 1, 0
            self.problem.tally.clear()
            self._save()
            if first:
                on_epoch(EpochReport(**self.history[-1]))
        self.replay = None  # with its memory
        if not self.best_epoch:
            raise TrainingError(
                f"no epoch has a validation {settings.select_by}: the validation split lacks one of the two classes"
            )
        self.model.load_state_dict(self.best_weights)
        self.model.eval()
        return FitResult(
            best_epoch=self.best_epoch, best_score=self.best_score, weights=self.best_weights, val=self.best_val
        )

    def _train_epoch(self, on_step: Callable[[StepReport], None]) -> None:
        """The steps of this epoch that are left."""
        settings, world, rank = self.settings, self.fabric.world_size, self.fabric.global_rank
        if settings.later_rate and self.epoch >= settings.later_rate[0]:
            for group in self.optimizer.param_groups:
                group["lr"] = settings.later_rate[1]
        rng = np.random.default_rng([self.seed, self.epoch])
        order = self.problem.order(rng, settings.samples_per_epoch, self.epoch)
        begin = int(rng.integers(2**62)) + rank
        if not self.step:
            self.generator.manual_seed(begin)
        self.problem.train_mode()
        rows = list(batches(order, settings.batch_size))
        mine = [batch[rank::world] for batch in rows]
        unseen: list[torch.Tensor] = []  # losses that were not looked at yet
        started, told, from_step = time.perf_counter(), time.perf_counter(), self.step
        look_after = CUDA_CHECK_STEPS if self.device.type == "cuda" else 1
        with closing(self.problem.loaded(mine[self.step :])) as loaded:
            for batch in loaded:
                unseen.append(self._learn_from(batch))
                self.step += 1
                due = self.step % self.checkpoint_steps == 0 and self.step < len(rows)
                if len(unseen) >= look_after or due or self.step == len(rows):
                    loss = self._look_at(unseen, rows)
                    unseen = []
                    if time.perf_counter() - told >= STEP_REPORT_S:
                        told = time.perf_counter()
                        on_step(self._step_report(len(rows), loss, (told - started) / (self.step - from_step)))
                if due:
                    self._save()

    def _learn_from(self, batch: Batch) -> torch.Tensor:
        """One step; returns its loss, on the device."""
        loss: torch.Tensor | None = None
        try:
            loss = self.replay(batch) if self.replay else self._gradients(batch)
        except torch.OutOfMemoryError:
            fits = False
        else:
            fits = True
        if not fits:  # outside of the handler, whose traceback keeps the batch's memory
            loss = None
            raise TrainingError(self._too_large(batch))
        assert loss is not None
        if self.settings.clip_norm:
            self.fabric.clip_gradients(
                self.net, self.optimizer, max_norm=self.settings.clip_norm, error_if_nonfinite=False
            )  # the loss is looked at, and tells more
        self.optimizer.step()
        if self.scheduler:
            self.scheduler.step()
        if self.average:
            self.average.update()
        loss = loss[None]
        self.problem.tally.note(loss=loss)
        return loss

    def _gradients(self, batch: Batch) -> torch.Tensor:
        """The loss of a batch, whose gradients are then in the parameters."""
        loss = self.problem.loss(self.net, batch, self.generator)
        self.optimizer.zero_grad(set_to_none=True)
        self.fabric.backward(loss)
        return loss.detach()

    def _look_at(self, losses: list[torch.Tensor], rows: list[npt.NDArray[np.int64]]) -> float:
        """The last of the losses; stops the training, in all processes, where one is not finite."""
        values = torch.cat(losses).float()
        if self.fabric.world_size > 1:
            values = self.fabric.all_reduce(values, reduce_op="mean")  # type: ignore[assignment]
        found = values.tolist()
        bad = next((number for number, value in enumerate(found) if not math.isfinite(value)), None)
        if bad is None:
            return float(found[-1])
        step = self.step - len(found) + bad
        with closing(self.problem.loaded([rows[step]])) as loaded:
            batch = next(loaded)
        kept = ""
        if self.checkpoints and self.fabric.global_rank == 0:
            arrays = [array.detach().cpu() for array in batch.arrays]
            about = {"epoch": self.epoch, "step": step, "loss": found[bad], "seed": self.seed}
            path = self.checkpoints.keep_batch(
                {**about, "rows": torch.from_numpy(np.asarray(batch.rows)), "arrays": arrays}
            )
            kept = f"; its batch is kept in {path}"
        raise TrainingError(
            f"the loss is {found[bad]} in epoch {self.epoch}, step {step + 1}{kept}; lower the learning rate"
        )

    def _too_large(self, batch: Batch) -> str:
        """Try halves of the batch that did not fit, and say which size does."""
        size = len(batch.rows)
        said = f"{self.device}: out of memory at a batch of {self.settings.batch_size}"
        if self.fabric.world_size > 1:  # the others wait for this one's gradients and would wait for ever
            return f"{said} on {self.fabric.world_size} devices; give a smaller batch_size"
        while size > 1:
            size //= 2
            self.optimizer.zero_grad(set_to_none=True)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            part = Batch(rows=batch.rows[:size], arrays=tuple(array[:size] for array in batch.arrays))
            try:
                self.problem.loss(self.net, part, self.generator).backward()
            except torch.OutOfMemoryError:
                continue
            return f"{said}; {size} fits: give it as fit.batch_size"
        return f"{said}, and at any smaller one; free the device's memory or choose another device"

    def _step_report(self, steps: int, loss: float, seconds_a_step: float) -> StepReport:
        left = (self.settings.epochs - self.epoch + 1) * steps - self.step
        return StepReport(
            epoch=self.epoch,
            epochs=self.settings.epochs,
            step=self.step,
            steps=steps,
            loss=loss,
            samples_per_s=self.settings.batch_size / seconds_a_step,
            seconds_left=left * seconds_a_step,
        )

    def _train_metrics(self) -> dict[str, float]:
        seen = joined(self._of_all(self.problem.tally.state()))
        return {"loss": float(seen["loss"].mean()), **self.problem.train_metrics(seen)}

    def _check_weights(self) -> None:
        """Stop before weights that are no numbers are judged or kept: a step may spoil them after a finite loss."""
        if not all(bool(value.isfinite().all()) for value in self.model.parameters()):
            raise TrainingError(f"the weights are not finite in epoch {self.epoch}; lower the learning rate")

    def _validate(self) -> dict[str, float]:
        """This epoch's validation, where it is due, in all processes; keeps the weights where they are the best."""
        self._check_weights()
        if self.epoch % self.settings.validate_every and self.epoch != self.settings.epochs:
            return {}
        with self.average.in_place() if self.average else nullcontext():
            self.model.eval()
            val = self.problem.evaluate("val") if self.fabric.global_rank == 0 else {}
            val = self.fabric.broadcast(val)
            if is_better(val[self.settings.select_by], self.best_score):
                self.best_epoch, self.best_score = self.epoch, val[self.settings.select_by]
                self.best_weights, self.best_val = _snapshot(self.model), val
                if self.checkpoints and self.fabric.global_rank == 0:
                    self.checkpoints.save_best(self.epoch, self.best_weights)
        return val

    def _save(self) -> None:
        if self.checkpoints is None:
            return
        self._check_weights()
        cuda = self.device.type == "cuda"
        own = {
            "generator": self.generator.get_state(),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(self.device) if cuda else None,
            "tally": self.problem.tally.state(),
        }
        processes = self._of_all(own)
        if self.fabric.global_rank:
            return
        self.checkpoints.save(
            {
                "epoch": self.epoch,
                "step": self.step,
                "model": _snapshot(self.model),
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict() if self.scheduler else None,
                "average": self.average.state_dict() if self.average else None,
                "processes": processes,
                "best_epoch": self.best_epoch,
                "best_score": self.best_score,
                "best_val": self.best_val,
                "history": self.history,
            }
        )

    def _resume(self) -> None:
        state = self.checkpoints.load() if self.checkpoints else None
        if state is None:
            return
        assert self.checkpoints is not None
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler:
            self.scheduler.load_state_dict(state["scheduler"])
        if self.average:
            self.average.load_state_dict(state["average"])
        own = state["processes"][self.fabric.global_rank]
        self.generator.set_state(own["generator"])
        torch.set_rng_state(own["torch"])
        if own["cuda"] is not None:
            torch.cuda.set_rng_state(own["cuda"], self.device)
        self.problem.tally.load({name: value.to(self.device) for name, value in own["tally"].items()})
        self.epoch, self.step = state["epoch"], state["step"]
        self.best_epoch, self.best_score, self.best_val = state["best_epoch"], state["best_score"], state["best_val"]
        if self.best_epoch:
            self.best_weights = self.checkpoints.load_best(self.best_epoch)
        self.history = state["history"]
        if self.epoch <= self.settings.epochs:
            log.info(
                "going on in epoch %d of %d, after step %d of %d",
                self.epoch,
                self.settings.epochs,
                self.step,
                self.settings.steps_per_epoch,
            )

    def _of_all(self, own: Any) -> list[Any]:
        """What each process has, in their order."""
        if self.fabric.world_size == 1:
            return [own]
        gathered: list[Any] = [None] * self.fabric.world_size
        torch.distributed.all_gather_object(gathered, own)
        return gathered


def _alone(model: nn.Module) -> Fabric:
    return Hardware(device=str(next(model.parameters()).device)).launch()


def _ignore(_: Any) -> None:
    """Nobody listens."""


def _snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


def identity_of(settings: Any, **more: Any) -> dict[str, str]:
    """A training's settings as flat text, `fit.epochs` and so on, for `Checkpoints` and for whoever logs them.

    Args:
        settings: a recipe; a dataclass.
        more: what else makes the training the one it is.
    """
    return {name: str(value) for name, value in {**_flat(asdict(settings)), **more}.items()}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
