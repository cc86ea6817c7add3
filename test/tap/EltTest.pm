# EltTest: what the TAP tests of elt share.
#
# Clusters that load elt, load from pgbench in the background, and the judges:
#
#	same_as_oracle	raw staging tells the same sequence of changes as a
#					test_decoding slot, which is PostgreSQL's own work
#	same_as_source	the newest images in raw staging are the source's rows
#	sums_hold		at every commit of pgbench's that was staged, the sums of
#					the balances agree, and no change was staged twice
#	nothing_left	no slot, origin, worker or temporary file stays behind
#
# Everything waits by polling.
package EltTest;

use strict;
use warnings;

use Exporter 'import';
use IPC::Run;
use List::Util qw(max min);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

our @EXPORT = qw(elt_node poll_ok poll_perl settled_ok kill_hard accepts pgbench_init pgbench_start pgbench_finish pgbench_stop alerts_soon
  oracle_create same_as_oracle same_as_source same_as_target sums_hold nothing_left
  log_since workers rss_anon_mb staged);

my @pgbench_tables = qw(accounts branches tellers history);

# A new cluster with elt preloaded; further arguments are lines of postgresql.conf.
sub elt_node
{
	my ($name, @settings) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);

	$node->init(allows_streaming => 'logical');
	$node->append_conf('postgresql.conf', join("\n",
			'restart_after_crash = on', 'shared_buffers = 64MB', 'max_connections = 50',
			'max_wal_size = 1GB', 'max_wal_senders = 20', 'max_replication_slots = 20',
			'log_statement = none', 'log_replication_commands = off',
			"log_line_prefix = '%m [%p] %b %q%a '", @settings, ''));
	$node->start;
	return $node;
}

# Polls until a query gives t; as a test.  A psql for each try is what these
# tests cost most: what takes long is asked for less often.
sub poll_ok
{
	my ($node, $sql, $what, $database) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $begin = time();
	my ($out, $err);

	for (;;)
	{
		# not by a pipe: who is refused at once does not read it
		IPC::Run::run([ 'psql', '-X', '-A', '-t', '-d', $node->connstr($database || 'postgres'), '-c', $sql ],
			'<', \undef, '>', \$out, '2>', \$err);
		chomp($out);
		return ok(1, $what) if $out eq 't' && $err eq '';
		my $waited = time() - $begin;
		last if $waited > $PostgreSQL::Test::Utils::timeout_default;
		usleep(1_000_000 * min(0.5, max(0.02, $waited / 10)));
	}
	return ok(0, $what) || diag("still not true: $sql\noutput: $out\nerrors: $err");
}

# Polls until a function returns true, at most $seconds; returns whether it did.
sub poll_perl
{
	my ($seconds, $done) = @_;
	my $end = time() + $seconds;

	while (time() < $end)
	{
		return 1 if $done->();
		usleep(50_000);
	}
	return 0;
}

# Waits so many seconds until a pipeline has settled all; as a test, which tells what keeps it.
sub settled_ok
{
	my ($node, $pipeline, $seconds, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $settled = $node->safe_psql('postgres', "SELECT elt.wait_for('$pipeline', timeout => '$seconds s')");
	return ok($settled eq 't', $what) || diag($node->safe_psql('postgres', <<"EOS"));
SELECT now();
SELECT name, state, probes, next_probe_at, last_error_at, left(last_error, 200) FROM elt.pipelines;
SELECT pipeline_id, array_agg(DISTINCT position) FROM elt.checkpoints GROUP BY 1;
SELECT source, state, staged_lsn, left(last_error, 200) FROM elt.stat_sources;
SELECT relation, state FROM elt.source_tables;
SELECT kind, object_name, pid, state, idle, left(last_error, 200) FROM elt.workers();
SELECT wanted, workers, reason FROM elt.stat_pool;
SELECT pid, backend_type, state, wait_event_type, wait_event, query_start, left(query, 100) FROM pg_stat_activity WHERE pid <> pg_backend_pid();
SELECT * FROM pg_locks WHERE NOT granted;
EOS
}

# Kills a process of a server, which is a crash of it; returns whether there was
# one.  The postmaster knows of it then: who still gets in has come after that.
sub kill_hard
{
	my ($pid) = @_;
	return 0 unless $pid && kill('KILL', $pid);
	poll_perl(180, sub { !kill(0, $pid) }) or die "process $pid does not go";
	return 1;
}

# Whether a server that restarts after a crash takes connections again.  psql
# gets no input, since it may be refused before it has read any.
sub accepts
{
	my ($node) = @_;
	my ($out, $err);

	return IPC::Run::run([ 'psql', '-X', '-A', '-t', '-q', '-d', $node->connstr('postgres'), '-c', 'SELECT 1' ],
		'<', \undef, '>', \$out, '2>', \$err);
}

# What the server logged since an offset.
sub log_since
{
	my ($node, $offset) = @_;
	return substr(slurp_file($node->logfile), $offset || 0);
}

# Pids of elt's processes by kind: "capture", "supervisor", ... or "walsender".
sub workers
{
	my ($node, $kind) = @_;
	my ($out, $err);
	my $where = $kind eq 'walsender' ?
	  "backend_type = 'walsender' AND application_name LIKE 'elt %'" :
	  $kind eq '%' ? "backend_type LIKE 'elt %' OR (backend_type = 'walsender' AND application_name LIKE 'elt %')" :
	  "backend_type = 'elt $kind'";

	IPC::Run::run([ 'psql', '-X', '-A', '-t', '-q', '-d', $node->connstr('postgres'),
			'-c', "SELECT pid FROM pg_stat_activity WHERE $where ORDER BY pid" ],
		'<', \undef, '>', \$out, '2>', \$err);
	return split(/\n/, $out || '');
}

# Memory of a process that belongs to it alone.
sub rss_anon_mb
{
	my ($pid) = @_;
	open(my $status, '<', "/proc/$pid/status") or return 0;
	my ($kb) = map { /^RssAnon:\s+(\d+)/ ? $1 : () } <$status>;
	close($status);
	return ($kb || 0) / 1024;
}

# The shipped rules are evaluated each second, also those that have more time.
sub alerts_soon
{
	my ($node, $database) = @_;
	$node->safe_psql($database || 'postgres',
		"SELECT elt.alter_alert_rule(rule, evaluation_interval => '1 s') FROM elt.alert_rules WHERE shipped");
}

# ---- pgbench ----

sub pgbench_init
{
	my ($node) = @_;
	system_or_bail('pgbench', '-i', '-q', '-s', '1', '-h', $node->host, '-p', $node->port, 'postgres');
}

sub pgbench_start
{
	my ($node, @options) = @_;
	my $run = { err => '', out => '' };

	$run->{handle} = IPC::Run::start(
		['pgbench', '-n', '-c', '3', @options, '-h', $node->host, '-p', $node->port, 'postgres'],
		'>', \$run->{out}, '2>', \$run->{err});
	return $run;
}

# Waits for the end; returns how many transactions pgbench counted.
sub pgbench_finish
{
	my ($run) = @_;
	$run->{handle}->finish;
	return $run->{out} =~ /actually processed: (\d+)/ ? $1 : 0;
}

# Ends a run that would go on; once this returns nothing of it commits any more.
sub pgbench_stop
{
	my ($node, $run) = @_;
	$run->{handle}->signal('INT');
	pgbench_finish($run);
	# its sessions end when they notice
	$node->poll_query_until('postgres', "SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = 'pgbench'")
	  or die 'pgbench does not end';
}

# ---- judges ----

sub lsn_number
{
	my ($high, $low) = split(m{/}, $_[0]);
	return hex($high) * 4294967296 + hex($low);
}

sub oracle_create
{
	my ($node) = @_;
	$node->safe_psql('postgres', "SELECT pg_create_logical_replication_slot('oracle', 'test_decoding')");
}

# Whether a snapshot ("xmin:xmax:xip,...") sees a transaction.
sub sees
{
	my ($snapshot, $xid) = @_;
	my ($xmin, $xmax, $running) = split(/:/, $snapshot);
	return $xid < $xmin || ($xid < $xmax && !grep { $_ == $xid } split(/,/, $running || ''));
}

# The oracle's changes as "lsn xid text", of the tables in %$sync but for what
# came with their copy: what its snapshot sees, or what is before its LSN.
sub oracle_lines
{
	my ($node, $sync) = @_;
	my (@transaction, @lines);
	my $text = $node->safe_psql('postgres',
		"SELECT lsn, xid, data FROM pg_logical_slot_peek_changes('oracle', NULL, NULL, 'only-local', '1', 'skip-empty-xacts', '1') "
		  . "WHERE data ~ '^(COMMIT|table public\\.|message: transactional: 1 prefix: elt,)'");

	foreach my $line (split(/\n(?=[0-9A-F]+\/[0-9A-F]+\|)/, $text))
	{
		my ($lsn, $xid, $data) = split(/\|/, $line, 3);
		if ($data =~ /^COMMIT/)
		{
			my $end = lsn_number($lsn);
			foreach my $change (@transaction)
			{
				my $copied = $sync->{ $change->[0] };
				push @lines, $change->[1]
				  if defined $copied && !($copied =~ /:/ ? sees($copied, $xid) : $end <= lsn_number($copied));
			}
			@transaction = ();
		}
		elsif ($data =~ /^table (public\.(?:"(?:[^"]|"")*"|[^\s":]+)):/)
		{
			push @transaction, [ $1, "$lsn $xid $data" ];
		}
	}
	return @lines;
}

# Raw staging as test_decoding would print it.
sub raw_lines
{
	my ($node, $source, @tables) = @_;
	my $relations = join(', ', map { (my $name = $_) =~ s/'/''/g; "'$name'" } @tables);
	my $text = $node->safe_psql('postgres', <<"EOS");
WITH log AS (
	SELECT r.*, v.columns,
		   lag(r.op) OVER w = 'd' AND lag(r.lsn) OVER w = r.lsn AND r.op = 'c' AS moved_here,
		   lead(r.op) OVER w = 'c' AND lead(r.lsn) OVER w = r.lsn AND r.op = 'd' AS moved_away,
		   lag(r.before) OVER w AS old_image
	FROM elt_raw.$source r
	JOIN elt.sources s ON s.name = '$source'
	LEFT JOIN elt.schema_versions v ON v.source_id = s.source_id AND v.relation = r.relation AND v.version = r.schema_version
	WHERE r.op IN ('c', 'u', 'd', 't') AND r.relation IN ($relations)
	WINDOW w AS (ORDER BY r.change_id)
)
SELECT log.lsn, log.xid, 'table ' || relation || ': ' ||
	CASE WHEN moved_here THEN 'UPDATE: old-key: ' || old.line || ' new-tuple: ' || new.line
		 WHEN op = 'c' THEN 'INSERT: ' || new.line
		 WHEN op = 'u' AND before IS NOT NULL THEN 'UPDATE: old-key: ' || old.line || ' new-tuple: ' || new.line
		 WHEN op = 'u' THEN 'UPDATE: ' || new.line
		 WHEN op = 'd' THEN 'DELETE: ' || coalesce(old.line, '(no-tuple-data)')
		 ELSE 'TRUNCATE: (no-flags)' END
FROM log
CROSS JOIN LATERAL (
	SELECT string_agg(f.line, ' ' ORDER BY f.n) AS line
	FROM (SELECT n, format('%s[%s]:%s', quote_ident(c->>'name'), t.type,
			CASE WHEN coalesce(after->(c->>'name'), 'null') = 'null' THEN 'null'
				 WHEN t.type IN ('smallint', 'integer', 'bigint', 'numeric', 'boolean') THEN after->>(c->>'name')
				 WHEN t.type LIKE 'timestamp%' THEN '''' || replace(after->>(c->>'name'), 'T', ' ') || ''''
				 ELSE '''' || replace(after->>(c->>'name'), '''', '''''') || '''' END) AS line
		  FROM jsonb_array_elements(columns) WITH ORDINALITY AS e(c, n),
			   regexp_replace(c->>'type', '\\(.*?\\)', '') AS t(type)) f) new
CROSS JOIN LATERAL (
	SELECT string_agg(f.line, ' ' ORDER BY f.n) AS line
	FROM (SELECT n, format('%s[%s]:%s', quote_ident(c->>'name'), t.type,
			CASE WHEN t.type IN ('smallint', 'integer', 'bigint', 'numeric', 'boolean') THEN image->>(c->>'name')
				 WHEN t.type LIKE 'timestamp%' THEN '''' || replace(image->>(c->>'name'), 'T', ' ') || ''''
				 ELSE '''' || replace(image->>(c->>'name'), '''', '''''') || '''' END) AS line
		  FROM (SELECT CASE WHEN moved_here THEN old_image ELSE before END) AS i(image),
			   jsonb_array_elements(columns) WITH ORDINALITY AS e(c, n),
			   regexp_replace(c->>'type', '\\(.*?\\)', '') AS t(type)
		  WHERE coalesce(image->(c->>'name'), 'null') <> 'null') f) old
WHERE NOT coalesce(moved_away, false)
ORDER BY change_id
EOS
	return map { join(' ', split(/\|/, $_, 3)) } split(/\n(?=[0-9A-F]+\/[0-9A-F]+\|)/, $text);
}

# Between tables the order may differ where a table was copied beside the stream.
sub by_table
{
	return map { $_->[1] } sort { $a->[0] cmp $b->[0] } map { [ /table (public\.(?:"(?:[^"]|"")*"|[^\s":]+)):/, $_ ] } @_;
}

# The same sequence as the oracle, table by table since its copy, of all tables
# or of those that are named; returns its length.
sub same_as_oracle
{
	my ($origin, $node, $source, $what, @tables) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my %sync = map { split(/\|/, $_) }
	  split(/\n/, $node->safe_psql('postgres',
		"SELECT relation, coalesce(sync_snapshot::text, sync_lsn::text, '0/0') FROM elt.source_tables t "
		  . "JOIN elt.sources s USING (source_id) WHERE s.name = '$source'"));
	my %wanted = map { ($_ => 1) } @tables ? @tables : keys %sync;
	delete @sync{ grep { !$wanted{$_} } keys %sync };
	my @want = by_table(oracle_lines($origin, \%sync));
	my @have = by_table(raw_lines($node, $source, keys %sync));
	my $first = 0;

	$first++ while $first < @want && $first < @have && $want[$first] eq $have[$first];
	ok(@want == @have && $first == @want && $first > 0,
		"$what: the same " . scalar(@want) . " changes as test_decoding")
	  or diag('test_decoding: ' . scalar(@want) . ", raw staging: " . scalar(@have) . ", first difference at $first:\n"
		  . "  before: " . ($first > 0 ? $want[ $first - 1 ] : '(none)') . "\n"
		  . "  test_decoding: " . ($want[$first] // '(end)') . "\n"
		  . "  raw staging:   " . ($have[$first] // '(end)'));
	return scalar(@want);
}

my $checksum = q{count(*) || ' ' || coalesce(md5(string_agg(md5(t::text), '' ORDER BY t::text)), '')};

# The newest image of each key in raw staging since the last truncate, without
# deletes, is the source's table.
sub same_as_source
{
	my ($origin, $node, $source, $table) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $want = $origin->safe_psql('postgres', "SELECT $checksum FROM public.$table t");
	my $have = $node->safe_psql('postgres', <<"EOS");
WITH newest AS (
	SELECT DISTINCT ON (coalesce(key, to_jsonb(change_id))) op, after
	FROM elt_raw.$source WHERE relation = 'public.$table'
		AND change_id > coalesce((SELECT max(change_id) FROM elt_raw.$source WHERE relation = 'public.$table' AND op = 't'), 0)
	ORDER BY coalesce(key, to_jsonb(change_id)), change_id DESC
), t AS (
	SELECT (jsonb_populate_record(NULL::public.$table, after)).* FROM newest WHERE op <> 'd'
)
SELECT $checksum FROM t
EOS
	is($have, $want, "$table rebuilt from raw staging equals the source");
}

# A pipeline's target is the source's table.
sub same_as_target
{
	my ($origin, $node, $table, $target) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is($node->safe_psql('postgres', "SELECT $checksum FROM $target t"),
		$origin->safe_psql('postgres', "SELECT $checksum FROM public.$table t"),
		"target $target equals the source");
}

# How many changes of a table were staged from the stream.
sub staged
{
	my ($node, $source, $table) = @_;
	return $node->safe_psql('postgres',
		"SELECT count(*) FROM elt_raw.$source WHERE relation = 'public.$table' AND op <> 'r'");
}

# For a source that has pgbench's tables since they were filled.
sub sums_hold
{
	my ($origin, $node, $source) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	is(staged($node, $source, 'pgbench_history'),
		$origin->safe_psql('postgres', 'SELECT count(*) FROM pgbench_history'),
		'one history row is staged per transaction of the source');
	is($node->safe_psql('postgres',
			"SELECT count(*) - count(DISTINCT (commit_lsn, lsn, op)) FROM elt_raw.$source WHERE op <> 'r'"),
		'0', 'no change is staged twice');
	is($node->safe_psql('postgres', <<"EOS"), '0', 'the sums agree at every commit');
WITH change AS (
	SELECT commit_lsn, change_id, op, relation,
		   CASE relation WHEN 'public.pgbench_accounts' THEN (after->>'abalance')::bigint
						 WHEN 'public.pgbench_branches' THEN (after->>'bbalance')::bigint
						 WHEN 'public.pgbench_tellers' THEN (after->>'tbalance')::bigint END AS balance,
		   key, (after->>'delta')::bigint AS delta
	FROM elt_raw.$source
), step AS (
	SELECT commit_lsn, op, relation, delta,
		   balance - lag(balance) OVER (PARTITION BY relation, key ORDER BY change_id) AS moved
	FROM change
), transaction AS (
	SELECT commit_lsn, sum(delta) AS delta, count(*) AS changes,
		   sum(moved) FILTER (WHERE relation = 'public.pgbench_accounts') AS accounts,
		   sum(moved) FILTER (WHERE relation = 'public.pgbench_branches') AS branches,
		   sum(moved) FILTER (WHERE relation = 'public.pgbench_tellers') AS tellers
	FROM step WHERE op <> 'r' GROUP BY commit_lsn
), total AS (
	SELECT changes, sum(delta) OVER w AS delta, sum(accounts) OVER w AS accounts,
		   sum(branches) OVER w AS branches, sum(tellers) OVER w AS tellers
	FROM transaction WINDOW w AS (ORDER BY commit_lsn)
)
SELECT count(*) FROM total
WHERE (delta = accounts AND delta = branches AND delta = tellers AND changes = 4) IS NOT TRUE
EOS
}

# O4, once the sources or the extension are dropped.
sub nothing_left
{
	my ($node, $database) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	poll_ok($node, "SELECT count(*) = 0 FROM pg_replication_slots WHERE slot_name LIKE 'elt\\_%'", 'no slot is left');
	poll_ok($node, "SELECT count(*) = 0 FROM pg_replication_origin WHERE roname LIKE 'elt\\_%'", 'no origin is left');
	poll_ok($node, "SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type IN ('elt capture', 'elt cleaner', 'elt transform') "
		  . "OR (backend_type = 'walsender' AND application_name LIKE 'elt %')", 'no worker and no walsender is left');
	my @files = map { glob($node->data_dir . "/$_") } 'pg_replslot/elt_*', 'base/pgsql_tmp/*';
	is(join(' ', @files), '', 'no file is left');
}

1;
