/*
 * newest.c
 *	  The newest change of each key, for a replay.
 *
 * A hash table of 24 bytes per key: 96 bits of the key (key_hash, and a hash
 * of its jsonb form), and the change_id.  Rows without a key are told apart
 * by key_hash alone, which is of the whole row then, as everywhere.
 *
 * It grows by doubling, so that for a moment it takes half as much again as
 * maintenance_work_mem allows.
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "miscadmin.h"
#include "replay/newest.h"

typedef struct NewestKey
{
	uint32		fingerprint[2];
	int32		key_hash;
} NewestKey;

typedef struct NewestEntry
{
	NewestKey	key;
	char		status;			/* simplehash's */
	bool		partial;
	int64		change_id;
} NewestEntry;

#define SH_PREFIX		newest
#define SH_ELEMENT_TYPE NewestEntry
#define SH_KEY_TYPE		NewestKey
#define SH_KEY			key
#define SH_HASH_KEY(table, k)	((k).fingerprint[0] ^ murmurhash32((uint32) (k).key_hash))
#define SH_EQUAL(table, a, b)	(memcmp(&(a), &(b), sizeof(NewestKey)) == 0)
#define SH_SCOPE		static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

struct EltNewest
{
	newest_hash *table;
	uint64		max_keys;
	int64		partials;
};

static NewestKey key_of(const EltLogRow *row);

EltNewest *
elt_newest_create(void)
{
	EltNewest  *newest = palloc0(sizeof(EltNewest));

	newest->table = newest_create(CurrentMemoryContext, 1024, NULL);
	newest->max_keys = maintenance_work_mem * UINT64CONST(1024) / (2 * sizeof(NewestEntry));
	return newest;
}

void
elt_newest_note(EltNewest *newest, const EltLogRow *row, bool known_only)
{
	bool		found = true;
	NewestEntry *entry = known_only ? newest_lookup(newest->table, key_of(row)) :
	newest_insert(newest->table, key_of(row), &found);

	if (entry == NULL || (found && entry->change_id >= row->change_id))
		return;
	if (found)
		newest->partials -= entry->partial;
	entry->change_id = row->change_id;
	entry->partial = row->partial;
	newest->partials += entry->partial;
}

bool
elt_newest_has_later(const EltNewest *newest, const EltLogRow *row, bool *partial)
{
	NewestEntry *entry = newest_lookup(newest->table, key_of(row));

	*partial = entry != NULL && entry->partial;
	return entry != NULL && entry->change_id > row->change_id;
}

int64
elt_newest_partials(const EltNewest *newest)
{
	return newest->partials;
}

bool
elt_newest_is_full(const EltNewest *newest)
{
	return newest->table->members > newest->max_keys;
}

void
elt_newest_drop_lanes(EltNewest *newest, int nlanes, int end)
{
	EltNewest  *kept = elt_newest_create();
	newest_iterator iterator;
	NewestEntry *entry;

	newest_start_iterate(newest->table, &iterator);
	while ((entry = newest_iterate(newest->table, &iterator)) != NULL)
	{
		if ((entry->key.key_hash & (nlanes - 1)) < end)
		{
			bool		found;
			NewestEntry *copy = newest_insert(kept->table, entry->key, &found);

			copy->change_id = entry->change_id;
			copy->partial = entry->partial;
			kept->partials += entry->partial;
		}
	}
	newest_destroy(newest->table);
	*newest = *kept;
	pfree(kept);
}

/* Of a row that elt_log_walk shows, or that elt_log_read gave. */
static NewestKey
key_of(const EltLogRow *row)
{
	uint64		fingerprint = row->key != 0 ? elt_log_key_fingerprint(row->key) : row->fingerprint;
	NewestKey	key;

	key.fingerprint[0] = (uint32) fingerprint;
	key.fingerprint[1] = (uint32) (fingerprint >> 32);
	key.key_hash = row->key_hash;
	return key;
}
