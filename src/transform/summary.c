/*
 * summary.c
 *	  Errors in one line: for the pipeline's owner, and for everybody.
 *
 * The message of an error that user code ends with may quote a row: by a
 * RAISE, by a value that has no meaning for a type, by a name that was made
 * of data.  It is for the owner alone.  Everybody may have what elt itself
 * says, what PostgreSQL says of resources, locks and connections, and of the
 * rest the SQLSTATE and the message before its arguments were put in.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "transform/summary.h"

static bool is_for_all(const ErrorData *error);

/*
 * User code runs with its owner's rights, and nothing else does (owner.c).
 * The flag is about the statement in the log, where none of a worker is.
 */
void
elt_summary_note_origin(ErrorData *error)
{
	error->hide_stmt = InLocalUserIdChange();
}

char *
elt_summary(const ErrorData *error)
{
	return psprintf("%s: %s%s%s", unpack_sql_state(error->sqlerrcode), error->message,
					error->hint ? " HINT: " : "", error->hint ? error->hint : "");
}

char *
elt_summary_for_all(const ErrorData *error)
{
	if (is_for_all(error))
		return elt_summary(error);
	if (error->message_id == NULL || strcmp(error->message_id, "%s") == 0)
		return pstrdup(unpack_sql_state(error->sqlerrcode));
	return psprintf("%s: %s", unpack_sql_state(error->sqlerrcode), error->message_id);
}

static bool
is_for_all(const ErrorData *error)
{
	if (!error->hide_stmt)
		return true;

	/* RAISE may take any SQLSTATE */
	if (error->message_id == NULL || strcmp(error->message_id, "%s") == 0)
		return false;
	switch (ERRCODE_TO_CATEGORY(error->sqlerrcode))
	{
		case ERRCODE_CONNECTION_EXCEPTION:
		case ERRCODE_INVALID_TRANSACTION_STATE:
		case ERRCODE_TRANSACTION_ROLLBACK:
		case ERRCODE_INSUFFICIENT_RESOURCES:
		case ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE:
		case ERRCODE_OPERATOR_INTERVENTION:
		case ERRCODE_SYSTEM_ERROR:
			return true;
		default:
			return false;
	}
}
