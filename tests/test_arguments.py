"""Every public call refuses what it cannot use by a sentence, whoever added it and when."""

from __future__ import annotations

import inspect
import timeit
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import date, datetime
from itertools import islice
from pathlib import Path
from types import FunctionType
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pandas as pd
import pytest

import fwdb
from fwdb import charts, errors
from fwdb.arguments import Count, checks_arguments
from fwdb.database import Database

PASSWORD = "hunter2"
HOSTILE = [
    None, 2, -1, 10**400, 2**64, True, float("nan"), float("inf"), "x", "", "x" * 10_000, "\ud800",
    f"postgresql://ana:{PASSWORD}@db/x", b"x", {}, {"$gt": 1}, [], [[]], object(),
    datetime(2026, 1, 1), pd.NaT,
]  # fmt: skip
NO_USE = [object(), b"x", 1j, [object()]]  # of no use to any call
# These wait, serve, start servers or remove everything, and get nothing that they would accept.
ONLY_REFUSALS = {
    "clear_all", "close", "follow", "following", "hang_up", "report", "run", "run_sealer",
    "sampling", "serve",
}  # fmt: skip


def usable(db: Database, folder: Path) -> dict[str, Any]:
    """A value that fits, by the name of the parameter; anything else takes text."""
    return {
        "database": "postgres", "entity_type": "User", "event": str(uuid4()), "field": "email",
        "id": db.users.first().id, "month": "2026-01", "new": {}, "old": {}, "path": folder / "out",
        "rows": [], "since": "1h", "sql": "SELECT 1", "user_id": str(uuid4()),
        "postgres_url": "postgresql://127.0.0.1:1/none",
        "mongodb_url": "mongodb://127.0.0.1:1/none",
    }  # fmt: skip


def methods(subject: object) -> Iterator[tuple[str, Callable[..., Any]]]:
    """The public methods of an object, bound."""
    for name in dir(type(subject)):
        found = inspect.getattr_static(type(subject), name)
        if isinstance(found, FunctionType) and not name.startswith("_"):
            yield f"{type(subject).__name__}.{name}", getattr(subject, name)


def functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    for module in (fwdb, charts):
        for name in module.__all__:
            if isinstance(found := getattr(module, name), FunctionType):
                yield name, found


def calls(
    function: Callable[..., Any], usable: dict[str, Any], hostile: list[object]
) -> Iterator[dict[str, Any]]:
    """Arguments for `function`, one of them hostile."""
    parameters = inspect.signature(function).parameters.values()
    required = [p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    needed = {name: usable.get(name, "x") for name in required}
    if any(p.name == "live_seconds" for p in parameters):
        needed["live_seconds"] = 0.01
    for parameter in parameters:
        names = [parameter.name]
        if parameter.kind is parameter.VAR_KEYWORD:
            names = ["name", "id", "created_at__ge", "version__in", "since", "zzz"]
        for name in names:
            for value in hostile:
                yield {**needed, name: value}
    yield {**needed, "zzz": 1}
    for name in required:
        yield {n: v for n, v in needed.items() if n != name}


def use(function: Callable[..., Any], arguments: dict[str, Any]) -> None:
    """Call, and do what one does with the answer."""
    by_place = [
        arguments.pop(p.name)
        for p in inspect.signature(function).parameters.values()
        if p.kind is p.POSITIONAL_ONLY and p.name in arguments
    ]
    found = function(*by_place, **arguments)
    if isinstance(found, AbstractContextManager) and not isinstance(found, Path):
        with found:
            pass
    elif inspect.isgenerator(found):
        list(islice(found, 3))


def test_every_public_call_refuses_hostile_arguments_by_a_sentence(db, tmp_path, monkeypatch):
    """Works, or raises FwdbError without the password; the walk finds what is added later."""
    monkeypatch.chdir(tmp_path)
    fits = usable(db, tmp_path)
    subjects = [
        db, db.users, db.audit_logs, db.designs, db.audit, db.monitor, db.metrics, db.seeder
    ]  # fmt: skip
    wrong, count = [], 0
    for name, function in [*functions(), *(pair for one in subjects for pair in methods(one))]:
        only_refusals = function.__name__ in ONLY_REFUSALS or "charts" in function.__module__
        for arguments in calls(function, fits, NO_USE if only_refusals else HOSTILE):
            count += 1
            try:
                use(function, dict(arguments))
                problem = ""
            except errors.FwdbError as error:
                problem = str(error) if PASSWORD in str(error) or len(str(error)) > 1000 else ""
            except Exception as error:  # noqa: BLE001 - what this test is about
                problem = repr(error)
            if problem:
                shown = {n: v if len(repr(v)) < 60 else type(v) for n, v in arguments.items()}
                wrong.append(f"{name}({shown}): {problem[:200]}")
    assert count > 10_000
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda db: db.users.find(sort=5), "find(): 'sort' is 5; give text."),
        (lambda db: db.users.find(rol="x"), "no field 'rol' in users; did you mean 'role'"),
        (lambda db: db.audit.who_changed({}), "who_changed(): 'field' is a dict; give text."),
        (lambda db: db.audit.recent(limt=5), "no argument 'limt' in recent(); did you mean 'limit"),
        (lambda db: db.audit.recent(1, 2), "recent() takes 1 argument by position, not 2"),
        (lambda db: db.audit.history("User"), "history() needs 'id'; give a UUID or the 24"),
        (lambda db: db.monitor.slow_queries(min_ms="x"), "'min_ms' is 'x'; give a number."),
        (lambda db: db.monitor.slow_queries(order="totl"), "no order 'totl'; did you mean 'total'"),
        (lambda db: db.metrics.serve(port="80"), "'80'; give a whole number from 0 to 65,535."),
        (lambda db: fwdb.connect(role="admin"), "no role 'admin'; choose from app, owner, report."),
        (lambda db: db.audit.seal_file(f"mongodb://a:{PASSWORD}@h"), "'mongodb://a:***@h'; give"),
    ],
)  # fmt: skip
def test_a_refusal_says_what_was_given_and_what_is_wanted(module_db, call, sentence):
    """The call, the argument, the value, the remedy."""
    with pytest.raises(errors.ParameterError) as refusal:
        call(module_db)

    assert sentence in str(refusal.value)


def test_values_of_other_libraries_are_taken_for_what_they_are(module_db):
    """A number of numpy is a number, a time of pandas a time, a column a list."""
    users = module_db.users.frame()

    assert len(module_db.users.find(limit=np.int64(2))) == 2
    assert module_db.users.get(UUID(users["id"][0])).id == users["id"][0]
    module_db.audit.search(
        since=pd.Timestamp("2026-01-01", tz="UTC"), users=users["id"], limit=np.uint8(3)
    )
    module_db.monitor.slow_queries(date(2026, 1, 1), min_ms=np.float32(5))
    assert module_db.users.page(size=users.shape[0], sort=np.str_("email")).total == len(users)


def test_checking_keeps_the_signature_and_costs_little():
    """For help() and type checkers; a call that does nothing takes a few microseconds more."""

    def ask(since: str = "7d", *, top: Count | None = 10, kind: str = "a") -> str:
        """About it."""
        return f"{since} {top} {kind}"

    checking = checks_arguments(ask)

    assert inspect.signature(checking) == inspect.signature(ask)
    assert (checking.__doc__, checking("1h", top=3)) == ("About it.", "1h 3 a")
    rounds = 20_000
    best = min(timeit.repeat(lambda: checking("1h", top=3), number=rounds, repeat=5)) / rounds
    assert best < 50e-6  # 2 µs on an idle machine
