//! Repairs of bitmaps that are much larger than the memory of the cage, and than what one plan may hold.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a failing helper fails its test")]

mod native;
mod support;

use std::sync::Arc;

use instar_abi::choice::Decisions;
use instar_abi::cure::{Cure, PLAN_BYTES_MAX};
use instar_abi::problem::Tier;
use instar_mount::image::ImageFile;
use instar_mount::sandbox::observer::Observer;
use native::NativeHost;
use support::program::{document_of, instar};
use support::raw::Raw;
use support::scene::Scene;
use support::tools;

/// Bytes of a cluster.
const CLUSTER: u64 = 65_536;
/// Least memory of a cage.
const MEMORY: usize = 8 << 20;

/// An image with a bitmap in use that has `clusters` data clusters, all of them in one hole of the file.
fn with_bitmap(clusters: u64) -> Scene {
    // Each of them has a bit for every 512 bytes of the disk.
    let disk_bytes = clusters * CLUSTER * 8 * 512;
    let scene = Scene::new(&disk_bytes.to_string(), "cluster_size=64k");
    let add = ["bitmap", "--add", "-g", "2G", "-f", "qcow2"];
    tools::must(tools::qemu_img(add).arg(&scene.image).arg("large"));
    let raw = Raw::open(&scene.image);
    let entry = raw.bitmap_entry(0);
    let old = raw.number(entry, 8) / CLUSTER;
    let table = raw.append_clusters((clusters * 8).div_ceil(CLUSTER), 1);
    let data = raw.append_clusters(clusters, 1);
    for index in 0..clusters {
        raw.set_number(table * CLUSTER + index * 8, 8, (data + index) * CLUSTER);
    }
    raw.set_refcount(old, 0);
    raw.set_number(entry, 8, table * CLUSTER);
    raw.set_number(entry + 8, 4, clusters);
    // In use, and consistent until somebody died: the finest granularity that there is.
    raw.set_number(entry + 12, 4, raw.number(entry + 12, 4) | 1);
    raw.set_number(entry + 17, 1, 9);
    scene
}

#[test]
fn bitmap_larger_than_the_memory_of_the_cage_is_marked() {
    need!(tools::qemu());
    let clusters = 3 * MEMORY as u64 / CLUSTER;
    let scene = with_bitmap(clusters);
    let memory = format!("--memory={MEMORY}");
    let run = |what: &str| {
        let output = tools::run(
            instar(["check", "--output=json", "--sandbox=process", "--state-dir=none", what, &memory])
                .arg(&scene.image),
        );
        (tools::code(&output), document_of(&output, "report"))
    };
    let (code, document) = run("--repair=all");
    assert_eq!((code, &document["repair"]["ending"]), (0, &"repaired".into()), "{document:#}");
    assert!(document["plan"]["write-bytes"].as_u64().unwrap() >= clusters * CLUSTER);
    scene.img(&["check", "-q", "-f", "qcow2"]);
    let raw = Raw::open(&scene.image);
    let table = raw.number(raw.bitmap_entry(0), 8);
    for index in [0, clusters / 2, clusters - 1] {
        let data = raw.number(table + index * 8, 8);
        assert!(raw.read(data, 65_536).iter().all(|byte| *byte == 0xff), "cluster {index}");
    }
    assert_eq!(raw.number(raw.bitmap_entry(0) + 12, 4) & 1, 0);
}

#[derive(Default)]
struct Counted {
    bytes: u64,
    steps: u64,
    lowered: bool,
}

impl Observer for Counted {
    fn scope(&mut self, cure: Cure, _: &[(u64, u64)]) {
        self.steps += 1;
        self.lowered = cure == Cure::LowerGuard;
    }

    fn stage(&mut self, _: u64, bytes: Vec<u8>) {
        self.bytes += bytes.len() as u64;
    }
}

#[test]
fn bitmap_larger_than_a_plan_is_proposed_until_the_host_refuses_it_and_no_further() {
    need!(tools::qemu());
    let clusters = PLAN_BYTES_MAX / CLUSTER * 5 / 4;
    let scene = with_bitmap(clusters);
    let image = Arc::new(ImageFile::open_read_only(&scene.image).unwrap());
    let mut counted = Counted::default();
    let mut host = NativeHost::new(native::files(image), &mut counted).with_memory(MEMORY);
    let (tier, decisions) = (Tier::All, Decisions::default());
    instar_qcow2::plan::run(&mut host, &instar_qcow2::plan::Options { tier, decisions });
    assert!(counted.bytes > PLAN_BYTES_MAX, "{} bytes: the host would carry it out", counted.bytes);
    assert!(counted.bytes <= PLAN_BYTES_MAX + (4 << 20), "{} bytes", counted.bytes);
    assert!(counted.steps < 1000 && counted.lowered, "{} steps", counted.steps);
}
