"""The tables, triggers and functions of the schema ``alknet``, as steps that build on each other.

Triggers, not this program, number the rows, write the history and keep unique values, so that
whatever changes a row is seen: an edit in psql and a migration too.

* Numbers are the newest in ``change`` plus one, not of a sequence: those of a sequence are not in
  the order of commits, so that followers would pass by what commits late. One lock makes the
  writers take turns; it is taken by statement, before any row is locked.
* ``json``, not ``jsonb``: a text may hold NUL, which ``jsonb`` refuses. Where its parts are needed
  NUL is replaced by U+FDD0, which is no character of any text.
* A claim is a digest: a text of any length can be unique.
* Every text column has the same collation: two that differ cannot be compared by an index.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

__all__ = ["CHANNEL", "MIGRATIONS", "SCHEMA", "Migration"]

SCHEMA = "alknet"
CHANNEL = "alknet"
"""Where commits are announced, with the newest change; edits from outside announce nothing else."""


class Migration(msgspec.Struct, frozen=True):
    """One step of the layout or of what rows hold; all that are due run in one transaction.

    Attributes:
        name: What it does, for people.
        script: SQL statements.
    """

    name: str
    script: str


_TABLES = """
CREATE TABLE alknet.row (
    tab text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    version bigint NOT NULL,
    value json NOT NULL,
    PRIMARY KEY (tab, key)
);
-- Rows are small; to compress one that is not would hold up all who wait.
ALTER TABLE alknet.row ALTER COLUMN value SET STORAGE EXTERNAL;

CREATE TABLE alknet.change (
    seq bigint PRIMARY KEY,
    tab text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE alknet.unique_field (
    tab text COLLATE "C" NOT NULL,
    field text COLLATE "C" NOT NULL,
    PRIMARY KEY (tab, field)
);

CREATE TABLE alknet.claim (
    tab text COLLATE "C" NOT NULL,
    field text COLLATE "C" NOT NULL,
    digest bytea NOT NULL,
    key text COLLATE "C" NOT NULL,
    PRIMARY KEY (tab, field, digest)
);
CREATE INDEX claim_of_row ON alknet.claim (tab, key);
"""

_HISTORY = """
CREATE FUNCTION alknet.take_turn() RETURNS void LANGUAGE sql AS $$
    -- 0x616C6B6E is "alkn"
    SELECT pg_advisory_xact_lock((1634495342::bigint << 32) | 'alknet.change'::regclass::bigint);
$$;

CREATE FUNCTION alknet.before_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM alknet.take_turn();
    RETURN NULL;
END $$;

CREATE FUNCTION alknet.number_row() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    is_moved boolean := TG_OP = 'DELETE';
BEGIN
    IF TG_OP = 'UPDATE' THEN
        is_moved := (OLD.tab, OLD.key) <> (NEW.tab, NEW.key);
    END IF;
    IF is_moved THEN
        INSERT INTO alknet.change (seq, tab, key)
            SELECT coalesce(max(seq), 0) + 1, OLD.tab, OLD.key FROM alknet.change;
    END IF;
    IF TG_OP = 'DELETE' THEN
        RETURN OLD;
    END IF;
    INSERT INTO alknet.change (seq, tab, key)
        SELECT coalesce(max(seq), 0) + 1, NEW.tab, NEW.key FROM alknet.change
        RETURNING seq INTO NEW.version;
    RETURN NEW;
END $$;

CREATE FUNCTION alknet.announce_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- A batch announces itself, once.
    IF coalesce(current_setting('alknet.batch', true), '') = '' THEN
        PERFORM pg_notify('alknet', '');
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION alknet.keep_newest() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (SELECT max(seq) FROM gone) >
        coalesce((SELECT max(seq) FROM alknet.change), 0)
    THEN
        RAISE 'the newest row of alknet.change must stay, or its number would be given twice';
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION alknet.refuse_truncate() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE 'followers would not see it: use DELETE';
END $$;

CREATE TRIGGER a_before BEFORE INSERT OR UPDATE OR DELETE ON alknet.row
    FOR EACH STATEMENT EXECUTE FUNCTION alknet.before_change();
CREATE TRIGGER b_number BEFORE INSERT OR UPDATE OR DELETE ON alknet.row
    FOR EACH ROW EXECUTE FUNCTION alknet.number_row();
CREATE TRIGGER d_announce AFTER INSERT OR UPDATE OR DELETE ON alknet.row
    FOR EACH STATEMENT EXECUTE FUNCTION alknet.announce_change();
CREATE TRIGGER e_truncate BEFORE TRUNCATE ON alknet.row
    FOR EACH STATEMENT EXECUTE FUNCTION alknet.refuse_truncate();
CREATE TRIGGER a_keep AFTER DELETE ON alknet.change REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION alknet.keep_newest();
CREATE TRIGGER b_truncate BEFORE TRUNCATE ON alknet.change
    FOR EACH STATEMENT EXECUTE FUNCTION alknet.refuse_truncate();

CREATE FUNCTION alknet.trim(_longest bigint, _kept bigint, _kept_s float8) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    newest bigint := (SELECT max(seq) FROM alknet.change);
    eldest alknet.change;
    limit_at timestamptz := now() - make_interval(secs => _kept_s);
BEGIN
    SELECT * INTO eldest FROM alknet.change ORDER BY seq LIMIT 1;
    IF newest - eldest.seq >= _longest OR eldest.at < limit_at THEN
        DELETE FROM alknet.change WHERE seq < newest AND (seq <= newest - _kept OR at < limit_at);
    END IF;
END $$;

CREATE FUNCTION alknet.pass_by(_seq bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM alknet.take_turn();
    INSERT INTO alknet.change (seq, tab, key)
        SELECT _seq + 1, '', '' WHERE _seq >= (SELECT coalesce(max(seq), 0) FROM alknet.change);
END $$;
"""

_CLAIMS = r"""
CREATE FUNCTION alknet.claims_of(_value json, _field text)
RETURNS TABLE (place bigint, digest bytea) LANGUAGE sql STABLE AS $$
    SELECT found.place, sha256(convert_to(found.text, 'UTF8'))
    FROM (SELECT replace(_value::text, '\u0000', '\ufdd0')::json -> _field) AS one (part)
    CROSS JOIN LATERAL json_array_elements_text(CASE json_typeof(one.part)
        WHEN 'array' THEN one.part
        WHEN 'null' THEN '[]'
        ELSE json_build_array(one.part) END) WITH ORDINALITY AS found (text, place)
    WHERE found.text IS NOT NULL
$$;

CREATE FUNCTION alknet.claim_row() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    wanted record;
    holder text;
BEGIN
    IF TG_OP <> 'INSERT' THEN
        DELETE FROM alknet.claim WHERE tab = OLD.tab AND key = OLD.key;
    END IF;
    IF TG_OP = 'DELETE' THEN
        RETURN NULL;
    END IF;
    FOR wanted IN
        SELECT u.field, f.place, f.digest
        FROM alknet.unique_field u CROSS JOIN LATERAL alknet.claims_of(NEW.value, u.field) f
        WHERE u.tab = NEW.tab
    LOOP
        INSERT INTO alknet.claim VALUES (NEW.tab, wanted.field, wanted.digest, NEW.key)
            ON CONFLICT DO NOTHING;
        CONTINUE WHEN FOUND;
        SELECT key INTO STRICT holder FROM alknet.claim
            WHERE tab = NEW.tab AND field = wanted.field AND digest = wanted.digest;
        IF holder <> NEW.key THEN
            RAISE unique_violation USING
                MESSAGE = format('a value of %s of %s belongs to another row',
                    wanted.field, NEW.tab),
                DETAIL = holder, CONSTRAINT = wanted.field, COLUMN = wanted.place::text;
        END IF;
    END LOOP;
    RETURN NULL;
END $$;

CREATE TRIGGER c_claim AFTER INSERT OR UPDATE OR DELETE ON alknet.row
    FOR EACH ROW EXECUTE FUNCTION alknet.claim_row();
"""

_BATCH = """
CREATE FUNCTION alknet.do_step(
    _tab text, _key text, _expect bigint, _data text, _is_check boolean,
    OUT done bigint, OUT refused_at bigint
) LANGUAGE plpgsql AS $$
DECLARE
    is_at bigint;
BEGIN
    SELECT r.version INTO is_at FROM alknet.row r WHERE r.tab = _tab AND r.key = _key;
    is_at := coalesce(is_at, 0);
    IF _expect <> is_at THEN
        refused_at := is_at;
    ELSIF _is_check OR (_data IS NULL AND is_at = 0) THEN
        done := is_at;
    ELSIF _data IS NULL THEN
        DELETE FROM alknet.row r WHERE r.tab = _tab AND r.key = _key;
        SELECT max(seq) INTO done FROM alknet.change;
    ELSIF is_at = 0 THEN
        INSERT INTO alknet.row VALUES (_tab, _key, 0, _data::json) RETURNING version INTO done;
    ELSE
        UPDATE alknet.row r SET value = _data::json WHERE r.tab = _tab AND r.key = _key
            RETURNING r.version INTO done;
    END IF;
END $$;

-- Does the writes, each whole or not at all. _sizes are their numbers of steps.
CREATE FUNCTION alknet.do_batch(
    _sizes int[], _tabs text[], _keys text[], _expects bigint[], _data text[], _checks boolean[],
    _kept bigint, _kept_s float8,
    OUT layout int, OUT begun_at bigint, OUT newest bigint, OUT versions bigint[],
    OUT failed int[], OUT refused_at bigint[],
    OUT fields text[], OUT places text[], OUT reasons text[]
) LANGUAGE plpgsql AS $$
DECLARE
    guarded text[];
    size int;
    after int := 0;
    step int;
    did record;
    field text;
    place text;
    reason text;
BEGIN
    PERFORM alknet.take_turn();
    PERFORM set_config('alknet.batch', 'on', true);
    SELECT l.version INTO STRICT layout FROM alknet.layout l;
    SELECT coalesce(max(seq), 0) INTO begun_at FROM alknet.change;
    SELECT coalesce(array_agg(u.tab), '{}') INTO guarded FROM alknet.unique_field u;
    versions := array_fill(0::bigint, ARRAY[cardinality(_tabs)]);
    FOREACH size IN ARRAY _sizes LOOP
        step := after + 1;
        IF size = 1 AND (_data[step] IS NULL OR _tabs[step] <> ALL (guarded)) THEN
            -- Cannot fail half done: the costs of a subtransaction are saved.
            did := alknet.do_step(
                _tabs[step], _keys[step], _expects[step], _data[step], _checks[step]);
            IF did.refused_at IS NULL THEN
                versions[step] := did.done;
            ELSE
                failed := failed || step;
                refused_at := refused_at || did.refused_at;
                fields := fields || NULL::text;
                places := places || NULL::text;
                reasons := reasons || NULL::text;
            END IF;
        ELSE
            BEGIN
                FOR n IN after + 1 .. after + size LOOP
                    step := n;
                    did := alknet.do_step(
                        _tabs[n], _keys[n], _expects[n], _data[n], _checks[n]);
                    IF did.refused_at IS NOT NULL THEN
                        RAISE SQLSTATE 'AK001';
                    END IF;
                    versions[n] := did.done;
                END LOOP;
            EXCEPTION WHEN SQLSTATE 'AK001' THEN
                failed := failed || step;
                refused_at := refused_at || did.refused_at;
                fields := fields || NULL::text;
                places := places || NULL::text;
                reasons := reasons || NULL::text;
            WHEN integrity_constraint_violation OR data_exception OR raise_exception THEN
                GET STACKED DIAGNOSTICS field = CONSTRAINT_NAME, place = COLUMN_NAME,
                    reason = PG_EXCEPTION_DETAIL;
                IF place = '' THEN
                    field := NULL;
                    reason := SQLERRM;
                END IF;
                failed := failed || step;
                refused_at := refused_at || NULL::bigint;
                fields := fields || field;
                places := places || place;
                reasons := reasons || reason;
            END;
        END IF;
        after := after + size;
    END LOOP;
    SELECT coalesce(max(seq), 0) INTO newest FROM alknet.change;
    IF newest <> begun_at THEN
        PERFORM alknet.trim(2 * _kept, _kept, _kept_s);
        PERFORM pg_notify('alknet', newest::text);
    END IF;
END $$;
"""

MIGRATIONS: Sequence[Migration] = (
    Migration(
        "rows, their history and their unique values",
        "".join([_TABLES, _HISTORY, _CLAIMS, _BATCH]),
    ),
)
"""All steps, oldest first; ``alknet.layout`` counts those that were made."""
