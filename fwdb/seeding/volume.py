"""Synthetic volume: users with everything they own, and a year of what they did, as frames.

A simple model: things happen at a fixed rate for the hour and the weekday, to what was made and
is not deleted yet. Two stories are in it for the audit report to find: a night in which a part of
the catalog is deleted, and an evening on which somebody reads profile after profile.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from typing import Any
from uuid import UUID

import numpy as np
import pandas as pd
import pyarrow as pa

from fwdb.errors import ParameterError
from fwdb.models import CATALOG_TYPES, DESIGN_STATUSES, DESIGNS, GENDERS, entity_uuid
from fwdb.seeding.data import layer

MAX_SCALE = 1_000_000
MAX_AUDIT_ROWS = 50_000_000
MAX_DESIGNS = 5_000

_PART_USERS = 2_000  # bounds memory: about 200,000 audit rows are held at a time
_ROWS_PER_USER = 100
_DEFAULT_MAX_ROWS = 5_000_000

FIRST_NAMES = ("Ada", "Bruno", "Chen", "Dana", "Emil", "Farah", "Gita", "Hugo", "Ines", "Kofi")
LAST_NAMES = ("Adler", "Baum", "Dorn", "Eklund", "Falk", "Holm", "Jansen", "Okoro", "Roos", "Salo")
COLORS = ("black", "white", "navy", "rust", "sage", "ivory", "plum", "teal", "sand", "coral")
PATTERNS = ("stripes", "dots", "checks", "florals", "plain")
GARMENTS = {"top": "Shirt", "bottom": "Skirt", "dress": "Gown", "outerwear": "Coat"}
MOODS = ("Quiet", "Bold", "Airy", "Sharp", "Soft", "Raw", "Bright", "Deep")
OCCASIONS = ("Monday", "Gala", "Harbour", "Studio", "Garden", "Market", "Runway", "Weekend")
USER_AGENTS = (
    "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 Chrome/138.0.0.0 Safari/537.36",
    "FashionWallet/4.2 (Android 15)",
)
# RFC 5737 keeps these addresses for documentation, so none of them is anybody's.
ADDRESSES = tuple(
    f"{net}.{host}" for net in ("192.0.2", "198.51.100", "203.0.113") for host in range(1, 200)
)
# Where the two stories come from: the night and the evening, both by a script.
_STORIES = ("203.0.113.213", "203.0.113.240")
_SCRIPT = "python-requests/2.32"
_NO_STORY, _NIGHT, _EVENING = -1, 0, 1

ENTITY_TYPES = ("User", "Avatar", "CatalogItem", "Design")
USER, AVATAR, ITEM, DESIGN = range(4)
ACTIONS = ("CREATE", "UPDATE", "READ", "DELETE")
CREATE, UPDATE, READ, DELETE = range(4)

# The two fields of each kind that updates change by turns, each through a circle of values.
FIELDS: tuple[dict[str, Sequence[Any]], ...] = (
    {"email_verified": (False, True), "last_name": LAST_NAMES},
    {
        "name": ("Everyday", "Studio", "Evening", "Travel", "Fitting"),
        "customization": [{"hairColor": c} for c in ("black", "brown", "blond", "red", "grey")],
    },
    {
        "price": (0, 450, 990, 1290, 1490, 1990, 2490, 4900),
        "properties": [
            {"color": c, "patternType": p} for c, p in itertools.product(COLORS, PATTERNS)
        ],
    },
    {"status": DESIGN_STATUSES, "name": [*map(" ".join, itertools.product(MOODS, OCCASIONS))]},
)

# By kind: its share of readings and changes, that of changes among them, and of readings by others
# among these; how many entities are deleted.
_EVENTS = np.array([0.08, 0.14, 0.33, 0.45])
_UPDATED = np.array([0.25, 0.45, 0.30, 0.60])
_OTHERS = np.array([0.6, 0.15, 1.0, 0.15])
_DELETED = np.array([0.04, 0.08, 0.05, 0.10])

# Whole weeks, and a day less than the retention of the audit log, which therefore finds nothing
# to remove in a fresh history.
_DAYS = 364
# Activity by hour of the day, in UTC from midnight, and by day of the week from Monday on.
_HOURS = np.repeat([1, 2, 20, 90, 60, 20, 8], [5, 2, 1, 9, 1, 3, 3])
_WEEKDAYS = np.array([1.0, 1.05, 1.05, 1.0, 0.85, 0.25, 0.2])

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
    """The id of the first user that `seed` makes, whatever the scale and the end of the year."""
    return _uuids(np.random.default_rng([seed, 0, 1]), 1)[0]


def parts(plan: Plan) -> Iterator[Part]:
    """The rows of `plan`, a few thousand users at a time."""
    for number, begin in enumerate(range(0, plan.scale, _PART_USERS)):
        end = min(begin + _PART_USERS, plan.scale)
        designs, rows = (
            total * end // plan.scale - total * begin // plan.scale
            for total in (min(2 * plan.scale, MAX_DESIGNS), plan.audit_rows)
        )
        yield _Model(plan, number, range(begin, end), designs).part(rows)


class _Model:
    """A part of the users, and what is theirs: users first, then avatars, items and designs.

    Times are positions in the year, which run from 0 to 1 as its activity does: even positions
    are times that follow hours and weekdays. `gone` is 1 for what still lives. `owner` is the
    number of the user something belongs to; a user is their own.
    """

    def __init__(self, plan: Plan, number: int, people: range, designs: int) -> None:
        self.plan, self.number, self.people = plan, number, people
        self.rng = rng = np.random.default_rng([plan.seed, number, 2])
        self.users = users = len(people)
        self.staff = min(users, 4 + users // 10)  # admins and designers
        self.counts = np.array([users, users + users // 3, max(24, users // 2), designs])
        self.kind = np.repeat(np.arange(4), self.counts)
        activity = 1 / (rng.permutation(users) + users / 100 + 3)
        self.activity = activity / activity.sum()
        self._start = plan.until - timedelta(days=_DAYS)
        hours = pd.date_range(self._start, periods=24 * _DAYS, freq="h")
        busy = np.cumsum(_HOURS[hours.hour] * _WEEKDAYS[hours.day_of_week])
        self._positions = np.concatenate(([0.0], busy / busy[-1]))

        # Staff is there from the start; the rest joins all year, and some of them leave.
        born = np.where(np.arange(users) < self.staff, 4e-4, 1e-3 + 0.98 * rng.random(users))
        born[0] = 0
        leaves = (rng.random(users) < _DELETED[USER]) & (np.arange(users) >= self.staff)
        gone = np.where(leaves, born + (1 - born) * rng.uniform(0.1, 0.98, users), 1)
        # Each has an avatar, which comes and goes with the account; the rest is of those who stay.
        stay = np.where(leaves, 0, self.activity)
        stay /= stay.sum()
        _, avatars, items, _ = self.counts
        makers = rng.integers(0, self.staff, items)
        makers[:5] = 0
        rest = [rng.choice(users, n, p=stay) for n in (avatars - users, designs)]
        owner = np.concatenate([np.arange(users), rest[0], makers, rest[1]])
        begin = born[owner] + (1 - born[owner]) * rng.uniform(0.002, 0.95, len(owner))
        begin[avatars : avatars + 5] = 4e-4  # five items are there on the first day
        end = np.where(
            rng.random(len(owner)) < _DELETED[self.kind[users:]], rng.uniform(begin, 1), 1
        )
        begin[:users], end[:users] = born + 1e-4 * (gone - born), np.where(leaves, gone - 1e-5, 1)
        self.owner = np.concatenate([np.arange(users), owner])
        self.born, self.gone = np.concatenate([born, begin]), np.concatenate([gone, end])
        self.night = np.zeros(0, int)  # what is deleted in that night
        if number == 0:
            since, until = self.span(3, 2.75, 3)
            able = (self.kind == ITEM) & (self.owner > 0) & (self.born < since) & (self.gone == 1)
            self.night = rng.permutation(np.flatnonzero(able))[: np.clip(items // 8, 12, 150)]
            self.gone[self.night] = rng.uniform(since, until, len(self.night))

        # A stream of its own: a seed is recognised by its first id, whatever its numbers are.
        ids = np.random.default_rng([plan.seed, number, 1])
        made = self.times(self.born[self.kind == DESIGN]).as_unit("s").asi8
        self.ids = _uuids(ids, len(self.kind) - designs)
        self.ids += [f"{second:08x}{ids.bytes(8).hex()}" for second in made]

    def times(self, positions: Any) -> pd.DatetimeIndex:
        """The times at `positions`."""
        hours = np.interp(positions, self._positions, np.arange(len(self._positions)))
        start = np.datetime64(self._start.replace(tzinfo=None), "us")
        return pd.DatetimeIndex(start + (hours * 3.6e9).astype("m8[us]")).tz_localize("UTC")

    def span(self, days_ago: int, *clock: float) -> Any:
        """The positions of two hours of the day that began `days_ago` before the last midnight."""
        day = datetime.combine(self.plan.until, time(), tzinfo=UTC) - timedelta(days=days_ago)
        hours = [(day - self._start) / timedelta(hours=1) + hour for hour in clock]
        return np.interp(hours, np.arange(len(self._positions)), self._positions)

    def part(self, rows: int) -> Part:
        """The rows of everything, with the newest `rows` of the trail."""
        states, updates, changed = self._facts(), np.zeros(len(self.kind), int), self.born.copy()
        trail = self._trail(self._log(rows), states, updates, changed)
        gone = self.gone < 1
        lives = pd.DataFrame(
            {
                "created_at": self.times(self.born),
                "updated_at": self.times(np.where(gone, self.gone, changed)),
                "deleted_at": self.times(self.gone).where(gone),
            }
        )
        tables = []
        for kind in (USER, AVATAR, ITEM):
            own = np.flatnonzero(self.kind == kind)
            table = pd.DataFrame([states[i] for i in own])
            for name in {"customization", "properties"} & {*table}:
                table[name] = table[name].map(json.dumps)
            table.insert(0, "id", [self.ids[i] for i in own])
            tables.append(table.join(lives.iloc[own].reset_index(drop=True)))
        heights = self.rng.integers(150, 200, self.counts[AVATAR]).tolist()
        # Measurements are personal data and stay out of the trail.
        bodies = [{"height": h, "weight": h - 105, "chest": h // 2 + 6} for h in heights]
        return Part(
            users=tables[USER].assign(password_hash=_NO_PASSWORD),
            avatars=tables[AVATAR].assign(measurements=[*map(json.dumps, bodies)]),
            catalog_items=tables[ITEM],
            audit_logs=trail.tail(rows),
            designs=self._designs(states, updates, lives),
        )

    def _log(self, rows: int) -> pd.DataFrame:
        """What happens, in the order of time; more than `rows` when births alone are.

        `entity`, `position`, `action`, `actor` and `story`.
        """
        rng, kind, owner, born, gone = self.rng, self.kind, self.owner, self.born, self.gone
        removed = np.flatnonzero(gone < 1)
        since, until = self.span(21 + (self.plan.until.weekday() + 1) % 7, 22.1, 22.4)
        people = kind == USER
        spies = np.flatnonzero(people & (owner >= self.staff) & (born < 0.5) & (gone == 1))
        present = rng.permutation(np.flatnonzero(people & (born < since) & (gone > until)))
        victims = present[: min(200, rows // 25) if self.number == 0 and len(spies) else 0]
        count = max(0, rows - len(kind) - len(removed) - len(victims))
        popular = rng.pareto(1.5, len(kind))  # some items are used by many
        weight = (gone - born) * np.where(kind == ITEM, popular, self.activity[owner])
        weight *= _EVENTS[kind] / np.bincount(kind, weight)[kind]
        entity = rng.choice(len(kind), count, p=weight / weight.sum())
        # Not at the very ends of a life: births come first and deletions last.
        position = born[entity] + (gone - born)[entity] * rng.uniform(1e-4, 1 - 1e-4, count)
        updated = rng.random(count) < _UPDATED[kind[entity]]
        stories = np.where(np.isin(removed, self.night), _NIGHT, _NO_STORY)
        log = pd.concat(
            pd.DataFrame({"entity": e, "position": p, "action": a, "story": s})
            for e, p, a, s in (
                (np.arange(len(kind)), born, CREATE, _NO_STORY),
                (removed, gone[removed], DELETE, stories),
                (victims, rng.uniform(since, until, len(victims)), READ, _EVENING),
                (entity, position, np.where(updated, UPDATE, READ), _NO_STORY),
            )
        ).sort_values("position", kind="stable", ignore_index=True)
        entity, position, story = (log[name].to_numpy() for name in ("entity", "position", "story"))
        # Who did it: the owner, for readings also others, if they are there.
        others = (log["action"] == READ) & (rng.random(len(log)) < _OTHERS[kind[entity]])
        anybody = rng.choice(self.users, len(log), p=self.activity)
        there = (born[anybody] <= position) & (position <= gone[anybody])
        actor = np.where(others & there, anybody, owner[entity])
        actor[story == _NIGHT] = 0
        actor[story == _EVENING] = spies[: len(victims) and 1].sum()
        return log.assign(actor=actor)

    def _facts(self) -> list[dict[str, Any]]:
        """Each entity as it is made, as its table or its document has it."""
        users, avatars, items, designs = self.counts.tolist()
        owners = [{"user_id": self.ids[i]} for i in self.owner]
        facts: list[dict[str, Any]] = []
        for i, first in enumerate(self._pick(FIRST_NAMES, users)):
            email = f"{first}.{self.people[i]}.{self.plan.seed}@example.com".lower()
            role = "user" if i >= self.staff else "designer" if i > users // 100 else "admin"
            facts.append({"email": email, "first_name": first, "role": role, "is_active": True})
        for i, gender in enumerate(self._pick(GENDERS, avatars)):
            facts.append(owners[users + i] | {"gender": gender, "is_default": i < users})
        kinds = (self._pick(words, items) for words in (MOODS, CATALOG_TYPES, [*GARMENTS]))
        for mood, type_, category in zip(*kinds, strict=True):
            noun = GARMENTS[category] if type_ == "silhouette" else type_.title()
            facts.append({"name": f"{mood} {noun}", "type": type_, "category": category})
        facts += owners[len(owners) - designs :]
        turns = self.rng.integers(0, 1000, len(facts)).tolist()
        return [
            fact | {n: v[turn % len(v) if len(v) > 3 else 0] for n, v in FIELDS[kind].items()}
            for fact, kind, turn in zip(facts, self.kind, turns, strict=True)
        ]

    def _pick(self, words: Sequence[str], count: int) -> list[str]:
        return [words[i] for i in self.rng.integers(0, len(words), count)]

    def _trail(
        self, log: pd.DataFrame, states: list[dict[str, Any]], updates: Any, changed: Any
    ) -> pd.DataFrame:
        """The rows of `log` as `audit.audit_logs` has them.

        `states` are as the entities were made, and afterwards as they are at the end, with the
        number of `updates` of each and the position where it last `changed`.
        """
        columns = ("entity", "action", "actor", "story", "position")
        entity, action, actor, story, position = (log[name].to_numpy() for name in columns)
        old: list[str | None] = [None] * len(log)
        new = old.copy()
        for row, (i, did) in enumerate(zip(entity.tolist(), action.tolist(), strict=True)):
            if did == UPDATE:
                name, values = [*FIELDS[self.kind[i]].items()][updates[i] % 2]
                value = values[(values.index(states[i][name]) + 1) % len(values)]
                old[row], new[row] = json.dumps({name: states[i][name]}), json.dumps({name: value})
                states[i][name] = value
                updates[i] += 1
                changed[i] = position[row]
            elif did == CREATE:
                new[row] = json.dumps(states[i])
            elif did == DELETE:
                old[row] = json.dumps(states[i])
        told = story != _NO_STORY
        home, agent = (self.rng.integers(0, len(of), self.users) for of in (ADDRESSES, USER_AGENTS))
        ids = [str(entity_uuid(id)) for id in self.ids]
        times = self.times(position)
        # Uuids of version 7 (RFC 9562), which sort as the times do.
        uuids = [
            f"{ms >> 16:08x}-{ms & 0xFFFF:04x}-7{uuid[15:]}"
            for ms, uuid in zip(
                times.as_unit("ms").asi8.tolist(), _uuids(self.rng, len(log)), strict=True
            )
        ]
        frame = {
            "id": pa.array(uuids, pa.string()),
            "user_id": _texts(ids, actor),
            "entity_type": _texts(ENTITY_TYPES, self.kind[entity]),
            "entity_id": _texts(ids, entity),
            "action": _texts(ACTIONS, action),
            "old_values": pa.array(old, pa.string()),
            "new_values": pa.array(new, pa.string()),
            "ip_address": _texts(
                (*ADDRESSES, *_STORIES), np.where(told, len(ADDRESSES) + story, home[actor])
            ),
            "user_agent": _texts(
                (*USER_AGENTS, _SCRIPT), np.where(told, len(USER_AGENTS), agent[actor])
            ),
        }
        return pd.DataFrame(
            {name: pd.array(column, dtype="str") for name, column in frame.items()}
        ).assign(created_at=times)

    def _designs(
        self, states: list[dict[str, Any]], updates: Any, lives: pd.DataFrame
    ) -> list[dict[str, Any]]:
        """Made of items that were there, and worn by the first avatar of the owner."""
        items = np.flatnonzero(self.kind == ITEM)
        items = items[np.argsort(self.born[items])]
        own = np.flatnonzero(self.kind == DESIGN)
        documents = []
        for i, life in zip(own, lives.iloc[own].to_dict("records"), strict=True):
            known = np.searchsorted(self.born[items], self.born[i])
            used = [*dict.fromkeys(items[self.rng.integers(0, known, self.rng.integers(1, 5))])]
            fields: dict[str, Any] = {
                "id": self.ids[i],
                **states[i],
                "layers": [layer(n, states[k]["type"], self.ids[k]) for n, k in enumerate(used, 1)],
                "avatar_id": self.ids[self.users + self.owner[i]],
                "catalog_item_ids": [self.ids[k] for k in used],
                "version": 1 + int(updates[i]),
            }
            times = {str(n): at.to_pydatetime() for n, at in life.items() if at is not pd.NaT}
            documents.append(DESIGNS.document(fields | times))
        return documents


def _uuids(rng: np.random.Generator, count: int) -> list[str]:
    """`count` uuids of version 4; the first ones are the same whatever `count` is."""
    octets = rng.bytes(16 * count)
    return [str(UUID(bytes=octets[i : i + 16], version=4)) for i in range(0, len(octets), 16)]


def _texts(values: Sequence[str], codes: Any) -> pa.Array:
    """``values[code]`` for each of `codes` as an Arrow column of text; code -1 is null."""
    codes = np.asarray(codes, dtype=np.int32)
    return pa.array(values, type=pa.string()).take(pa.array(codes, mask=codes < 0))
