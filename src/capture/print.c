/*
 * print.c
 *	  Values whose text PostgreSQL cannot hold.
 *
 * Nothing tells beforehand how long a value's text is: a numeric of ten bytes
 * has up to 131,072 digits, and arrays, composites and jsonb hold any number
 * of numerics; a document of 80 kB may need more than 1 GB.  Their output
 * functions then give up with an error, which must not stop a stream or a
 * copy: it would come again at every attempt.
 *
 * Only the errors that say so are caught.  Memory that is short for now is
 * another matter: it may be there at the next attempt.
 */
#include "postgres.h"

#include "capture/print.h"

/*
 * elt_print
 *		An output function that gives up holds nothing but memory, and
 *		references to types that the end of the transaction releases, which is
 *		always an abort while changes are decoded.
 */
const char *
elt_print(FmgrInfo *output, Datum value)
{
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext context = AllocSetContextCreate(caller, "elt text", ALLOCSET_DEFAULT_SIZES);
	const char *volatile text = NULL;

	PG_TRY();
	{
		MemoryContextSwitchTo(context);
		text = OutputFunctionCall(output, value);

		MemoryContextSwitchTo(caller);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(caller);
		error = CopyErrorData();
		if (!elt_print_error(error->sqlerrcode, error->message))
			PG_RE_THROW();
		FlushErrorState();
		FreeErrorData(error);
		MemoryContextDelete(context);
	}
	PG_END_TRY();
	return text;
}

/* The second kind has no SQLSTATE of its own, and is never translated. */
bool
elt_print_error(int sqlstate, const char *message)
{
	return sqlstate == ERRCODE_PROGRAM_LIMIT_EXCEEDED ||
		(sqlstate == ERRCODE_INTERNAL_ERROR && strstr(message, "invalid memory alloc request size") != NULL);
}
