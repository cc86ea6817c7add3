/*
 * options.c
 *	  The options of a pipeline.
 */
#include "postgres.h"

#include "transform/options.h"
#include "transform/transform_catalog.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/numeric.h"

#define DEFAULT_LANES	16
#define MAX_BATCH		1000000
#define MAX_WORKERS		64
#define DEFAULT_WEIGHT	10
#define MAX_WEIGHT		1000

static const char *const option_names[] = {
	"lanes", "batch_changes", "max_workers", "deletes", "truncate", "allow_volatile", "unmarked_output", "breaker", "time_limit",
	"weight", "group"
};

static void require_object(Jsonb *json);
static void require_known(const char *name);
static void read_option(const char *name, JsonbValue *value, EltPipelineOptions *options);
static int	read_int(const char *name, JsonbValue *value, int min, int max);
static bool read_bool(const char *name, JsonbValue *value);
static bool read_apply(const char *name, JsonbValue *value, const char *third);
static bool is_word(JsonbValue *value, const char *word);
static int	read_duration_ms(const char *name, JsonbValue *value);
static const char *read_name(const char *name, JsonbValue *value);

void
elt_options_read(Jsonb *json, bool append, EltPipelineOptions *options)
{
	JsonbIterator *iterator;
	JsonbIteratorToken token;
	JsonbValue	value;
	char	   *name = NULL;

	options->lanes = DEFAULT_LANES;
	options->batch_changes = 0;
	options->max_workers = 0;
	options->weight = DEFAULT_WEIGHT;
	options->group = NULL;
	options->apply_deletes = true;
	options->soft_deletes = false;
	options->alert_truncate = false;
	options->apply_truncate = !append;
	options->allow_volatile = false;
	options->unmarked_output = false;

	options->breaker = true;
	options->time_limit_ms = -1;

	require_object(json);
	iterator = JsonbIteratorInit(&json->root);
	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
	{
		if (token == WJB_KEY)
			name = pnstrdup(value.val.string.val, value.val.string.len);
		else if (token == WJB_VALUE)
			read_option(name, &value, options);
	}
}

bool
elt_pipeline_deletes_softly(const EltPipeline *pipeline)
{
	EltPipelineOptions options;

	elt_options_read(pipeline->options, pipeline->append, &options);
	return options.soft_deletes;
}

Jsonb *
elt_options_merge(Jsonb *options, Jsonb *changes)
{
	JsonbIterator *iterator;
	JsonbIteratorToken token;
	JsonbValue	value;
	Datum		merged;

	require_object(changes);
	iterator = JsonbIteratorInit(&changes->root);
	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
	{
		if (token == WJB_KEY)
			require_known(pnstrdup(value.val.string.val, value.val.string.len));
	}
	merged = DirectFunctionCall2(jsonb_concat, JsonbPGetDatum(options), JsonbPGetDatum(changes));
	return DatumGetJsonbP(DirectFunctionCall1(jsonb_strip_nulls, merged));
}

static void
require_object(Jsonb *json)
{
	if (!JB_ROOT_IS_OBJECT(json))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the options of a pipeline are not a JSON object"),
				 errhint("Pass an object such as {\"lanes\": 16}.")));
}

static void
require_known(const char *name)
{
	for (int i = 0; i < lengthof(option_names); i++)
	{
		if (strcmp(name, option_names[i]) == 0)
			return;
	}
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("unknown pipeline option \"%s\"", name),
			 errhint("The options are lanes, batch_changes, max_workers, deletes, truncate, allow_volatile, unmarked_output, breaker, time_limit, weight and group.")));
}

static void
read_option(const char *name, JsonbValue *value, EltPipelineOptions *options)
{
	if (strcmp(name, "lanes") == 0)
	{
		options->lanes = read_int(name, value, 1, ELT_MAX_LANES);
		if ((options->lanes & (options->lanes - 1)) != 0)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("option \"lanes\" is not a power of two: %d", options->lanes),
					 errhint("Use 1, 2, 4, 8, 16, 32, 64, 128 or 256.")));
	}
	else if (strcmp(name, "batch_changes") == 0)
		options->batch_changes = read_int(name, value, 1, MAX_BATCH);
	else if (strcmp(name, "max_workers") == 0)
		options->max_workers = read_int(name, value, 1, MAX_WORKERS);
	else if (strcmp(name, "deletes") == 0)
	{
		options->soft_deletes = is_word(value, "soft");
		options->apply_deletes = options->soft_deletes || read_apply(name, value, "soft");
	}
	else if (strcmp(name, "truncate") == 0)
	{
		options->alert_truncate = is_word(value, "alert");
		options->apply_truncate = !options->alert_truncate && read_apply(name, value, "alert");
	}
	else if (strcmp(name, "allow_volatile") == 0)
		options->allow_volatile = read_bool(name, value);
	else if (strcmp(name, "unmarked_output") == 0)
		options->unmarked_output = read_bool(name, value);
	else if (strcmp(name, "breaker") == 0)
		options->breaker = read_bool(name, value);
	else if (strcmp(name, "time_limit") == 0)
		options->time_limit_ms = read_duration_ms(name, value);
	else if (strcmp(name, "weight") == 0)
		options->weight = read_int(name, value, 1, MAX_WEIGHT);
	else if (strcmp(name, "group") == 0)
		options->group = read_name(name, value);
	else
		require_known(name);
}

static int
read_int(const char *name, JsonbValue *value, int min, int max)
{
	int			number = 0;
	bool		error = true;

	if (value->type == jbvNumeric)
	{
		Datum		numeric = NumericGetDatum(value->val.numeric);

		number = numeric_int4_opt_error(value->val.numeric, &error);
		if (!error)
			error = !DatumGetBool(DirectFunctionCall2(numeric_eq, numeric,
													  NumericGetDatum(int64_to_numeric(number))));
	}
	if (error || number < min || number > max)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("option \"%s\" is not an integer from %d to %d", name, min, max),
				 errhint("Pass it as a JSON number, such as {\"%s\": %d}.", name, Min(max, 16))));
	return number;
}

static bool
read_bool(const char *name, JsonbValue *value)
{
	if (value->type != jbvBool)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("option \"%s\" is neither true nor false", name),
				 errhint("Pass it as a JSON boolean, such as {\"%s\": true}.", name)));
	return value->val.boolean;
}

/* "third" is what the option can be besides. */
static bool
read_apply(const char *name, JsonbValue *value, const char *third)
{
	if (is_word(value, "apply"))
		return true;
	if (!is_word(value, "ignore"))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("option \"%s\" is none of \"apply\", \"ignore\" and \"%s\"", name, third),
				 errhint("Pass {\"%s\": \"apply\"}, {\"%s\": \"ignore\"} or {\"%s\": \"%s\"}.", name, name, name, third)));
	return false;
}

static bool
is_word(JsonbValue *value, const char *word)
{
	return value->type == jbvString && value->val.string.len == strlen(word) &&
		memcmp(value->val.string.val, word, strlen(word)) == 0;
}

/* A number is of milliseconds; a string is as settings take it ("90 s"). */
static int
read_duration_ms(const char *name, JsonbValue *value)
{
	char	   *text = NULL;
	const char *problem = NULL;
	int			duration_ms;

	if (value->type == jbvNumeric)
		text = DatumGetCString(DirectFunctionCall1(numeric_out, NumericGetDatum(value->val.numeric)));

	else if (value->type == jbvString)
		text = pnstrdup(value->val.string.val, value->val.string.len);

	if (text == NULL || !parse_int(text, &duration_ms, GUC_UNIT_MS, &problem) || duration_ms < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("option \"%s\" is not a time", name),
				 errdetail("A number means milliseconds; 0 means no limit."),
				 errhint("Pass it with a unit, such as {\"%s\": \"90 s\"}; units are ms, s, min, h and d.", name)));
	return duration_ms;
}

static const char *
read_name(const char *name, JsonbValue *value)
{
	if (value->type != jbvString || value->val.string.len == 0 || value->val.string.len >= NAMEDATALEN)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("option \"%s\" is not a name", name),
				 errdetail("A name has up to %d bytes.", NAMEDATALEN - 1),
				 errhint("Pass it as a JSON string, such as {\"%s\": \"shop\"}.", name)));
	return pnstrdup(value->val.string.val, value->val.string.len);
}
