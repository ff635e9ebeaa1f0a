import pickle
from pathlib import Path

import pytest

from lungml import scan_errors
from lungml.errors import LunaError, one_line
from lungml.scan_errors import ScanError

KINDS = [kind for kind in vars(scan_errors).values() if isinstance(kind, type) and issubclass(kind, ScanError)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_one_line_and_survives_pickling(kind: type[ScanError]) -> None:
    error = kind(Path("a\nb.mhd"), "is\tbad", "do \x1b[31mthis")
    assert str(error) == "a\\nb.mhd: is\\tbad; do \\x1b[31mthis"
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy)) == (kind, str(error))
    assert isinstance(error, LunaError)


def test_the_docstring_draws_every_kind() -> None:
    assert all(kind.__name__ in (ScanError.__doc__ or "") for kind in KINDS)


def test_printable_text_stays() -> None:
    assert one_line("Ödem 3 mm → ok") == "Ödem 3 mm → ok"
