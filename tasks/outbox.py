"""Does what a run logs go to MLflow now, or does it wait?"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Mapping
from typing import Any

from mlflow import MlflowClient

from lungml.home import Home
from tasks.connection import plain, shown_uri, tracking_uri
from tasks.reachable import TrackingError, answers, first_line
from tasks.spool import FULL, append, may_pass, send_run, spool_file, waiting
from tasks.spooled import Record, kept_copy, send

log = logging.getLogger(__name__)

FRESH_S = 5.0  # who answered so recently is not asked whether it is there; who did not is left alone as long


class Outbox:
    """What one run logs: it goes to MLflow at once, or waits in the run's spool until MLflow answers.

    Logging never fails and hardly waits because MLflow is away; it does fail where the disk takes no spool.
    """

    def __init__(self, client: MlflowClient, home: Home, run_id: str) -> None:
        self._client, self._home, self._run_id = plain(client), home, run_id
        self._spool = spool_file(home, run_id)
        self._one = threading.Lock()  # samples of the machine come from a thread of their own
        self._asked, self._there = -FRESH_S, True

    def put(self, record: Mapping[str, Any], *, insist: bool = False) -> None:
        """Send a record after all that wait, or let it wait with them.

        Args:
            record: see `tasks.spooled`.
            insist: ask even an MLflow that did not answer a moment ago.

        Raises:
            MlflowException: MLflow refuses the record.
            OSError: the spool cannot be written.
        """
        with self._one:
            if self._is_there(insist) and (
                not self._spool.exists() or send_run(self._client, self._home, self._run_id)
            ):
                try:
                    send(self._client, self._run_id, record, self._home.spool / self._run_id)
                except Exception as error:
                    if FULL in str(error):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._home.mlflow_db)) from None
                    if not may_pass(error):
                        raise
                    self._lost(first_line(error))
                else:
                    self._asked, self._there = time.monotonic(), True
                    return
            append(self._home, self._run_id, kept_copy(record, self._home.spool / self._run_id))

    def waiting(self) -> list[Record]:
        """The records that wait."""
        with self._one:
            return waiting(self._home, self._run_id)

    def _is_there(self, insist: bool) -> bool:
        now = time.monotonic()
        if now - self._asked < FRESH_S and not insist:
            return self._there
        was, self._asked = self._there, now
        try:
            self._there = answers(tracking_uri(self._home))
        except TrackingError as error:  # the database was damaged meanwhile
            self._lost(str(error))
            return False
        if was and not self._there:
            self._lost("nothing answers")
        return self._there

    def _lost(self, why: str) -> None:
        # Once in an outage: nothing waits before its first record.
        if not self._spool.exists():
            log.warning(
                "MLflow at %s is away (%s): what the run logs waits in %s/%s and is sent when it answers",
                shown_uri(self._home),
                why,
                self._home.spool.name,
                self._spool.name,
            )
        self._asked, self._there = time.monotonic(), False
