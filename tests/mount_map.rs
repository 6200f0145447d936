//! The resident job's answers over healthy and damaged images: whole, in order, within the file, and right where
//! the disk's content is known.

mod native;
mod support;

use std::path::Path;
use std::sync::Arc;

use instar_abi::extent::{Extent, ExtentKind};
use instar_abi::finding::ACTIVE;
use instar_abi::problem::Problem;
use instar_mount::disk::{Disk, ExtentSource, Stop};
use instar_mount::image::{Backend, ImageFile};
use instar_mount::sandbox::observer::Ignore;
use parking_lot::Mutex;
use support::damage::RECIPES;
use support::image::{self, Flavour, TestImage};
use support::tools;

fn files_of(image: &Path, data_file: Option<&Path>) -> native::Files {
    let open = |path| -> Arc<dyn Backend> {
        Arc::new(ImageFile::open_read_only(path).expect("the test has made it"))
    };
    let mut files = native::files(open(image));
    files[1] = data_file.map(open);
    files
}

fn disk_of(files: &native::Files, snapshot: u32) -> Disk {
    let facts = native::describe(files.clone(), &mut Ignore);
    let source: Box<dyn ExtentSource> = Box::new(native::NativeSource::start(files.clone()));
    let source = Arc::new(Mutex::new(source));
    Disk::new(files.clone(), source, snapshot, facts.virtual_size, facts.cluster_bits, 1 << 20)
}

/// Reads guest cluster `index`.
fn cluster(disk: &Disk, image: &TestImage, index: u64) -> Result<Vec<u8>, Stop> {
    let mut bytes = vec![0xee; usize::try_from(image.cluster_bytes).expect("clusters fit memory")];
    let outcome = disk.read(index * image.cluster_bytes, &mut bytes);
    match outcome.stopped {
        Some(stop) => Err(stop),
        None => Ok(bytes),
    }
}

#[test]
fn map_of_each_flavour_names_the_bytes_of_its_model() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().expect("a temporary folder");
    for flavour in Flavour::ALL {
        for cluster_bytes in [512, 65_536] {
            if !flavour.allows(cluster_bytes) {
                continue;
            }
            let image = image::make(folder.path(), &format!("{flavour:?}"), flavour, cluster_bytes);
            let disk = disk_of(&files_of(&image.path, image.data_file().as_deref()), ACTIVE);
            for &index in image.model.keys() {
                let expected = image.expected(&image.model, index);
                let got = cluster(&disk, &image, index);
                let what = format!("{flavour:?}, clusters of {cluster_bytes}, guest cluster {index}");
                match got {
                    Err(Stop::Encrypted) if flavour == Flavour::Luks => {}
                    Ok(_) if is_in_backing_file(flavour, index) => {}
                    Ok(got) => assert!(Some(got) == expected, "{what}"),
                    Err(stop) => panic!("{what}: {stop:?}"),
                }
            }
        }
    }
}

/// True for clusters that only the backing file holds, which the map of the overlay tells as holes.
fn is_in_backing_file(flavour: Flavour, index: u64) -> bool {
    matches!(flavour, Flavour::Backing | Flavour::Rich) && (24..30).contains(&index)
}

#[test]
fn map_without_the_data_file_says_that_it_is_missing() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().expect("a temporary folder");
    let image = image::make(folder.path(), "data", Flavour::DataFile, 65_536);
    let disk = disk_of(&files_of(&image.path, None), ACTIVE);
    assert!(matches!(cluster(&disk, &image, 0), Err(Stop::Damaged(Problem::DataFileMissing))));
    assert!(cluster(&disk, &image, 16).is_ok(), "zeros need no data file");
}

/// The whole disk's extents in requests of `step` bytes, checked for order and bounds on the way.
fn whole_map(files: &native::Files, snapshot: u32, step: u64) -> Vec<Extent> {
    let facts = native::describe(files.clone(), &mut Ignore);
    let file_len = files[0].as_ref().map_or(0, |file| file.len());
    let mut source = native::NativeSource::start(files.clone());
    let mut all = Vec::new();
    // Some recipes make a disk of exabytes out of a small one.
    let size = facts.virtual_size.min(1 << 40);
    let mut at = 0;
    while at < size {
        let len = step.min(size - at);
        let mut answer = Vec::new();
        source.map(snapshot, at, len, &mut answer).expect("the job answers every request");
        let mut end = answer.first().expect("an extent").guest_offset;
        assert!(end <= at);
        for extent in &answer {
            assert_eq!(extent.guest_offset, end, "{extent:?}");
            assert!(extent.guest_len > 0, "{extent:?}");
            end += extent.guest_len;
            if extent.kind == ExtentKind::Data as u32 && extent.file == 0 {
                assert_eq!(extent.host_len, extent.guest_len);
                assert!(extent.host_offset + extent.host_len <= file_len, "{extent:?}");
            }
        }
        assert!(end >= at + len);
        all.append(&mut answer);
        at += len;
    }
    all
}

#[test]
fn map_of_damaged_images_is_whole_and_deterministic() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut mapped = 0;
    for recipe in RECIPES {
        let made = recipe.make(folder.path());
        let files = files_of(&made.path, made.data_file().as_deref().filter(|path| path.exists()));
        let facts = native::describe(files.clone(), &mut Ignore);
        if facts.cluster_bits == 0 || !roots_are_readable(&files) {
            continue;
        }
        mapped += 1;
        for snapshot in [ACTIVE, 0, 7] {
            let once = whole_map(&files, snapshot, 1 << 40);
            assert_eq!(once, whole_map(&files, snapshot, 1 << 40), "{}", recipe.name);
        }
        whole_map(&files, ACTIVE, 48 << 20);
    }
    assert!(mapped > RECIPES.len() / 2, "only {mapped} of {} images could be mapped", RECIPES.len());
}

fn roots_are_readable(files: &native::Files) -> bool {
    let mut source = native::NativeSource::start(files.clone());
    source.map(ACTIVE, 0, 1, &mut Vec::new()).is_ok()
}

#[test]
fn map_of_an_unfragmented_disk_is_few_extents() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("large.qcow2");
    let options = ["create", "-q", "-f", "qcow2", "-o", "preallocation=metadata"];
    tools::must(tools::qemu_img(options).arg(&path).arg("64G"));
    let extents = whole_map(&files_of(&path, None), ACTIVE, 1 << 40);
    // qemu lays the L2 tables out among the clusters: one extent for each of them at most.
    assert!(extents.len() <= 64 * 2 + 1, "{} extents", extents.len());
}
