/*
 * partition.c
 *	  The tables of raw staging.
 *
 * Partitions are made apart and attached: ATTACH PARTITION takes SHARE UPDATE
 * EXCLUSIVE on the parent, so readers of the log are never locked out, where
 * CREATE TABLE ... PARTITION OF would wait for all of them and hold up the
 * next ones.  This is done in the transaction that needs the partition, where
 * the supervisor has not made it ahead (control/raw_ahead.c).
 *
 * The leaves must keep the order in which they were written: no vacuum cuts
 * their end off (which would also lock readers out).
 */
#include "postgres.h"

#include "capture/partition.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "commands/sequence.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#define RAW_SCHEMA	"elt_raw"

static Oid	lookup(const char *name, bool missing_ok);
static const char *part_name(const char *source_name, const char *suffix);
static char *large_index_name(const char *leaf);
static PartitionBoundSpec *read_bound(Relation leaf);
static int64 bound_value(List *datums);

void
elt_partition_create_root(const EltSource *source)
{
	const char *root = quote_identifier(source->name);
	const char *messages = quote_identifier(part_name(source->name, "messages"));
	const char *tables = quote_identifier(part_name(source->name, "tables"));
	const char *sequence = quote_identifier(part_name(source->name, "change_id"));
	StringInfoData ddl;
	EltSpi		spi;

	initStringInfo(&ddl);
	appendStringInfo(&ddl,
					 "CREATE TABLE " RAW_SCHEMA ".%s ("
					 "change_id bigint NOT NULL, commit_lsn pg_lsn NOT NULL, lsn pg_lsn NOT NULL, "
					 "xid bigint NOT NULL, commit_ts timestamptz NOT NULL, staged_at timestamptz NOT NULL, "
					 "seq int NOT NULL, key_hash int NOT NULL, schema_version int NOT NULL, op \"char\" NOT NULL, "
					 "relation text NOT NULL, key jsonb, before jsonb, after jsonb, unchanged text[], large text[]) "
					 "PARTITION BY LIST (op);", root);
	appendStringInfo(&ddl,
					 "CREATE TABLE " RAW_SCHEMA ".%s PARTITION OF " RAW_SCHEMA ".%s "
					 "FOR VALUES IN ('m') PARTITION BY RANGE (change_id);", messages, root);
	appendStringInfo(&ddl,
					 "CREATE TABLE " RAW_SCHEMA ".%s PARTITION OF " RAW_SCHEMA ".%s "
					 "FOR VALUES IN ('r', 'c', 'u', 'd', 't') PARTITION BY LIST (relation);", tables, root);
	appendStringInfo(&ddl, "CREATE SEQUENCE " RAW_SCHEMA ".%s INCREMENT BY %d;", sequence, ELT_CHANGE_ID_BLOCK);
	appendStringInfo(&ddl, "COMMENT ON TABLE " RAW_SCHEMA ".%s IS %s;", root,
					 quote_literal_cstr(psprintf("raw staging of elt source %s: every captured change, in commit order",
												 source->name)));
	appendStringInfo(&ddl, "GRANT SELECT ON " RAW_SCHEMA ".%s TO %s;", root,
					 quote_identifier(GetUserNameFromId(source->owner, false)));
	appendStringInfo(&ddl, "GRANT USAGE ON SCHEMA " RAW_SCHEMA " TO %s",
					 quote_identifier(GetUserNameFromId(source->owner, false)));

	elt_spi_begin(&spi);
	elt_spi_execute(ddl.data);
	elt_spi_end(&spi);
}

void
elt_partition_drop_root(const char *source_name)
{
	EltSpi		spi;

	elt_spi_begin(&spi);
	elt_spi_execute(psprintf("DROP TABLE IF EXISTS " RAW_SCHEMA ".%s; DROP SEQUENCE IF EXISTS " RAW_SCHEMA ".%s",
							 quote_identifier(source_name),
							 quote_identifier(part_name(source_name, "change_id"))));
	elt_spi_end(&spi);
}

Oid
elt_partition_of_relation(const EltSource *source, const char *relation)
{
	Oid			types[] = {INT8OID, TEXTOID};
	Datum		values[] = {Int64GetDatum(source->source_id), CStringGetTextDatum(relation)};
	int64		table_id;
	Oid			partition;
	EltSpi		spi;

	elt_spi_begin(&spi);
	if (elt_spi_run("SELECT table_id, raw::oid FROM elt.source_tables WHERE source_id = $1 AND relation = $2",
					2, types, values, NULL) != 1)
		elog(ERROR, "relation %s is not known to source \"%s\"", relation, source->name);
	table_id = elt_spi_int64(0, 1);
	partition = (Oid) elt_spi_int64(0, 2);

	if (!OidIsValid(partition))
	{
		const char *name = part_name(source->name, psprintf(INT64_FORMAT, table_id));
		Datum		update_values[3];
		Oid			update_types[] = {INT8OID, TEXTOID, OIDOID};

		elt_spi_execute(psprintf("CREATE TABLE " RAW_SCHEMA ".%s (LIKE " RAW_SCHEMA ".%s) PARTITION BY RANGE (change_id);"
								 "ALTER TABLE " RAW_SCHEMA ".%s ATTACH PARTITION " RAW_SCHEMA ".%s FOR VALUES IN (%s)",
								 quote_identifier(name), quote_identifier(source->name),
								 quote_identifier(part_name(source->name, "tables")),
								 quote_identifier(name), quote_literal_cstr(relation)));
		partition = lookup(name, false);
		update_values[0] = values[0];
		update_values[1] = values[1];
		update_values[2] = ObjectIdGetDatum(partition);
		elt_spi_run("UPDATE elt.source_tables SET raw = $3 WHERE source_id = $1 AND relation = $2",
					3, update_types, update_values, NULL);
	}
	elt_spi_end(&spi);
	return partition;
}

Oid
elt_partition_of_messages(const char *source_name)
{
	return lookup(part_name(source_name, "messages"), false);
}

Oid
elt_partition_leaf(const EltSource *source, Oid partition, int64 change_id)
{
	int64		number = change_id / source->partition_changes;
	char	   *parent = get_rel_name(partition);
	char	   *name;
	Oid			leaf;

	if (parent == NULL)
		elog(ERROR, "cache lookup failed for relation %u", partition);
	name = psprintf("%s$" INT64_FORMAT, parent, number);
	leaf = lookup(name, true);
	if (!OidIsValid(leaf))
	{
		/* somebody else may be making it, ahead of need */
		LockRelationOid(partition, ShareUpdateExclusiveLock);
		leaf = lookup(name, true);
	}
	if (!OidIsValid(leaf))
	{
		EltSpi		spi;

		elt_spi_begin(&spi);
		elt_spi_execute(psprintf("CREATE TABLE " RAW_SCHEMA ".%s (LIKE " RAW_SCHEMA ".%s) "
								 "WITH (vacuum_truncate = off, toast.vacuum_truncate = off);"
								 "CREATE INDEX %s ON " RAW_SCHEMA ".%s (key_hash, change_id) WHERE large IS NOT NULL;"
								 "ALTER TABLE " RAW_SCHEMA ".%s ATTACH PARTITION " RAW_SCHEMA ".%s "
								 "FOR VALUES FROM (" INT64_FORMAT ") TO (" INT64_FORMAT ")",
								 quote_identifier(name), quote_identifier(source->name),
								 quote_identifier(large_index_name(name)), quote_identifier(name),
								 quote_identifier(parent), quote_identifier(name),
								 number * source->partition_changes, (number + 1) * source->partition_changes));
		elt_spi_end(&spi);
		leaf = lookup(name, false);
	}
	return leaf;
}

bool
elt_partition_has_leaf(const EltSource *source, Oid partition, int64 number)
{
	char	   *parent = get_rel_name(partition);

	return parent != NULL && OidIsValid(lookup(psprintf("%s$" INT64_FORMAT, parent, number), true));
}

/*
 * elt_partition_skip_range
 *		Nobody takes change_ids meanwhile: setting a sequence is no step from
 *		what it was, and to set it back would give ids out twice.
 */
bool
elt_partition_skip_range(const EltSource *source)
{
	Oid			sequence = elt_partition_sequence(source->name);
	int64		width = source->partition_changes;
	int64		last;

	if (!ConditionalLockRelationOid(sequence, ShareRowExclusiveLock))
		return false;
	last = nextval_internal(sequence, false);
	(void) DirectFunctionCall2(setval_oid, ObjectIdGetDatum(sequence), Int64GetDatum((last / width + 1) * width));
	return true;
}

Oid
elt_partition_large_index(Relation leaf)
{
	return get_relname_relid(large_index_name(RelationGetRelationName(leaf)), RelationGetNamespace(leaf));
}

/*
 * elt_partition_index_unflagged
 *		The leaf is not written any more: the index stays complete.
 */
Oid
elt_partition_index_unflagged(const char *leaf)
{
	char	   *name = psprintf("%s$i", leaf);
	EltSpi		spi;

	elt_spi_begin(&spi);
	elt_spi_execute(psprintf("CREATE INDEX %s ON " RAW_SCHEMA ".%s (key_hash, change_id) WHERE large IS NULL",
							 quote_identifier(name), quote_identifier(leaf)));
	elt_spi_end(&spi);
	return lookup(name, false);
}

Oid
elt_partition_unflagged_index(Relation leaf)
{
	return get_relname_relid(psprintf("%s$i", RelationGetRelationName(leaf)), RelationGetNamespace(leaf));
}

/* Whether a leaf may have rows from a change_id (inclusive) to another one (exclusive). */
bool
elt_partition_overlaps(Relation leaf, int64 from, int64 end)
{
	PartitionBoundSpec *bound = read_bound(leaf);

	return bound == NULL || (bound_value(bound->lowerdatums) < end && bound_value(bound->upperdatums) > from);
}

static PartitionBoundSpec *
read_bound(Relation leaf)
{
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(RelationGetRelid(leaf)));
	PartitionBoundSpec *bound = NULL;
	Datum		value;
	bool		isnull;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for relation %u", RelationGetRelid(leaf));
	value = SysCacheGetAttr(RELOID, tuple, Anum_pg_class_relpartbound, &isnull);
	if (!isnull)
		bound = castNode(PartitionBoundSpec, stringToNode(TextDatumGetCString(value)));
	ReleaseSysCache(tuple);
	return bound;
}

static int64
bound_value(List *datums)
{
	PartitionRangeDatum *datum = linitial_node(PartitionRangeDatum, datums);

	return DatumGetInt64(castNode(Const, datum->value)->constvalue);
}

static char *
large_index_name(const char *leaf)
{
	return psprintf("%s$l", leaf);
}

Oid
elt_partition_sequence(const char *source_name)
{
	return lookup(part_name(source_name, "change_id"), false);
}

static Oid
lookup(const char *name, bool missing_ok)
{
	Oid			relid = get_relname_relid(name, get_namespace_oid(RAW_SCHEMA, false));

	if (!OidIsValid(relid) && !missing_ok)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("table " RAW_SCHEMA ".%s does not exist", quote_identifier(name)),
				 errhint("The tables of raw staging belong to elt; drop_source() removes them.")));
	return relid;
}

/* "$" cannot stand in a source's name, so these names are free. */
static const char *
part_name(const char *source_name, const char *suffix)
{
	return psprintf("%s$%s", source_name, suffix);
}
