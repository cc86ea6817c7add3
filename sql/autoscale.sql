-- The autoscaler on described loads: elt.simulate_autoscale() runs the code that scales the pool.
CREATE FUNCTION decisions(profile jsonb) RETURNS TABLE (second int, backlog bigint, workers int, wanted int, reason text)
LANGUAGE sql AS $$
	SELECT second, backlog, workers, wanted, reason
	FROM (SELECT *, lag(wanted, 1, 0) OVER (ORDER BY second) AS before FROM elt.simulate_autoscale(profile)) s
	WHERE wanted <> before ORDER BY second $$;
-- how often the number of workers changed its direction, after a settling time
CREATE FUNCTION turns(profile jsonb, after int) RETURNS bigint
LANGUAGE sql AS $$
	SELECT count(*) FROM (
		SELECT sign(step), lag(sign(step)) OVER (ORDER BY second) AS before
		FROM (SELECT second, wanted - lag(wanted) OVER (ORDER BY second) AS step FROM elt.simulate_autoscale(profile)) s
		WHERE step <> 0 AND second > after) t
	WHERE sign <> before $$;

-- nobody is there while nothing comes
SELECT max(workers), max(wanted), min(reason), max(reason) FROM elt.simulate_autoscale('{"seconds": 300, "worker_rate": 10000, "arrival": [[0, 0]]}');

-- a step up and down again: as many as arrival needs, and the window before they go
SELECT * FROM decisions('{"seconds": 400, "worker_rate": 10000, "max": 8, "arrival": [[0, 1000], [60, 20000], [180, 1000]]}');

-- a spike: doubled until it drains in time; gone when it is over
SELECT * FROM decisions('{"seconds": 400, "worker_rate": 10000, "max": 8, "scale_down_window": 5, "idle_timeout": 10, "arrival": [[0, 0], [60, 200000], [70, 0]]}');
-- beside pools that are as large all the time
SELECT min(second) FILTER (WHERE second > 70 AND backlog = 0) - 70 AS drained_after, max(worker_seconds) AS worker_seconds
FROM elt.simulate_autoscale('{"seconds": 400, "worker_rate": 10000, "max": 8, "scale_down_window": 5, "idle_timeout": 10, "arrival": [[0, 0], [60, 200000], [70, 0]]}');
SELECT min(second) FILTER (WHERE second > 70 AND backlog = 0) - 70 AS drained_after, max(worker_seconds) AS worker_seconds
FROM elt.simulate_autoscale('{"seconds": 400, "worker_rate": 10000, "min": 8, "max": 8, "arrival": [[0, 0], [60, 200000], [70, 0]]}');

-- above the upper bound of the backlog: all at once
SELECT * FROM decisions('{"seconds": 60, "worker_rate": 10000, "max": 8, "start_backlog": 10000000, "arrival": [[0, 0]]}');

-- a saw-tooth shorter than the window: the workers stay
SELECT second, wanted, reason FROM decisions('{"seconds": 360, "worker_rate": 10000, "max": 8, "arrival":
	[[0, 0], [10, 25000], [25, 0], [60, 25000], [75, 0], [110, 25000], [125, 0], [160, 25000], [175, 0], [210, 25000], [225, 0]]}') WHERE second > 20;

-- more workers gain nothing from 3 on: a ceiling is found, once, and kept while the backlog drains
SELECT * FROM decisions('{"seconds": 250, "worker_rate": 10000, "max_rate": 21000, "max": 8, "arrival": [[0, 500], [60, 100000], [70, 500]]}');
SELECT min(backlog) FROM elt.simulate_autoscale('{"seconds": 250, "worker_rate": 10000, "max_rate": 21000, "max": 8, "arrival": [[0, 500], [60, 100000], [70, 500]]}') WHERE second > 120;

-- workers that wait for locks get no company
SELECT * FROM decisions('{"seconds": 120, "worker_rate": 10000, "lock_bound": 3000, "max": 8, "arrival": [[0, 20000]]}');
SELECT DISTINCT reason FROM elt.simulate_autoscale('{"seconds": 120, "worker_rate": 10000, "lock_bound": 3000, "max": 8, "arrival": [[0, 20000]]}') WHERE second > 10;

-- steady loads of all heights: no swinging
SELECT rate, turns(format('{"seconds": 900, "worker_rate": 10000, "max": 16, "arrival": [[0, %s]]}', rate)::jsonb, 60) AS turns
FROM unnest(ARRAY[1, 100, 7900, 8000, 8100, 15990, 16010, 40000, 79000, 81000, 127000, 200000]) AS rate;
SELECT bound, turns(format('{"seconds": 900, "worker_rate": 10000, "max": 16, "lock_bound": %s, "arrival": [[0, 30000]]}', bound)::jsonb, 60) AS turns
FROM unnest(ARRAY[5000, 12000, 25000, 29000, 31000]) AS bound;

-- nor do two that take turns, for long
SELECT DISTINCT wanted, reason FROM elt.simulate_autoscale('{"seconds": 60, "worker_rate": 10000, "lock_bound": 11000, "max": 8, "arrival": [[0, 60000]]}') WHERE second > 20;
-- a million changes on machines that are not elt's alone: fewer than two turns in any minute
CREATE FUNCTION noisy(noise numeric, max_rate int) RETURNS jsonb
LANGUAGE sql AS $$
	SELECT jsonb_build_object('seconds', 600, 'worker_rate', 3000, 'max', 4, 'noise', noise, 'max_rate', max_rate,
		'start_backlog', 1000000, 'target_backlog', 600, 'arrival', '[[0, 500]]'::jsonb) $$;
SELECT noise, max_rate, turns(noisy(noise, max_rate), 0) AS turns,
	(SELECT max(n) FROM (SELECT count(*) OVER (ORDER BY second RANGE BETWEEN 60 PRECEDING AND CURRENT ROW) AS n
		FROM (SELECT second, step, lag(step) OVER (ORDER BY second) AS before
			FROM (SELECT second, sign(wanted - lag(wanted) OVER (ORDER BY second)) AS step FROM elt.simulate_autoscale(noisy(noise, max_rate))) s
			WHERE step <> 0) t WHERE step <> before) u) AS most_in_a_minute,
	(SELECT max(second) FROM elt.simulate_autoscale(noisy(noise, max_rate)) WHERE backlog > 2000) AS drained
FROM unnest(ARRAY[0.2, 0.5, 0.8]) AS noise, unnest(ARRAY[0, 3500, 5000, 7000]) AS max_rate ORDER BY 1, 2;

-- bounds, and what the server can start
SELECT * FROM decisions('{"seconds": 200, "worker_rate": 10000, "min": 2, "max": 3, "arrival": [[0, 0], [10, 90000], [20, 0]]}');
SELECT max(wanted) FROM elt.simulate_autoscale('{"seconds": 100, "worker_rate": 10000, "min": 9, "max": 3, "arrival": [[0, 0]]}');
SELECT max(workers), max(wanted), max(reason) FILTER (WHERE second = 20) FROM elt.simulate_autoscale('{"seconds": 60, "worker_rate": 10000, "max": 8, "processes": 2, "arrival": [[0, 90000]]}');
SELECT max(wanted), min(reason) FROM elt.simulate_autoscale('{"seconds": 60, "worker_rate": 10000, "max": 0, "arrival": [[0, 90000]]}');

-- what cannot be a load
\set VERBOSITY sqlstate
SELECT * FROM elt.simulate_autoscale('[]');
SELECT * FROM elt.simulate_autoscale('{}');
SELECT * FROM elt.simulate_autoscale('{"worker_rate": 10}');
SELECT * FROM elt.simulate_autoscale('{"worker_rate": 0, "arrival": [[0, 1]]}');
SELECT * FROM elt.simulate_autoscale('{"worker_rate": "x", "arrival": [[0, 1]]}');
SELECT * FROM elt.simulate_autoscale('{"worker_rate": 10, "arrival": [[0, 1]], "seconds": 1000000}');
SELECT * FROM elt.simulate_autoscale('{"worker_rate": 10, "arrival": [0, 1]}');
SELECT * FROM elt.simulate_autoscale('{"worker_rate": 10, "arrival": [[0, 1], [0, 2]]}');
SELECT * FROM elt.simulate_autoscale('{"worker_rate": 10, "arrival": [[0, 1, 2]]}');
SELECT * FROM elt.simulate_autoscale('{"worker_rate": 10, "arrival": [[[0, 1]]]}');
SELECT * FROM elt.simulate_autoscale('{"worker_rate": 10, "arrival": [[0, null]]}');
SELECT * FROM elt.simulate_autoscale('{"worker_rate": 10, "arrival": {"a": [1]}}');
\set VERBOSITY terse
SELECT * FROM elt.simulate_autoscale('{"worker_rate": 10, "arrival": [[0, 1]], "colour": 1}');
