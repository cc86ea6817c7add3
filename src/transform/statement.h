/*
 * statement.h
 *	  The SQL that applies a batch.
 */
#ifndef ELT_STATEMENT_H
#define ELT_STATEMENT_H

#include "catalog.h"
#include "nodes/parsenodes.h"

/* The ephemeral relation that holds the batch. */
#define ELT_BATCH_RELATION	"elt_batch"

typedef enum EltStatementKind
{
	ELT_STATEMENT_WRITE,		/* insert or upsert whole images */
	ELT_STATEMENT_DELETE,
	ELT_STATEMENT_UPDATE,		/* images that lack columns: where the row is
								 * there */
	ELT_STATEMENT_INSERT		/* images that lack columns: where it is not */
} EltStatementKind;

/*
 * The output columns of a pipeline: those of the target that the source has
 * too, without the ones in "unchanged" (a text[], 0: none), or those of the
 * transform, whose query is given too if asked for.  Both raise what does not
 * match the target.
 */
extern List *elt_statement_named_columns(const EltPipeline *pipeline, List *names, Datum unchanged);
extern List *elt_statement_transform_columns(const EltPipeline *pipeline, Query **query);

/* Names of the output columns. */
extern List *elt_statement_names(List *columns);

/* The changes of the batch that a boolean expression holds for. */
extern char *elt_statement_filter(const char *filter);

/* Takes the rows of these changes out of a target that notes change_id. */
extern char *elt_statement_forget(const EltPipeline *pipeline);

/*
 * NULL where a statement of this kind has nothing to do.  With a key, a write
 * is an upsert.
 */
extern char *elt_statement_build(const EltPipeline *pipeline, EltStatementKind kind, List *columns);
extern SPIPlanPtr elt_statement_prepare(const char *query);

#endif							/* ELT_STATEMENT_H */
