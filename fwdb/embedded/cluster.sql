-- Rights of the roles in a new cluster, and the database. In single-user mode, where it runs, a
-- statement ends with an empty line.

GRANT pg_monitor TO fwdb_owner, fwdb_app, fwdb_report;

ALTER ROLE fwdb_report SET default_transaction_read_only = on;

CREATE DATABASE fashion_wallet OWNER fwdb_owner;

REVOKE ALL ON DATABASE fashion_wallet FROM PUBLIC;

GRANT CONNECT, TEMPORARY ON DATABASE fashion_wallet TO fwdb_app, fwdb_report;

