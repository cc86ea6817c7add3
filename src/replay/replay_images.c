/*
 * replay_images.c
 *	  Images that lack columns, in a replay.
 *
 * An image of a pipeline by column name may lack large values that its update
 * did not touch.  Where that is the newest of its key, the images before it
 * are remembered until it comes, and merged into it as in a live batch.  Only
 * their change_ids are kept, from the last whole image on, since the images
 * themselves may be many and large; they are read again when it is time.
 */
#include "postgres.h"

#include "replay/replay.h"
#include "transform/collapse.h"
#include "utils/memutils.h"

typedef struct CarriedKey
{
	uint64		fingerprint;
	int64		key_hash;
} CarriedKey;

typedef struct Carried
{
	CarriedKey	key;
	int			count;
	int			size;
	int64	   *change_ids;
} Carried;

static CarriedKey carried_key(const EltLogRow *row);

void
elt_replay_carry(EltReplay *replay, const EltLogRow *row)
{
	CarriedKey	key = carried_key(row);
	Carried    *entry;
	MemoryContext old = MemoryContextSwitchTo(replay->group);
	bool		found;

	if (replay->carried == NULL)
	{
		HASHCTL		ctl = {0};

		ctl.keysize = sizeof(CarriedKey);
		ctl.entrysize = sizeof(Carried);
		ctl.hcxt = replay->group;
		replay->carried = hash_create("elt carried images", 64, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	entry = hash_search(replay->carried, &key, HASH_ENTER, &found);
	if (!found)
	{
		entry->size = 2;
		entry->count = 0;
		entry->change_ids = palloc(entry->size * sizeof(int64));
	}

	/* a batch that was taken back comes again */
	if (entry->count == 0 || entry->change_ids[entry->count - 1] < row->change_id)
	{
		if (row->unchanged == 0)
			entry->count = 0;
		if (entry->count == entry->size)
		{
			entry->size *= 2;
			entry->change_ids = repalloc_huge(entry->change_ids, entry->size * sizeof(int64));
		}
		entry->change_ids[entry->count++] = row->change_id;
	}
	MemoryContextSwitchTo(old);
}

EltLogRow *
elt_replay_complete(EltReplay *replay, TupleDesc desc, EltLogRow *row)
{
	CarriedKey	key = carried_key(row);
	Carried    *entry = replay->carried ? hash_search(replay->carried, &key, HASH_FIND, NULL) : NULL;
	EltLogRow **rows;
	int			nrows;
	TupleDesc	fetched;

	if (row->unchanged == 0 || entry == NULL)
		return row;
	rows = palloc((entry->count + 1) * sizeof(EltLogRow *));
	nrows = elt_log_fetch(elt_pipeline_raw(replay->pipeline), elt_pipeline_topic(replay->pipeline),
						  entry->change_ids, entry->count, PG_INT64_MAX, rows, &fetched);
	rows[nrows++] = row;
	(void) elt_collapse(desc, rows, nrows, rows, false);
	return rows[0];
}

static CarriedKey
carried_key(const EltLogRow *row)
{
	CarriedKey	key;

	key.fingerprint = elt_log_key_fingerprint(row->key);
	key.key_hash = row->key_hash;
	return key;
}
