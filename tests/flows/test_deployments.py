"""prefect.yaml: all of it can be called, and every form in the UI says what its fields mean."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect import Flow
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools import is_valid_schema, validate

from flows.prefect_api import CPU_QUEUE, POOL
from flows.revive import run_again_later
from flows.up import DEPLOYMENT

PROJECT = Path(__file__).parents[2]
PLAN = yaml.safe_load((PROJECT / "prefect.yaml").read_text())
DEPLOYMENTS = {deployment["name"]: deployment for deployment in PLAN["deployments"]}
# What a form must be given besides what the deployment has.
GIVEN = {
    "prepare": {"luna_dir": "/data/LUNA16", "download": {}},
    "train-segmentation": {"luna_dir": "/data/LUNA16"},
    "train-classification": {"luna_dir": "/data/LUNA16", "segmentation": "models:/m-1"},
    "train-malignancy": {"luna_dir": "/data/LUNA16", "nodule": "models:/m-1"},
    "evaluate": {"luna_dir": "/data/LUNA16"},
    "read": {"scans": ["/data/scan.mhd"], "out": "/data/out"},
}


def flow_of(name: str) -> Flow[Any, Any]:
    module, _, function = DEPLOYMENTS[name]["entrypoint"].rpartition(".")
    found = getattr(import_module(module), function)
    assert isinstance(found, Flow)
    return found


def test_all_that_shall_be_deployed_is() -> None:
    stages = ("segmentation", "classification", "malignancy")
    assert set(DEPLOYMENTS) == {"end-to-end", "prepare", *(f"train-{stage}" for stage in stages), "evaluate", "read"}
    assert [DEPLOYMENTS[f"train-{stage}"]["parameters"]["stage"] for stage in stages] == list(stages)
    assert DEPLOYMENT == "luna/end-to-end"


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_a_deployment_is_whole(name: str) -> None:
    deployment = DEPLOYMENTS[name]
    assert ":" not in deployment["entrypoint"]  # a file would be imported as a second copy of the module
    assert flow_of(name).name == "luna"
    assert deployment["description"]
    assert deployment["tags"] == ["luna"]
    assert deployment["work_pool"] == {"name": POOL, "work_queue_name": CPU_QUEUE}


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_what_may_pass_is_tried_again_and_what_a_person_can_mend_is_said(name: str) -> None:
    assert run_again_later in flow_of(name).on_failure_hooks
    assert flow_of(name).fn.__wrapped__  # by `watched`


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_a_deployment_is_of_the_packages_version(name: str) -> None:
    project = (PROJECT / "pyproject.toml").read_text()
    assert f'\nversion = "{DEPLOYMENTS[name]["version"]}"\n' in project


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_every_field_of_the_form_says_what_it_means(name: str) -> None:
    schema = parameter_schema(flow_of(name)).model_dump()
    is_valid_schema(schema)  # raises where it is none
    silent = [field for field, says in schema["properties"].items() if not says.get("description")]
    assert not silent
    elsewhere = [field for field, says in schema["properties"].items() if "as of `" in says["description"]]
    assert not elsewhere  # a form has no other page to look at


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_the_parameters_fit_the_form_and_the_flow(name: str) -> None:
    found, deployment = flow_of(name), DEPLOYMENTS[name]
    schema = parameter_schema(found).model_dump()
    for schedule in deployment.get("schedules", [{}]):
        parameters = {**deployment["parameters"], **schedule.get("parameters", {}), **GIVEN.get(name, {})}
        assert not validate(parameters, schema, raise_on_error=False)
        found.validate_parameters(parameters)
        assert validate({**parameters, "no_such": 1}, {**schema, "additionalProperties": False})


def test_only_one_retraining_at_a_time_and_it_trains() -> None:
    weekly = DEPLOYMENTS["end-to-end"]
    assert weekly["concurrency_limit"] == {"limit": 1, "collision_strategy": "ENQUEUE"}
    (schedule,) = weekly["schedules"]
    assert schedule["cron"] == "0 3 * * 0"
    assert schedule["active"]
    assert weekly["parameters"]["fresh"]
    assert "fresh" not in schedule["parameters"]
