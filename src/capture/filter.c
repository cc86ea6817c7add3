/*
 * filter.c
 *	  Row filters of publications.
 *
 * The rules are those of logical replication.  An insert is let through if the
 * new row passes, a delete if the old one does.  An update by which a row
 * comes to pass is an insert, one by which it ceases to is a delete: who folds
 * raw staging gets exactly the rows that pass.  A truncate is never held back.
 *
 * The expression is the one of the moment of the change, as the catalogs are;
 * the server has seen to it that it uses nothing but columns of the replica
 * identity where updates or deletes are published, and neither functions nor
 * types of users.  So it can be computed from what WAL has of an old row.
 *
 * An expression that fails on a row (a division by zero, say) fails the
 * stream, as it does for a subscription: to let the row through would show
 * what was to be kept out, to leave it out would lose it.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "capture/filter.h"
#include "executor/executor.h"
#include "nodes/nodeFuncs.h"
#include "utils/memutils.h"
#include "utils/rel.h"

struct EltFilter
{
	const char *relation;		/* for the error context */
	EState	   *estate;
	ExprState  *expression;
	TupleTableSlot *slot;		/* a row of the relation it appears as */
	int		   *attributes;		/* where its columns are in a tuple; -1:
								 * nowhere */
	Datum	   *values;			/* scratch, for one tuple */
	bool	   *isnull;
	Datum	   *old_values;
	bool	   *old_isnull;
};

static bool evaluate(EltFilter *filter, const Datum *values, const bool *isnull);
static void tell_context(void *arg);

EltFilter *
elt_filter_create(const char *expression, Relation shown, Relation relation)
{
	EltFilter  *filter = palloc0(sizeof(EltFilter));
	TupleDesc	desc = CreateTupleDescCopyConstr(RelationGetDescr(shown));
	TupleDesc	from = RelationGetDescr(relation);

	filter->relation = pstrdup(RelationGetRelationName(shown));
	filter->slot = MakeSingleTupleTableSlot(desc, &TTSOpsVirtual);
	filter->attributes = palloc(sizeof(int) * Max(desc->natts, 1));
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		filter->attributes[i] = -1;
		for (int n = 0; n < from->natts && !att->attisdropped; n++)
		{
			if (!TupleDescAttr(from, n)->attisdropped &&
				strcmp(NameStr(TupleDescAttr(from, n)->attname), NameStr(att->attname)) == 0)
				filter->attributes[i] = n;
		}
	}
	filter->values = palloc(sizeof(Datum) * MaxTupleAttributeNumber);
	filter->isnull = palloc(sizeof(bool) * MaxTupleAttributeNumber);
	filter->old_values = palloc(sizeof(Datum) * MaxTupleAttributeNumber);
	filter->old_isnull = palloc(sizeof(bool) * MaxTupleAttributeNumber);

	filter->estate = CreateExecutorState();
	filter->expression = ExecPrepareExpr(stringToNode(expression), filter->estate);
	return filter;
}

bool
elt_filter_row(EltFilter *filter, HeapTuple tuple, TupleDesc desc)
{
	heap_deform_tuple(tuple, desc, filter->values, filter->isnull);
	return evaluate(filter, filter->values, filter->isnull);
}

void
elt_filter_update(EltFilter *filter, HeapTuple old, HeapTuple new, TupleDesc desc,
				  bool *old_passes, bool *new_passes)
{
	heap_deform_tuple(new, desc, filter->values, filter->isnull);

	/* the columns of the filter are what they were */
	if (old == NULL)
	{
		*old_passes = *new_passes = evaluate(filter, filter->values, filter->isnull);
		return;
	}

	heap_deform_tuple(old, desc, filter->old_values, filter->old_isnull);
	*old_passes = evaluate(filter, filter->old_values, filter->old_isnull);
	for (int i = 0; i < desc->natts; i++)
	{
		if (!filter->isnull[i] && !filter->old_isnull[i] &&
			TupleDescAttr(desc, i)->attlen == -1 &&
			VARATT_IS_EXTERNAL_ONDISK(DatumGetPointer(filter->values[i])) &&
			!VARATT_IS_EXTERNAL_ONDISK(DatumGetPointer(filter->old_values[i])))
			filter->values[i] = filter->old_values[i];
	}
	*new_passes = evaluate(filter, filter->values, filter->isnull);
}

/*
 * Computes the expression over a row of the relation's own form; null does
 * not pass, as in WHERE.
 */
static bool
evaluate(EltFilter *filter, const Datum *values, const bool *isnull)
{
	ExprContext *context = GetPerTupleExprContext(filter->estate);
	TupleTableSlot *slot = filter->slot;
	ErrorContextCallback callback = {.callback = tell_context,.arg = filter,.previous = error_context_stack};
	Datum		result;
	bool		result_is_null;

	ExecClearTuple(slot);
	for (int i = 0; i < slot->tts_tupleDescriptor->natts; i++)
	{
		int			n = filter->attributes[i];

		slot->tts_isnull[i] = n < 0 || isnull[n];
		slot->tts_values[i] = n < 0 ? (Datum) 0 : values[n];
	}
	ExecStoreVirtualTuple(slot);

	error_context_stack = &callback;
	context->ecxt_scantuple = slot;
	result = ExecEvalExprSwitchContext(filter->expression, context, &result_is_null);
	error_context_stack = callback.previous;
	ResetExprContext(context);
	return !result_is_null && DatumGetBool(result);
}

static void
tell_context(void *arg)
{
	errcontext("row filter of table \"%s\" in its publication", ((EltFilter *) arg)->relation);
}
