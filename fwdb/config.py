"""What fwdb reads from its environment: FWDB_* variables, profiles, thresholds."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from fwdb.errors import ConfigError, UnknownName

_PROFILE_VARIABLE = re.compile(r"FWDB_(?P<profile>[A-Z0-9_]+)_(?:POSTGRES|MONGODB)_URL")

_NUMBER = r"\d+(?:\.\d+)?(?:[eE][+-]?\d+)?"
_LIMIT = re.compile(rf"(?P<id>[\w.]+)=(?P<warning>{_NUMBER})?(?::(?P<critical>{_NUMBER})?)?")


class Thresholds(BaseSettings):
    """The figures the system promises; each can be set by FWDB_<NAME>."""

    model_config = SettingsConfigDict(env_prefix="FWDB_", extra="ignore", frozen=True)

    pool_warning_percent: float = Field(80, ge=0, le=100)
    pool_critical_percent: float = Field(95, ge=0, le=100)
    slow_query_ms: float = Field(100, gt=0)
    cache_good_ratio: float = Field(0.95, ge=0, le=1)
    cache_alert_ratio: float = Field(0.80, ge=0, le=1)
    lag_target_seconds: float = Field(1, ge=0)
    lag_alert_seconds: float = Field(5, ge=0)
    # Beside the seconds: what a replica that takes minutes to come back has to fetch, and how long
    # one that is well may be silent (it answers every 10 s, and is asked after 30).
    lag_warning_bytes: int = Field(16 * 1024**2, ge=0)
    lag_critical_bytes: int = Field(64 * 1024**2, ge=0)
    reply_warning_seconds: float = Field(30, gt=0)
    reply_critical_seconds: float = Field(60, gt=0)
    expected_replicas: int | None = Field(None, ge=0)
    health_timeout_ms: float = Field(100, gt=0)
    leak_seconds: float = Field(60, gt=0)
    audit_retention_days: int = Field(365, ge=1)


class Settings(BaseSettings):
    """One reading of the environment. Secrets are hidden in ``repr``.

    The URL of a profile NAME is FWDB_NAME_POSTGRES_URL and FWDB_NAME_MONGODB_URL; the profile
    ``default`` has FWDB_POSTGRES_URL and FWDB_MONGODB_URL, and ``embedded`` has none at all.
    A store without a URL is the built-in server.
    """

    model_config = SettingsConfigDict(env_prefix="FWDB_", extra="ignore", frozen=True)

    postgres_url: SecretStr | None = None
    mongodb_url: SecretStr | None = None
    history_url: SecretStr | None = None
    profile: str = "default"
    thresholds: Thresholds = Field(default_factory=Thresholds)

    # Pool sizes and times are those of the existing service: 10 to 100 connections, 5 s to
    # connect, 30 s idle, 1 h lifetime.
    pool_size: int = Field(10, ge=1)
    pool_max_overflow: int = Field(90, ge=0)
    pool_timeout_seconds: float = Field(5, gt=0)
    pool_idle_seconds: float = Field(30, gt=0)
    pool_lifetime_seconds: float = Field(3600, gt=0)
    connect_timeout_seconds: float = Field(5, gt=0)
    statement_timeout_seconds: float = Field(30, gt=0)
    # A server that sends nothing for so long is given up; it may be frozen, or the network cut.
    timeout_seconds: float = Field(60, gt=0)
    monitor_timeout_seconds: float = Field(5, gt=0)
    # Of one statement of migrate, seed, seal, verify, retain and erase.
    long_timeout_seconds: float = Field(3600, gt=0)

    history_detail_days: float = Field(7, gt=0)
    history_days: float = Field(30, gt=0)

    home: Path | None = None
    idle_stop: float = Field(30, ge=0, description="minutes without a client; 0 never stops")
    run_as: str | None = None
    postgres_bin: Path | None = None

    # With it seals are signed; it must lie where a superuser of the database cannot read it.
    audit_key: SecretStr | None = Field(None, min_length=16)

    # Lines of the checks of reports by id, warning and critical, where another number than that
    # of the check is wanted; `fwdb report checks` lists them.
    limits: Annotated[dict[str, tuple[float | None, float | None]] | None, NoDecode] = None

    report_dir: Path | None = None
    audit_archive: Path | None = None
    # Secret, because it may hold the password of a proxy before the gateway.
    pushgateway: SecretStr | None = None

    @field_validator("limits", mode="before")
    @classmethod
    def _parse_limits(cls, given: object) -> object:
        return limits(given) if isinstance(given, str) else given


def limits(text: str) -> dict[str, tuple[float | None, float | None]]:
    """Lines by the id of their check, from `pool.sessions=80:95,health.rollbacks=20`.

    >>> limits("pool.sessions=80:95, health.disk=:1e9")
    {'pool.sessions': (80.0, 95.0), 'health.disk': (None, 1000000000.0)}
    """
    found: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = _LIMIT.fullmatch(part)
        if match is None or not (match["warning"] or match["critical"]):
            raise ValueError(f"'{part}' is not like pool.sessions=80:95 (warning:critical)")
        found[match["id"]] = tuple(
            float(match[name]) if match[name] else None for name in ("warning", "critical")
        )
    return found


def settings(profile: str | None = None) -> Settings:
    """The settings as the environment has them now, with the URLs of `profile` filled in.

    Raises `ConfigError` for a value that cannot be used and `UnknownName` for a profile that no
    variable defines.
    """
    try:
        found = Settings()
    except ValidationError as error:
        raise ConfigError(_validation_sentence(error)) from None
    name = (profile or found.profile).lower()
    if name == "default":
        return found
    if name == "embedded":
        return found.model_copy(update={"profile": name, "postgres_url": None, "mongodb_url": None})
    if name not in profiles():
        raise UnknownName("profile", name, profiles(), where="the FWDB_* variables")
    urls = {
        f"{store}_url": SecretStr(os.environ[variable]) if variable in os.environ else None
        for store in ("postgres", "mongodb")
        for variable in (f"FWDB_{name.upper()}_{store.upper()}_URL",)
    }
    return found.model_copy(update={"profile": name, **urls})


def profiles() -> list[str]:
    """Names that ``--profile`` takes: the two fixed ones and those the environment defines."""
    named = {
        match["profile"].lower()
        for variable in os.environ
        if (match := _PROFILE_VARIABLE.fullmatch(variable))
    }
    return ["default", "embedded", *sorted(named)]


def address(url: str, default_port: int) -> str:
    """``host:port/database`` of `url`, without user and password, for messages and labels."""
    # Not by urlsplit: it ends the account at a / ? or # of the password, as drivers do not.
    found = re.match(r"[^:]*://(?:[^:/]*(?::[^@]*)?@)?([^/?#]*)([^?#]*)", url)
    host, path = found.groups() if found else ("", "")
    host = host or "localhost"
    if "," not in host and not re.search(r":\d+$", host):
        host = f"{host}:{default_port}"
    return f"{host}{path}"


def resource(name: str) -> Path:
    """The folder ``migrations`` or ``notebooks``: inside the installed package, else beside it.

    Raises `ConfigError` when the installation lacks it.
    """
    package = Path(__file__).parent
    for folder in (package / f"_{name}", package.parent / name):
        if folder.is_dir():
            return folder
    raise ConfigError(f"this installation of fwdb has no folder '{name}'; install it again.")


def _validation_sentence(error: ValidationError) -> str:
    first = error.errors(include_input=False, include_url=False)[0]
    variable = "FWDB_" + "_".join(str(part) for part in first["loc"]).upper()
    reason = first["msg"].removeprefix("Value error, ")
    return f"{variable} cannot be used: {reason[:1].lower()}{reason[1:]}."
