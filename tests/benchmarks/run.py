"""Where is luna faster than its peers, where is it not, and do they agree? `make bench` prints the table."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.benchmarks.measure import Row, Settings

# PyTorch reads it once, when its allocator is first used. Page faults cost half of a network's time without it.
HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"


def all_rows() -> dict[str, Callable[[Settings], list[Row]]]:
    """The rows by the name that `--rows` takes, in the order of the table."""
    from tests.benchmarks import crop_path, data_path, growth, networks, orchestration, reading_page, scoring, training

    return {
        "read": data_path.read,
        "convert": data_path.convert,
        "mask": crop_path.mask,
        "crop": crop_path.crops,
        "batch": crop_path.batch,
        "augment": data_path.augment,
        "train-classifier": training.train_classifier,
        "train-unet": training.train_u_net,
        "grouping": networks.grouping,
        "unet": networks.u_net_slices,
        "classify": networks.classify_crops,
        "scan": networks.whole_scan,
        "linear": growth.linear,
        "froc": scoring.froc_row,
        "page": reading_page.page,
        "prefect": orchestration.orchestration,
    }


def measure(names: Sequence[str], *, repeats: int, full: bool, progress: Callable[[str], Any] = str) -> list[Row]:
    """Measure the named rows, one after the other, each in a temporary folder of its own."""
    from tests.benchmarks.measure import Settings

    rows, functions = [], all_rows()
    for name in names:
        progress(name)
        with tempfile.TemporaryDirectory(prefix="luna-bench-") as folder:
            rows += functions[name](Settings(repeats=repeats, full=full, folder=Path(folder)))
    return rows


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    import numpy as np
    import scipy
    import SimpleITK as sitk
    import torch
    import zarr

    model = [line for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "cpu": model[0].split(":", 1)[1].strip() if model else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load before": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "zarr": zarr.__version__,
        "SimpleITK": sitk.Version.VersionString(),
        HUGE_PAGES: os.environ.get(HUGE_PAGES, "unset"),
    }


def print_table(rows: Sequence[Row]) -> None:
    """The table; a row whose answers disagree, or that cannot be measured here, shows why and no numbers."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("stage", "peer"):
        table.add_column(column, overflow="fold")
    for column in ("ours", "peer takes", "ratio", "lowest, highest", "floor"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("note", overflow="fold", ratio=1)
    for row in rows:
        if row.skipped:
            table.add_row(row.stage, row.peer, "", "", "[yellow]skipped", "", "", row.skipped)
            continue
        if row.ratio is None or row.ratio_range is None:
            why = f"answers disagree: {row.disagreement}"
            table.add_row(row.stage, row.peer, "", "", "[bold red]refused", "", "", why)
            continue
        color = "green" if row.ratio > 1 else "bold red"
        table.add_row(
            row.stage,
            row.peer,
            _time(row.ours_s),
            _time(row.peer_s),
            f"[{color}]{_digits(row.ratio)} x",
            ", ".join(_digits(ratio) for ratio in row.ratio_range),
            _time(row.floor_s),
            row.note,
        )
    # Piped into a file the width is 80 by default, and notes become columns of single words.
    console = Console()
    (console if console.is_terminal else Console(width=160)).print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and return 1 when any row was refused."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.run", description=__doc__)
    parser.add_argument("--rows", default="", help="names separated by commas; all without it: " + ", ".join(ROW_NAMES))
    parser.add_argument("--repeats", type=int, default=3, help="timed pairs a row (default 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine and rows here as well")
    parser.add_argument(
        "--full", action="store_true", help="the whole scan at 512 x 512 x 130, and LUNA16's 888 scans through Prefect"
    )
    options = parser.parse_args(arguments)
    names = [name.strip() for name in options.rows.split(",") if name.strip()] or list(ROW_NAMES)
    unknown = sorted(set(names) - set(ROW_NAMES))
    if unknown or options.repeats < 1:
        parser.error(f"no such row: {', '.join(unknown)}" if unknown else "--repeats must be 1 or more")

    start = time.perf_counter()
    facts = machine()
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    print(
        f"median of {options.repeats} pairs or more: ours, peer, ours, peer, ...; ratio above 1: ours is faster",
        flush=True,
    )
    rows = measure(
        names,
        repeats=options.repeats,
        full=options.full,
        progress=lambda name: print(f"  {time.perf_counter() - start:5.0f} s  {name}", file=sys.stderr, flush=True),
    )
    print_table(rows)
    facts["peak memory GB"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 1)
    facts["seconds"] = round(time.perf_counter() - start)
    print(f"{facts['seconds']} s in all, peak memory {facts['peak memory GB']} GB")
    if options.json:
        report = {"machine": facts, "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return int(any(row.disagreement for row in rows))


ROW_NAMES = (
    "read", "convert", "mask", "crop", "batch", "augment", "train-classifier", "train-unet", "grouping", "unet",
    "classify", "scan", "linear", "froc", "page", "prefect",
)  # fmt: skip


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"


def _digits(ratio: float) -> str:
    if ratio >= 100:
        return f"{ratio:.0f}"
    return f"{ratio:.1f}" if ratio >= 2 else f"{ratio:.2f}"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


if __name__ == "__main__":
    if HUGE_PAGES not in os.environ:
        os.environ[HUGE_PAGES] = "1"
        os.execv(sys.executable, [sys.executable, "-m", "tests.benchmarks.run", *sys.argv[1:]])
    sys.exit(main())
