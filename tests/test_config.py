"""Settings: variables, profiles, and passwords that never show."""

from __future__ import annotations

import traceback

import pytest

import fwdb
from fwdb import config, errors
from fwdb.audit import values


def test_settings_come_from_their_variables_and_else_are_what_the_system_promises(
    monkeypatch: pytest.MonkeyPatch,
):
    """Without variables there is no URL and the thresholds are those of the data model."""
    found = config.settings()
    thresholds = found.thresholds

    assert found.postgres_url is None
    assert (thresholds.pool_warning_percent, thresholds.pool_critical_percent) == (80, 95)
    assert thresholds.slow_query_ms == 100
    assert found.pool_size + found.pool_max_overflow == 100
    monkeypatch.setenv("FWDB_SLOW_QUERY_MS", "250")
    assert config.settings().thresholds.slow_query_ms == 250


@pytest.mark.parametrize(
    ("variable", "value"), [("FWDB_POOL_SIZE", "many"), ("FWDB_POOL_WARNING_PERCENT", "180")]
)
def test_a_variable_that_cannot_be_used_is_named(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
):
    """The sentence names the variable and does not repeat its value, which may be a secret."""
    monkeypatch.setenv(variable, value)

    with pytest.raises(errors.ConfigError, match=variable) as caught:
        config.settings()

    assert value not in str(caught.value)


def test_a_profile_has_its_own_urls(monkeypatch: pytest.MonkeyPatch):
    """The embedded one has none, and an unknown one is answered with the nearest."""
    monkeypatch.setenv("FWDB_POSTGRES_URL", "postgresql://default@one/db")
    monkeypatch.setenv("FWDB_STAGING_POSTGRES_URL", "postgresql://staging:s3cret@two/db")
    found = config.settings("staging")

    assert found.postgres_url is not None
    assert found.postgres_url.get_secret_value() == "postgresql://staging:s3cret@two/db"
    assert "s3cret" not in repr(found)
    assert found.mongodb_url is None
    assert config.settings("embedded").postgres_url is None
    with pytest.raises(errors.UnknownName, match="did you mean 'staging'"):
        config.settings("stagign")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://ana:s3cret@host/db", "postgresql://ana:***@host/db"),
        ("mongodb://ana:p%40ss@a:1,b:2/db?w=1", "mongodb://ana:***@a:1,b:2/db?w=1"),
        ("postgresql://host/db?password=s3cret&x=1", "postgresql://host/db?password=***&x=1"),
        ("postgresql://ana@host/db", "postgresql://ana@host/db"),
        ("postgresql://ana:a@b:c@host:5432/db", "postgresql://ana:***@host:5432/db"),
        ("postgresql://ana:s/3?c#ret@host/db", "postgresql://ana:***@host/db"),
        ("no 'postgresql://ana:s3 cret@host/db' here", "no 'postgresql://ana:***@host/db' here"),
        ("postgresql://ana:s3cret", "postgresql://ana:***"),
        ("host=db user=ana password=s3cret", "host=db user=ana password=***"),
        ("at http://[::1]:9187 or http://x:9187.", "at http://[::1]:9187 or http://x:9187."),
        ("mongodb://a:27017,b:27017/db", "mongodb://a:27017,b:27017/db"),
    ],
)
def test_a_shown_url_has_no_password(url: str, shown: str):
    assert errors.redact(url) == str(errors.QueryError(url)) == shown


@pytest.mark.parametrize("piece", ["a", "key", "://b: "])
def test_a_long_value_is_looked_at_once(piece: str):
    """A look from each of its places to its end would take hours."""
    text = piece * (3_000_000 // len(piece))
    assert len(errors.redact(text)) >= len(text)
    assert len(errors.shown(text)) < 70


URL = "postgresql://ana:S3cret@host/db"


@pytest.mark.parametrize(
    "use",
    [
        lambda: fwdb.connect(URL),
        lambda: fwdb.connect(profile=URL.upper()),
        lambda: fwdb.connect(postgres_url=URL.replace("postgresql", "mysql")),
        lambda: fwdb.connect(postgres_url=URL.replace("@", "@@")),
        lambda: fwdb.connect(mongodb_url=URL),
        lambda: fwdb.connect(mongodb_url=URL.partition("//")[2].partition("@")[0]),
        lambda: fwdb.report(URL),
        lambda: fwdb.report("pool", since=URL),
        lambda: fwdb.report("pool", **{URL: 1}),
    ],
)
def test_no_error_repeats_the_password_of_a_url(monkeypatch: pytest.MonkeyPatch, use):
    """Wherever one is given by mistake: as a profile, a name, a value."""
    for profile, ask in (("default", use), (URL, config.settings)):
        monkeypatch.setenv("FWDB_PROFILE", profile)
        with pytest.raises(errors.FwdbError) as caught:
            ask()

        shown = "".join(traceback.format_exception(caught.value)) + repr(vars(caught.value))
        assert "s3cret" not in shown.lower()


SECRET = """otp user_otp otpCode userOTP jwt pin userPin pinCode PIN_CODE cvv cvv2 cardCVC
mfa_codes totp ssn session sessionId apiKey passwordHash API-Key bearer recovery_codes card_number
private_key backupCode security-code verification_code auth_code passkey mnemonic"""
PUBLIC = """option adoption shipping SHIPPING pinned PINNED spin hotPink pinterest_url
session_count sort_key color_code cardigan author"""


def test_a_name_that_holds_a_secret_is_known():
    """Nothing deep inside of a row is shown under such a name; one that looks like it is none."""
    for name in SECRET.split():
        assert errors.is_secret(name), name
        assert values.redact_json(f'[{{"a": 1, "{name}": "S3cret"}}]') == (
            f'[{{"a": 1, "{name}": "[redacted]"}}]'
        )
    assert not [name for name in PUBLIC.split() if errors.is_secret(name)]


def test_the_address_has_neither_user_nor_password():
    assert config.address("postgresql://ana:s3cret@host/db", 5432) == "host:5432/db"
    assert config.address("postgresql://ana:s/3?c#r@host/db", 5432) == "host:5432/db"
    assert config.address("mongodb://a:b@h1:1,h2:2/db?w=1", 27017) == "h1:1,h2:2/db"


def test_both_resources_are_found():
    assert (config.resource("notebooks")).is_dir()
    assert (config.resource("migrations")).is_dir()

    with pytest.raises(errors.ConfigError):
        config.resource("nothing")
