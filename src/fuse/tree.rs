//! The names under a mount point.
//!
//! Invariant: the tree does not change while it is mounted, so that the kernel may keep names and attributes for as
//! long as it likes. An inode number is the position of the node, from 1; the root is 1. Only the bytes of a
//! [`Document`] may change.

use std::ffi::{OsStr, OsString};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use super::transport::Transport;
use crate::disk::Disk;

/// Inode number of the root.
pub const ROOT: u64 = 1;

/// A small text that is made anew whenever it is looked at.
pub trait Document: Send + Sync + std::fmt::Debug {
    /// Its bytes at this moment.
    fn render(&self) -> Vec<u8>;
}

impl Document for Vec<u8> {
    fn render(&self) -> Vec<u8> {
        self.clone()
    }
}

/// What a node is.
#[derive(Debug, Clone)]
pub enum Content {
    /// A folder of other nodes.
    Directory,
    /// A raw disk.
    Disk {
        /// Its bytes.
        disk: Arc<Disk>,
        /// Bytes of it that are allocated, for `st_blocks`; `None` to have them counted when somebody asks.
        allocated_bytes: Option<u64>,
    },
    /// A text.
    Document(Arc<dyn Document>),
}

/// One name.
#[derive(Debug)]
pub struct Node {
    /// Inode number of the folder that it is in; the root's own for the root.
    pub parent: u64,
    /// Its name in that folder.
    pub name: OsString,
    /// What it is.
    pub content: Content,
}

/// All names of one mount, and what their attributes have in common.
#[derive(Debug)]
pub struct Tree {
    nodes: Vec<Node>,
    /// Owner of everything.
    pub uid: u32,
    /// Group of everything.
    pub gid: u32,
    /// Permission bits of files. Folders get the matching search bits.
    pub file_mode: u16,
    /// Extended attributes of every disk and of the root, by name.
    pub attributes: Vec<(OsString, Vec<u8>)>,
    /// Time stamp of everything.
    pub modified: SystemTime,
    /// How it is served, once it is.
    pub transport: Arc<OnceLock<Transport>>,
}

impl Tree {
    /// A tree of the root alone: a folder to [`Tree::add`] to, or a disk that is the mount point itself.
    #[must_use]
    pub fn new(root: Content) -> Self {
        let root = Node { parent: ROOT, name: OsString::new(), content: root };
        Self {
            nodes: vec![root],
            uid: 0,
            gid: 0,
            file_mode: 0o400,
            attributes: Vec::new(),
            modified: SystemTime::UNIX_EPOCH,
            transport: Arc::default(),
        }
    }

    /// Adds a node to a folder and returns its inode number. The caller sees to it that names are unique and fit
    /// for a file name.
    pub fn add(&mut self, parent: u64, name: impl Into<OsString>, content: Content) -> u64 {
        self.nodes.push(Node { parent, name: name.into(), content });
        self.nodes.len() as u64
    }

    /// The node with this inode number.
    #[must_use]
    pub fn node(&self, ino: u64) -> Option<&Node> {
        self.nodes.get(usize::try_from(ino.checked_sub(1)?).ok()?)
    }

    /// The extended attributes of a node.
    #[must_use]
    pub fn attributes_of(&self, ino: u64) -> &[(OsString, Vec<u8>)] {
        match self.node(ino).map(|node| &node.content) {
            Some(Content::Disk { .. }) => &self.attributes,
            Some(Content::Directory) if ino == ROOT => &self.attributes,
            _ => &[],
        }
    }

    /// The node with this name in a folder, with its inode number.
    #[must_use]
    pub fn child(&self, parent: u64, name: &OsStr) -> Option<(u64, &Node)> {
        self.children(parent).find(|(_, node)| node.name == name)
    }

    /// The nodes in a folder, with their inode numbers.
    pub fn children(&self, parent: u64) -> impl Iterator<Item = (u64, &Node)> {
        (1..).zip(&self.nodes).filter(move |(ino, node)| node.parent == parent && *ino != ROOT)
    }

    /// How many nodes there are.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.nodes.len() as u64
    }

    /// False: there always is a root.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Bytes of all disks together.
    #[must_use]
    pub fn disk_bytes(&self) -> u64 {
        self.nodes.iter().fold(0, |sum, node| match &node.content {
            Content::Disk { disk, .. } => sum.saturating_add(disk.size_bytes()),
            Content::Directory | Content::Document(_) => sum,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tree_finds_nodes_by_folder_and_name() {
        let mut tree = Tree::new(Content::Directory);
        let folder = tree.add(ROOT, ".instar", Content::Directory);
        let report = tree.add(folder, "report.json", Content::Document(Arc::new(b"{}".to_vec())));
        assert_eq!(tree.child(ROOT, OsStr::new(".instar")).map(|(ino, _)| ino), Some(folder));
        assert_eq!(tree.child(folder, OsStr::new("report.json")).map(|(ino, _)| ino), Some(report));
        assert!(tree.child(ROOT, OsStr::new("report.json")).is_none());
        assert_eq!(tree.children(ROOT).count(), 1, "the root is not in itself");
        assert!(tree.node(0).is_none() && tree.node(4).is_none());
    }
}
