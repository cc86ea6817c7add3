/*
 * type.c
 *	  The code by which a type travels with its values; see value.h.
 *
 * Who writes codes asks the catalogs, who reads them has no catalog to ask and
 * trusts nothing: a code that does not parse is a broken stream.  Codes nest at
 * most ELT_TYPE_DEPTH levels, so that what follows them may recurse.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/tupdesc.h"
#include "capture/value.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "utils/lsyscache.h"
#include "utils/typcache.h"

static void append_code(StringInfo out, Oid type, int start, int depth);
static EltType *parse_code(const char **cursor, int depth);
static char *parse_field_name(const char **cursor);
static void sort_fields(EltType *type);
static void code_error(void) pg_attribute_noreturn();

/*
 * Gives the code of a scalar built-in type, '\0' where the catalogs must be
 * asked.
 */
char
elt_type_builtin_code(Oid type)
{
	switch (type)
	{
		case INT2OID:
		case INT4OID:
		case INT8OID:
			return 'i';
		case NUMERICOID:
			return 'n';
		case FLOAT4OID:
		case FLOAT8OID:
			return 'f';
		case BOOLOID:
			return 'b';
		case TIMESTAMPOID:
		case TIMESTAMPTZOID:
			return 't';
		case JSONOID:
			return 'j';
		case JSONBOID:
			return 'J';
		case TEXTOID:
		case VARCHAROID:
		case BPCHAROID:
		case NAMEOID:
		case CHAROID:
		case BYTEAOID:
		case UUIDOID:
		case DATEOID:
		case TIMEOID:
		case TIMETZOID:
		case INTERVALOID:
		case OIDOID:
		case INETOID:
		case CIDROID:
		case BITOID:
		case VARBITOID:
		case XMLOID:
		case TSVECTOROID:
			return 's';
		default:
			return '\0';
	}
}

/*
 * Appends the code of a local type, from the catalogs.
 */
void
elt_type_append_code(StringInfo out, Oid type)
{
	append_code(out, type, out->len, 0);
}

/*
 * Does the work of elt_type_append_code.  A type that nests too deep, or whose
 * code would become too long, is told as a string from there on.
 */
static void
append_code(StringInfo out, Oid type, int start, int depth)
{
	char		code = elt_type_builtin_code(type);
	Oid			element;

	if (code != '\0')
	{
		appendStringInfoChar(out, code);
		return;
	}

	if (elt_type_detail_ends(out->len - start, depth))
	{
		appendStringInfoChar(out, 's');
		return;
	}

	switch (get_typtype(type))
	{
		case TYPTYPE_DOMAIN:
			append_code(out, getBaseType(type), start, depth + 1);
			return;

		case TYPTYPE_COMPOSITE:
			{
				TupleDesc	desc = lookup_rowtype_tupdesc_copy(type, -1);

				appendStringInfoString(out, "c(");
				for (int i = 0; i < desc->natts; i++)
				{
					Form_pg_attribute att = TupleDescAttr(desc, i);

					if (att->attisdropped)
						continue;
					elt_type_append_field_name(out, NameStr(att->attname));
					append_code(out, att->atttypid, start, depth + 1);
				}
				appendStringInfoChar(out, ')');
				FreeTupleDesc(desc);
				return;
			}

		default:
			break;
	}

	element = get_element_type(type);
	if (OidIsValid(element))
	{
		int16		typlen;
		bool		typbyval;
		char		typalign;
		char		delimiter;
		Oid			ioparam;
		Oid			output;

		get_type_io_data(element, IOFunc_output, &typlen, &typbyval, &typalign,
						 &delimiter, &ioparam, &output);
		appendStringInfoChar(out, 'a');
		appendStringInfoChar(out, delimiter);
		append_code(out, element, start, depth + 1);
		return;
	}

	appendStringInfoChar(out, 's');
}

/*
 * Appends a field's name as a composite's code writes it: in double quotes,
 * those of the name doubled.
 */
void
elt_type_append_field_name(StringInfo out, const char *name)
{
	appendStringInfoChar(out, '"');
	for (; *name != '\0'; name++)
	{
		if (*name == '"')
			appendStringInfoChar(out, '"');
		appendStringInfoChar(out, *name);
	}
	appendStringInfoChar(out, '"');
}

/*
 * Parses a type's code, in the current memory context.  Raises
 * ERRCODE_PROTOCOL_VIOLATION where it does not parse or nests too deep.
 */
EltType *
elt_type_parse(const char *code)
{
	EltType    *type = parse_code(&code, 0);

	if (*code != '\0')
		code_error();
	return type;
}

/*
 * Parses one code and moves the cursor behind it.
 */
static EltType *
parse_code(const char **cursor, int depth)
{
	EltType    *type = palloc0(sizeof(EltType));

	if (depth >= ELT_TYPE_DEPTH)
		code_error();

	type->code = *(*cursor)++;
	switch (type->code)
	{
		case 'i':
		case 'n':
		case 'f':
		case 'b':
		case 't':
		case 'j':
		case 'J':
		case 's':
			break;

		case 'a':
			type->delimiter = *(*cursor)++;
			if (type->delimiter == '\0' || strchr("{}\"\\", type->delimiter) != NULL)
				code_error();
			type->element = parse_code(cursor, depth + 1);
			break;

		case 'c':
			{
				int			allocated = 8;

				if (*(*cursor)++ != '(')
					code_error();
				type->field_names = palloc(sizeof(char *) * allocated);
				type->fields = palloc(sizeof(EltType *) * allocated);
				while (**cursor != ')')
				{
					if (type->nfields >= MaxTupleAttributeNumber)
						code_error();
					if (type->nfields >= allocated)
					{
						allocated *= 2;
						type->field_names = repalloc(type->field_names, sizeof(char *) * allocated);
						type->fields = repalloc(type->fields, sizeof(EltType *) * allocated);
					}
					type->field_names[type->nfields] = parse_field_name(cursor);
					type->fields[type->nfields] = parse_code(cursor, depth + 1);
					type->nfields++;
				}
				(*cursor)++;
				sort_fields(type);
				break;
			}

		default:
			code_error();
	}

	return type;
}

/*
 * Parses a field's quoted name and moves the cursor behind it.  Takes no more
 * memory than the name: a code may have very many of them.
 */
static char *
parse_field_name(const char **cursor)
{
	const char *start = *cursor + 1;
	const char *end = start;
	char	   *name;
	char	   *p;

	if (**cursor != '"')
		code_error();
	while (*end != '"' || *++end == '"')
	{
		if (*end == '\0')
			code_error();
		end++;
	}
	*cursor = end;

	/* end is behind the closing quote */
	name = p = palloc(end - start);
	for (; start < end - 1; start++)
	{
		*p++ = *start;
		if (*start == '"')
			start++;
	}
	*p = '\0';
	return name;
}

static int
compare_names(const void *a, const void *b, void *names)
{
	const char *x = ((char **) names)[*(const int *) a];
	const char *y = ((char **) names)[*(const int *) b];

	return elt_json_key_compare(x, strlen(x), y, strlen(y));
}

/*
 * Sets the positions of a composite's fields among jsonb's keys.
 */
static void
sort_fields(EltType *type)
{
	int		   *order = palloc(sizeof(int) * (type->nfields + 1));

	for (int i = 0; i < type->nfields; i++)
		order[i] = i;
	qsort_arg(order, type->nfields, sizeof(int), compare_names, type->field_names);

	type->positions = palloc(sizeof(int) * (type->nfields + 1));
	for (int i = 0; i < type->nfields; i++)
	{
		if (i > 0 && compare_names(&order[i - 1], &order[i], type->field_names) == 0)
			code_error();
		type->positions[order[i]] = i;
	}
	pfree(order);
}

static void
code_error(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_PROTOCOL_VIOLATION),
			 errmsg("invalid type code in the change stream")));
}
