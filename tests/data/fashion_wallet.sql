-- A database as the Fashion Wallet service made it: enums, ids from uuid-ossp, generated names,
-- columns that fwdb does not know, and some that it misses.
CREATE FUNCTION public.uuid_generate_v4() RETURNS uuid LANGUAGE sql AS 'SELECT gen_random_uuid()';
CREATE SCHEMA shared;
CREATE SCHEMA avatar;
CREATE SCHEMA catalog;
CREATE SCHEMA audit;

CREATE TABLE public.migrations (id serial PRIMARY KEY, "timestamp" bigint NOT NULL, name varchar NOT NULL);
INSERT INTO public.migrations ("timestamp", name) VALUES (1699876545000, 'CreateAuditLogsTable');

CREATE TABLE shared.users (
    id uuid NOT NULL DEFAULT public.uuid_generate_v4(),
    email varchar(255) NOT NULL,
    password_hash varchar(255) NOT NULL,
    first_name varchar(100) NOT NULL,
    last_name varchar(100) NOT NULL,
    role varchar(50) NOT NULL DEFAULT 'user',
    is_active boolean DEFAULT true,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    deleted_at timestamptz,
    last_login_at timestamptz,
    home point,
    CONSTRAINT "PK_a3ffb1c0c8416b9fc6f907b7433" PRIMARY KEY (id),
    CONSTRAINT "UQ_97672ac88f789774dd47f7c8be3" UNIQUE (email)
);
CREATE INDEX "IDX_users_role" ON shared.users (role) WHERE (deleted_at IS NULL);
CREATE FUNCTION shared.update_updated_at_column() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN NEW.updated_at = now(); RETURN NEW; END';
CREATE TRIGGER update_users_updated_at BEFORE UPDATE ON shared.users
    FOR EACH ROW EXECUTE FUNCTION shared.update_updated_at_column();

CREATE TYPE avatar.avatars_gender_enum AS ENUM ('male', 'female', 'unisex');
CREATE TABLE avatar.avatars (
    id uuid NOT NULL DEFAULT public.uuid_generate_v4() PRIMARY KEY,
    user_id uuid NOT NULL,
    name varchar(255) NOT NULL,
    gender avatar.avatars_gender_enum NOT NULL DEFAULT 'unisex',
    measurements jsonb NOT NULL,
    customization jsonb,
    is_default boolean NOT NULL DEFAULT false,
    status varchar(20) DEFAULT 'ready',
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    deleted_at timestamptz
);

CREATE TYPE audit.audit_logs_action_enum AS ENUM ('CREATE', 'UPDATE', 'DELETE', 'READ');
CREATE TABLE audit.audit_logs (
    id uuid NOT NULL DEFAULT public.uuid_generate_v4(),
    user_id uuid,
    entity_type varchar(100) NOT NULL,
    entity_id uuid NOT NULL,
    action audit.audit_logs_action_enum NOT NULL,
    old_values jsonb,
    new_values jsonb,
    metadata text,
    ip_address varchar(45),
    user_agent text,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT "PK_audit_logs" PRIMARY KEY (id),
    CONSTRAINT "FK_audit_logs_user" FOREIGN KEY (user_id)
        REFERENCES shared.users (id) ON DELETE SET NULL
);
CREATE INDEX "IDX_audit_logs_user_created" ON audit.audit_logs (user_id, created_at DESC);
CREATE INDEX "IDX_audit_logs_entity" ON audit.audit_logs (entity_type, entity_id);
CREATE INDEX "IDX_audit_logs_action_created" ON audit.audit_logs (action, created_at DESC);
CREATE INDEX "IDX_audit_logs_created" ON audit.audit_logs (created_at DESC);
CREATE FUNCTION audit.cleanup_old_audit_logs() RETURNS void LANGUAGE plpgsql AS
    'BEGIN DELETE FROM audit.audit_logs WHERE created_at < now() - interval ''1 year''; END';

INSERT INTO shared.users (id, email, password_hash, first_name, last_name, updated_at)
SELECT CAST(md5('user' || n) AS uuid), 'user' || n || '@example.com', repeat('x', 60), 'First', 'Last',
       '2024-01-01 00:00+00'
FROM generate_series(1, 50) AS n;
INSERT INTO avatar.avatars (user_id, name, gender, measurements)
SELECT id, 'Avatar', 'female', '{"height": 170}' FROM shared.users;
INSERT INTO audit.audit_logs (user_id, entity_type, entity_id, action, created_at)
SELECT id, 'User', id, 'CREATE', now() - interval '2 years' FROM shared.users;
