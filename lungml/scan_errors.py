"""What can be wrong with a scan? One error type for each kind, each one line that says what to do."""

from __future__ import annotations

from lungml.errors import FileError


class ScanError(FileError):
    """A scan that cannot be used; its text is one line: file, what is wrong, what to do.

    ScanError
      MissingDataError       a file is missing, unreadable or not a plain file
      FormatError            not a kind of file that we read
      HeaderError            the header cannot be parsed, or contradicts itself
      UnsafePathError        the header points outside the scan's folder
      ElementTypeError       the voxels are not of a type that holds HU
      ScanGeometryError      size, spacing, origin or direction are not a CT's
        MissingSliceError      there is a gap between two slices
        DuplicateSliceError    two slices lie at one place
        UnevenSlicesError      slices are not at even distances
        TiltError              slices move sideways: the gantry was tilted
      ByteCountError         too few or too many bytes of voxels, or broken compression
      ImplausibleScanError   the values are not a chest in HU
        ByteOrderError         they were written in the other byte order
        EmptyScanError         there is nothing in the field of view
      DuplicateScanError     two files claim one series
      SeveralSeriesError     a folder holds more than one series
      SeriesUidError         a name that no store can carry
    """


class MissingDataError(ScanError):
    """A file is missing, unreadable or not a plain file."""


class FormatError(ScanError):
    """Not a kind of file that we read."""


class HeaderError(ScanError):
    """The header cannot be parsed, or contradicts itself."""


class UnsafePathError(ScanError):
    """The header points outside the scan's folder."""


class ElementTypeError(ScanError):
    """The voxels are not of a type that holds HU."""


class ScanGeometryError(ScanError):
    """Size, spacing, origin or direction are not a CT's."""


class ByteCountError(ScanError):
    """Too few or too many bytes of voxels, or broken compression."""


class ImplausibleScanError(ScanError):
    """The values are not a chest in HU."""


class DuplicateScanError(ScanError):
    """Two files claim one series."""


class SeveralSeriesError(ScanError):
    """A folder holds more than one series."""


class MissingSliceError(ScanGeometryError):
    """There is a gap between two slices."""


class DuplicateSliceError(ScanGeometryError):
    """Two slices lie at one place."""


class UnevenSlicesError(ScanGeometryError):
    """Slices are not at even distances."""


class TiltError(ScanGeometryError):
    """Slices move sideways: the gantry was tilted."""


class ByteOrderError(ImplausibleScanError):
    """The values were written in the other byte order."""


class EmptyScanError(ImplausibleScanError):
    """There is nothing in the field of view."""


class SeriesUidError(ScanError):
    """A name that no store can carry."""
