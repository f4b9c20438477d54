"""The alert rules, by promtool: each fires over its line, after its time, and not below."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import ROOT
from support.alert_cases import CASES, Case, Series
from support.promql import selectors, series

from fwdb.metrics import rules

RULES = rules()
DOCS = ROOT / "docs"
ALERTS = [
    rule for group in yaml.safe_load(RULES)["groups"] for rule in group["rules"] if "alert" in rule
]
OF_RATES = {"SlowQueries", "DatabaseQueryErrors", "LowCacheHitRatio"}
RATES = [case for case in CASES if case.alert in OF_RATES]
IDS = [f"{case.alert}-{case.severity}" for case in CASES]

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="no promtool: install Debian's prometheus"
)


def moment(case: Case, at: int, *, firing: bool) -> dict[str, Any]:
    """What promtool is to find at `at` seconds."""
    rule = next(rule for rule in ALERTS if rule_id(rule) == f"{case.alert}-{case.severity}")
    expected = {
        "exp_labels": case.labels | {"severity": case.severity},
        "exp_annotations": {name: filled(text, case) for name, text in rule["annotations"].items()},
    }
    return {"eval_time": f"{at}s", "alertname": case.alert, "exp_alerts": [expected] * firing}


def filled(text: str, case: Case) -> str:
    """`text` with the labels and the value of the case in their places."""
    text = re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda found: case.labels[found[1]], text)
    return re.sub(r"\{\{ \$value[^}]*\}\}", case.value, text)


def group(case: Case, given: Series, moments: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "interval": f"{case.step_seconds}s",
        "input_series": [{"series": name, "values": values} for name, values in given.items()],
        "alert_rule_test": moments,
    }


def groups(case: Case) -> Iterator[dict[str, Any]]:
    """The tests of one alert."""
    moments = [moment(case, case.fires_at, firing=True)]
    moments.insert(0, moment(case, case.fires_at - case.step_seconds, firing=False))
    if case.still_at is not None and case.gone_at is not None:
        moments.append(moment(case, case.still_at, firing=True))
        moments.append(moment(case, case.gone_at, firing=False))
    yield group(case, case.fires, moments)
    for quiet in case.quiet:
        yield group(case, quiet, [moment(case, case.quiet_at, firing=False)])


def promtool(
    folder: Path, text: str, tests: list[dict[str, Any]]
) -> subprocess.CompletedProcess[str]:
    """Runs the unit tests `tests` on the rules `text`. Rules are evaluated as often as sampled."""
    folder.mkdir(exist_ok=True)
    (folder / "rules.yml").write_text(text)
    document = {
        "rule_files": ["rules.yml"],
        "evaluation_interval": tests[0]["interval"],
        "group_eval_order": [g["name"] for g in yaml.safe_load(text)["groups"]],
        "tests": tests,
    }
    (folder / "tests.yml").write_text(yaml.safe_dump(document, sort_keys=False))
    return subprocess.run(
        ["promtool", "test", "rules", "tests.yml"], cwd=folder, capture_output=True, text=True
    )


@needs_promtool
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_an_alert_fires_over_its_line_and_not_below(case, tmp_path):
    """After its time and not a step sooner, with the value in its text; and it ends again."""
    ran = promtool(tmp_path / "case", RULES, list(groups(case)))

    assert ran.returncode == 0, ran.stdout + ran.stderr


@needs_promtool
def test_the_rules_are_well_formed(tmp_path):
    """promtool finds nothing to say, with every lint that it has."""
    (tmp_path / "rules.yml").write_text(RULES)
    ran = subprocess.run(
        ["promtool", "check", "rules", "--lint=all", "--lint-fatal", "rules.yml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )

    assert ran.returncode == 0, ran.stdout + ran.stderr


def mutants() -> Iterator[tuple[str, str, str]]:
    """Rules with one thing changed in one alert: a figure, its direction, its time, its severity.

    Alert and severity, what was changed, and the whole rule file with it.
    """
    document = yaml.safe_load(RULES)
    for part in document["groups"]:
        for rule in part["rules"]:
            kept = dict(rule)
            for key, changed in changes(rule):
                rule[key] = changed
                yield rule_id(kept), f"{key}: {changed}", yaml.safe_dump(document, sort_keys=False)
                rule.clear()
                rule.update(kept)


def rule_id(rule: dict[str, Any]) -> str:
    return rule["record"] if "record" in rule else f"{rule['alert']}-{rule['labels']['severity']}"


def changes(rule: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    expr = rule["expr"]
    # Numbers that stand for themselves, not those in names, ranges and label values.
    for number in re.finditer(r'(?<![\w.\["|\\])\d+(?:\.\d+)?(?![\w\]".|])', expr):
        value = float(number[0])
        for other in (0.9 * value, 1.1 * value) if value > 1 else (abs(value - 1), value + 2):
            yield "expr", f"{expr[: number.start()]}{other:g}{expr[number.end() :]}"
    for found in re.finditer(r" (>=|<=|==|>|<) ", expr):
        other = {">": "<", "<": ">", ">=": "<", "<=": ">", "==": "!="}[found[1]]
        yield "expr", f"{expr[: found.start(1)]}{other}{expr[found.end(1) :]}"
    for span in re.finditer(r"\[(\d+)([md])\]", expr):
        for factor in (2, 3):
            yield "expr", f"{expr[: span.start(1)]}{factor * int(span[1])}{expr[span.end(1) :]}"
    if "labels" in rule:
        severity = {"warning": "critical", "critical": "warning"}[rule["labels"]["severity"]]
        yield "labels", rule["labels"] | {"severity": severity}
    if "for" in rule:
        minutes = int(rule["for"].removesuffix("m"))
        yield "for", f"{30 * minutes}s"
        yield "for", f"{2 * minutes}m"


@needs_promtool
@pytest.mark.heavy
def test_no_change_of_a_rule_goes_unnoticed(tmp_path):
    """Every mutant of every rule fails a test above. In short, every nineteenth."""
    step = 1 if os.environ.get("FWDB_TEST_FULL") else 19
    survivors = []
    for number, (rule, change, text) in enumerate(itertools.islice(mutants(), 0, None, step)):
        alert = rule.partition("-")[0]
        tested = [case for case in CASES if case.alert == alert] or RATES
        ran = (promtool(tmp_path / f"{number}", text, list(groups(case))) for case in tested)
        if all(one.returncode == 0 for one in ran):
            survivors.append(f"{rule}: {change}")

    assert survivors == []


def test_every_alert_is_tested_and_has_a_runbook():
    """Each alert has a case, all its texts, and a section to be read; none is left over."""
    runbooks = (DOCS / "runbooks.md").read_text()
    titles = re.findall(r"^## (\w+)$", runbooks, re.MULTILINE)
    assert sorted(titles) == sorted({rule["alert"] for rule in ALERTS})
    assert set(map(rule_id, ALERTS)) == set(IDS)
    for rule in ALERTS:
        assert set(rule["annotations"]) == {"summary", "description", "runbook"}, rule["alert"]
        assert "$value" in rule["annotations"]["description"], rule["alert"]
        assert rule["annotations"]["runbook"] == f"docs/runbooks.md#{rule['alert'].lower()}"


def test_rules_ask_for_series_that_there_are():
    """A misspelt name or label would be silent for ever."""
    recorded = {rule.get("record") for g in yaml.safe_load(RULES)["groups"] for rule in g["rules"]}
    for part in yaml.safe_load(RULES)["groups"]:
        for rule in part["rules"]:
            for name, labels in selectors(rule["expr"]):
                if name in recorded | {"up"}:
                    continue
                known = {*series(name).labels, "job", "instance", "le"}
                assert set(labels) <= known, rule["expr"]
