# Workload: random writes to a schema "fold", and the proof that raw staging
# tells all of them.
#
#	my $load = Workload->new($node, $seed);		# the schema, filled, and a source "fold"
#	$load->run($seconds);						# several sessions at once
#	$load->run($seconds, sub { ... }, $times);	# with something else every second, e.g. a crash, until it came about so often
#	$load->check('after that');					# the judges below; as tests
#
# What is written: inserts, updates, deletes, upserts, MERGE, COPY, TRUNCATE,
# updates and swaps of keys, savepoints, rollbacks, failed subtransactions,
# prepared transactions, VACUUM FULL, and changes of shape in the middle of it
# all (workload.sql has the statements; the types, with awkward values, too).
# Each session is a sequence of psql calls whose scripts follow from the seed;
# how they meet each other the seed does not say.
#
# The judges, once all is staged:
#
#	fold		raw staging read in its order gives exactly each table that is
#				there, column by column as text; and on the way no row is
#				inserted that is there, updated or deleted that is not, or
#				has another old image than the row that was
#	sequence	the same changes in the same order, by LSN, transaction,
#				relation, operation and column, as a test_decoding slot
package Workload;

use strict;
use warnings;

use EltTest;
use IPC::Run;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

# What raw staging is relied on for.  0 leaves out of the workload what raw
# staging cannot tell, or fills it in the fold.
use constant {
	# drop and re-create without a TRUNCATE before: schema versions tell incarnations
	RELID_KNOWN => 1,
	# columns added with a constant default: schema versions tell what rows that were there have (w.missing)
	MISSING_KNOWN => 1,
	# out-of-line values that an update did not touch are filled (where w.fold() expects it)
	UNCHANGED_FILLED => 1,
};

sub new
{
	my ($class, $node, $seed, %options) = @_;
	my $self = bless {
		node => $node, seed => $seed, sessions => $options{sessions} || 3,
		chunks => 0, resyncs => 0, statements => 0, failed => 0 }, $class;
	my $library = __FILE__;

	note("ELT_FOLD_SEED=$seed");
	$library =~ s/Workload\.pm$/workload.sql/;
	$node->safe_psql('postgres', slurp_file($library));
	$node->safe_psql('postgres', sprintf(<<'EOS', RELID_KNOWN, MISSING_KNOWN, $self->fraction(0)));
INSERT INTO w.settings VALUES (%d::boolean, %d::boolean);
SELECT setseed(%s);
SELECT w.dml(name) FROM unnest(ARRAY['wide', 'pair', 'heap', 'Odd "name"', 'parts']) AS name, generate_series(1, 10);
CREATE PUBLICATION fold FOR TABLES IN SCHEMA fold WITH (publish_via_partition_root = true);
SELECT elt.create_source('fold', publication => 'fold', options => '{"raw_partition_changes": 4096}');
EOS
	$node->poll_query_until('postgres',
		"SELECT count(*) = 6 FROM elt.source_tables JOIN elt.sources USING (source_id) WHERE name = 'fold' AND state = 'ready'")
	  or die 'the tables are not copied';
	$node->safe_psql('postgres', "SELECT w.read_forms('fold')");
	$node->safe_psql('postgres', "SELECT pg_create_logical_replication_slot('fold_oracle', 'test_decoding')");
	$self->{first_lsn} = $node->safe_psql('postgres', "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = 'fold_oracle'");
	return $self;
}

# A number for setseed that follows from the seed.
sub fraction
{
	my ($self, $n) = @_;
	return (($self->{seed} * 7919 + $n * 104729) % 1_000_003) / 1_000_003;
}

# ---- writing ----

sub run
{
	my ($self, $seconds, $meanwhile, $times) = @_;
	my $end = time() + $seconds;
	my $next = time() + 1;
	my $done = 0;
	my @running;
	my $goes_on = sub { return time() < $end || $done < ($times || 0) };

	while ($goes_on->() || @running)
	{
		@running = grep { !$self->finished($_) } @running;
		push @running, $self->start_chunk while $goes_on->() && @running < $self->{sessions};
		if ($meanwhile && time() > $next && $goes_on->())
		{
			$done++ if $meanwhile->();
			poll_perl(180, sub { accepts($self->{node}) }) or die 'the server did not come back';
			$next = time() + 1;
		}
		usleep(20_000);
	}
	return;
}

# What sessions, crashes and tables that change do to each other.
my $expected = qr/duplicate\ key|deadlock\ detected|lock\ timeout|does\ not\ exist|current\ transaction\ is\ aborted
	|terminating\ connection|in\ recovery|starting\ up|shutting\ down|server\ closed|tuple\ concurrently
	|cannot\ affect\ row\ a\ second\ time|moved\ to\ another\ partition|but\ expression\ is\ of\ type|value\ too\ long|could\ not\ open\ relation\ with\ OID/x;

# Whether a psql has ended; counts what failed in it.
sub finished
{
	my ($self, $run) = @_;

	$run->{handle}->pump_nb if $run->{handle}->pumpable;
	return 0 if $run->{handle}->pumpable;
	$run->{handle}->finish;
	foreach my $line (grep { /(?:ERROR|FATAL|PANIC):/ } split(/\n/, $run->{err}))
	{
		$self->{failed}++;
		$self->{unexpected}{ $line =~ s/^.*?(?=ERROR|FATAL|PANIC)//r }++ unless $line =~ $expected;
	}
	unlink($run->{file});
	return 1;
}

# One psql with some transactions.
sub start_chunk
{
	my ($self) = @_;
	my $number = ++$self->{chunks};
	my $run = { err => '', file => "$PostgreSQL::Test::Utils::tmp_check/chunk_$number.sql" };

	append_to_file($run->{file}, $self->script($number));
	$run->{handle} = IPC::Run::start([ 'psql', '-X', '-q', '-A', '-t', '-d', $self->{node}->connstr('postgres'), '-f', $run->{file} ],
		'<', \undef, '>', '/dev/null', '2>', \$run->{err});
	return $run;
}

# The transactions of a psql; each draws of its own seed.
sub script
{
	my ($self, $number) = @_;
	my $dml = "SELECT w.dml();\n";
	my $sql = sprintf("SET lock_timeout = '2s'; SET deadlock_timeout = '50ms';\nSELECT setseed(%s);\n", $self->fraction($number));

	srand($self->{seed} * 1009 + $number);
	# what a session prefers is nothing to capture
	$sql .= "SET DateStyle = 'German'; SET IntervalStyle = iso_8601; SET bytea_output = escape; SET extra_float_digits = -5;\n"
	  if rand() < 0.5;
	$sql .= "SET synchronous_commit = off;\n" if rand() < 0.3;
	foreach my $transaction (1 .. 12)
	{
		my $dice = rand();
		my $some = $dml x (1 + int(rand(4)));
		my $end = rand() < 0.85 ? "COMMIT;\n" : "ROLLBACK;\n";

		if ($dice < 0.30)
		{
			$sql .= $some;
		}
		elsif ($dice < 0.50)
		{
			$sql .= "BEGIN;\n$some$end";
		}
		elsif ($dice < 0.66)
		{
			$sql .= "BEGIN;\n${dml}SAVEPOINT a;\n$some" . (rand() < 0.5 ? "ROLLBACK TO a;\n" : "SAVEPOINT b;\n")
			  . $some . (rand() < 0.5 ? "RELEASE a;\n" : "ROLLBACK TO a;\n") . $dml . "COMMIT;\n";
		}
		elsif ($dice < 0.74)
		{
			my $gid = "fold_${number}_$transaction";
			$sql .= "BEGIN;\n${some}PREPARE TRANSACTION '$gid';\n$dml" . (rand() < 0.7 ? 'COMMIT' : 'ROLLBACK') . " PREPARED '$gid';\n";
		}
		elsif ($dice < 0.80)
		{
			$sql .= "BEGIN;\nSELECT w.subtransactions();\nCOMMIT;\n";
		}
		elsif ($dice < 0.86)
		{
			$sql .= "BEGIN;\n${dml}COPY fold.heap (id, n, big) FROM STDIN;\n" . join('', map {
					int(rand(100)) . "\t" . (rand() < 0.3 ? '\N' : int(rand(3))) . "\t" . ('', '\N', 'a\\tb\\n\\\\', 'same')[ rand(4) ] . "\n"
				} 1 .. 10) . "\\.\n$end";
		}
		elsif ($dice < 0.965)
		{
			# the table's shape changes between its rows
			$sql .= "BEGIN;\n${dml}SAVEPOINT a;\nSELECT w.ddl();\n$some" . (rand() < 0.2 ? "ROLLBACK TO a;\n" : '') . $dml . $end;
		}
		else
		{
			$sql .= (rand() < 0.5 ? 'VACUUM FULL' : 'VACUUM FREEZE') . ' fold.' . ('wide', 'pair', 'heap', '"Odd ""name"""')[ rand(4) ] . ";\n";
		}
	}
	return $sql;
}

# What a crash left prepared ends, one way or the other.
sub settle_prepared
{
	my ($self) = @_;
	my $n = 0;

	foreach my $gid (split(/\n/, $self->{node}->safe_psql('postgres', 'SELECT gid FROM pg_prepared_xacts ORDER BY gid')))
	{
		$self->{node}->safe_psql('postgres', ($n++ % 2 ? 'ROLLBACK' : 'COMMIT') . " PREPARED '$gid'");
	}
	return;
}

# What a table is like is told with the next change of it.
sub tell_shapes
{
	my ($self) = @_;

	$self->{node}->safe_psql('postgres', <<'EOS');
SELECT w.tell(relname) FROM pg_class WHERE relnamespace = 'fold'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition AND relname <> 'forms';
EOS
	return;
}

# Has a table copied anew, beside what is being written.
sub resync
{
	my ($self) = @_;
	my $table = ('wide', 'pair', 'heap', '"Odd ""name"""', 'parts')[ $self->{resyncs}++ % 5 ];

	# it may be copied already, or just have no table
	$self->{node}->psql('postgres', "SELECT elt.resync_table('fold', 'fold.$table')");
	return;
}

# Has the fold know that servers were stopped while tables were copied.
sub interrupted
{
	my ($self) = @_;

	$self->{node}->safe_psql('postgres', 'UPDATE w.settings SET interrupted = true');
	return;
}

# ---- the judges ----

# All of them, as one subtest; returns whether it passed.
sub check
{
	my ($self, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $node = $self->{node};

	$self->settle_prepared;
	$self->tell_shapes;
	return subtest "$what (ELT_FOLD_SEED=$self->{seed})" => sub {
		is($node->safe_psql('postgres', "SELECT elt.wait_for_source('fold', timeout => '120 s')"), 't', 'all is staged');
		ok($node->poll_query_until('postgres', "SELECT count(*) = 0 FROM elt.source_tables JOIN elt.sources USING (source_id) WHERE name = 'fold' AND state = 'pending'"),
			'all copies are made');
		is(join("\n", sort keys %{ $self->{unexpected} || {} }), '', 'no statement failed but for what sessions do to each other');
		my ($ops, $shapes) = split(/\n/, $node->safe_psql('postgres', <<'EOS'));
SELECT string_agg(op::text || ' ' || n, ', ' ORDER BY op) || (SELECT ', unchanged ' || count(*) FROM elt_raw.fold WHERE unchanged IS NOT NULL)
FROM (SELECT op, count(*) AS n FROM elt_raw.fold GROUP BY op) AS o;
SELECT count(*) FROM elt.schema_versions JOIN elt.sources USING (source_id) WHERE name = 'fold';
EOS
		note("staged: $ops; $shapes shapes; $self->{chunks} scripts, $self->{failed} statements failed");
		cmp_ok($shapes, '>', 5, 'shapes changed');
		$self->check_fold;
		$self->check_sequence;
	};
}

sub check_fold
{
	my ($self) = @_;
	my $node = $self->{node};

	# tables that are gone have been right, too
	is($node->safe_psql('postgres', <<'EOS') =~ s/^\s+//r, '', 'raw staging of tables that were dropped can be');
SELECT w.fold('fold', relid) FROM (SELECT DISTINCT v.relid FROM elt.schema_versions AS v JOIN elt.sources AS s USING (source_id)
	WHERE s.name = 'fold' AND NOT EXISTS (SELECT FROM pg_class AS c WHERE c.oid = v.relid)) AS d;
SELECT format('%s, change %s: %s', relation, change_id, what) FROM w.wrong ORDER BY change_id LIMIT 5;
DELETE FROM w.wrong;
EOS
	foreach my $table (split(/\n/, $node->safe_psql('postgres',
		"SELECT relname FROM pg_class WHERE relnamespace = 'fold'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition ORDER BY 1")))
	{
		my $differences = $node->safe_psql('postgres', <<"EOS");
SET client_min_messages = warning;
SELECT w.fold('fold', format('fold.%I', '$table')::regclass);
SELECT format('change %s: %s', change_id, what) FROM w.wrong ORDER BY change_id LIMIT 5;
SELECT format('only in %s, %s times: %s', side, copies, left(line, 3000)) FROM w.differences('fold', '$table') ORDER BY line LIMIT 6;
DELETE FROM w.wrong;
EOS
		$differences =~ s/^\s+//;
		is($differences, '', "$table folded back from raw staging is the table, of "
			  . $node->safe_psql('postgres', "SELECT count(*) FROM w.folded WHERE relation = format('fold.%I', '$table')::regclass") . ' rows');
	}
	return;
}

# test_decoding's changes as lines: lsn, xid, operation, relation, old columns,
# new columns; tabs between them and between name=text.
sub oracle_lines
{
	my ($self) = @_;
	my $token = qr/("(?:[^"]|"")*"|[^\s\[]+)\[((?:[^\[\]"]|\[\]|"(?:[^"]|"")*")*)\]:(null|unchanged-toast-datum|B?'(?:[^']|'')*'|\S+)/;
	my @lines;
	my $text = $self->{node}->safe_psql('postgres', <<'EOS');
SELECT lsn || ' ' || xid || ' ' || replace(replace(replace(data, '\', '\\'), E'\n', '\n'), E'\t', '\t')
FROM pg_logical_slot_peek_changes('fold_oracle', NULL, NULL, 'only-local', '1', 'skip-empty-xacts', '1')
WHERE data LIKE 'table fold.%'
EOS
	foreach my $line (split(/\n/, $text))
	{
		my ($lsn, $xid, $data) = split(/ /, $line, 3);
		if ($data =~ /^table (fold\..*): TRUNCATE: /)
		{
			push @lines, "$lsn\t$xid\tt\t$_" foreach grep { !/^fold\.parts_/ } $1 =~ /fold\.(?:"(?:[^"]|"")*"|[^\s",]+)/g;
			next;
		}
		$data =~ s/^table (fold\.(?:"(?:[^"]|"")*"|[^\s":]+)): ([A-Z]+): // or die "not understood: $data";
		my ($relation, $op) = ($1, { INSERT => 'c', UPDATE => 'u', DELETE => 'd' }->{$2});
		my %parts = (old => [], new => []);
		my $part = $op eq 'd' ? 'old' : 'new';

		$relation =~ s/^fold\.parts_(?:low|high)$/fold.parts/;
		$part = 'old' if $data =~ s/^old-key: //;
		pos($data) = 0;
		while (pos($data) < length($data) && $data ne '(no-tuple-data)')
		{
			if ($data =~ /\Gnew-tuple: /gc)
			{
				$part = 'new';
				next;
			}
			$data =~ /\G$token(?: |$)/gc or die "not understood: " . substr($data, pos($data));
			my ($name, $value) = ($1, $3);
			next if $value eq 'null' && $part eq 'old';
			$name =~ s/""/"/g if $name =~ s/^"(.*)"$/$1/;
			$value =~ s/''/'/g if $value =~ s/^B?'(.*)'$/$1/;
			push @{ $parts{$part} }, "$name=$value";
		}
		push @lines, join("\t", $lsn, $xid, $op, $relation, 'old', sort(@{ $parts{old} }), 'new', sort(@{ $parts{new} }));
	}
	return @lines;
}

# Raw staging in the same form.  JSON becomes the text of its type where the
# type is known, by jsonb_to_record, each different value once.
sub raw_lines
{
	my ($self) = @_;
	my $text = $self->{node}->safe_psql('postgres', <<"EOS");
SET client_min_messages = warning;
SET jit = off;
CREATE TEMP TABLE change AS
	SELECT r.*, COALESCE(lag(r.op) OVER w = 'd' AND lag(r.lsn) OVER w = r.lsn AND lag(r.relation) OVER w = r.relation AND r.op = 'c', false) AS moved_here,
		COALESCE(lead(r.op) OVER w = 'c' AND lead(r.lsn) OVER w = r.lsn AND lead(r.relation) OVER w = r.relation AND r.op = 'd', false) AS moved_away,
		lag(r.before) OVER w AS old_before
	FROM elt_raw.fold AS r WHERE op IN ('c', 'u', 'd', 't') AND xid <> '0' AND commit_lsn >= '$self->{first_lsn}'
	WINDOW w AS (ORDER BY change_id);
CREATE TEMP TABLE col AS
	SELECT v.relation, v.version, c->>'name' AS name, c->>'type' AS type FROM elt.schema_versions AS v
	JOIN elt.sources AS s USING (source_id), jsonb_array_elements(columns) AS c WHERE s.name = 'fold';
CREATE TEMP TABLE cell AS
	SELECT change_id, side, col.name, CASE WHEN side = 'new' AND col.name = ANY (unchanged) THEN NULL ELSE COALESCE(image->col.name, 'null') END AS value, type
	FROM change, LATERAL (VALUES ('old', CASE WHEN moved_here THEN old_before ELSE before END), ('new', after)) AS i(side, image)
	JOIN col ON true
	WHERE NOT moved_away AND image IS NOT NULL AND col.relation = change.relation AND col.version = change.schema_version
	AND (side = 'new' OR COALESCE(image->col.name, 'null') <> 'null');
CREATE TEMP TABLE word (type text, json text, word text);
DO \$\$
DECLARE t text;
BEGIN
	FOR t IN SELECT DISTINCT type FROM cell WHERE value <> 'null' LOOP
		EXECUTE CASE WHEN t = 'json'
			THEN 'INSERT INTO word SELECT DISTINCT ON (value::text) type, value::text, CASE jsonb_typeof(value) WHEN ''string'' THEN value #>> ''{}'' ELSE value::text END AS word FROM cell WHERE type = \$1 AND value <> ''null'''
			ELSE format('INSERT INTO word SELECT type, value::text, CASE type WHEN ''boolean'' THEN c::text ELSE format(''%%s'', c) END FROM (SELECT DISTINCT ON (value::text) type, value FROM cell WHERE type = \$1 AND value <> ''null'') AS d, '
				'LATERAL jsonb_to_record(jsonb_build_object(''c'', value)) AS r(c %s)', t) END USING t;
	END LOOP;
END \$\$;
ANALYZE cell;
ANALYZE word;
WITH line AS (
	SELECT change_id, side, string_agg(text, E'\\t' ORDER BY text COLLATE "C") AS line
	FROM cell LEFT JOIN word ON word.type = cell.type AND json = value::text CROSS JOIN LATERAL (SELECT name || '=' || CASE WHEN value IS NULL THEN 'unchanged-toast-datum' WHEN value = 'null' THEN 'null'
			ELSE replace(replace(replace(word, '\\', '\\\\'), E'\\n', '\\n'), E'\\t', '\\t') END) AS t(text)
	GROUP BY 1, 2
)
SELECT c.lsn || E'\\t' || c.xid || E'\\t' || CASE WHEN moved_here THEN 'u' ELSE op::text END || E'\\t' || relation ||
	CASE WHEN op = 't' THEN '' ELSE E'\\told' || COALESCE(E'\\t' || o.line, '') || E'\\tnew' || COALESCE(E'\\t' || n.line, '') END
FROM change AS c
LEFT JOIN line AS o ON o.change_id = c.change_id AND o.side = 'old'
LEFT JOIN line AS n ON n.change_id = c.change_id AND n.side = 'new'
WHERE NOT moved_away ORDER BY c.change_id;
EOS
	return split(/\n/, $text);
}

# Whether two lines say the same.  A value that test_decoding does not know may
# be there, if the old image has it or an earlier row (which the fold proves).
sub same_line
{
	my ($want, $have) = @_;

	return 1 if $want eq $have;
	my @want = split(/\t/, $want, -1);
	my @have = split(/\t/, $have, -1);
	return 0 if @want != @have;
	foreach my $i (0 .. $#want)
	{
		next if $want[$i] eq $have[$i];
		return 0 unless $want[$i] =~ /^(.*?=)unchanged-toast-datum$/ && index($have[$i], $1) == 0;
		return 0 unless UNCHANGED_FILLED || grep { $_ eq $have[$i] } @have[ 0 .. $i - 1 ];
	}
	return 1;
}

sub check_sequence
{
	my ($self) = @_;
	my @want = $self->oracle_lines;
	my @have = $self->raw_lines;
	my $first = 0;

	# beside copies the order holds by table
	@$_ = sort { (split(/\t/, $a))[3] cmp (split(/\t/, $b))[3] } @$_ foreach $self->{resyncs} ? (\@want, \@have) : ();

	# jsonb's form is the form of json in raw staging
	s/=\{"b": \[1, \{"c": null\}\], "a": 1\.50\}/={"a": 1.50, "b": [1, {"c": null}]}/g foreach @want;
	$first++ while $first < @want && $first < @have && same_line($want[$first], $have[$first]);
	ok($first == @want && @want == @have && $first > 0, 'the same ' . scalar(@want) . ' changes in the same order as test_decoding')
	  or diag('test_decoding: ' . scalar(@want) . ', raw staging: ' . scalar(@have) . ", first difference at $first:\n"
		  . '  test_decoding: ' . without($want[$first], $have[$first]) . "\n  raw staging:   " . without($have[$first], $want[$first]));
	return;
}

# What only the first of two lines has, after what tells which change it is.
sub without
{
	my ($line, $other) = @_;
	return '(end)' unless defined $line;
	my %other = map { $_ => 1 } split(/\t/, $other // '');
	my @tokens = split(/\t/, $line);
	return substr(join(' ', @tokens[ 0 .. 3 ], grep { !$other{$_} } @tokens[ 4 .. $#tokens ]), 0, 2000);
}

1;
