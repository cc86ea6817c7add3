/*
 * stream.h
 *	  A connection to a source: SQL, COPY and the replication stream over libpq.
 */
#ifndef ELT_STREAM_H
#define ELT_STREAM_H

#include "access/xlogdefs.h"
#include "datatype/timestamp.h"
#include "libpq-fe.h"

typedef struct EltStream EltStream;

typedef enum EltStreamMessage
{
	ELT_STREAM_NOTHING,			/* nothing has arrived: wait */
	ELT_STREAM_DATA,			/* a message of the output plugin */
	ELT_STREAM_KEEPALIVE,
	ELT_STREAM_END				/* the server ended the stream */
} EltStreamMessage;

/*
 * Connects to a source (conninfo NULL: to this database) for SQL and for
 * replication commands; all waits are interruptible.  Needs a transaction.
 */
extern EltStream *elt_stream_connect(const char *conninfo, const char *appname);
extern void elt_stream_close(EltStream *stream);

/* The same for SQL alone; a command that takes longer than timeout_ms fails. */
extern EltStream *elt_stream_connect_sql(const char *conninfo, const char *appname, long timeout_ms);

/* How long a command may take from now on; -1: as long as it likes. */
extern void elt_stream_set_timeout(EltStream *stream, long timeout_ms);

/* Where a connection leads to, for people; and the server's version as a number. */
extern char *elt_stream_describe(EltStream *stream);
extern int	elt_stream_server_version(EltStream *stream);

/*
 * Refuses a conninfo that holds an option outside the allow-list; returns it
 * without passwords, and these apart (NULL where there are none).
 */
extern char *elt_stream_check_conninfo(const char *conninfo, char **secret);

/*
 * Refuses a server that cannot be a source as it is set up; the error's hint
 * has the line to put into its postgresql.conf.
 */
extern void elt_stream_check_server(EltStream *stream);

/*
 * Runs a command, whose result must be of the given status.  A worker that is
 * asked to leave meanwhile leaves.
 */
extern PGresult *elt_stream_query(EltStream *stream, const char *command, ExecStatusType expected);

/*
 * Runs a command that may fail: NULL where it did not, else the error, with
 * its SQLSTATE in *sqlstate.
 */
extern char *elt_stream_try(EltStream *stream, const char *command, char sqlstate[6]);

/*
 * A value of a result, "" for null.  Raises where the source sent no such row
 * or column, or bytes that are no text here.
 */
extern char *elt_stream_value(PGresult *result, int row, int column);

/* A value quoted as an SQL literal or identifier, palloc'd. */
extern char *elt_stream_literal(const char *value);

/* One line of a COPY TO STDOUT that elt_stream_query started; NULL at its end. */
extern char *elt_stream_copy_line(EltStream *stream, int *length);

/* Whether a command failed in a transaction that can still be rolled back. */
extern bool elt_stream_in_error(EltStream *stream);

extern void elt_stream_start(EltStream *stream, const char *slot_name, const char *publication,
							 XLogRecPtr start_lsn);

/*
 * Takes the next message without waiting.  "data" is valid until the next
 * call; *wal_end is the position that the server has sent up to.
 */
extern EltStreamMessage elt_stream_receive(EltStream *stream, char **data, int *length,
										   XLogRecPtr *wal_end, bool *reply_requested);

/* Waits for input or the latch; false when timeout_ms passed. */
extern bool elt_stream_wait(EltStream *stream, long timeout_ms);

/* How long nothing has come. */
extern long elt_stream_silence_ms(EltStream *stream);

extern void elt_stream_feedback(EltStream *stream, XLogRecPtr written, XLogRecPtr flushed, bool request_reply);

#endif							/* ELT_STREAM_H */
