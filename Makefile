# The five commands of this repository. Each works from a fresh clone and can be run again.
# As root on a machine with apt, missing packages are installed; elsewhere the commands say what is missing.

CARGO ?= cargo
DEMO_STORE ?= $(CURDIR)/demo/store
DEMO_CONFIG ?= $(CURDIR)/demo/config
DEMO_DIR ?= $(CURDIR)/demo/photos
SSEFS = $(CURDIR)/target/release/ssefs

# program:package
NEEDS_BUILD = cc:gcc
NEEDS_MOUNT = fusermount3:fuse3
NEEDS_TEST = softhsm2-util:softhsm2 restic:restic borg:borgbackup rsync:rsync git:git sqlite3:sqlite3 tar:tar setfattr:attr setfacl:acl \
             gcc:gcc make:make fio:fio bash:bash python3:python3
NEEDS_BENCH = fio:fio
# Programs from crates.io that the tests use, each with its version, in a place of our own.
TOOLS = $(CURDIR)/target/tools

.PHONY: help build demo demo-clean tools test bench scale rewrap lint audit soak man install
help:
	@echo 'make demo    build, make a bucket with rule AES256, mount it, say what to type next'
	@echo 'make test    the whole test suite'
	@echo 'make bench   the micro-benchmarks'
	@echo 'make scale   how ssefs grows: figures and a plot in docs, up to a million files'
	@echo 'make rewrap  rewrapping the keys of a million objects, timed'
	@echo 'make lint    clippy and rustfmt, warnings are errors'
	@echo 'make audit   licences, sources and advisories of all crates, by cargo-deny'
	@echo 'make soak    the crash rounds, fsx and random operations, with new seeds, SOAK_ROUNDS times (default 10)'
	@echo 'make install ssefs, its mount helpers and manuals under PREFIX (default /usr/local)'

build:
	@packaging/need $(NEEDS_BUILD)
	$(CARGO) build --release --locked

demo: build
	@packaging/need $(NEEDS_MOUNT) getfattr:attr
	@packaging/demo '$(SSEFS)' '$(DEMO_STORE)' '$(DEMO_CONFIG)' '$(DEMO_DIR)'

demo-clean:
	-@$(SSEFS) umount '$(DEMO_DIR)'
	rm -rf '$(CURDIR)/demo'

tools:
	@packaging/need $(NEEDS_BUILD)
	@packaging/need-crate fsx 0.3.2 '$(TOOLS)'
	@packaging/need-crate pjdfstest 0.2.2 '$(TOOLS)'
	@packaging/need python3:python3
	@packaging/need-python '$(TOOLS)/moto' moto==5.2.5 flask==3.1.2 flask-cors==6.0.1

# Tests that mount run one test binary at a time (cargo does) and within one binary as RUST_TEST_THREADS says.
test: tools
	@packaging/need $(NEEDS_BUILD) $(NEEDS_MOUNT) $(NEEDS_TEST)
	SSEFS_PJDFSTEST='$(TOOLS)/bin/pjdfstest' SSEFS_MOTO='$(TOOLS)/moto/bin' $(CARGO) test --release --locked --no-fail-fast

bench:
	@packaging/need $(NEEDS_BUILD) $(NEEDS_MOUNT) $(NEEDS_BENCH)
	$(CARGO) bench --locked --bench crypto --bench bucket

# A million files through a mount, some minutes; SSEFS_SCALE_FILES says another number. Writes docs/scale.csv and .svg.
scale:
	@packaging/need $(NEEDS_BUILD) $(NEEDS_MOUNT)
	$(CARGO) bench --locked --bench scale

# Rewrapping a bucket with a million objects, coverage of it, and renewing its KEKs; SSEFS_REWRAP_OBJECTS says another number.
rewrap:
	@packaging/need $(NEEDS_BUILD)
	$(CARGO) bench --locked --bench rewrap

lint:
	$(CARGO) clippy --release --all-targets --locked -- -D warnings
	$(CARGO) fmt --check

# cargo-deny takes minutes to build, once, so that `make test` does without it: tests/audit.rs checks licences, sources and
# the advisories of packaging/advisories.tsv. Here today's advisories are fetched, where they can be.
audit:
	@packaging/need $(NEEDS_BUILD)
	@packaging/need-crate cargo-deny 0.20.2 '$(TOOLS)'
	'$(TOOLS)/bin/cargo-deny' --all-features check licenses bans sources
	@packaging/audit-advisories '$(TOOLS)/bin/cargo-deny'
	$(CARGO) test --release --locked --test audit

SOAK_ROUNDS ?= 10
# Operations of each of the 32 runs of fsx in a round.
SOAK_FSX_OPS ?= 40000
soak: tools
	@packaging/need $(NEEDS_BUILD) $(NEEDS_MOUNT) $(NEEDS_TEST)
	@for round in $$(seq $(SOAK_ROUNDS)); do \
		echo "soak: round $$round of $(SOAK_ROUNDS)"; \
		$(CARGO) test --release --locked --test kill9 --test kill9_tools --test power_cut -- --include-ignored --nocapture || exit 1; \
		SSEFS_FSX_SEED=$$((round * 1000)) SSEFS_FSX_OPS=$(SOAK_FSX_OPS) \
			$(CARGO) test --release --locked --test fsx || exit 1; \
		SSEFS_SEED=$$((round * 1000)) SSEFS_PROCESS_ROUNDS=40 \
			$(CARGO) test --release --locked --test processes || exit 1; \
	done

# Writes man/ssefs.1 anew from the definitions of the command line; a test says when it is due.
man:
	SSEFS_BLESS=1 $(CARGO) test --release --locked --test cli_man

PREFIX ?= /usr/local
install: build
	install -D -m 755 $(SSEFS) '$(DESTDIR)$(PREFIX)/bin/ssefs'
	install -d '$(DESTDIR)/sbin'
	ln -sf '$(PREFIX)/bin/ssefs' '$(DESTDIR)/sbin/mount.ssefs'
	ln -sf '$(PREFIX)/bin/ssefs' '$(DESTDIR)/sbin/mount.fuse.ssefs'
	install -D -m 644 man/ssefs.1 '$(DESTDIR)$(PREFIX)/share/man/man1/ssefs.1'
	install -D -m 644 man/ssefs.5 '$(DESTDIR)$(PREFIX)/share/man/man5/ssefs.5'
	install -D -m 644 man/mount.ssefs.8 '$(DESTDIR)$(PREFIX)/share/man/man8/mount.ssefs.8'
