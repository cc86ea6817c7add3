/* How many changes a batch should read; see src/transform/batch_size.c. */

CREATE FUNCTION elt.batch_size_after(size int, changes double precision, elapsed_ms double precision,
	target_ms double precision, max int) RETURNS int
	LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'elt_batch_size_after';
COMMENT ON FUNCTION elt.batch_size_after(int, double precision, double precision, double precision, int) IS
	'how many changes a worker reads next, after a batch of a size that read so many changes and took so long; target_ms is elt.batch_time, max the option or setting batch_changes';
