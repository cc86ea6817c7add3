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

typedef enum Kept
{
	NEWEST,
	NEWEST_AND_DELETE,			/* and what it marks as deleted */
	VERSIONS					/* the newest of each transaction */
} Kept;

typedef struct KeyEntry
{
	int32		key_hash;		/* hash key */
	int			first;			/* index into the result */
} KeyEntry;

static int	collapse(TupleDesc desc, EltLogRow **rows, int nrows, EltLogRow **out, Kept kept);
static int	find_key(EltLogRow **out, const int *next, int at, const EltLogRow *row);
static bool stays(const EltLogRow *older, const EltLogRow *newer, Kept kept);
static EltLogRow *merge(TupleDesc desc, const EltLogRow *older, EltLogRow *newer);
static Datum intersect(Datum a, Datum b);

int
elt_collapse(TupleDesc desc, EltLogRow **rows, int nrows, EltLogRow **out)
{
	return collapse(desc, rows, nrows, out, NEWEST);
}

int
elt_collapse_soft(TupleDesc desc, EltLogRow **rows, int nrows, EltLogRow **out)
{
	return collapse(desc, rows, nrows, out, NEWEST_AND_DELETE);
}

int
elt_collapse_versions(TupleDesc desc, EltLogRow **rows, int nrows, EltLogRow **out)
{
	return collapse(desc, rows, nrows, out, VERSIONS);
}

static int
collapse(TupleDesc desc, EltLogRow **rows, int nrows, EltLogRow **out, Kept kept)
{
	HASHCTL		ctl = {0};
	HTAB	   *keys;
	int		   *next;			/* chains of keys with the same hash; the
								 * newest of a key comes first */
	int			nout = 0;
	int			ncompact = 0;

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
		EltLogRow  *row = rows[i];
		KeyEntry   *entry = hash_search(keys, &row->key_hash, HASH_ENTER, &found);
		int			first = found ? entry->first : -1;
		int			at = find_key(out, next, first, row);

		if (at < 0 || stays(out[at], row, kept))
		{
			if (at >= 0 && kept == VERSIONS && row->commit_ts <= out[at]->commit_ts)
				row = elt_log_redate(desc, row, out[at]->commit_ts + 1);
			out[nout] = row;
			next[nout] = first;
			entry->first = nout++;
			continue;
		}
		if (kept == NEWEST_AND_DELETE && out[at]->op == ELT_OP_DELETE)
		{
			int			marked = find_key(out, next, next[at], row);

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
	hash_destroy(keys);
	pfree(next);
	return ncompact;
}

static int
find_key(EltLogRow **out, const int *next, int at, const EltLogRow *row)
{
	while (at >= 0 && (out[at] == NULL || !elt_log_same_key(out[at], row)))
		at = next[at];
	return at;
}

/* Whether the older change of a key is to be applied besides the newer one. */
static bool
stays(const EltLogRow *older, const EltLogRow *newer, Kept kept)
{
	if (kept == VERSIONS)
		return older->commit_lsn != newer->commit_lsn;
	return kept == NEWEST_AND_DELETE && older->op != ELT_OP_DELETE && newer->op == ELT_OP_DELETE;
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
