"""Who and what there is: users with avatars, catalog items and designs, from birth to deletion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fwdb.models import entity_uuid
from fwdb.seeding import ids, words
from fwdb.seeding.seasons import Floats, Year

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

USER, AVATAR, ITEM, DESIGN = range(4)
ENTITY_TYPES = ("User", "Avatar", "CatalogItem", "Design")
FIELDS = (words.USER_FIELDS, words.AVATAR_FIELDS, words.ITEM_FIELDS, words.DESIGN_FIELDS)
MOST_FIELDS = max(map(len, FIELDS))

# Activity of the user of rank r is (r + a hundredth of the users + 3) to this power: the most
# active tenth makes about half of the history, and nobody most of it.
_SKEW = -1.0
_LAUNCH_SHARE = 0.35  # users who joined in the first two weeks
_DELETED_SHARE = (0.04, 0.08, 0.05, 0.10)  # by kind
_AVATAR_COUNTS = (0.72, 0.21, 0.07)  # share of users with one, two, three avatars

# The night in the last week in which somebody deletes a part of the catalog: the third from the
# end, at a quarter to three.
NIGHT = (3, 2.75, 3.0)  # days ago, from hour, to hour


@dataclass(frozen=True)
class Population:
    """Entities of one part, users first, then avatars, items and designs.

    `born` and `gone` are positions in the year; `gone` is 1 for what still lives. `owner` is the
    index of the user something belongs to; a user is their own. `start` holds, for each field
    that updates change, where in its circle of values the entity begins.
    """

    counts: tuple[int, int, int, int]
    kind: Ints
    owner: Ints
    born: Floats
    gone: Floats
    weight: Floats
    start: Ints
    ids: list[str]
    role: list[str]
    admins: Ints
    burst: Flags

    @property
    def users(self) -> int:
        """How many users there are; they are the first entities."""
        return self.counts[USER]

    @property
    def deleted(self) -> Flags:
        """Which entities are deleted by the end of the year."""
        return self.gone < 1

    def of(self, kind: int) -> Ints:
        """The indices of the entities of `kind`."""
        return np.flatnonzero(self.kind == kind)

    def audit_ids(self) -> list[str]:
        """The id of each entity as the audit log keeps it."""
        first_design = len(self.ids) - self.counts[DESIGN]
        return self.ids[:first_design] + [str(entity_uuid(i)) for i in self.ids[first_design:]]


def id_stream(seed: int, part: int) -> np.random.Generator:
    """The stream from which the ids of `part` come, the users' first.

    It does not know the scale or the end of the year, so a seed is recognised by its first id.
    """
    return np.random.default_rng([seed, part, 1])


def populate(year: Year, part: int, users: int, designs: int) -> Population:
    """The entities of `part`: `users` users, `designs` designs, and what goes with them."""
    rng = np.random.default_rng([year.seed, part, 2])
    admins = max(1, users // 100)
    designers = min(users - admins, max(3, users // 10))
    born, gone = _user_lives(rng, users, admins, designers)
    rank = np.arange(1, users + 1) + users / 100 + 3
    weight = rng.permutation(rank**_SKEW)

    numbers = 1 + np.searchsorted(np.cumsum(_AVATAR_COUNTS)[:-1], rng.random(users))
    wearers = np.repeat(np.arange(users), numbers)
    first = np.concatenate(([0], np.cumsum(numbers)[:-1]))
    avatar_lives = _owned_lives(rng, wearers, born, gone, _DELETED_SHARE[AVATAR])
    # The first avatar comes with the account and stays as long as it does.
    avatar_lives[0][first] = born + np.minimum(2e-5 * rng.random(users), (gone - born) / 4)
    avatar_lives[1][first] = np.where(gone < 1, born + (gone - born) * 0.999, 1)

    creators, item_lives, burst = _item_lives(rng, year, part, born, weight, admins, designers)
    authors = _weighted(rng, weight, designs)
    design_lives = _owned_lives(rng, authors, born, gone, _DELETED_SHARE[DESIGN])

    counts = (users, len(wearers), len(creators), designs)
    kind = np.repeat(np.arange(4), counts)
    lives = [(born, gone), avatar_lives, item_lives, design_lives]
    all_born = np.concatenate([life[0] for life in lives])
    stream = id_stream(year.seed, part)
    row_ids = ids.random_uuids(stream, sum(counts[:3]))
    return Population(
        counts=counts,
        kind=kind,
        owner=np.concatenate([np.arange(users), wearers, creators, authors]),
        born=all_born,
        gone=np.concatenate([life[1] for life in lives]),
        weight=weight,
        start=_starts(rng, kind),
        ids=row_ids + ids.object_ids(stream, year.times(design_lives[0])),
        role=["admin"] * admins
        + ["designer"] * designers
        + ["user"] * (users - admins - designers),
        admins=np.arange(admins),
        burst=np.concatenate([np.zeros(sum(counts[:2]), bool), burst, np.zeros(designs, bool)]),
    )


def _user_lives(
    rng: np.random.Generator, users: int, admins: int, designers: int
) -> tuple[Floats, Floats]:
    """Staff is there from the start and stays; others join all year, a good part at the launch."""
    position = rng.random(users)
    born = 0.002 + np.where(rng.random(users) < _LAUNCH_SHARE, 0.03, 0.99) * position
    born[:admins] = np.sort(3e-4 * position[:admins])
    born[0] = 1e-8
    early = slice(admins, admins + min(3, designers))
    born[early] = 3e-4 + 5e-4 * position[early]
    leaves = rng.random(users) < _DELETED_SHARE[USER]
    leaves[: admins + designers] = False
    return born, np.where(leaves, _later(rng, born), 1.0)


def _owned_lives(
    rng: np.random.Generator, owner: Ints, born: Floats, gone: Floats, deleted: float
) -> tuple[Floats, Floats]:
    """Lives within those of the owners; what a deleted user owns is deleted just before."""
    life = gone[owner] - born[owner]
    begin = born[owner] + life * (0.002 + 0.95 * rng.random(len(owner)))
    end = begin + (gone[owner] - begin) * rng.uniform(0.05, 0.95, len(owner))
    goes_before = rng.random(len(owner)) < deleted
    goes_with = gone[owner] - life * 1e-3 * rng.uniform(0.1, 1, len(owner))
    stays = np.where(gone[owner] < 1, goes_with, 1.0)
    return begin, np.where(goes_before, end, stays)


def _item_lives(
    rng: np.random.Generator,
    year: Year,
    part: int,
    born: Floats,
    weight: Floats,
    admins: int,
    designers: int,
) -> tuple[Ints, tuple[Floats, Floats], Flags]:
    """Creators and lives of the catalog items, and which of them go in the night of the burst."""
    count = max(24, len(born) // 2)
    staff = np.arange(admins, admins + designers) if designers else np.arange(admins)
    creators = staff[_weighted(rng, weight[staff], count)]
    creators[:10] = staff[0]
    begin = born[creators] + (0.995 - born[creators]) * (0.001 + 0.999 * rng.random(count))
    begin[:10] = 0.001 + 0.001 * rng.random(10)
    end = np.where(rng.random(count) < _DELETED_SHARE[ITEM], _later(rng, begin), 1.0)
    burst = np.zeros(count, bool)
    if part == 0:
        from_, to = (year.position(year.night(NIGHT[0], hour)) for hour in NIGHT[1:])
        able = np.flatnonzero((begin < from_) & (end == 1))
        chosen = rng.permutation(able)[: int(np.clip(count // 8, 12, 150))]
        end[chosen] = from_ + (to - from_) * rng.random(len(chosen))
        burst[chosen] = True
    return creators, (begin, end), burst


def _starts(rng: np.random.Generator, kind: Ints) -> Ints:
    """Where each field begins: a state (status, role, …) in its first, other values anywhere."""
    start = np.zeros((len(kind), MOST_FIELDS), dtype=np.int64)
    for number, fields in enumerate(FIELDS):
        mine = kind == number
        for column, field in enumerate(fields):
            if len(field.values) > 3:
                start[mine, column] = rng.integers(0, len(field.values), int(mine.sum()))
    return start


def _later(rng: np.random.Generator, begin: Floats) -> Floats:
    """A position well after `begin` and before the end of the year."""
    return begin + (1 - begin) * rng.uniform(0.1, 0.98, len(begin))


def _weighted(rng: np.random.Generator, weight: Floats, count: int) -> Any:
    """`count` indices of `weight`, each as often as its weight says."""
    total = np.cumsum(weight)
    return np.searchsorted(total, rng.random(count) * total[-1], side="right")
