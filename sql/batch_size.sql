-- How many changes a batch reads: it goes for a time, between bounds.
\set target 500
\set most 10000

-- a full batch that was fast: fourfold, up to the bound
SELECT elt.batch_size_after(1000, 1000, 10, :target, :most) AS fourfold,
	elt.batch_size_after(8000, 8000, 10, :target, :most) AS bound,
	elt.batch_size_after(1000, 1000, 400, :target, :most) AS to_the_target,
	elt.batch_size_after(1000, 1300, 0, :target, :most) AS no_time_at_all;
-- one that found little says nothing about larger ones
SELECT elt.batch_size_after(1000, 3, 1, :target, :most) AS the_same,
	elt.batch_size_after(1000, 0, 900, :target, :most) AS nothing_read,
	elt.batch_size_after(20000, 0, 1, :target, :most) AS the_bound_came_down;
-- one that took too long: what would have been in time, a quarter at least
SELECT elt.batch_size_after(1000, 1000, 1000, :target, :most) AS half,
	elt.batch_size_after(1000, 1000, 60000, :target, :most) AS quarter,
	elt.batch_size_after(1000, 10, 5000, :target, :most) AS few_but_slow,
	elt.batch_size_after(2, 2, 60000, :target, :most) AS one,
	elt.batch_size_after(1, 1, 60000, :target, :most) AS still_one;
-- from anywhere it comes to the size that fits, and stays: 20 ms each, then 0.02 ms
WITH RECURSIVE slow(step, size) AS (
	SELECT 0, 1000
	UNION ALL SELECT step + 1, elt.batch_size_after(size, size, size * 20.0, :target, :most) FROM slow WHERE step < 8),
fast(step, size) AS (
	SELECT 0, 25
	UNION ALL SELECT step + 1, elt.batch_size_after(size, size, size * 0.02, :target, :most) FROM fast WHERE step < 12)
SELECT (SELECT string_agg(size::text, ' ' ORDER BY step) FROM slow) AS slow,
	(SELECT string_agg(size::text, ' ' ORDER BY step) FROM fast) AS fast;
SELECT elt.batch_size_after(0, 1, 1, :target, :most);
SELECT elt.batch_size_after(1, 1, 1, 'NaN', :most);
