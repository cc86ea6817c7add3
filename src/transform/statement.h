/*
 * statement.h
 *	  The SQL that applies a batch.
 */
#ifndef ELT_STATEMENT_H
#define ELT_STATEMENT_H

#include "catalog.h"
#include "executor/spi.h"

/* The ephemeral relation that holds the batch, and what the transform sees of it. */
#define ELT_BATCH_RELATION	"elt_batch"
#define ELT_CHANGES \
	"SELECT b.*, COALESCE(b.after, b.before, b.key) AS record FROM " ELT_BATCH_RELATION " AS b " \
	"WHERE elt.note_change(b.change_id)"

/* Columns of targets that have a meaning: in mode history, and with the option deletes: soft. */
#define ELT_VALID_FROM		"valid_from"
#define ELT_VALID_TO		"valid_to"
#define ELT_DELETED_AT		"deleted_at"

typedef enum EltStatementKind
{
	ELT_STATEMENT_WRITE,		/* insert or upsert whole images */
	ELT_STATEMENT_DELETE,
	ELT_STATEMENT_UPDATE,		/* images that lack columns: where the row is
								 * there */
	ELT_STATEMENT_INSERT,		/* images that lack columns: where it is not */
	ELT_STATEMENT_VERSIONS		/* all changes, of a history */
} EltStatementKind;

/* The changes of the batch that a boolean expression holds for. */
extern char *elt_statement_filter(const char *filter);

/* Takes the rows of these changes out of a target that notes change_id. */
extern char *elt_statement_forget(const EltPipeline *pipeline);

extern char *elt_statement_truncate(const EltPipeline *pipeline, bool may_truncate, const char *at);

/*
 * NULL where a statement of this kind has nothing to do.  With a key, a write
 * is an upsert.  Columns are EltOutputColumns.
 */
extern char *elt_statement_build(const EltPipeline *pipeline, EltStatementKind kind, List *columns);

/* ELT_STATEMENT_VERSIONS; "kept" are names of columns that go on from the version before. */
extern char *elt_history_statement(const EltPipeline *pipeline, List *columns, List *kept);

extern SPIPlanPtr elt_statement_prepare(const char *query);

#endif							/* ELT_STATEMENT_H */
