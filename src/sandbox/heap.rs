//! The allocator's own store of memory that nobody uses.

/// Gives free memory back to the system, wherever in the heap it lies. Other C libraries than glibc do so by themselves.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes the allocator's locks and touches nothing that is allocated; any thread may call it.
    let gave = unsafe { libc::malloc_trim(0) } != 0;
    #[cfg(not(target_env = "gnu"))]
    let gave = false;
    tracing::trace!(gave, "asked the allocator for its free memory");
}
