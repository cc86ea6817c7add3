/*
 * encoding.c
 *	  Text of one encoding in another, without an error where it has no form
 *	  there.
 *
 * A source may have another encoding than the database with elt, or none
 * (SQL_ASCII).  An error about one value would be met at every attempt, and
 * the source would stand still for ever; so who converts is told that a text
 * has no form in the other encoding, and passes its bytes on as they are.
 */
#include "postgres.h"

#include "capture/encoding.h"
#include "catalog/namespace.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "utils/memutils.h"

void
elt_encoding_set(EltEncoding *encoding, int from, int to)
{
	encoding->from = from;
	encoding->to = to;
	encoding->conversion = InvalidOid;
	if (from != to && from != PG_SQL_ASCII && to != PG_SQL_ASCII)
		encoding->conversion = FindDefaultConversionProc(from, to);
}

bool
elt_encoding_convert(const EltEncoding *encoding, const char **text, Size *length)
{
	char	   *converted;
	Size		room;
	Size		ascii = 0;

	if (!OidIsValid(encoding->conversion))
		return pg_verify_mbstr(encoding->to, *text, (int) *length, true);

	/* what is ASCII is the same everywhere, and that is most */
	while (ascii < *length && !IS_HIGHBIT_SET((*text)[ascii]))
		ascii++;
	if (ascii == *length)
		return true;

	room = *length * MAX_CONVERSION_GROWTH + 1;
	if (room > PG_INT32_MAX)
		return false;
	converted = palloc_extended(room, MCXT_ALLOC_HUGE);
	if (pg_do_encoding_conversion_buf(encoding->conversion, encoding->from, encoding->to,
									  (unsigned char *) unconstify(char *, *text), (int) *length,
									  (unsigned char *) converted, (int) room, true) != (int) *length)
	{
		pfree(converted);
		return false;
	}
	*text = converted;
	*length = strlen(converted);
	return true;
}

char *
elt_encoding_name(const EltEncoding *encoding, const char *name)
{
	const char *text = name;
	Size		length = strlen(name);
	StringInfoData escaped;

	if (elt_encoding_convert(encoding, &text, &length))
		return pnstrdup(text, length);

	initStringInfo(&escaped);
	for (; *name != '\0'; name++)
	{
		if (IS_HIGHBIT_SET(*name))
			appendStringInfo(&escaped, "\\x%02x", (unsigned char) *name);
		else
			appendStringInfoChar(&escaped, *name);
	}
	return escaped.data;
}
