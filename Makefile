# Entry points for people and for CI. `make help` lists them.
#
# A target installs what it lacks where it runs as root on Debian, and names the packages where it does not.

CARGO ?= cargo
export CARGO_TERM_COLOR ?= auto

.PHONY: help demo test test-rings check build fmt clippy deny docs docs-fresh manual deb test-deb bench fuzz soak soak-mount worst test-svm clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: ## damage an image, heal it, mount it, look into it
	@scripts/need mkfs.ext4=e2fsprogs debugfs=e2fsprogs qemu-img=qemu-utils fusermount3=fuse3 cc=gcc
	$(CARGO) build --release --locked
	@scripts/demo

test: ## every test; those that need what the machine lacks say so
	@scripts/need mkfs.ext4=e2fsprogs qemu-img=qemu-utils qemu-io=qemu-utils qemu-storage-daemon=qemu-system-common \
		fusermount3=fuse3 sfdisk=fdisk nbdkit=nbdkit xmllint=libxml2-utils strace=strace man=man-db python3=python3 \
		systemd-analyze=systemd chromium=chromium setpriv=util-linux losetup=mount cc=gcc
	@tests/svm/fetch target/svm || [ $$? = 77 ] # the emulator, which the packages of qemu-utils may be at odds with
	$(CARGO) test --workspace --locked

test-rings: ## the tests of mounts once more, served through io_uring; needs root
	scripts/with-rings $(CARGO) test --locked $(addprefix --test ,semantics mount mount_serve mount_whole mount_compressed \
		mount_chain mount_snapshots lockdown)

check: ## what CI runs, cheapest first
	@.ci/run

build: ## the programs, as they are released
	@scripts/need cc=gcc
	$(CARGO) build --release --locked

manual: ## man pages and shell completions, in target/manual
	$(CARGO) run --release --locked --example manual -- target/manual

deb: ## a Debian package, in target/debian
	@scripts/need cc=gcc dpkg-shlibdeps=dpkg-dev
	@$(CARGO) deb --version >/dev/null 2>&1 || $(CARGO) install --locked cargo-deb
	$(CARGO) build --release --locked --workspace
	@$(MAKE) --no-print-directory manual
	$(CARGO) deb --locked --no-build

test-deb: ## install the package in a clean Debian root, mount with it, remove it
	@scripts/need debootstrap=debootstrap qemu-img=qemu-utils qemu-io=qemu-utils
	@$(MAKE) --no-print-directory deb
	tests/deb/run

fmt: ## formatting
	$(CARGO) fmt --all --check

clippy: ## lints, none tolerated
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

deny: ## licences, bans and sources of dependencies
	@$(CARGO) deny --version >/dev/null 2>&1 || $(CARGO) install --locked cargo-deny
	$(CARGO) deny check bans licenses sources

docs: ## write the generated documents anew
	UPDATE=1 $(CARGO) test --locked --test docs
	UPDATE=1 $(CARGO) test --locked --lib schema_in_docs

docs-fresh: ## fail where a generated document is stale
	$(CARGO) test --locked --test docs
	$(CARGO) test --locked --lib schema_in_docs

bench: ## time the check against qemu-img's, and reads against qemu-storage-daemon's, side by side
	@scripts/need qemu-img=qemu-utils qemu-storage-daemon=qemu-system-common fusermount3=fuse3 fio=fio time=time cc=gcc
	$(CARGO) bench --locked --bench check
	$(CARGO) bench --locked --bench reads

fuzz: ## hostile images for T seconds (default 60); needs the nightly toolchain
	@scripts/need qemu-img=qemu-utils qemu-io=qemu-utils cc=gcc c++=g++
	@scripts/fuzz

soak: ## the property tests with CASES cases each (default 5000), and CUTS power cuts (default 50) for each tier
	@scripts/need qemu-img=qemu-utils qemu-io=qemu-utils mkfs.ext4=e2fsprogs debugfs=e2fsprogs python3=python3 cc=gcc
	INSTAR_SOAK_CASES=$(or $(CASES),5000) $(CARGO) test --locked --test check_property --test heal_mixed --test mount_whole --test heal_pairs
	$(CARGO) build --locked
	tests/svm/powercut $(or $(CUTS),50) leaks
	tests/svm/powercut $(or $(CUTS),50) all

soak-mount: ## mounts that are read, killed, damaged and healed for MINUTES (default 60), nothing left behind
	@scripts/need qemu-img=qemu-utils qemu-io=qemu-utils fusermount3=fuse3 python3=python3 cc=gcc
	$(CARGO) build --locked
	tests/soak/mount $(or $(MINUTES),60)

worst: ## what the worst images cost to check, to plan a repair of and to mount
	@scripts/need python3=python3 fusermount3=fuse3 time=time cc=gcc
	$(CARGO) build --release --locked
	tests/soak/worst

test-svm: ## the main job on real SVM semantics, in a small emulated machine
	@scripts/need qemu-img=qemu-utils python3=python3 cc=gcc
	$(CARGO) build --locked
	tests/svm/run

clean: ## remove what was built
	$(CARGO) clean
