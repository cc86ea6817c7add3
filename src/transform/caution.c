/*
 * caution.c
 *	  What is allowed in a pipeline's definition, and may not be meant.
 *
 * Nothing here is an error: there are good uses of each.  But what goes wrong
 * with them later goes wrong in silence, so who makes the pipeline is told.
 */
#include "postgres.h"

#include "access/table.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "transform/caution.h"
#include "utils/builtins.h"
#include "utils/rel.h"

static void warn_of_owner(const EltPipeline *pipeline, Relation target);
static void warn_of_persistence(Relation target);
static void warn_of_commits_elsewhere(Relation target);
static void warn_of_wider_key(const EltPipeline *pipeline, const EltSource *source, Relation target);

void
elt_caution(const EltPipeline *pipeline, const EltSource *source)
{
	Relation	target = table_open(pipeline->target, AccessShareLock);

	warn_of_owner(pipeline, target);
	warn_of_persistence(target);
	warn_of_commits_elsewhere(target);
	warn_of_wider_key(pipeline, source, target);
	table_close(target, NoLock);
}

/* What a table's owner attaches to it runs as the pipeline's owner. */
static void
warn_of_owner(const EltPipeline *pipeline, Relation target)
{
	Oid			owner = target->rd_rel->relowner;

	if (superuser_arg(pipeline->owner) && !superuser_arg(owner))
		ereport(WARNING,
				(errcode(ERRCODE_WARNING),
				 errmsg("triggers, defaults and constraints of table \"%s\" will run with a superuser's rights",
						RelationGetRelationName(target)),
				 errdetail("The table belongs to role \"%s\", who is no superuser and may add some.",
						   GetUserNameFromId(owner, false)),
				 errhint("Create the pipeline as that role.")));
}

static void
warn_of_persistence(Relation target)
{
	if (target->rd_rel->relpersistence == RELPERSISTENCE_UNLOGGED)
		ereport(WARNING,
				(errcode(ERRCODE_WARNING),
				 errmsg("table \"%s\" is unlogged", RelationGetRelationName(target)),
				 errdetail("A crash of the server empties it, and the pipeline goes on where it was."),
				 errhint("ALTER TABLE ... SET LOGGED, or CALL elt.replay after a crash.")));
}

static void
warn_of_commits_elsewhere(Relation target)
{
	if (target->rd_rel->relkind == RELKIND_FOREIGN_TABLE)
		ereport(WARNING,
				(errcode(ERRCODE_WARNING),
				 errmsg("table \"%s\" is a foreign table", RelationGetRelationName(target)),
				 errdetail("The other server commits first: a crash right after it lets the batch come a second time."),
				 errhint("Give the table there a unique index over change_id, so that what comes twice is refused and shows in elt.quarantine.")));
}

/*
 * An upsert finds the row that a change is of by the target's key.  Where that
 * has columns that the source's replica identity lacks, an update of them is
 * no delete and insert in the log, and nobody removes the old row.
 */
static void
warn_of_wider_key(const EltPipeline *pipeline, const EltSource *source, Relation target)
{
	Oid			types[] = {INT8OID, TEXTOID, TEXTARRAYOID, BOOLOID};
	Datum		values[lengthof(types)];
	Datum	   *names = palloc(sizeof(Datum) * Max(1, list_length(pipeline->key)));
	char	   *wider;
	EltSpi		spi;
	ListCell   *lc;

	if (pipeline->key == NIL || pipeline->transform != NULL)
		return;
	foreach(lc, pipeline->key)
		names[foreach_current_index(lc)] = CStringGetTextDatum(lfirst(lc));
	values[0] = Int64GetDatum(source->source_id);
	values[1] = CStringGetTextDatum(pipeline->relation);
	values[2] = PointerGetDatum(construct_array(names, list_length(pipeline->key), TEXTOID, -1, false, TYPALIGN_INT));
	values[3] = BoolGetDatum(source->conninfo == NULL);

	/* a table whose shape was not captured yet is looked up, if it is here */
	elt_spi_begin(&spi);
	elt_spi_run("SELECT (SELECT string_agg(quote_ident(k), ', ') FROM unnest($3) AS k WHERE k <> ALL (i.key)) "
				"FROM coalesce((SELECT v.key FROM elt.schema_versions v WHERE v.source_id = $1 AND v.relation = $2 "
				"ORDER BY v.version DESC LIMIT 1), "
				"(SELECT array_agg(a.attname::text) FROM pg_class c "
				"JOIN pg_index x ON x.indrelid = c.oid AND CASE c.relreplident WHEN 'i' THEN x.indisreplident ELSE x.indisprimary END "
				"JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY (x.indkey) "
				"WHERE $4 AND c.oid = to_regclass($2)), '{}') AS i (key) WHERE i.key <> '{}'",
				lengthof(types), types, values, NULL);
	wider = SPI_processed > 0 ? elt_spi_text(&spi, 0, 1) : NULL;
	elt_spi_end(&spi);
	if (wider != NULL)
		ereport(WARNING,
				(errcode(ERRCODE_WARNING),
				 errmsg("the key of table \"%s\" has columns that are not in the replica identity of relation %s",
						RelationGetRelationName(target), pipeline->relation),
				 errdetail("They are: %s. An update that changes them leaves the row of the old key in the target.", wider),
				 errhint("At the source, ALTER TABLE ... REPLICA IDENTITY USING INDEX with an index over these columns too; or name the identity's columns as key.")));
}
