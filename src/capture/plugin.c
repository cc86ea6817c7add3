/*
 * plugin.c
 *	  The output plugin: from the reorder buffer to changes.
 *
 * It runs in the walsender that serves a capture worker, or in the session
 * that calls pg_logical_slot_get_changes.  It only collects: callbacks see the
 * catalogs of the past and may write nothing.
 *
 * Two formats.  "json" gives one document per change, for people and tests.
 * "batch" is what capture reads: the wire form of change.h, many changes in
 * one message, because the cost per message is most of what decoding costs.  A
 * batch is sent when it holds BATCH_BYTES, and at commit, never later: what has
 * committed must not wait for the next transaction.
 *
 * What a relation looks like, whether it is published and how its columns are
 * turned into text is worked out once and kept until an invalidation says that
 * something it came from has changed.  Invalidations arrive while catalogs are
 * read, so their callbacks only mark; the next change of the relation works it
 * out again.  They cannot be unregistered and outlive the plugin: they find it
 * through a static that is NULL when there is none.
 *
 * The library can be loaded by anybody with REPLICATION: it writes no file, and
 * options are checked.  elt's own writes carry DoNotReplicateId as their origin
 * and are left out before they are queued.
 *
 * An error here ends the decoding session, and the reader of the slot resumes
 * before the transaction it hit.  So nothing that a row may hold raises one: a
 * value too large to be staged is told by its size.
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/htup_details.h"
#include "access/transam.h"
#include "access/xact.h"
#include "capture/change.h"
#include "capture/publication.h"
#include "catalog/pg_class.h"
#include "catalog/pg_index.h"
#include "catalog/pg_type.h"
#include "commands/defrem.h"
#include "compat.h"
#include "mb/pg_wchar.h"
#include "nodes/parsenodes.h"
#include "replication/logical.h"
#include "replication/output_plugin.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#define BATCH_BYTES			(64 * 1024)
#define ROW_BYTES_MAX		(128 * 1024 * 1024) /* text of one row; what is beyond is told by its size */
#define JSONB_BYTES_MAX		(32 * 1024 * 1024)	/* of one jsonb value */
#define PROGRESS_CHANGES	100 /* between two looks at the clock */

typedef char IntegerText[24];	/* any int64 */

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

typedef struct PluginColumn
{
	int			attribute;		/* index in the tuple; -1: a partition lacks it */
	TextForm	form;
	bool		varlena;
	bool		in_identity;	/* of the replica identity: known of an old row */
	FmgrInfo	output;
} PluginColumn;

typedef struct PluginRelation
{
	Oid			relid;			/* hash key */
	bool		valid;
	bool		user_types;		/* has columns of types that may be altered */
	bool		sent;			/* description is what the reader has */
	EltPublished published;
	MemoryContext context;		/* of what follows; NULL: nothing follows */
	EltRelation *relation;
	PluginColumn *columns;
	StringInfoData description; /* wire form last sent; in the plugin's context */
} PluginRelation;

typedef struct Plugin
{
	MemoryContext context;
	MemoryContext change_context;	/* reset after each change */
	MemoryContextCallback on_reset;
	HTAB	   *relations;
	bool		batch;
	bool		convert;		/* the reader's encoding is another */
	char	   *publication;	/* NULL: every table */
	bool		begun;			/* the transaction's begin is written */
	int			changes;		/* since progress was told */
	int			guc_nest_level; /* of the settings we pinned; 0: none */
	StringInfoData message;		/* batch: what is collected */
	Datum	   *values;			/* scratch, for one tuple */
	bool	   *isnull;
	EltRow		old;
	EltRow		new;
	IntegerText *old_integers;
	IntegerText *new_integers;
} Plugin;

extern PGDLLEXPORT void _PG_output_plugin_init(OutputPluginCallbacks *callbacks);

/* the relations of the plugin that runs; NULL: none does */
static HTAB *live_relations = NULL;

/* some relation depends on more than its own relcache entry */
static bool live_dependents = false;

static void plugin_startup(LogicalDecodingContext *ctx, OutputPluginOptions *options, bool is_init);
static void read_options(List *options, Plugin *plugin);
static void pin_settings(Plugin *plugin);
static void create_row(EltRow *row, IntegerText **integers);
static void plugin_shutdown(LogicalDecodingContext *ctx);
static void forget_plugin(void *arg);
static bool plugin_filter_origin(LogicalDecodingContext *ctx, RepOriginId origin);
static void plugin_begin(LogicalDecodingContext *ctx, ReorderBufferTXN *txn);
static void plugin_commit(LogicalDecodingContext *ctx, ReorderBufferTXN *txn, XLogRecPtr commit_lsn);
static void plugin_change(LogicalDecodingContext *ctx, ReorderBufferTXN *txn,
						  Relation relation, ReorderBufferChange *change);
static void plugin_truncate(LogicalDecodingContext *ctx, ReorderBufferTXN *txn,
							int nrelations, Relation relations[], ReorderBufferChange *change);
static void plugin_message(LogicalDecodingContext *ctx, ReorderBufferTXN *txn,
						   XLogRecPtr lsn, bool transactional, const char *prefix,
						   Size size, const char *content);
static void tell_progress(LogicalDecodingContext *ctx, Plugin *plugin);
static void send_change(LogicalDecodingContext *ctx, ReorderBufferTXN *txn,
						PluginRelation *entry, EltChange *change);
static void send_document(LogicalDecodingContext *ctx, ReorderBufferTXN *txn, EltChange *change);
static void send_batch(LogicalDecodingContext *ctx, Plugin *plugin);
static void describe_relation(Plugin *plugin, PluginRelation *entry);
static void fill_row(Plugin *plugin, PluginRelation *entry, HeapTuple tuple, TupleDesc desc,
					 bool identity_only, EltRow *row, IntegerText *integers);
static void fill_unchanged(EltRow *new, const EltRow *old);
static PluginRelation *find_relation(Plugin *plugin, Relation relation);
static void build_relation(Plugin *plugin, PluginRelation *entry, Relation relation);
static void build_column(PluginColumn *column, Form_pg_attribute att);
static int	find_attribute(TupleDesc desc, const char *name, int guess);
static Bitmapset *index_columns(Oid index);
static char *reader_text(Plugin *plugin, char *text);
static void invalidate_relation(Datum arg, Oid relid);
static void invalidate_all(Datum arg, int cache, uint32 hash);
static void invalidate_types(Datum arg, int cache, uint32 hash);

/*
 * Tells the server what the plugin does.
 */
void
_PG_output_plugin_init(OutputPluginCallbacks *callbacks)
{
	callbacks->startup_cb = plugin_startup;
	callbacks->shutdown_cb = plugin_shutdown;
	callbacks->filter_by_origin_cb = plugin_filter_origin;
	callbacks->begin_cb = plugin_begin;
	callbacks->commit_cb = plugin_commit;
	callbacks->change_cb = plugin_change;
	callbacks->truncate_cb = plugin_truncate;
	callbacks->message_cb = plugin_message;
}

/* ---- start and end ---- */

static void
plugin_startup(LogicalDecodingContext *ctx, OutputPluginOptions *options, bool is_init)
{
	static bool callbacks_registered = false;
	MemoryContext caller;
	Plugin	   *plugin;
	HASHCTL		control = {
		.keysize = sizeof(Oid),
		.entrysize = sizeof(PluginRelation)
	};

	options->output_type = OUTPUT_PLUGIN_TEXTUAL_OUTPUT;
	if (is_init)
		return;

	caller = MemoryContextSwitchTo(ctx->context);
	plugin = palloc0(sizeof(Plugin));
	plugin->context = AllocSetContextCreate(ctx->context, "elt plugin", ALLOCSET_DEFAULT_SIZES);
	plugin->change_context = AllocSetContextCreate(plugin->context, "elt change",
												   ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(plugin->context);

	read_options(ctx->output_plugin_options, plugin);
	pin_settings(plugin);
	if (plugin->batch)
	{
		options->output_type = OUTPUT_PLUGIN_BINARY_OUTPUT;
		plugin->convert = pg_get_client_encoding() != GetDatabaseEncoding();
	}

	initStringInfo(&plugin->message);
	plugin->values = palloc(sizeof(Datum) * MaxTupleAttributeNumber);
	plugin->isnull = palloc(sizeof(bool) * MaxTupleAttributeNumber);
	create_row(&plugin->old, &plugin->old_integers);
	create_row(&plugin->new, &plugin->new_integers);

	control.hcxt = plugin->context;
	plugin->relations = hash_create("elt published relations", 128, &control,
									HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	live_relations = plugin->relations;
	live_dependents = false;
	plugin->on_reset.func = forget_plugin;
	plugin->on_reset.arg = plugin->relations;
	MemoryContextRegisterResetCallback(plugin->context, &plugin->on_reset);

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

	ctx->output_plugin_private = plugin;
	MemoryContextSwitchTo(caller);
}

/*
 * Reads the options of the decoding session.
 */
static void
read_options(List *options, Plugin *plugin)
{
	ListCell   *cell;

	foreach(cell, options)
	{
		DefElem    *option = lfirst_node(DefElem, cell);
		char	   *value = option->arg != NULL ? defGetString(option) : NULL;

		if (strcmp(option->defname, "format") == 0)
		{
			if (value != NULL && strcmp(value, "batch") == 0)
				plugin->batch = true;
			else if (value != NULL && strcmp(value, "json") == 0)
				plugin->batch = false;
			else
				ereport(ERROR,
						(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						 errmsg("invalid value for option \"%s\" of output plugin \"elt\"", option->defname),
						 errhint("Valid values are \"json\" and \"batch\".")));
		}
		else if (strcmp(option->defname, "publication") == 0)
		{
			if (value == NULL || *value == '\0')
				ereport(ERROR,
						(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						 errmsg("invalid value for option \"%s\" of output plugin \"elt\"", option->defname),
						 errhint("Give the name of one publication, without quotes.")));
			plugin->publication = pstrdup(value);
		}
		else
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("unknown option \"%s\" of output plugin \"elt\"", option->defname),
					 errhint("Valid options are \"format\" and \"publication\".")));
	}

	if (plugin->batch && plugin->publication == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("format \"batch\" of output plugin \"elt\" needs option \"publication\""),
				 errhint("Give the name of the publication that holds the tables to capture.")));
}

/*
 * Pins what decides how values look as text, so that a document does not
 * depend on who asks for it.  That goes as long as the function that decodes
 * does, or its transaction where it fails.  A walsender decodes outside
 * transactions: there the settings of the connection hold.
 */
static void
pin_settings(Plugin *plugin)
{
	static const char *const settings[][2] = {
		{"datestyle", "ISO, YMD"},
		{"intervalstyle", "postgres"},
		{"timezone", "UTC"},
		{"extra_float_digits", "1"},
		{"bytea_output", "hex"},
		{"lc_monetary", "C"}
	};

	if (!IsTransactionState())
		return;
	plugin->guc_nest_level = NewGUCNestLevel();
	for (int i = 0; i < lengthof(settings); i++)
		(void) set_config_option(settings[i][0], settings[i][1], PGC_USERSET,
								 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
}

static void
create_row(EltRow *row, IntegerText **integers)
{
	row->fields = palloc(sizeof(EltField) * MaxTupleAttributeNumber);
	row->values = palloc(sizeof(char *) * MaxTupleAttributeNumber);
	row->lengths = palloc(sizeof(int) * MaxTupleAttributeNumber);
	*integers = palloc(sizeof(IntegerText) * MaxTupleAttributeNumber);
}

static void
plugin_shutdown(LogicalDecodingContext *ctx)
{
	Plugin	   *plugin = ctx->output_plugin_private;

	if (plugin == NULL)
		return;
	forget_plugin(plugin->relations);
	if (plugin->guc_nest_level > 0)
		AtEOXact_GUC(false, plugin->guc_nest_level);
}

/*
 * Sees to it that invalidations no longer look at a plugin that ended, in
 * whatever way it did.
 */
static void
forget_plugin(void *arg)
{
	if (live_relations == arg)
		live_relations = NULL;
}

/* ---- callbacks of the reorder buffer ---- */

static bool
plugin_filter_origin(LogicalDecodingContext *ctx, RepOriginId origin)
{
	return origin == DoNotReplicateId;
}

/*
 * Writes nothing: a transaction of which nothing is published is not sent.
 */
static void
plugin_begin(LogicalDecodingContext *ctx, ReorderBufferTXN *txn)
{
	Plugin	   *plugin = ctx->output_plugin_private;

	plugin->begun = false;
	resetStringInfo(&plugin->message);
}

static void
plugin_commit(LogicalDecodingContext *ctx, ReorderBufferTXN *txn, XLogRecPtr commit_lsn)
{
	Plugin	   *plugin = ctx->output_plugin_private;

	OutputPluginUpdateProgress(ctx, !plugin->begun);
	plugin->changes = 0;
	if (!plugin->begun)
		return;

	plugin->begun = false;
	if (plugin->batch)
	{
		if (plugin->message.len == 0)
			elt_wire_start(&plugin->message);
		elt_wire_commit(&plugin->message, txn->end_lsn);
		send_batch(ctx, plugin);
	}
}

static void
plugin_change(LogicalDecodingContext *ctx, ReorderBufferTXN *txn,
			  Relation relation, ReorderBufferChange *change)
{
	Plugin	   *plugin = ctx->output_plugin_private;
	PluginRelation *entry = find_relation(plugin, relation);
	TupleDesc	desc = RelationGetDescr(relation);
	HeapTuple	old = elt_change_tuple(change->data.tp.oldtuple);
	HeapTuple	new = elt_change_tuple(change->data.tp.newtuple);
	EltChange	value = {0};
	bool		published = false;
	MemoryContext caller;

	tell_progress(ctx, plugin);

	switch (change->action)
	{
		case REORDER_BUFFER_CHANGE_INSERT:
			published = entry->published.insert;
			value.op = ELT_OP_INSERT;
			break;
		case REORDER_BUFFER_CHANGE_UPDATE:
			published = entry->published.update;
			value.op = ELT_OP_UPDATE;
			break;
		case REORDER_BUFFER_CHANGE_DELETE:
			published = entry->published.delete;
			value.op = ELT_OP_DELETE;
			break;
		default:
			break;
	}
	if (!published)
		return;

	caller = MemoryContextSwitchTo(plugin->change_context);

	value.lsn = change->lsn;
	value.relation = entry->relation;
	if (old != NULL && value.op != ELT_OP_INSERT)
	{
		fill_row(plugin, entry, old, desc,
				 relation->rd_rel->relreplident != REPLICA_IDENTITY_FULL,
				 &plugin->old, plugin->old_integers);
		value.old = &plugin->old;
	}
	if (new != NULL && value.op != ELT_OP_DELETE)
	{
		fill_row(plugin, entry, new, desc, false, &plugin->new, plugin->new_integers);
		value.new = &plugin->new;
		if (value.old != NULL)
			fill_unchanged(&plugin->new, &plugin->old);
	}
	send_change(ctx, txn, entry, &value);

	MemoryContextSwitchTo(caller);
	MemoryContextReset(plugin->change_context);
}

/*
 * Sends one change per table.  Partitions that appear under a table above them
 * are left out: where that table itself is truncated it is in the list too, and
 * where only a partition is, "truncate" would say too much of the whole.
 */
static void
plugin_truncate(LogicalDecodingContext *ctx, ReorderBufferTXN *txn,
				int nrelations, Relation relations[], ReorderBufferChange *change)
{
	Plugin	   *plugin = ctx->output_plugin_private;

	tell_progress(ctx, plugin);
	for (int i = 0; i < nrelations; i++)
	{
		PluginRelation *entry = find_relation(plugin, relations[i]);
		EltChange	value = {.op = ELT_OP_TRUNCATE,.lsn = change->lsn};
		MemoryContext caller;

		if (!entry->published.truncate || entry->published.relid != entry->relid)
			continue;
		caller = MemoryContextSwitchTo(plugin->change_context);
		value.relation = entry->relation;
		send_change(ctx, txn, entry, &value);
		MemoryContextSwitchTo(caller);
		MemoryContextReset(plugin->change_context);
	}
}

/*
 * Sends a message that elt.emit wrote, or anybody who knows its prefix: it is
 * data.
 */
static void
plugin_message(LogicalDecodingContext *ctx, ReorderBufferTXN *txn,
			   XLogRecPtr lsn, bool transactional, const char *prefix,
			   Size size, const char *content)
{
	Plugin	   *plugin = ctx->output_plugin_private;
	EltChange	value = {.op = ELT_OP_MESSAGE,.lsn = lsn};
	MemoryContext caller;

	if (!transactional || strcmp(prefix, "elt") != 0)
		return;

	tell_progress(ctx, plugin);
	caller = MemoryContextSwitchTo(plugin->change_context);
	if (size > ROW_BYTES_MAX / 2)
	{
		content = psprintf("{\"topic\":\"elt\",\"payload\":{\"$oversize\":%zu}}", size);
		size = strlen(content);
	}
	else if (plugin->convert &&
			 pg_verify_mbstr(GetDatabaseEncoding(), content, size, true))
	{
		char	   *converted = pg_server_to_client(content, size);

		if (converted != content)
		{
			content = converted;
			size = strlen(converted);
		}
	}
	value.message = content;
	value.message_length = size;
	send_change(ctx, txn, NULL, &value);
	MemoryContextSwitchTo(caller);
	MemoryContextReset(plugin->change_context);
}

/*
 * Keeps the connection alive while changes pass of which nothing is sent.
 */
static void
tell_progress(LogicalDecodingContext *ctx, Plugin *plugin)
{
	if (++plugin->changes >= PROGRESS_CHANGES)
	{
		OutputPluginUpdateProgress(ctx, false);
		plugin->changes = 0;
	}
}

/* ---- sending ---- */

/*
 * Sends a change in the format asked for.  entry is NULL for messages.
 */
static void
send_change(LogicalDecodingContext *ctx, ReorderBufferTXN *txn,
			PluginRelation *entry, EltChange *change)
{
	Plugin	   *plugin = ctx->output_plugin_private;
	StringInfo	message = &plugin->message;

	if (!plugin->batch)
	{
		plugin->begun = true;
		if (entry != NULL && elt_change_moves_key(change))
		{
			EltChange	part = *change;

			part.op = ELT_OP_DELETE;
			part.new = NULL;
			send_document(ctx, txn, &part);
			part.op = ELT_OP_INSERT;
			part.new = change->new;
			part.old = NULL;
			send_document(ctx, txn, &part);
		}
		else
			send_document(ctx, txn, change);
		return;
	}

	if (message->len == 0)
		elt_wire_start(message);
	if (!plugin->begun)
	{
		elt_wire_begin(message, txn->xid, txn->final_lsn, txn->xact_time.commit_time);
		plugin->begun = true;
	}
	if (entry != NULL && !entry->sent)
		describe_relation(plugin, entry);
	elt_wire_change(message, change);
	if (message->len >= BATCH_BYTES)
		send_batch(ctx, plugin);
}

static void
send_document(LogicalDecodingContext *ctx, ReorderBufferTXN *txn, EltChange *change)
{
	OutputPluginPrepareWrite(ctx, true);
	elt_change_document(ctx->out, change, txn->xid, txn->final_lsn, txn->xact_time.commit_time);
	OutputPluginWrite(ctx, true);
}

/*
 * Sends what is collected.
 */
static void
send_batch(LogicalDecodingContext *ctx, Plugin *plugin)
{
	OutputPluginPrepareWrite(ctx, true);
	appendBinaryStringInfo(ctx->out, plugin->message.data, plugin->message.len);
	OutputPluginWrite(ctx, true);
	resetStringInfo(&plugin->message);

	/* one large change must not cost memory for ever */
	if (plugin->message.maxlen > 16 * BATCH_BYTES)
	{
		MemoryContext caller = MemoryContextSwitchTo(plugin->context);

		pfree(plugin->message.data);
		initStringInfo(&plugin->message);
		MemoryContextSwitchTo(caller);
	}
}

/*
 * Writes the description of a relation, unless the reader has that very one.
 */
static void
describe_relation(Plugin *plugin, PluginRelation *entry)
{
	int			start = plugin->message.len;
	char	   *bytes;
	int			length;

	elt_wire_relation(&plugin->message, entry->relation);
	bytes = plugin->message.data + start;
	length = plugin->message.len - start;
	entry->sent = true;

	if (entry->description.data == NULL)
	{
		MemoryContext caller = MemoryContextSwitchTo(plugin->context);

		initStringInfo(&entry->description);
		MemoryContextSwitchTo(caller);
	}
	else if (entry->published.relid == entry->relid &&
			 entry->description.len == length &&
			 memcmp(entry->description.data, bytes, length) == 0)
	{
		plugin->message.len = start;
		return;
	}
	resetStringInfo(&entry->description);
	appendBinaryStringInfo(&entry->description, bytes, length);
}

/* ---- rows ---- */

/*
 * Turns a tuple into the texts of the published columns.  They live in the
 * tuple, in integers or in the current memory context.  Of a tuple that holds
 * the replica identity only, the other columns are absent.
 */
static void
fill_row(Plugin *plugin, PluginRelation *entry, HeapTuple tuple, TupleDesc desc,
		 bool identity_only, EltRow *row, IntegerText *integers)
{
	int			ncolumns = entry->relation->ncolumns;
	Size		budget = ROW_BYTES_MAX;

	heap_deform_tuple(tuple, desc, plugin->values, plugin->isnull);

	row->ncolumns = ncolumns;
	for (int i = 0; i < ncolumns; i++)
	{
		PluginColumn *column = &entry->columns[i];
		Size		limit = column->form == TEXT_FORM_JSONB ? Min(budget, JSONB_BYTES_MAX) : budget;
		Size		size;
		Datum		value;
		char	   *text;

		if (identity_only && !column->in_identity)
		{
			row->fields[i] = ELT_FIELD_ABSENT;
			continue;
		}
		if (column->attribute < 0 || plugin->isnull[column->attribute])
		{
			row->fields[i] = ELT_FIELD_NULL;
			continue;
		}
		value = plugin->values[column->attribute];

		if (column->varlena &&
			(VARATT_IS_EXTERNAL(DatumGetPointer(value)) ||
			 VARATT_IS_COMPRESSED(DatumGetPointer(value))))
		{
			if (VARATT_IS_EXTERNAL_ONDISK(DatumGetPointer(value)))
			{
				row->fields[i] = ELT_FIELD_UNCHANGED;
				continue;
			}
			size = toast_raw_datum_size(value) - VARHDRSZ;
		}
		else
			size = column->varlena ? VARSIZE_ANY_EXHDR(DatumGetPointer(value)) : 0;

		/* hexadecimal and most other texts are twice as long at most */
		if (unlikely(size > (column->form == TEXT_FORM_OUTPUT ? limit / 2 : limit)))
		{
			row->fields[i] = ELT_FIELD_OVERSIZE;
			row->lengths[i] = (int) size;
			continue;
		}

		switch (column->form)
		{
			case TEXT_FORM_INT2:
				text = integers[i];
				size = pg_itoa(DatumGetInt16(value), text);
				break;
			case TEXT_FORM_INT4:
				text = integers[i];
				size = pg_ltoa(DatumGetInt32(value), text);
				break;
			case TEXT_FORM_INT8:
				text = integers[i];
				size = pg_lltoa(DatumGetInt64(value), text);
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
				text = OutputFunctionCall(&column->output, value);
				size = strlen(text);
				break;
		}

		if (unlikely(plugin->convert))
		{
			char	   *converted = pg_server_to_client(text, size);

			if (converted != text)
			{
				text = converted;
				size = strlen(text);
			}
		}

		if (unlikely(size > budget))
		{
			row->fields[i] = ELT_FIELD_OVERSIZE;
			row->lengths[i] = (int) size;
			continue;
		}
		budget -= size;
		row->fields[i] = ELT_FIELD_TEXT;
		row->values[i] = text;
		row->lengths[i] = (int) size;
	}
}

/*
 * Takes out-of-line values that an update left alone from the old row, where
 * WAL has them there (REPLICA IDENTITY FULL, or a column of the key).
 */
static void
fill_unchanged(EltRow *new, const EltRow *old)
{
	for (int i = 0; i < new->ncolumns; i++)
	{
		if (new->fields[i] == ELT_FIELD_UNCHANGED && old->fields[i] != ELT_FIELD_ABSENT)
		{
			new->fields[i] = old->fields[i];
			new->values[i] = old->values[i];
			new->lengths[i] = old->lengths[i];
		}
	}
}

/* ---- relations ---- */

/*
 * Finds what is known of a relation, and works it out where nothing is or it
 * no longer holds.
 */
static PluginRelation *
find_relation(Plugin *plugin, Relation relation)
{
	Oid			relid = RelationGetRelid(relation);
	bool		found;
	PluginRelation *entry = hash_search(plugin->relations, &relid, HASH_ENTER, &found);

	if (!found)
	{
		memset(entry, 0, sizeof(*entry));
		entry->relid = relid;
	}
	if (!entry->valid)
	{
		/* what is invalidated while we look is worked out again next time */
		entry->valid = true;
		build_relation(plugin, entry, relation);
	}
	return entry;
}

/*
 * Works out how a relation is published.
 */
static void
build_relation(Plugin *plugin, PluginRelation *entry, Relation relation)
{
	MemoryContext caller;
	Relation	shown = relation;	/* the relation it appears under */
	EltRelation *result;
	TupleDesc	desc;
	Bitmapset  *key;
	Bitmapset  *identity;
	Oid			key_index;

	if (entry->context != NULL)
		MemoryContextReset(entry->context);
	else
		entry->context = AllocSetContextCreate(plugin->context, "elt published relation",
											   ALLOCSET_SMALL_SIZES);
	caller = MemoryContextSwitchTo(entry->context);
	entry->sent = false;
	entry->user_types = false;
	entry->relation = NULL;
	entry->columns = NULL;

	elt_publication_lookup(plugin->publication, relation, &entry->published);
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
	}

	identity = index_columns(RelationGetReplicaIndex(relation));
	key_index = RelationGetReplicaIndex(shown);
	if (!OidIsValid(key_index))
		key_index = shown->rd_pkindex;
	key = index_columns(key_index);

	desc = RelationGetDescr(shown);
	result = palloc0(sizeof(EltRelation));
	result->id = entry->published.relid;
	result->name = reader_text(plugin,
							   quote_qualified_identifier(get_namespace_name(RelationGetNamespace(shown)),
														  RelationGetRelationName(shown)));
	result->columns = palloc0(sizeof(EltColumn) * (desc->natts + 1));
	entry->columns = palloc0(sizeof(PluginColumn) * (desc->natts + 1));

	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);
		EltColumn  *column;
		PluginColumn *source;
		StringInfoData code;

		if (att->attisdropped ||
			(entry->published.columns != NULL &&
			 !bms_is_member(att->attnum, entry->published.columns)))
			continue;

		column = &result->columns[result->ncolumns];
		source = &entry->columns[result->ncolumns];
		result->ncolumns++;

		initStringInfo(&code);
		elt_type_append_code(&code, att->atttypid);
		column->name = reader_text(plugin, pstrdup(NameStr(att->attname)));
		column->type_name = reader_text(plugin, format_type_with_typemod(att->atttypid, att->atttypmod));
		column->type_code = reader_text(plugin, code.data);
		column->in_key = bms_is_member(att->attnum, key);

		source->attribute = find_attribute(RelationGetDescr(relation), NameStr(att->attname), i);
		build_column(source, att);
		if (source->attribute >= 0)
			source->in_identity = bms_is_member(source->attribute + 1, identity);
		if (att->atttypid >= FirstNormalObjectId)
			entry->user_types = live_dependents = true;
	}
	elt_relation_finish(result);
	entry->relation = result;

	if (shown != relation)
		RelationClose(shown);
	MemoryContextSwitchTo(caller);
}

/*
 * Decides how a column becomes text.
 */
static void
build_column(PluginColumn *column, Form_pg_attribute att)
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
 * Gives a name in the encoding of the reader.
 */
static char *
reader_text(Plugin *plugin, char *text)
{
	return plugin->convert ? pg_server_to_client(text, strlen(text)) : text;
}

/*
 * Marks what came from a relation, or all for InvalidOid.
 */
static void
invalidate_relation(Datum arg, Oid relid)
{
	HASH_SEQ_STATUS scan;
	PluginRelation *entry;

	if (live_relations == NULL)
		return;

	if (OidIsValid(relid))
	{
		entry = hash_search(live_relations, &relid, HASH_FIND, NULL);
		if (entry != NULL)
			entry->valid = false;
		if (!live_dependents)
			return;
	}

	/* partitions depend on what they appear under, composites on their type */
	hash_seq_init(&scan, live_relations);
	while ((entry = hash_seq_search(&scan)) != NULL)
	{
		if (!OidIsValid(relid) || entry->published.relid == relid || entry->user_types)
			entry->valid = false;
	}
}

static void
invalidate_all(Datum arg, int cache, uint32 hash)
{
	invalidate_relation(arg, InvalidOid);
}

/*
 * Marks what has columns of types that are not built in.
 */
static void
invalidate_types(Datum arg, int cache, uint32 hash)
{
	HASH_SEQ_STATUS scan;
	PluginRelation *entry;

	if (live_relations == NULL || !live_dependents)
		return;

	hash_seq_init(&scan, live_relations);
	while ((entry = hash_seq_search(&scan)) != NULL)
	{
		if (entry->user_types)
			entry->valid = false;
	}
}
