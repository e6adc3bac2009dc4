"""The format of a view is that of the installed MLflow: its UI's JavaScript has all its names."""

import base64
import json
import zlib
from functools import cache
from pathlib import Path

import mlflow
import pytest

from vamf.compat import mlflow as compat
from vamf.compat import mlflow_view as view

STATE = view.state(
    parent="a1",
    order_by="eval/d",
    columns=[("METRIC", "eval/d"), ("PARAM", "beta.value")],
    sections={
        "One": [
            view.parallel("p", ["beta.value"], ["eval/v", "eval/d"]),
            view.scatter("s", ("PARAM", "beta.value"), ("METRIC", "eval/d")),
        ],
        "Two": [view.curves("c", "loss/train"), view.pictures("i", "samples", 80)],
    },
    heights={"Two": 500},
    closed=["eval"],
)


@cache
def scripts() -> str:
    files = (Path(mlflow.__file__).parent / "server/js/build").rglob("*.js")
    return "\n".join(file.read_text(encoding="utf-8", errors="replace") for file in files)


@pytest.mark.parametrize(
    ("version", "known"),
    [("3.17.0", True), ("3.17.2", True), ("3.16.4", False), ("3.170.0", False), ("", False)],
)
def test_views_are_made_for_versions_whose_format_is_known(version: str, known: bool) -> None:
    assert view.known(version) == known


def test_the_installed_version_is_a_known_one() -> None:
    assert view.known(mlflow.__version__)


def test_the_ui_knows_every_name_of_a_state() -> None:
    cards, sections = STATE["compareRunCharts"], STATE["compareRunSections"]
    names = {*STATE, *sections[0], *(name for card in cards for name in card)}
    values = {*(card["type"] for card in cards), STATE["runsHiddenMode"], STATE["startTime"]}
    values |= {STATE["lifecycleFilter"], STATE["modelVersionFilter"], view.TAG, view.COMPRESSED}
    queries = {"workflowType", "machine_learning", "compareRunsMode", "viewStateShareKey"}
    missing = {name for name in names | values | queries if name not in scripts()}
    assert missing == set()


def test_the_ui_takes_these_fields_from_a_view() -> None:
    read = scripts()[: scripts().index('"useGroupedValuesInCharts","hideEmptyCharts"')]
    fields = read[read.rindex("[") :]
    taken = {"selectedColumns", "runsHiddenMode", "compareRunCharts", "compareRunSections"}
    assert {name for name in taken | {"isAccordionReordered"} if f'"{name}"' not in fields} == set()


def test_a_view_is_packed_as_the_ui_unpacks_it() -> None:
    tag = json.loads(view.encoded("s", STATE, 17))
    assert (tag["name"], tag["createdAt"], tag["updatedAt"]) == ("s", 17, 17)
    packed = tag["state"].removeprefix("deflate;")
    assert packed != tag["state"]
    assert json.loads(zlib.decompress(base64.b64decode(packed))) == STATE
    assert view.decoded(json.dumps(tag)) == ("s", STATE)


def test_charts_are_in_their_sections() -> None:
    names = {section["uuid"]: section["name"] for section in STATE["compareRunSections"]}
    shown = [(names[c["metricSectionId"]], c["type"]) for c in STATE["compareRunCharts"]]
    assert shown == [("One", "PARALLEL"), ("One", "SCATTER"), ("Two", "LINE"), ("Two", "IMAGE")]
    assert [s["display"] for s in STATE["compareRunSections"]] == [True, True, False]
    assert len({card["uuid"] for card in STATE["compareRunCharts"]}) == 4


def test_the_server_still_reads_the_variable_that_turns_its_jobs_off() -> None:
    name, value = compat.WITHOUT_JOBS.split("=")
    from mlflow.environment_variables import MLFLOW_SERVER_ENABLE_JOB_EXECUTION as VARIABLE

    assert (VARIABLE.name, value) == (name, "false")
