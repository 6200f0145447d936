//! A simulated machine for crash tests: an image, a folder for records, and a power cord.
//!
//! Every operation that changes something is counted. The machine can lose its power at any of them, or fail
//! any one of them. What is left after a power cut is what had been synced, and of the rest any subset of the
//! 512-byte sectors that were written; folder operations reach the disk in order, so any first part of them.
#![allow(dead_code, reason = "each test program uses its own part of this")]

pub mod formats;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use instar_mount::heal::{Folder, SideFile, Site};
use instar_mount::image::{Backend, FileState, OpenError, Storage};

const SECTOR: usize = 512;
/// The image's inode; records have those from 1 on.
const IMAGE: usize = 0;

/// One operation on a file that is not durable yet.
#[derive(Debug, Clone)]
enum Pending {
    /// A sector (or the part of it that was written).
    Sector {
        offset: usize,
        bytes: Vec<u8>,
    },
    SetLen(usize),
}

#[derive(Debug, Clone, Default)]
struct Inode {
    now: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Pending>,
}

impl Inode {
    fn apply(bytes: &mut Vec<u8>, op: &Pending) {
        match op {
            Pending::Sector { offset, bytes: written } => {
                let end = offset + written.len();
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
                bytes[*offset..end].copy_from_slice(written);
            }
            Pending::SetLen(len) => bytes.resize(*len, 0),
        }
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) {
        let mut at = 0;
        while at < bytes.len() {
            let room = SECTOR - (offset + at) % SECTOR;
            let part = &bytes[at..bytes.len().min(at + room)];
            let op = Pending::Sector { offset: offset + at, bytes: part.to_vec() };
            Self::apply(&mut self.now, &op);
            self.pending.push(op);
            at += part.len();
        }
    }
}

#[derive(Debug, Clone)]
enum FolderOp {
    Create(SideFile, usize),
    Rename(SideFile, SideFile),
    Remove(SideFile),
}

type Names = BTreeMap<SideFile, usize>;

fn apply(names: &mut Names, op: &FolderOp) {
    match *op {
        FolderOp::Create(file, inode) => {
            names.insert(file, inode);
        }
        FolderOp::Rename(from, to) => {
            if let Some(inode) = names.remove(&from) {
                names.insert(to, inode);
            }
        }
        FolderOp::Remove(file) => {
            names.remove(&file);
        }
    }
}

/// What is to go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    None,
    /// The power goes when this operation (from 1) is asked for.
    PowerCut(u64),
    /// This operation fails, a write after its first half; everything after it works.
    Fails(u64, io::ErrorKind),
    /// This read of the image fails.
    ReadFails(u64),
}

#[derive(Debug, Clone)]
struct State {
    inodes: Vec<Inode>,
    /// The image's length when it was looked at last.
    image_len: usize,
    names: Names,
    durable_names: Names,
    pending_names: Vec<FolderOp>,
    trouble: Trouble,
    operations: u64,
    reads: u64,
    off: bool,
    free_bytes: u64,
    log: Vec<Op>,
}

/// Something that was asked for while the power was on, in order; it may have failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// To the image.
    Write { offset: usize, bytes: Vec<u8> },
    /// Of the image.
    SetLen(usize),
    /// To the image.
    Punch { offset: usize, len: usize },
    /// Of the image.
    Sync,
    /// A record lost its name.
    Removed(SideFile),
}

/// The machine.
#[derive(Debug, Clone)]
pub struct Machine {
    state: Arc<Mutex<State>>,
}

/// Which of what was not durable has reached the disk all the same.
#[derive(Debug, Clone, Copy)]
pub enum Survivors {
    Nothing,
    Everything,
    AllBut(usize),
    Only(usize),
    /// Each on the toss of a coin.
    Some(u64),
}

impl Survivors {
    fn has(self, index: usize) -> bool {
        match self {
            Self::Nothing => false,
            Self::Everything => true,
            Self::AllBut(lost) => index != lost,
            Self::Only(kept) => index == kept,
            Self::Some(seed) => mix(seed ^ (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)) & 1 == 1,
        }
    }
}

/// A good-enough hash (splitmix64's last step).
pub fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl Machine {
    pub fn new(image: Vec<u8>) -> Self {
        let image_len = image.len();
        let image = Inode { now: image.clone(), durable: image, pending: Vec::new() };
        Self {
            state: Arc::new(Mutex::new(State {
                inodes: vec![image],
                image_len,
                names: Names::new(),
                durable_names: Names::new(),
                pending_names: Vec::new(),
                trouble: Trouble::None,
                operations: 0,
                reads: 0,
                off: false,
                free_bytes: 1 << 40,
                log: Vec::new(),
            })),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn set_trouble(&self, trouble: Trouble) {
        let mut state = self.lock();
        state.trouble = trouble;
        state.operations = 0;
        state.reads = 0;
    }

    pub fn set_free_bytes(&self, free_bytes: u64) {
        self.lock().free_bytes = free_bytes;
    }

    /// Operations since the last [`Machine::set_trouble`].
    pub fn operations(&self) -> u64 {
        self.lock().operations
    }

    pub fn reads(&self) -> u64 {
        self.lock().reads
    }

    pub fn image(&self) -> Vec<u8> {
        self.lock().inodes[IMAGE].now.clone()
    }

    pub fn writes_to_image(&self) -> usize {
        self.lock().log.iter().filter(|op| matches!(op, Op::Write { .. })).count()
    }

    /// What was done to the image, and which records were removed, since the power came.
    pub fn log(&self) -> Vec<Op> {
        self.lock().log.clone()
    }

    /// Somebody else writes to the image; durable at once.
    pub fn meddle(&self, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.lock();
        let image = &mut state.inodes[IMAGE];
        change(&mut image.now);
        image.durable.clone_from(&image.now);
        state.image_len = state.inodes[IMAGE].now.len();
    }

    pub fn has(&self, file: SideFile) -> bool {
        self.lock().names.contains_key(&file)
    }

    /// Changes the bytes of a record.
    pub fn meddle_with(&self, file: SideFile, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.lock();
        let inode = state.names[&file];
        let inode = &mut state.inodes[inode];
        change(&mut inode.now);
        inode.durable.clone_from(&inode.now);
    }

    pub fn forget(&self, file: SideFile) {
        let mut state = self.lock();
        state.names.remove(&file);
        state.durable_names.remove(&file);
    }

    /// Everything that is not durable: sectors of all files, folder operations.
    pub fn pending(&self) -> (usize, usize) {
        let state = self.lock();
        (state.inodes.iter().map(|inode| inode.pending.len()).sum(), state.pending_names.len())
    }

    /// The machine after its power came back: `sectors` and the first `names` folder operations survived.
    pub fn after_power_cut(&self, sectors: Survivors, names: usize) -> Self {
        let mut state = self.lock().clone();
        let mut index = 0;
        for inode in &mut state.inodes {
            for op in std::mem::take(&mut inode.pending) {
                if sectors.has(index) {
                    Inode::apply(&mut inode.durable, &op);
                }
                index += 1;
            }
            inode.now.clone_from(&inode.durable);
        }
        let pending = std::mem::take(&mut state.pending_names);
        for op in pending.iter().take(names) {
            apply(&mut state.durable_names, op);
        }
        state.image_len = state.inodes[IMAGE].now.len();
        state.names.clone_from(&state.durable_names);
        state.trouble = Trouble::None;
        state.operations = 0;
        state.off = false;
        state.log.clear();
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// Counts an operation; says whether it fails.
    fn operation(state: &mut State) -> io::Result<bool> {
        if state.off {
            return Err(io::Error::other("the power is off"));
        }
        state.operations += 1;
        match state.trouble {
            Trouble::PowerCut(at) if at == state.operations => {
                state.off = true;
                Err(io::Error::other("the power is off"))
            }
            Trouble::Fails(at, _) if at == state.operations => Ok(true),
            _ => Ok(false),
        }
    }

    fn error(state: &State) -> io::Error {
        match state.trouble {
            Trouble::Fails(_, kind) => kind.into(),
            _ => io::Error::other("no trouble"),
        }
    }
}

#[derive(Debug)]
struct SimFile {
    machine: Machine,
    inode: usize,
    writable: bool,
    /// A length that was seen before; `None` tells it as it is.
    len: Option<usize>,
}

impl SimFile {
    fn refuse_read_only(&self) -> io::Result<()> {
        if self.writable { Ok(()) } else { Err(io::ErrorKind::PermissionDenied.into()) }
    }
}

impl Backend for SimFile {
    fn len(&self) -> u64 {
        self.len.unwrap_or_else(|| self.machine.lock().inodes[self.inode].now.len()) as u64
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        let mut state = self.machine.lock();
        if state.off {
            return Err(io::Error::other("the power is off"));
        }
        if self.inode == IMAGE {
            state.reads += 1;
            if state.trouble == Trouble::ReadFails(state.reads) {
                return Err(io::Error::from_raw_os_error(5));
            }
        }
        let from = usize::try_from(offset).unwrap();
        let bytes = state.inodes[self.inode].now.get(from..from + into.len());
        into.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.refuse_read_only()?;
        let mut state = self.machine.lock();
        let fails = match Machine::operation(&mut state) {
            Ok(fails) => fails,
            Err(error) => {
                // A write that is under way when the power goes may have reached the disk in part.
                if state.operations > 0
                    && matches!(state.trouble, Trouble::PowerCut(at) if at == state.operations)
                {
                    state.inodes[self.inode].write(usize::try_from(offset).unwrap(), bytes);
                    state.trouble = Trouble::None;
                }
                return Err(error);
            }
        };
        if self.inode == IMAGE {
            let offset = usize::try_from(offset).unwrap();
            state.log.push(Op::Write { offset, bytes: bytes.to_vec() });
        }
        let half = (usize::try_from(offset).unwrap() + bytes.len() / 2) / SECTOR * SECTOR;
        let half = half.saturating_sub(usize::try_from(offset).unwrap());
        let bytes = if fails { &bytes[..half] } else { bytes };
        state.inodes[self.inode].write(usize::try_from(offset).unwrap(), bytes);
        if fails { Err(Machine::error(&state)) } else { Ok(()) }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.refuse_read_only()?;
        let mut state = self.machine.lock();
        if Machine::operation(&mut state)? {
            return Err(Machine::error(&state));
        }
        let op = Pending::SetLen(usize::try_from(len).unwrap());
        if self.inode == IMAGE {
            state.log.push(Op::SetLen(usize::try_from(len).unwrap()));
        }
        let inode = &mut state.inodes[self.inode];
        Inode::apply(&mut inode.now, &op);
        inode.pending.push(op);
        Ok(())
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.refuse_read_only()?;
        let (offset, len) = (usize::try_from(offset).unwrap(), usize::try_from(len).unwrap());
        let mut state = self.machine.lock();
        let fails = Machine::operation(&mut state)?;
        if self.inode == IMAGE {
            state.log.push(Op::Punch { offset, len });
        }
        let inode = &mut state.inodes[self.inode];
        assert!(offset + len <= inode.now.len(), "a hole is punched past the end");
        // One that fails may have got half of the way.
        inode.write(offset, &vec![0; if fails { len / 2 } else { len }]);
        if fails { Err(Machine::error(&state)) } else { Ok(()) }
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.machine.lock();
        if Machine::operation(&mut state)? {
            return Err(Machine::error(&state));
        }
        if self.inode == IMAGE {
            state.log.push(Op::Sync);
        }
        let inode = &mut state.inodes[self.inode];
        inode.pending.clear();
        inode.durable.clone_from(&inode.now);
        Ok(())
    }
}

impl Machine {
    fn file(&self, inode: usize, writable: bool) -> Arc<dyn Backend> {
        Arc::new(SimFile { machine: self.clone(), inode, writable, len: None })
    }

    fn folder_op(&self, op: FolderOp) -> io::Result<()> {
        let mut state = self.lock();
        if Self::operation(&mut state)? {
            return Err(Self::error(&state));
        }
        if let FolderOp::Remove(file) = op {
            state.log.push(Op::Removed(file));
        }
        apply(&mut state.names, &op);
        state.pending_names.push(op);
        Ok(())
    }
}

impl Folder for Machine {
    fn create(&self, file: SideFile) -> io::Result<Arc<dyn Backend>> {
        let inode = {
            let mut state = self.lock();
            if state.names.contains_key(&file) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            state.inodes.push(Inode::default());
            state.inodes.len() - 1
        };
        self.folder_op(FolderOp::Create(file, inode))?;
        Ok(self.file(inode, true))
    }

    fn open(&self, file: SideFile) -> io::Result<Option<Arc<dyn Backend>>> {
        let inode = self.lock().names.get(&file).copied();
        Ok(inode.map(|inode| self.file(inode, false)))
    }

    fn rename(&self, from: SideFile, to: SideFile) -> io::Result<()> {
        self.folder_op(FolderOp::Rename(from, to))
    }

    fn remove(&self, file: SideFile) -> io::Result<()> {
        if self.has(file) { self.folder_op(FolderOp::Remove(file)) } else { Ok(()) }
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.lock();
        if Self::operation(&mut state)? {
            return Err(Self::error(&state));
        }
        state.pending_names.clear();
        state.durable_names = state.names.clone();
        Ok(())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(self.lock().free_bytes)
    }

    fn path_of(&self, file: SideFile) -> PathBuf {
        PathBuf::from(format!("simulated{}", file.suffix()))
    }
}

impl Site for Machine {
    fn image(&self) -> Arc<dyn Backend> {
        let len = Some(self.lock().image_len);
        Arc::new(SimFile { machine: self.clone(), inode: IMAGE, writable: false, len })
    }

    fn look_again(&self) -> io::Result<()> {
        let mut state = self.lock();
        state.image_len = state.inodes[IMAGE].now.len();
        Ok(())
    }

    fn image_again(&self) -> Result<Arc<dyn Backend>, OpenError> {
        Ok(self.file(IMAGE, false))
    }

    fn path(&self) -> &Path {
        Path::new("simulated")
    }

    fn state(&self) -> io::Result<Option<FileState>> {
        Ok(None)
    }

    fn open_writable(&self) -> Result<Arc<dyn Backend>, OpenError> {
        Ok(self.file(IMAGE, true))
    }

    fn room_to_grow(&self) -> io::Result<u64> {
        Ok(self.lock().free_bytes)
    }

    fn storage(&self) -> io::Result<Storage> {
        let held = self.lock().inodes[IMAGE].now.len() as u64;
        Ok(Storage { unit_bytes: SECTOR as u64, held_bytes: Some(held) })
    }

    fn folder(&self) -> &dyn Folder {
        self
    }
}

/// The states that can be on disk after a power cut now.
pub fn crash_states(machine: &Machine) -> Vec<Machine> {
    let (sectors, names) = machine.pending();
    let mut survivors = vec![Survivors::Nothing, Survivors::Everything];
    if sectors <= 24 {
        survivors.extend((0..sectors).map(Survivors::AllBut));
        survivors.extend((0..sectors).map(Survivors::Only));
    }
    survivors.extend((0..6).map(|seed| Survivors::Some(mix(seed + sectors as u64))));
    let mut states = Vec::new();
    for names in 0..=names {
        states.extend(survivors.iter().map(|&survivors| machine.after_power_cut(survivors, names)));
    }
    states
}

/// Runs `work` with a power cut at each of its operations in turn, and hands over every state that can be left.
pub fn sweep(start: &Machine, work: impl Fn(&Machine), mut look: impl FnMut(&Machine, &str)) -> usize {
    let whole = start.after_power_cut(Survivors::Everything, usize::MAX);
    whole.set_trouble(Trouble::None);
    work(&whole);
    let operations = whole.operations();
    let mut states = 0;
    for at in 1..=operations {
        let machine = start.after_power_cut(Survivors::Everything, usize::MAX);
        machine.set_trouble(Trouble::PowerCut(at));
        work(&machine);
        for (index, state) in crash_states(&machine).into_iter().enumerate() {
            look(&state, &format!("cut at {at} of {operations}, state {index}"));
            states += 1;
        }
    }
    states
}
