/*
 * stage.c
 *	  Changes into raw staging, in bulk.
 *
 * Each leaf has one writer, and it appends: the capture worker, or of the
 * change_ids that are reserved for a copy a snapshot worker (elt_stage_use_ids).
 * change_ids grow, leaves have no trigger and no index but the one of large.c,
 * and inserts skip the free space map, so that the physical order of a leaf is
 * the order of its change_ids (see raw.h).
 *
 * Rows wait in slots until there are MAX_PENDING_ROWS or MAX_PENDING_BYTES of
 * them; then each leaf gets its own with one table_multi_insert, which costs
 * one WAL record and one lock per page.  Memory is bounded by these two,
 * whatever the size of the source's transaction.
 *
 * Change_ids come from a sequence in blocks.  A block that was begun and not
 * used up when the worker ended is lost; nothing is ever given out twice,
 * because the sequence is not transactional and its WAL precedes the rows'.
 *
 * Everything raises errors only: the local transaction is then rolled back
 * by the exit of the worker.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "capture/large.h"
#include "capture/partition.h"
#include "capture/parts.h"
#include "capture/schema.h"
#include "capture/stage.h"
#include "catalog/pg_type.h"
#include "commands/sequence.h"
#include "common/hashfn.h"
#include "executor/tuptable.h"
#include "raw.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"
#include "utils/rel.h"
#include "utils/timestamp.h"

#define MAX_PENDING_ROWS	2000
#define MAX_PENDING_BYTES	(1024 * 1024)
#define ALIVE_ROWS			1000	/* that are staged once more, between two
									 * signs of life */

/* One log: a relation of the source, or a source's messages. */
typedef struct StageLog
{
	char	   *name;			/* hash key: the relation's name, "" for
								 * messages */
	Oid			partition;
	Datum		relation_text;

	Oid			leaf;			/* that the next row goes to */
	int64		leaf_end;		/* first change_id beyond it */
	Relation	open_leaf;		/* in this transaction */
	TupleTableSlot **pending;
	int			npending;
	int			max_pending;
	bool		noted_lack;		/* since the last refresh */
	EltLarge	large;
} StageLog;

/* What the stage keeps with a relation of the decoder. */
typedef struct StageRelation
{
	StageLog   *log;
	int			schema_version;
	uint64		refresh_count;	/* of the stage when log was looked up */
} StageRelation;

struct EltStage
{
	EltSource	source;
	MemoryContext logs_context; /* until refresh */
	HTAB	   *logs;
	uint64		refresh_count;

	MemoryContext pending_context;	/* values of the pending rows */
	MemoryContext large_context;	/* see large.h */
	TupleDesc	tupdesc;
	TupleTableSlot **slots;
	int			nused;
	int64		pending_bytes;
	int64		staged;			/* since the last finish */

	Oid			sequence;
	int64		next_id;
	int64		last_id;		/* of the block at hand */
	bool		own_ids;		/* was given ids, takes none of the sequence */
	void		(*alive) (void);

	TransactionId xid;
	XLogRecPtr	commit_lsn;
	TimestampTz commit_ts;
	TimestampTz staged_at;
	int32		seq;
};

typedef struct LogEntry
{
	char		name[NAMEDATALEN * 5];	/* two quoted identifiers and a dot */
	StageLog   *log;
} LogEntry;

static StageLog *log_of_relation(EltStage *stage, EltRelation *relation, int *schema_version);
static StageLog *find_log(EltStage *stage, const char *name);
static void note_table(EltStage *stage, StageLog *log);
static void note_file(EltStage *stage, StageLog *log, const EltRelation *relation);
static void fill_large(EltStage *stage, StageLog *log, int version, EltChange *change, bool moves);
static bool note_lack(EltStage *stage, StageLog *log);
static void make_searchable(EltStage *stage, StageLog *log);
static void add_image(EltStage *stage, StageLog *log, int version, char op,
					  EltChange *change, EltRow *old, EltRow *new);
static void add_row(EltStage *stage, StageLog *log, int schema_version, char op, XLogRecPtr lsn,
					int32 key_hash, Jsonb *key, Jsonb *before, Jsonb *after,
					ArrayType *unchanged, ArrayType *large);
static void note_oversize(EltStage *stage, const EltRelation *relation, const EltRow *row,
						  XLogRecPtr lsn, Jsonb *key);
static void note_oversize_value(EltStage *stage, const char *relation, const char *column, int bytes,
								XLogRecPtr lsn, Jsonb *key);
static int64 next_change_id(EltStage *stage);
static void write_pending(EltStage *stage);
static void write_log(EltStage *stage, StageLog *log);
static void stage_message(EltStage *stage, EltChange *change);

EltStage *
elt_stage_create(const EltSource *source)
{
	EltStage   *stage = MemoryContextAllocZero(TopMemoryContext, sizeof(EltStage));

	stage->source = *source;
	stage->source.name = MemoryContextStrdup(TopMemoryContext, source->name);
	stage->logs_context = AllocSetContextCreate(TopMemoryContext, "elt stage logs", ALLOCSET_DEFAULT_SIZES);
	stage->pending_context = AllocSetContextCreate(TopMemoryContext, "elt stage pending", ALLOCSET_DEFAULT_SIZES);
	stage->large_context = AllocSetContextCreate(TopMemoryContext, "elt stage large values", ALLOCSET_DEFAULT_SIZES);
	stage->slots = MemoryContextAllocZero(TopMemoryContext, MAX_PENDING_ROWS * sizeof(TupleTableSlot *));
	elt_stage_refresh(stage);
	return stage;
}

void
elt_stage_set_alive(EltStage *stage, void (*alive) (void))
{
	stage->alive = alive;
}

void
elt_stage_refresh(EltStage *stage)
{
	HASHCTL		ctl = {0};

	Assert(stage->nused == 0);
	MemoryContextReset(stage->logs_context);
	ctl.keysize = sizeof(((LogEntry *) NULL)->name);
	ctl.entrysize = sizeof(LogEntry);
	ctl.hcxt = stage->logs_context;
	stage->logs = hash_create("elt stage logs", 64, &ctl, HASH_ELEM | HASH_STRINGS | HASH_CONTEXT);
	stage->refresh_count++;
	stage->next_id = stage->last_id = 0;	/* retention may have begun new
											 * leaves */
}

void
elt_stage_abandon(EltStage *stage)
{
	for (int i = 0; i < stage->nused; i++)
		ExecClearTuple(stage->slots[i]);
	stage->nused = 0;
	stage->pending_bytes = stage->staged = 0;
	MemoryContextReset(stage->pending_context);
	elt_stage_refresh(stage);
}

void
elt_stage_free_relation(void *user_data)
{
	if (user_data != NULL)
		pfree(user_data);
}

void
elt_stage_begin(EltStage *stage, TransactionId xid, XLogRecPtr commit_lsn, TimestampTz commit_ts)
{
	stage->xid = xid;
	stage->commit_lsn = commit_lsn;
	stage->commit_ts = commit_ts;
	stage->staged_at = GetCurrentTimestamp();
	stage->seq = 0;
}

void
elt_stage_relation(EltStage *stage, EltRelation *relation)
{
	int			version;

	(void) log_of_relation(stage, relation, &version);
}

void
elt_stage_change(EltStage *stage, EltChange *change)
{
	EltRelation *relation = change->relation;
	StageLog   *log;
	int			version;
	MemoryContext old;

	if (change->op == ELT_OP_MESSAGE)
	{
		stage_message(stage, change);
		return;
	}

	log = log_of_relation(stage, relation, &version);
	if (unlikely(change->op == ELT_OP_TRUNCATE_PART))
	{
		elt_parts_truncated(stage->source.source_id, relation->name, change->partition, stage->commit_lsn);
		return;
	}
	old = MemoryContextSwitchTo(stage->pending_context);
	if (change->op == ELT_OP_TRUNCATE)
		add_row(stage, log, version, ELT_OP_TRUNCATE, change->lsn, 0, NULL, NULL, NULL, NULL,
				elt_large_flag(&log->large, ELT_OP_TRUNCATE, relation, NULL));
	else
	{
		bool		moves = elt_change_moves_key(change);

		if (unlikely(change->new != NULL && change->new->nunchanged > 0))
			fill_large(stage, log, version, change, moves);

		if (change->op == ELT_OP_DELETE || moves)
			add_image(stage, log, version, ELT_OP_DELETE, change, change->old, NULL);
		if (change->op != ELT_OP_DELETE)
			add_image(stage, log, version, moves ? ELT_OP_INSERT : change->op, change,
					  moves ? NULL : change->old, change->new);
	}
	MemoryContextSwitchTo(old);
}

/* Stages one image; key and hash are those of the new row, else of the old one. */
static void
add_image(EltStage *stage, StageLog *log, int version, char op, EltChange *change, EltRow *old, EltRow *new)
{
	EltRow	   *row = new ? new : old;	/* none: a delete of which WAL tells
										 * nothing */
	ArrayType  *unchanged = NULL;
	Jsonb	   *before = old ? elt_row_image(change->relation, old, NULL) : NULL;
	Jsonb	   *after = new ? elt_row_image(change->relation, new, &unchanged) : NULL;
	Jsonb	   *key = row ? elt_row_key(change->relation, row) : NULL;

	if (unlikely(new && new->noversize > 0))
		note_oversize(stage, change->relation, new, change->lsn, key);
	add_row(stage, log, version, op, change->lsn,
			row ? elt_row_key_hash(change->relation, row) : 0,
			key, before, after, unchanged,
			elt_large_flag(&log->large, op, change->relation, new));
}

void
elt_stage_copied_row(EltStage *stage, EltRelation *relation, EltRow *row)
{
	int			version;
	StageLog   *log = log_of_relation(stage, relation, &version);
	MemoryContext old = MemoryContextSwitchTo(stage->pending_context);
	Jsonb	   *key = elt_row_key(relation, row);

	if (unlikely(row->noversize > 0))
		note_oversize(stage, relation, row, stage->commit_lsn, key);
	add_row(stage, log, version, ELT_OP_SNAPSHOT, stage->commit_lsn,
			elt_row_key_hash(relation, row), key,
			NULL, elt_row_image(relation, row, NULL), NULL,
			elt_large_flag(&log->large, ELT_OP_SNAPSHOT, relation, row));
	MemoryContextSwitchTo(old);
}

void
elt_stage_restage(EltStage *stage, const char *relation, const EltStagedRow *row)
{
	StageLog   *log = find_log(stage, relation);
	MemoryContext old;

	if (row->unchanged != NULL)
		(void) note_lack(stage, log);
	if (stage->alive != NULL && stage->staged % ALIVE_ROWS == 0)
		stage->alive();

	/* the row is written later */
	old = MemoryContextSwitchTo(stage->pending_context);
	stage->xid = row->xid;
	stage->commit_lsn = row->commit_lsn;
	stage->commit_ts = row->commit_ts;
	stage->staged_at = row->staged_at;
	stage->seq = row->seq;
	add_row(stage, log, row->schema_version, row->op, row->lsn, row->key_hash,
			row->key ? DatumGetJsonbPCopy(PointerGetDatum(row->key)) : NULL,
			row->before ? DatumGetJsonbPCopy(PointerGetDatum(row->before)) : NULL,
			row->after ? DatumGetJsonbPCopy(PointerGetDatum(row->after)) : NULL,
			row->unchanged ? DatumGetArrayTypePCopy(PointerGetDatum(row->unchanged)) : NULL,
			row->large ? DatumGetArrayTypePCopy(PointerGetDatum(row->large)) : NULL);
	MemoryContextSwitchTo(old);
}

void
elt_stage_complete(EltStage *stage, const char *relation, EltStagedRow *row,
				   int32 key_hash, Jsonb *key, bool history)
{
	StageLog   *log = find_log(stage, relation);

	log->large.held = false;	/* nobody writes its leaves now */
	if (history)
		log->large.usable_from = 0;
	while (!elt_large_fill_staged(&log->large, &stage->source, relation, row->schema_version, key_hash, key,
								  &row->after, &row->unchanged, &row->large))
		make_searchable(stage, log);
}

static void
stage_message(EltStage *stage, EltChange *change)
{
	StageLog   *log = find_log(stage, "");
	MemoryContext old = MemoryContextSwitchTo(stage->pending_context);
	Jsonb	   *key;
	Jsonb	   *payload;
	char	   *topic;
	uint32		hash;

	elt_message_parse(change->message, change->message_length, &topic, &key, &payload);
	if (unlikely(change->message == NULL))
		note_oversize_value(stage, topic, "payload", change->message_length, change->lsn, NULL);
	hash = hash_bytes((unsigned char *) topic, strlen(topic));
	if (key != NULL)
		hash = hash_combine(hash, hash_bytes((unsigned char *) key, VARSIZE(key)));
	else if (payload != NULL)
		hash = hash_combine(hash, hash_bytes((unsigned char *) payload, VARSIZE(payload)));
	log->relation_text = CStringGetTextDatum(topic);
	add_row(stage, log, 0, ELT_OP_MESSAGE, change->lsn, (int32) hash, key, NULL, payload, NULL, NULL);
	MemoryContextSwitchTo(old);
}

int64
elt_stage_finish(EltStage *stage)
{
	HASH_SEQ_STATUS status;
	LogEntry   *entry;
	int64		staged = stage->staged;

	write_pending(stage);
	hash_seq_init(&status, stage->logs);
	while ((entry = hash_seq_search(&status)) != NULL)
	{
		if (entry->log->open_leaf != NULL)
			table_close(entry->log->open_leaf, NoLock);
		entry->log->open_leaf = NULL;
	}
	stage->staged = 0;
	return staged;
}

/* ---- which log a change goes to ---- */

/*
 * The log that takes a relation's rows, and the version of its present shape.
 * NULL where the copy has what comes now: its shape is older than the copy's,
 * which is known already.
 */
static StageLog *
log_of_relation(EltStage *stage, EltRelation *relation, int *schema_version)
{
	StageRelation *known = relation->user_data;

	if (known == NULL)
	{
		known = MemoryContextAllocZero(TopMemoryContext, sizeof(StageRelation));
		relation->user_data = known;
	}
	if (known->refresh_count != stage->refresh_count)
	{
		StageLog   *log = find_log(stage, relation->name);

		note_file(stage, log, relation);
		known->log = log;
		known->schema_version = elt_schema_version(stage->source.source_id, relation, stage->commit_lsn);
		known->refresh_count = stage->refresh_count;
	}
	*schema_version = known->schema_version;
	return known->log;
}

static StageLog *
find_log(EltStage *stage, const char *name)
{
	bool		found;
	LogEntry   *entry;
	StageLog   *log;

	if (strlen(name) >= sizeof(entry->name))
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("the source sent a relation name of %zu bytes", strlen(name))));
	entry = hash_search(stage->logs, name, HASH_FIND, &found);
	if (found)
		return entry->log;

	log = MemoryContextAllocZero(stage->logs_context, sizeof(StageLog));
	log->name = MemoryContextStrdup(stage->logs_context, name);
	elt_large_init(&log->large, stage->large_context);
	if (name[0] == '\0')
		log->partition = elt_partition_of_messages(stage->source.name);
	else
	{
		MemoryContext old = MemoryContextSwitchTo(stage->logs_context);

		log->relation_text = CStringGetTextDatum(name);
		MemoryContextSwitchTo(old);
		note_table(stage, log);
		log->large.partition = log->partition = elt_partition_of_relation(&stage->source, name);
		log->large.alive = stage->alive;
	}
	entry = hash_search(stage->logs, name, HASH_ENTER, &found);
	entry->log = log;
	return log;
}

/*
 * A table that the publication got without elt's doing is captured from here
 * on.  Nothing is locked where it is known: snapshot workers come here too.
 */
static void
note_table(EltStage *stage, StageLog *log)
{
	Oid			types[] = {INT8OID, TEXTOID};
	Datum		values[] = {Int64GetDatum(stage->source.source_id), log->relation_text};
	EltSpi		spi;

	elt_spi_begin(&spi);
	if (elt_spi_run("SELECT coalesce(f.changed_at, 0), t.state = 'pending', CASE WHEN t.resync THEN coalesce(t.horizon, 0) ELSE 0 END "
					"FROM elt.source_tables t LEFT JOIN elt.relation_files f USING (table_id) "
					"WHERE t.source_id = $1 AND t.relation = $2 AND t.state <> 'removed'",
					2, types, values, NULL) > 0)
	{
		log->large.changed_at = elt_spi_int64(0, 1);
		log->large.held = elt_spi_bool(0, 2);
		log->large.usable_from = elt_spi_int64(0, 3);
	}
	else
		elt_spi_run("INSERT INTO elt.source_tables (source_id, relation, newly_published) VALUES ($1, $2, true) "
					"ON CONFLICT (source_id, relation) DO UPDATE SET state = 'ready', newly_published = true "
					"WHERE source_tables.state = 'removed'",
					2, types, values, NULL);
	elt_spi_end(&spi);
}

/*
 * Notes where a relation's rows begin that are stored as its present file has
 * them.
 */
static void
note_file(EltStage *stage, StageLog *log, const EltRelation *relation)
{
	Oid			types[] = {INT8OID, TEXTOID, INT8OID, INT8OID};
	Datum		values[4];
	int64		changed_at;
	EltSpi		spi;

	if (stage->own_ids)
		return;					/* a copy reads what is, not what was */
	values[0] = Int64GetDatum(stage->source.source_id);
	values[1] = log->relation_text;
	values[2] = Int64GetDatum(relation->filenode);
	values[3] = Int64GetDatum(elt_stage_next_id(stage));
	elt_spi_begin(&spi);
	elt_spi_run("SELECT elt.note_relation_file($1, $2, $3, $4)", 4, types, values, NULL);
	changed_at = elt_spi_int64(0, 1);
	elt_spi_end(&spi);
	if (changed_at != log->large.changed_at)
		log->large.searchable = false;
	log->large.changed_at = changed_at;
}

/* ---- large values ---- */

static void
fill_large(EltStage *stage, StageLog *log, int version, EltChange *change, bool moves)
{
	EltRelation *relation = change->relation;

	/* a row that moves takes along what the old key has */
	EltRow	   *before = moves ? change->old : change->new;

	for (;;)
	{
		if (!elt_large_fill(&log->large, &stage->source, relation, version, change->new,
							elt_row_key_hash(relation, before), elt_row_key(relation, before)))
			make_searchable(stage, log);
		else if (change->new->nunchanged == 0 || !log->large.held || note_lack(stage, log))
			break;
		else
			log->large.held = false;	/* the copy was sealed since we looked */
	}
}

/*
 * Sees to it that what a row lacks is looked for at the end of its table's
 * copy.  False where that is behind.  The row stays locked, so that the end
 * waits for this transaction.
 */
static bool
note_lack(EltStage *stage, StageLog *log)
{
	Oid			types[] = {INT8OID, TEXTOID};
	Datum		values[] = {Int64GetDatum(stage->source.source_id), log->relation_text};
	EltSpi		spi;

	if (log->noted_lack)
		return true;
	elt_spi_begin(&spi);
	log->noted_lack = elt_spi_run("UPDATE elt.source_tables SET lacking = true "
								  "WHERE source_id = $1 AND relation = $2 AND state = 'pending'",
								  2, types, values, NULL) > 0;
	elt_spi_end(&spi);
	return log->noted_lack;
}

/* Ends the leaf with the rows that were stored otherwise, if it is being written. */
static void
make_searchable(EltStage *stage, StageLog *log)
{
	int64		width = stage->source.partition_changes;

	if (log->npending > 0)
		write_pending(stage);
	if (log->open_leaf != NULL)
		table_close(log->open_leaf, NoLock);
	log->open_leaf = NULL;
	if (elt_stage_next_id(stage) / width == (log->large.changed_at - 1) / width)
		(void) elt_stage_reserve_leaves(stage, 0);
	log->large.searchable = true;
}

/* ---- rows ---- */

static void
add_row(EltStage *stage, StageLog *log, int schema_version, char op, XLogRecPtr lsn,
		int32 key_hash, Jsonb *key, Jsonb *before, Jsonb *after, ArrayType *unchanged, ArrayType *large)
{
	int64		change_id = next_change_id(stage);
	TupleTableSlot *slot;
	Datum	   *values;
	bool	   *isnull;

	if (change_id >= log->leaf_end)
	{
		int64		width = stage->source.partition_changes;

		if (log->npending > 0)
			write_log(stage, log);	/* these belong to the leaf before */
		if (log->open_leaf != NULL)
			table_close(log->open_leaf, NoLock);
		log->open_leaf = NULL;
		log->leaf = elt_partition_leaf(&stage->source, log->partition, change_id);
		log->leaf_end = (change_id / width + 1) * width;
	}
	if (log->open_leaf == NULL)
	{
		log->open_leaf = table_open(log->leaf, RowExclusiveLock);
		if (stage->tupdesc == NULL)
		{
			MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

			stage->tupdesc = CreateTupleDescCopy(RelationGetDescr(log->open_leaf));
			if (stage->tupdesc->natts != ELT_RAW_NCOLUMNS)
				elog(ERROR, "raw staging of source \"%s\" has %d columns, not %d",
					 stage->source.name, stage->tupdesc->natts, ELT_RAW_NCOLUMNS);
			MemoryContextSwitchTo(old);
		}
	}

	if (stage->slots[stage->nused] == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

		stage->slots[stage->nused] = MakeSingleTupleTableSlot(stage->tupdesc, &TTSOpsVirtual);
		MemoryContextSwitchTo(old);
	}
	slot = stage->slots[stage->nused++];
	if (log->npending == log->max_pending)
	{
		log->max_pending = Max(64, log->max_pending * 2);
		log->pending = log->pending == NULL ?
			MemoryContextAlloc(stage->logs_context, log->max_pending * sizeof(TupleTableSlot *)) :
			repalloc(log->pending, log->max_pending * sizeof(TupleTableSlot *));
	}
	log->pending[log->npending++] = slot;

	ExecClearTuple(slot);
	values = slot->tts_values - 1;
	isnull = slot->tts_isnull - 1;
	memset(slot->tts_isnull, 0, ELT_RAW_NCOLUMNS * sizeof(bool));
	values[ELT_RAW_CHANGE_ID] = Int64GetDatum(change_id);
	values[ELT_RAW_COMMIT_LSN] = LSNGetDatum(stage->commit_lsn);
	values[ELT_RAW_LSN] = LSNGetDatum(lsn);
	values[ELT_RAW_XID] = Int64GetDatum((int64) stage->xid);
	values[ELT_RAW_COMMIT_TS] = TimestampTzGetDatum(stage->commit_ts);
	values[ELT_RAW_STAGED_AT] = TimestampTzGetDatum(stage->staged_at);
	values[ELT_RAW_SEQ] = Int32GetDatum(stage->seq++);
	values[ELT_RAW_KEY_HASH] = Int32GetDatum(key_hash);
	values[ELT_RAW_SCHEMA_VERSION] = Int32GetDatum(schema_version);
	values[ELT_RAW_OP] = CharGetDatum(op);
	values[ELT_RAW_RELATION] = log->relation_text;
	values[ELT_RAW_KEY] = PointerGetDatum(key);
	isnull[ELT_RAW_KEY] = key == NULL;
	values[ELT_RAW_BEFORE] = PointerGetDatum(before);
	isnull[ELT_RAW_BEFORE] = before == NULL;
	values[ELT_RAW_AFTER] = PointerGetDatum(after);
	isnull[ELT_RAW_AFTER] = after == NULL;
	values[ELT_RAW_UNCHANGED] = PointerGetDatum(unchanged);
	isnull[ELT_RAW_UNCHANGED] = unchanged == NULL;
	values[ELT_RAW_LARGE] = PointerGetDatum(large);
	isnull[ELT_RAW_LARGE] = large == NULL;
	ExecStoreVirtualTuple(slot);
	if (unlikely(large != NULL))
		elt_large_wait(&log->large, slot, stage->pending_context);

	stage->staged++;
	stage->pending_bytes += 128 + (key ? VARSIZE(key) : 0) + (before ? VARSIZE(before) : 0) +
		(after ? VARSIZE(after) : 0);
	if (stage->nused == MAX_PENDING_ROWS || stage->pending_bytes >= MAX_PENDING_BYTES)
		write_pending(stage);
}

static int64
next_change_id(EltStage *stage)
{
	int64		change_id = elt_stage_next_id(stage);

	stage->next_id++;
	return change_id;
}

int64
elt_stage_next_id(EltStage *stage)
{
	if (stage->next_id >= stage->last_id)
	{
		if (stage->own_ids)
			elog(ERROR, "the change_ids that were reserved for a copy into source \"%s\" are used up",
				 stage->source.name);
		if (!OidIsValid(stage->sequence))
			stage->sequence = elt_partition_sequence(stage->source.name);
		stage->next_id = nextval_internal(stage->sequence, false);
		stage->last_id = stage->next_id + ELT_CHANGE_ID_BLOCK;
	}
	return stage->next_id;
}

/* ---- values that are too large ---- */

/* Writes down what the next row does not have. */
static void
note_oversize(EltStage *stage, const EltRelation *relation, const EltRow *row, XLogRecPtr lsn, Jsonb *key)
{
	for (int i = 0; i < row->ncolumns; i++)
	{
		if (row->fields[i] == ELT_FIELD_OVERSIZE)
			note_oversize_value(stage, relation->name, relation->columns[i].name, row->lengths[i], lsn, key);
	}
}

static void
note_oversize_value(EltStage *stage, const char *relation, const char *column, int bytes, XLogRecPtr lsn, Jsonb *key)
{
	Oid			types[] = {INT8OID, TEXTOID, TEXTOID, INT8OID, JSONBOID, TEXTOID, INT8OID, LSNOID, LSNOID, TIMESTAMPTZOID};
	Datum		values[] = {Int64GetDatum(stage->source.source_id), CStringGetTextDatum(stage->source.name),
		CStringGetTextDatum(relation), Int64GetDatum(elt_stage_next_id(stage)), JsonbPGetDatum(key),
		CStringGetTextDatum(column), Int64GetDatum(bytes), LSNGetDatum(stage->commit_lsn), LSNGetDatum(lsn),
	TimestampTzGetDatum(stage->staged_at)};
	EltSpi		spi;

	elt_spi_begin(&spi);
	elt_spi_run("INSERT INTO elt.oversize_values (source_id, source, relation, change_id, key, column_name, bytes, "
				"commit_lsn, lsn, staged_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
				lengthof(types), types, values, key ? NULL : "    n     ");
	elt_spi_end(&spi);
}

/* ---- ids for copies ---- */

void
elt_stage_use_ids(EltStage *stage, int64 first, int64 end)
{
	stage->own_ids = true;
	stage->next_id = first;
	stage->last_id = end;
}

int64
elt_stage_reserve_leaves(EltStage *stage, int64 nleaves)
{
	int64		width = stage->source.partition_changes;
	int64		first;

	/* of the sequence, which may have been moved on since the block at hand */
	stage->next_id = stage->last_id = 0;
	first = elt_stage_next_id(stage) / width + 1;
	(void) DirectFunctionCall2(setval_oid, ObjectIdGetDatum(stage->sequence), Int64GetDatum((first + nleaves) * width));
	stage->next_id = stage->last_id = 0;
	return first;
}

static void
write_pending(EltStage *stage)
{
	HASH_SEQ_STATUS status;
	LogEntry   *entry;

	if (stage->nused == 0)
		return;
	hash_seq_init(&status, stage->logs);
	while ((entry = hash_seq_search(&status)) != NULL)
		if (entry->log->npending > 0)
			write_log(stage, entry->log);
	for (int i = 0; i < stage->nused; i++)
		ExecClearTuple(stage->slots[i]);
	stage->nused = 0;
	stage->pending_bytes = 0;
	MemoryContextReset(stage->pending_context);
}

static void
write_log(EltStage *stage, StageLog *log)
{
	MemoryContext old = MemoryContextSwitchTo(stage->pending_context);

	table_multi_insert(log->open_leaf, log->pending, log->npending,
					   GetCurrentCommandId(true), TABLE_INSERT_SKIP_FSM, NULL);
	elt_large_written(&log->large, log->open_leaf, log->pending, log->npending);
	log->npending = 0;
	MemoryContextSwitchTo(old);
}
