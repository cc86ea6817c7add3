/*
 * source.h
 *	  What the SQL functions of sources share.
 */
#ifndef ELT_SOURCE_H
#define ELT_SOURCE_H

#include "catalog.h"

/* The source of this name, which the caller must own. */
extern EltSource *elt_source_owned(const char *name);

/* Refuses a server that does not preload elt. */
extern void elt_source_require_preload(void);

/* A new name for a source's slot, unique in the source's cluster. */
extern char *elt_source_new_slot_name(const char *name);

/*
 * Checks options of a source; returns the width of raw partitions.  Null
 * values are let pass where "changed".
 */
extern void elt_source_check_options(Jsonb *options, EltSource *source, bool changed);

#endif							/* ELT_SOURCE_H */
