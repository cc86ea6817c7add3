/*
 * target.h
 *	  The table a pipeline writes to: what it must be, its key, its owner's rights.
 */
#ifndef ELT_TARGET_H
#define ELT_TARGET_H

#include "catalog.h"
#include "nodes/parsenodes.h"
#include "utils/relcache.h"

/* Raises what keeps the pipeline's owner from working on its target. */
extern void elt_target_check(const EltPipeline *pipeline);

/*
 * Notes what the target is called now.  Where it is gone, a table that has
 * taken its name takes its place, if it belongs to the same role as before or
 * to the pipeline's owner.  True where something has changed.
 */
extern bool elt_target_follow(EltPipeline *pipeline);
extern void elt_target_require_right(const EltPipeline *pipeline, AclMode mode, const char *right);

/* Whether a foreign key refers to it: then it cannot be truncated alone. */
extern bool elt_target_is_referenced(Oid target);

/* schema.table, quoted */
extern char *elt_target_name(const EltPipeline *pipeline);

/* Names of the primary key's columns; NIL: there is none. */
extern List *elt_target_primary_key(Relation target);

/* All keys that ON CONFLICT can use, each a list of names; the primary key first. */
extern List *elt_target_unique_keys(Relation target);

/* What tells rows of the target apart: the pipeline's key, in a history with valid_from. */
extern List *elt_target_unique_columns(const EltPipeline *pipeline);

/* A unique index that ON CONFLICT (key) can use; InvalidOid: there is none. */
extern Oid	elt_target_key_index(Relation target, List *key);

/* The equality operator of a key column in that index. */
extern Oid	elt_target_key_equality(Relation target, List *key, const char *column);

#endif							/* ELT_TARGET_H */
