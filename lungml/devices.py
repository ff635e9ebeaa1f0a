"""On what does a model learn: which device, how many of them, in which precision?"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy.typing as npt
import torch

from lungml.errors import TrainingError

if TYPE_CHECKING:
    from lightning.fabric import Fabric

Precision = Literal["fp32", "bf16"]
VALIDATION_LIMIT = timedelta(days=1)  # the first process validates alone, and the others wait for it
FABRIC_PRECISION: dict[str, Literal["32-true", "bf16-mixed"]] = {"fp32": "32-true", "bf16": "bf16-mixed"}


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What one training runs on.

    Attributes:
        device: auto (a GPU where there is one), cpu, cuda or cuda:N.
        count: devices, or processes on the CPU, that share each batch.
        precision: "fp32", or "bf16" for bfloat16 where autocast thinks it safe; weights and losses stay float32, and
            no gradient scaler is needed. "fp32" on a GPU is PyTorch's default: what convolutions multiply is rounded
            to ten bits (TF32), without which the classifiers learn at a tenth of the speed.
    """

    device: str = "auto"
    count: int = 1
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        if self.count < 1:
            raise TrainingError(f"{self.count} devices were asked for; give 1 or more")
        if self.precision not in get_args(Precision):
            raise TrainingError(f"unknown precision {self.precision!r}; choose one of {', '.join(get_args(Precision))}")

    def check(self) -> torch.device:
        """The (first) device.

        Raises:
            TrainingError: when it, or one of several, is not there.
        """
        device = resolve_device(self.device)
        if device.type == "cuda" and self.count > torch.cuda.device_count():
            raise TrainingError(
                f"{self.count} GPUs were asked for, PyTorch sees {torch.cuda.device_count()}; give --devices"
            )
        if device.index is not None and self.count > 1:
            raise TrainingError(f"device {self.device!r} is one, {self.count} were asked for; give --device cuda")
        return device

    def launch(self) -> Fabric:
        """Set up the process, and start the others where several share the work: they run this very command again.

        Raises:
            TrainingError: as `check`.
        """
        # Two seconds, and only a training needs them.
        from lightning.fabric import Fabric
        from lightning.fabric.plugins.environments import LightningEnvironment
        from lightning.fabric.strategies import DDPStrategy

        device = self.check()
        if device.type == "cuda":
            devices: int | list[int] = [device.index] if device.index is not None else self.count
        else:
            devices = self.count
        fabric = Fabric(
            accelerator=device.type,
            devices=devices,
            strategy=DDPStrategy(timeout=VALIDATION_LIMIT) if self.count > 1 else "auto",
            precision=FABRIC_PRECISION[self.precision],
            plugins=[LightningEnvironment()],  # the number is ours to say, not a cluster's
        )
        fabric.launch()
        if fabric.world_size != self.count:
            raise TrainingError(f"{self.count} devices were asked for, {fabric.world_size} take part")
        return fabric


def check_shared(batch_size: int, devices: int) -> None:
    """Refuse a batch that devices cannot share evenly.

    Raises:
        TrainingError: names both.
    """
    if batch_size % devices:
        raise TrainingError(
            f"a batch of {batch_size} cannot be shared by {devices} devices; give a multiple of {devices}"
        )


def resolve_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU; any other name is PyTorch's own.

    Raises:
        TrainingError: when the named device is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise TrainingError(f"device {name!r} is not one that PyTorch knows; use auto, cpu or cuda") from error
    if device.type not in ("cpu", "cuda"):
        raise TrainingError(f"device {name!r} is not one that luna runs on; use auto, cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise TrainingError("device 'cuda' was asked for, but PyTorch sees no GPU; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise TrainingError(f"device {name!r}: PyTorch sees {torch.cuda.device_count()} GPUs, counted from 0")
    return device


def send(array: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """A copy on a GPU, from page-locked memory and so without waiting for it; on the CPU the array itself."""
    there = torch.from_numpy(array)
    return there.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else there
