/*
 * partition.h
 *	  The tables of raw staging (see raw.h): made here, and nowhere else.
 */
#ifndef ELT_PARTITION_H
#define ELT_PARTITION_H

#include "catalog.h"
#include "utils/relcache.h"

/* Makes the root of a source and its sequence of change_ids. */
extern void elt_partition_create_root(const EltSource *source);

/* Drops all of a source's raw staging. */
extern void elt_partition_drop_root(const char *source_name);

/*
 * The partition of one relation: made where it is missing, and noted in
 * elt.source_tables, which must have a row for the relation.
 */
extern Oid	elt_partition_of_relation(const EltSource *source, const char *relation);

/* The partition of messages. */
extern Oid	elt_partition_of_messages(const char *source_name);

/* The leaf of a partition that holds a change_id, made where it is missing. */
extern Oid	elt_partition_leaf(const EltSource *source, Oid partition, int64 change_id);

/* A leaf's index of rows with large values; InvalidOid where there is none. */
extern Oid	elt_partition_large_index(Relation leaf);

/*
 * Likewise of its other rows, for leaves that are not written any more; most
 * have none.
 */
extern Oid	elt_partition_unflagged_index(Relation leaf);
extern Oid	elt_partition_index_unflagged(const char *leaf);

/* Whether a leaf may have rows from a change_id (inclusive) to another one (exclusive). */
extern bool elt_partition_overlaps(Relation leaf, int64 from, int64 end);

/* Whether a partition has the leaf with this number (change_id / partition_changes). */
extern bool elt_partition_has_leaf(const EltSource *source, Oid partition, int64 number);

/*
 * Lets change_ids go on at the next leaf's first one.  The sequence is locked
 * until the end of the transaction, and this takes effect at once; who has a
 * block of change_ids uses it up, unless elt_config_changed() tells him.  False
 * where somebody is taking some right now.
 */
extern bool elt_partition_skip_range(const EltSource *source);

/* The sequence of change_ids, and how many each of its values stands for. */
extern Oid	elt_partition_sequence(const char *source_name);

#define ELT_CHANGE_ID_BLOCK	1024

#endif							/* ELT_PARTITION_H */
