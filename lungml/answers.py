"""What did the networks say of a scan, before any threshold or calibration, and how is it kept?"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lungml.candidates import Candidates
from lungml.files import whole_file
from lungml.marked import Marked


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """What the networks said of one scan.

    Attributes:
        marked: by the segmentation.
        candidates: n places.
        prob_nodule: (n,) float64, averaged over the models.
        prob_malignant: (n,) float64, the same; NaN where the malignancy models were not asked.
    """

    marked: Marked
    candidates: Candidates
    prob_nodule: npt.NDArray[np.float64]
    prob_malignant: npt.NDArray[np.float64]


def write_answers(path: Path, answers: Answers, key: str) -> None:
    """Keep a scan's answers as one .npz file that says what it was made from; whole or not at all."""
    marked, candidates = answers.marked, answers.candidates
    write_arrays(
        path,
        key,
        shape=np.array(marked.shape),
        # Steps are small numbers, which pack well.
        steps=np.diff(marked.voxels, prepend=0).astype(np.int32),
        probs=marked.probs,
        floor=np.float64(marked.floor),
        centers_irc=candidates.centers_irc,
        diameters_mm=candidates.diameters_mm,
        scores=candidates.scores,
        left_out=np.int64(candidates.left_out),
        prob_nodule=answers.prob_nodule,
        prob_malignant=answers.prob_malignant,
    )


def read_answers(path: Path, key: str | None = None) -> Answers | None:
    """A scan's answers; None where there are none, where they were made from something else, or are damaged."""
    held = read_arrays(path, key)
    if held is None:
        return None
    index, rows, cols = held["shape"].tolist()
    return Answers(
        marked=Marked(
            shape=(index, rows, cols),
            voxels=held["steps"].cumsum(dtype=np.int64),
            probs=held["probs"],
            floor=float(held["floor"]),
        ),
        candidates=Candidates(
            centers_irc=held["centers_irc"],
            diameters_mm=held["diameters_mm"],
            scores=held["scores"],
            left_out=int(held["left_out"]),
        ),
        prob_nodule=held["prob_nodule"],
        prob_malignant=held["prob_malignant"],
    )


def write_arrays(path: Path, key: str, **arrays: npt.NDArray[Any] | np.generic) -> None:
    """Keep arrays and what they were made from as one .npz file, whole or not at all."""
    held = io.BytesIO()
    np.savez_compressed(held, key=np.array(key), **arrays)  # type: ignore[arg-type]
    with whole_file(path) as handle:
        handle.write(held.getbuffer())


def read_arrays(path: Path, key: str | None) -> dict[str, npt.NDArray[Any]] | None:
    """All arrays of a file, each checked against its checksum; None where it is not what was asked for."""
    try:
        with np.load(path, allow_pickle=False) as held:
            arrays = {name: held[name] for name in held.files}
            return arrays if key is None or str(arrays["key"]) == key else None
    except Exception:  # a damaged zip lets anything out: BadZipFile, zlib.error, NotImplementedError, struct.error, ...
        return None
