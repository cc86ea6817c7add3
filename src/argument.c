/*
 * argument.c
 *	  Arguments of SQL functions, checked.
 */
#include "postgres.h"

#include "argument.h"
#include "utils/builtins.h"

#define MAX_NAME_LENGTH		40

char *
elt_argument_text(FunctionCallInfo fcinfo, int number, const char *what)
{
	if (PG_ARGISNULL(number))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s must not be null", what),
				 errhint("Pass a value, or leave the argument out where it has a default.")));
	return text_to_cstring(PG_GETARG_TEXT_PP(number));
}

/* Names become parts of the names of slots and tables. */
void
elt_argument_check_name(const char *name, const char *what)
{
	bool		valid = (name[0] >= 'a' && name[0] <= 'z') || name[0] == '_';
	size_t		length = strlen(name);

	for (size_t i = 0; i < length; i++)
		valid &= (name[i] >= 'a' && name[i] <= 'z') || (name[i] >= '0' && name[i] <= '9') || name[i] == '_';
	if (!valid || length > MAX_NAME_LENGTH)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("invalid %s name: \"%s\"", what, name),
				 errdetail("A name has 1 to %d characters of a-z, 0-9 and _, with no digit first.", MAX_NAME_LENGTH),
				 errhint("Choose a name like orders or orders_2.")));
}
