/*
 * relation.c
 *	  Published relations, as the output plugin sees them: what is known of
 *	  each, and how its tuples become rows.
 *
 * What a relation looks like, whether it is published and how its columns are
 * turned into text is worked out once and kept until an invalidation says that
 * something it came from has changed.  Invalidations arrive while catalogs are
 * read, so their callbacks only mark; the next change of the relation works it
 * out again.  They cannot be unregistered and outlive the decoding session:
 * they find its cache through a static that is NULL when there is none.
 *
 * What an entry comes from: its own relation; the partitioned table it appears
 * under; the publication and what is in it; the name of the schema; types that
 * are not built in (ALTER TYPE).
 *
 * Nothing that a row may hold raises an error, because the session that fails
 * on it would fail on it for ever: a value too large to be staged is told by
 * its size.
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/htup_details.h"
#include "access/transam.h"
#include "access/tupdesc_details.h"
#include "capture/encoding.h"
#include "capture/print.h"
#include "capture/relation.h"
#include "catalog/pg_index.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/syscache.h"


#define MISSING_BYTES_MAX	(64 * 1024) /* of the value that a column has in
										 * rows from before it */

/* How a column becomes text. */
typedef enum TextForm
{
	TEXT_FORM_INT2,
	TEXT_FORM_INT4,
	TEXT_FORM_INT8,
	TEXT_FORM_BOOL,
	TEXT_FORM_TEXT,				/* it is text: its bytes */
	TEXT_FORM_JSONB,
	TEXT_FORM_OUTPUT			/* its type's output function */
} TextForm;

struct EltPublishedColumn
{
	int			attribute;		/* index in the tuple; -1: a partition lacks
								 * it */
	TextForm	form;
	bool		varlena;
	bool		in_identity;	/* of the replica identity: known of an old
								 * row */
	FmgrInfo	output;
};

struct EltRelationCache
{
	MemoryContext context;
	MemoryContextCallback on_reset;
	HTAB	   *relations;
	const char *publication;	/* NULL: every table */
	bool		convert;		/* the reader's encoding is another */
	EltEncoding encoding;		/* set with the first relation, which has a
								 * transaction */
	Datum	   *values;			/* scratch, for one tuple */
	bool	   *isnull;
};

/* the relations of the session that decodes; NULL: none does */
static HTAB *live_relations = NULL;

/* some relation depends on more than its own relcache entry */
static bool live_dependents = false;

/* some relation was invalidated since elt_relation_cache_refresh saw none */
static bool live_changes = false;

static void forget_cache(void *arg);
static void build_relation(EltRelationCache *cache, EltPublishedRelation *entry, Relation relation);
static void build_column(EltPublishedColumn *column, Form_pg_attribute att);
static int	find_attribute(TupleDesc desc, const char *name, int guess);
static Bitmapset *index_columns(Oid index);
static TransactionId attribute_xid(Oid relid, AttrNumber number);
static char *missing_text(EltRelationCache *cache, Relation relation, EltPublishedColumn *column);
static char *reader_text(EltRelationCache *cache, char *text);
static void invalidate_relation(Datum arg, Oid relid);
static void invalidate_all(Datum arg, int cache_id, uint32 hash);
static void invalidate_types(Datum arg, int cache_id, uint32 hash);

/*
 * Makes a cache in the given memory context, for one decoding session.
 */
EltRelationCache *
elt_relation_cache_create(MemoryContext context, const char *publication, bool convert)
{
	static bool callbacks_registered = false;
	MemoryContext caller = MemoryContextSwitchTo(context);
	EltRelationCache *cache = palloc0(sizeof(EltRelationCache));
	HASHCTL		control = {
		.keysize = sizeof(Oid),
		.entrysize = sizeof(EltPublishedRelation),
		.hcxt = context
	};

	cache->context = context;
	cache->publication = publication;
	cache->convert = convert;
	cache->values = palloc(sizeof(Datum) * MaxTupleAttributeNumber);
	cache->isnull = palloc(sizeof(bool) * MaxTupleAttributeNumber);
	cache->relations = hash_create("elt published relations", 128, &control,
								   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	cache->on_reset.func = forget_cache;
	cache->on_reset.arg = cache->relations;
	MemoryContextRegisterResetCallback(context, &cache->on_reset);
	MemoryContextSwitchTo(caller);

	live_relations = cache->relations;
	live_dependents = false;
	live_changes = false;
	if (!callbacks_registered)
	{
		CacheRegisterRelcacheCallback(invalidate_relation, (Datum) 0);
		CacheRegisterSyscacheCallback(PUBLICATIONOID, invalidate_all, (Datum) 0);
		CacheRegisterSyscacheCallback(PUBLICATIONRELMAP, invalidate_all, (Datum) 0);
		CacheRegisterSyscacheCallback(PUBLICATIONNAMESPACEMAP, invalidate_all, (Datum) 0);
		CacheRegisterSyscacheCallback(NAMESPACEOID, invalidate_all, (Datum) 0);
		CacheRegisterSyscacheCallback(TYPEOID, invalidate_types, (Datum) 0);
		callbacks_registered = true;
	}
	return cache;
}

/*
 * Sees to it that invalidations no longer look at the cache.
 */
void
elt_relation_cache_end(EltRelationCache *cache)
{
	forget_cache(cache->relations);
}

static void
forget_cache(void *arg)
{
	if (live_relations == arg)
		live_relations = NULL;
}

/*
 * Finds what is known of a relation, and works it out where nothing is or it
 * no longer holds.
 */
EltPublishedRelation *
elt_relation_cache_find(EltRelationCache *cache, Relation relation)
{
	Oid			relid = RelationGetRelid(relation);
	bool		found;
	EltPublishedRelation *entry = hash_search(cache->relations, &relid, HASH_ENTER, &found);

	if (!found)
	{
		memset(entry, 0, sizeof(*entry));
		entry->relid = relid;
	}
	if (!entry->valid)
	{
		entry->gone = false;
		/* what is invalidated while we look is worked out again next time */
		entry->valid = true;
		build_relation(cache, entry, relation);
	}
	return entry;
}

/*
 * See relation.h.  Relations are opened without a lock, as decoding does:
 * the catalogs of the past do not change.
 */
EltPublishedRelation *
elt_relation_cache_refresh(EltRelationCache *cache)
{
	HASH_SEQ_STATUS scan;
	EltPublishedRelation *entry;

	if (!live_changes)
		return NULL;

	/* building may invalidate others, but never adds or removes an entry */
	hash_seq_init(&scan, cache->relations);
	while ((entry = hash_seq_search(&scan)) != NULL)
	{
		Relation	relation;

		if (entry->valid || entry->gone)
			continue;
		relation = RelationIdGetRelation(entry->relid);
		if (!RelationIsValid(relation))
		{
			/* a table that comes back (a rollback cannot be) is found anew */
			entry->gone = true;
			continue;
		}
		hash_seq_term(&scan);
		entry = elt_relation_cache_find(cache, relation);
		RelationClose(relation);
		return entry;
	}
	live_changes = false;
	return NULL;
}

/*
 * Works out how a relation is published.
 */
static void
build_relation(EltRelationCache *cache, EltPublishedRelation *entry, Relation relation)
{
	MemoryContext caller;
	Relation	shown = relation;	/* the relation it appears under */
	EltRelation *result;
	TupleDesc	desc;
	Bitmapset  *key;
	Bitmapset  *identity;
	Oid			key_index;

	if (cache->convert && cache->encoding.from == cache->encoding.to)
		elt_encoding_set(&cache->encoding, GetDatabaseEncoding(), pg_get_client_encoding());
	if (entry->context != NULL)
		MemoryContextReset(entry->context);
	else
		entry->context = AllocSetContextCreate(cache->context, "elt published relation",
											   ALLOCSET_SMALL_SIZES);
	caller = MemoryContextSwitchTo(entry->context);
	entry->sent = false;
	entry->user_types = false;
	entry->relation = NULL;
	entry->partition = NULL;
	entry->columns = NULL;
	entry->filter = NULL;

	elt_publication_lookup(cache->publication, relation, &entry->published);
	if (!entry->published.insert && !entry->published.update &&
		!entry->published.delete && !entry->published.truncate)
	{
		MemoryContextSwitchTo(caller);
		return;
	}

	if (entry->published.relid != entry->relid)
	{
		shown = RelationIdGetRelation(entry->published.relid);
		if (!RelationIsValid(shown))
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_TABLE),
					 errmsg("partitioned table with OID %u above \"%s\" does not exist",
							entry->published.relid, RelationGetRelationName(relation))));
		live_dependents = true;
		entry->partition = reader_text(cache,
									   quote_qualified_identifier(get_namespace_name(RelationGetNamespace(relation)),
																  RelationGetRelationName(relation)));
	}

	identity = index_columns(RelationGetReplicaIndex(relation));
	key_index = RelationGetReplicaIndex(shown);
	if (!OidIsValid(key_index))
		key_index = shown->rd_pkindex;
	key = index_columns(key_index);

	desc = RelationGetDescr(shown);
	result = palloc0(sizeof(EltRelation));
	result->id = entry->published.relid;
	result->identity = shown->rd_rel->relreplident;
	result->natts = desc->natts;
	result->filenode = shown->rd_rel->relfilenode;
	result->name = reader_text(cache,
							   quote_qualified_identifier(get_namespace_name(RelationGetNamespace(shown)),
														  RelationGetRelationName(shown)));
	result->columns = palloc0(sizeof(EltColumn) * (desc->natts + 1));
	entry->columns = palloc0(sizeof(EltPublishedColumn) * (desc->natts + 1));

	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);
		EltColumn  *column;
		EltPublishedColumn *source;
		StringInfoData code;

		if (att->attisdropped || att->attgenerated == ATTRIBUTE_GENERATED_VIRTUAL ||
			(entry->published.columns != NULL &&
			 !bms_is_member(att->attnum, entry->published.columns)))
			continue;

		column = &result->columns[result->ncolumns];
		source = &entry->columns[result->ncolumns];
		result->ncolumns++;

		initStringInfo(&code);
		elt_type_append_code(&code, att->atttypid);
		column->name = reader_text(cache, pstrdup(NameStr(att->attname)));
		column->type_name = reader_text(cache, format_type_with_typemod(att->atttypid, att->atttypmod));
		column->type_code = reader_text(cache, code.data);
		column->in_key = bms_is_member(att->attnum, key);
		column->number = att->attnum;
		column->touched = attribute_xid(RelationGetRelid(shown), att->attnum);
		column->has_default = att->atthasdef || att->attgenerated != '\0';

		source->attribute = find_attribute(RelationGetDescr(relation), NameStr(att->attname), i);
		build_column(source, att);
		if (source->attribute >= 0)
		{
			source->in_identity = bms_is_member(source->attribute + 1, identity);
			column->missing = missing_text(cache, relation, source);
		}
		if (att->atttypid >= FirstNormalObjectId)
			entry->user_types = live_dependents = true;
	}
	elt_relation_finish(result);
	entry->relation = result;
	if (entry->published.filter != NULL)
		entry->filter = elt_filter_create(entry->published.filter, shown, relation);

	if (shown != relation)
		RelationClose(shown);
	MemoryContextSwitchTo(caller);
}

/*
 * Decides how a column becomes text.
 */
static void
build_column(EltPublishedColumn *column, Form_pg_attribute att)
{
	Oid			output;
	bool		varlena;

	switch (getBaseType(att->atttypid))
	{
		case INT2OID:
			column->form = TEXT_FORM_INT2;
			break;
		case INT4OID:
			column->form = TEXT_FORM_INT4;
			break;
		case INT8OID:
			column->form = TEXT_FORM_INT8;
			break;
		case BOOLOID:
			column->form = TEXT_FORM_BOOL;
			break;
		case TEXTOID:
		case VARCHAROID:
		case BPCHAROID:
		case JSONOID:
			column->form = TEXT_FORM_TEXT;
			break;
		case JSONBOID:
			column->form = TEXT_FORM_JSONB;
			break;
		default:
			column->form = TEXT_FORM_OUTPUT;
			break;
	}
	column->varlena = att->attlen == -1;
	getTypeOutputInfo(att->atttypid, &output, &varlena);
	fmgr_info(output, &column->output);
}

/*
 * Finds a column by its name, first where it is likely to be; -1 where there
 * is none.
 */
static int
find_attribute(TupleDesc desc, const char *name, int guess)
{
	for (int i = -1; i < desc->natts; i++)
	{
		int			n = i < 0 ? Min(guess, desc->natts - 1) : i;

		if (n >= 0 && !TupleDescAttr(desc, n)->attisdropped &&
			strcmp(NameStr(TupleDescAttr(desc, n)->attname), name) == 0)
			return n;
	}
	return -1;
}

/*
 * Gives the attribute numbers of an index's key columns; NULL for no index.
 */
static Bitmapset *
index_columns(Oid index)
{
	Bitmapset  *columns = NULL;
	HeapTuple	tuple;
	Form_pg_index form;

	if (!OidIsValid(index))
		return NULL;
	tuple = SearchSysCache1(INDEXRELID, ObjectIdGetDatum(index));
	if (!HeapTupleIsValid(tuple))
		return NULL;
	form = (Form_pg_index) GETSTRUCT(tuple);
	for (int i = 0; i < form->indnkeyatts; i++)
	{
		if (form->indkey.values[i] > 0)
			columns = bms_add_member(columns, form->indkey.values[i]);
	}
	ReleaseSysCache(tuple);
	return columns;
}

/*
 * Gives the transaction that wrote the present definition of a column.
 */
static TransactionId
attribute_xid(Oid relid, AttrNumber number)
{
	HeapTuple	tuple = SearchSysCache2(ATTNUM, ObjectIdGetDatum(relid), Int16GetDatum(number));
	TransactionId xid;

	if (!HeapTupleIsValid(tuple))
		return InvalidTransactionId;
	xid = HeapTupleHeaderGetRawXmin(tuple->t_data);
	ReleaseSysCache(tuple);
	return xid;
}

/*
 * Gives the text of what rows have in a column that was added after them; NULL
 * where that is null, or too large to be worth it.
 */
static char *
missing_text(EltRelationCache *cache, Relation relation, EltPublishedColumn *column)
{
	TupleConstr *constraints = RelationGetDescr(relation)->constr;
	char	   *text;

	if (constraints == NULL || constraints->missing == NULL ||
		!constraints->missing[column->attribute].am_present)
		return NULL;
	text = OutputFunctionCall(&column->output, constraints->missing[column->attribute].am_value);

	return strlen(text) <= MISSING_BYTES_MAX ? reader_text(cache, text) : NULL;
}

/*
 * Gives a name in the encoding of the reader.
 */
static char *
reader_text(EltRelationCache *cache, char *text)
{
	return cache->convert ? elt_encoding_name(&cache->encoding, text) : text;
}

/*
 * Marks what came from a relation, or all for InvalidOid.
 */
static void
invalidate_relation(Datum arg, Oid relid)
{
	HASH_SEQ_STATUS scan;
	EltPublishedRelation *entry;

	if (live_relations == NULL)
		return;

	if (OidIsValid(relid))
	{
		entry = hash_search(live_relations, &relid, HASH_FIND, NULL);
		if (entry != NULL)
		{
			entry->valid = false;
			live_changes = true;
		}
		if (!live_dependents)
			return;
	}

	/* partitions depend on what they appear under, composites on their type */
	hash_seq_init(&scan, live_relations);
	while ((entry = hash_seq_search(&scan)) != NULL)
	{
		if (!OidIsValid(relid) || entry->published.relid == relid || entry->user_types)
		{
			entry->valid = false;
			live_changes = true;
		}
	}
}

static void
invalidate_all(Datum arg, int cache_id, uint32 hash)
{
	invalidate_relation(arg, InvalidOid);
}

/*
 * Marks what has columns of types that are not built in.
 */
static void
invalidate_types(Datum arg, int cache_id, uint32 hash)
{
	HASH_SEQ_STATUS scan;
	EltPublishedRelation *entry;

	if (live_relations == NULL || !live_dependents)
		return;

	hash_seq_init(&scan, live_relations);
	while ((entry = hash_seq_search(&scan)) != NULL)
	{
		if (entry->user_types)
		{
			entry->valid = false;
			live_changes = true;
		}
	}
}

/*
 * Gives a buffer its memory, in the current memory context.
 */
void
elt_row_buffer_create(EltRowBuffer *buffer)
{
	buffer->row.fields = palloc(sizeof(EltField) * MaxTupleAttributeNumber);
	buffer->row.values = palloc(sizeof(char *) * MaxTupleAttributeNumber);
	buffer->row.lengths = palloc(sizeof(int) * MaxTupleAttributeNumber);
	buffer->row.large = palloc(sizeof(int) * MaxTupleAttributeNumber);
	buffer->row.staged = NULL;
	buffer->integers = palloc(sizeof(*buffer->integers) * MaxTupleAttributeNumber);
}

/*
 * Turns a tuple into the texts of the published columns; see relation.h.
 */
void
elt_row_buffer_fill(EltRowBuffer *buffer, EltRelationCache *cache,
					EltPublishedRelation *entry, HeapTuple tuple,
					TupleDesc desc, bool identity_only)
{
	EltRow	   *row = &buffer->row;
	int			ncolumns = entry->relation->ncolumns;
	Size		budget = ELT_ROW_BYTES_MAX;

	heap_deform_tuple(tuple, desc, cache->values, cache->isnull);

	row->ncolumns = ncolumns;
	row->nunchanged = 0;
	row->nlarge = row->noversize = 0;
	for (int i = 0; i < ncolumns; i++)
	{
		EltPublishedColumn *column = &entry->columns[i];
		Size		limit = column->form == TEXT_FORM_JSONB ? Min(budget, ELT_JSONB_MAX) : budget;
		Size		size;
		Size		needed;
		Datum		value;
		const char *text;

		if (identity_only && !column->in_identity)
		{
			row->fields[i] = ELT_FIELD_ABSENT;
			continue;
		}
		if (column->attribute < 0 || cache->isnull[column->attribute])
		{
			row->fields[i] = ELT_FIELD_NULL;
			continue;
		}
		value = cache->values[column->attribute];

		if (column->varlena &&
			(VARATT_IS_EXTERNAL(DatumGetPointer(value)) ||
			 VARATT_IS_COMPRESSED(DatumGetPointer(value))))
		{
			if (VARATT_IS_EXTERNAL_ONDISK(DatumGetPointer(value)))
			{
				row->fields[i] = ELT_FIELD_UNCHANGED;
				row->nunchanged++;
				continue;
			}
			/* put together from its chunks: an update may leave it out */
			if (VARATT_IS_EXTERNAL_INDIRECT(DatumGetPointer(value)))
				row->large[row->nlarge++] = i;
			size = toast_raw_datum_size(value) - VARHDRSZ;
		}
		else
			size = column->varlena ? VARSIZE_ANY_EXHDR(DatumGetPointer(value)) : 0;

		/* hexadecimal and most other texts are twice as long at most */
		if (unlikely(size > (column->form == TEXT_FORM_OUTPUT ? limit / 2 : limit)))
		{
			row->fields[i] = ELT_FIELD_OVERSIZE;
			row->lengths[i] = (int) size;
			row->noversize++;
			continue;
		}

		switch (column->form)
		{
			case TEXT_FORM_INT2:
				text = buffer->integers[i];

				size = pg_itoa(DatumGetInt16(value), buffer->integers[i]);
				break;
			case TEXT_FORM_INT4:
				text = buffer->integers[i];

				size = pg_ltoa(DatumGetInt32(value), buffer->integers[i]);
				break;
			case TEXT_FORM_INT8:
				text = buffer->integers[i];

				size = pg_lltoa(DatumGetInt64(value), buffer->integers[i]);
				break;
			case TEXT_FORM_BOOL:
				text = DatumGetBool(value) ? "t" : "f";

				size = 1;
				break;
			case TEXT_FORM_TEXT:
				{
					struct varlena *bytes = PG_DETOAST_DATUM_PACKED(value);

					text = VARDATA_ANY(bytes);

					size = VARSIZE_ANY_EXHDR(bytes);
					break;
				}
			default:
				text = size < ELT_PRINT_CAREFULLY ? OutputFunctionCall(&column->output, value) :
				elt_print(&column->output, value);
				size = text !=NULL ? strlen(text) : ELT_UNPRINTABLE_SIZE;

				break;
		}

		row->fields[i] = ELT_FIELD_TEXT;
		if (unlikely(cache->convert) && text !=NULL &&
			!elt_encoding_convert(&cache->encoding, &text, &size))
			row->fields[i] = ELT_FIELD_BYTES;
		needed = row->fields[i] == ELT_FIELD_BYTES ? 2 * size + 2 : size;

		if (unlikely(needed > budget))
		{
			row->fields[i] = ELT_FIELD_OVERSIZE;
			row->lengths[i] = (int) size;
			row->noversize++;
			continue;
		}
		budget -= needed;
		row->values[i] = text;

		row->lengths[i] = (int) size;
	}
}
