# `make run` builds everything and starts the daemon on this very repository; `make check` is all of CI.

CARGO ?= cargo
PREFIX ?= /usr/local
SYSCONFDIR ?= /etc
bindir = $(PREFIX)/bin
mandir = $(PREFIX)/share/man
unitdir = $(PREFIX)/lib/systemd/system
sysusersdir = $(PREFIX)/lib/sysusers.d
tmpfilesdir = $(PREFIX)/lib/tmpfiles.d
docdir = $(PREFIX)/share/doc/gorget
bashdir = $(PREFIX)/share/bash-completion/completions
zshdir = $(PREFIX)/share/zsh/site-functions
fishdir = $(PREFIX)/share/fish/vendor_completions.d

program = target/release/gorget
demo = $(CURDIR)/target/demo
# Where the demonstration serves its web interface.
WEB ?= 127.0.0.1:8080
# The file that is installed for a page of section 1, 5 or 7.
pages = man/gorget.1 man/gorget-register.1 man/gorget-web.1 man/gorget-remote-server.1 man/gorget-remote-worker.1 \
  man/gorget-specification.5 man/gorget-bridge.7

# What checks pages for those who cannot see or point, in the package of it that needs nothing else: of this version,
# and no other file than this.
axe = target/axe/axe.min.js
axe_package = axe-playwright-python==0.1.8
axe_sum = sha256:fdd263c998388f1a8e67cad02677e612d946248bd44d163be5e8650ea31f95f8

.PHONY: all deps run check bench install uninstall clean man deny axe

all: deps
	$(CARGO) build --release --locked --bins

# Says which Debian packages to install when something is missing.
deps:
	@missing=; \
	command -v $(CARGO) >/dev/null || { \
	  echo "Rust is missing: apt install rustup && rustup default stable (or see https://rustup.rs)" >&2; exit 1; }; \
	command -v cc >/dev/null || missing="$$missing gcc"; \
	command -v c++ >/dev/null || missing="$$missing g++"; \
	command -v pkg-config >/dev/null || missing="$$missing pkg-config"; \
	if command -v pkg-config >/dev/null; then \
	  pkg-config --exists openssl || missing="$$missing libssl-dev"; \
	else \
	  test -e /usr/include/openssl/ssl.h || missing="$$missing libssl-dev"; \
	fi; \
	if [ -n "$$missing" ]; then \
	  echo "Something needed to build is missing: apt install$$missing" >&2; exit 1; \
	fi; \
	version=$$($(CARGO) --version | sed 's/^cargo \([0-9]*\)\.\([0-9]*\).*/\1 \2/'); \
	set -- $$version; \
	if [ "$$1" -eq 1 ] && [ "$$2" -lt 89 ]; then \
	  echo "Rust 1.89 or later is needed, this is $$1.$$2: apt install rustup && rustup default stable" >&2; exit 1; \
	fi

# The demonstration: this checkout is the channel of its one jobset. Interrupt it to stop.
run: all
	@git -C "$(CURDIR)" rev-parse --quiet --verify HEAD >/dev/null 2>&1 || { \
	  echo "The demonstration builds this checkout, which is no Git repository with a commit (or there is no git)." >&2; \
	  exit 1; }
	@mkdir -p "$(demo)"
	@sed 's|@checkout@|$(CURDIR)|' contrib/demo.json >"$(demo)/demo.json"
	@echo '{ "loopback-role": "operator" }' >"$(demo)/parameters.json"
	@echo
	@echo "Gorget watches this checkout ($(CURDIR)) and builds the last commit:"
	@echo "first its jobs are evaluated (contrib/demo/jobs), then built (contrib/demo/step)."
	@echo "A new commit is noticed within 30 seconds. All state is in target/demo."
	@echo
	@echo "Look at it on http://$(WEB)/ (make run WEB=HOST:PORT for another place); from this machine"
	@echo "its buttons need no token. Talk to it from another terminal, in this directory:"
	@echo
	@echo "  $(program) watch --state-directory target/demo"
	@echo "  $(program) builds --state-directory target/demo"
	@echo "  $(program) log --follow 1 --state-directory target/demo"
	@echo "  echo 'trigger gorget' | socat - UNIX-CONNECT:target/demo/run/bridge"
	@echo
	@echo "Interrupt (Ctrl-C) stops it in order; the next 'make run' goes on from there."
	@echo
	@GORGET_LOG=$${GORGET_LOG:-info,builder=debug} exec $(program) register --state-directory "$(demo)" --specifications "$(demo)/demo.json" \
	  --builder process --web "$(WEB)" --parameters "$(demo)/parameters.json"

# Tests last: what they say is what people look for. What cargo-fuzz drives is type-checked as it sees it; its own package
# would compile every dependency anew, with flags of its own. tests/tidy.rs compares the two.
check: deps
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	$(CARGO) rustc --locked --lib --profile check -- --cfg fuzzing -D warnings
	$(CARGO) build --locked --bins
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --locked --no-deps --document-private-items
	$(CARGO) test --locked
	GORGET_FUZZ_SECONDS=60 $(CARGO) test --locked --lib fuzz::

bench: all
	$(CARGO) bench --locked --bench gorget
	$(CARGO) test --locked --release --lib a_gigabyte_of_log_is_decoded -- --ignored --nocapture

# axe-core, for the tests of pages in a browser: from wherever pip gets its packages.
axe: $(axe)

$(axe):
	@mkdir -p $(@D)
	@echo '$(axe_package) --hash=$(axe_sum)' >$(@D)/requirements.txt
	python3 -m pip download --quiet --no-deps --require-hashes --only-binary :all: --dest $(@D) \
	  --requirement $(@D)/requirements.txt
	@python3 -m zipfile --extract $(@D)/*.whl $(@D)
	@mv $(@D)/axe_playwright_python/axe.min.js $@

# Man pages and completions, from the option table.
man: deps
	$(CARGO) build --locked --bins
	target/debug/gorget documentation .

# As root after `make`, nothing is compiled again.
install:
	@test -x $(program) || $(MAKE) all
	install -D -m 0755 $(program) "$(DESTDIR)$(bindir)/gorget"
	for page in $(pages); do \
	  section=$${page##*.}; \
	  install -D -m 0644 $$page "$(DESTDIR)$(mandir)/man$$section/$${page#man/}" || exit; \
	done
	install -d "$(DESTDIR)$(unitdir)"
	sed 's|@bindir@|$(bindir)|; s|@sysconfdir@|$(SYSCONFDIR)|' contrib/gorget.service \
	  >"$(DESTDIR)$(unitdir)/gorget.service"
	sed 's|@bindir@|$(bindir)|; s|@sysconfdir@|$(SYSCONFDIR)|' contrib/gorget-web.service \
	  >"$(DESTDIR)$(unitdir)/gorget-web.service"
	sed 's|@bindir@|$(bindir)|; s|@sysconfdir@|$(SYSCONFDIR)|' contrib/gorget-remote-server.service \
	  >"$(DESTDIR)$(unitdir)/gorget-remote-server.service"
	sed 's|@bindir@|$(bindir)|' contrib/gorget-remote-worker.service \
	  >"$(DESTDIR)$(unitdir)/gorget-remote-worker.service"
	chmod 0644 "$(DESTDIR)$(unitdir)/gorget.service" "$(DESTDIR)$(unitdir)/gorget-web.service" \
	  "$(DESTDIR)$(unitdir)/gorget-remote-server.service" "$(DESTDIR)$(unitdir)/gorget-remote-worker.service"
	install -D -m 0644 contrib/gorget.sysusers "$(DESTDIR)$(sysusersdir)/gorget.conf"
	install -D -m 0644 contrib/gorget.tmpfiles "$(DESTDIR)$(tmpfilesdir)/gorget.conf"
	install -D -m 0644 contrib/completions/gorget.bash "$(DESTDIR)$(bashdir)/gorget"
	install -D -m 0644 contrib/completions/_gorget "$(DESTDIR)$(zshdir)/_gorget"
	install -D -m 0644 contrib/completions/gorget.fish "$(DESTDIR)$(fishdir)/gorget.fish"
	install -D -m 0644 README.md "$(DESTDIR)$(docdir)/README.md"
	install -D -m 0644 LICENSE "$(DESTDIR)$(docdir)/LICENSE"
	install -D -m 0644 contrib/gorget.scm "$(DESTDIR)$(docdir)/gorget.scm"

uninstall:
	rm -f "$(DESTDIR)$(bindir)/gorget" "$(DESTDIR)$(unitdir)/gorget.service" \
	  "$(DESTDIR)$(unitdir)/gorget-web.service" \
	  "$(DESTDIR)$(unitdir)/gorget-remote-server.service" \
	  "$(DESTDIR)$(unitdir)/gorget-remote-worker.service" \
	  "$(DESTDIR)$(sysusersdir)/gorget.conf" "$(DESTDIR)$(tmpfilesdir)/gorget.conf" \
	  "$(DESTDIR)$(bashdir)/gorget" "$(DESTDIR)$(zshdir)/_gorget" "$(DESTDIR)$(fishdir)/gorget.fish"
	for page in $(pages); do \
	  section=$${page##*.}; \
	  rm -f "$(DESTDIR)$(mandir)/man$$section/$${page#man/}"; \
	done
	rm -rf "$(DESTDIR)$(docdir)"

clean:
	$(CARGO) clean

deny:
	$(CARGO) deny --config contrib/deny.toml check bans licenses sources
