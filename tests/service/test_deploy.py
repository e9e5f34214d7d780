"""deploy/: what the dashboard and the alert rules name exists on the page of a live server, and parses."""

from __future__ import annotations

import itertools
import json
import re
import runpy
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from service_faults import break_channel, copy_version
from service_runs import ROOT, running

from service.settings import Settings

DASHBOARD = ROOT / "deploy" / "grafana-dashboard.json"
ALERTS = ROOT / "deploy" / "alerts.yml"
CASES = ROOT / "tests" / "service" / "alert_cases.yml"
BY_PROMETHEUS = {"job", "instance"}  # labels that it adds to every sample it scrapes
VARIABLES = {"$__rate_interval": "5m", "$job": "b", "$model": "m"}

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool comes with Prometheus")


def dashboard() -> dict[str, Any]:
    return json.loads(DASHBOARD.read_text(encoding="utf-8"))


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    return group["rules"]


def expressions() -> dict[str, str]:
    """Every expression by where it stands, variables of Grafana filled in; those of its variables too."""
    found = {rule["alert"]: rule["expr"] for rule in rules()}
    for panel in panels():
        for target in panel["targets"]:
            found[f"{panel['title']} {target['refId']}"] = target["expr"]
    for variable, value in VARIABLES.items():
        found = {where: expression.replace(variable, value) for where, expression in found.items()}
    return found


@pytest.fixture(scope="module")
def labels(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Labels by name of the sample, from a server on which everything has happened that has a metric."""
    root = tmp_path_factory.mktemp("deploy")
    copy_version(repository / "digits" / "1", root / "digits" / "1")
    break_channel(copy_version(repository / "digits" / "1", root / "digits" / "2"))
    with running(Settings(repository=root, device="cpu", port=0)) as server:
        body = {"instances": [[0.5] * 64]}
        assert httpx.post(f"{server.url}/predict", json=body).status_code == 200
        assert httpx.post(f"{server.url}/predict", json={}).status_code == 400
        page = httpx.get(f"{server.url}/metrics").text
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def named(expression: str) -> Iterator[tuple[str, set[str]]]:
    """Each metric of an expression with the labels that its own matchers name."""
    for match in re.finditer(r"(bnfold_\w+)(?:\{([^}]*)\})?", expression):
        yield match[1], set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", match[2] or ""))


def unknown(expression: str, labels: dict[str, set[str]]) -> set[str]:
    """What an expression names that the page does not have."""
    missing, known = set(), set(BY_PROMETHEUS)
    for metric, matched in named(expression):
        missing |= {metric} - set(labels)
        known |= labels.get(metric, set())
        missing |= matched - labels.get(metric, set()) - BY_PROMETHEUS
    grouped = {name.strip() for group in re.findall(r"by \(([^)]*)\)", expression) for name in group.split(",")}
    return missing | (grouped - known)


@pytest.mark.parametrize("where", expressions())
def test_every_metric_and_label_of_an_expression_is_on_the_page(where: str, labels: dict[str, set[str]]):
    expression = expressions()[where]
    assert list(named(expression))
    assert unknown(expression, labels) == set()


@pytest.mark.parametrize(
    "wrong",
    [
        "bnfold_inference_requests_total", 'bnfold_model_ready{version="1"}', "sum by (worker) (bnfold_model_ready)",
        "bnfold_inference_queue_duration_seconds",
    ],
)  # fmt: skip
def test_the_check_sees_what_is_not_there(wrong: str, labels: dict[str, set[str]]):
    assert unknown(wrong, labels)


def test_legends_and_texts_name_labels_of_their_metrics(labels: dict[str, set[str]]):
    texts = [(target["expr"], target["legendFormat"]) for panel in panels() for target in panel["targets"]]
    texts += [(rule["expr"], json.dumps(rule["annotations"])) for rule in rules()]
    for expression, text in texts:
        known = set().union(*(labels[metric] for metric, _ in named(expression))) | BY_PROMETHEUS
        used = re.findall(r"\{\{\s*(\w+)\s*\}\}|\$labels\.(\w+)", text)
        assert {one or other for one, other in used} <= known, text


def test_every_metric_of_ours_but_created_times_is_watched(labels: dict[str, set[str]]):
    """What nobody looks at need not be there: each family is in the dashboard."""
    used = {metric for panel in panels() for target in panel["targets"] for metric, _ in named(target["expr"])}
    ours = {re.sub(r"_(bucket|sum|count)$", "", name) for name in labels if name.startswith("bnfold_")}
    assert {name for name in ours if not any(each.startswith(name) for each in used)} == set()


def test_the_dashboard_is_what_its_script_writes_and_asks_one_source():
    script = runpy.run_path(str(ROOT / "scripts" / "write_dashboard.py"))
    assert DASHBOARD.read_text(encoding="utf-8") == script["render"](), "say `make docs`"
    found = dashboard()
    assert [variable["name"] for variable in found["templating"]["list"]] == ["datasource", "job", "model"]
    sources = [panel["datasource"] for panel in panels()]
    sources += [target["datasource"] for panel in panels() for target in panel["targets"]]
    assert {source["uid"] for source in sources} == {"${datasource}"}


def test_the_panels_do_not_lie_on_one_another():
    found = dashboard()["panels"]
    assert len({panel["id"] for panel in found}) == len(found)
    for one, other in itertools.combinations([panel["gridPos"] for panel in found], 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart, (one, other)


def test_every_alert_says_how_bad_it_is_and_what_to_look_at():
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)
    for rule in rules():
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert set(rule["annotations"]) == {"summary", "description"}


@pytest.mark.parametrize("where", expressions())
def test_brackets_of_an_expression_are_closed(where: str):
    open_ones = []
    pairs = {")": "(", "}": "{", "]": "["}
    for sign in re.sub(r'"[^"]*"', "", expressions()[where]):
        if sign in "({[":
            open_ones.append(sign)
        elif sign in pairs:
            assert open_ones
            assert open_ones.pop() == pairs[sign]
    assert not open_ones


@needs_promtool
def test_promtool_takes_every_expression(tmp_path: Path):
    recorded = [{"record": f"check:{at}", "expr": each} for at, each in enumerate(expressions().values())]
    path = tmp_path / "rules.yml"
    path.write_text(json.dumps({"groups": [{"name": "check", "rules": recorded}]}))
    for file in (path, ALERTS):
        done = subprocess.run(["promtool", "check", "rules", str(file)], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_alerts_fire_when_they_should_and_not_otherwise():
    done = subprocess.run(["promtool", "test", "rules", str(CASES)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_cases_know_every_alert():
    assert set(re.findall(r"Bnfold\w+", CASES.read_text())) == {rule["alert"] for rule in rules()}
