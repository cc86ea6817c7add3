/*
 * value.c
 *	  From a type's text output to JSON.
 *
 * A value must come out of jsonb as it went in: casting the JSON back to the
 * type gives the same value.  Where JSON (or jsonb, which normalises what it
 * stores) has no such form, the value stays its text, in a string.  So no
 * value ever raises an error here: what does not parse as its type promises is
 * a string too.
 *
 * The result is a tree of JsonbValues, never jbvBinary, whose objects have
 * their keys sorted and unique, as JsonbValueToJsonb wants them.
 *
 * Recursion is bounded: type.c bounds how types nest, ELT_JSON_DEPTH how JSON
 * does.
 */
#include "postgres.h"

#include "capture/value.h"
#include "common/int.h"
#include "common/jsonapi.h"
#include "compat.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/numeric.h"

#define ELT_JSON_DEPTH			4000

/* numeric's own limits on digits */
#define NUMERIC_INTEGER_DIGITS	131072
#define NUMERIC_FRACTION_DIGITS	16383

typedef struct JsonBuild
{
	JsonbParseState *state;
	JsonbValue	root;
	int64		fields;			/* seen */
	int64		kept;			/* after duplicates were removed */
	bool		faithful;
} JsonBuild;

static bool read_json(const char *input, int length, int max, JsonbValue *result);
static bool json_is_tame(const char *input, int length);
static bool read_integer(const char *input, int length, JsonbValue *result);
static bool read_number(const char *input, int length, JsonbValue *result);
static void read_timestamp(const char *input, int length, JsonbValue *result);
static bool read_array(const EltType *type, const char **cursor, const char *end,
					   int depth, JsonbValue *result);
static bool read_composite(const EltType *type, const char *input, int length,
						   JsonbValue *result);

/*
 * Tells the order in which jsonb stores the keys of an object.
 */
int
elt_json_key_compare(const char *a, int a_length, const char *b, int b_length)
{
	if (a_length != b_length)
		return a_length > b_length ? 1 : -1;
	return memcmp(a, b, a_length);
}

static inline void
set_string(const char *input, int length, JsonbValue *result)
{
	result->type = jbvString;
	result->val.string.val = (char *) input;
	result->val.string.len = length;
}

/*
 * Gives the JSON value of a text output; see value.h.
 */
bool
elt_value_to_json(const EltType *type, const char *input, int length, JsonbValue *result)
{
	const char *cursor = input;

	switch (type->code)
	{
		case 'i':
			if (read_integer(input, length, result))
				return true;
			break;

		case 'n':
		case 'f':
			if (read_number(input, length, result))
				return true;
			break;

		case 'b':
			if (length == 1 && (*input == 't' || *input == 'f'))
			{
				result->type = jbvBool;
				result->val.boolean = (*input == 't');
				return true;
			}
			break;

		case 't':
			read_timestamp(input, length, result);
			return true;

		case 'j':
			if (read_json(input, length, ELT_JSON_MAX, result))
				return true;
			set_string(input, length, result);
			return false;

		case 'J':
			if (read_json(input, length, ELT_JSONB_MAX, result))
				return true;
			set_string(input, length, result);
			return false;

		case 'a':
			check_stack_depth();
			if (length <= ELT_JSON_MAX &&
				read_array(type, &cursor, input + length, 0, result) &&
				cursor == input + length)
				return true;
			set_string(input, length, result);
			return false;

		case 'c':
			check_stack_depth();
			if (length <= ELT_JSON_MAX &&
				read_composite(type, input, length, result))
				return true;
			set_string(input, length, result);
			return false;

		default:
			break;
	}

	set_string(input, length, result);
	return true;
}

/*
 * Reads a decimal integer that fits int64; false where it is anything else.
 */
static bool
read_integer(const char *input, int length, JsonbValue *result)
{
	const char *end = input + length;
	bool		negative = length > 0 && *input == '-';
	int64		value = 0;

	if (negative)
		input++;
	if (end - input < 1 || end - input > 19 || (*input == '0' && length > 1))
		return false;

	/* towards the negative side, which reaches one further */
	for (; input < end; input++)
	{
		if (*input < '0' || *input > '9' ||
			pg_mul_s64_overflow(value, 10, &value) ||
			pg_sub_s64_overflow(value, *input - '0', &value))
			return false;
	}
	if (!negative)
	{
		if (value == PG_INT64_MIN)
			return false;
		value = -value;
	}

	result->type = jbvNumeric;
	result->val.numeric = int64_to_numeric(value);
	return true;
}

/*
 * Reads a decimal number with all its digits; false where it is none
 * (NaN, Infinity), a negative zero, or out of numeric's range.
 */
static bool
read_number(const char *input, int length, JsonbValue *result)
{
	const char *cursor = input;
	const char *end = input + length;
	int			integer = 0;
	int			fraction = 0;
	int			exponent = 0;
	bool		zero = true;
	char		small[64];
	char	   *copy = small;

	if (cursor < end && *cursor == '-')
		cursor++;
	for (; cursor < end && *cursor >= '0' && *cursor <= '9'; cursor++, integer++)
		zero &= (*cursor == '0');
	if (integer == 0)
		return false;
	if (cursor < end && *cursor == '.')
	{
		cursor++;
		for (; cursor < end && *cursor >= '0' && *cursor <= '9'; cursor++, fraction++)
			zero &= (*cursor == '0');
		if (fraction == 0)
			return false;
	}
	if (cursor < end && (*cursor == 'e' || *cursor == 'E'))
	{
		bool		negative = false;
		const char *digits;

		cursor++;
		if (cursor < end && (*cursor == '+' || *cursor == '-'))
			negative = (*cursor++ == '-');
		digits = cursor;
		for (; cursor < end && *cursor >= '0' && *cursor <= '9'; cursor++)
		{
			if (exponent > NUMERIC_INTEGER_DIGITS)
				return false;
			exponent = exponent * 10 + (*cursor - '0');
		}
		if (cursor == digits)
			return false;
		if (negative)
			exponent = -exponent;
	}
	if (cursor != end ||
		(zero && *input == '-') ||
		integer + exponent > NUMERIC_INTEGER_DIGITS ||
		fraction - exponent > NUMERIC_FRACTION_DIGITS)
		return false;

	if (length >= (int) sizeof(small))
		copy = palloc(length + 1);
	memcpy(copy, input, length);
	copy[length] = '\0';

	result->type = jbvNumeric;
	result->val.numeric = DatumGetNumeric(DirectFunctionCall3(numeric_in,
															  CStringGetDatum(copy),
															  ObjectIdGetDatum(InvalidOid),
															  Int32GetDatum(-1)));
	return true;
}

/*
 * Puts a T between date and time, as ISO 8601 has it.  The rest stays:
 * infinity, BC, and what a session with another DateStyle wrote.
 */
static void
read_timestamp(const char *input, int length, JsonbValue *result)
{
	const char *blank = memchr(input, ' ', length);

	if (blank != NULL && blank - input > 3 && blank[-3] == '-')
	{
		char	   *copy = palloc(length);

		memcpy(copy, input, length);
		copy[blank - input] = 'T';
		input = copy;
	}
	set_string(input, length, result);
}

/*
 * Reads an array literal, or at depth > 0 one of its sub-arrays, into a JSON
 * array.  False where it does not parse, has bounds of its own, or elements
 * that JSON does not hold; a first element that is an array itself (of a
 * domain, or of json) would look like one more dimension.
 */
static bool
read_array(const EltType *type, const char **cursor, const char *end,
		   int depth, JsonbValue *result)
{
	const char *p = *cursor;
	int			allocated = 8;
	int			n = 0;
	JsonbValue *elements;

	if (depth >= MAXDIM || p >= end || *p++ != '{')
		return false;

	elements = palloc(sizeof(JsonbValue) * allocated);

	if (p < end && *p == '}')
		p++;
	else
	{
		for (;;)
		{
			JsonbValue *element;

			if (n >= allocated)
			{
				allocated *= 2;
				elements = repalloc_huge(elements, sizeof(JsonbValue) * allocated);
			}
			element = &elements[n++];

			if (p >= end)
				return false;
			if (*p == '{')
			{
				if (!read_array(type, &p, end, depth + 1, element))
					return false;
			}
			else if (*p == '"')
			{
				const char *start = ++p;
				int			length = 0;
				bool		escaped = false;

				while (p < end && *p != '"')
				{
					if (*p == '\\')
					{
						escaped = true;
						p++;
					}
					p++;
				}
				if (p >= end)
					return false;
				if (escaped)
				{
					char	   *copy = palloc(p - start);

					for (; start < p; start++)
					{
						if (*start == '\\')
							start++;
						copy[length++] = *start;
					}
					start = copy;
				}
				else
					length = p - start;
				if (!elt_value_to_json(type->element, start, length, element) ||
					(n == 1 && element->type == jbvArray))
					return false;
				p++;
			}
			else
			{
				const char *start = p;

				while (p < end && *p != type->delimiter && *p != '}')
				{
					if (*p == '"' || *p == '\\' || *p == '{')
						return false;
					p++;
				}
				if (p >= end || p == start)
					return false;
				if (p - start == 4 && memcmp(start, "NULL", 4) == 0)
					element->type = jbvNull;
				else if (!elt_value_to_json(type->element, start, p - start, element) ||
						 (n == 1 && element->type == jbvArray))
					return false;
			}

			if (p >= end)
				return false;
			if (*p == '}')
			{
				p++;
				break;
			}
			if (*p++ != type->delimiter)
				return false;
		}
	}

	result->type = jbvArray;
	result->val.array.nElems = n;
	result->val.array.elems = elements;
	result->val.array.rawScalar = false;
	*cursor = p;
	return true;
}

/*
 * Reads a row literal into a JSON object.  False where it does not parse, has
 * another number of fields than the type, or fields that JSON does not hold.
 */
static bool
read_composite(const EltType *type, const char *input, int length, JsonbValue *result)
{
	const char *p = input;
	const char *end = input + length;
	JsonbPair  *pairs;

	if (length < 2 || *p++ != '(' || *--end != ')')
		return false;

	pairs = palloc(sizeof(JsonbPair) * (type->nfields + 1));
	for (int i = 0; i < type->nfields; i++)
	{
		JsonbPair  *pair = &pairs[type->positions[i]];
		const char *start = p;

		pair->order = 0;
		set_string(type->field_names[i], strlen(type->field_names[i]), &pair->key);

		if (p == end || *p == ',')
			pair->value.type = jbvNull;
		else if (*p != '"')
		{
			while (p < end && *p != ',')
			{
				if (*p == '"' || *p == '\\' || *p == '(' || *p == ')')
					return false;
				p++;
			}
			if (!elt_value_to_json(type->fields[i], start, p - start, &pair->value))
				return false;
		}
		else
		{
			char	   *copy = palloc(end - p);
			int			n = 0;

			for (p++;; p++)
			{
				if (p >= end)
					return false;
				if (*p == '\\')
				{
					if (++p >= end)
						return false;
				}
				else if (*p == '"')
				{
					/* doubled, or the end */
					if (++p >= end || *p != '"')
						break;
				}
				copy[n++] = *p;
			}
			if (!elt_value_to_json(type->fields[i], copy, n, &pair->value))
				return false;
		}

		if (i < type->nfields - 1)
		{
			if (p >= end || *p++ != ',')
				return false;
		}
	}
	if (p != end)
		return false;

	result->type = jbvObject;
	result->val.object.nPairs = type->nfields;
	result->val.object.pairs = pairs;
	return true;
}

/* ---- JSON text ---- */

/*
 * Reads a json or jsonb value.  False where it is to stay its text: because
 * jsonb cannot hold it unchanged; because it is null, which is not the same as
 * no value; or because it is a string that would be taken for such a text.
 */
static bool
read_json(const char *input, int length, int max, JsonbValue *result)
{
	return length <= max && elt_json_parse(input, length, result) &&
		result->type != jbvNull &&
		(result->type != jbvString ||
		 !elt_json_is_text(result->val.string.val, result->val.string.len));
}

/*
 * Tells a json value's text from a string; see value.h.  All that read_json
 * refuses is text here, and what it lets through as a string is not.
 */
bool
elt_json_is_text(const char *string, int length)
{
	const char *start = string;
	const char *end = string + length;
	JsonLexContext *lex;
	JsonbValue	value;

	while (start < end && strchr(" \t\n\r", *start) != NULL)
		start++;
	if (start == end || strchr("{[\"-0123456789tfn", *start) == NULL)
		return false;
	if (length > ELT_JSON_MAX || !json_is_tame(string, length))
		return true;

	lex = elt_json_lexer((char *) string, length, GetDatabaseEncoding(), false);
	if (pg_parse_json(lex, &nullSemAction) != JSON_SUCCESS)
		return false;
	return !read_json(string, length, ELT_JSON_MAX, &value);
}

static void
push(JsonBuild *build, JsonbValue *value)
{
	if (build->state == NULL)
		build->root = *value;
	else if (build->state->contVal.type == jbvArray)
		pushJsonbValue(&build->state, WJB_ELEM, value);
	else
		pushJsonbValue(&build->state, WJB_VALUE, value);
}

static ELT_JSON_ACTION
json_object_start(void *arg)
{
	JsonBuild  *build = arg;

	pushJsonbValue(&build->state, WJB_BEGIN_OBJECT, NULL);
	ELT_JSON_ACTION_RETURN;
}

static ELT_JSON_ACTION
json_object_end(void *arg)
{
	JsonBuild  *build = arg;
	JsonbValue *object = pushJsonbValue(&build->state, WJB_END_OBJECT, NULL);

	build->kept += object->val.object.nPairs;
	if (build->state == NULL)
		build->root = *object;
	ELT_JSON_ACTION_RETURN;
}

static ELT_JSON_ACTION
json_array_start(void *arg)
{
	JsonBuild  *build = arg;

	pushJsonbValue(&build->state, WJB_BEGIN_ARRAY, NULL);
	ELT_JSON_ACTION_RETURN;
}

static ELT_JSON_ACTION
json_array_end(void *arg)
{
	JsonBuild  *build = arg;
	JsonbValue *array = pushJsonbValue(&build->state, WJB_END_ARRAY, NULL);

	if (build->state == NULL)
		build->root = *array;
	ELT_JSON_ACTION_RETURN;
}

static ELT_JSON_ACTION
json_field_start(void *arg, char *name, bool isnull)
{
	JsonBuild  *build = arg;
	JsonbValue	key;

	set_string(name, strlen(name), &key);
	build->fields++;
	pushJsonbValue(&build->state, WJB_KEY, &key);
	ELT_JSON_ACTION_RETURN;
}

static ELT_JSON_ACTION
json_scalar(void *arg, char *token, JsonTokenType token_type)
{
	JsonBuild  *build = arg;
	JsonbValue	value;

	value.type = jbvNull;
	switch (token_type)
	{
		case JSON_TOKEN_STRING:
			set_string(token, strlen(token), &value);
			break;
		case JSON_TOKEN_NUMBER:
			if (!read_number(token, strlen(token), &value))
				build->faithful = false;
			break;
		case JSON_TOKEN_TRUE:
		case JSON_TOKEN_FALSE:
			value.type = jbvBool;
			value.val.boolean = (token_type == JSON_TOKEN_TRUE);
			break;
		default:
			break;
	}
	push(build, &value);
	ELT_JSON_ACTION_RETURN;
}

/*
 * Tells whether JSON text can be given to the parser without fear of an error
 * raised in it: not nested too deep, and without escapes that another server
 * encoding than UTF8 might not know.
 */
static bool
json_is_tame(const char *input, int length)
{
	bool		utf8 = GetDatabaseEncoding() == PG_UTF8;
	bool		quoted = false;
	int			depth = 0;

	for (int i = 0; i < length; i++)
	{
		switch (input[i])
		{
			case '"':
				quoted = !quoted;
				break;
			case '\\':
				if (++i + 2 < length && !utf8 && input[i] == 'u' &&
					(input[i + 1] != '0' || input[i + 2] != '0'))
					return false;
				break;
			case '{':
			case '[':
				if (!quoted && ++depth > ELT_JSON_DEPTH)
					return false;
				break;
			case '}':
			case ']':
				if (!quoted)
					depth--;
				break;
			default:
				break;
		}
	}
	return true;
}

/*
 * Parses JSON text into a tree; see value.h.
 */
bool
elt_json_parse(const char *input, int length, JsonbValue *result)
{
	JsonBuild	build = {.faithful = true};
	JsonLexContext *lex;
	JsonSemAction actions = {
		.semstate = &build,
		.object_start = json_object_start,
		.object_end = json_object_end,
		.array_start = json_array_start,
		.array_end = json_array_end,
		.object_field_start = json_field_start,
		.scalar = json_scalar
	};

	if (!json_is_tame(input, length))
		return false;

	lex = elt_json_lexer((char *) input, length, GetDatabaseEncoding(), true);
	if (pg_parse_json(lex, &actions) != JSON_SUCCESS ||
		!build.faithful || build.fields != build.kept)
		return false;

	*result = build.root;
	return true;
}
