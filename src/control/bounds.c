/*
 * bounds.c
 *	  SQL functions about the number of workers: its bounds, its state.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog.h"
#include "catalog/pg_type.h"
#include "control/autoscale.h"
#include "control/registry.h"
#include "elt.h"
#include "funcapi.h"
#include "guc.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(elt_set_worker_bounds);
PG_FUNCTION_INFO_V1(elt_pool_status);

static void check_bound(FunctionCallInfo fcinfo, int number, const char *name);

/*
 * elt_set_worker_bounds
 *		Sets bounds that go before the settings; null takes one back.
 */
Datum
elt_set_worker_bounds(PG_FUNCTION_ARGS)
{
	Oid			types[] = {INT4OID, INT4OID};
	Datum		values[] = {PG_GETARG_DATUM(0), PG_GETARG_DATUM(1)};
	char		nulls[] = {PG_ARGISNULL(0) ? 'n' : ' ', PG_ARGISNULL(1) ? 'n' : ' ', '\0'};
	EltSpi		spi;

	check_bound(fcinfo, 0, "min");
	check_bound(fcinfo, 1, "max");
	if (!PG_ARGISNULL(0) && !PG_ARGISNULL(1) && PG_GETARG_INT32(0) > PG_GETARG_INT32(1))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("min %d is above max %d", PG_GETARG_INT32(0), PG_GETARG_INT32(1)),
				 errhint("Pass the smaller number first; null leaves a bound to the settings.")));

	elt_spi_begin(&spi);
	elt_spi_run("INSERT INTO elt.worker_bounds (min_workers, max_workers) VALUES ($1, $2) "
				"ON CONFLICT (one) DO UPDATE SET min_workers = excluded.min_workers, max_workers = excluded.max_workers, "
				"set_by = DEFAULT, set_at = DEFAULT", 2, types, values, nulls);
	elt_spi_end(&spi);
	elt_config_changed();
	PG_RETURN_VOID();
}

static void
check_bound(FunctionCallInfo fcinfo, int number, const char *name)
{
	if (!PG_ARGISNULL(number) &&
		(PG_GETARG_INT32(number) < 0 || PG_GETARG_INT32(number) > ELT_SCALE_MAX_WORKERS))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s is not from 0 to %d: %d", name, ELT_SCALE_MAX_WORKERS, PG_GETARG_INT32(number)),
				 errhint("Pass a number of workers, or null to leave it to the setting elt.%s_workers.", name)));
}

/* What the supervisor of this database last decided; all null where none has. */
Datum
elt_pool_status(PG_FUNCTION_ARGS)
{
	static const char *const modes[] = {
		[ELT_AUTOSCALE_OFF] = "off",
		[ELT_AUTOSCALE_ADVISE] = "advise",
		[ELT_AUTOSCALE_ON] = "on",
	};
	EltPoolStatus status;
	TupleDesc	desc;
	Datum		values[10];
	bool		nulls[10] = {0};

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	elt_registry_get_pool(&status);
	if (status.changed_at == 0)
		memset(nulls, true, sizeof(nulls));
	values[0] = CStringGetTextDatum(modes[status.mode]);
	values[1] = Int32GetDatum(status.wanted);
	values[2] = Int32GetDatum(status.min_workers);
	values[3] = Int32GetDatum(status.max_workers);
	values[4] = CStringGetTextDatum(elt_scale_reason(status.reason));
	values[5] = Int64GetDatum((int64) status.backlog);
	values[6] = Float8GetDatum(status.arrival_rate);
	values[7] = Float8GetDatum(status.worker_rate);
	nulls[7] |= status.worker_rate <= 0;
	values[8] = Int32GetDatum(status.ceiling);
	nulls[8] |= status.ceiling == 0;
	values[9] = TimestampTzGetDatum(status.changed_at);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}
