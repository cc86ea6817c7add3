/*
 * schema.h
 *	  Schema versions: the shapes that a captured relation has had.
 */
#ifndef ELT_SCHEMA_H
#define ELT_SCHEMA_H

#include "capture/change.h"
#include "catalog.h"

/*
 * The number of a relation's present shape: the latest version where that is
 * the same, else a new one that holds from lsn on.
 */
extern int	elt_schema_version(int64 source_id, const EltRelation *relation, XLogRecPtr lsn);

#endif							/* ELT_SCHEMA_H */
