"""What does a reader of the documents have at hand that no command makes? Small stand-ins for it."""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lungml.files import write_csv_atomic, write_text_atomic

CUT_DEMO = """#!{python}
# `luna demo` with fewer scans and steps: the command, its flow and its page are the real ones.
import sys
from dataclasses import replace
from flows.cli import main
from lungml import recipes

WHOLE = recipes.RECIPES["demo"]


def cut():
    recipe = WHOLE()
    parts = {{}}
    for part in ("segmentation", "classification", "finetuned", "scratch"):
        settings = getattr(recipe, part)
        parts[part] = replace(settings, fit=replace(settings.fit, epochs=1, samples_per_epoch=64))
    return replace(recipe, **parts, grouping=replace(recipe.grouping, max_candidates=20))


if __name__ == "__main__":  # what draws the scans are processes that import this
    recipes.RECIPES["demo"] = cut
    sys.argv = ["luna", *sys.argv[1:], "--scans", "7", "--val-stride", "3"]
    main()
"""


def write_given(folder: Path, python: str) -> dict[str, Path]:
    """Everything that is there from the beginning: name -> path."""
    folder.mkdir(exist_ok=True)
    (folder / "ours").mkdir(exist_ok=True)
    return {
        "xml": write_readings(folder / "LIDC-XML-only.zip"),
        "cut_venv": write_cut_demo(folder / "cut", python),
        "nifti": write_nifti(folder / "scan.nii.gz"),
        "ours": folder / "ours",
        **write_weights(folder),
    }


def write_readings(path: Path) -> Path:
    """A small LIDC zip: one file with one nodule that two readers rated."""
    from tests.lungml.fixtures.lidc import lidc_xml, nodule, roi, square

    outlined = "".join(roi(z_mm, square(10, 10, 6)) for z_mm in (5, 7))
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("1.xml", lidc_xml(nodule(outlined, 5), nodule(outlined, 4)))
    return path


def write_weights(folder: Path) -> dict[str, Path]:
    """Untrained networks as files of the published ones' form; the U-Net marks next to nothing."""
    import torch

    from lungml.models import nodule_net, unet

    segmenter = unet.UNet(generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert segmenter.head.bias is not None
        segmenter.head.bias.fill_(-3.0)
    nodule, malignancy = (nodule_net.NoduleNet(generator=torch.Generator().manual_seed(seed)) for seed in (2, 3))
    nets = {
        "segmentation": (segmenter, unet._published_name),
        "nodule": (nodule, nodule_net._published_name),
        "malignancy": (malignancy, nodule_net._published_name),
    }
    files = {}
    for name, (net, published) in nets.items():
        path = files[f"{name}_state"] = folder / f"{name}.state"
        torch.save({"model_state": {published(key): value for key, value in net.state_dict().items()}}, path)
    return files


def write_nifti(path: Path) -> Path:
    """A drawn scan as NIfTI."""
    import SimpleITK

    from lungml.ct import read_scan
    from lungml.phantom import PhantomSettings, write_phantoms

    tree = path.parent / "drawn"
    write_phantoms(tree, scans=1, seed=8, settings=PhantomSettings(size_irc=(40, 96, 96)), workers=1)
    scan = read_scan(next(tree.rglob("*.mhd")))
    image = SimpleITK.GetImageFromArray(scan.hu)
    image.SetSpacing(scan.grid.spacing_xyz)
    image.SetOrigin(scan.grid.origin_xyz)
    SimpleITK.WriteImage(image, str(path))
    return path


def write_cut_demo(folder: Path, python: str) -> Path:
    """An environment for `make`, in which `luna demo` is cut to seconds."""
    luna = folder / "bin" / "luna"
    luna.parent.mkdir(parents=True, exist_ok=True)
    luna.write_text(CUT_DEMO.format(python=python))
    luna.chmod(0o755)
    (folder / ".ready").touch()
    return folder


def write_marks(known: Mapping[str, Any]) -> None:
    """A submission that marks every annotated nodule."""
    with (Path(known["scans"]) / "annotations.csv").open(newline="") as handle:
        rows = [row[:4] for row in csv.reader(handle)][1:]
    header = ["seriesuid", "coordX", "coordY", "coordZ", "probability"]
    write_csv_atomic(Path(known["scratch"]) / "marks.csv", header, [[*row, "0.9"] for row in rows])


def write_correction(known: Mapping[str, Any]) -> None:
    """What the page of `luna read` would export: a nodule that nothing had found."""
    scan = Path(known["scan"])
    bundle = f"models:/luna/{known['bundle']}"
    correction = {
        "kind": "add",
        "time": "2026-01-01T10:00:00Z",
        "finding": None,
        "center_xyz": [float(mm) for mm in str(known["place"]).split(",")],
        "diameter_mm": 6.0,
        "label": None,
        "text": "",
    }
    file = {
        "format": "luna-corrections",
        "version": 1,
        "series_uid": scan.stem,
        "bundle": bundle,
        "reader": "reader-1",
        "exported": "2026-01-01T10:05:00Z",
        "corrections": [correction],
    }
    write_text_atomic(Path(known["scratch"]) / "corrections.json", json.dumps(file))
