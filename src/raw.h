/*
 * raw.h
 *	  The shape of raw staging, for who writes it and who reads it.
 *
 * elt_raw.<source>                       partitioned by op:
 *   elt_raw."<source>$messages"          op m, partitioned by change_id
 *   elt_raw."<source>$tables"            the rest, partitioned by relation:
 *     elt_raw."<source>$<table_id>"      one relation, partitioned by change_id
 *       elt_raw."<source>$<table_id>$<n>"   a leaf: an append-only heap
 *
 * A leaf holds change_ids from n * width (inclusive) to (n + 1) * width
 * (exclusive), so that retention can drop it whole.  One process appends to
 * it (the capture worker; in a range of ids that was set aside for a copy, a
 * snapshot worker), skipping the free space map, so that its physical order is
 * the order of change_id, and a reader's cursor is a block number.  Readers
 * need no index; the only one, elt_raw."<source>$<table_id>$<n>$l", is on
 * (key_hash, change_id) WHERE large IS NOT NULL, of which most tables have no
 * row at all (see capture/large.c).  A leaf that was looked through after a
 * rewrite of its relation has another one, "...$<n>$i", of its other rows.
 * Rows that an aborted transaction left keep the order too, because
 * change_ids are never given out twice.
 */
#ifndef ELT_RAW_H
#define ELT_RAW_H

typedef enum EltRawColumn		/* attribute numbers */
{
	ELT_RAW_CHANGE_ID = 1,		/* bigint */
	ELT_RAW_COMMIT_LSN,			/* pg_lsn */
	ELT_RAW_LSN,				/* pg_lsn */
	ELT_RAW_XID,				/* bigint */
	ELT_RAW_COMMIT_TS,			/* timestamptz */
	ELT_RAW_STAGED_AT,			/* timestamptz */
	ELT_RAW_SEQ,				/* int */
	ELT_RAW_KEY_HASH,			/* int */
	ELT_RAW_SCHEMA_VERSION,		/* int */
	ELT_RAW_OP,					/* "char" */
	ELT_RAW_RELATION,			/* text */
	ELT_RAW_KEY,				/* jsonb */
	ELT_RAW_BEFORE,				/* jsonb */
	ELT_RAW_AFTER,				/* jsonb */
	ELT_RAW_UNCHANGED,			/* text[] */
	ELT_RAW_LARGE				/* text[] */
} EltRawColumn;

#define ELT_RAW_NCOLUMNS	ELT_RAW_LARGE

#endif							/* ELT_RAW_H */
