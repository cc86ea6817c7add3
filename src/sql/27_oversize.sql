/*
 * Values that are too large to be staged: {"$oversize": bytes} stands for
 * them in raw staging, and who is to know of it reads it here.
 */

CREATE TABLE elt.oversize_values (
	source_id		bigint NOT NULL REFERENCES elt.sources ON DELETE CASCADE,
	source			text NOT NULL,
	relation		text NOT NULL,				-- a message: its topic is not known, "elt"
	change_id		bigint NOT NULL,			-- of the raw row
	key				jsonb,
	column_name		text NOT NULL,				-- a message: payload
	bytes			bigint NOT NULL,			-- of the value, or of its text where only that was measured
	commit_lsn		pg_lsn NOT NULL,
	lsn				pg_lsn NOT NULL,
	staged_at		timestamptz NOT NULL,
	PRIMARY KEY (source_id, change_id, column_name)
);
CREATE INDEX oversize_values_staged ON elt.oversize_values (staged_at);
COMMENT ON TABLE elt.oversize_values IS 'values that were too large to be staged: one row each, with the size that raw staging shows in their place';
