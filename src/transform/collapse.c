/*
 * collapse.c
 *	  Of several changes of a key, what is left to apply.
 *
 * The newest image of a key is all that an upsert needs, unless it lacks
 * columns that its update did not touch: these come from the images before
 * it, as far as they have them.  A history needs the newest image of each
 * transaction.
 */
#include "postgres.h"

#include "capture/change.h"
#include "catalog/pg_type.h"
#include "transform/collapse.h"
#include "transform/quarantine.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

typedef struct KeyEntry
{
	int32		key_hash;		/* hash key */
	int			first;			/* index into the result */
} KeyEntry;

/* Rows by key: chains of those with the same hash, the newest first. */
typedef struct Keys
{
	HTAB	   *hash;
	int		   *next;
} Keys;

static void open_keys(Keys *keys, int size);
static void close_keys(Keys *keys);
static int	find_key(const Keys *keys, EltLogRow **rows, const EltLogRow *row);
static int	find_older(const Keys *keys, EltLogRow **rows, int at, const EltLogRow *row);
static void add_key(Keys *keys, const EltLogRow *row, int at);
static EltLogRow *merge(TupleDesc desc, const EltLogRow *older, EltLogRow *newer);
static Datum intersect(Datum a, Datum b);

int
elt_collapse(TupleDesc desc, EltLogRow **rows, int nrows, EltLogRow **out, bool soft_deletes)
{
	Keys		keys;
	int			nout = 0;
	int			ncompact = 0;

	if (nrows == 1)
	{
		out[0] = rows[0];
		return 1;
	}
	open_keys(&keys, nrows);
	for (int i = 0; i < nrows; i++)
	{
		EltLogRow  *row = rows[i];
		int			at = find_key(&keys, out, row);

		if (at < 0 || (soft_deletes && row->op == ELT_OP_DELETE && out[at]->op != ELT_OP_DELETE))
		{
			out[nout] = row;
			add_key(&keys, row, nout++);
			continue;
		}
		if (soft_deletes && out[at]->op == ELT_OP_DELETE)
		{
			int			marked = find_older(&keys, out, at, row);

			if (marked >= 0)
				out[marked] = NULL; /* its mark is taken back */
		}
		out[at] = merge(desc, out[at], row);
	}
	for (int i = 0; i < nout; i++)
	{
		if (out[i] != NULL)
			out[ncompact++] = out[i];
	}
	close_keys(&keys);
	return ncompact;
}

void
elt_collapse_transactions(TupleDesc desc, EltLogRow **rows, int nrows)
{
	Keys		keys;

	open_keys(&keys, nrows);
	for (int i = 0; i < nrows; i++)
	{
		int			at;

		if (rows[i]->key == 0)
			continue;
		at = find_key(&keys, rows, rows[i]);
		if (at >= 0 && rows[at]->commit_lsn == rows[i]->commit_lsn)
		{
			rows[i] = merge(desc, rows[at], rows[i]);
			rows[at]->moot = true;
		}
		if (at >= 0 && rows[i]->commit_ts <= rows[at]->commit_ts && !rows[at]->moot)
			rows[i] = elt_log_redate(desc, rows[i], rows[at]->commit_ts + 1);
		add_key(&keys, rows[i], i);
	}
	close_keys(&keys);
}

/* ---- the newest row of each key, in an array of rows ---- */

static void
open_keys(Keys *keys, int size)
{
	HASHCTL		ctl = {0};

	ctl.keysize = sizeof(int32);
	ctl.entrysize = sizeof(KeyEntry);
	ctl.hcxt = CurrentMemoryContext;
	keys->hash = hash_create("elt collapse", Max(size, 1), &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	keys->next = palloc(Max(size, 1) * sizeof(int));
}

static void
close_keys(Keys *keys)
{
	hash_destroy(keys->hash);
	pfree(keys->next);
}

/* Where the newest row of this row's key is; -1: nowhere. */
static int
find_key(const Keys *keys, EltLogRow **rows, const EltLogRow *row)
{
	bool		found;
	KeyEntry   *entry = hash_search(keys->hash, &row->key_hash, HASH_FIND, &found);
	int			at = found ? entry->first : -1;

	while (at >= 0 && (rows[at] == NULL || !elt_log_same_key(rows[at], row)))
		at = keys->next[at];
	return at;
}

static int
find_older(const Keys *keys, EltLogRow **rows, int at, const EltLogRow *row)
{
	do
		at = keys->next[at];
	while (at >= 0 && (rows[at] == NULL || !elt_log_same_key(rows[at], row)));
	return at;
}

static void
add_key(Keys *keys, const EltLogRow *row, int at)
{
	bool		found;
	KeyEntry   *entry = hash_search(keys->hash, &row->key_hash, HASH_ENTER, &found);

	keys->next[at] = found ? entry->first : -1;
	entry->first = at;
}

static EltLogRow *
merge(TupleDesc desc, const EltLogRow *older, EltLogRow *newer)
{
	Datum		after;
	EltLogRow  *merged;

	if (newer->unchanged == 0 || newer->after == 0 || older->after == 0 || older->op == ELT_OP_DELETE)
		return newer;
	after = DirectFunctionCall2(jsonb_concat, older->after, newer->after);
	merged = elt_log_replace(desc, newer, after,
							 older->unchanged ? intersect(older->unchanged, newer->unchanged) : 0);
	if (older->op == ELT_OP_INSERT)
		merged->op = ELT_OP_INSERT;
	return merged;
}

/* The names that are in both; 0: none. */
static Datum
intersect(Datum a, Datum b)
{
	Datum	   *left,
			   *right;
	int			nleft,
				nright,
				n = 0;

	deconstruct_array(DatumGetArrayTypeP(a), TEXTOID, -1, false, TYPALIGN_INT, &left, NULL, &nleft);
	deconstruct_array(DatumGetArrayTypeP(b), TEXTOID, -1, false, TYPALIGN_INT, &right, NULL, &nright);
	for (int i = 0; i < nleft; i++)
	{
		for (int j = 0; j < nright; j++)
		{
			if (VARSIZE_ANY_EXHDR(left[i]) == VARSIZE_ANY_EXHDR(right[j]) &&
				memcmp(VARDATA_ANY(left[i]), VARDATA_ANY(right[j]), VARSIZE_ANY_EXHDR(left[i])) == 0)
			{
				left[n++] = left[i];
				break;
			}
		}
	}
	return n ? PointerGetDatum(construct_array(left, n, TEXTOID, -1, false, TYPALIGN_INT)) : 0;
}
