/*
 * change.c
 *	  One change as a value, and its JSON form.
 *
 * Rows become jsonb objects without a sort and without a search: a relation's
 * columns are put into the order of jsonb's keys once, when the relation is
 * described, and the pairs are filled in that order.
 *
 * Nothing here fails because of what a row or a message holds, but for what
 * even jsonb cannot hold (256 MB).
 */
#include "postgres.h"

#include "capture/change.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/json.h"
#include "utils/memutils.h"
#include "utils/numeric.h"
#include "utils/timestamp.h"

static int
compare_columns(const void *a, const void *b, void *columns)
{
	const EltColumn *x = &((const EltColumn *) columns)[*(const int *) a];
	const EltColumn *y = &((const EltColumn *) columns)[*(const int *) b];

	return elt_json_key_compare(x->name, x->name_length, y->name, y->name_length);
}

/*
 * Sets what follows from the names and codes of a relation's columns, in the
 * current memory context.
 */
void
elt_relation_finish(EltRelation *relation)
{
	relation->nkeys = 0;
	relation->order = palloc(sizeof(int) * (relation->ncolumns + 1));
	for (int i = 0; i < relation->ncolumns; i++)
	{
		EltColumn  *column = &relation->columns[i];

		column->name_length = strlen(column->name);
		column->type = elt_type_parse(column->type_code);
		if (column->in_key)
			relation->nkeys++;
		relation->order[i] = i;
	}
	qsort_arg(relation->order, relation->ncolumns, sizeof(int),
			  compare_columns, relation->columns);
}

/*
 * Tells values by their size where those of the row are too large to be
 * staged together.
 */
void
elt_row_limit(EltRow *row)
{
	Size		budget = ELT_ROW_BYTES_MAX;
	int		   *large = palloc((row->ncolumns + 1) * sizeof(int));
	int			nlarge = 0;

	for (int i = 0, n = 0; i < row->ncolumns; i++)
	{
		bool		was_large = n < row->nlarge && row->large[n] == i;
		Size		needed = 0;

		if (row->fields[i] == ELT_FIELD_TEXT)
			needed = row->lengths[i];
		else if (row->fields[i] == ELT_FIELD_BYTES)
			needed = 2 * (Size) row->lengths[i] + 2;

		if (needed <= budget)
			budget -= needed;
		else
		{
			row->fields[i] = ELT_FIELD_OVERSIZE;
			row->noversize++;
		}
		n += was_large;
		if (was_large || row->fields[i] == ELT_FIELD_OVERSIZE)
			large[nlarge++] = i;
	}
	memcpy(row->large, large, nlarge * sizeof(int));
	row->nlarge = nlarge;
	pfree(large);
}

/*
 * Makes the object that stands for a value which cannot be staged as it is.
 */
static JsonbValue *
set_marker(char *name, JsonbValue *result)
{
	JsonbPair  *pair = palloc(sizeof(JsonbPair));

	pair->order = 0;
	pair->key.type = jbvString;
	pair->key.val.string.val = name;
	pair->key.val.string.len = strlen(name);

	result->type = jbvObject;
	result->val.object.nPairs = 1;
	result->val.object.pairs = pair;
	return &pair->value;
}

static void
set_oversize(int64 size, JsonbValue *result)
{
	JsonbValue *value = set_marker("$oversize", result);

	value->type = jbvNumeric;
	value->val.numeric = int64_to_numeric(size);
}

/*
 * Sets a string of the hexadecimal form of bytes, as bytea reads it.
 */
static void
set_hex(const char *bytes, int length, JsonbValue *result)
{
	char	   *hex = palloc_extended(2 + 2 * (Size) length, MCXT_ALLOC_HUGE);

	memcpy(hex, "\\x", 2);
	result->type = jbvString;
	result->val.string.len = 2 + (int) hex_encode(bytes, length, hex + 2);
	result->val.string.val = hex;
}

/*
 * Makes a jsonb object of a row's columns, or of its key columns only.  The
 * pairs are made in the order jsonb wants, so that nothing is left to sort.
 */
static Jsonb *
make_object(const EltRelation *relation, const EltRow *row, bool key_only)
{
	static JsonbPair *pairs = NULL; /* for reuse: this is the hot path */
	static int	allocated = 0;
	JsonbValue	object;
	int			n = 0;

	if (relation->ncolumns > allocated)
	{
		int			wanted = Max(relation->ncolumns, 64);

		if (pairs != NULL)
			pfree(pairs);
		allocated = 0;
		pairs = NULL;
		pairs = MemoryContextAlloc(TopMemoryContext, sizeof(JsonbPair) * wanted);
		allocated = wanted;
	}

	for (int i = 0; i < relation->ncolumns; i++)
	{
		int			c = relation->order[i];
		const EltColumn *column = &relation->columns[c];
		JsonbPair  *pair = &pairs[n];

		if (key_only && !column->in_key)
			continue;

		switch (row->fields[c])
		{
			case ELT_FIELD_ABSENT:
			case ELT_FIELD_UNCHANGED:
				continue;
			case ELT_FIELD_NULL:
				pair->value.type = jbvNull;
				break;
			case ELT_FIELD_OVERSIZE:
				set_oversize(row->lengths[c], &pair->value);
				break;
			case ELT_FIELD_TEXT:
				elt_value_to_json(column->type, row->values[c], row->lengths[c], &pair->value);
				break;
			case ELT_FIELD_BYTES:
				set_hex(row->values[c], row->lengths[c], set_marker("$bytes", &pair->value));
				break;
			case ELT_FIELD_STAGED:
				pair->value = row->staged[c];
				break;
		}
		pair->key.type = jbvString;
		pair->key.val.string.val = column->name;
		pair->key.val.string.len = column->name_length;
		pair->order = n++;
	}

	object.type = jbvObject;
	object.val.object.nPairs = n;
	object.val.object.pairs = pairs;
	return JsonbValueToJsonb(&object);
}

/*
 * Gives the image of a row as a jsonb object; see change.h.
 */
Jsonb *
elt_row_image(const EltRelation *relation, const EltRow *row, ArrayType **unchanged)
{
	if (unchanged != NULL)
	{
		int			n = 0;

		*unchanged = NULL;
		if (row->nunchanged > 0)
		{
			int		   *columns = palloc(row->nunchanged * sizeof(int));

			for (int i = 0; i < row->ncolumns; i++)
			{
				if (row->fields[i] == ELT_FIELD_UNCHANGED)
					columns[n++] = i;
			}
			*unchanged = elt_column_names(relation, columns, n);
		}
	}

	return make_object(relation, row, false);
}

/*
 * Makes an array of columns' names.
 */
ArrayType *
elt_column_names(const EltRelation *relation, const int *columns, int n)
{
	Datum	   *names = palloc(Max(n, 1) * sizeof(Datum));

	for (int i = 0; i < n; i++)
		names[i] = CStringGetTextDatum(relation->columns[columns[i]].name);
	return construct_array(names, n, TEXTOID, -1, false, TYPALIGN_INT);
}

/*
 * Gives the key columns of a row as a jsonb object; NULL where relation has no
 * key.
 */
Jsonb *
elt_row_key(const EltRelation *relation, const EltRow *row)
{
	return relation->nkeys > 0 ? make_object(relation, row, true) : NULL;
}

/*
 * Hashes the relation's name and the key, or the whole row where there is no
 * key.  The old and the new image of a row give the same hash as long as these
 * columns do not change.
 */
int32
elt_row_key_hash(const EltRelation *relation, const EltRow *row)
{
	uint32		hash = hash_bytes((const unsigned char *) relation->name, strlen(relation->name));

	for (int i = 0; i < relation->ncolumns; i++)
	{
		if (relation->nkeys > 0 && !relation->columns[i].in_key)
			continue;
		if (row->fields[i] == ELT_FIELD_TEXT || row->fields[i] == ELT_FIELD_BYTES)
			hash = hash_combine(hash, hash_bytes((const unsigned char *) row->values[i],
												 row->lengths[i]));
		else
			hash = hash_combine(hash, (uint32) row->fields[i]);
	}
	return (int32) hash;
}

/*
 * Tells whether an update moved the row to another key.
 */
bool
elt_change_moves_key(const EltChange *change)
{
	const EltRelation *relation = change->relation;
	const EltRow *old = change->old;
	const EltRow *new = change->new;

	if (change->op != ELT_OP_UPDATE || old == NULL || relation->nkeys == 0)
		return false;

	for (int i = 0; i < relation->ncolumns; i++)
	{
		if (!relation->columns[i].in_key ||
			old->fields[i] == ELT_FIELD_ABSENT ||
			new->fields[i] == ELT_FIELD_UNCHANGED)
			continue;
		if (old->fields[i] != new->fields[i])
			return true;
		if ((old->fields[i] == ELT_FIELD_TEXT || old->fields[i] == ELT_FIELD_BYTES) &&
			(old->lengths[i] != new->lengths[i] ||
			 memcmp(old->values[i], new->values[i], old->lengths[i]) != 0))
			return true;
	}
	return false;
}

static JsonbValue *
find_member(JsonbValue *object, const char *name)
{
	int			length = strlen(name);

	for (int i = 0; i < object->val.object.nPairs; i++)
	{
		JsonbPair  *pair = &object->val.object.pairs[i];

		if (pair->key.val.string.len == length &&
			memcmp(pair->key.val.string.val, name, length) == 0)
			return &pair->value;
	}
	return NULL;
}

/*
 * Reads a message's topic, key and payload; see change.h.
 */
void
elt_message_parse(const char *content, int length,
				  char **topic, Jsonb **key, Jsonb **payload)
{
	JsonbValue	value;
	bool		is_text;

	if (content == NULL)
	{
		set_oversize(length, &value);
		*topic = pstrdup("elt");
		*key = NULL;
		*payload = JsonbValueToJsonb(&value);
		return;
	}

	is_text = pg_verify_mbstr(GetDatabaseEncoding(), content, length, true);
	if (is_text && length <= ELT_JSON_MAX &&
		elt_json_parse(content, length, &value) && value.type == jbvObject)
	{
		JsonbValue *topic_value = find_member(&value, "topic");
		JsonbValue *key_value = find_member(&value, "key");
		JsonbValue *payload_value = find_member(&value, "payload");
		int			members = 2 + (key_value != NULL ? 1 : 0);

		if (topic_value != NULL && topic_value->type == jbvString &&
			payload_value != NULL && value.val.object.nPairs == members)
		{
			*topic = pnstrdup(topic_value->val.string.val, topic_value->val.string.len);
			*key = key_value != NULL && key_value->type != jbvNull ?
				JsonbValueToJsonb(key_value) : NULL;
			*payload = JsonbValueToJsonb(payload_value);
			return;
		}
	}

	if (is_text)
	{
		value.type = jbvString;
		value.val.string.val = (char *) content;
		value.val.string.len = length;
	}
	else
		set_hex(content, length, &value);
	*topic = pstrdup("elt");
	*key = NULL;
	*payload = JsonbValueToJsonb(&value);
}

static void
append_jsonb(StringInfo out, const char *name, Jsonb *value)
{
	if (value == NULL)
		return;
	appendStringInfo(out, ",\"%s\":", name);
	JsonbToCString(out, &value->root, VARSIZE(value));
}

/*
 * Appends the document of one change, as pg_logical_slot_get_changes shows
 * it: the columns of raw staging by name, without those that are null.
 */
void
elt_change_document(StringInfo out, const EltChange *change, TransactionId xid,
					XLogRecPtr commit_lsn, TimestampTz commit_ts)
{
	const EltRelation *relation = change->relation;
	const EltRow *row = change->new != NULL ? change->new : change->old;
	Jsonb	   *key = NULL;
	Jsonb	   *after = NULL;
	ArrayType  *unchanged = NULL;
	char	   *name = NULL;
	char		timestamp[MAXDATELEN + 1];

	if (change->op == ELT_OP_MESSAGE)
		elt_message_parse(change->message, change->message_length, &name, &key, &after);
	else
	{
		name = relation->name;
		if (row != NULL)
			key = elt_row_key(relation, row);
		if (change->new != NULL)
			after = elt_row_image(relation, change->new, &unchanged);
	}

	JsonEncodeDateTime(timestamp, TimestampTzGetDatum(commit_ts), TIMESTAMPTZOID, NULL);
	appendStringInfo(out, "{\"op\":\"%c\",\"relation\":", change->op);
	escape_json(out, name);
	appendStringInfo(out, ",\"xid\":%u,\"lsn\":\"%X/%X\",\"commit_lsn\":\"%X/%X\",\"commit_ts\":\"%s\"",
					 xid, LSN_FORMAT_ARGS(change->lsn), LSN_FORMAT_ARGS(commit_lsn), timestamp);
	append_jsonb(out, "key", key);
	if (change->old != NULL)
		append_jsonb(out, "before", elt_row_image(relation, change->old, NULL));
	append_jsonb(out, "after", after);
	if (unchanged != NULL)
	{
		const char *separator = "";

		appendStringInfoString(out, ",\"unchanged\":[");
		for (int i = 0; i < relation->ncolumns; i++)
		{
			if (change->new->fields[i] != ELT_FIELD_UNCHANGED)
				continue;
			appendStringInfoString(out, separator);
			escape_json(out, relation->columns[i].name);
			separator = ",";
		}
		appendStringInfoChar(out, ']');
	}
	appendStringInfoChar(out, '}');
}
