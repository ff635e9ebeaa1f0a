"""Where do artifacts live?"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from lungml.errors import FileError
from lungml.remote import Location, RemoteError, RemoteFolder


@dataclass(frozen=True)
class Home:
    """The folder of everything produced; nothing is made before it is needed.

    Attributes:
        root: absolute.
        scans_url: where the scans' stores lie instead, when that is an object store such as s3://bucket/luna.
    """

    root: Path
    scans_url: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", Path(self.root).expanduser().absolute())
        if self.root.exists() and not self.root.is_dir():
            raise FileError(self.root, "not a folder", "name another place for artifacts with LUNA_HOME")
        # The URL travels with every scan: through the parameters of flows, and errors. Azure's has a plain @.
        if self.scans_url and re.search(r"://[^/]*:[^/]*@", self.scans_url):
            raise RemoteError("LUNA_SCANS holds a password; leave it to the environment, see docs/data.md")
        if self.scans_url and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s]\S*", self.scans_url):
            raise RemoteError(
                f"LUNA_SCANS is {self.scans_url!r}, not an object store's URL; give one such as s3://bucket/luna"
            )

    @classmethod
    def from_env(cls) -> Home:
        """$LUNA_HOME, else `artifacts/` beside this package's pyproject.toml, else in the current folder.

        $LUNA_SCANS, when it is set, is the `scans_url`.
        """
        url = os.environ.get("LUNA_SCANS") or None
        if os.environ.get("LUNA_HOME"):
            return cls(Path(os.environ["LUNA_HOME"]), url)
        project = Path(__file__).resolve().parents[1]
        return cls((project if (project / "pyproject.toml").exists() else Path.cwd()) / "artifacts", url)

    @property
    def scans(self) -> Location:
        """`<series_uid>.zarr`: HU volumes and masks."""
        return RemoteFolder(self.scans_url) if self.scans_url else self.root / "scans"

    @property
    def crops(self) -> Path:
        """`<recipe>-<settings>.zarr`: training crops and slabs."""
        return self.root / "crops"

    @property
    def checkpoints(self) -> Path:
        """`<stage>/<key>/`: resumable training state."""
        return self.root / "checkpoints"

    @property
    def rounds(self) -> Path:
        """What is being done anew, see `tasks.rounds`."""
        return self.root / "rounds"

    @property
    def reports(self) -> Path:
        """Findings, tables and figures."""
        return self.root / "reports"

    @property
    def logs(self) -> Path:
        """Output of the services that `luna up` starts."""
        return self.root / "logs"

    @property
    def mlflow_db(self) -> Path:
        """MLflow's runs and registry."""
        return self.root / "mlflow.db"

    @property
    def mlruns(self) -> Path:
        """MLflow's artifacts."""
        return self.root / "mlruns"

    @property
    def spool(self) -> Path:
        """What runs could not tell MLflow yet, see `tasks.spool`."""
        return self.root / "spool"

    @property
    def prefect_results(self) -> Path:
        """Prefect's stored task results."""
        return self.root / "prefect-results"

    @property
    def split_csv(self) -> Path:
        """The frozen split."""
        return self.root / "split.csv"

    @property
    def data_json(self) -> Path:
        """The folders that scans were last prepared from."""
        return self.root / "data.json"

    @property
    def quarantine_csv(self) -> Path:
        """Scans set aside, with reasons."""
        return self.root / "quarantine.csv"
