"""Does a full disk cost anything but time?"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lungml.home import Home
from tests.drills import moments, recorded
from tests.drills.moments import Moment
from tests.drills.page import Step
from tests.drills.programs import MARK, CannotRun, Program, clean_environment
from tests.drills.scene import EMPTY, Scene

DISK_MB = 400
BLOCK = bytes(1 << 16)
MOMENTS: tuple[tuple[str, Moment], ...] = (
    ("converting scans", moments.converting),
    ("cutting crops", moments.cutting_crops),
    ("training the U-Net, before the next checkpoint", moments.learned("demo-unet", 1)),
    ("logging the U-Net", moments.keeping_model("demo-unet")),
)


@dataclass(frozen=True)
class SmallDisk:
    """A tmpfs at the home's place that only those see who enter its mount namespace.

    Attributes:
        holder: the process that keeps the namespace.
        home: the home on it, as seen from outside.
        enter: the words that begin a command inside.
    """

    holder: Program
    home: Home
    enter: tuple[str, ...]

    def fill(self) -> None:
        """Write a ballast file until nothing more goes on the disk."""
        with suppress(OSError), (self.home.root / "ballast").open("wb", buffering=0) as file:
            while file.write(BLOCK) == len(BLOCK):
                pass

    def empty(self) -> None:
        """Take the ballast away."""
        (self.home.root / "ballast").unlink()


def full(scene: Scene) -> Iterator[Step]:
    """Fill the disk at one moment after the other, in one home, and let the pipeline finish at last."""
    scene.begin(EMPTY)
    since = recorded.now()
    with small_disk(scene) as disk:
        for doing, moment in MOMENTS:
            program = scene.pipeline(prefix=disk.enter)
            program.until(lambda moment=moment: moment(disk.home), doing)
            with program.paused():
                disk.fill()
            status = program.finish()
            disk.empty()
            words = program.last_words
            problems = [f"it said: {words}"] if not any(w in words for w in ("No space left", "disk is full")) else []
            problems += ["a page of traceback"] if "Traceback (most recent" in program.text else []
            problems += ["it ended as if nothing were wrong"] if status == 0 else []
            yield Step(did=f"filled the disk while {doing}", saw=f"ended: {words}", problems=tuple(problems))
        last = recorded.now()
        scene.pipeline(prefix=disk.enter).succeed()
        counts = recorded.task_states(scene.api, last)
        shutil.copytree(disk.home.root, scene.home.root, symlinks=True, dirs_exist_ok=True)
    yield Step(
        did="took the ballast away, ran it again to its end",
        saw=f"{recorded.in_words(counts)}; compared with the undisturbed run",
        problems=tuple(scene.judge(EMPTY, since, last=last)),
    )


@contextmanager
def small_disk(scene: Scene) -> Iterator[SmallDisk]:
    """Mount a small disk at the home's place, in a namespace of its own.

    Raises:
        CannotRun: the machine does not allow such namespaces.
    """
    tools = [tool for tool in ("unshare", "nsenter", "mount") if shutil.which(tool) is None]
    if tools:
        raise CannotRun(f"there is no {', '.join(tools)} here")
    probe = subprocess.run(["unshare", "-rm", "true"], capture_output=True, text=True, check=False)
    if probe.returncode:
        raise CannotRun(f"no user and mount namespaces here: {probe.stderr.strip()}")
    scene.home.root.mkdir(parents=True)
    mount = 'mount -t tmpfs -o "size=$1" tmpfs "$0" && echo mounted && exec sleep 100000'
    command = ["unshare", "-rm", "sh", "-c", mount, str(scene.home.root), f"{DISK_MB}m"]
    env = clean_environment(**{MARK: scene.mark})
    holder = Program("the small disk", command, env, scene.folder, scene.folder / "logs" / "disk.log")
    holder.until(lambda: "mounted" in holder.text, "mounted", 10.0)
    pid = holder.process.pid
    seen = Path(f"/proc/{pid}/root", *scene.home.root.parts[1:])
    try:
        seen.stat()
        enter = ("nsenter", f"--target={pid}", "--user", "--mount", "--preserve-credentials", f"--wd={scene.code}")
        yield SmallDisk(holder, Home(seen), enter)
    finally:
        holder.kill()
