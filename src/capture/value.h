/*
 * value.h
 *	  From a type's text output to JSON.
 *
 * A type travels as a short code, so that a value can be turned into JSON
 * where the type itself is unknown (the source may be another server):
 *
 *	i  integer		n  numeric		f  float		b  boolean
 *	t  timestamp, with or without time zone
 *	j  json			J  jsonb		s  all else, a string
 *	a<delimiter><code>			array of <code>
 *	c(<field><code>...)			composite; <field> is "name" with " doubled
 *
 * Domains have the code of their base type.
 */
#ifndef ELT_VALUE_H
#define ELT_VALUE_H

#include "lib/stringinfo.h"
#include "utils/jsonb.h"

/*
 * Longer json, arrays and composites stay text: their jsonb could need more
 * than jsonb can hold, and their tree more than memory can.
 */
#define ELT_JSON_MAX	(16 * 1024 * 1024)

/*
 * What the texts of a row may need together; a value beyond is told by its
 * size.  Half of what jsonb can hold: escapes of json double it at most.
 */
#define ELT_ROW_BYTES_MAX	(128 * 1024 * 1024)
#define ELT_MESSAGE_BYTES_MAX	(64 * 1024 * 1024)	/* and of a message */

/* Longer jsonb stays text too. */
#define ELT_JSONB_MAX	(32 * 1024 * 1024)

/*
 * How far a code goes into detail: levels, and bytes.  What would be deeper, or
 * comes after so many bytes, is told as a string.
 */
#define ELT_TYPE_DEPTH		32
#define ELT_TYPE_CODE_MAX	(64 * 1024)
#define elt_type_detail_ends(length, depth) \
	((depth) >= ELT_TYPE_DEPTH - 1 || (length) > ELT_TYPE_CODE_MAX)

typedef struct EltType
{
	char		code;			/* as above */
	char		delimiter;		/* a */
	struct EltType *element;	/* a */
	int			nfields;		/* c */
	char	  **field_names;	/* c */
	struct EltType **fields;	/* c */
	int		   *positions;		/* c: where each field stands in the order of
								 * jsonb's keys */
} EltType;

/* Code of a scalar built-in type; '\0' where the catalogs must be asked. */
extern char elt_type_builtin_code(Oid type);

/* Appends the code of a local type, from the catalogs. */
extern void elt_type_append_code(StringInfo out, Oid type);

/*
 * Appends a field's name as a composite's code writes it.
 */
extern void elt_type_append_field_name(StringInfo out, const char *name);

/* Raises ERRCODE_PROTOCOL_VIOLATION where the code does not parse or nests too deep. */
extern EltType *elt_type_parse(const char *code);

/*
 * The JSON value of a text output.  Strings point into "input".  The result
 * holds no jbvBinary: it can stand in a jbvObject given to JsonbValueToJsonb.
 * What cannot be JSON of its kind unchanged (NaN, negative zero, json with
 * \u0000 or duplicate keys, json's null, arrays with other bounds than 1, ...)
 * becomes a string of its text.  False where that is a value with parts, which
 * cannot be told from a string within a larger value.
 */
extern bool elt_value_to_json(const EltType *type, const char *input, int length, JsonbValue *result);

/*
 * Parses any JSON text into a tree without jbvBinary.  False, without an
 * error, where jsonb cannot hold it unchanged: bad syntax, \u0000, duplicate
 * keys, numbers out of numeric's range, negative zero, too deep.
 */
extern bool elt_json_parse(const char *input, int length, JsonbValue *result);

/*
 * Whether a string that stands for a json or jsonb value is its text; else it
 * is a JSON string as it is.
 */
extern bool elt_json_is_text(const char *string, int length);

/* The order in which jsonb stores the keys of an object: by length, then bytes. */
extern int	elt_json_key_compare(const char *a, int a_length, const char *b, int b_length);

#endif							/* ELT_VALUE_H */
