# elt: see README.md.  "make demo", "make test" and "make bench" work on a fresh
# Debian 12 that has git and make; "make", "make install" and "make installcheck"
# are as PGXS has them, for the PostgreSQL of PG_CONFIG.

MODULE_big = elt
EXTENSION = elt
DATA = elt--1.0.sql
OBJS = $(patsubst %.c,%.o,$(sort $(wildcard src/*.c src/*/*.c)))
SQL_PARTS = $(sort $(wildcard src/sql/*.sql))

REGRESS = $(patsubst sql/%.sql,%,$(sort $(wildcard sql/*.sql)))
REGRESS_OPTS = --load-extension=elt
ISOLATION = $(patsubst test/isolation/specs/%.spec,%,$(sort $(wildcard test/isolation/specs/*.spec)))
ISOLATION_OPTS = --inputdir=test/isolation --load-extension=elt

PG_CONFIG ?= pg_config
export PG_CONFIG
PG_CPPFLAGS = -I$(CURDIR)/src -I$(shell $(PG_CONFIG) --includedir)
PG_CFLAGS = -Wall -Wextra -Wno-unused-parameter -Wno-sign-compare -Wno-missing-field-initializers
SHLIB_LINK = -lpq

# pg_config may be there without what is needed to build extensions
PGXS := $(wildcard $(shell $(PG_CONFIG) --pgxs 2>/dev/null))
ifneq ($(PGXS),)
include $(PGXS)
all: elt--1.0.sql
$(OBJS) $(OBJS:.o=.bc): $(wildcard src/*.h src/*/*.h)
else
all install installcheck uninstall clean:
	@echo "PostgreSQL's server headers are missing ($(PG_CONFIG) --pgxs names no file)." >&2
	@echo "On Debian: apt-get install postgresql-server-dev-15 libpq-dev; elsewhere set PG_CONFIG." >&2
	@false
endif

# the install script is committed, and made of its parts
sql: elt--1.0.sql
elt--1.0.sql: $(SQL_PARTS)
	cat $^ >$@.tmp && mv $@.tmp $@
check-sql:
	@cat $(SQL_PARTS) | cmp - elt--1.0.sql

# These install what they need, build and install elt, and use a cluster of
# their own; each test/<name>/run is a goal: demo, bench, ...
RUNS = $(filter-out matrix,$(patsubst test/%/run,%,$(wildcard test/*/run)))
test:
	@MAKE="$(MAKE)" test/lib/prepare build test
	@test/lib/run-tests
$(RUNS):
	@MAKE="$(MAKE)" test/lib/prepare build
	@test/$@/run

# the same on other majors of PostgreSQL, in Debian roots of their own; see there
test-matrix:
	@MAJORS="$(MAJORS)" TESTS="$(TESTS)" REFRESH="$(REFRESH)" test/matrix/run

indent:
	@test/lib/indent $(wildcard src/*.[ch] src/*/*.[ch])
check-indent:
	@test/lib/indent --check $(wildcard src/*.[ch] src/*/*.[ch])

.PHONY: sql check-sql test $(RUNS) test-matrix indent check-indent
