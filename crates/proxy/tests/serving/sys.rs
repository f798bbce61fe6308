//! The one thing a scene asks of the kernel that Rust cannot check.

/// Gives this thread, and what it starts, a network of its own; it ends with the thread. Needs root.
#[expect(unsafe_code, reason = "there is no safe unshare")]
pub fn own_network() {
    // SAFETY: a new network namespace changes neither memory nor descriptors of this process; only sockets made after
    // this, by this thread, live in it.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }
        .expect("root may unshare its network");
}
