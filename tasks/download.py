"""Bring LUNA16 from where it is published."""

from __future__ import annotations

import time
from pathlib import Path

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.states import State

from lungml.download import DownloadSettings, Progress
from lungml.luna_archives import Downloaded, download_luna
from tasks.caching import kept

LOG_SECONDS = 60.0  # a line a minute tells enough of a download of hours


@task(name="download", task_run_name="download", retries=0, cache_policy=NO_CACHE)  # each archive has tries of its own
def download(luna_dir: Path, settings: DownloadSettings, subsets: tuple[int, ...] | None) -> State | Downloaded:
    """Bring the tables and the given subsets, or all ten, into a folder; kept when everything is there."""
    log = get_run_logger()
    told = time.monotonic()

    def say_progress(progress: Progress) -> None:
        nonlocal told
        if time.monotonic() < told + LOG_SECONDS:
            return
        told = time.monotonic()
        left = f"{progress.seconds_left / 60:.0f} min left" if progress.seconds_left is not None else "stalled"
        log.info(
            "downloading: %.1f of %.1f GB, %.1f MB/s, %s",
            progress.bytes_done / 1e9, progress.bytes_total / 1e9, progress.bytes_per_second / 1e6, left,
        )  # fmt: skip

    brought = download_luna(luna_dir, settings, subsets, progress=say_progress, say=log.info)
    for note in brought.notes:
        log.warning("%s", note)
    return kept(brought) if brought.kept else brought
