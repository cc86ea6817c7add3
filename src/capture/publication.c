/*
 * publication.c
 *	  Which relations are published, and how.
 *
 * The table set of a source is a publication, so that the words PostgreSQL
 * users know (ALTER PUBLICATION ... ADD TABLE) work on it.  The rules are those
 * of logical replication: FOR ALL TABLES, schemas, tables with column lists,
 * partitions through any partitioned table above them.
 *
 * While changes are decoded, the catalogs show the moment of the change, so a
 * table is captured from the transaction that added it to the publication on.
 * A publication that does not exist at that moment publishes nothing.
 *
 * Never published, whatever a publication says: elt's own schemas, because
 * capture would feed on itself, and what is no table (the rows of a
 * materialized view that is refreshed concurrently).
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "capture/publication.h"
#include "catalog/partition.h"
#include "catalog/pg_class.h"
#include "catalog/pg_publication.h"
#include "catalog/pg_publication_rel.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/syscache.h"

static bool is_capturable(Relation relation);
static void publish_all(Relation relation, EltPublished *published);
static void read_publication_rel(Oid publication, EltPublished *published);

/*
 * Looks up how a relation is published; see publication.h.
 */
void
elt_publication_lookup(const char *publication, Relation relation, EltPublished *published)
{
	Oid			relid = RelationGetRelid(relation);
	Publication *pub;
	List	   *ancestors = NIL;
	Oid			ancestor = InvalidOid;
	bool		member;

	memset(published, 0, sizeof(*published));
	published->relid = relid;

	if (!is_capturable(relation))
		return;
	if (publication == NULL)
	{
		publish_all(relation, published);
		return;
	}

	pub = GetPublicationByName(publication, true);
	if (pub == NULL)
		return;

	if (relation->rd_rel->relispartition)
		ancestors = get_partition_ancestors(relid);
	if (pub->alltables)
	{
		member = true;
		if (ancestors != NIL)
			ancestor = llast_oid(ancestors);
	}
	else
	{
		if (ancestors != NIL)
			ancestor = GetTopMostAncestorInPublication(pub->oid, ancestors, NULL);
		member = OidIsValid(ancestor) ||
			list_member_oid(GetRelationPublications(relid), pub->oid) ||
			list_member_oid(GetSchemaPublications(RelationGetNamespace(relation)), pub->oid);
	}
	if (!member)
		return;

	/* a partitioned table has no rows of its own, but under pubviaroot all */
	if (relation->rd_rel->relkind == RELKIND_PARTITIONED_TABLE && !pub->pubviaroot)
		return;

	published->insert = pub->pubactions.pubinsert;
	published->update = pub->pubactions.pubupdate;
	published->delete = pub->pubactions.pubdelete;
	published->truncate = pub->pubactions.pubtruncate;
	if (pub->pubviaroot && OidIsValid(ancestor))
		published->relid = ancestor;
	if (!pub->alltables)
		read_publication_rel(pub->oid, published);
}

/*
 * Tells whether a relation is one that elt captures at all.
 */
static bool
is_capturable(Relation relation)
{
	char		relkind = relation->rd_rel->relkind;
	char	   *schema;

	if (relkind != RELKIND_RELATION && relkind != RELKIND_PARTITIONED_TABLE)
		return false;
	if (!is_publishable_relation(relation))
		return false;

	schema = get_namespace_name(RelationGetNamespace(relation));
	return schema != NULL &&
		strcmp(schema, "elt") != 0 &&
		strcmp(schema, "elt_raw") != 0 &&
		strcmp(schema, "pg_catalog") != 0 &&
		strcmp(schema, "information_schema") != 0;
}

/*
 * Publishes a relation with all it has; a partition under its topmost table.
 */
static void
publish_all(Relation relation, EltPublished *published)
{
	published->insert = true;
	published->update = true;
	published->delete = true;
	published->truncate = true;
	if (relation->rd_rel->relispartition)
		published->relid = llast_oid(get_partition_ancestors(RelationGetRelid(relation)));
}

/*
 * Reads the column list and the row filter of the table in the publication,
 * where it has them.
 */
static void
read_publication_rel(Oid publication, EltPublished *published)
{
	HeapTuple	tuple = SearchSysCache2(PUBLICATIONRELMAP,
										ObjectIdGetDatum(published->relid),
										ObjectIdGetDatum(publication));
	Datum		value;
	bool		isnull;

	/* published with its schema */
	if (!HeapTupleIsValid(tuple))
		return;

	value = SysCacheGetAttr(PUBLICATIONRELMAP, tuple, Anum_pg_publication_rel_prqual, &isnull);
	if (!isnull)
		published->filter = TextDatumGetCString(value);

	value = SysCacheGetAttr(PUBLICATIONRELMAP, tuple, Anum_pg_publication_rel_prattrs, &isnull);
	if (!isnull)
		published->columns = pub_collist_to_bitmapset(NULL, value, CurrentMemoryContext);
	ReleaseSysCache(tuple);
}
