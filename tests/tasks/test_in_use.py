import errno
import fcntl
from pathlib import Path

import pytest

from lungml.home import Home
from tasks.in_use import alone, using


def test_any_number_of_runs_can_use_a_home_and_none_while_somebody_is_alone(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    with using(home), using(home), alone(home) as free:
        assert not free
    with alone(home) as free, alone(home) as second:
        assert (free, second) == (True, False)


def test_a_home_over_nfs_can_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # There flock is a lock of a byte range, which is shared only by a file that is open for reading.
    monkeypatch.setattr(fcntl, "flock", fcntl.lockf)
    home = Home(tmp_path / "home")
    with using(home):
        pass
    with alone(home) as free:
        assert free


def test_what_cannot_be_written_needs_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "read-only file system")

    monkeypatch.setattr(Path, "open", refused)
    with using(Home(tmp_path / "home")):
        pass
    with pytest.raises(OSError, match="read-only"), alone(Home(tmp_path / "home")):
        pass
