# What there is to make. `make` alone says it too. Nothing here needs a C compiler; `make race` uses one if it is there.

GO       = go
TAGS     = containers_image_openpgp
MODULE   = github.com/imgfs/imgfs
PACKAGES = ./...
PREFIX   = /usr/local
# Where mount(8) looks for its helpers, and nowhere else.
MOUNTHELPERS = /sbin
FUZZTIME = 5s
SOAKTIME = 10m
LINT     = .cache/bin/golangci-lint-v2.15.0

export CGO_ENABLED = 0

# For the compiler and the linters, which are done before their garbage matters: a sixth of their CPU time. Tests run without it.
LAVISH = GOGC=400 GOMEMLIMIT=3GiB
FRUGAL = -exec 'env -u GOGC -u GOMEMLIMIT'

# A checkout without commits, or one that git refuses to read, builds too, without a revision in it.
VCS = $(shell git rev-parse --quiet --verify HEAD >/dev/null 2>&1 || echo -buildvcs=false)

# The clients that the tests run against, as command:package of Debian.
CLIENTS = podman:podman buildah:buildah skopeo:skopeo umoci:umoci docker-registry:docker-registry rsync:rsync jq:jq \
          fusermount3:fuse3 getfattr:attr ip:iproute2 setpriv:util-linux openssl:openssl dockerd:docker.io zstd:zstd xz:xz-utils bzip2:bzip2 gpg:gnupg newuidmap:uidmap nsenter:util-linux \
          scp:openssh-client

.PHONY: help build install demo test race lint fuzz ci bench soak deps clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

build: ## bin/imgfs, one static binary
	$(GO) build $(VCS) -trimpath -tags $(TAGS) -ldflags '-s -w' -o bin/imgfs ./cmd/imgfs

install: build ## bin/imgfs to PREFIX/bin (/usr/local), also as mount.imgfs in MOUNTHELPERS (/sbin)
	install -D -m 0755 bin/imgfs $(DESTDIR)$(PREFIX)/bin/imgfs
	install -d $(DESTDIR)$(MOUNTHELPERS)
	ln -sf $(PREFIX)/bin/imgfs $(DESTDIR)$(MOUNTHELPERS)/mount.imgfs

demo: build ## a tour: make images, mount them, read, tag, push, back up, unmount
	@$(GO) run ./test/demo bin/imgfs

test: deps ## all tests, against real mounts and real clients
	@$(LAVISH) $(GO) run ./test/report $(FRUGAL) -vet=off -tags $(TAGS) -count=1 -timeout=15m -p 4 -parallel 4 $(PACKAGES)

# Tests that have one goroutine and much to do: under the detector they take ten times as long, and it has nothing to find.
ALONE = ^(TestTOC(Bomb|Large|ManyChunks|Cancelled)|TestChangesTooLong|TestMergeIsUnpacking|TestAgainst(Podman|Skopeo))$$
# Libraries that compress, which are most of what tests of layers do, go without the detector: what they share is their own affair.
UNRACED = github.com/klauspost/... github.com/ulikunitz/...

race: ## imgsrc, imgsrc/layer and fs under the race detector, where there is a C compiler
	@if command -v cc >/dev/null; then \
		$(LAVISH) CGO_ENABLED=1 $(GO) test -race $(FRUGAL) -vet=off $(UNRACED:%=-gcflags='%=-race=false') -skip '$(ALONE)' \
			-tags '$(TAGS) exclude_graphdriver_btrfs' ./imgsrc ./imgsrc/layer ./fs; \
	else echo 'race: no C compiler, not run'; fi

lint: $(LINT) ## formatting, modules, dependency directions, golangci-lint with vet
	@out=$$(gofmt -l cmd fs imgsrc mount test); test -z "$$out" || { echo "not formatted by gofmt:"; echo "$$out"; exit 1; }
	$(GO) mod tidy -diff
	@out=$$(git ls-files | cut -d/ -f1 | sort -u | grep -vxE 'cmd|fs|imgsrc|mount|test|Makefile|go\.mod|go\.sum|README\.md|LICENSE|\..*'); \
		test -z "$$out" || { echo "does not belong at the top level:"; echo "$$out"; exit 1; }
	$(LAVISH) $(LINT) run

# The version is in the file's name: another version is built anew, the same one never.
$(LINT):
	$(LAVISH) GOBIN=$(CURDIR)/.cache/bin/new $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(lastword $(subst -, ,$@))
	mv .cache/bin/new/golangci-lint $@

# What is built so that fuzzers see which way an input takes: this project, and in make soak the libraries, which are built once more for it.
FUZZED = $(MODULE)/...

# As many fuzzers at once as there are processors, each with one worker. One that shortens what it finds at leisure
# (-fuzzminimizetime) has no time left to find anything: most would run a dozen inputs.
# Go before 1.27 may report a fuzzer that was stopped at the end of its time as failed (golang/go#75804): that, without a
# failing input, is none.
fuzz: ## each fuzzer over its corpus and FUZZTIME (5s) beyond
	@rm -rf .cache/fuzz; mkdir -p .cache/fuzz
	@dirs=$$(grep -rl --include='*_test.go' '^func Fuzz' cmd fs imgsrc mount | xargs -n 1 dirname | sort -u); \
	$(LAVISH) $(GO) test -c -vet=off -tags $(TAGS) $(FUZZED:%=-gcflags='%=-d=libfuzzer') -o .cache/fuzz/ $$(printf './%s ' $$dirs) && \
	for dir in $$dirs; do \
		(cd $$dir && exec $(CURDIR)/.cache/fuzz/$${dir##*/}.test -test.list '^Fuzz') >.cache/fuzz/list && \
		sed "s,^,$$dir ," .cache/fuzz/list || exit 1; \
	done >.cache/fuzz/all && \
	xargs -n 2 -P $$(nproc) sh -c 'cd "$$0" || exit 1; \
		echo "$$1 $$0"; log=$(CURDIR)/.cache/fuzz/$${0##*/}.$$1.log; \
		$(CURDIR)/.cache/fuzz/$${0##*/}.test -test.run "^$$1\$$" -test.fuzz "^$$1\$$" -test.fuzztime $(FUZZTIME) -test.fuzzminimizetime 10x \
			-test.parallel 1 -test.timeout 10m -test.fuzzcachedir "$$($(GO) env GOCACHE)/fuzz/$(MODULE)/$$0" >$$log 2>&1 </dev/null && exit; \
		grep -q "^    context deadline exceeded\$$" $$log && ! grep -q "Failing input" $$log && exit; \
		cat $$log; exit 1' <.cache/fuzz/all

ci: lint test race fuzz ## what continuous integration runs

bench: CLIENTS += archivemount:archivemount squashfuse:squashfuse mksquashfs:squashfs-tools fuse-overlayfs:fuse-overlayfs
bench: build deps ## imgfs against the kernel's own file systems and its peers, as ratios
	@$(GO) run -tags $(TAGS) ./test/bench -imgfs bin/imgfs

soak: deps ## hours, by hand: long fuzzing (SOAKTIME each), rounds of kill -9, load
	$(MAKE) fuzz FUZZTIME=$(SOAKTIME) FUZZED='$(MODULE)/... github.com/... go.podman.io/... archive/... compress/... encoding/...'
	$(GO) test -tags '$(TAGS) soak' -count=1 -timeout=0 -v -run '^TestSoak' ./test/e2e

deps: ## the clients that tests use: by apt as root on Debian, a list of what is missing elsewhere
	@missing=; for c in $(CLIENTS); do command -v $${c%:*} >/dev/null || missing="$$missing $${c#*:}"; done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get -q -o Acquire::Retries=3 update && \
		DEBIAN_FRONTEND=noninteractive apt-get -q -y -o Acquire::Retries=3 install --no-install-recommends $$missing; \
	else echo "missing, their tests will skip:$$missing"; fi

clean: ## what was built; caches in .cache stay
	rm -rf bin
