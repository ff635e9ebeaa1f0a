"""Which documented commands are not run by `make docs`, and what runs them instead, or why nothing here can?

A pattern is a command as documented; `*` stands for anything. `by` names tests that run the same for real. A row
without any says why nothing here runs it, and so must the page: `said` is the heading over the command.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

DOCKER, KUBERNETES = "## Docker (not tried", "## Kubernetes (half"
POSTGRESQL = "## PostgreSQL behind Prefect and MLflow (tried"


@dataclass(frozen=True, kw_only=True)
class Covered:
    """A documented command that `make docs` leaves to others, see above."""

    pattern: str
    by: tuple[str, ...] = ()
    why: str = ""
    said: str = ""

    def matches(self, command: str) -> bool:
        """Whether it speaks of a command."""
        return re.fullmatch(re.escape(self.pattern).replace(r"\*", ".*"), command) is not None


MAKEFILE = "tests/docs/test_commands.py::test_a_make_target_does_what_its_line_says"
DOWNLOADED = "tests/flows/test_prepare.py::test_some_subsets_are_fetched_and_the_others_move_no_scan"
SERVED = "tests/tasks/test_serving.py::test_a_server_answers_on_loopback"
UP = "tests/flows/test_up.py::test_runs_come_to_their_end_through_trouble_and_nothing_stays"

COVERED: tuple[Covered, ...] = (
    # What make does, a test sees; what is behind it, further ones.
    Covered(pattern="make setup", by=(MAKEFILE,)),
    Covered(pattern="make test", by=(MAKEFILE,)),
    Covered(pattern="make check", by=(MAKEFILE,)),
    Covered(pattern="make docs", by=(MAKEFILE, "tests/docs/test_run.py::test_each_command_is_told_with_its_verdict")),
    Covered(pattern="make audit", by=(MAKEFILE, "tests/test_audit.py::test_every_accepted_vulnerability_has_a_reason")),
    Covered(
        pattern="make drills", by=(MAKEFILE, "tests/drills/test_page.py::test_every_drill_has_its_row_and_its_story")
    ),
    Covered(pattern="make bench", by=(MAKEFILE, "tests/benchmarks/test_run.py")),
    Covered(pattern="make up", by=(MAKEFILE, UP)),
    Covered(pattern="source .venv/bin/activate", by=(MAKEFILE,)),
    # Data
    Covered(pattern="luna data prepare --luna-dir /data/LUNA16 --download*", by=(DOWNLOADED,)),
    Covered(
        pattern="LUNA_WORKERS=tcp://scheduler:8786 luna data prepare *",
        by=("tests/flows/test_runners.py::test_one_that_answers_is_taken",),
    ),
    Covered(
        pattern="export LUNA_SCANS=* AWS_*",
        by=("tests/lungml/test_remote.py::test_the_environment_puts_scans_on_an_object_store",),
    ),
    Covered(
        pattern="export AWS_ENDPOINT=*", by=("tests/lungml/test_remote.py::test_a_scan_and_its_mask_come_back_exactly",)
    ),
    Covered(pattern="export LUNA_HOME=*", by=("tests/lungml/test_home.py",)),
    # Servers
    Covered(pattern="export MLFLOW_TRACKING_URI=*", by=(SERVED,)),
    Covered(pattern="mlflow models serve *", by=(SERVED,)),
    Covered(pattern="curl *", by=(SERVED,)),
    Covered(
        pattern="export PREFECT_API_URL=* MLFLOW_TRACKING_URI=*",
        by=("tests/flows/test_up.py::test_servers_of_others_are_used_where_they_answer",),
    ),
    Covered(
        pattern="luna model rollback", by=("tests/flows/test_cli_model.py::test_a_person_promotes_and_rolls_back",)
    ),
    Covered(
        pattern="luna model reproduce *",
        by=("tests/flows/test_reproduce.py::test_it_is_made_again_to_the_last_bit",),
    ),
    # What a database, a daemon or a cluster is needed for
    Covered(pattern="createdb *", why="needs a PostgreSQL server: tried by hand", said=POSTGRESQL),
    Covered(pattern="pip install psycopg2-binary", why="fetches from an index: tried by hand", said=POSTGRESQL),
    Covered(pattern="export PREFECT_API_DATABASE_CONNECTION_URL=*", why="as above: tried by hand", said=POSTGRESQL),
    Covered(pattern="prefect server start *", why="on PostgreSQL: tried by hand", said=POSTGRESQL),
    Covered(pattern="mlflow server *", why="on PostgreSQL: tried by hand", said=POSTGRESQL),
    Covered(pattern="docker build *", why="needs a daemon", said=DOCKER),
    Covered(pattern="pip install prefect-docker", why="needs a daemon", said=DOCKER),
    Covered(pattern="prefect work-pool create luna-docker *", why="needs a daemon", said=DOCKER),
    Covered(pattern="prefect --no-prompt deploy --all --prefect-file docker.yaml", why="needs a daemon", said=DOCKER),
    Covered(pattern="prefect worker start --pool luna-docker", why="needs a daemon", said=DOCKER),
    Covered(pattern="prefect work-pool get-default-base-job-template *", why="tried by hand", said=KUBERNETES),
    Covered(pattern="python - <<'PY'", why="tried by hand", said=KUBERNETES),
    Covered(pattern="prefect work-pool create luna-gpu *", why="tried by hand", said=KUBERNETES),
    Covered(pattern="pip install prefect-kubernetes", why="needs a cluster", said=KUBERNETES),
    Covered(pattern="prefect worker start --pool luna-gpu", why="needs a cluster", said=KUBERNETES),
    # Python
    Covered(pattern="python block 1 of docs/api.md", by=("tests/docs/test_api.py::test_the_worked_example_runs",)),
)
