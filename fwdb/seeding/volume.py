"""Synthetic volume: users with everything they own, and a year of what they did, as frames."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, time
from typing import Any

import numpy as np
import pandas as pd

from fwdb.errors import ParameterError
from fwdb.models import CATALOG_TYPES, design_document
from fwdb.seeding import history, words
from fwdb.seeding.data import layer
from fwdb.seeding.history import CREATE, DELETE, History
from fwdb.seeding.ids import random_uuids
from fwdb.seeding.population import AVATAR, DESIGN, ITEM, USER, Population, id_stream, populate
from fwdb.seeding.seasons import Year

MAX_SCALE = 1_000_000
MAX_AUDIT_ROWS = 50_000_000
MAX_DESIGNS = 5_000

_PART_USERS = 2_000  # bounds memory: about 200,000 audit rows are held at a time
_ROWS_PER_USER = 100
_DEFAULT_MAX_ROWS = 5_000_000

# The shape of a bcrypt hash, of no known password: nobody can log in to these accounts.
_NO_PASSWORD = "$2b$10$" + "." * 53


@dataclass(frozen=True)
class Plan:
    """What to make; see `Seeder.seed_scale`."""

    scale: int
    seed: int
    audit_rows: int
    until: datetime

    @classmethod
    def of(cls, scale: int, *, seed: int, audit_rows: int | None, until: datetime | None) -> Plan:
        """A plan with the defaults filled in. Raises `ParameterError` for a number out of range."""
        if audit_rows is None:
            audit_rows = min(_ROWS_PER_USER * scale, _DEFAULT_MAX_ROWS)
        if until is None:
            until = datetime.combine(datetime.now(UTC), time(), tzinfo=UTC)
        elif until.tzinfo is None:
            raise ParameterError(
                f"'until' is {until.isoformat()}, without a time zone; add one, such as +00:00.",
                name="until",
            )
        return cls(scale, seed, audit_rows, until.astimezone(UTC))


@dataclass(frozen=True)
class Part:
    """Rows of PostgreSQL as frames, documents of MongoDB as they are."""

    users: pd.DataFrame
    avatars: pd.DataFrame
    catalog_items: pd.DataFrame
    audit_logs: pd.DataFrame
    designs: list[dict[str, Any]]


def first_user_id(seed: int) -> str:
    """The id of the first user that `seed` makes, whatever the scale."""
    return random_uuids(id_stream(seed, 0), 1)[0]


def parts(plan: Plan) -> Iterator[Part]:
    """The rows of `plan`, a few thousand users at a time."""
    year = Year(plan.until, plan.seed)
    designs = min(2 * plan.scale, MAX_DESIGNS)
    for number, begin in enumerate(range(0, plan.scale, _PART_USERS)):
        end = min(begin + _PART_USERS, plan.scale)

        def share(total: int, begin: int = begin, end: int = end) -> int:
            return total * end // plan.scale - total * begin // plan.scale

        yield _part(year, number, begin, end - begin, share(designs), share(plan.audit_rows))


def _part(year: Year, number: int, begin: int, users: int, designs: int, audit_rows: int) -> Part:
    people = populate(year, number, users, designs)
    past = history.happen(year, number, people, audit_rows)
    rng = np.random.default_rng([year.seed, number, 5])
    # What never changes of an entity is drawn once, what changes is taken at birth and at the end.
    draws = [rng.random((count, 4)) for count in people.counts]
    first, last = (
        [
            *_user_states(people, values, draws[USER], begin, year.seed),
            *_avatar_states(people, values, draws[AVATAR]),
            *_item_states(people, values, draws[ITEM]),
            *_design_states(people, values),
        ]
        for values in (people.start, past.final)
    )
    deleted = people.deleted
    snapshots = {
        CREATE: [json.dumps(state) for state in first],
        DELETE: [json.dumps(s) if gone else "" for s, gone in zip(last, deleted, strict=True)],
    }
    times = _lifetimes(year, people, past)
    frames = [_frame(people, kind, last, times) for kind in (USER, AVATAR, ITEM)]
    measured = frames[AVATAR].assign(measurements=_measurements(rng, people.counts[AVATAR]))
    return Part(
        users=frames[USER].assign(password_hash=_NO_PASSWORD),
        avatars=measured,
        catalog_items=frames[ITEM],
        audit_logs=history.audit_frame(year, number, people, past, snapshots),
        designs=_documents(rng, people, past, last, times),
    )


def _user_states(
    people: Population, values: Any, fixed: Any, number: int, seed: int
) -> list[dict[str, Any]]:
    verified, last_name, role = (field.values for field in words.USER_FIELDS)
    states = []
    for i in people.of(USER):
        first = words.FIRST_NAMES[int(fixed[i, 0] * len(words.FIRST_NAMES))]
        maiden = last_name[people.start[i, 1]]
        own = people.role[i]
        states.append(
            {
                "email": f"{first}.{maiden}.{number + i}.{seed}@example.com".lower(),
                "first_name": first,
                "last_name": last_name[values[i, 1]],
                "role": role[values[i, 2]] if own == "user" else own,
                "is_active": True,
                "email_verified": verified[values[i, 0]],
            }
        )
    return states


def _avatar_states(people: Population, values: Any, fixed: Any) -> list[dict[str, Any]]:
    name, customization = (field.values for field in words.AVATAR_FIELDS)
    own = people.of(AVATAR)
    owners = people.owner[own]
    # The avatars of a user stand together; the first is the default.
    defaults = np.concatenate(([True], owners[1:] != owners[:-1]))
    genders = ("female", "male", "unisex")
    # Measurements are personal data and stay out of the trail.
    return [
        {
            "user_id": people.ids[owner],
            "name": name[values[i, 0]],
            "gender": genders[min(2, int(draw * 2.3))],
            "customization": customization[values[i, 1]],
            "is_default": bool(default),
        }
        for i, owner, default, draw in zip(own, owners, defaults, fixed[:, 0], strict=True)
    ]


def _item_states(people: Population, values: Any, fixed: Any) -> list[dict[str, Any]]:
    price, active, properties = (field.values for field in words.ITEM_FIELDS)
    types, categories = CATALOG_TYPES, list(words.GARMENTS)
    states = []
    for i, draw in zip(people.of(ITEM), fixed, strict=True):
        type_ = types[min(2, int(draw[0] * 4))]
        category = categories[int(draw[1] * len(categories))]
        garments = words.GARMENTS[category]
        garment = garments[int(draw[2] * len(garments))]
        mood = words.MOODS[int(draw[3] * len(words.MOODS))]
        noun = {"silhouette": garment, "fabric": f"{garment} Fabric", "pattern": "Pattern"}[type_]
        states.append(
            {
                "name": f"{mood} {noun}",
                "type": type_,
                "category": category,
                "properties": properties[values[i, 2]],
                "is_premium": bool(draw[2] > 0.8),
                "is_active": active[values[i, 1]],
                "price": price[values[i, 0]],
            }
        )
    return states


def _design_states(people: Population, values: Any) -> list[dict[str, Any]]:
    status, name, metadata = (field.values for field in words.DESIGN_FIELDS)
    return [
        {
            "user_id": people.ids[people.owner[i]],
            "name": name[values[i, 1]],
            "status": status[values[i, 0]],
            "metadata": metadata[values[i, 2]],
        }
        for i in people.of(DESIGN)
    ]


def _lifetimes(year: Year, people: Population, past: History) -> pd.DataFrame:
    times = {
        "created_at": year.times(people.born),
        "updated_at": year.times(past.changed),
        "deleted_at": year.times(people.gone),
    }
    frame = pd.DataFrame({n: pd.DatetimeIndex(t).tz_localize("UTC") for n, t in times.items()})
    return frame.assign(deleted_at=frame["deleted_at"].where(people.deleted))


def _frame(
    people: Population, kind: int, states: list[dict[str, Any]], times: pd.DataFrame
) -> pd.DataFrame:
    """The entities of `kind` as their table has them, objects as JSON."""
    own = people.of(kind)
    columns: dict[str, Any] = {"id": [people.ids[i] for i in own]}
    for name in states[own[0]]:
        values = [states[i][name] for i in own]
        nested = isinstance(values[0], dict)
        columns[name] = [json.dumps(value) for value in values] if nested else values
    return pd.DataFrame(columns | {name: times[name].iloc[own].array for name in times})


def _measurements(rng: np.random.Generator, count: int) -> list[str]:
    """Bodies with proportions that go together, in centimetres and kilograms."""
    height = np.clip(rng.normal(171, 9, count), 145, 205)
    build = rng.normal(1, 0.12, count)
    body = {
        "height": height,
        "weight": 22.5 * (height / 100) ** 2 * build,
        "chest": 0.54 * height * build,
        "waist": 0.45 * height * build,
        "hips": 0.55 * height * build,
        "shoulderWidth": 0.245 * height,
    }
    return pd.DataFrame(body).round().astype(int).to_json(orient="records", lines=True).split()


def _documents(
    rng: np.random.Generator,
    people: Population,
    past: History,
    states: list[dict[str, Any]],
    times: pd.DataFrame,
) -> list[dict[str, Any]]:
    own, items = people.of(DESIGN), people.of(ITEM)
    by_age = items[np.argsort(people.born[items])]
    known = np.maximum(np.searchsorted(people.born[by_age], people.born[own]), 1)
    picks = (rng.random((len(own), 4)) * known[:, None]).astype(int)
    numbers = rng.integers(1, 5, len(own))
    avatar_of = dict(zip(people.owner[people.of(AVATAR)], people.of(AVATAR), strict=True))
    created, updated, deleted = (
        [moment.to_pydatetime(warn=False) for moment in times[name].iloc[own]]
        for name in ("created_at", "updated_at", "deleted_at")
    )
    documents = []
    for n, i in enumerate(own):
        used = list(dict.fromkeys(by_age[picks[n, : numbers[n]]]))
        fields = {
            "id": people.ids[i],
            **states[i],
            "layers": [
                layer(k, states[item]["type"], people.ids[item])
                for k, item in enumerate(used, start=1)
            ],
            "avatar_id": people.ids[avatar_of[people.owner[i]]],
            "catalog_item_ids": [people.ids[item] for item in used],
            "version": 1 + int(past.updates[i]),
            "created_at": created[n],
            "updated_at": updated[n],
        }
        if people.deleted[i]:
            fields["deleted_at"] = deleted[n]
        documents.append(design_document(fields))
    return documents
