//! Which processes hold locks on a file, as far as /proc tells.
//!
//! The kernel names no owner for locks of open file descriptions, but shows the locks of each open file in
//! `/proc/PID/fdinfo/FD`. Only processes that the caller may look into are seen, so an empty answer means
//! "unknown", not "nobody". Nothing here is ever a reason to refuse or allow something.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{FileType, fstat};

use super::lock::Holder;

/// Most processes that are named.
const HOLDERS_MAX: usize = 8;

/// The other processes that have a lock on the file behind `fd`.
pub(super) fn of(fd: &impl AsFd) -> Vec<Holder> {
    let Ok(stat) = fstat(fd) else { return Vec::new() };
    if !matches!(FileType::from_raw_mode(stat.st_mode), FileType::RegularFile | FileType::BlockDevice) {
        return Vec::new();
    }
    // A lock is shown as "... fe:00:INODE start end"; the device number is not compared, because some file
    // systems show another one here than fstat does.
    let inode = format!(":{}", stat.st_ino);
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let mut found = Vec::new();
    for process in processes.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if pid != std::process::id() && holds_lock(&process.path(), &inode) {
            found.push(Holder { pid, name: name_of(&process.path()) });
            if found.len() == HOLDERS_MAX {
                break;
            }
        }
    }
    found
}

fn holds_lock(process: &Path, inode: &str) -> bool {
    let Ok(files) = fs::read_dir(process.join("fdinfo")) else { return false };
    files.flatten().any(|file| {
        fs::read_to_string(file.path()).is_ok_and(|info| {
            info.lines().filter_map(|line| line.strip_prefix("lock:")).any(|lock| {
                lock.contains("OFDLCK") && lock.split_whitespace().any(|word| word.ends_with(inode))
            })
        })
    })
}

fn name_of(process: &Path) -> String {
    let name = fs::read(process.join("comm")).unwrap_or_default();
    let name = String::from_utf8_lossy(&name);
    name.trim_end().chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}
