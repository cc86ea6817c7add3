/*
 * schema.c
 *	  Schema versions: the shapes that a captured relation has had.
 *
 * Written by the capture worker alone, in the transaction that stages the
 * first change of the new shape, so that a raw row never names a version that
 * is not there.  What has changed is worked out in SQL, by
 * elt.put_schema_version: it is rare, and what it compares with is there.
 */
#include "postgres.h"

#include "capture/schema.h"
#include "catalog/pg_type.h"
#include "common/md5.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/pg_lsn.h"

static char *columns_json(const EltRelation *relation, bool with_missing);
static char *facts_json(const EltRelation *relation);

int
elt_schema_version(int64 source_id, const EltRelation *relation, XLogRecPtr lsn)
{
	Oid			types[] = {INT8OID, TEXTOID, OIDOID, TEXTOID, TEXTOID, CHAROID, TEXTOID, LSNOID};
	Datum		values[lengthof(types)];
	char	   *shape = columns_json(relation, false);
	char		fingerprint[MD5_DIGEST_LENGTH * 2 + 1];
	const char *error;
	int			version;
	EltSpi		spi;

	if (!pg_md5_hash(shape, strlen(shape), fingerprint, &error))
		elog(ERROR, "could not hash the columns of %s: %s", relation->name, error);
	values[0] = Int64GetDatum(source_id);
	values[1] = CStringGetTextDatum(relation->name);
	values[2] = ObjectIdGetDatum(relation->id);
	values[3] = CStringGetTextDatum(columns_json(relation, true));
	values[4] = CStringGetTextDatum(fingerprint);
	values[5] = CharGetDatum(relation->identity);
	values[6] = CStringGetTextDatum(facts_json(relation));
	values[7] = LSNGetDatum(lsn);

	elt_spi_begin(&spi);
	elt_spi_run("SELECT elt.put_schema_version($1, $2, $3, $4::jsonb, $5, $6, $7::jsonb, $8)",
				lengthof(types), types, values, NULL);
	version = (int) elt_spi_int64(0, 1);
	elt_spi_end(&spi);
	return version;
}

/*
 * The columns as users see them.  The code of a type is there where its name
 * does not say all: the fields of a composite change under the same name.
 * What older rows have in a column is no part of the shape: a rewrite of the
 * table makes it vanish.
 */
static char *
columns_json(const EltRelation *relation, bool with_missing)
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
		appendStringInfo(&json, ", \"key\": %s, \"number\": %u", column->in_key ? "true" : "false", column->number);
		if (strchr(column->type_code, '(') != NULL)
		{
			appendStringInfoString(&json, ", \"code\": ");
			escape_json(&json, column->type_code);
		}
		if (with_missing && column->missing != NULL)
		{
			appendStringInfoString(&json, ", \"missing\": ");
			escape_json(&json, column->missing);
		}
		appendStringInfoChar(&json, '}');
	}
	appendStringInfoChar(&json, ']');
	return json.data;
}

/*
 * What tells a rewrite: the relation's file, the number of its columns, of
 * those that are published the transaction that last changed each and whether
 * it may have been computed.
 */
static char *
facts_json(const EltRelation *relation)
{
	StringInfoData json;

	initStringInfo(&json);
	appendStringInfo(&json, "{\"filenode\": %u, \"natts\": %u, \"columns\": {",
					 relation->filenode, relation->natts);
	for (int i = 0; i < relation->ncolumns; i++)
	{
		const EltColumn *column = &relation->columns[i];

		appendStringInfo(&json, "%s\"%u\": [%u, %s]", i > 0 ? ", " : "", column->number, column->touched,
						 column->has_default ? "true" : "false");
	}
	appendStringInfoString(&json, "}}");
	return json.data;
}
