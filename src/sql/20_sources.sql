/* Sources: what is captured. */

CREATE FUNCTION elt.home() RETURNS text
	LANGUAGE c STABLE AS 'MODULE_PATHNAME', 'elt_home';
COMMENT ON FUNCTION elt.home() IS 'names this cluster and database; rows of elt.sources with another name were restored from elsewhere';

CREATE FUNCTION elt.create_source(
	name text,
	tables text[] DEFAULT NULL,
	conninfo text DEFAULT NULL,
	publication name DEFAULT NULL,
	snapshot text DEFAULT 'initial',
	options jsonb DEFAULT '{}') RETURNS bigint
	LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'elt_create_source';
COMMENT ON FUNCTION elt.create_source(text, text[], text, name, text, jsonb) IS
	'captures tables of this database, or those of a publication of the server that conninfo names, into elt_raw.<name>; returns the source''s id';

CREATE FUNCTION elt.add_table(source text, relation text, snapshot boolean DEFAULT true) RETURNS void
	LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'elt_add_table';
COMMENT ON FUNCTION elt.add_table(text, text, boolean) IS
	'adds a table to a source; with snapshot its present rows are copied first';

CREATE FUNCTION elt.remove_table(source text, relation text) RETURNS void
	LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'elt_remove_table';
COMMENT ON FUNCTION elt.remove_table(text, text) IS
	'stops capturing a table; what was staged stays';

CREATE FUNCTION elt.pause_source(name text) RETURNS void
	LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'elt_pause_source';
COMMENT ON FUNCTION elt.pause_source(text) IS
	'stops capturing until resume_source; the slot keeps the WAL from here on';

CREATE FUNCTION elt.resume_source(name text) RETURNS void
	LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'elt_resume_source';
COMMENT ON FUNCTION elt.resume_source(text) IS
	'captures on from where pause_source stopped; a source restored from a dump starts anew';

CREATE FUNCTION elt.drop_source(name text, keep_raw boolean DEFAULT false) RETURNS void
	LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'elt_drop_source';
COMMENT ON FUNCTION elt.drop_source(text, boolean) IS
	'removes a source, its slot and, unless keep_raw, its raw staging';

CREATE FUNCTION elt.emit(topic text, payload jsonb, key jsonb DEFAULT NULL) RETURNS pg_lsn
	LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'elt_emit';
COMMENT ON FUNCTION elt.emit(text, jsonb, jsonb) IS
	'writes an event into WAL with this transaction; each source of this database stages it with op m and the topic as relation';

