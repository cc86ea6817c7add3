# Malformed input for all that reads what a source sent: the same inputs each
# time, made of well-formed ones by a random generator; "make fuzz" is the long
# form.  A reader that touches memory that is not its own, takes too much of it,
# raises another error than it says, or makes JSON that PostgreSQL would not
# make, ends the server (see test/fuzz/fuzz.c).
use strict;
use warnings;

use EltTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $module = $ENV{ELT_FUZZ_MODULE} or die 'test/lib/run-tests builds a module for this test';
my $node = PostgreSQL::Test::Cluster->new('malformed');

$node->init;
$node->append_conf('postgresql.conf', "shared_preload_libraries = ''\nrestart_after_crash = off");
$node->start;
$node->safe_psql('postgres', <<"EOS");
CREATE FUNCTION fuzz_inputs() RETURNS bytea[] LANGUAGE c AS '$module';
CREATE FUNCTION fuzz_mutate(bytea[], int, int) RETURNS int LANGUAGE c AS '$module';
CREATE FUNCTION fuzz_one(bytea) RETURNS text LANGUAGE c AS '$module';
EOS
is($node->safe_psql('postgres', "SELECT string_agg(DISTINCT fuzz_one(i), ',') FROM unnest(fuzz_inputs()) AS i"), 'ok',
	'what is well-formed is read');

# each of these is refused, and by its reader: all but one have the version's number
my $version = $node->safe_psql('postgres', "SELECT encode(substr((fuzz_inputs())[1], 2, 1), 'hex')");
my %refused = (
	'an empty stream' => ['\x00', '08P01'],
	'another version' => ['\x00ff', '08P01'],
	'a stream that ends in a number' => ["\\x00${version}42ff", '08P01'],
	'a change outside a transaction' => ["\\x00${version}63", '08P01'],
	'a relation longer than its message' => ["\\x00${version}52ffffffff0f", '08P01'],
	'a number beyond 32 bits' => ["\\x00${version}52ffffffffff01", '08P01'],
	'a relation of too many columns' => ["\\x00${version}52090a0100640161ffff03", '08P01'],
	'a type that nests too deep' => ['\x01' . '612c' x 40 . '69', '08P01'],
	'a type with a field twice' => ['\x01' . unpack('H*', 'c("a"i"a"i)'), '08P01'],
	'a type without its end' => ['\x01' . unpack('H*', 'c("a'), '08P01'],
	'a line with too few columns' => ['\x0503' . unpack('H*', "1\t2\n"), '08P01'],
	'a line with too many columns' => ['\x0501' . unpack('H*', "1\t2\n"), '08P01']);
foreach my $what (sort keys %refused)
{
	is($node->safe_psql('postgres', "SELECT fuzz_one('$refused{$what}[0]')"), $refused{$what}[1], "$what is refused");
}

foreach my $seed (1 .. 5)
{
	my $refused = $node->safe_psql('postgres', "SELECT fuzz_mutate(fuzz_inputs(), 40000, $seed)");
	cmp_ok($refused, '>', 10000, "of 40000 inputs $refused are refused, and none does harm");
	cmp_ok($refused, '<', 30000, 'and some are read');
}
$node->stop;
done_testing();
