//! Builds the caged payload (`guest/payload`) with the toolchain at hand and leaves its ELF files where the
//! package embeds them from, so that a plain `cargo build` gives a working program.
//!
//! The payload is freestanding: it gets flags, a lock file and a target folder of its own, and inherits none of
//! the wrappers and flags that the outer build runs under (clippy, coverage, sanitizers).

use std::env;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The only targets whose code runs in the cage natively.
const TARGET_PREFIX: &str = "x86_64-unknown-linux-";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=guest");
    let target = env::var("TARGET")?;
    if !target.starts_with(TARGET_PREFIX) {
        return Err(format!("instar-mount runs on x86_64 Linux only, not on {target}").into());
    }
    let payload = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("guest/payload");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let product = build(&payload, &target, &out, "payload", &[])?;
    // Misbehaves on demand; integration tests load it from this path, nothing embeds it.
    let evil = build(&payload, &target, &out, "evil", &["--features", "evil"])?;
    println!("cargo::rustc-env=INSTAR_PAYLOAD_ELF={}", product.display());
    println!("cargo::rustc-env=INSTAR_EVIL_ELF={}", evil.display());
    Ok(())
}

/// Builds one flavour of the payload and returns the path of its ELF file.
fn build(
    payload: &Path,
    target: &str,
    out: &Path,
    name: &str,
    more: &[&str],
) -> Result<PathBuf, Box<dyn Error>> {
    let target_dir = out.join("payload-target");
    let mut cargo = Command::new(env::var_os("CARGO").ok_or("CARGO is not set")?);
    cargo
        .current_dir(payload)
        .args(["build", "--release", "--locked", "--target", target, "--target-dir"])
        .arg(&target_dir)
        .args(more)
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags(payload)?);
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(is_foreign) {
            cargo.env_remove(name);
        }
    }
    let status = cargo.status().map_err(|e| format!("cannot run cargo for guest/payload: {e}"))?;
    if !status.success() {
        return Err(format!(
            "building guest/payload ({name}) failed: {status}; after a change of dependencies below guest/, \
             run `cargo update --manifest-path guest/payload/Cargo.toml --workspace`"
        )
        .into());
    }
    let elf = out.join(format!("{name}.elf"));
    fs::copy(target_dir.join(target).join("release/instar-payload"), &elf)?;
    Ok(elf)
}

/// Flags of a static program without C library or start files, placed by the payload's link script.
fn rustflags(payload: &Path) -> Result<String, Box<dyn Error>> {
    let script = payload.join("link.ld");
    let script = script.to_str().ok_or("the path of guest/payload/link.ld is not UTF-8")?;
    let script = format!("-Clink-arg=-Wl,-T,{script}");
    Ok([
        "-Crelocation-model=static",
        "-Ctarget-feature=+crt-static",
        "-Clink-arg=-nostartfiles",
        "-Clink-arg=-nostdlib",
        "-Clink-arg=-static",
        "-Clink-arg=-no-pie",
        "-Clink-arg=-Wl,--build-id=none,--gc-sections,-z,noexecstack,-z,norelro",
        &script,
    ]
    .join("\u{1f}"))
}

/// Variables of the outer build that would change how the payload is built.
fn is_foreign(name: &str) -> bool {
    const NAMES: [&str; 7] = [
        "RUSTFLAGS",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "CARGO_TARGET_DIR",
        "CARGO_BUILD_TARGET",
        "CARGO_BUILD_RUSTFLAGS",
        "LLVM_PROFILE_FILE",
    ];
    NAMES.contains(&name)
        || ["CARGO_PROFILE_", "CARGO_TARGET_", "CARGO_FEATURE_", "CARGO_CFG_"]
            .iter()
            .any(|prefix| name.starts_with(prefix))
}
