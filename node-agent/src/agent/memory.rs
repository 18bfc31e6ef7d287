//! Keeps the process small.

/// Tells the allocator to give memory back and to keep one arena: the lanes allocate in bursts (a first synchronisation,
/// a verification), and an arena for each thread would keep the peak of each.
pub fn tune() {
    #[cfg(target_env = "gnu")]
    {
        /// `M_ARENA_MAX` of `malloc.h`.
        const ARENA_MAX: libc::c_int = -8;
        // SAFETY: called before other threads exist; mallopt only sets parameters of the allocator.
        #[allow(unsafe_code)] // The allocator's parameters have no other interface.
        unsafe {
            libc::mallopt(ARENA_MAX, 1);
            libc::mallopt(libc::M_TRIM_THRESHOLD, 128 * 1024);
            libc::mallopt(libc::M_MMAP_THRESHOLD, 128 * 1024);
        }
    }
}

/// Gives free memory back to the system, after a burst.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: may be called at any time from any thread.
        #[allow(unsafe_code)] // As above.
        unsafe {
            libc::malloc_trim(0);
        }
    }
}
