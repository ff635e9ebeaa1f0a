"""A run that is killed at any moment leaves nothing that a second run would trust wrongly, or do twice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]

# A process of its own: it forks once for every moment at which a run is killed, and once for the run after it. What
# counts as a moment: every file or folder that is about to get its name, and every flush to disk.
DRILL = """
import hashlib, json, os, signal, sys
from pathlib import Path
from prefect.logging import disable_run_logger
from prefect.states import State
from lungml import files, groups
from lungml.home import Home
from lungml.sampling import NegativePlan
from tasks.data import build_mask, cache_crops, convert_scan
from tests.killing import killed_at
from tests.tasks.conftest import toy_truth

source, out = Path(sys.argv[1]), Path(sys.argv[2])
truths = [toy_truth(source / f"1.{n}.mhd", split) for n, split in enumerate(("train", "val", "train"))]


def run(home):
    # Returns what was done anew, as the names of stages and scans.
    anew = []

    def step(stage, series_uid, result):
        if isinstance(result, State):
            return result.result()
        anew.append(f"{stage} {series_uid}")
        return result

    with disable_run_logger():
        for truth in truths:
            scan = step("convert", truth.series_uid, convert_scan.fn(truth, home))
            if scan is None:
                continue
            step("mask", truth.series_uid, build_mask.fn(scan, "bounded"))
            plan = NegativePlan(kind="fixed", per_scan=3)
            cut = cache_crops.fn(scan, home, recipe_name="toy", rule="bounded", negatives=plan,
                                 negative_slabs_per_scan=1, seed=0)
            step("crops", truth.series_uid, cut)
    return anew


def finished(home):
    # What lies there whole, as the names of stages and scans.
    whole = []
    for truth in truths:
        uid = truth.series_uid
        store = home.scans / f"{uid}.zarr"
        crops = [group for recipe in home.crops.glob("*") for group in groups.groups_in(recipe) if group.name == uid]
        for stage, group in (("convert", store), ("mask", store / "mask"), *(("crops", crop) for crop in crops)):
            if not groups.find_damage(group):
                whole.append(f"{stage} {uid}")
    return whole


def tree(home):
    found = {}
    for path in sorted(p for p in home.root.rglob("*") if p.is_file() and p.name != "quarantine.csv"):
        content = path.read_bytes()
        found[str(path.relative_to(home.root))] = hashlib.sha256(content).hexdigest()
    return found


def die_at(moment):
    counted = killed_at(moment)
    os.fsync, os.replace, Path.replace = counted(os.fsync), counted(os.replace), counted(Path.replace)


def in_child(work):
    # Forked before any codec has started threads; its answer comes back through a pipe.
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        answer = json.dumps(work()).encode()
        os.write(writer, len(answer).to_bytes(8, "little"))
        os.write(writer, answer)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    return (json.loads(answer[8:]) if answer else None), os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def drill(moment):
    home = Home(out / str(moment))

    def killed():
        die_at(moment)
        return run(home)

    _, killed_by = in_child(killed)
    whole, _ = in_child(lambda: finished(home))

    def again():
        files.sweep(home.scans, home.crops, home.root)
        return {"anew": run(home), "tree": tree(home)}

    answer, _ = in_child(again)
    return {"moment": moment, "killed": killed_by == signal.SIGKILL, "whole": whole, **answer}


never = drill(0)
moments, step = [], int(sys.argv[3])
moment = 1
while True:
    result = drill(moment)
    moments.append(result)
    if not result["killed"]:
        break
    moment += step
print(json.dumps({"never": never, "moments": moments}))
"""


@pytest.mark.slow
def test_whenever_a_run_is_killed_the_next_one_ends_as_if_it_had_not_been(tmp_path: Path, toy: object) -> None:
    for number in range(3):
        toy(tmp_path / "source", f"1.{number}", "train", number)  # type: ignore[operator]
    script = [sys.executable, "-c", DRILL, str(tmp_path / "source"), str(tmp_path / "out"), "3"]
    done = subprocess.run(script, cwd=PROJECT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout)
    never, moments = result["never"], result["moments"]
    assert len([m for m in moments if m["killed"]]) >= 20
    everything = {f"{stage} 1.{n}" for stage in ("convert", "mask", "crops") for n in range(3)}
    assert set(never["whole"]) == everything
    assert never["anew"] == []
    for moment in moments:
        # Nothing finished is done again, everything else is, and all of it is as it would have been.
        assert set(moment["anew"]) == everything - set(moment["whole"]), moment["moment"]
        assert moment["tree"] == never["tree"], moment["moment"]
