/*
 * collapse.c
 *	  Of several changes of a key, what is left to apply.
 *
 * The newest image of a key is all that an upsert needs, unless it lacks
 * columns that its update did not touch: these come from the images before
 * it, as far as they have them.
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

static EltLogRow *merge(TupleDesc desc, const EltLogRow *older, EltLogRow *newer);
static Datum intersect(Datum a, Datum b);

int
elt_collapse(TupleDesc desc, EltLogRow **rows, int nrows, EltLogRow **out)
{
	HASHCTL		ctl = {0};
	HTAB	   *keys;
	int		   *next;			/* chains of keys with the same hash */
	int			nout = 0;

	if (nrows == 1)
	{
		out[0] = rows[0];
		return 1;
	}
	ctl.keysize = sizeof(int32);
	ctl.entrysize = sizeof(KeyEntry);
	ctl.hcxt = CurrentMemoryContext;
	keys = hash_create("elt collapse", nrows, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	next = palloc(nrows * sizeof(int));

	for (int i = 0; i < nrows; i++)
	{
		bool		found;
		KeyEntry   *entry = hash_search(keys, &rows[i]->key_hash, HASH_ENTER, &found);
		int			at = found ? entry->first : -1;

		while (at >= 0 && !elt_log_same_key(out[at], rows[i]))
			at = next[at];
		if (at >= 0)
			out[at] = merge(desc, out[at], rows[i]);
		else
		{
			next[nout] = found ? entry->first : -1;
			entry->first = nout;
			out[nout++] = rows[i];
		}
	}
	hash_destroy(keys);
	pfree(next);
	return nout;
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
