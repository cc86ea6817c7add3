/*
 * stream.c
 *	  A connection to a source: SQL, COPY and the replication stream over libpq.
 *
 * The only file that calls libpq.  One connection in mode replication=database
 * serves for SQL, for slot commands and for the stream.  A local source is
 * reached through the server's own Unix socket by the same code.
 *
 * The session is pinned by connection options, so that values have the same
 * text whatever the server, the database or the role sets.  Every wait is on
 * the latch and the socket, so SIGTERM is served at once.  A command may take
 * as long as the source's longest transaction (making a slot, a copy of a
 * table that somebody locks): a worker that is asked to leave gives it up.
 *
 * An error of the other side is raised here with its SQLSTATE.  A connection
 * that an error leaves open is closed by elt_stream_close or at exit of the
 * process; workers exit on errors.
 */
#include "postgres.h"

#include "capture/change.h"
#include "capture/stream.h"
#include "catalog/pg_authid.h"
#include "commands/dbcommands.h"
#include "compat.h"
#include "control/registry.h"
#include "guc.h"
#include "libpq/pqformat.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "portability/instr_time.h"
#include "postmaster/postmaster.h"
#include "replication/logical.h"
#include "storage/fd.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/varlena.h"

#define CONNECT_TIMEOUT_MS	15000
#define MAX_OPTIONS			64

struct EltStream
{
	PGconn	   *connection;
	char	   *buffer;			/* of libpq: last message or line */
	bool		local;
	bool		replication;	/* else for SQL alone */
	long		command_timeout_ms; /* -1: a command may take as long as it
									 * likes */
	instr_time	heard_at;		/* when something last came */
};

/*
 * A peer that is gone without a word is noticed by the kernel after about 30 s,
 * also while a command runs that may rightly take long.  What the user sets,
 * in conninfo or in a service file, goes before.
 */
static const struct
{
	const char *keyword;
	const char *value;
}			keepalives[] = {
	{"keepalives", "1"},
	{"keepalives_idle", "10"},
	{"keepalives_interval", "5"},
	{"keepalives_count", "4"},
	{"tcp_user_timeout", "30000"},
};

/* What a source's connection string may hold. */
static const char *const allowed_options[] = {
	"host", "hostaddr", "port", "dbname", "user", "password", "passfile", "service",
	"connect_timeout", "sslmode", "sslcert", "sslkey", "sslrootcert", "sslcrl", "sslpassword",
	"ssl_min_protocol_version", "ssl_max_protocol_version", "channel_binding", "gssencmode",
	"krbsrvname", "keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count",
	"tcp_user_timeout", "target_session_attrs"
};

static const char pinned_session[] =
"-c datestyle=ISO,YMD -c intervalstyle=postgres -c timezone=UTC -c extra_float_digits=1 "
"-c bytea_output=hex -c xmloption=content -c lc_monetary=C -c search_path=pg_catalog "
"-c statement_timeout=0 -c lock_timeout=0 -c idle_in_transaction_session_timeout=0 "
"-c default_transaction_isolation=read\\ committed -c default_transaction_read_only=off";

static EltStream *connect_source(const char *conninfo, const char *appname, bool replication, long timeout_ms);
static bool has_option(const PQconninfoOption *options, const char *keyword);
static const char *first_socket_directory(void);
static void append_option(StringInfo conninfo, const PQconninfoOption *option);
static void ignore_notice(void *arg, const PGresult *result);
static void poll_until_connected(EltStream *stream, long timeout_ms);
static int	take_sqlstate(char *message);
static void wait_for_socket(EltStream *stream, int events, long timeout_ms);
static long passed_ms(instr_time since);
static void cancel_command(EltStream *stream);
static PGresult *next_result(EltStream *stream);
static void report(EltStream *stream, PGresult *result, const char *what) pg_attribute_noreturn();

/* ---- connect ---- */

EltStream *
elt_stream_connect(const char *conninfo, const char *appname)
{
	return connect_source(conninfo, appname, true, -1);
}

EltStream *
elt_stream_connect_sql(const char *conninfo, const char *appname, long timeout_ms)
{
	return connect_source(conninfo, appname, false, timeout_ms);
}

static EltStream *
connect_source(const char *conninfo, const char *appname, bool replication, long timeout_ms)
{
	EltStream  *stream = MemoryContextAllocZero(TopMemoryContext, sizeof(EltStream));
	PQconninfoOption *options;
	const char *keywords[MAX_OPTIONS];
	const char *values[MAX_OPTIONS];
	char		port[12];
	char	   *error = NULL;
	int			n = 0;

	stream->local = (conninfo == NULL);
	stream->replication = replication;
	stream->command_timeout_ms = timeout_ms;
	INSTR_TIME_SET_CURRENT(stream->heard_at);
	options = PQconninfoParse(stream->local ? elt_local_conninfo : conninfo, &error);
	if (options == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_SYNTAX_ERROR),
				 errmsg("invalid connection string: %s", error ? error : "out of memory")));

	if (stream->local && elt_local_conninfo[0] == '\0')
	{
		snprintf(port, sizeof(port), "%d", PostPortNumber);
		keywords[n] = "host";
		values[n++] = first_socket_directory();
		keywords[n] = "port";
		values[n++] = port;
		keywords[n] = "user";
		values[n++] = GetUserNameFromId(BOOTSTRAP_SUPERUSERID, false);
	}
	for (PQconninfoOption *option = options; option->keyword != NULL && n < MAX_OPTIONS - 16; option++)
	{
		if (option->val == NULL || (stream->local && strcmp(option->keyword, "dbname") == 0))
			continue;
		keywords[n] = option->keyword;
		values[n++] = option->val;
	}
	for (int i = 0; i < lengthof(keepalives) && !has_option(options, "service"); i++)
	{
		if (has_option(options, keepalives[i].keyword))
			continue;
		keywords[n] = keepalives[i].keyword;
		values[n++] = keepalives[i].value;
	}
	if (stream->local)
	{
		keywords[n] = "dbname";
		values[n++] = get_database_name(MyDatabaseId);
	}
	if (replication)
	{
		keywords[n] = "replication";
		values[n++] = "database";
	}
	keywords[n] = "application_name";
	values[n++] = appname;
	keywords[n] = "client_encoding";
	values[n++] = GetDatabaseEncodingName();
	keywords[n] = "options";
	/* ALTER DATABASE ... SET role must not take a worker's rights */
	values[n++] = stream->local ? psprintf("%s -c role=none", pinned_session) : pinned_session;
	keywords[n] = NULL;
	values[n] = NULL;

	if (!AcquireExternalFD())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_RESOURCES),
				 errmsg("too many open files for a connection to the source")));
	stream->connection = PQconnectStartParams(keywords, values, false);
	PQconninfoFree(options);
	if (stream->connection != NULL)
	{
		/*
		 * libpq would write them to the server's log, as they come and as
		 * many
		 */
		PQsetNoticeReceiver(stream->connection, ignore_notice, NULL);
		/* until it is connected, the text is all that tells the SQLSTATE */
		PQsetErrorVerbosity(stream->connection, PQERRORS_VERBOSE);
	}
	poll_until_connected(stream, timeout_ms >= 0 ? Min(timeout_ms, CONNECT_TIMEOUT_MS) : CONNECT_TIMEOUT_MS);
	return stream;
}

static bool
has_option(const PQconninfoOption *options, const char *keyword)
{
	for (const PQconninfoOption *option = options; option->keyword != NULL; option++)
	{
		if (strcmp(option->keyword, keyword) == 0)
			return option->val != NULL;
	}
	return false;
}

static const char *
first_socket_directory(void)
{
	List	   *directories;
	char	   *copy = pstrdup(Unix_socket_directories);

	if (!SplitDirectoriesString(copy, ',', &directories) || directories == NIL)
		return "localhost";
	return (const char *) linitial(directories);
}

static long
passed_ms(instr_time since)
{
	instr_time	now;

	INSTR_TIME_SET_CURRENT(now);
	INSTR_TIME_SUBTRACT(now, since);
	return (long) INSTR_TIME_GET_MILLISEC(now);
}

static void
ignore_notice(void *arg, const PGresult *result)
{
}

/*
 * take_sqlstate
 *		Makes a verbose error message of libpq a plain one, and returns the
 *		SQLSTATE that it told; 0 where it told none, since no server spoke.
 */
static int
take_sqlstate(char *message)
{
	int			code = 0;
	char	   *line = strchr(message, '\n');

	/* without the lines that say where in the server's code it was */
	while (line != NULL)
	{
		char	   *end = strchr(line + 1, '\n');
		char	   *place = strstr(line, ".c:");

		if (place == NULL || (end != NULL && place > end))
			line = end;
		else if (end != NULL)
			memmove(line, end, strlen(end) + 1);
		else
		{
			*line = '\0';
			line = NULL;
		}
	}
	for (char *mark = strstr(message, ":  "); mark != NULL; mark = strstr(mark + 1, ":  "))
	{
		char	   *state = mark + 3;

		if (strspn(state, "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ") != 5 || strncmp(state + 5, ": ", 2) != 0)
			continue;
		code = MAKE_SQLSTATE(state[0], state[1], state[2], state[3], state[4]);
		memmove(state, state + 7, strlen(state + 7) + 1);
	}
	return code;
}

static void
poll_until_connected(EltStream *stream, long timeout_ms)
{
	PostgresPollingStatusType status = PGRES_POLLING_WRITING;
	instr_time	begin;

	INSTR_TIME_SET_CURRENT(begin);

	if (stream->connection == NULL || PQstatus(stream->connection) == CONNECTION_BAD)
		status = PGRES_POLLING_FAILED;
	while (status == PGRES_POLLING_READING || status == PGRES_POLLING_WRITING)
	{
		long		left_ms = timeout_ms - passed_ms(begin);

		if (left_ms <= 0)
		{
			elt_stream_close(stream);
			ereport(ERROR,
					(errcode(ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION),
					 errmsg("could not connect to the source: no answer within %ld s", timeout_ms / 1000)));
		}
		wait_for_socket(stream,
						status == PGRES_POLLING_READING ? WL_SOCKET_READABLE : WL_SOCKET_WRITEABLE,
						left_ms);
		status = PQconnectPoll(stream->connection);
	}
	if (stream->connection != NULL && status != PGRES_POLLING_FAILED)
		(void) PQsetErrorVerbosity(stream->connection, PQERRORS_DEFAULT);
	if (status == PGRES_POLLING_FAILED)
	{
		char	   *message = pchomp(PQerrorMessage(stream->connection));
		bool		local = stream->local;
		int			code = take_sqlstate(message);
		bool		credentials = ERRCODE_TO_CATEGORY(code) == ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION ||
		PQconnectionNeedsPassword(stream->connection);

		elt_stream_close(stream);
		ereport(ERROR,
				(errcode(code != 0 ? code : ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION),
				 errmsg("could not connect to the source: %s", message),
				 credentials && !local ?
				 errhint("The source's server does not accept these credentials: see the user, the password, passfile or "
						 "service of the source's conninfo here, and the role and pg_hba.conf there. "
						 "This is tried again, at most a minute apart, and nothing is lost while its slot is kept.") :
				 local ? errhint("elt connects to its own server; where pg_hba.conf asks for more than "
								 "the Unix socket gives, set elt.local_conninfo in postgresql.conf. "
								 "max_wal_senders bounds these connections too (now %d).", max_wal_senders) : 0));
	}
}

void
elt_stream_close(EltStream *stream)
{
	if (stream->buffer != NULL)
		PQfreemem(stream->buffer);
	PQfinish(stream->connection);
	ReleaseExternalFD();
	pfree(stream);
}

char *
elt_stream_check_conninfo(const char *conninfo, char **secret)
{
	StringInfoData shown;
	StringInfoData hidden;
	char	   *error = NULL;
	PQconninfoOption *options = PQconninfoParse(conninfo, &error);

	/* the parser's message may quote the string, and with it a password */
	if (options == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_SYNTAX_ERROR),
				 errmsg("invalid connection string"),
				 errhint("It has the form host=... port=... dbname=... user=..., or postgresql://...")));
	initStringInfo(&shown);
	initStringInfo(&hidden);
	for (PQconninfoOption *option = options; option->keyword != NULL; option++)
	{
		bool		allowed = (option->val == NULL);

		for (int i = 0; i < lengthof(allowed_options) && !allowed; i++)
			allowed = strcmp(option->keyword, allowed_options[i]) == 0;
		if (!allowed)
		{
			char	   *keyword = pstrdup(option->keyword);

			PQconninfoFree(options);
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("connection option \"%s\" is not allowed in a source's conninfo", keyword),
					 errhint("elt sets replication, application_name, client_encoding and options itself.")));
		}
		if (option->val != NULL)
			append_option(strcmp(option->keyword, "password") == 0 || strcmp(option->keyword, "sslpassword") == 0 ?
						  &hidden : &shown, option);
	}
	PQconninfoFree(options);
	*secret = hidden.len > 0 ? hidden.data : NULL;
	return shown.data;
}

static void
append_option(StringInfo conninfo, const PQconninfoOption *option)
{
	appendStringInfo(conninfo, "%s%s='", conninfo->len > 0 ? " " : "", option->keyword);
	for (const char *c = option->val; *c != '\0'; c++)
	{
		if (*c == '\'' || *c == '\\')
			appendStringInfoChar(conninfo, '\\');
		appendStringInfoChar(conninfo, *c);
	}
	appendStringInfoChar(conninfo, '\'');
}

/* ---- SQL ---- */

void
elt_stream_set_timeout(EltStream *stream, long timeout_ms)
{
	stream->command_timeout_ms = timeout_ms;
}

char *
elt_stream_describe(EltStream *stream)
{
	PGconn	   *connection = stream->connection;
	const char *host = PQhost(connection);
	const char *cipher = PQsslAttribute(connection, "cipher");
	const char *protocol = PQsslAttribute(connection, "protocol");
	StringInfoData text;

	initStringInfo(&text);
	appendStringInfo(&text, "%s%s%s%s, database \"%s\" as \"%s\", ",
					 host && host[0] == '/' ? "socket in " : "", host ? host : "?",
					 host && host[0] == '/' ? "" : " port ", host && host[0] == '/' ? "" : PQport(connection),
					 PQdb(connection), PQuser(connection));
	if (PQsslInUse(connection))
		appendStringInfo(&text, "encrypted: %s %s", protocol ? protocol : "TLS", cipher ? cipher : "");
	else
		appendStringInfoString(&text, PQgssEncInUse(connection) ? "encrypted: GSSAPI" : "not encrypted");
	return text.data;
}

int
elt_stream_server_version(EltStream *stream)
{
	return PQserverVersion(stream->connection);
}

void
elt_stream_check_server(EltStream *stream)
{
	PGresult   *result;
	char	   *wal_level;
	char	   *libraries;
	bool		listed = true;

	result = elt_stream_query(stream,
							  "SELECT (SELECT setting FROM pg_catalog.pg_settings WHERE name = 'wal_level'), "
							  "(SELECT setting FROM pg_catalog.pg_settings WHERE name = 'output_plugin_libraries')",
							  PGRES_TUPLES_OK);
	wal_level = pstrdup(elt_stream_value(result, 0, 0));
	libraries = pstrdup(elt_stream_value(result, 0, 1));

	/* servers that do not know the setting load any plugin */
	if (!PQgetisnull(result, 0, 1))
	{
		char	   *copy = pstrdup(libraries);
		List	   *names = NIL;
		ListCell   *cell;

		listed = false;
		(void) SplitGUCList(copy, ',', &names);
		foreach(cell, names)
			listed |= strcmp((char *) lfirst(cell), "elt") == 0 || strcmp((char *) lfirst(cell), "*") == 0;
	}
	PQclear(result);

	if (strcmp(wal_level, "logical") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the source's wal_level is \"%s\", and logical decoding needs \"logical\"", wal_level),
				 errhint("Put this line into the source's postgresql.conf and restart it: wal_level = logical")));
	if (!listed)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the source's output_plugin_libraries does not name elt"),
				 errdetail("It is \"%s\".", libraries),
				 errhint("Put this line into the source's postgresql.conf and reload it: output_plugin_libraries = '%s%selt'",
						 libraries, libraries[0] != '\0' ? ", " : "")));
}

PGresult *
elt_stream_query(EltStream *stream, const char *command, ExecStatusType expected)
{
	PGresult   *last = NULL;

	if (!PQsendQuery(stream->connection, command))
		report(stream, NULL, "could not send a command to the source");
	for (;;)
	{
		PGresult   *result = next_result(stream);
		ExecStatusType status;

		if (result == NULL)
			break;
		PQclear(last);
		last = result;
		status = PQresultStatus(result);
		if (status == PGRES_COPY_OUT || status == PGRES_COPY_BOTH ||
			PQstatus(stream->connection) == CONNECTION_BAD)
			break;
	}
	if (last == NULL || PQresultStatus(last) != expected)
		report(stream, last, "the source refused a command");
	return last;
}

char *
elt_stream_try(EltStream *stream, const char *command, char sqlstate[6])
{
	char	   *error = NULL;
	PGresult   *result;

	if (!PQsendQuery(stream->connection, command))
		report(stream, NULL, "could not send a command to the source");
	while ((result = next_result(stream)) != NULL)
	{
		if (PQstatus(stream->connection) == CONNECTION_BAD)
			report(stream, result, "the connection to the source broke");
		if (PQresultStatus(result) == PGRES_FATAL_ERROR && error == NULL)
		{
			const char *state = PQresultErrorField(result, PG_DIAG_SQLSTATE);
			const char *message = PQresultErrorField(result, PG_DIAG_MESSAGE_PRIMARY);

			strlcpy(sqlstate, state ? state : "XX000", 6);
			error = pstrdup(message ? message : "unknown error");
			(void) pg_verify_mbstr(GetDatabaseEncoding(), error, strlen(error), false);
		}
		PQclear(result);
	}
	return error;
}

/* Waits for the next result of a command; NULL when it is complete. */
static PGresult *
next_result(EltStream *stream)
{
	instr_time	begin;

	INSTR_TIME_SET_CURRENT(begin);
	while (PQisBusy(stream->connection))
	{
		long		left_ms = stream->command_timeout_ms;

		if (left_ms >= 0 && (left_ms -= passed_ms(begin)) <= 0)
		{
			/* a half-made slot does not see that nobody waits for it any more */
			if (stream->replication)
				cancel_command(stream);
			ereport(ERROR,
					(errcode(ERRCODE_CONNECTION_FAILURE),
					 errmsg("the source did not answer within %ld s", stream->command_timeout_ms / 1000)));
		}
		wait_for_socket(stream, WL_SOCKET_READABLE, left_ms);
		if (!PQconsumeInput(stream->connection))
			report(stream, NULL, "the connection to the source broke");
	}
	return PQgetResult(stream->connection);
}

char *
elt_stream_value(PGresult *result, int row, int column)
{
	char	   *value;

	if (row >= PQntuples(result) || column >= PQnfields(result))
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("the source answered with %d rows of %d columns",
						PQntuples(result), PQnfields(result)),
				 errdetail("Row %d, column %d is expected.", row + 1, column + 1)));
	value = PQgetvalue(result, row, column);
	(void) pg_verify_mbstr(GetDatabaseEncoding(), value, strlen(value), false);
	return value;
}

char *
elt_stream_literal(const char *value)
{
	return quote_literal_cstr(value);
}

char *
elt_stream_copy_line(EltStream *stream, int *length)
{
	PGresult   *result;

	if (stream->buffer != NULL)
		PQfreemem(stream->buffer);
	stream->buffer = NULL;

	for (;;)
	{
		*length = PQgetCopyData(stream->connection, &stream->buffer, 1);
		if (*length > 0)
			return stream->buffer;
		if (*length < 0)
			break;
		wait_for_socket(stream, WL_SOCKET_READABLE, -1);
		if (!PQconsumeInput(stream->connection))
			report(stream, NULL, "the connection to the source broke");
	}
	if (*length == -2)
		report(stream, NULL, "the copy from the source broke");
	result = next_result(stream);
	if (PQstatus(stream->connection) != CONNECTION_BAD)
	{
		PGresult   *rest;

		while ((rest = next_result(stream)) != NULL)
			PQclear(rest);
	}
	if (PQresultStatus(result) != PGRES_COMMAND_OK)
		report(stream, result, "the copy from the source broke");
	PQclear(result);
	return NULL;
}

bool
elt_stream_in_error(EltStream *stream)
{
	return PQtransactionStatus(stream->connection) == PQTRANS_INERROR;
}

/* ---- the replication stream ---- */

void
elt_stream_start(EltStream *stream, const char *slot_name, const char *publication, XLogRecPtr start_lsn)
{
	StringInfoData command;

	initStringInfo(&command);
	appendStringInfo(&command, "START_REPLICATION SLOT \"%s\" LOGICAL %X/%X (format 'batch', version '%d', publication %s)",
					 slot_name, LSN_FORMAT_ARGS(start_lsn), ELT_WIRE_VERSION, elt_stream_literal(publication));
	PQclear(elt_stream_query(stream, command.data, PGRES_COPY_BOTH));
	pfree(command.data);
}

EltStreamMessage
elt_stream_receive(EltStream *stream, char **data, int *length, XLogRecPtr *wal_end, bool *reply_requested)
{
	StringInfoData message;
	int			received;

	if (stream->buffer != NULL)
		PQfreemem(stream->buffer);
	stream->buffer = NULL;

	received = PQgetCopyData(stream->connection, &stream->buffer, 1);
	if (received == 0)
	{
		if (!PQconsumeInput(stream->connection))
			report(stream, NULL, "the connection to the source broke");
		received = PQgetCopyData(stream->connection, &stream->buffer, 1);
	}
	if (received == 0)
		return ELT_STREAM_NOTHING;
	INSTR_TIME_SET_CURRENT(stream->heard_at);
	if (received == -1)
		return ELT_STREAM_END;
	if (received == -2)
		report(stream, NULL, "the stream from the source broke");

	message.data = stream->buffer;
	message.len = received;
	message.maxlen = -1;
	message.cursor = 0;
	*reply_requested = false;
	switch (pq_getmsgbyte(&message))
	{
		case 'w':
			(void) pq_getmsgint64(&message);	/* start */
			*wal_end = pq_getmsgint64(&message);
			(void) pq_getmsgint64(&message);	/* send time */
			*data = stream->buffer + message.cursor;
			*length = received - message.cursor;
			return ELT_STREAM_DATA;
		case 'k':
			*wal_end = pq_getmsgint64(&message);
			(void) pq_getmsgint64(&message);
			*reply_requested = pq_getmsgbyte(&message) != 0;
			return ELT_STREAM_KEEPALIVE;
		default:
			ereport(ERROR,
					(errcode(ERRCODE_PROTOCOL_VIOLATION),
					 errmsg("unknown message of type %d in the replication stream", stream->buffer[0])));
	}
}

bool
elt_stream_wait(EltStream *stream, long timeout_ms)
{
	int			events;

	events = WaitLatchOrSocket(MyLatch,
							   WL_LATCH_SET | WL_SOCKET_READABLE | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
							   PQsocket(stream->connection), timeout_ms, elt_wait_event("EltStream"));
	if (events & WL_LATCH_SET)
		ResetLatch(MyLatch);
	if (events & WL_SOCKET_READABLE)
		INSTR_TIME_SET_CURRENT(stream->heard_at);
	CHECK_FOR_INTERRUPTS();
	return (events & WL_TIMEOUT) == 0;
}

long
elt_stream_silence_ms(EltStream *stream)
{
	return passed_ms(stream->heard_at);
}

void
elt_stream_feedback(EltStream *stream, XLogRecPtr written, XLogRecPtr flushed, bool request_reply)
{
	StringInfoData reply;

	initStringInfo(&reply);
	pq_sendbyte(&reply, 'r');
	pq_sendint64(&reply, written);
	pq_sendint64(&reply, flushed);
	pq_sendint64(&reply, flushed);	/* applied */
	pq_sendint64(&reply, GetCurrentTimestamp());
	pq_sendbyte(&reply, request_reply ? 1 : 0);
	if (PQputCopyData(stream->connection, reply.data, reply.len) <= 0 || PQflush(stream->connection))
		report(stream, NULL, "could not report progress to the source");
	pfree(reply.data);
}

/* ---- waits and errors ---- */

static void
wait_for_socket(EltStream *stream, int events, long timeout_ms)
{
	int			happened;

	happened = WaitLatchOrSocket(MyLatch,
								 WL_LATCH_SET | WL_EXIT_ON_PM_DEATH | events | (timeout_ms >= 0 ? WL_TIMEOUT : 0),
								 PQsocket(stream->connection), timeout_ms, elt_wait_event("EltSourceReply"));
	if (happened & WL_LATCH_SET)
		ResetLatch(MyLatch);
	if (ProcDiePending || elt_registry_stop_requested())
	{
		cancel_command(stream);
		if (!ProcDiePending)
			elt_registry_finish();
	}
	CHECK_FOR_INTERRUPTS();
}

/*
 * cancel_command
 *		A server that waits for a lock, or with a half-made slot for
 *		transactions, does not see that the connection is gone.
 */
static void
cancel_command(EltStream *stream)
{
	PGcancel   *cancel = NULL;
	char		error[256];

	if (PQstatus(stream->connection) == CONNECTION_OK)
		cancel = PQgetCancel(stream->connection);
	if (cancel != NULL)
		(void) PQcancel(cancel, error, sizeof(error));
	PQfreeCancel(cancel);
}

static void
report(EltStream *stream, PGresult *result, const char *what)
{
	char	   *sqlstate = result ? PQresultErrorField(result, PG_DIAG_SQLSTATE) : NULL;
	char	   *primary = result ? PQresultErrorField(result, PG_DIAG_MESSAGE_PRIMARY) : NULL;
	char	   *detail = result ? PQresultErrorField(result, PG_DIAG_MESSAGE_DETAIL) : NULL;
	char	   *hint = result ? PQresultErrorField(result, PG_DIAG_MESSAGE_HINT) : NULL;
	char	   *message = primary ? pstrdup(primary) : pchomp(PQerrorMessage(stream->connection));
	int			code = ERRCODE_CONNECTION_FAILURE;

	if (sqlstate != NULL && strlen(sqlstate) == 5)
		code = MAKE_SQLSTATE(sqlstate[0], sqlstate[1], sqlstate[2], sqlstate[3], sqlstate[4]);
	detail = detail ? pstrdup(detail) : NULL;
	hint = hint ? pstrdup(hint) : NULL;
	PQclear(result);
	ereport(ERROR,
			(errcode(code),
			 errmsg("%s: %s", what, message),
			 detail ? errdetail("%s", detail) : 0,
			 hint ? errhint("%s", hint) : 0));
}
