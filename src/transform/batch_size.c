/*
 * batch_size.c
 *	  How many changes a batch should read: arithmetic, without clock or state.
 *
 * A batch should take elt.batch_time: shorter ones cost more per change, longer
 * ones keep a worker from other pipelines and hold locks on the target.  What a
 * change costs is a matter of the transform, the target and its triggers, so
 * it is learnt from batch to batch, per pipeline and process.
 *
 * Sizes grow fourfold at most, and only after a batch that was full: one that found
 * little says nothing about a larger one.  They shrink to a quarter at most, so
 * that a single batch that waited for a lock does not cost many small ones.
 */
#include "postgres.h"

#include "fmgr.h"
#include "transform/batch_size.h"

#define GROW	4
#define SHRINK	4

PG_FUNCTION_INFO_V1(elt_batch_size_after);

int
elt_batch_size_next(int size, double changes, double elapsed_ms, double target_ms, int max)
{
	double		fitting = changes * target_ms / Max(elapsed_ms, 0.001);

	if (changes <= 0)
		return Max(1, Min(size, max));
	if (elapsed_ms > target_ms)
		fitting = Max(Min(fitting, size), size / SHRINK);
	else if (changes >= size)
		fitting = Max(Min(fitting, (double) GROW * size), size);
	else
		fitting = size;
	return (int) Max(1, Min(fitting, max));
}

/* The same for SQL. */
Datum
elt_batch_size_after(PG_FUNCTION_ARGS)
{
	int			size = PG_GETARG_INT32(0);
	int			max = PG_GETARG_INT32(4);

	if (size < 1 || max < 1 || !(PG_GETARG_FLOAT8(3) > 0))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("size, max and target_ms must be greater than zero"),
				 errdetail("They are %d, %d and %g.", size, max, PG_GETARG_FLOAT8(3)),
				 errhint("Pass the size of a batch, the largest one that is allowed, and the time that a batch should take.")));
	PG_RETURN_INT32(elt_batch_size_next(size, PG_GETARG_FLOAT8(1), PG_GETARG_FLOAT8(2), PG_GETARG_FLOAT8(3), max));
}
