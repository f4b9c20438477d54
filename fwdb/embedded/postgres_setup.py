"""What a new PostgreSQL cluster gets: settings, access rules, roles and privileges.

SQL here is for single-user mode, where a statement ends with an empty line.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fwdb.embedded.urls import APP, DATABASE, OWNER, REPORT

SUPERUSER = "postgres"
# For other servers too: a superuser runs it once, for `Monitor.logged_plans`.
LOGGED_PLANS = Path(__file__).with_name("logged_plans.sql")

# Read after initdb's own postgresql.conf. ALTER SYSTEM and lines after the include win over it.
SETTINGS = """\
# Written by fwdb at each start. Settings of your own go to the end of postgresql.conf.
listen_addresses = '127.0.0.1'
# No socket file: its folder would be one more place to guard, with a limit on its length.
unix_socket_directories = ''
password_encryption = 'scram-sha-256'
# 100 for the application's largest pool, the rest for reports, migrations and people.
max_connections = 120
shared_buffers = '128MB'
max_wal_size = '512MB'
wal_level = 'replica'
max_wal_senders = 5
# A replica that was left behind must not fill the disk; it is copied anew then.
max_slot_wal_keep_size = '1GB'
# Plans are the same on every machine; the wheel has no JIT either.
jit = off
timezone = 'UTC'

shared_preload_libraries = 'pg_stat_statements,auto_explain'
compute_query_id = on
pg_stat_statements.track = 'all'
auto_explain.log_min_duration = '500ms'
track_io_timing = on
track_wal_io_timing = on
track_functions = 'pl'

logging_collector = on
log_destination = '{log_destination}'
log_directory = 'log'
log_filename = 'postgres-%a.log'
log_truncate_on_rotation = on
log_rotation_age = '1d'
log_rotation_size = 0
log_timezone = 'UTC'
log_min_duration_statement = '100ms'
# Neither values of parameters nor errors, whose DETAIL quotes the row: a client has its own.
log_parameter_max_length = 0
log_min_messages = 'log'
log_lock_waits = on
log_temp_files = 0
"""

ACCESS = """\
# A password for everybody, by every way in.
local all         all              scram-sha-256
host  all         all 127.0.0.1/32 scram-sha-256
host  all         all ::1/128      scram-sha-256
local replication all              scram-sha-256
host  replication all 127.0.0.1/32 scram-sha-256
host  replication all ::1/128      scram-sha-256
"""

_ROLE = """\
DO $$ BEGIN
  IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = '{role}') THEN
    CREATE ROLE {role};
  END IF;
END $$;

ALTER ROLE {role} LOGIN PASSWORD '{password}';

"""

CLUSTER = f"""\
GRANT pg_monitor TO {OWNER}, {APP}, {REPORT};

ALTER ROLE {REPORT} SET default_transaction_read_only = on;

CREATE DATABASE {DATABASE} OWNER {OWNER};

REVOKE ALL ON DATABASE {DATABASE} FROM PUBLIC;

GRANT CONNECT, TEMPORARY ON DATABASE {DATABASE} TO {APP}, {REPORT};

"""

DATABASE_OBJECTS = f"""\
CREATE EXTENSION pg_stat_statements;

CREATE EXTENSION pg_trgm;

REVOKE CREATE ON SCHEMA public FROM PUBLIC;

GRANT ALL ON SCHEMA public TO {OWNER};

ALTER DEFAULT PRIVILEGES FOR ROLE {OWNER} GRANT USAGE ON SCHEMAS TO {APP}, {REPORT};

ALTER DEFAULT PRIVILEGES FOR ROLE {OWNER}
  GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO {APP};

ALTER DEFAULT PRIVILEGES FOR ROLE {OWNER} GRANT USAGE, SELECT ON SEQUENCES TO {APP};

ALTER DEFAULT PRIVILEGES FOR ROLE {OWNER} GRANT SELECT ON TABLES TO {REPORT};

"""


def database_objects(major: int) -> str:
    """SQL for the new database; plans are read from JSON logs, so from 15 on."""
    logged = LOGGED_PLANS.read_text() if major >= 15 else ""
    return DATABASE_OBJECTS + logged


def settings(major: int) -> str:
    """Content of fwdb.conf for PostgreSQL `major`; JSON logs came with 15."""
    return SETTINGS.format(log_destination="jsonlog" if major >= 15 else "csvlog")


def roles(passwords: Mapping[str, str]) -> str:
    """SQL that makes each role, or gives it this password. For a pipe, never for a log.

    The superuser comes last: when its password is right, those of all are.
    """
    last = sorted(passwords.items(), key=lambda one: one[0] == SUPERUSER)
    return "".join(_ROLE.format(role=role, password=word) for role, word in last)
