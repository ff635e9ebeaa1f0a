"""`luna read` on what a hospital or a disk may hold: a clear line each, the other scans done, nothing half-written."""

from __future__ import annotations

import csv
import errno
import gc
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jpeg_ls
import nibabel as nib
import numpy as np
import numpy.typing as npt
import pydicom
import pytest
import SimpleITK as sitk
import torch
from PIL import Image
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from flows.read import ReadingError, read_in_background
from lungml import files as lungml_files
from lungml import series_files
from lungml.ct import Scan, read_scan
from lungml.dicom import read_headers
from lungml.home import Home
from lungml.models.unet import UNet, UNetConfig
from lungml.reading import deliver as delivering
from tasks import registry, tracking
from tasks.reading import Reader
from tests import browser
from tests.dciodvfy import complaints
from tests.flows.environments import environment_of
from tests.lungml.test_dicom import save, slice_of, zipped
from tests.tasks import toy_bundles

PROJECT = Path(__file__).parents[2]
Luna = Callable[..., tuple[int, str, str]]
Volume = npt.NDArray[np.int16]
SPACING, ORIGIN = (4.0, 4.0, 2.5), (-126.0, -120.0, -310.0)  # 256 x 256 x 100 mm
SERIES, OTHER = "1.2.826.0.1.3680043.8.498.71", "1.2.826.0.1.3680043.8.498.72"
BALLS = ((12, 30, 17), (20, 36, 46), (29, 26, 18))  # (index, row, col)
FILES = ["findings.csv", "findings.json", "index.html", "markups.mrk.json", "submission.csv"]
OBJECTS = ["report.dcm", "segmentation.dcm"]


def marks_bright(config: UNetConfig) -> UNet:
    """A U-Net that looks at nothing but the pixel itself, and marks what is brighter than 200 HU."""
    net = UNet(config)
    first, second = net.down[0][0], net.down[0][3]
    with torch.no_grad():
        for layer in (first, second, net.head):
            layer.weight.zero_()
            layer.bias.zero_()
        first.weight[0, config.context_slices, 1, 1] = second.weight[0, 0, 1, 1] = 1
        net.head.weight[0, 0, 0, 0], net.head.bias[0] = 0.02, -4
    return net


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Two bundles that take every bright ball for a nodule."""
    home = Home(tmp_path_factory.mktemp("models"))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setattr(toy_bundles, "UNet", marks_bright)
        for seed in range(2):
            segmentation = toy_bundles.toy_model(home, "segmentation", config=UNetConfig(context_slices=1, depth=1))
            fields = toy_bundles.toy_fields(home, seed=seed, segmentation=segmentation)
            registry.register_bundle(home, {**fields, "nodule_threshold": 0.0})
        tracking.client_of(home).set_registered_model_alias("luna", "same", "1")
    return home


@pytest.fixture
def environment(home: Home) -> Iterator[None]:
    with environment_of(home, columns=80):
        yield


def chest(slices: int = 40, side: int = 64) -> Volume:
    """A body with two lungs, in each of them bright balls of 20 mm."""
    hu = body(slices, side)
    index, row, col = np.ogrid[:slices, :side, :side]
    for middle in (0.28 * side, 0.72 * side):
        hu[np.broadcast_to(((row - side / 2) / 0.28) ** 2 + ((col - middle) / 0.14) ** 2 < side**2, hu.shape)] = -850
    for center in BALLS:
        away = [(axis - at) * mm for axis, at, mm in zip((index, row, col), center, SPACING[::-1])]
        hu[away[0] ** 2 + away[1] ** 2 + away[2] ** 2 <= 10**2] = 400
    return hu


def body(slices: int = 40, side: int = 64) -> Volume:
    """Soft tissue, round, with air around it and nowhere else."""
    _, row, col = np.ogrid[:slices, :side, :side]
    hu = np.full((slices, side, side), -1000, np.int16)
    hu[np.broadcast_to(((row - side / 2) ** 2 + (col - side / 2) ** 2) < (0.45 * side) ** 2, hu.shape)] = 40
    return hu


def write_image(path: Path, hu: npt.NDArray[Any], spacing: tuple[float, ...] = SPACING) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(hu)
    image.SetSpacing(spacing)
    image.SetOrigin(ORIGIN)
    sitk.WriteImage(image, str(path))
    return path


def write_series(folder: Path, hu: Volume, uid: str = SERIES, step: float = SPACING[2], **change: Any) -> Path:
    """A DICOM series as a scanner writes it: patient data in it, stored = HU + 1024."""
    for index, plane in enumerate(hu):
        with pydicom.config.disable_value_validation():
            save(one_slice(plane, index, uid, step, **change), folder / f"{index:03}.dcm")
    return folder


def one_slice(plane: Volume, index: int, uid: str = SERIES, step: float = SPACING[2], **change: Any) -> Any:
    named = f"{uid}.{index}"
    fields = {
        "Rows": plane.shape[0],
        "Columns": plane.shape[1],
        "PixelSpacing": [SPACING[1], SPACING[0]],
        "ImagePositionPatient": [ORIGIN[0], ORIGIN[1], ORIGIN[2] + step * index],
        "SeriesInstanceUID": uid,
        "SOPInstanceUID": named,
        "FrameOfReferenceUID": f"{uid}.9999",
        "StudyID": "SECRET-STUDY",
        "PixelData": (plane.astype(np.int32) + 1024).astype("<u2").tobytes(),
    }
    with pydicom.config.disable_value_validation():
        made = slice_of(0, **{**fields, **change})
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    return made


def compress(made: pydicom.Dataset, syntax: UID) -> pydicom.Dataset:
    """A slice whose pixels are packed as a syntax says; the rest of its header stays."""
    kind = np.dtype("<i2" if made.PixelRepresentation else "<u2")
    stored = np.frombuffer(made.PixelData, kind).reshape(made.Rows, made.Columns)
    if syntax in (RLELossless, JPEGLSLossless):
        uid = made.SOPInstanceUID
        made.compress(syntax, generate_instance_uid=False)
        assert made.SOPInstanceUID == uid
        return made
    if syntax in (JPEGLossless, JPEGLosslessSV1):
        frame = jpeg_lossless(stored)
    elif syntax == JPEGLSNearLossless:
        frame = bytes(jpeg_ls.encode(np.ascontiguousarray(stored), lossy_error=3).tobytes())
    else:
        lossy = {"irreversible": True, "quality_mode": "rates", "quality_layers": [4]} if syntax == JPEG2000 else {}
        stream = io.BytesIO()
        Image.fromarray(stored).save(stream, "JPEG2000", no_jp2=True, **lossy)
        frame = stream.getvalue()
    made.PixelData = encapsulate([frame])
    made["PixelData"].is_undefined_length = True
    made["PixelData"].VR = "OB"
    made.file_meta.TransferSyntaxUID = syntax
    return made


def jpeg_lossless(stored: npt.NDArray[Any]) -> bytes:
    """One frame as GDCM writes it."""
    with tempfile.TemporaryDirectory() as folder:
        writer = sitk.ImageFileWriter()
        writer.SetImageIO("GDCMImageIO")
        writer.SetFileName(f"{folder}/a.dcm")
        writer.SetCompressor("JPEG")
        writer.SetUseCompression(True)
        writer.Execute(sitk.GetImageFromArray(stored[None]))
        (frame,) = generate_frames(pydicom.dcmread(f"{folder}/a.dcm").PixelData, number_of_frames=1)
    return frame


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scan that nothing is wrong with."""
    return write_image(tmp_path_factory.mktemp("good") / "good.mha", chest())


@pytest.fixture
def read(luna: Luna, tmp_path: Path) -> Luna:
    """Read scans with the first bundle into `out`."""
    return lambda *given: luna("read", *given, "--bundle", "models:/luna/1", "--out", tmp_path / "out")


def whole(folder: Path, *, dicom: bool = False) -> dict[str, Any]:
    """What `findings.json` says, once it is seen that a scan's results are all there, and nothing else."""
    assert sorted(file.name for file in folder.iterdir()) == sorted([*FILES, *(OBJECTS if dicom else [])])
    assert (folder / "index.html").read_text().rstrip().endswith("</html>")
    said: dict[str, Any] = json.loads((folder / "findings.json").read_text())
    assert said["series_uid"] == folder.name
    with (folder / "findings.csv").open(newline="") as handle:
        assert len(list(csv.DictReader(handle))) == sum(len(one["findings"]) for one in said["bundles"])
    return said


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# What is wrong, and the line that says it; {} stands for the path as it was given.
Make = Callable[[Path], Path]


def image(name: str, hu: npt.NDArray[Any]) -> Make:
    return lambda folder: write_image(folder / name, hu)


def changed(change: Callable[[Path], object], count: int = 6, **fields: Any) -> Make:
    """A series of a few slices that something is then done to."""

    def make(folder: Path) -> Path:
        change(write_series(folder / "ct", chest()[12 : 12 + count], **fields))
        return folder / "ct"

    return make


def nifti(name: str, hu: npt.NDArray[Any]) -> Make:
    def make(folder: Path) -> Path:
        folder.mkdir(parents=True)
        nib.save(nib.Nifti1Image(np.ascontiguousarray(hu.T), np.diag([-4.0, -4.0, 2.5, 1.0])), folder / name)
        return folder / name

    return make


def packed(change: Callable[[Path], object] = lambda _: None) -> Make:
    def make(folder: Path) -> Path:
        write_series(folder / "ct", chest()[12:18])
        path = zipped(folder / "ct")
        change(path)
        return path

    return make


def cut(path: Path, by: int) -> None:
    path.write_bytes(path.read_bytes()[:-by])


def scout(folder: Path, **change: Any) -> None:
    """A localizer, of a series of its own."""
    kind = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
    save(one_slice(body(1)[0], 500, f"{SERIES}.500", **kind, **change), folder / "scout.dcm")


def link_out(folder: Path) -> None:
    (folder / "003.dcm").rename(folder.parent / "away.dcm")
    (folder / "003.dcm").symlink_to(folder.parent / "away.dcm")


def damaged_member(path: Path) -> None:
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        at = archive.infolist()[3].header_offset
    content[at + 120 : at + 150] = b"U" * 30
    path.write_bytes(content)


def corrupt_frame(folder: Path) -> None:
    for file in folder.iterdir():
        compress(pydicom.dcmread(file), RLELossless).save_as(file)
    made = pydicom.dcmread(folder / "003.dcm")
    (frame,) = generate_frames(made.PixelData, number_of_frames=1)
    made.PixelData = encapsulate([b"\x12" * len(frame)])
    made.save_as(folder / "003.dcm")


def shorten_frame(folder: Path) -> None:
    """As an export leaves it that was cut short before the file was made: its end mark is gone."""
    for file in folder.iterdir():
        compress(pydicom.dcmread(file), JPEG2000Lossless).save_as(file)
    made = pydicom.dcmread(folder / "003.dcm")
    (frame,) = generate_frames(made.PixelData, number_of_frames=1)
    made.PixelData = encapsulate([frame[: len(frame) // 2]])
    made.save_as(folder / "003.dcm")


def nothing(name: str) -> Make:
    def make(folder: Path) -> Path:
        folder.mkdir()
        return folder / name

    return make


def text(name: str) -> Make:
    def make(folder: Path) -> Path:
        folder.mkdir(parents=True)
        (folder / name).write_text("no scan")
        return folder / name

    return make


NAN = chest().astype("<f4")
NAN[3, 4, 5] = np.nan
KINDS = "name a .mhd, .mha, .nii, .nii.gz, or the folder or .zip of a DICOM series"
RENAME = "rename it: letters, digits, dots, dashes"
REFUSED: dict[str, tuple[Make, str]] = {
    "air alone": (
        image("air.mha", np.random.default_rng(0).normal(-1000, 20, (40, 64, 64)).astype(np.int16)),
        "{}: no tissue: the highest value is -905 HU, every chest CT goes above -200; check that the values are HU "
        "and the field of view is not empty",
    ),
    "a localizer alone": (
        changed(lambda folder: ([file.unlink() for file in folder.iterdir()], scout(folder))),
        "{}: nothing but localizers in it; name the folder or zip that holds the slices",
    ),
    "one slice": (changed(lambda _: None, count=1), "{}: one slice is no volume; give the whole series"),
    "one slice of an image": (
        image("flat.mha", chest()[12:13]),
        "{}: 1 slice is no volume; give the whole series",
    ),
    "two series": (
        changed(lambda folder: write_series(folder / "more", chest()[12:16], OTHER)),
        f"{{}}: 2 series: {SERIES} (6 CT images), {OTHER} (4 CT images); name the folder of one of them, or keep one "
        "here",
    ),
    "two series in a zip": (
        lambda folder: zipped(changed(lambda ct: write_series(ct / "more", chest()[12:16], OTHER))(folder)),
        f"{{}}: 2 series: {SERIES} (6 CT images), {OTHER} (4 CT images); name the folder of one of them, or keep one "
        "here",
    ),
    "a gap": (
        changed(lambda folder: (folder / "003.dcm").unlink()),
        "{}: 1 slice is missing between 002.dcm at z = -305 mm and 004.dcm at z = -300 mm; download the series again",
    ),
    "a slice twice": (
        changed(lambda folder: save(one_slice(chest()[15], 3, SOPInstanceUID=f"{SERIES}.99"), folder / "again.dcm")),
        "{}: 003.dcm and again.dcm lie at one place, z = -302.5 mm; keep one of the two",
    ),
    "a tilted gantry": (
        lambda folder: (
            [
                save(
                    one_slice(plane, index, ImagePositionPatient=[-126, -120 + 0.8 * index, -310 + 2.5 * index]),
                    folder / "ct" / f"{index:03}.dcm",
                )
                for index, plane in enumerate(chest()[12:18])
            ]
            and folder / "ct"
        ),
        "{}: the slices move 4 mm sideways (gantry tilt); resample the series to a right-angled grid",
    ),
    "a slice cut short": (
        changed(lambda folder: cut(folder / "003.dcm", 4000)),
        "{}: 003.dcm is too short: 4192 bytes of pixels, the header says 8192; download the series again",
    ),
    "an empty slice": (
        changed(lambda folder: (folder / "003.dcm").write_bytes(b"")),
        "{}: 003.dcm is empty; download the series again, or take it out",
    ),
    "a link out": (
        changed(link_out),
        "{}: 003.dcm is a link out of the folder; copy the file itself there",
    ),
    "a damaged member": (
        packed(damaged_member),
        "{}: patient/003.dcm cannot be read (error); download the series again",
    ),
    "a zip cut short": (
        packed(lambda path: cut(path, 400)),
        "{}: not a whole zip file (BadZipFile); download it again",
    ),
    "a corrupt frame": (
        changed(corrupt_frame),
        "{}: 003.dcm cannot be decoded (RLE Lossless); decompress the series first, such as with gdcmconv --raw",
    ),
    "a uid that is a path": (
        changed(lambda _: None, SeriesInstanceUID="../../../etc"),
        "{}: its SeriesInstanceUID is not digits and dots, 64 at most; export it again",
    ),
    "a uid that is dots": (
        changed(lambda _: None, SeriesInstanceUID=".."),
        "{}: its SeriesInstanceUID is not digits and dots, 64 at most; export it again",
    ),
    "NaN": (
        nifti("nan.nii", NAN),
        "{}: float32 values that are not whole HU in -32768..32767; store it as int16",
    ),
    "four dimensions": (
        nifti("four.nii.gz", np.stack([chest()] * 2)),
        "{}: 64 x 64 x 40 x 2 voxels in 4 dimensions, a CT has 3; export it as one 3D volume",
    ),
    "no such folder": (nothing("none"), "{}: no such file or folder; check the path"),
    "a frame cut short": (
        changed(shorten_frame),
        "{}: 003.dcm breaks off in its pixels; download the series again",
    ),
    "nothing there": (nothing("none.mhd"), "{}: no such file; check the path"),
    "a name too long to look up": (
        nothing("x" * 300 + ".nii"),
        "{}: '" + "x" * 77 + "...' cannot be read: File name too long; check the file",
    ),
    "a text file": (text("report.txt"), f"{{}}: .txt is not a kind of scan we read; {KINDS}"),
    "a name of markup": (
        image("[red]a[bold].mha", chest()),
        f"{{}}: '[red]a[bold]' is no series_uid; {RENAME}",
    ),
    "a name of an emoji": (image(":lungs:.mha", chest()), f"{{}}: ':lungs:' is no series_uid; {RENAME}"),
    "a name of escapes": (
        image("\x1b[31m\na.mha", chest()),
        f"{{}}: '\\x1b[31m\\na' is no series_uid; {RENAME}",
    ),
    "a name of 129 bytes": (
        image("é" * 64 + "e.nii", chest()),
        "{}: a series_uid of 129 bytes, not 128 at most; rename it",
    ),
}


def test_what_cannot_be_read_is_a_line_and_the_other_scans_are_done(read: Luna, good: Path, tmp_path: Path) -> None:
    scans = [make(tmp_path / f"{place:02}") for place, (make, _) in enumerate(REFUSED.values())]
    last = write_image(tmp_path / "last.mha", chest())
    status, said, wrong = read(good, *scans, last)
    assert status == 1
    shown = [str(path).replace("\x1b", "\\x1b").replace("\n", "\\n") for path in scans]
    expected = [f"not read: {line.format(path)}" for path, (_, line) in zip(shown, REFUSED.values())]
    assert wrong.splitlines() == expected
    assert "ecret" not in wrong + said
    assert "SECRET" not in wrong + said
    assert len(said.splitlines()) == 3
    assert names(tmp_path / "out") == ["good", "last"]
    assert whole(tmp_path / "out/good")["bundles"] == whole(tmp_path / "out/last")["bundles"]


CONTRAST = "a contrast agent was given: vessels are bright, and how well the models do on such scans was not measured"
LOSSY = "its slices were compressed with loss: their HU are not quite those that were measured"
HOSTILE = "\x1b[31m<script>alert(1)</script>\n[bold]SECRET"


def head(slices: int = 40, side: int = 64) -> Volume:
    """A skull with a sinus in it, which is no lung."""
    hu = np.full((slices, side, side), -1000, np.int16)
    _, row, col = np.ogrid[:slices, :side, :side]
    away = np.broadcast_to((row - side / 2) ** 2 + (col - side / 2) ** 2, hu.shape)
    hu[away < (0.4 * side) ** 2] = 1000
    hu[away < (0.35 * side) ** 2] = 40
    hu[5:8, 30:32, 30:32] = -950
    return hu


def abdomen(slices: int = 40, side: int = 64) -> Volume:
    """A body with a little gas in its gut."""
    hu = body(slices, side)
    hu[10:20, 30:34, 40:44] = -900
    return hu


def test_what_is_odd_is_delivered_with_a_note(read: Luna, good: Path, tmp_path: Path) -> None:
    no_lungs = "no lungs seen: the body encloses air in {} of the voxels; is it a chest?"
    flat = "only {} x 256 x 256 mm (index x row x col): not a whole chest"
    thick = "slices 5 mm apart: LUNA16's are 2.5 mm at most, and a small nodule may lie between two of these"
    odd: list[tuple[str, Path, list[str]]] = [
        ("head", write_image(tmp_path / "head.mha", head()), [no_lungs.format("0.0%")]),
        ("abdomen", write_image(tmp_path / "abdomen.mha", abdomen()), [no_lungs.format("0.1%")]),
        ("body", write_image(tmp_path / "body.mha", body()), [no_lungs.format("0.0%")]),
        ("thick", write_image(tmp_path / "thick.mha", chest(), (4, 4, 5)), [thick]),
        ("two", write_image(tmp_path / "two.nii.gz", chest()[12:14]), [flat.format(5)]),
        (
            SERIES,
            write_series(tmp_path / "contrast", chest(), ContrastBolusAgent="OMNIPAQUE for Secret^Name"),
            [CONTRAST],
        ),
        (OTHER, write_series(tmp_path / "scouted", chest(), OTHER), []),
        (f"{OTHER}.2", write_series(tmp_path / "pair", chest()[12:14], f"{OTHER}.2"), [flat.format(5)]),
    ]
    scout(tmp_path / "scouted")
    status, said, wrong = read(*(path for _, path, _ in odd), good, "--grouping", "best")
    assert status == 0
    assert wrong.splitlines() == [f"note: {uid}: {note}" for uid, _, notes in odd for note in notes]
    assert len(said.splitlines()) == len(odd) + 2
    out = tmp_path / "out"
    assert names(out) == sorted(["good", *(uid for uid, _, _ in odd)])
    for uid, path, notes in odd:
        told = whole(out / uid, dicom=path.is_dir())
        assert told["scan"]["warnings"] == notes
        page = (out / uid / "index.html").read_text()
        assert all(json.dumps(note) in page for note in notes)
        assert "OMNIPAQUE" not in page + json.dumps(told)
        for name in OBJECTS if path.is_dir() else ():
            assert complaints(out / uid / name) == []
    assert whole(out / "good")["scan"]["warnings"] == []
    assert len(whole(out / f"{OTHER}.2", dicom=True)["bundles"][0]["findings"]) == 1


@pytest.mark.slow
@pytest.mark.skipif(browser.missing() is not None, reason=f"{browser.missing()}")
def test_the_page_of_two_slices_opens(read: Luna, tmp_path: Path) -> None:
    assert read(write_image(tmp_path / "two.mha", chest()[12:14]), "--grouping", "best")[0] == 0
    with browser.chromium() as chromium:
        page, errors = chromium.new_page(), list[str]()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
        page.goto((tmp_path / "out/two/index.html").as_uri())
        page.wait_for_selector("body[data-ready]", timeout=60_000)
        for key in ("ArrowUp", "ArrowUp", "ArrowDown", "End", "Home"):
            page.keyboard.press(key)
    assert errors == []


SYNTAXES = {
    "implicit": ImplicitVRLittleEndian,
    "big endian": ExplicitVRBigEndian,
    "deflate": DeflatedExplicitVRLittleEndian,
    "rle": RLELossless,
    "jpeg lossless": JPEGLossless,
    "jpeg lossless, first order": JPEGLosslessSV1,
    "jpeg-ls": JPEGLSLossless,
    "jpeg 2000": JPEG2000Lossless,
}


def stored_as(syntax: UID, hu: Volume, folder: Path, uid: str, **change: Any) -> Path:
    """A series in a transfer syntax."""
    folder.mkdir()
    for index, plane in enumerate(hu):
        if syntax in (ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian):
            order = ">" if syntax == ExplicitVRBigEndian else "<"
            stored = (plane.astype(np.int32) + 1024).astype(f"{order}u2").tobytes()
            made = one_slice(plane, index, uid, syntax=syntax, **{"PixelData": stored, **change})
            pydicom.dcmwrite(folder / f"{index}.dcm", made, enforce_file_format=True)
        else:
            save(compress(one_slice(plane, index, uid, **change), syntax), folder / f"{index}.dcm")
    assert pydicom.dcmread(folder / "0.dcm").file_meta.TransferSyntaxUID == syntax
    return folder


def test_every_syntax_without_loss_gives_the_same_findings_and_dicom_objects(read: Luna, tmp_path: Path) -> None:
    hu = chest()[6:36]
    noise = np.random.default_rng(1).integers(-20, 20, hu.shape, np.int16)
    hu = np.maximum(hu + noise, -1024).astype(np.int16)
    series = {f"{SERIES}.1": write_series(tmp_path / "plain", hu, f"{SERIES}.1")}
    for number, (name, syntax) in enumerate(SYNTAXES.items(), start=2):
        # Scanners write some 12 bits and some 16; the writers at hand know 16 only.
        bits = {"BitsStored": 16, "HighBit": 15} if syntax.is_compressed else {}
        uid = f"{SERIES}.{number}"
        series[uid] = stored_as(syntax, hu, tmp_path / name, uid, **bits)
        np.testing.assert_array_equal(read_scan(series[uid]).hu, hu)
    status, _, wrong = read(*series.values())
    assert status == 0
    assert [line.partition(": only 75 x ")[0] for line in wrong.splitlines()] == [f"note: {uid}" for uid in series]
    said = [whole(tmp_path / "out" / uid, dicom=True)["bundles"][0]["findings"] for uid in series]
    assert len(said[0]) == 3
    assert all(findings == said[0] for findings in said)
    frames = [pydicom.dcmread(tmp_path / "out" / uid / "segmentation.dcm").pixel_array for uid in series]
    assert frames[0].any()
    assert all(np.array_equal(one, frames[0]) for one in frames)


@pytest.mark.parametrize("name", [name for name, syntax in SYNTAXES.items() if syntax.is_compressed])
def test_signed_pixels_are_unpacked_with_their_sign(name: str, tmp_path: Path) -> None:
    hu = np.maximum(chest()[10:13] + np.random.default_rng(2).integers(-9, 9, (3, 64, 64)), -1024).astype(np.int16)
    signed = {"PixelRepresentation": 1, "BitsStored": 16, "HighBit": 15, "RescaleIntercept": "0"}
    folder = tmp_path / "ct"
    folder.mkdir()
    for index, plane in enumerate(hu):
        made = one_slice(plane, index, PixelData=plane.tobytes(), **signed)
        if SYNTAXES[name] == JPEG2000Lossless:
            made.PixelData = (plane.astype(np.int32) + 32768).astype("<u2").tobytes()  # Pillow knows no sign
            made.PixelRepresentation, made.RescaleIntercept = 0, "-32768"
        save(compress(made, SYNTAXES[name]), folder / f"{index}.dcm")
    np.testing.assert_array_equal(read_scan(folder).hu, hu)


def test_what_was_compressed_with_loss_is_read_with_a_note(read: Luna, tmp_path: Path) -> None:
    told = {"LossyImageCompression": "01", "LossyImageCompressionRatio": "4", "BitsStored": 16, "HighBit": 15}
    for number, (syntax, method) in enumerate({JPEG2000: "ISO_15444_1", JPEGLSNearLossless: "ISO_14495_1"}.items()):
        uid = f"{SERIES}.{number}"
        folder = stored_as(syntax, chest(), tmp_path / str(number), uid, **told, LossyImageCompressionMethod=method)
        status, _, wrong = read(folder)
        assert (status, wrong) == (0, f"note: {uid}: {LOSSY}\n")
        found = whole(tmp_path / "out" / uid, dicom=True)
        assert found["scan"]["warnings"] == [LOSSY]
        places = sorted(one["center_irc"] for one in found["bundles"][0]["findings"])
        np.testing.assert_allclose(places, BALLS, atol=0.2)
        for name in OBJECTS:
            assert complaints(tmp_path / "out" / uid / name) == []


def test_what_cannot_but_be_compressed_with_loss_says_so(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "ct", chest()[12:14])
    for file in folder.iterdir():
        made = pydicom.dcmread(file)
        made.PixelData = encapsulate([b"\xff\xd8\xff\xd9"])
        made.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
        made["PixelData"].is_undefined_length = True
        made.save_as(file)
    assert delivering.header_warnings(read_headers(folder)) == (LOSSY,)


def test_a_slice_that_vanishes_costs_its_scan_unless_it_was_read(
    read: Luna, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    early, late = write_series(tmp_path / "early", chest()), write_series(tmp_path / "late", chest(), OTHER)
    listed, asked = series_files._plain_files, Reader.read

    def listing(folder: Path, deep: bool) -> list[str]:
        found = listed(folder, deep)
        if folder == early:
            (early / "003.dcm").unlink(missing_ok=True)
        return found

    def asking(self: Reader, scan: Scan, *given: Any) -> Any:
        if scan.series_uid == OTHER:
            (late / "003.dcm").unlink()
        return asked(self, scan, *given)

    monkeypatch.setattr(series_files, "_plain_files", listing)
    monkeypatch.setattr(Reader, "read", asking)
    status, _, wrong = read(early, late, good)
    assert status == 1
    assert wrong == f"not read: {early}: 003.dcm cannot be read (FileNotFoundError); download the series again\n"
    assert names(tmp_path / "out") == [OTHER, "good"]
    whole(tmp_path / "out" / OTHER, dicom=True)
    whole(tmp_path / "out/good")


def test_a_folder_that_may_not_be_looked_into(
    read: Luna, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the system says it to everybody but root."""
    closed, scandir, stat = write_series(tmp_path / "closed/ct", chest()), os.scandir, Path.stat

    def scanning(path: Any = ".") -> Any:
        if str(path) == str(closed):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    def looking(self: Path, **how: Any) -> os.stat_result:
        if self.parent == tmp_path / "hidden":
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return stat(self, **how)

    monkeypatch.setattr(os, "scandir", scanning)
    monkeypatch.setattr(Path, "stat", looking)
    part, opening = write_series(tmp_path / "part", chest()[:5], OTHER), Path.open
    link = tmp_path / "link.mha"
    link.symlink_to("nowhere")

    def reading(self: Path, *how: Any, **more: Any) -> Any:
        if self == part / "003.dcm":
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return opening(self, *how, **more)

    monkeypatch.setattr(Path, "open", reading)
    hidden = [tmp_path / "hidden/a.mhd", tmp_path / "hidden/ct", tmp_path / "hidden/ct.zip"]
    status, _, wrong = read(closed, *hidden, part, link, good)
    assert status == 1
    assert wrong.splitlines() == [
        f"not read: {closed}: {closed} cannot be listed: Permission denied; check the folder",
        f"not read: {hidden[0]}: 'a.mhd' cannot be read: Permission denied; check the file",
        f"not read: {hidden[1]}: it cannot be looked up: Permission denied; check the path",
        f"not read: {hidden[2]}: 'ct.zip' cannot be read: Permission denied; check the file",
        f"not read: {part}: 003.dcm cannot be read: Permission denied; check the file",
        f"not read: {link}: link.mha is a link to nowhere; fetch its file",
    ]
    assert names(tmp_path / "out") == ["good"]


def test_a_scan_that_this_user_may_not_read_costs_only_itself(
    read: Luna, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command line's own check of what is readable would refuse all of them."""
    closed, opening = write_image(tmp_path / "closed.mha", chest()), Path.open

    def refusing(self: Path, *how: Any, **more: Any) -> Any:
        if self == closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return opening(self, *how, **more)

    monkeypatch.setattr(Path, "open", refusing)
    monkeypatch.setattr(os, "access", lambda path, *_, **__: str(path) != str(closed))
    status, _, wrong = read(closed, good)
    said = f"not read: {closed}: 'closed.mha' cannot be read: Permission denied; check the file\n"
    assert (status, wrong) == (1, said)
    assert names(tmp_path / "out") == ["good"]


# ---------------------------------------------------------------- where the results go
def test_an_out_that_cannot_be_written_to_is_one_line_before_anything_is_read(
    luna: Luna, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.read.open_reader", None)
    file, disk = tmp_path / "file", tmp_path / "disk/out"
    file.touch()

    def opening(path: Any, *how: Any) -> int:
        raise OSError(code, os.strerror(code), path)

    def run(out: Path) -> tuple[int, str, str]:
        return luna("read", good, "--bundle", "models:/luna/1", "--out", out)

    assert run(file) == (1, "", f"error: {file}: not a folder: name another --out\n")
    assert run(file / "in/it") == (1, "", f"error: {file / 'in/it'}: Not a directory: name another --out\n")
    for code in (errno.EROFS, errno.EACCES, errno.ENOSPC):
        with monkeypatch.context() as patch:
            patch.setattr("lungml.files.os.open", opening)
            assert run(disk) == (1, "", f"error: {disk}: {os.strerror(code)}: name another --out\n")
    assert names(tmp_path) == ["file"]


def test_a_disk_that_fills_up_costs_the_scan_whose_page_did_not_fit(
    read: Luna, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans = [write_image(tmp_path / f"{name}.mha", chest()) for name in "abc"]
    out, fsync = tmp_path / "out", os.fsync
    assert read(scans[1])[0] == 0
    (out / "b/notes.txt").write_text("a reader's own")
    before = {file.name: file.read_bytes() for file in (out / "b").iterdir()}

    def full(descriptor: int) -> None:
        name = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        if ".index.html." in name and "/.b." in name:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(lungml_files.os, "fsync", full)
    status, said, wrong = read(*scans)
    assert status == 1
    why = "No space left on device; nothing of this scan is new there, mend that or name another --out"
    assert wrong == f"not written: {out}/b/index.html: {why}\n"
    assert [line.partition(":")[0] for line in said.splitlines()[:-1]] == ["a", "c"]
    assert names(out) == ["a", "b", "c"]
    assert {file.name: file.read_bytes() for file in (out / "b").iterdir()} == before
    whole(out / "a")
    whole(out / "c")
    monkeypatch.undo()


def test_a_file_where_a_scans_folder_belongs_costs_that_scan(read: Luna, good: Path, tmp_path: Path) -> None:
    taken = tmp_path / "out/taken"
    taken.parent.mkdir()
    taken.write_text("somebody's own")
    status, _, wrong = read(write_image(tmp_path / "taken.mha", chest()), good)
    assert (status, wrong) == (1, f"not read: {taken}: not a folder: name another --out\n")
    assert taken.read_text() == "somebody's own"
    assert names(tmp_path / "out") == ["good", "taken"]
    whole(tmp_path / "out/good")


def test_where_nothing_was_read_nothing_is_said_of_a_model(read: Luna, good: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.mhd").touch()
    status, told, wrong = read(tmp_path / "empty.mhd")
    assert (status, told) == (1, "")
    assert wrong.endswith("empty.mhd: the file is empty; copy the scan's header again\n")
    assert "A model's opinion, not for clinical use." in read(tmp_path / "empty.mhd", good)[1]


def test_a_folder_where_a_file_belongs_leaves_what_was_there(read: Luna, good: Path, tmp_path: Path) -> None:
    taken, out = write_image(tmp_path / "taken.mha", chest()), tmp_path / "out"
    for name in ("index.html", "report.dcm"):  # one that is written, and one that would go
        (out / "taken" / name).mkdir(parents=True)
        (out / "taken/findings.csv").write_text("of an earlier reading")
        status, _, wrong = read(taken, good)
        why = "a folder stands where this file belongs; nothing of this scan is new there, mend that or name another"
        assert (status, wrong) == (1, f"not written: {out}/taken/{name}: {why} --out\n")
        assert names(out) == ["good", "taken"]
        assert names(out / "taken") == sorted([name, "findings.csv"])
        assert (out / "taken/findings.csv").read_text() == "of an earlier reading"
        (out / "taken" / name).rmdir()
    whole(out / "good")


def test_a_link_to_nowhere_is_no_place_for_results(luna: Luna, read: Luna, good: Path, tmp_path: Path) -> None:
    link, out = tmp_path / "link", tmp_path / "out"
    link.symlink_to("nowhere")
    status, _, wrong = luna("read", good, "--bundle", "models:/luna/1", "--out", link)
    assert (status, wrong) == (1, f"error: {link}: a link to nowhere: name another --out\n")
    out.mkdir()
    (out / "lost").symlink_to("nowhere")
    status, _, wrong = read(write_image(tmp_path / "lost.mha", chest()), good)
    assert (status, wrong) == (1, f"not read: {out}/lost: a link to nowhere: name another --out\n")
    assert names(out) == ["good", "lost"]


def test_what_cannot_become_dicom_costs_these_files_and_the_status(read: Luna, good: Path, tmp_path: Path) -> None:
    placeless = write_series(tmp_path / "placeless", chest(), FrameOfReferenceUID="")
    homeless = write_series(tmp_path / "homeless", chest(), OTHER, StudyInstanceUID="../x")
    status, said, wrong = read(placeless, homeless, good)
    assert status == 1
    assert wrong.splitlines() == [
        f"not written: segmentation.dcm: {SERIES}: its slices have no FrameOfReferenceUID, without which no mask has a "
        "place; export it again",
        f"not written: segmentation.dcm: {OTHER}: its slices have no StudyInstanceUID; export the series again",
        f"not written: report.dcm: {OTHER}: its slices have no StudyInstanceUID; export the series again",
    ]
    assert len(said.splitlines()) == 4
    assert names(tmp_path / "out" / SERIES) == sorted([*FILES, "report.dcm"])
    whole(tmp_path / "out" / OTHER)
    whole(tmp_path / "out/good")


def test_a_scan_that_the_memory_does_not_hold_costs_only_itself(
    read: Luna, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large, asked = write_image(tmp_path / "large.mha", chest()), Reader.read

    def asking(self: Reader, scan: Scan, *given: Any) -> Any:
        if scan.series_uid == "large":
            np.empty(2**60, np.int8)
        return asked(self, scan, *given)

    monkeypatch.setattr(Reader, "read", asking)
    status, _, wrong = read(large, good)
    why = "there is not enough memory for a scan of its size; read it where there is more"
    assert (status, wrong) == (1, f"not read: {large}: {why}\n")
    assert names(tmp_path / "out") == ["good"]


def test_an_out_of_any_name_is_shown_in_one_line(luna: Luna, good: Path, tmp_path: Path) -> None:
    out = os.fsdecode(os.fsencode(tmp_path) + b"/[b]\x1b[31m\n:lungs:\xff")
    status, said, wrong = luna("read", good, "--bundle", "models:/luna/1", "--out", out)
    assert (status, wrong) == (0, "")
    shown = f"{tmp_path}/[b]\\x1b[31m\\n:lungs:\\udcff"
    assert said.splitlines()[0].endswith(f"malignant -> {shown}/good/index.html")
    whole(Path(out) / "good")


def test_in_the_background_it_is_told_what_became_of_each_scan(
    home: Home, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full, said, kept = write_image(tmp_path / "full.mha", chest()), list[str](), dict[str, Any]()
    plain = delivering.deliver

    def deliver(folder: Path, *given: Any) -> Any:
        if folder.name == "full":
            raise OSError(errno.ENOSPC, "No space left on device", str(folder / "index.html"))
        return plain(folder, *given)

    log = SimpleNamespace(
        info=lambda *_: None,
        warning=lambda line, *given: said.append(line % given),
        error=lambda line, *given: said.append(line % given),
    )
    monkeypatch.setenv("LUNA_HOME", str(home.root))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("flows.read.deliver", deliver)
    monkeypatch.setattr("flows.read.get_run_logger", lambda: log)
    monkeypatch.setattr("flows.read.create_table_artifact", lambda table, **_: kept.update(table=table))
    scans = [good, good, full, tmp_path / "none.nii"]
    with pytest.raises(ReadingError, match=r"^2 of 4 scans were not read, or not wholly"):
        read_in_background.fn([str(path) for path in scans], str(tmp_path / "out"), "models:/luna/1", device="cpu")
    assert [row["candidates"] for row in kept["table"]] == [3, "named before", "not written", "not read"]
    assert said == [
        "good: named more than once: it is read once",
        f"scan 3 of 4 was not written: {tmp_path}/out/full/index.html: No space left on device; nothing of this scan "
        "is new there, mend that or name another --out",
        f"scan 4 of 4 was not read: {tmp_path}/none.nii: no such file; check the path",
    ]


def test_what_a_killed_run_left_half_written_goes(read: Luna, good: Path, tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    left = tmp_path / f"out/.good.{lungml_files.this_machine()}-{process.pid}-0123abcd"
    left.mkdir(parents=True)
    (left / "index.html").write_text("half")
    assert read(good)[0] == 0
    assert names(tmp_path / "out") == ["good"]


# ---------------------------------------------------------------- what is asked for
WRONG: dict[str, tuple[tuple[str, ...], str]] = {
    "no such bundle": (
        ("--bundle", "models:/luna/99"),
        "models:/luna/99: no such bundle in {db}; see `luna model list`",
    ),
    "no such alias": (
        ("--bundle", "models:/luna@champion"),
        "models:/luna@champion: no such bundle in {db}; see `luna model list`",
    ),
    "a model": (
        ("--bundle", "models:/m-0123456789abcdef0123456789abcdef"),
        "models:/m-0123456789abcdef0123456789abcdef: is no bundle; give models:/luna/N or models:/luna@ALIAS",
    ),
    "markup": (
        ("--bundle", "models:/[red]luna\n"),
        "models:/[red]luna\\n: is no bundle; give models:/luna/N or models:/luna@ALIAS",
    ),
    "nothing to compare with": (
        ("--bundle", "models:/luna/1", "--compare", "models:/luna/99"),
        "models:/luna/99: no such bundle in {db}; see `luna model list`",
    ),
    "itself to compare with": (
        ("--bundle", "models:/luna/1", "--compare", "models:/luna/1"),
        "models:/luna/1: a bundle differs in nothing from itself; compare it with another, or with none",
    ),
    "itself by another name to compare with": (
        ("--bundle", "models:/luna/1", "--compare", "models:/luna@same"),
        "models:/luna/1 and models:/luna@same are both models:/luna/1: a bundle differs in nothing from itself; "
        "compare it with another, or with none",
    ),
    "no device": (
        ("--bundle", "models:/luna/1", "--device", "tpu"),
        "device 'tpu' is not one that PyTorch knows; use auto, cpu or cuda",
    ),
    "no truth": (
        ("--bundle", "models:/luna/1", "--truth", "{empty}"),
        "{empty}: neither annotations_with_malignancy.csv nor annotations.csv is here; name the folder that holds the "
        "truth",
    ),
    "no grouping": (
        ("--bundle", "models:/luna/1", "--grouping", "[nonsense]"),
        "unknown grouping '[nonsense]'; choose one of report, union, best",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_was_asked_for_wrongly_is_one_line_before_anything_is_read(
    case: str, luna: Luna, home: Home, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.read.read_scan_and_headers", None)
    (tmp_path / "empty").mkdir()
    words = {"empty": tmp_path / "empty", "db": f"sqlite:///{home.mlflow_db}"}
    given, line = WRONG[case]
    status, said, wrong = luna("read", good, *(text.format(**words) for text in given), "--out", tmp_path / "out")
    assert (status, said, wrong) == (1, "", f"error: {line.format(**words)}\n")
    assert names(tmp_path) == ["empty"]


def test_a_scan_named_twice_is_read_once_and_two_of_one_uid_are_two(read: Luna, good: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.mha"
    link.symlink_to(good)
    other = write_image(tmp_path / "other/good.mha", chest() + np.int16(1))
    status, said, wrong = read(good, link, good)
    assert status == 0
    note = "named more than once: it is read once"
    assert wrong.splitlines() == [f"note: link: {note}", f"note: good: {note}"]
    assert len(said.splitlines()) == 2
    first = (tmp_path / "out/good/submission.csv").read_text()
    status, said, wrong = read(good, other)
    assert status == 1
    assert wrong == f"not read: {other}: the same series_uid as {good}; read it into another --out\n"
    assert (tmp_path / "out/good/submission.csv").read_text() == first


# ---------------------------------------------------------------- names and headers
@pytest.mark.parametrize("name", ["with  blanks", "Ünïcode 肺", "-x", "--help", "é" * 64, "1.2.3"])
def test_names_that_a_folder_can_have_are_kept(name: str, luna: Luna, tmp_path: Path) -> None:
    write_image(tmp_path / f"a b/{name}.mha", chest())
    (tmp_path / "sub").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path / "a b")
        given = ("--bundle=models:/luna/1", "--out", "../out", "--", f"{name}.mha")
        status, said, wrong = luna("read", *given)
    assert (status, wrong) == (0, "")
    assert f"{name}: 3 candidates" in said
    assert said.splitlines()[0].endswith(f" -> ../out/{name}/index.html")
    assert names(tmp_path / "out") == [name]
    whole(tmp_path / "out" / name)


@pytest.mark.filterwarnings("ignore:Found unknown escape sequence")  # as the header has one
def test_a_patients_name_in_a_path_or_a_header_is_nowhere_but_in_the_dicom_objects(
    read: Luna, luna: Luna, tmp_path: Path
) -> None:
    header = {"SeriesDescription": HOSTILE, "ProtocolName": HOSTILE, "PatientName": HOSTILE, "Manufacturer": HOSTILE}
    folder = write_series(tmp_path / "DOE^JANE 19500101", chest(), **header)
    packed_up = zipped(write_series(tmp_path / "JANE.DOE", chest(), OTHER, **header))
    status, said, wrong = read(folder, packed_up)
    assert (status, wrong) == (0, "")
    said += wrong
    for uid in (SERIES, OTHER):
        whole(tmp_path / "out" / uid, dicom=True)
        said += "".join((tmp_path / "out" / uid / name).read_text() for name in FILES)
    for secret in ("JANE", "DOE", "19500101", "alert(1)", "SECRET", "Secret", "20010203", "\x1b"):
        assert secret not in said
    assert "alert(1)" in str(pydicom.dcmread(tmp_path / "out" / SERIES / "report.dcm").PatientName)
    status, said, wrong = read(write_series(tmp_path / "bad", chest()[:3], SeriesInstanceUID=HOSTILE))
    assert (status, "\x1b" in wrong, "SECRET" in wrong, len(wrong.splitlines())) == (1, False, False, 1)
    assert names(tmp_path / "out") == [SERIES, OTHER]


# ---------------------------------------------------------------- other formats
def test_positions_are_those_of_the_same_volume_in_any_format(read: Luna, tmp_path: Path) -> None:
    hu = chest()
    paths = {name: write_image(tmp_path / name, hu) for name in ("a.mha", "b.nii", "c.nii.gz")}
    stored = nib.load(paths["b.nii"])
    flipped = nib.as_closest_canonical(nib.Nifti1Image(np.asarray(stored.dataobj), stored.affine))
    assert (np.diag(flipped.affine)[:3] > 0).all()  # right, forward and up: two axes run the other way
    nib.save(flipped, tmp_path / "d.nii")
    nib.save(nib.Nifti1Image(np.asarray(stored.dataobj).astype("<f4"), stored.affine), tmp_path / "e.nii.gz")
    scaled = nib.Nifti1Image(((np.asarray(stored.dataobj) + 1024) // 2).astype("<i2"), stored.affine)
    scaled.header.set_slope_inter(2, -1024)
    nib.save(scaled, tmp_path / "f.nii")
    turned = nib.Nifti1Image(np.asarray(stored.dataobj).transpose(2, 0, 1), stored.affine[:, [2, 0, 1, 3]])
    nib.save(turned, tmp_path / "g.nii")
    status, _, wrong = read(*(tmp_path / f"{name}" for name in (*paths, "d.nii", "e.nii.gz", "f.nii", "g.nii")))
    assert (status, wrong) == (0, "")
    places = {
        name: sorted(one["center_xyz"] for one in whole(tmp_path / "out" / name)["bundles"][0]["findings"])
        for name in "abcdefg"
    }
    assert len(places["a"]) == len(BALLS)
    for name, found in places.items():
        np.testing.assert_allclose(found, places["a"], atol=1e-3, err_msg=name)


# ---------------------------------------------------------------- a run that is stopped, and a long one
STOPPED = """
import sys, time
from pathlib import Path
from flows import cli
from lungml.reading import deliver
from tasks.reading import Reader

module, name = {"models": (Reader, "read"), "page": (deliver, "write_page")}[sys.argv.pop(1)]
plain, calls = getattr(module, name), []


def slow(*given, **how):
    calls.append(1)
    if len(calls) == 2:
        print("now", flush=True)
        time.sleep(60)
    return plain(*given, **how)


setattr(module, name, slow)
cli.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("where", ["models", "page"])
def test_a_run_that_is_stopped_leaves_whole_scans_only(where: str, home: Home, good: Path, tmp_path: Path) -> None:
    second, out = write_image(tmp_path / "second.mha", chest()), tmp_path / "out"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
    environment |= {"LUNA_HOME": str(home.root), "PYTHONPATH": str(PROJECT)}
    given = [where, "read", str(good), str(second), "--bundle", "models:/luna/1", "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPED, *given],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line == "now\n":
            break
    process.send_signal(signal.SIGINT)
    _, wrong = process.communicate(timeout=60)
    assert (process.returncode, wrong) == (130, "stopped\n")
    assert names(out) == ["good"]
    whole(out / "good")


def test_reading_scan_after_scan_keeps_nothing_of_them(
    luna: Luna, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans = [write_image(tmp_path / f"{number}.mha", chest()) for number in range(6)]
    kept: list[int] = []

    def after_scan(_one: Any) -> None:
        gc.collect()
        kept.append(tracemalloc.get_traced_memory()[0])

    monkeypatch.setattr("flows.cli_read.show_scan", after_scan)
    tracemalloc.start()
    try:
        status, _, _ = luna("read", *scans, "--bundle", "models:/luna/1", "--out", tmp_path / "out")
    finally:
        tracemalloc.stop()
    assert status == 0
    assert kept[5] - kept[2] < chest().nbytes / 4
