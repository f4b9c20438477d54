"""Seed data exactly as published, volume with the shape of a real year, and taking it all out."""

from __future__ import annotations

import ipaddress
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta

import bcrypt
import pandas as pd
import pytest
import sqlalchemy as sa
from support import DATA
from support.urls import url_of

from fwdb import config, errors, migrating
from fwdb.database import Database
from fwdb.models import avatars, catalog_items, users
from fwdb.seeding import Counts, Seeder, data, volume
from fwdb.stores import MongoStore, PostgresStore

UNTIL = datetime(2026, 11, 23, tzinfo=UTC)
MADE_BY_THE_SERVICE = DATA / "fashion_wallet.sql"
DOCUMENTATION = [
    ipaddress.ip_network(net) for net in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24")
]
SEED = Counts(users=3, avatars=2, catalog_items=4, designs=2)


@pytest.fixture
def empty(db: Database) -> Database:
    """Migrated and without a row."""
    db.seeder.clear_all(confirm=True)
    return db


@pytest.fixture(scope="module")
def part() -> volume.Part:
    """A year of 300 users, made and not loaded."""
    plan = volume.Plan.of(300, seed=1, audit_rows=12_000, until=UNTIL)
    (only,) = volume.parts(plan)
    return only


@pytest.fixture
def second(db: Database, mongodb_database: str) -> Iterator[Seeder]:
    """Another process would have its own pools: a second seeder over the same databases."""
    postgres = PostgresStore(url_of(db.postgres))
    mongodb = MongoStore(mongodb_database)
    yield Seeder(postgres, mongodb)
    postgres.close()
    mongodb.close()


def rows(db: Database, table: sa.Table, order: str) -> list[dict]:
    return db.postgres.rows(sa.select(table).order_by(order))


def counted(db: Database, *, captured: bool = False) -> Counts:
    """What is in the databases; of the trail only what was loaded, unless `captured`."""
    number = sa.func.count().label("n")
    tables = {
        table.name: db.postgres.rows(sa.select(number).select_from(table))[0]["n"]
        for table in (users, avatars, catalog_items)
    }
    loaded = "" if captured else " WHERE reason IS NULL"
    trail = sa.text(f"SELECT count(*) AS n FROM audit.audit_logs{loaded}")
    return Counts(
        **tables,
        audit_logs=db.postgres.rows(trail)[0]["n"],
        designs=db.mongodb.collection("designs").count_documents({}),
    )


# -- seed data --------------------------------------------------------------------------------


def test_the_three_accounts_are_exactly_as_published(empty):
    """Active, verified, of the right role, with the password "secret"."""
    assert empty.seeder.seed_users() == Counts(users=3)

    found = rows(empty, users, "email")
    columns = ("email", "first_name", "last_name", "role", "is_active", "email_verified")
    assert [tuple(row[c] for c in columns) for row in found] == [
        ("admin@fashionwallet.com", "Admin", "User", "admin", True, True),
        ("designer@fashionwallet.com", "Designer", "User", "designer", True, True),
        ("user@fashionwallet.com", "Test", "User", "user", True, True),
    ]
    for row in found:
        assert len(row["password_hash"]) == 60
        assert bcrypt.checkpw(b"secret", row["password_hash"].encode())
        assert row["deleted_at"] is row["created_by"] is row["updated_by"] is None


def test_the_avatars_are_exactly_as_published_and_bring_their_owners(empty):
    """Asked for avatars alone, the seeder adds the accounts they belong to."""
    assert empty.seeder.seed_avatars() == Counts(users=3, avatars=2)

    emails = {row["id"]: row["email"] for row in rows(empty, users, "email")}
    names = ("height", "weight", "chest", "waist", "hips", "shoulderWidth")
    columns = ("name", "gender", "is_default", "measurements", "customization")
    found = [
        (emails[row["user_id"]], *(row[c] for c in columns)) for row in rows(empty, avatars, "name")
    ]
    default = dict(zip(names, (170, 65, 90, 75, 95, 40), strict=True))
    male = dict(zip(names, (180, 75, 100, 85, 95, 45), strict=True))
    assert found == [
        ("admin@fashionwallet.com", "Default Avatar", "unisex", True, default, None),
        ("user@fashionwallet.com", "Male Avatar", "male", False, male, None),
    ]


def test_the_catalog_items_are_exactly_as_published(empty):
    """Prices are in cents; only the jeans are premium."""
    assert empty.seeder.seed_catalog_items() == Counts(catalog_items=4)

    columns = ("name", "type", "category", "properties", "is_premium", "price", "is_active")
    assert [tuple(row[c] for c in columns) for row in rows(empty, catalog_items, "name")] == [
        (
            "Classic T-Shirt", "silhouette", "top",
            {"tags": ["casual", "basic", "everyday"]}, False, 0, True,
        ),
        (
            "Cotton Fabric", "fabric", "top",
            {"material": "cotton", "tags": ["soft", "breathable", "natural"]}, False, 0, True,
        ),
        (
            "Designer Jeans", "silhouette", "bottom",
            {"tags": ["premium", "designer", "fashion"]}, True, 1000, True,
        ),
        (
            "Striped Pattern", "pattern", "top",
            {"patternType": "stripes", "tags": ["classic", "versatile"]}, False, 0, True,
        ),
    ]  # fmt: skip


def test_the_designs_are_exactly_as_published_and_bring_what_they_are_made_of(empty):
    """Layers and catalog items are ids of rows in the other store."""
    assert empty.seeder.seed_designs() == Counts(users=3, catalog_items=4, designs=2)

    emails = {str(row["id"]): row["email"] for row in rows(empty, users, "email")}
    names = {str(row["id"]): row["name"] for row in rows(empty, catalog_items, "name")}
    found = list(empty.mongodb.collection("designs").find().sort("name", 1))
    for design in found:
        assert design["createdAt"] == design["updatedAt"]
        assert datetime.now(UTC) - design["createdAt"] < timedelta(minutes=1)
        assert {"deletedAt", "avatarId"}.isdisjoint(design)
    assert [
        (
            emails[design["userId"]],
            design["name"],
            design["status"],
            design["version"],
            [(layer["type"], names[layer["itemId"]]) for layer in design["layers"]],
            design["metadata"],
            [names[id] for id in design["catalogItemIds"]],
        )
        for design in found
    ] == [
        (
            "admin@fashionwallet.com", "My First Design", "draft", 1,
            [("silhouette", "Classic T-Shirt")],
            {"tags": ["casual", "everyday"], "description": "A simple everyday outfit"},
            ["Classic T-Shirt", "Cotton Fabric"],
        ),
        (
            "user@fashionwallet.com", "Published Design", "published", 1,
            [("silhouette", "Classic T-Shirt"), ("fabric", "Cotton Fabric")],
            {"tags": ["published", "featured"], "description": "A featured design"},
            ["Classic T-Shirt", "Cotton Fabric", "Striped Pattern"],
        ),
    ]  # fmt: skip


def test_seeding_again_adds_nothing(empty):
    """The second run finds every natural key taken."""
    assert empty.seeder.seed_all() == SEED
    assert empty.seeder.seed_all() == Counts()
    assert counted(empty) == SEED


@pytest.mark.parametrize(
    ("seed", "added"),
    [
        (lambda seeder: seeder.seed_all(), SEED),
        (lambda seeder: seeder.seed_scale(20, audit_rows=300, until=UNTIL), None),
    ],
    ids=["seed data", "volume"],
)
def test_two_seeders_at_once_add_it_once(empty, second, seed, added):
    """They take turns, so what one adds the other finds."""
    start = threading.Barrier(2, timeout=30)

    def go(seeder: Seeder) -> Counts:
        start.wait()
        return seed(seeder)

    with ThreadPoolExecutor(2) as executor:
        both = sorted(executor.map(go, (empty.seeder, second)), key=lambda counts: counts.total)

    assert both[0] == Counts()
    assert counted(empty) == both[1]
    assert added in (None, both[1])


def test_what_somebody_changed_or_removed_stays_so(db):
    """Seeding is not a repair: a changed row keeps its values, a soft-deleted one stays deleted."""
    gone = sa.func.now()
    admin = users.c.email == "admin@fashionwallet.com"
    jeans = catalog_items.c.name == "Designer Jeans"
    db.postgres.execute(sa.update(users).where(admin).values(deleted_at=gone, first_name="A"))
    db.postgres.execute(sa.update(catalog_items).where(jeans).values(price=5, deleted_at=gone))

    assert db.seeder.seed_all() == Counts()

    (row,) = db.postgres.rows(sa.select(users.c.first_name, users.c.deleted_at).where(admin))
    assert row["first_name"] == "A"
    assert row["deleted_at"] is not None
    assert db.postgres.rows(sa.select(catalog_items.c.price).where(jeans)) == [{"price": 5}]


def test_a_removed_account_gets_nothing_new(db):
    """Avatars and designs are made for live accounts only."""
    db.postgres.execute(sa.delete(avatars))
    db.mongodb.collection("designs").delete_many({})
    gone = sa.update(users).values(deleted_at=sa.func.now())
    db.postgres.execute(gone.where(users.c.email == "admin@fashionwallet.com"))

    assert db.seeder.seed_all() == Counts(avatars=1, designs=1)


def test_a_database_of_the_existing_service_can_be_seeded(
    postgres_database: Callable[..., str], mongodb_database: str
):
    """Its enums and its further columns are no obstacle, for the volume neither."""
    with Database(
        PostgresStore(postgres_database()), MongoStore(mongodb_database), settings=config.settings()
    ) as database:
        with database.postgres.transaction() as connection:
            connection.exec_driver_sql(MADE_BY_THE_SERVICE.read_text())
        migrating.migrate(database.postgres, database.mongodb)

        database.seeder.seed_all()
        added = database.seeder.seed_scale(10, audit_rows=200)

        assert database.seeder.seed_all() == Counts()
        assert (added.users, added.audit_logs) == (10, 200)


def captured(db: Database) -> list[dict]:
    """What the triggers wrote: kind, action and reason, and how many."""
    return db.postgres.rows(
        sa.text(
            "SELECT entity_type, action, reason, count(*) AS n FROM audit.audit_logs"
            " WHERE origin = 'trigger' GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"
        )
    )


def test_a_row_may_refer_to_a_document_by_a_key_that_holds_a_reference(empty, monkeypatch):
    """Owner and name are the key of a design, and the owner is a row."""
    owner, first = data.Ref("User", ("admin@fashionwallet.com",)), "My First Design"
    empty.seeder.seed_all()
    row = data.ROWS["Design"][0] | {
        "name": "Another",
        "metadata": {"after": data.Ref("Design", (owner, first), live=True)},
    }
    lost = row | {
        "name": "Of nothing",
        "metadata": {"after": data.Ref("Design", (owner, "Nothing"), live=True)},
    }
    monkeypatch.setattr(data, "ROWS", data.ROWS | {"Design": (row, lost)})

    assert empty.seeder.seed_all() == Counts(designs=1)

    made, before = (empty.designs.first(name=name) for name in ("Another", first))
    assert made.metadata == {"after": before.id}
    assert not empty.designs.exists(name="Of nothing")


def test_seed_data_is_captured_as_such(empty):
    """The trail says where the first rows came from, and designs carry it for the follower."""
    empty.seeder.seed_all()

    documents = list(empty.mongodb.collection("designs").find())
    assert [document["_audit"]["reason"] for document in documents] == ["seed data"] * 2
    assert captured(empty) == [
        {"entity_type": kind, "action": "CREATE", "reason": "seed data", "n": n}
        for kind, n in (("Avatar", 2), ("CatalogItem", 4), ("User", 3))
    ]


def test_a_year_of_history_is_not_captured_again(empty):
    """Each row of the volume has its past in the trail already; later changes are captured."""
    added = empty.seeder.seed_scale(20, audit_rows=500, until=UNTIL)
    assert captured(empty) == []
    assert counted(empty, captured=True).audit_logs == added.audit_logs

    empty.postgres.execute(sa.update(users).values(role="admin").where(users.c.role == "designer"))
    (changed,) = captured(empty)
    assert (changed["entity_type"], changed["action"]) == ("User", "UPDATE")


# -- clearing ---------------------------------------------------------------------------------


def test_clear_all_wants_to_be_confirmed(db):
    """A call by mistake removes nothing and says what it would have removed it from."""
    with pytest.raises(errors.ParameterError, match=r"clear_all removes all data of .*confirm"):
        db.seeder.clear_all()

    assert counted(db) == SEED


def test_clear_all_removes_every_row_and_nothing_else(db):
    """Users who made each other go as well; tables, history of monitoring and schema stay."""
    (first, other, *_) = (row["id"] for row in rows(db, users, "email"))
    db.postgres.execute(sa.update(users).where(users.c.id == first).values(created_by=other))
    db.postgres.execute(sa.update(users).where(users.c.id == other).values(created_by=first))
    db.seeder.seed_scale(20, audit_rows=500)
    before = counted(db, captured=True)

    assert db.seeder.clear_all(confirm=True) == before
    assert counted(db, captured=True) == Counts()
    assert migrating.migrate(db.postgres, db.mongodb) == []
    assert db.seeder.seed_all() == SEED


def test_what_is_held_is_not_cleared(db):
    """A legal hold on a month outweighs the wish to start anew; nothing is removed."""
    table = "(month date, released_at timestamptz)"
    db.postgres.execute(sa.text(f"CREATE TABLE IF NOT EXISTS audit.holds {table}"))
    db.postgres.execute(sa.text("INSERT INTO audit.holds (month) VALUES ('2026-11-01')"))
    before = counted(db)

    with pytest.raises(errors.ParameterError, match=r"1 month of the audit trail must be kept"):
        db.seeder.clear_all(confirm=True)

    assert counted(db) == before


# -- volume -----------------------------------------------------------------------------------


@pytest.mark.parametrize("users_at_a_time", [10, 2_000])
def test_the_volume_is_what_was_asked_for(db, monkeypatch, users_at_a_time):
    """Counts returned are counts found, and parts add up."""
    monkeypatch.setattr(volume, "_PART_USERS", users_at_a_time)

    added = db.seeder.seed_scale(25, audit_rows=1_001, until=UNTIL)

    assert (added.users, added.designs, added.audit_logs) == (25, 50, 1_001)
    assert added.avatars >= 25
    assert added.catalog_items >= 24
    assert counted(db) == SEED + added


def test_a_seed_that_is_there_adds_nothing_and_says_so(db):
    """Whatever the other numbers are: the users of a seed are known by the first of them."""
    db.seeder.seed_scale(20, audit_rows=300, until=UNTIL)
    before, said = counted(db), []

    again = db.seeder.seed_scale(30, audit_rows=900, progress=said.append)

    assert again == Counts()
    assert counted(db) == before
    assert said == ["the users of seed 1 are there already; another --seed adds others"]
    assert db.seeder.seed_scale(20, seed=2, audit_rows=300).users == 20


def test_the_same_seed_makes_the_same_rows(part):
    """Ids included; another seed shares none of them."""
    plan = volume.Plan.of(300, seed=1, audit_rows=12_000, until=UNTIL)
    (again,) = volume.parts(plan)
    (other,) = volume.parts(volume.Plan.of(300, seed=2, audit_rows=12_000, until=UNTIL))

    for name in ("users", "avatars", "catalog_items", "audit_logs"):
        pd.testing.assert_frame_equal(getattr(again, name), getattr(part, name))
    assert again.designs == part.designs
    assert set(other.users["id"]).isdisjoint(part.users["id"])
    assert set(other.users["email"]).isdisjoint(part.users["email"])
    assert part.users["id"].iloc[0] == volume.first_user_id(1)


def test_all_rows_or_none(db, monkeypatch):
    """A row that is refused at the end leaves no row of the volume, and no design."""
    monkeypatch.setattr(volume, "_PART_USERS", 10)
    *_, last = volume.parts(volume.Plan.of(25, seed=1, audit_rows=500, until=UNTIL))
    taken = last.users["email"].iloc[-1]
    rival = {"first_name": "A", "last_name": "B", "password_hash": "-"}
    db.postgres.execute(sa.insert(users).values(email=taken, **rival))
    before = counted(db)

    with pytest.raises(errors.DuplicateKey):
        db.seeder.seed_scale(25, audit_rows=500, until=UNTIL)

    assert counted(db) == before


def test_documents_that_a_killed_run_left_do_not_stay(db):
    """They belong to users that never came to be."""
    plan = volume.Plan.of(20, seed=1, audit_rows=300, until=UNTIL)
    (only,) = volume.parts(plan)
    db.mongodb.collection("designs").insert_many([dict(d) for d in only.designs[:10]])

    added = db.seeder.seed_scale(20, audit_rows=300, until=UNTIL)

    assert added.designs == 40
    assert counted(db).designs == SEED.designs + 40


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"scale": 0}, "'scale' is 0; give a whole number from 1 to 1,000,000."),
        ({"scale": -5}, "'scale' is -5; give a whole number from 1 to 1,000,000."),
        ({"scale": 1_000_001}, "'scale' is 1000001; give a whole number from 1 to 1,000,000."),
        ({"scale": 2.5}, "'scale' is 2.5; give a whole number from 1 to 1,000,000."),
        ({"seed": -1}, "'seed' is -1; give a whole number from 0 to 2,147,483,647."),
        ({"audit_rows": -1}, "'audit_rows' is -1; give a whole number from 0 to 50,000,000."),
        (
            {"until": datetime(2026, 1, 1)},
            "'until' is 2026-01-01T00:00:00, without a time zone; add one, such as +00:00.",
        ),
    ],
)
def test_a_number_out_of_range_is_refused_before_anything_is_asked(arguments, sentence):
    """No server is needed to say so."""
    nowhere = Seeder(
        PostgresStore("postgresql://127.0.0.1:1/none"), MongoStore("mongodb://127.0.0.1:1/none")
    )

    with pytest.raises(errors.ParameterError) as refusal:
        nowhere.seed_scale(**{"scale": 1} | arguments)

    assert str(refusal.value).removeprefix("seed_scale(): ") == sentence


@pytest.mark.parametrize("scale", [1, 2, 7])
def test_the_smallest_volumes_are_whole(scale):
    """One user is a population too, and no history is a history."""
    for audit_rows in (0, 1, 500):
        plan = volume.Plan.of(scale, seed=3, audit_rows=audit_rows, until=UNTIL)
        (only,) = volume.parts(plan)
        assert len(only.users) == scale
        assert len(only.audit_logs) == audit_rows
        assert set(only.avatars["user_id"]) == set(only.users["id"])


# -- the shape of the history -----------------------------------------------------------------


def test_most_happens_in_office_hours_and_a_few_people_do_most(part):
    """Two of three rows fall in working hours (UTC), which are a third of the week."""
    at = part.audit_logs["created_at"].dt
    working = at.hour.between(7, 17) & (at.day_of_week < 5)
    shares = part.audit_logs["user_id"].value_counts(normalize=True)

    assert at.date.min() >= date(2025, 11, 24)
    assert part.audit_logs["created_at"].max() < UNTIL
    assert working.mean() > 0.66
    assert (at.hour < 6).mean() < 0.05
    assert (at.day_of_week >= 5).mean() < 0.12
    assert shares.iloc[:30].sum() > 0.5
    assert shares.iloc[0] < 0.2


def test_every_life_begins_with_its_creation_and_ends_with_its_deletion(part):
    """Nothing happens to an entity, or is done by a user, who is not there."""
    log = part.audit_logs
    assert log["created_at"].is_monotonic_increasing
    assert log["id"].str[:13].is_monotonic_increasing  # the part of a uuid 7 that is its time
    born = log[log["action"] == "CREATE"].set_index("entity_id")["created_at"]
    gone = log[log["action"] == "DELETE"].set_index("entity_id")["created_at"]
    assert born.index.is_unique
    assert gone.index.is_unique
    assert set(born.index) == set(log["entity_id"])
    later = log[log["action"] != "CREATE"]
    assert (later["created_at"] > later["entity_id"].map(born)).all()
    alive = log[log["action"] != "DELETE"]
    assert not (alive["created_at"] >= alive["entity_id"].map(gone)).any()

    people = part.users.set_index("id")
    acts = log.dropna(subset="user_id")
    assert (acts["created_at"] >= acts["user_id"].map(people["created_at"])).all()
    assert not (acts["created_at"] > acts["user_id"].map(people["deleted_at"])).any()


def test_the_changes_of_an_entity_make_a_chain_that_ends_in_its_row(part):
    """Old values are those that the rows before left, and the last ones stand in the tables."""
    states: dict[str, dict] = {}
    for row in part.audit_logs.itertuples():
        if row.action == "CREATE":
            states[row.entity_id] = json.loads(row.new_values)
        elif row.action == "UPDATE":
            old, new = json.loads(row.old_values), json.loads(row.new_values)
            assert old != new
            assert old == {name: states[row.entity_id][name] for name in new}
            states[row.entity_id] |= new
        elif row.action == "DELETE":
            assert json.loads(row.old_values) == states[row.entity_id]

    for frame, nested in (
        (part.users, ()),
        (part.avatars, ("customization",)),
        (part.catalog_items, ("properties",)),
    ):
        for row in frame.to_dict("records"):
            state = states[row["id"]]
            assert state == {n: json.loads(row[n]) if n in nested else row[n] for n in state}
    for design in part.designs:
        uuid = str(design["_id"])[:12] + "8fdb8f0d" + str(design["_id"])[12:]
        state = states[f"{uuid[:8]}-{uuid[8:12]}-{uuid[12:16]}-{uuid[16:20]}-{uuid[20:]}"]
        assert (state["name"], state["status"]) == (design["name"], design["status"])


def test_two_stories_are_in_the_year(part):
    """A night in which one account deletes a part of the catalog, from an address of its own; and a
    Sunday evening on which an ordinary account reads profile after profile.
    """
    log = part.audit_logs
    night, sweep = (log[log["ip_address"] == f"203.0.113.{host}"] for host in (213, 240))
    roles = part.users.set_index("id")["role"]

    assert len(night) >= 12
    assert set(zip(night["action"], night["entity_type"], strict=True)) == {
        ("DELETE", "CatalogItem")
    }
    assert night["user_id"].nunique() == 1
    assert night["created_at"].between("2026-11-20T02:45Z", "2026-11-20T03:00Z").all()
    assert len(sweep) > 100
    assert set(zip(sweep["action"], sweep["entity_type"], strict=True)) == {("READ", "User")}
    assert [roles[id] for id in sweep["user_id"].unique()] == ["user"]
    assert sweep["created_at"].between("2026-11-01T22:00Z", "2026-11-01T22:30Z").all()


def test_the_history_names_no_real_person_or_place(part):
    """Addresses are for documentation, mail is for example.com, and no secret is in the trail."""
    found = part.audit_logs["ip_address"].dropna().unique()
    assert all(any(ipaddress.ip_address(a) in net for net in DOCUMENTATION) for a in found)
    assert part.users["email"].str.endswith("@example.com").all()
    values = pd.concat([part.audit_logs["old_values"], part.audit_logs["new_values"]]).dropna()
    assert not values.str.contains("password|weight|chest").any()
    assert set(part.users["password_hash"]) == {"$2b$10$" + "." * 53}
    assert not bcrypt.checkpw(b"secret", part.users["password_hash"].iloc[0].encode())


def test_designs_are_made_of_what_there_was(part):
    """Owner, avatar and items of a design are rows, and the items are not younger than it."""
    items = part.catalog_items.set_index("id")["created_at"]
    wearers = part.avatars.set_index("id")["user_id"]
    for design in part.designs:
        assert wearers[design["avatarId"]] == design["userId"]
        assert [layer["itemId"] for layer in design["layers"]] == design["catalogItemIds"]
        assert all(items[id] <= design["createdAt"] for id in design["catalogItemIds"])
        assert design["updatedAt"] >= design["createdAt"]


def test_the_history_can_be_read_back_by_the_id_of_either_store(db):
    """The trail of a design is found under its ObjectId."""
    db.seeder.seed_scale(20, audit_rows=600, until=UNTIL)
    design = db.mongodb.collection("designs").find_one({"name": {"$ne": "My First Design"}})
    other = db.mongodb.collection("designs").find_one({"version": {"$gt": 1}})
    assert design
    assert other

    trail = db.audit.history("Design", str(other["_id"]))

    assert list(trail["action"]).count("UPDATE") == other["version"] - 1
    assert "CREATE" in list(trail["action"])
