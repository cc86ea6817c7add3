/*
 * snapshot_worker.h
 *	  Snapshot workers of a source, as the registry numbers them.
 */
#ifndef ELT_SNAPSHOT_WORKER_H
#define ELT_SNAPSHOT_WORKER_H

#include "guc.h"

/* object_id of a worker: its source and its number there; 0 leads */
#define ELT_SNAPSHOT_OBJECT(source_id, number)	((source_id) * ELT_MAX_SNAPSHOT_WORKERS + (number))
#define ELT_SNAPSHOT_SOURCE(object_id)			((object_id) / ELT_MAX_SNAPSHOT_WORKERS)
#define ELT_SNAPSHOT_NUMBER(object_id)			((int) ((object_id) % ELT_MAX_SNAPSHOT_WORKERS))

#endif							/* ELT_SNAPSHOT_WORKER_H */
