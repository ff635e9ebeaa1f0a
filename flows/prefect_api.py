"""What do the services ask of a Prefect server, their own or somebody else's?"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import httpx

POOL = "luna"
FLOW = "luna"  # the name that every flow function carries
CPU_QUEUE, GPU_QUEUE = "default", "gpu"
TIMEOUT_S = 20.0  # a server whose database is busy
PAGE = 200  # as many as a server gives at once


@dataclass(frozen=True)
class PrefectApi:
    """A Prefect server's API; everything raises `httpx.HTTPError` where it does not answer, or answers no.

    Attributes:
        url: such as http://127.0.0.1:4200/api.
        headers: that say who asks, where the server wants to know.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def at(cls, url: str) -> PrefectApi:
        """The server at a URL, asked with the key or password that Prefect's own settings hold."""
        api = _settings()
        headers = {}
        if api.key:
            headers["Authorization"] = f"Bearer {api.key.get_secret_value()}"
        elif api.auth_string:
            headers["Authorization"] = f"Basic {b64encode(api.auth_string.get_secret_value().encode()).decode()}"
        return cls(url.rstrip("/"), headers)

    @classmethod
    def configured(cls) -> PrefectApi | None:
        """The server that Prefect's own settings name; None where they name none."""
        url = _settings().url
        return cls.at(url) if url else None

    def get(self, path: str, **query: str) -> Any:
        """What GET answers."""
        answer = httpx.get(f"{self.url}/{path}", params=query, headers=dict(self.headers), timeout=TIMEOUT_S)
        return answer.raise_for_status().json()

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """What POST answers."""
        answer = httpx.post(f"{self.url}/{path}", json=body, headers=dict(self.headers), timeout=TIMEOUT_S)
        return answer.raise_for_status().json()

    def create(self, path: str, body: Mapping[str, Any]) -> None:
        """POST something that may be there already, which then keeps the settings somebody gave it."""
        try:
            self.post(path, body)
        except httpx.HTTPStatusError as error:
            if error.response.status_code != httpx.codes.CONFLICT:
                raise

    def runs(self, flow_runs: Mapping[str, Any], **more: Any) -> list[dict[str, Any]]:
        """Flow runs; `flow_runs` and `more` are filters of the API."""
        body = {"flow_runs": flow_runs, "limit": PAGE, **more}
        return list(self.post("flow_runs/filter", body))

    def states(self, run_id: str) -> list[dict[str, Any]]:
        """All states that a flow run has been in."""
        return list(self.get("flow_run_states/", flow_run_id=run_id))

    def set_state(self, run_id: str, kind: str, name: str, message: str, *, at: datetime | None = None) -> None:
        """Put a flow run into a state, whatever the rules say.

        Args:
            run_id: of the flow run.
            kind: SCHEDULED, CRASHED, CANCELLED, ...
            name: as people see it.
            message: why.
            at: when a scheduled one shall begin.
        """
        state: dict[str, Any] = {"type": kind, "name": name, "message": message}
        if at is not None:
            state["state_details"] = {"scheduled_time": at.isoformat()}
        self.post(f"flow_runs/{run_id}/set_state", {"state": state, "force": True})

    def workers(self) -> list[dict[str, Any]]:
        """The workers of our pool."""
        return list(self.post(f"work_pools/{POOL}/workers/filter", {}))

    def is_online(self, worker: str) -> bool:
        """Whether a worker of our pool has reported to the server lately."""
        try:
            return any((one["name"], one["status"]) == (worker, "ONLINE") for one in self.workers())
        except httpx.HTTPError:
            return False


def _settings() -> Any:
    from prefect.context import refresh_global_settings_context  # takes seconds
    from prefect.settings import get_current_settings

    refresh_global_settings_context()
    return get_current_settings().api
