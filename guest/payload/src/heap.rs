//! The allocator: everything lives in the arena, which is as large as the host granted and never grows.
//!
//! Small blocks come from size classes and return to the class's list. Large ones are whole pages from a sorted
//! table of free spans, lowest address first, and merge with their neighbours when freed. Pages above the
//! highest one ever handed out are known to be zero, so a large zeroed allocation touches nothing there.
//!
//! Invariant: book-keeping of large blocks is outside of the arena, so a block that nobody wrote costs no memory.
//! It deliberately never gives a class's pages back to the spans.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ptr::{self, NonNull};

use instar_abi::layout::{ARENA_BASE, PAGE};
use instar_abi::to_usize;

const PAGE_BYTES: usize = to_usize(PAGE);
/// Block sizes of the classes; every power of two is among them.
const CLASSES: [usize; 20] = [
    16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384,
];
/// Larger requests are served in pages.
const CLASS_MAX: usize = 16384;
/// Bytes taken from the spans when a class runs dry.
const SLAB_BYTES: usize = 64 << 10;
/// Free spans that can be told apart. Freed pages that find no room in the table are lost until the end of the
/// job; jobs hold far fewer large blocks than this.
const SPANS_MAX: usize = 4096;

#[derive(Clone, Copy)]
struct Span {
    start: usize,
    end: usize,
}

/// What the allocator knows. One thread, no interrupts: nothing else can be in here at the same time.
struct State {
    spans: [Span; SPANS_MAX],
    spans_len: usize,
    lists: [*mut u8; CLASSES.len()],
    fresh_from: usize,
    capacity: usize,
    used: usize,
    peak: usize,
    refused: usize,
}

/// The global allocator.
pub struct Heap(UnsafeCell<State>);

// SAFETY: the payload has one thread and no signal handlers, so no two accesses can overlap.
unsafe impl Sync for Heap {}

impl Heap {
    /// A heap that refuses everything until [`Heap::grant`].
    pub const fn new() -> Self {
        Self(UnsafeCell::new(State {
            spans: [Span { start: 0, end: 0 }; SPANS_MAX],
            spans_len: 0,
            lists: [ptr::null_mut(); CLASSES.len()],
            fresh_from: 0,
            capacity: 0,
            used: 0,
            peak: 0,
            refused: 0,
        }))
    }

    fn with<R>(&self, act: impl FnOnce(&mut State) -> R) -> R {
        // SAFETY: one thread (see Sync), and no closure passed in here allocates, so the reference is the only one.
        act(unsafe { &mut *self.0.get() })
    }

    /// Gives the arena to the heap. Called once, before the first allocation.
    pub fn grant(&self, arena_bytes: usize) {
        self.with(|state| {
            let start = to_usize(ARENA_BASE);
            state.spans[0] = Span { start, end: start + arena_bytes };
            state.spans_len = 1;
            state.fresh_from = start;
            state.capacity = arena_bytes;
        });
    }

    /// Most bytes in use at once so far.
    pub fn peak_bytes(&self) -> usize {
        self.with(|state| state.peak)
    }

    /// Bytes that a job can count on, with an allowance for rounding.
    pub fn budget_bytes(&self) -> usize {
        self.with(|state| state.capacity - state.capacity / 16)
    }

    /// Size of the last request that was refused, 0 if none was.
    pub fn refused_bytes(&self) -> usize {
        self.with(|state| state.refused)
    }
}

/// Which class serves a layout, if one does.
fn class_of(layout: Layout) -> Option<usize> {
    let wanted = if layout.align() > 16 {
        layout.size().max(layout.align()).checked_next_power_of_two()?
    } else {
        layout.size()
    };
    if wanted > CLASS_MAX || layout.align() > PAGE_BYTES {
        return None;
    }
    CLASSES.iter().position(|&size| size >= wanted)
}

/// Bytes of pages that a large layout takes.
fn pages_for(size: usize) -> Option<usize> {
    size.checked_next_multiple_of(PAGE_BYTES)
}

impl State {
    fn account(&mut self, added: usize) {
        self.used += added;
        self.peak = self.peak.max(self.used);
    }

    /// First fit by address. Returns the block and the address from which on its bytes were never handed out.
    fn take_pages(&mut self, bytes: usize, align: usize) -> Option<(usize, usize)> {
        let at = (0..self.spans_len).find(|&i| {
            let Span { start, end } = self.spans[i];
            start.checked_next_multiple_of(align).is_some_and(|from| from < end && end - from >= bytes)
        })?;
        let Span { start, end } = self.spans[at];
        let from = start.next_multiple_of(align);
        let to = from + bytes;
        self.remove_span(at);
        if from > start {
            self.put_pages(start, from);
        }
        if to < end {
            self.put_pages(to, end);
        }
        let fresh = self.fresh_from.clamp(from, to);
        self.fresh_from = self.fresh_from.max(to);
        Some((from, fresh))
    }

    fn remove_span(&mut self, at: usize) {
        self.spans.copy_within(at + 1..self.spans_len, at);
        self.spans_len -= 1;
    }

    /// Adds a free span, merged with its neighbours.
    fn put_pages(&mut self, start: usize, end: usize) {
        let at = self.spans[..self.spans_len].partition_point(|span| span.start < start);
        let joins_left = at > 0 && self.spans[at - 1].end == start;
        let joins_right = at < self.spans_len && self.spans[at].start == end;
        match (joins_left, joins_right) {
            (true, true) => {
                self.spans[at - 1].end = self.spans[at].end;
                self.remove_span(at);
            }
            (true, false) => self.spans[at - 1].end = end,
            (false, true) => self.spans[at].start = start,
            (false, false) if self.spans_len < SPANS_MAX => {
                self.spans.copy_within(at..self.spans_len, at + 1);
                self.spans[at] = Span { start, end };
                self.spans_len += 1;
            }
            (false, false) => {}
        }
    }

    fn take_small(&mut self, class: usize) -> *mut u8 {
        if self.lists[class].is_null() && !self.refill(class) {
            return ptr::null_mut();
        }
        let block = self.lists[class];
        // SAFETY: blocks on a list are free, at least 16 bytes, and hold the link to the next one.
        self.lists[class] = unsafe { block.cast::<*mut u8>().read() };
        self.account(CLASSES[class]);
        block
    }

    fn refill(&mut self, class: usize) -> bool {
        let Some((start, _)) = self.take_pages(SLAB_BYTES, PAGE_BYTES) else {
            return false;
        };
        let size = CLASSES[class];
        let mut next = ptr::null_mut();
        for index in (0..SLAB_BYTES / size).rev() {
            let block = ptr::with_exposed_provenance_mut::<u8>(start + index * size);
            // SAFETY: the block lies in pages just taken, which nobody else uses.
            unsafe { block.cast::<*mut u8>().write(next) };
            next = block;
        }
        self.lists[class] = next;
        true
    }

    fn put_small(&mut self, class: usize, block: *mut u8) {
        // SAFETY: the caller of dealloc gives the block up; it is at least 16 bytes.
        unsafe { block.cast::<*mut u8>().write(self.lists[class]) };
        self.lists[class] = block;
        self.used -= CLASSES[class];
    }

    fn take_large(&mut self, layout: Layout) -> Option<(*mut u8, usize)> {
        let bytes = pages_for(layout.size())?;
        let (from, fresh) = self.take_pages(bytes, layout.align().max(PAGE_BYTES))?;
        self.account(bytes);
        Some((ptr::with_exposed_provenance_mut(from), fresh))
    }

    /// Resizes a large block where it stands, if there is room.
    fn resize_large(&mut self, start: usize, old: usize, new: usize) -> bool {
        if new <= old {
            if new < old {
                self.put_pages(start + new, start + old);
                self.used -= old - new;
            }
            return true;
        }
        let from = start + old;
        let Some(at) = self.spans[..self.spans_len].iter().position(|span| span.start == from) else {
            return false;
        };
        let end = self.spans[at].end;
        let to = start + new;
        if to > end {
            return false;
        }
        if to == end {
            self.remove_span(at);
        } else {
            self.spans[at].start = to;
        }
        self.fresh_from = self.fresh_from.max(to);
        self.account(new - old);
        true
    }
}

// SAFETY: blocks are aligned as asked (power-of-two classes and slabs on pages for more than 16 bytes), disjoint
// while allocated, and stay where they are until freed.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.with(|state| {
            let block = match class_of(layout) {
                Some(class) => state.take_small(class),
                None => state.take_large(layout).map_or(ptr::null_mut(), |(block, _)| block),
            };
            if block.is_null() {
                state.refused = layout.size();
            }
            block
        })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if class_of(layout).is_some() {
            // SAFETY: passed on; the block is as long as the layout says.
            return unsafe {
                let block = self.alloc(layout);
                if !block.is_null() {
                    block.write_bytes(0, layout.size());
                }
                block
            };
        }
        self.with(|state| match state.take_large(layout) {
            Some((block, fresh)) => {
                let dirty = fresh.saturating_sub(block.addr()).min(layout.size());
                // SAFETY: dirty is at most the block's length; what follows was never written and is zero.
                unsafe { block.write_bytes(0, dirty) };
                block
            }
            None => {
                state.refused = layout.size();
                ptr::null_mut()
            }
        })
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        self.with(|state| match (class_of(layout), pages_for(layout.size())) {
            (Some(class), _) => state.put_small(class, block),
            (None, Some(bytes)) => {
                state.put_pages(block.addr(), block.addr() + bytes);
                state.used -= bytes;
            }
            // Not reached: a size that cannot be rounded up was never allocated.
            (None, None) => {}
        });
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let Ok(new) = Layout::from_size_align(new_size, layout.align()) else {
            return ptr::null_mut();
        };
        let stays = match (class_of(layout), class_of(new)) {
            (Some(old_class), Some(new_class)) => old_class == new_class,
            (None, None) => match (pages_for(layout.size()), pages_for(new_size)) {
                (Some(old_bytes), Some(new_bytes)) => {
                    self.with(|state| state.resize_large(block.addr(), old_bytes, new_bytes))
                }
                _ => false,
            },
            _ => false,
        };
        if stays {
            return block;
        }
        // SAFETY: the new block is another one; both are at least as long as what is copied.
        unsafe {
            let moved = NonNull::new(self.alloc(new));
            let Some(moved) = moved else {
                return ptr::null_mut();
            };
            moved.as_ptr().copy_from_nonoverlapping(block, layout.size().min(new_size));
            self.dealloc(block, layout);
            moved.as_ptr()
        }
    }
}
