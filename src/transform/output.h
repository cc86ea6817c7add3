/*
 * output.h
 *	  The output columns of a pipeline, and the SELECT that makes them of
 *	  changes.
 */
#ifndef ELT_OUTPUT_H
#define ELT_OUTPUT_H

#include "catalog.h"
#include "nodes/parsenodes.h"

typedef struct EltOutputColumn
{
	char	   *name;
	const char *expression;		/* over "changes"; NULL: of the record, or the
								 * transform's */
	Oid			type;			/* of the output */
	Oid			target_type;
	char		identity;		/* attidentity */
	bool		in_key;
	Oid			equality;		/* of the key's index */
} EltOutputColumn;

typedef enum EltOutputWhich
{
	ELT_OUTPUT_ALL,
	ELT_OUTPUT_KEY,
	ELT_OUTPUT_VALUES			/* neither key nor ELT_VALID_FROM */
} EltOutputWhich;

/*
 * The columns of the target that the source ("names") has too, without the
 * ones in "unchanged" (a text[], 0: none), or those of the transform, whose
 * query is given too if asked for.
 */
extern List *elt_output_named(const EltPipeline *pipeline, List *names, Datum unchanged);
extern List *elt_output_transform(const EltPipeline *pipeline, Query **query);

extern char *elt_output_select(const EltPipeline *pipeline, List *columns, bool keys_only);

extern List *elt_output_names(List *columns);
extern bool elt_output_is(const EltOutputColumn *column, EltOutputWhich which);
extern char *elt_output_list(List *columns, EltOutputWhich which, const char *prefix);
extern char *elt_output_key_match(List *columns, const char *output);
extern char *elt_output_assignments(List *columns, const char *output);
extern bool elt_output_overrides_identity(List *columns);

#endif							/* ELT_OUTPUT_H */
