"""How is each documented command run by `make docs`: with which values, and in which order?

A step names a command exactly as a document gives it. What is run is that text with its placeholders filled in, on tiny
scans, and with `also` behind it. To let `make docs` run a new command, add a step where it makes sense in the order; to
leave a command to a test instead, add a row to `tests/docs/covered.py`.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.docs.given import write_correction, write_marks

# As in the drills: nine scans, of which three validate, two test and four train; a demo's recipe in seconds.
SIZE, SCANS, STRIDE = "96x96x40", 9, 4
TINY: Mapping[str, int] = {
    "segmentation.fit.epochs": 2,  # just enough not to mark half of a scan
    "segmentation.fit.validate_every": 2,
    "segmentation.fit.samples_per_epoch": 480,
    "classification.fit.epochs": 1,
    "classification.fit.samples_per_epoch": 16,
    "finetuned.fit.epochs": 1,
    "finetuned.fit.samples_per_epoch": 16,
    "scratch.fit.epochs": 1,
    "scratch.fit.samples_per_epoch": 16,
    "grouping.max_candidates": 50,
}
SET = " ".join(f"--set {setting}={value}" for setting, value in TINY.items())
CUT = f"--val-stride {STRIDE} --device cpu {SET}"
# The report's batch is larger than so few scans fill, and its grouping knows no limit.
REPORT = f"{CUT} --set segmentation.fit.batch_size=8 --set grouping.rule=best"
GIVEN = "--reuse segmentation={segmentation} --reuse classification={nodule}"
DRAWN = f"--size {SIZE} --nodules 3-4 --malignant 0.5 --workers 1"
PREPARED = f"--val-stride {STRIDE}"
BUNDLE = {"bundle": r"models:/luna/(\d+)"}
PARAMETERS = json.dumps(
    {"luna_dir": "{scans}", "recipe": "best", "val_stride": STRIDE, "fresh": False, "device": "cpu", "overrides": TINY}
)


@dataclass(frozen=True, kw_only=True)
class Step:
    """A documented command, or an example in Python (`python block N of PAGE`), and how it is run.

    Attributes:
        command: as documented.
        places: word of it -> what stands there instead, itself filled in; a word may become several or none.
        also: what is put behind it.
        runs: what is run in its place, where words must differ that are written alike; the same command and options.
        before: what a user would have at hand by then: gets what is known so far.
        keeps: name -> regular expression with one group: what of its output later steps may use as `{name}`.
        says: a part of what it must print.
        status: that it ends with.
        ready: it runs in the background from the moment it prints this, until all steps are done.
    """

    command: str
    places: Mapping[str, str] = field(default_factory=dict)
    also: str = ""
    runs: str = ""
    before: Callable[[Mapping[str, Any]], object] | None = None
    keeps: Mapping[str, str] = field(default_factory=dict)
    says: str = ""
    status: int = 0
    ready: str = ""


# What stands where a document names a folder, file or model of the reader's own. Names in braces are kept by the runner
# (scans, other, scan, second, scratch, code, xml, weights..., ports) or by a step's `keeps`.
PLACES: Mapping[str, str] = {
    "/data/LUNA16": "{scans}",
    "/data/luna16": "{scans}",
    "/data/ours/tables": "{scans}",
    "/data/ours": "{scans}",
    "DIR": "{scans}",
    "OTHER": "{other}",
    "scan.mhd": "{scan}",
    "LIDC-XML-only.zip": "{xml}",
    "segmentation.state": "{segmentation_state}",
    "nodule.state": "{nodule_state}",
    "malignancy.state": "{malignancy_state}",
}

READINGS = {"readings": "{scratch}/readings"}

STEPS: tuple[Step, ...] = (
    Step(
        command="luna up",
        also="--prefect-port {prefect_port} --mlflow-port {mlflow_port}",
        ready="Ctrl-C",
    ),
    Step(command="luna status", says="disk"),
    # Scans
    Step(
        command="luna data phantom OUT --scans N --seed S",
        places={"OUT": "{scans}", "N": f"{SCANS}", "S": "3"},
        also=DRAWN,
        says="9 synthetic scans in",
    ),
    Step(command="luna data prepare --luna-dir DIR", also=PREPARED, says="9 scans ready"),
    Step(command="luna data prepare --luna-dir /data/ours --tables /data/ours/tables", also=PREPARED, says="9 scans"),
    Step(
        command="LUNA_WORKERS=dask:4 luna data prepare --luna-dir /data/luna16",
        places={"dask:4": "dask:2"},
        also=PREPARED,
    ),
    Step(command="pip install 'luna-pipeline[dask]'", also="--dry-run --no-index --no-build-isolation --quiet"),
    Step(command="luna data verify --luna-dir /data/LUNA16", says="0 wrong"),
    Step(
        command="luna data lidc LIDC-XML-only.zip --out nodules.csv",
        places={"nodules.csv": "{scratch}/nodules.csv"},
        says="1 files: 1 scans",
    ),
    Step(
        command="luna data lidc LIDC-XML-only.zip --out nodules.csv --luna-dir /data/LUNA16",
        places={"nodules.csv": "{scratch}/lidc/nodules.csv"},
        says="1 files: 1 scans",
    ),
    # Trainings: one that another command has done already is found finished, so that the later ones are quick.
    Step(command="luna run --luna-dir DIR --fresh", also=CUT, keeps=BUNDLE),
    Step(command="luna train segmentation --luna-dir DIR", also=CUT, keeps={"segmentation": r"(models:/m-\w+)"}),
    Step(
        command="luna train classification --luna-dir DIR --segmentation models:/m-...",
        places={"models:/m-...": "{segmentation}"},
        also=CUT,
        keeps={"nodule": r"(models:/m-\w+)"},
    ),
    Step(
        command="luna train malignancy --luna-dir DIR --nodule models:/m-...",
        places={"models:/m-...": "{nodule}"},
        also=CUT,
        keeps={"malignancy": r"(models:/m-\w+)"},
    ),
    Step(
        command="luna train segmentation --luna-dir DIR --recipe report --budget 0.04 --set segmentation.loss=bce_dice "
        "--set segmentation.fit.learning_rate=0.004",
        also=REPORT,
    ),
    Step(command="luna run --luna-dir DIR --recipe best --budget 0.2", also=CUT, says="models:/luna/"),
    Step(command="luna run --luna-dir /data/LUNA16", also=CUT, says="models:/luna/"),
    Step(command="luna run --luna-dir /data/LUNA16 --budget 0.06", also=CUT, says="models:/luna/"),
    Step(command="luna run --luna-dir /data/ours --tables /data/ours/tables", also=CUT, says="models:/luna/"),
    Step(
        command="luna run --luna-dir DIR --reuse segmentation=models:/m-...",
        places={"models:/m-...": "{segmentation}"},
        also=CUT,
        says="models:/luna/",
    ),
    # Another stage than the documented one, since all that learns from it is trained anew as well.
    Step(
        command="luna run --luna-dir DIR --refresh segmentation",
        places={"segmentation": "malignancy"},
        also=CUT,
        says="models:/luna/",
    ),
    Step(
        command="luna run --luna-dir /data/LUNA16 --recipe report", also=REPORT, keeps={"second": r"models:/luna/(\d+)"}
    ),
    # These train the malignancy models only.
    Step(command="luna run --luna-dir /data/LUNA16 --recipe demo", also=f"{CUT} {GIVEN}", says="models:/luna/"),
    Step(
        command="luna run --luna-dir /data/LUNA16 --devices 4 --precision bf16",
        places={"4": "2"},
        also=f"{CUT} {GIVEN}",
        says="models:/luna/",
    ),
    Step(command="luna run --luna-dir /data/LUNA16 --folds 10", places={"10": "0/3"}, also=f"--device cpu {SET}"),
    # Judged
    Step(command="luna evaluate --split test"),
    Step(
        command="luna evaluate models:/luna/1 models:/luna/2 --split test",
        places={"models:/luna/1": "models:/luna/{bundle}", "models:/luna/2": "models:/luna/{second}"},
    ),
    Step(
        command="luna evaluate models:/luna/1 models:/luna/2 --luna-dir OTHER",
        places={"models:/luna/1": "models:/luna/{bundle}", "models:/luna/2": "models:/luna/{second}"},
    ),
    Step(
        command="luna evaluate models:/luna/1 models:/luna/2 --luna-dir DIR",
        places={
            "models:/luna/1": "models:/luna/{bundle}",
            "models:/luna/2": "models:/luna/{second}",
            "DIR": "{other}",
        },
    ),
    Step(
        command="luna evaluate --segmentation models:/m-.. --classification models:/m-.. --malignancy models:/m-..",
        runs="luna evaluate --segmentation {segmentation} --classification {nodule} --malignancy {malignancy}",
    ),
    Step(
        command="luna evaluate --submission marks.csv --luna-dir DIR --json",
        places={"marks.csv": "{scratch}/marks.csv"},
        before=write_marks,
        says='"cpm"',
    ),
    # Used
    Step(command="luna model list", says="models:/luna/{bundle}"),
    Step(command="luna model list --history", says="the gate"),
    Step(command="luna model lineage models:/luna/3 --json", places={"models:/luna/3": "models:/luna/{bundle}"}),
    Step(
        command="luna model import --segmentation segmentation.state --nodule nodule.state "
        "--malignancy malignancy.state",
        keeps={"imported": r"models:/luna/(\d+)"},
    ),
    Step(
        command='luna model promote models:/luna/7 --because "judged by hand on the clinic\'s scans"',
        places={"models:/luna/7": "models:/luna/{imported}"},
        says="is @champion",
    ),
    Step(command="luna model lineage models:/luna@champion", says="models:/luna/{imported}"),
    Step(
        command='luna model promote models:/luna/2 --because "judged by hand on the clinic\'s scans"',
        runs="luna model promote models:/luna/{second} --because 'another demo' --alias demo",
        says="is @demo",
    ),
    Step(
        command="luna read scan.mhd --bundle models:/luna/1 --grouping report --out found",
        places={"models:/luna/1": "models:/luna/{bundle}", "found": "{scratch}/found"},
        also="--device cpu",
        says="candidates",
    ),
    Step(
        command="luna read SCAN... --bundle models:/luna@champion --out readings",
        places={"SCAN...": "{scan} {second_scan}", "models:/luna@champion": "models:/luna/{bundle}", **READINGS},
        also="--device cpu",
        says="candidates",
    ),
    Step(
        command="luna read SCAN... --bundle models:/luna@champion --compare models:/luna/7 --truth tables "
        "--out readings",
        places={
            "SCAN...": "{scan}",
            "models:/luna@champion": "models:/luna/{bundle}",
            "models:/luna/7": "models:/luna/{second}",
            "tables": "{scans}",
            "readings": "{scratch}/compared",
        },
        also="--device cpu",
        says="candidates",
    ),
    Step(
        command="luna show SCAN --at 56.2,86.3,-115.9 --tables tables",
        places={"SCAN": "{scan}", "56.2,86.3,-115.9": "{place}", "tables": "{scans}"},
        also="--out {scratch}/shown",
    ),
    Step(
        command="luna show SCAN --findings readings/1.2.3/findings.csv --at 1 --volume",
        places={"SCAN": "{scan}", "readings/1.2.3/findings.csv": "{scratch}/readings/{uid}/findings.csv"},
        also="--out {scratch}/shown",
    ),
    Step(
        command="python block 1 of docs/serving.md",
        places={
            "sqlite:////data/luna/artifacts/mlflow.db": "sqlite:///{home}/mlflow.db",
            "scans/1.2.3.mhd": "{scan}",
            "scans/series-folder": "{second_scan}",
        },
    ),
    Step(
        command="python block 1 of docs/engineers-guide.md",
        places={"/data/dicom/series-folder": "{scan}", "/data/nifti/scan.nii.gz": "{nifti}", "/data/ours": "{ours}"},
    ),
    # What readers correct
    Step(
        command="luna corrections add corrections.json",
        places={"corrections.json": "{scratch}/corrections.json"},
        before=write_correction,
        says="version 1",
    ),
    Step(command="luna corrections list", says="reader-1"),
    Step(command="luna corrections undo 1", says="version 2 undoes 1"),
    Step(command="luna corrections undo 3", places={"3": "2"}, says="version 3 undoes 2"),
    # What is left over: nothing of so young a home
    Step(command="luna data sweep", says="everything here is needed"),
    Step(command="luna data sweep --yes", says="everything here is needed"),
    Step(command="luna data sweep --yes --days 30 --keep 2", says="everything here is needed"),
    # On schedule
    Step(
        command="prefect deployment run luna/end-to-end --watch",
        also=f"--params {shlex.quote(PARAMETERS)}",
        says="Completed",
    ),
    Step(
        command='prefect deployment run luna/end-to-end --watch --params \'{"luna_dir": "/data/LUNA16", '
        '"recipe": "best", "val_stride": 10}\'',
        runs=f"prefect deployment run luna/end-to-end --watch --params {shlex.quote(PARAMETERS)}",
        says="Completed",
    ),
    # The project's own
    Step(
        command="tar -C /data/luna -czf luna-backup.tar.gz --ignore-failed-read mlflow.db mlruns split.csv corrections "
        "reports",
        places={"/data/luna": "{home}", "luna-backup.tar.gz": "{scratch}/luna-backup.tar.gz"},
    ),
    Step(command="make demo", also="VENV={cut_venv}", says="Not for clinical use"),
    Step(command="make clean", also="VENV={scratch}/none"),
)


def python_command(page: str, number: int) -> str:
    """The name of a page's n-th Python example, from 1."""
    return f"python block {number} of {page}"


def fill(text: str, known: Mapping[str, Any]) -> str:
    """`{name}` -> its value; other braces, as in JSON, stay."""
    for name, value in known.items():
        text = text.replace("{" + name + "}", str(value))
    return text
