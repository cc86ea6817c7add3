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
 * The library can be loaded by anybody with REPLICATION: it writes no file, and
 * options are checked.  elt's own writes carry DoNotReplicateId as their origin
 * and are left out before they are queued.
 */
#include "postgres.h"

#include "access/xact.h"
#include "capture/change.h"
#include "capture/encoding.h"
#include "capture/relation.h"
#include "catalog/pg_class.h"
#include "commands/defrem.h"
#include "compat.h"
#include "elt.h"
#include "mb/pg_wchar.h"
#include "nodes/parsenodes.h"
#include "replication/logical.h"
#include "replication/output_plugin.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#define BATCH_BYTES			(64 * 1024)
#define PROGRESS_CHANGES	100 /* between two looks at the clock */

typedef struct Plugin
{
	MemoryContext context;
	MemoryContext change_context;	/* reset after each change */
	EltRelationCache *relations;
	bool		batch;
	bool		convert;		/* the reader's encoding is another */
	char	   *publication;	/* NULL: every table */
	bool		begun;			/* something of the transaction is written */
	int			changes;		/* since progress was told */
	int			guc_nest_level; /* of the settings we pinned; 0: none */
	StringInfoData message;		/* batch: what is collected */
	EltRowBuffer old;
	EltRowBuffer new;
} Plugin;

extern PGDLLEXPORT void _PG_output_plugin_init(OutputPluginCallbacks *callbacks);

static void plugin_startup(LogicalDecodingContext *ctx, OutputPluginOptions *options, bool is_init);
static void read_options(List *options, Plugin *plugin);
static void pin_settings(Plugin *plugin);
static void plugin_shutdown(LogicalDecodingContext *ctx);
static bool plugin_filter_origin(LogicalDecodingContext *ctx, RepOriginId origin);
static void plugin_begin(LogicalDecodingContext *ctx, ReorderBufferTXN *txn);
static void plugin_commit(LogicalDecodingContext *ctx, ReorderBufferTXN *txn, XLogRecPtr commit_lsn);
static void plugin_change(LogicalDecodingContext *ctx, ReorderBufferTXN *txn,
						  Relation relation, ReorderBufferChange *change);
static void plugin_truncate(LogicalDecodingContext *ctx, ReorderBufferTXN *txn,
							int nrelations, Relation relations[], ReorderBufferChange *change);
static bool is_listed(Oid relid, int nrelations, Relation relations[]);
static void plugin_message(LogicalDecodingContext *ctx, ReorderBufferTXN *txn,
						   XLogRecPtr lsn, bool transactional, const char *prefix,
						   Size size, const char *content);
static void tell_progress(LogicalDecodingContext *ctx, Plugin *plugin);
static void send_change(LogicalDecodingContext *ctx, ReorderBufferTXN *txn,
						EltPublishedRelation *entry, EltChange *change);
static void send_document(LogicalDecodingContext *ctx, ReorderBufferTXN *txn, EltChange *change);
static void send_batch(LogicalDecodingContext *ctx, Plugin *plugin);
static void open_batch(Plugin *plugin, ReorderBufferTXN *txn);
static void describe_relation(Plugin *plugin, EltPublishedRelation *entry);
static void describe_changed(Plugin *plugin, ReorderBufferTXN *txn);
static bool pass_filter(EltFilter *filter, char *op, HeapTuple old, HeapTuple new, TupleDesc desc);
static void fill_unchanged(EltRow *new, const EltRow *old);

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
	MemoryContext caller;
	Plugin	   *plugin;

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
	elt_row_buffer_create(&plugin->old);
	elt_row_buffer_create(&plugin->new);
	plugin->relations = elt_relation_cache_create(plugin->context, plugin->publication,
												  plugin->convert);

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
		else if (strcmp(option->defname, "version") == 0)
		{
			if (value == NULL || strcmp(value, CppAsString2(ELT_WIRE_VERSION)) != 0)
				ereport(ERROR,
						(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						 errmsg("the reader asks for version %s of elt's change stream, and elt here speaks version %d",
								value != NULL ? value : "\"\"", ELT_WIRE_VERSION),
						 errhint("Install the same version of elt at the source and at the reader.")));
		}
		else
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("unknown option \"%s\" of output plugin \"elt\"", option->defname),
					 errhint("Valid options are \"format\", \"publication\" and \"version\".")));
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
plugin_shutdown(LogicalDecodingContext *ctx)
{
	Plugin	   *plugin = ctx->output_plugin_private;

	if (plugin == NULL)
		return;
	elt_relation_cache_end(plugin->relations);
	if (plugin->guc_nest_level > 0)
		AtEOXact_GUC(false, plugin->guc_nest_level);
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
	EltPublishedRelation *entry = elt_relation_cache_find(plugin->relations, relation);
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

	if (entry->filter != NULL && !pass_filter(entry->filter, &value.op, old, new, desc))
	{
		MemoryContextSwitchTo(caller);
		MemoryContextReset(plugin->change_context);
		return;
	}

	value.lsn = change->lsn;
	value.relation = entry->relation;
	if (old != NULL)
	{
		elt_row_buffer_fill(&plugin->old, plugin->relations, entry, old, desc,
							relation->rd_rel->relreplident != REPLICA_IDENTITY_FULL);
		value.old = &plugin->old.row;
	}
	if (new != NULL && value.op != ELT_OP_DELETE)
	{
		elt_row_buffer_fill(&plugin->new, plugin->relations, entry, new, desc, false);
		value.new = &plugin->new.row;
		if (value.old != NULL && value.new->nunchanged > 0)
			fill_unchanged(value.new, value.old);
	}
	if (value.op == ELT_OP_INSERT)
		value.old = NULL;		/* by the filter: an update until now */
	send_change(ctx, txn, entry, &value);

	MemoryContextSwitchTo(caller);
	MemoryContextReset(plugin->change_context);
}

/*
 * Sends one change per table.  Partitions that appear under a table above them
 * are left out where that table itself is truncated, since it is in the list
 * too.  Where only a partition is, "truncate" would say too much of the whole:
 * a reader of batches is told the partition.
 */
static void
plugin_truncate(LogicalDecodingContext *ctx, ReorderBufferTXN *txn,
				int nrelations, Relation relations[], ReorderBufferChange *change)
{
	Plugin	   *plugin = ctx->output_plugin_private;

	tell_progress(ctx, plugin);
	for (int i = 0; i < nrelations; i++)
	{
		EltPublishedRelation *entry = elt_relation_cache_find(plugin->relations, relations[i]);
		EltChange	value = {.op = ELT_OP_TRUNCATE,.lsn = change->lsn};
		MemoryContext caller;

		if (!entry->published.truncate)
			continue;
		if (entry->published.relid != entry->relid)
		{
			if (!plugin->batch || relations[i]->rd_rel->relkind != RELKIND_RELATION ||
				is_listed(entry->published.relid, nrelations, relations))
				continue;
			value.op = ELT_OP_TRUNCATE_PART;
			value.partition = entry->partition;
		}
		caller = MemoryContextSwitchTo(plugin->change_context);
		value.relation = entry->relation;
		send_change(ctx, txn, entry, &value);
		MemoryContextSwitchTo(caller);
		MemoryContextReset(plugin->change_context);
	}
}

static bool
is_listed(Oid relid, int nrelations, Relation relations[])
{
	for (int i = 0; i < nrelations; i++)
	{
		if (RelationGetRelid(relations[i]) == relid)
			return true;
	}
	return false;
}

/*
 * Sends a message that elt.emit wrote, or anybody who knows its prefix: it is
 * data.  DDL leaves nothing in the stream by itself; a message is decoded with
 * a view of the catalogs, so this is where changes of tables that nobody writes
 * to are noticed.
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
	if (plugin->batch)
		describe_changed(plugin, txn);
	if (size >= strlen(ELT_HEARTBEAT) && memcmp(content, ELT_HEARTBEAT, strlen(ELT_HEARTBEAT)) == 0)
	{
		MemoryContextSwitchTo(caller);
		return;
	}
	if (size > ELT_MESSAGE_BYTES_MAX)
		content = NULL;
	else if (plugin->convert &&
			 pg_verify_mbstr(GetDatabaseEncoding(), content, size, true))
	{
		EltEncoding encoding;

		/* what has no form over there is told as bytes, see change.c */
		elt_encoding_set(&encoding, GetDatabaseEncoding(), pg_get_client_encoding());
		(void) elt_encoding_convert(&encoding, &content, &size);
	}
	value.message = content;
	value.message_length = size;
	send_change(ctx, txn, NULL, &value);
	MemoryContextSwitchTo(caller);
	MemoryContextReset(plugin->change_context);
}

/*
 * Decides by a row filter what a change is: tells whether it is published, and
 * turns an update into an insert or a delete where just one of its rows is.
 * A delete of which WAL has no row cannot be told, and says nothing.
 */
static bool
pass_filter(EltFilter *filter, char *op, HeapTuple old, HeapTuple new, TupleDesc desc)
{
	bool		old_passes;
	bool		new_passes;

	switch (*op)
	{
		case ELT_OP_INSERT:
			return elt_filter_row(filter, new, desc);
		case ELT_OP_DELETE:
			return old == NULL || elt_filter_row(filter, old, desc);
		default:
			elt_filter_update(filter, old, new, desc, &old_passes, &new_passes);
			if (old_passes != new_passes)
				*op = new_passes ? ELT_OP_INSERT : ELT_OP_DELETE;
			return old_passes || new_passes;
	}
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

/*
 * Takes out-of-line values that an update left alone from the old row, where
 * WAL has them there (REPLICA IDENTITY FULL, or a column of the key).
 */
static void
fill_unchanged(EltRow *new, const EltRow *old)
{
	int			nlarge = 0;
	int		   *large = palloc((new->nunchanged + new->nlarge) * sizeof(int));

	for (int i = 0, n = 0; i < new->ncolumns; i++)
	{
		if (n < new->nlarge && new->large[n] == i)
			large[nlarge++] = new->large[n++];
		else if (new->fields[i] == ELT_FIELD_UNCHANGED && old->fields[i] != ELT_FIELD_ABSENT)
		{
			new->fields[i] = old->fields[i];
			new->values[i] = old->values[i];
			new->lengths[i] = old->lengths[i];
			new->nunchanged--;
			large[nlarge++] = i;
		}
	}
	memcpy(new->large, large, nlarge * sizeof(int));
	new->nlarge = nlarge;
}

/* ---- sending ---- */

/*
 * Sends a change in the format asked for.  entry is NULL for messages.
 */
static void
send_change(LogicalDecodingContext *ctx, ReorderBufferTXN *txn,
			EltPublishedRelation *entry, EltChange *change)
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

	open_batch(plugin, txn);
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
 * Begins the message, and the transaction, unless they have begun.
 */
static void
open_batch(Plugin *plugin, ReorderBufferTXN *txn)
{
	if (plugin->message.len == 0)
		elt_wire_start(&plugin->message);
	if (!plugin->begun)
	{
		elt_wire_begin(&plugin->message, txn->xid, txn->final_lsn, txn->xact_time.commit_time);
		plugin->begun = true;
	}
}

/*
 * Writes the new descriptions of relations that the reader knows and that have
 * changed since.
 */
static void
describe_changed(Plugin *plugin, ReorderBufferTXN *txn)
{
	EltPublishedRelation *entry;

	while ((entry = elt_relation_cache_refresh(plugin->relations)) != NULL)
	{
		if (entry->relation == NULL || entry->description.data == NULL)
			continue;
		open_batch(plugin, txn);
		describe_relation(plugin, entry);
	}
}

/*
 * Writes the description of a relation, unless the reader has that very one.
 */
static void
describe_relation(Plugin *plugin, EltPublishedRelation *entry)
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
