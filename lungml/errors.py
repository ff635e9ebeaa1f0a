"""Which errors can the person at the keyboard mend?"""

from __future__ import annotations

from pathlib import Path


class LunaError(ValueError):
    """An error whose message is one line that says what is wrong and what to do; the command prints just that.

    LunaError
      ScanError       a scan file that cannot be trusted; the scan is set aside, the run goes on
      GridError       a sampling grid that no scanner makes
      TableError      one of LUNA16's tables, or the folder, is missing or malformed
      SplitError      split.csv is damaged, or a split has no scan
      PhantomError    synthetic scans that cannot be drawn there
      DownloadError   a file that cannot be fetched, or is not what was published
      ArchiveError    an archive that cannot be unpacked safely and whole
      LidcError       LIDC's annotations, or one of their files, cannot be read
      MaskError       a nodule without a place or a size, or a contour that does not fit its scan
      StoreError      a store is missing, half-written, damaged or of another format
      RemoteError     an object store cannot be reached or used
      WorkersError    LUNA_WORKERS says nothing that we know, or no Dask scheduler answers there
      UpError         a service cannot be started
      RecipeError     no such recipe
      ProfileError    a kept profile that cannot be read
      RecordError     a text that is not the record that was asked for
      DicomObjectError a DICOM segmentation or report that a series' headers do not allow
      CorrectionError a file of corrections that cannot be taken
      CorrectionStoreError  a kept version of the corrections is missing or damaged
      PlaceError      no such place in a scan
      MarksError      a findings.csv that is none, or another scan's
      RenderingError  no 3D picture can be had here
      OutError        the folder for figures cannot be written to
      ReadingError    some of the scans that were to be read could not be
      GroupingError   no such grouping
      InferenceError  no such way of segmenting and judging
      FindingError    a network answers with what is no probability
      TrainingError   training cannot start or go on
      CheckpointError a training state that belongs to another training
      LeakError       a scan or patient on two sides of the split
      FoldError       a cross-validation that these scans do not allow
      GateError       the gate's settings cannot be
      EvaluationError a bundle cannot be judged on these scans
      WeightsError    a published weights file is not what it was given as
      ReproductionError  a bundle cannot be made again
      TrackingError   a model or bundle is not there or not what it was asked for as
    """


class FileError(LunaError):
    """Something is wrong with one file or folder; the text is one line: which, what is wrong, what to do."""

    def __init__(self, path: Path | str, problem: str, advice: str) -> None:
        # All three stay in args, so that the error survives the pickling between processes.
        super().__init__(str(path), problem, advice)

    def __str__(self) -> str:
        path, problem, advice = self.args
        return one_line(f"{path}: {problem}; {advice}")


class FindingError(LunaError):
    """A network answers with what is no probability; the message is one line."""


class TrainingError(LunaError):
    """Training cannot start or go on; the message is one line."""


def one_line(text: str) -> str:
    """The text with every control character written as its escape, so that it stays one line."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
