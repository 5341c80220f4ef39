//! What the allocator keeps: enough that a transfer does not fetch the same pages from the guest for each piece, and
//! nothing once there is nothing to do.

/// Free memory that is kept at hand, in bytes. Without it every piece of a file has its pages taken from the guest and
/// given back, which takes longer than to copy it.
const KEPT: libc::c_int = 1 << 20;

/// Sets the allocator up; before there is a second thread.
pub fn set_up() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets numbers of the allocator, and no other thread uses it yet.
    unsafe {
        // The agent computes on one thread and a few for files: one heap does for all, and none is left behind by them.
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
        libc::mallopt(libc::M_MMAP_THRESHOLD, KEPT);
    }
}

/// Gives what is free back to the guest.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the allocator may be called from any thread at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}
