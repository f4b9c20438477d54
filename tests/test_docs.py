"""The documentation: whatever can be set, asked or typed is in it, with the right default."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa
import typer
from pydantic.fields import FieldInfo
from sqlalchemy.engine import make_url
from support import ROOT
from support.urls import text

import fwdb
from fwdb import cli, config, errors, migrating
from fwdb.audit import Audit
from fwdb.reports import NAMES, known_parameters
from fwdb.stores import PostgresStore

DOCS = sorted((ROOT / "docs").glob("*.md"))
CODE = re.DOTALL | re.MULTILINE
EVERYTHING = "\n".join(page.read_text() for page in [ROOT / "README.md", *DOCS])


# Every setting; the thresholds are a group of their own.
FIELDS: dict[str, FieldInfo] = {
    name: field
    for model in (config.Settings, config.Thresholds)
    for name, field in model.model_fields.items()
    if name != "thresholds"
}


def is_error(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, errors.FwdbError)


def rows(text: str) -> dict[str, list[str]]:
    """The rows of all tables in `text`, by the word in code style of their first cell."""
    found = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("| `") and (name := re.match(r"`([^`]+)`", cells[0])):
            found[name[1]] = cells
    return found


def agree(shown: str, default: object) -> bool:
    """Whether the `shown` default of a table is `default`."""
    if default is None:
        return shown.startswith(("none", ".fwdb"))
    if isinstance(default, bool):
        return shown == str(default).lower()
    return shown == default if isinstance(default, str) else float(shown) == default


def test_every_setting_is_documented_with_its_default():
    """docs/configuration.md has a row for each variable."""
    known = rows((ROOT / "docs/configuration.md").read_text())
    for name, field in FIELDS.items():
        assert agree(known[f"FWDB_{name.upper()}"][1].strip("`"), field.default), name


def test_no_variable_is_documented_that_does_not_exist():
    """A name that nothing reads would be typed in vain."""
    known = {f"FWDB_{name.upper()}" for name in FIELDS}
    code = "".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    for variable in set(re.findall(r"FWDB_[A-Z0-9_]+\b", EVERYTHING)):
        if re.fullmatch(r"FWDB_\w+_(POSTGRES|MONGODB)_URL", variable):
            continue  # of a profile, or of the tests
        assert variable in known or (variable.startswith("FWDB_TEST") and variable in code)


@pytest.mark.parametrize("report", NAMES)
def test_every_report_parameter_is_documented_with_its_default(report):
    """docs/reports.md says what the report itself declares."""
    text = (ROOT / "docs/reports.md").read_text()
    known = rows(text.partition(f"\n### {report}\n")[2].partition("\n#")[0])
    parameters = known_parameters(report)

    assert set(known) == set(parameters)
    for name, parameter in parameters.items():
        assert agree(known[name][1].strip("`"), parameter.default), name
        if parameter.low is not None:
            assert f"{parameter.low:g} to {parameter.high:.0f}" in known[name][2]
        for choice in parameter.choices:
            assert f"`{choice}`" in known[name][2]


def test_every_public_name_is_documented():
    """What `import fwdb` offers can be looked up, each error and each command too."""
    for name in [*fwdb.__all__, *(name for name, kind in vars(errors).items() if is_error(kind))]:
        assert re.search(rf"`[^`\n]*\b{name}\b[^`\n]*`", EVERYTHING), name
    for command in commands():
        assert re.search(rf"\bfwdb (--profile \w+ )?{command}\b", EVERYTHING), command


def commands() -> list[str]:
    """All commands as they are typed: ``up``, ``audit retain``, …"""

    def walk(app: typer.Typer, before: str) -> Iterator[str]:
        for command in app.registered_commands:
            assert command.callback is not None
            yield f"{before}{command.name or command.callback.__name__.replace('_', '-')}"
        for group in app.registered_groups:
            assert group.typer_instance is not None
            yield from walk(group.typer_instance, f"{before}{group.name} ")

    return sorted(walk(cli.app, ""))


def test_every_command_in_the_documentation_exists():
    """A renamed command does not live on in the text."""
    known = {command.split()[0] for command in commands()}
    shown = re.findall(r"^```\w*\n(.*?)^```|^( {4}.*?)$|`(fwdb [^`]+)`", EVERYTHING, CODE)
    code = "\n".join(part for parts in shown for part in parts)
    typed = re.findall(r"^\s*(?:\$ )?fwdb (?:--profile \w+ )?([a-z]\w*)", code, re.MULTILINE)

    assert typed
    assert set(typed) <= known


def test_no_link_in_the_documentation_is_broken():
    """Pages and headings that are pointed at are there."""
    for page in [ROOT / "README.md", *DOCS]:
        for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
            if target.startswith(("http:", "https:")):
                continue
            path, _, heading = target.partition("#")
            linked = (page.parent / path) if path else page
            assert linked.exists(), f"{page.name}: {target}"
            if heading:
                titles = re.findall(r"^#+ (.+)$", linked.read_text(), re.MULTILINE)
                slugs = {re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles}
                assert heading in slugs, f"{page.name}: {target}"


def test_the_documented_grants_are_enough_and_not_more(postgres_database: Callable[..., str]):
    """Each role of docs/real-servers.md can do what it is for; that for reports only reads."""
    url = make_url(postgres_database())
    page = (ROOT / "docs/real-servers.md").read_text()
    grants = re.findall(r"```sql\n(.*?)```", page, re.DOTALL)[0]
    suffix = f"_{url.database}"
    for role in ("fashion_owner", "fashion_app", "fashion_report"):
        grants = re.sub(rf"\b{role}\b", role + suffix, grants)
    grants = grants.replace("fashion_wallet", str(url.database))
    admin = PostgresStore(text(url))
    admin.execute(sa.text(grants))
    owner, app, report = (
        PostgresStore(text(url.set(username=f"fashion_{role}{suffix}", password="change me")))
        for role in ("owner", "app", "report")
    )
    try:
        migrating.migrate(owner, None)
        id = "0190a1b2-c3d4-7e5f-8a6b-7c8d9e0f1a2b"
        Audit(app).log_create("Avatar", id, {"name": "x"})
        app.execute(
            sa.text("INSERT INTO monitoring.readings (kind, process) VALUES ('light', 'x')")
        )
        assert len(Audit(report).history("Avatar", id)) == 1
        assert Audit(owner).retain().removed == 0
        with pytest.raises(errors.PermissionDenied):
            Audit(report).log_read("Avatar", id)
        with pytest.raises(errors.PermissionDenied):
            Audit(report).retain()
        with pytest.raises(errors.PermissionDenied):
            app.execute(sa.text("DROP TABLE audit.audit_logs"))
    finally:
        for store in (owner, app, report):
            store.close()
        for role in ("fashion_report", "fashion_app", "fashion_owner"):
            admin.execute(
                sa.text(f"DROP OWNED BY {role}{suffix} CASCADE; DROP ROLE {role}{suffix}")
            )
        admin.close()
