//! The crate's only `unsafe`: three system calls for which there is no safe wrapper. Nothing here decides anything.

use std::{
    io, mem,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// Sets an integer socket option.
pub(crate) fn set_option(socket: impl AsFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    let size = libc::socklen_t::try_from(mem::size_of::<i32>()).expect("four fits");
    // SAFETY: the pointer and the length describe `value`, which lives across the call; the kernel copies it.
    let outcome = unsafe {
        libc::setsockopt(socket.as_fd().as_raw_fd(), level, name, (&raw const value).cast::<libc::c_void>(), size)
    };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A packet socket that sees every frame of one interface of the calling thread's network namespace, both directions.
pub(crate) fn packet_socket(ifindex: u32) -> io::Result<OwnedFd> {
    let every = u16::try_from(libc::ETH_P_ALL).expect("a protocol number is 16 bits").to_be();
    // Protocol 0 hears nothing, so no frame of another interface slips in before the bind.
    let socket = rustix::net::socket_with(AddressFamily::PACKET, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    // SAFETY: sockaddr_ll is plain old data; all-zero is a valid value.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET).expect("an address family is 16 bits");
    address.sll_protocol = every;
    address.sll_ifindex = i32::try_from(ifindex).map_err(|_| io::ErrorKind::InvalidInput)?;
    let size = libc::socklen_t::try_from(mem::size_of_val(&address)).expect("a socket address is small");
    // SAFETY: the pointer and the length describe `address`, which lives across the call.
    let outcome = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast::<libc::sockaddr>(), size) };
    if outcome == 0 { Ok(socket) } else { Err(io::Error::last_os_error()) }
}

/// Gives the calling thread a network namespace of its own.
pub(crate) fn unshare_network() -> io::Result<()> {
    // SAFETY: unsharing the network namespace affects the calling thread only and no memory or descriptor table;
    // the callers run it on a thread they made for it.
    Ok(unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }?)
}
