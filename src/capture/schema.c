/*
 * schema.c
 *	  Schema versions: the shapes that a captured relation has had.
 *
 * Written by the capture worker alone, in the transaction that stages the
 * first change of the new shape, so that a raw row never names a version that
 * is not there.
 */
#include "postgres.h"

#include "capture/schema.h"
#include "catalog/pg_type.h"
#include "common/md5.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/pg_lsn.h"

static char *columns_json(const EltRelation *relation);

int
elt_schema_version(int64 source_id, const EltRelation *relation, XLogRecPtr lsn)
{
	Oid			types[] = {INT8OID, TEXTOID, TEXTOID, TEXTOID, LSNOID};
	Datum		values[5];
	char	   *columns = columns_json(relation);
	char		fingerprint[MD5_DIGEST_LENGTH * 2 + 1];
	const char *error;
	int			version;
	EltSpi		spi;

	if (!pg_md5_hash(columns, strlen(columns), fingerprint, &error))
		elog(ERROR, "could not hash the columns of %s: %s", relation->name, error);
	values[0] = Int64GetDatum(source_id);
	values[1] = CStringGetTextDatum(relation->name);
	values[2] = CStringGetTextDatum(columns);
	values[3] = CStringGetTextDatum(fingerprint);
	values[4] = LSNGetDatum(lsn);

	elt_spi_begin(&spi);
	elt_spi_run("WITH latest AS (SELECT version, fingerprint FROM elt.schema_versions "
				"                WHERE source_id = $1 AND relation = $2 ORDER BY version DESC LIMIT 1), "
				"added AS (INSERT INTO elt.schema_versions (source_id, relation, version, columns, fingerprint, valid_from_lsn) "
				"          SELECT $1, $2, coalesce((SELECT version FROM latest), 0) + 1, $3::jsonb, $4, $5 "
				"          WHERE NOT EXISTS (SELECT FROM latest WHERE fingerprint = $4) RETURNING version) "
				"SELECT version FROM added UNION ALL SELECT version FROM latest ORDER BY version DESC LIMIT 1",
				5, types, values, NULL);
	version = (int) elt_spi_int64(0, 1);
	elt_spi_end(&spi);
	return version;
}

static char *
columns_json(const EltRelation *relation)
{
	StringInfoData json;

	initStringInfo(&json);
	appendStringInfoChar(&json, '[');
	for (int i = 0; i < relation->ncolumns; i++)
	{
		const EltColumn *column = &relation->columns[i];

		appendStringInfoString(&json, i > 0 ? ", {\"name\": " : "{\"name\": ");
		escape_json(&json, column->name);
		appendStringInfoString(&json, ", \"type\": ");
		escape_json(&json, column->type_name);
		appendStringInfo(&json, ", \"key\": %s}", column->in_key ? "true" : "false");
	}
	appendStringInfoChar(&json, ']');
	return json.data;
}
