"""How well a GPU is used while the networks learn, and that they learn what they learn on the CPU.

Imports as `test_cuda.py`, and lightning. `pytest -m gpu -s tests/gpu/test_training_cuda.py` prints the figures; what
is asserted is what holds on any GPU: no waiting for the loader, and the same numbers.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from lungml.augment import Augmentation
from lungml.devices import Hardware, Precision
from lungml.fit import fit
from lungml.fit_settings import FitSettings
from lungml.losses import bce_batch_dice_loss, report_segmentation_loss
from lungml.models import place
from lungml.models.nodule_net import NoduleNet
from lungml.models.unet import UNet
from tests.benchmarks.book import BookCrops, BookWindows, book_classifier, book_u_net
from tests.gpu.learning import (
    Crops,
    Windows,
    busy_seconds,
    flops_per_sample,
    peak_flops,
    peak_memory_gb,
    random_crops,
    random_slabs,
    seconds_of,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU"),
    pytest.mark.timeout(1800),
]
CUDA, CPU = torch.device("cuda"), torch.device("cpu")
CROPS, SLABS = 4_000, 4_000  # that the samples of an epoch are drawn from: 0.6 GB each
CLASSIFIER_EPOCH, U_NET_EPOCH = 50_000, 300_000  # the report's
CROP_BATCH, WINDOW_BATCH = 48, 16  # the report's
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
STILL = Augmentation(flip=True, shift=0.1, scale=0.2, rotate=True)  # a GPU draws other noise than a CPU


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """No switch left on for the next test: `fit` asks for deterministic kernels."""
    switches = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [switch.allow_tf32 for switch in switches]
    yield
    for switch, value in zip(switches, before):
        switch.allow_tf32 = value  # by hand: undoing a monkeypatch of these raises AttributeError
    torch.use_deterministic_algorithms(False)
    torch.cuda.empty_cache()


@pytest.fixture
def exact(restored: None) -> None:
    """Full float32 products. Training itself takes PyTorch's default, convolutions of ten bits (TF32)."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def crops_on(device: torch.device, count: int = CROPS, **more: Any) -> Crops:
    net = NoduleNet(generator=torch.Generator().manual_seed(0))
    return Crops(place(net, device), random_crops(count), **more)


def windows_on(device: torch.device, count: int = SLABS, **more: Any) -> Windows:
    net = UNet(generator=torch.Generator().manual_seed(0))
    return Windows(place(net, device), *random_slabs(count), **more)


def how(samples: int, batch_size: int, optimizer: Any) -> FitSettings:
    return FitSettings(
        epochs=1,
        samples_per_epoch=samples,
        batch_size=batch_size,
        optimizer=optimizer,
        learning_rate=1e-3,
        select_by="f1",
    )


def learn(learning: Crops | Windows, settings: FitSettings, precision: Precision = "fp32") -> float:
    """Samples a second of one epoch."""
    fabric = Hardware(device="cuda", precision=precision).launch()
    reports: list[Any] = []
    fit(learning, settings, seed=0, fabric=fabric, on_epoch=reports.append)
    return reports[0].samples_per_s


KINDS = pytest.mark.parametrize(
    ("make", "batch_size", "optimizer"),
    [(crops_on, CROP_BATCH, "sgd"), (windows_on, WINDOW_BATCH, "adam")],
    ids=["classifier", "unet"],
)


@KINDS
@pytest.mark.parametrize("budget_bytes", [None, 0], ids=["resident", "read ahead"])
def test_the_loader_is_never_waited_for(make: Any, batch_size: int, optimizer: str, budget_bytes: int | None) -> None:
    # The same batch again and again is what a loader that takes no time would give.
    learning = make(CUDA, budget_bytes=budget_bytes)
    assert learning.batches.is_resident == (budget_bytes is None)
    steps = 150
    settings = how(steps * batch_size, batch_size, optimizer)
    learn(learning, how(20 * batch_size, batch_size, optimizer))  # warm up
    loaded = learning.loaded
    with_loader = max(learn(learning, settings) for _ in range(3))
    with_one_batch = next(iter(loaded([np.arange(batch_size)])))
    learning.loaded = lambda wanted: (with_one_batch for _ in wanted)
    without = max(learn(learning, settings) for _ in range(3))
    print(f"\n{with_loader:.0f} samples/s with the loader, {without:.0f} with one batch again and again")
    assert with_loader > 0.9 * without


@KINDS
def test_the_gpu_computes_all_the_time(make: Any, batch_size: int, optimizer: str) -> None:
    learning = make(CUDA)
    samples = 300 * batch_size
    settings = how(samples, batch_size, optimizer)
    seconds = samples / max(learn(learning, settings) for _ in range(3))
    busy_s = busy_seconds(lambda: learn(learning, settings), CUDA)
    print(f"\nbusy {busy_s / seconds:.0%}: {busy_s / 0.3:.2f} of {seconds / 0.3:.2f} ms a step")
    if make is crops_on:
        assert busy_s >= 0.9 * seconds
    # A step of 16 windows of 64 x 64 is some 300 kernels of microseconds. Replayed, they take a fast GPU hardly longer
    # than the CPU needs to start the next replay; it does not wait for the loader, which the test above shows.


@KINDS
def test_augmentation_runs_on_the_device(make: Any, batch_size: int, optimizer: str) -> None:
    learning = make(CUDA, 200)
    batch = next(iter(learning.loaded([np.arange(batch_size)])))
    assert all(array.is_cuda for array in batch.arrays)
    seen: list[torch.Tensor] = []

    def net(pictures: torch.Tensor) -> torch.Tensor:
        seen.append(pictures)
        return learning.model(pictures)

    generator = torch.Generator(CUDA).manual_seed(0)
    learning.loss(net, batch, generator)
    with torch.cuda.stream(torch.cuda.current_stream()):
        torch.cuda.set_sync_debug_mode("error")  # nothing in a step may wait for the GPU
        try:
            learning.loss(net, batch, generator).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert all(pictures.is_cuda for pictures in seen)
    assert not torch.equal(seen[0], seen[1])


@KINDS
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
def test_layouts_and_precisions_beside_each_other(
    make: Any, batch_size: int, optimizer: str, precision: Precision, layout: str
) -> None:
    learning = make(CUDA)
    if layout == "contiguous":
        learning.model.to(memory_format=torch.contiguous_format)
        learning.layout = torch.contiguous_format
    settings = how(100 * batch_size, batch_size, optimizer)
    learn(learning, how(20 * batch_size, batch_size, optimizer), precision)
    rate = max(learn(learning, settings, precision) for _ in range(3))
    print(f"\n{layout}, {precision}: {rate:.0f} samples/s")
    assert all(torch.isfinite(value).all() for value in learning.model.state_dict().values())


@KINDS
@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_epoch_of_the_reports_size(make: Any, batch_size: int, optimizer: str, precision: Precision) -> None:
    epoch = CLASSIFIER_EPOCH if make is crops_on else U_NET_EPOCH
    learning = make(CUDA)
    learn(learning, how(20 * batch_size, batch_size, optimizer), precision)
    torch.cuda.reset_peak_memory_stats()
    rate = learn(learning, how(epoch, batch_size, optimizer), precision)
    memory = peak_memory_gb(CUDA)
    seconds = epoch / rate
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    torch.backends.cuda.matmul.allow_tf32 = True  # as the convolutions are
    floor_s = epoch * flops_per_sample(learning, batch_size) / peak_flops(CUDA, dtype)
    print(
        f"\n{torch.cuda.get_device_name()}, {precision}: {epoch} samples in {seconds:.1f} s, {rate:.0f} samples/s; "
        f"{floor_s / seconds:.1%} of a matrix product's rate ({floor_s:.1f} s); peak memory {memory:.2f} GB"
    )
    assert floor_s < seconds  # or an operation was counted twice


def test_the_classifier_learns_faster_than_in_the_books_way() -> None:
    crops = random_crops(480)
    as_float = crops.astype(np.float32)
    targets = torch.arange(len(crops)).remainder(2).neg().add(1)
    book = BookCrops(as_float.__getitem__, targets, torch.Generator().manual_seed(0))
    net = NoduleNet(generator=torch.Generator().manual_seed(0)).to(CUDA)
    compare(book, book_classifier, net, CROP_BATCH, crops_on(CUDA, 480), how(480, CROP_BATCH, "sgd"))


def test_the_u_net_learns_faster_than_in_the_books_way() -> None:
    slabs, masks = random_slabs(480)
    both = np.concatenate([slabs, masks[:, None]], axis=1).astype(np.float32)
    book = BookWindows(both.__getitem__, torch.Generator().manual_seed(0))
    net = UNet(generator=torch.Generator().manual_seed(0)).to(CUDA)
    compare(book, book_u_net, net, WINDOW_BATCH, windows_on(CUDA, 480), how(480, WINDOW_BATCH, "adam"))


def compare(
    book: Any, train: Callable[..., list[float]], net: Any, batch_size: int, ours: Any, settings: FitSettings
) -> None:
    def batches() -> Any:
        for pictures, truth in DataLoader(book, batch_size, sampler=range(480)):
            yield pictures.to(CUDA), truth.to(CUDA)

    train(net, islice(batches(), 2))
    book_rate = 480 / seconds_of(lambda: train(net, batches()), CUDA)
    learn(ours, settings)
    rate = max(learn(ours, settings) for _ in range(3))
    print(f"\n{rate:.0f} samples/s, the book's way {book_rate:.0f}: {rate / book_rate:.1f} x")
    assert rate > book_rate


@pytest.mark.parametrize(("make", "samples"), [(crops_on, 8), (windows_on, 8)], ids=["classifier", "unet"])
def test_a_step_is_the_cpus(exact: None, make: Any, samples: int) -> None:
    cpu = make(CPU, 16)
    cuda = make(CUDA, 16)
    losses = []
    for learning in (cpu, cuda):
        learning.augmentation = copy.copy(STILL)
        learning.train_mode()
        batch = next(iter(learning.loaded([np.arange(samples)])))
        loss = learning.loss(learning.model, batch, torch.Generator().manual_seed(3))
        loss.backward()
        losses.append(float(loss.detach()))
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    largest = max(float(p.grad.norm()) for p in cpu.model.parameters())
    for (name, one), other in zip(cpu.model.named_parameters(), cuda.model.parameters()):
        # A bias in front of a batch norm has no gradient but rounding: hence the share of the largest.
        off = float((one.grad - other.grad.cpu()).norm())
        assert off <= 0.02 * float(one.grad.norm()) + 1e-4 * largest, name
    for name, value in cpu.model.state_dict().items():
        if "running" in name:
            torch.testing.assert_close(cuda.model.state_dict()[name].cpu(), value, rtol=1e-3, atol=1e-2)


def test_a_run_on_the_gpu_repeats_itself() -> None:
    # The U-Net only: 3D max-pooling's backward has no deterministic kernel.
    weights = []
    for _ in range(2):
        learning = windows_on(CUDA, 64)
        learn(learning, how(64, WINDOW_BATCH, "adam"))
        weights.append(torch.cat([p.detach().flatten() for p in learning.model.parameters()]))
    assert torch.equal(*weights)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("budget_bytes", [None, 0], ids=["resident", "read ahead"])
@pytest.mark.parametrize(
    "loss", [report_segmentation_loss, partial(bce_batch_dice_loss, size_balance=0.5, across=True)]
)
def test_replayed_steps_are_those_that_python_starts(
    precision: Precision, budget_bytes: int | None, loss: Callable[..., torch.Tensor]
) -> None:
    weights, losses = [], []
    for replays in (False, True):
        learning = windows_on(CUDA, 64, budget_bytes=budget_bytes)
        learning.replays, learning.loss_of = replays, loss
        reports: list[Any] = []
        fabric = Hardware(device="cuda", precision=precision).launch()
        settings = replace(how(10 * WINDOW_BATCH, WINDOW_BATCH, "adam"), epochs=2, average=0.9, clip_norm=1.0)
        fit(learning, settings, seed=0, fabric=fabric, on_epoch=reports.append)
        weights.append(torch.cat([p.detach().flatten() for p in learning.model.parameters()]))
        losses.append([report.train["loss"] for report in reports])
    assert torch.equal(*weights)
    assert losses[0] == losses[1]
    assert losses[0][0] != losses[0][1]


def test_the_clock_waits_for_the_gpu() -> None:
    side = torch.randn(4096, 4096, device=CUDA)
    work = lambda: [side @ side for _ in range(20)]  # noqa: E731
    work()
    torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    sent = time.perf_counter() - started
    torch.cuda.synchronize()
    assert seconds_of(work, CUDA) > 2 * sent
