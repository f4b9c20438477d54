"""What happened: a year of audit rows over a population."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from fwdb.seeding import ids, words
from fwdb.seeding.population import (
    AVATAR,
    DESIGN,
    ENTITY_TYPES,
    FIELDS,
    ITEM,
    MOST_FIELDS,
    USER,
    Ints,
    Population,
)
from fwdb.seeding.seasons import Floats, Year

ACTIONS = ["CREATE", "UPDATE", "READ", "DELETE"]
CREATE, UPDATE, READ, DELETE = range(4)

_EVENT_SHARE = (0.08, 0.14, 0.33, 0.45)  # of readings and changes, by kind of entity
_UPDATE_SHARE = (0.25, 0.45, 0.30, 0.60)  # changes among them, by kind
# How often an update changes the first, second and third field of a kind.
_FIELD_SHARES = ((0.0, 0.85, 0.15), (0.3, 0.7, 0.0), (0.55, 0.1, 0.35), (0.4, 0.2, 0.4))
_EMAIL_VERIFIED, _LAST_NAME, _ROLE = range(3)

# An account of an ordinary user reads profile after profile, three Sundays before the end.
_SWEEP_WEEKS_AGO = 3
_SWEEP_HOURS = (22.1, 22.4)
_SYSTEM = -1  # no user: a job of the service itself


@dataclass(frozen=True)
class History:
    """Rows of the trail in the order of time, and what the changes add up to.

    `final` is where in its circle of values each field of each entity ends; `updates` counts the
    changes of an entity, `changed` is the position of the last one.
    """

    position: Floats
    entity: Ints
    action: Ints
    actor: Ints
    old: Ints
    new: Ints
    sweep: Any
    final: Ints
    updates: Ints
    changed: Floats


def happen(year: Year, part: int, people: Population, rows: int) -> History:
    """A history of `rows` rows; the newest of them when even the births would be more."""
    rng = np.random.default_rng([year.seed, part, 3])
    everything = np.arange(len(people.kind))
    removed = np.flatnonzero(people.deleted)
    spy, victims, sweep_at = _sweep(rng, year, part, people, rows)
    rest = max(0, rows - len(everything) - len(removed) - len(victims))
    entity, position, action = _events(rng, people, rest)

    entity = np.concatenate([everything, removed, victims, entity])
    position = np.concatenate([people.born, people.gone[removed], sweep_at, position])
    action = np.concatenate(
        [
            np.full(len(everything), CREATE),
            np.full(len(removed), DELETE),
            np.full(len(victims), READ),
            action,
        ]
    )
    sweep = np.zeros(len(entity), bool)
    sweep[len(everything) + len(removed) :][: len(victims)] = True
    order = np.argsort(position, kind="stable")
    entity, position = entity[order], position[order]
    action, sweep = action[order], sweep[order]

    field, old, new, final = _changes(rng, people, entity, action)
    actor = _actors(rng, people, entity, position, action, field)
    actor[sweep] = spy
    changed = people.born.copy()
    np.maximum.at(changed, entity[action == UPDATE], position[action == UPDATE])
    newest = slice(max(0, len(entity) - rows), None)
    return History(
        position=position[newest],
        entity=entity[newest],
        action=action[newest],
        actor=actor[newest],
        old=old[newest],
        new=new[newest],
        sweep=sweep[newest],
        final=final,
        updates=np.bincount(entity[action == UPDATE], minlength=len(everything)),
        changed=np.where(people.deleted, people.gone, changed),
    )


def audit_frame(
    year: Year, part: int, people: Population, history: History, snapshots: dict[int, list[str]]
) -> pd.DataFrame:
    """The rows of `history` as `audit.audit_logs` has them.

    `snapshots` has the JSON of each entity as it was made (under CREATE) and at its end (DELETE).
    """
    rng = np.random.default_rng([year.seed, part, 4])
    times = year.times(history.position)
    changes = [change for fields in FIELDS for field in fields for change in field.changes()]
    values = [*changes, *snapshots[CREATE], *snapshots[DELETE]]
    created, gone = history.action == CREATE, history.action == DELETE
    new = np.where(created, len(changes) + history.entity, history.new)
    old = np.where(gone, len(changes) + len(people.kind) + history.entity, history.old)
    burst = gone & people.burst[history.entity]
    addresses, agents = _origins(rng, people.users, history, burst)
    user_ids = people.ids[: people.users]
    metadata = np.where(history.actor == _SYSTEM, 0, -1)
    columns = {
        "user_id": words.texts(user_ids, history.actor),
        "entity_type": words.texts(ENTITY_TYPES, people.kind[history.entity]),
        "entity_id": words.texts(people.audit_ids(), history.entity),
        "action": words.texts(ACTIONS, history.action),
        "old_values": words.texts(values, old),
        "new_values": words.texts(values, new),
        "metadata": words.texts(['{"job": "thumbnails"}'], metadata),
        "ip_address": addresses,
        "user_agent": agents,
    }
    return pd.DataFrame(
        {
            "id": pd.array(ids.timed_uuids(rng, times), dtype="str"),
            **{name: pd.array(column, dtype="str") for name, column in columns.items()},
            "created_at": pd.DatetimeIndex(times).tz_localize("UTC"),
        }
    )


def _events(rng: np.random.Generator, people: Population, count: int) -> tuple[Ints, Floats, Ints]:
    """Readings and changes: of what is used most, at any time of its life."""
    life = people.gone - people.born
    weight = people.weight[people.owner] * life
    items = people.of(ITEM)
    weight[items] = rng.permutation(np.arange(1, len(items) + 1) ** -0.7) * life[items]
    for kind, share in enumerate(_EVENT_SHARE):
        mine = people.kind == kind
        weight[mine] *= share / max(weight[mine].sum(), 1e-12)
    total = np.cumsum(weight)
    entity = np.searchsorted(total, rng.random(count) * total[-1], side="right")
    # Not at the very ends of a life: births come first and deletions last.
    position = people.born[entity] + life[entity] * rng.uniform(1e-4, 1 - 1e-4, count)
    changes = rng.random(count) < np.array(_UPDATE_SHARE)[people.kind[entity]]
    return entity, position, np.where(changes, UPDATE, READ)


def _sweep(
    rng: np.random.Generator, year: Year, part: int, people: Population, rows: int
) -> tuple[int, Ints, Floats]:
    """Who reads the profiles of others, whose, and when; nobody's in parts but the first."""
    days = 7 * _SWEEP_WEEKS_AGO + (year.until.weekday() + 1) % 7
    begin, end = (year.position(year.night(days, hour)) for hour in _SWEEP_HOURS)
    users = people.of(USER)
    born, gone = people.born[users], people.gone[users]
    plain = np.array([role == "user" for role in people.role])
    spies = np.flatnonzero(plain & (born < 0.5) & (gone == 1))
    if part or not len(spies):
        return 0, np.empty(0, np.int64), np.empty(0)
    present = np.flatnonzero((born < begin) & (gone > end))
    victims = rng.permutation(present)[: min(200, rows // 25)]
    return int(spies[0]), victims, begin + (end - begin) * rng.random(len(victims))


def _changes(
    rng: np.random.Generator, people: Population, entity: Ints, action: Ints
) -> tuple[Ints, Ints, Ints, Ints]:
    """Field, old and new value of each row (codes of `audit_frame`; -1 none), and the last values.

    A value follows the one before it in the circle of its field, so that old and new of an entity
    make a chain from its birth on.
    """
    rows = np.flatnonzero(action == UPDATE)
    changed = entity[rows]
    kind = people.kind[changed]
    shares = np.cumsum(np.array(_FIELD_SHARES), axis=1)[kind]
    field = (rng.random(len(rows))[:, None] >= shares[:, :-1]).sum(axis=1)
    # An address is verified by the first change of an account; staff keeps its role.
    of_user = kind == USER
    staff = np.array([role != "user" for role in people.role])
    field[of_user & (field == _ROLE) & staff[np.where(of_user, changed, 0)]] = _LAST_NAME
    field[of_user & (_occurrence(changed) == 0)] = _EMAIL_VERIFIED

    sizes = np.zeros((4, MOST_FIELDS), np.int64)
    for number, fields in enumerate(FIELDS):
        sizes[number, : len(fields)] = [len(f.values) for f in fields]
    offsets = (np.cumsum(sizes.ravel()) - sizes.ravel()).reshape(sizes.shape)
    key = changed * MOST_FIELDS + field
    step = people.start[changed, field] + _occurrence(key)
    size, offset = sizes[kind, field], offsets[kind, field]
    old, new, fields_of = (np.full(len(entity), -1) for _ in range(3))
    old[rows] = offset + step % size
    new[rows] = offset + (step + 1) % size
    fields_of[rows] = field
    counts = np.bincount(key, minlength=people.start.size).reshape(people.start.shape)
    final = (people.start + counts) % np.maximum(sizes[people.kind], 1)
    return fields_of, old, new, final


def _actors(
    rng: np.random.Generator,
    people: Population,
    entity: Ints,
    position: Floats,
    action: Ints,
    field: Ints,
) -> Ints:
    """Who did it: mostly the owner, for some things an admin, for readings also others."""
    count = len(entity)
    kind = people.kind[entity]
    chance = rng.random(count)
    admin = people.admins[rng.integers(0, len(people.admins), count)]
    anybody = _present(rng, people, position)
    reads = action == READ
    actor = people.owner[entity].copy()
    conditions = [
        (kind == USER) & reads & (chance < 0.6),
        (kind == USER) & (action == DELETE) & (chance < 0.5),
        (kind == USER) & (action == UPDATE) & (field == _ROLE),
        (kind == ITEM) & reads,
        np.isin(kind, (AVATAR, DESIGN)) & reads & (chance < 0.15),
    ]
    actor = np.select(conditions, [admin, admin, admin, anybody, anybody], actor)
    # The first admin was there before all others and stands in for who was not there yet.
    actor[people.born[actor] > position] = 0
    actor[people.gone[actor] < position] = 0
    actor[(kind == DESIGN) & reads & (chance > 0.97)] = _SYSTEM
    if people.burst.any():
        # All by one account, of the person who made the first item.
        culprit = people.owner[people.of(ITEM)[0]]
        actor[people.burst[entity] & (action == DELETE)] = culprit
    return actor


def _present(rng: np.random.Generator, people: Population, position: Floats) -> Ints:
    """For each position a user who had joined by then, the active ones more often."""
    born = people.born[: people.users]
    order = np.argsort(born)
    total = np.cumsum(people.weight[order])
    joined = np.maximum(np.searchsorted(born[order], position), 1)
    drawn = np.searchsorted(total, rng.random(len(position)) * total[joined - 1], side="right")
    present: Ints = order[np.minimum(drawn, joined - 1)]
    return present


def _occurrence(keys: Ints) -> Ints:
    """How many equal keys come before each key."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    first = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    lengths = np.diff(np.append(first, len(keys)))
    counts = np.empty(len(keys), np.int64)
    counts[order] = np.arange(len(keys)) - np.repeat(first, lengths)
    return counts


def _origins(rng: np.random.Generator, users: int, history: History, burst: Any) -> tuple[Any, Any]:
    """Address and user agent of each row: the user's own, sometimes another, none for jobs."""
    homes, others = len(words.HOME_ADDRESSES), len(words.OTHER_ADDRESSES)
    home = rng.integers(0, homes, users)
    agent = rng.integers(0, len(words.USER_AGENTS), users)
    count = len(history.actor)
    away = rng.random(count) < 0.12
    address = np.where(away, homes + rng.integers(0, others, count), home[history.actor])
    address[burst], address[history.sweep] = homes + others, homes + others + 1
    address[history.actor == _SYSTEM] = -1
    own, last = agent[history.actor], len(words.USER_AGENTS)
    agents = np.where(burst | history.sweep, last, own)
    agents[history.actor == _SYSTEM] = last + 1
    known = [
        *words.HOME_ADDRESSES,
        *words.OTHER_ADDRESSES,
        words.NIGHT_ADDRESS,
        words.SWEEP_ADDRESS,
    ]
    names = [*words.USER_AGENTS, words.SCRIPT_AGENT, words.JOB_AGENT]
    return words.texts(known, address), words.texts(names, agents)
