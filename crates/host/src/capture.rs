//! What is on the wire: a capture on one interface of one namespace, into memory and on request into a pcap file, and a
//! reader for the headers we speak about. Open it before the traffic; it sees both directions.

use std::{
    fs::File,
    io::{self, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::OwnedFd,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::SystemTime,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::RecvFlags,
};

use crate::{
    names::IfName,
    netlink::{
        route,
        socket::{Family, NetlinkError, Socket},
    },
    netns::{Netns, NetnsError},
    sys,
};

/// Frames one capture keeps; later ones are counted and not kept.
pub const FRAMES_MAX: usize = 100_000;
/// Longest frame kept whole. Source: a segment that the sender's kernel left for the card to cut.
const FRAME_BYTES_MAX: usize = 64 << 10;
const ETHERNET_BYTES: usize = 14;

#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    #[error(transparent)]
    Netns(#[from] NetnsError),
    #[error("cannot look for interface {name}")]
    Link { name: IfName, source: NetlinkError },
    #[error("namespace {namespace} has no interface {name}")]
    NoLink { namespace: String, name: IfName },
    #[error("cannot capture on {name}")]
    Open { name: IfName, source: io::Error },
}

/// One frame as it passed.
#[derive(Clone, Debug)]
pub struct Frame {
    pub at: SystemTime,
    pub bytes: Vec<u8>,
}

/// The headers of a frame that carries IPv4 or IPv6. Ports and flags are 0 where there are none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    pub src: IpAddr,
    pub dst: IpAddr,
    pub protocol: u8,
    pub src_port: u16,
    pub dst_port: u16,
    pub tcp_flags: u8,
    pub payload_bytes: usize,
}

impl Headers {
    pub const FIN: u8 = 1;
    pub const SYN: u8 = 2;
    pub const RST: u8 = 4;
    pub const ACK: u8 = 16;

    /// The first segment of a TCP connection.
    pub fn opens(&self) -> bool {
        self.protocol == 6 && self.tcp_flags & (Headers::SYN | Headers::ACK) == Headers::SYN
    }
}

impl Headers {
    /// Of a packet from its IP header on. None for what is not IP, is cut short, or hides its transport behind IPv6
    /// extension headers.
    pub fn of_packet(packet: &[u8]) -> Option<Headers> {
        let be16 = |bytes: &[u8], at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        let (src, dst, protocol, body): (IpAddr, IpAddr, u8, &[u8]) = match packet.first()? >> 4 {
            4 => {
                let header_bytes = usize::from(packet.first()? & 0x0f) * 4;
                let total = usize::from(be16(packet, 2)?);
                let v4 = |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?));
                (v4(12)?.into(), v4(16)?.into(), *packet.get(9)?, packet.get(header_bytes..total.min(packet.len()))?)
            }
            6 => {
                let end = 40 + usize::from(be16(packet, 4)?);
                let v6 = |at: usize| Some(Ipv6Addr::from(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?));
                (v6(8)?.into(), v6(24)?.into(), *packet.get(6)?, packet.get(40..end.min(packet.len()))?)
            }
            _ => return None,
        };
        let header_bytes = match protocol {
            6 => usize::from(body.get(12)? >> 4) * 4,
            17 => 8,
            _ => 0,
        };
        let has_ports = header_bytes > 0;
        Some(Headers {
            src,
            dst,
            protocol,
            src_port: if has_ports { be16(body, 0)? } else { 0 },
            dst_port: if has_ports { be16(body, 2)? } else { 0 },
            tcp_flags: if protocol == 6 { *body.get(13)? } else { 0 },
            payload_bytes: body.len().saturating_sub(header_bytes),
        })
    }
}

impl Frame {
    /// None for what [`Headers::of_packet`] does not read.
    pub fn headers(&self) -> Option<Headers> {
        let kind = self.bytes.get(ETHERNET_BYTES - 2..ETHERNET_BYTES)?;
        let is_ip = kind == [0x08, 0x00] || kind == [0x86, 0xdd];
        Headers::of_packet(self.bytes.get(ETHERNET_BYTES..).filter(|_| is_ip)?)
    }
}

/// A running capture; it ends when dropped.
#[derive(Debug)]
pub struct Capture {
    kept: Arc<Mutex<Kept>>,
    stop: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Kept {
    frames: Vec<Frame>,
    missed: u64,
}

impl Capture {
    /// Sees everything that passes the interface from the moment this returns.
    pub fn start(netns: &Netns, name: &IfName) -> Result<Capture, CaptureError> {
        let link = |source| CaptureError::Link { name: name.clone(), source };
        let socket = netns.run(|| {
            let mut netlink = Socket::open(Family::Route).map_err(link)?;
            let index = route::find_link(&mut netlink, name).map_err(link)?;
            let missing = || CaptureError::NoLink { namespace: netns.name().to_owned(), name: name.clone() };
            sys::packet_socket(index.ok_or_else(missing)?)
                .map_err(|source| CaptureError::Open { name: name.clone(), source })
        })??;
        let kept = Arc::new(Mutex::new(Kept::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let (into, until) = (kept.clone(), stop.clone());
        let reader = std::thread::spawn(move || read(&socket, &into, &until));
        Ok(Capture { kept, stop, reader: Some(reader) })
    }

    /// What has passed so far.
    pub fn frames(&self) -> Vec<Frame> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).frames.clone()
    }

    /// Headers of the IP packets that have passed so far.
    pub fn headers(&self) -> Vec<Headers> {
        self.frames().iter().filter_map(Frame::headers).collect()
    }

    /// Frames that passed after [`FRAMES_MAX`] were kept.
    pub fn missed(&self) -> u64 {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).missed
    }

    /// Writes what has passed so far as a pcap file.
    pub fn write_pcap(&self, path: &Path) -> io::Result<()> {
        let mut file = io::BufWriter::new(File::create(path)?);
        let word = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).to_ne_bytes();
        // Magic, version 2.4, UTC, accuracy, longest frame, Ethernet.
        let version = [2_u16.to_ne_bytes(), 4_u16.to_ne_bytes()].concat();
        file.write_all(&0xa1b2_c3d4_u32.to_ne_bytes())?;
        file.write_all(&version)?;
        file.write_all(&[[0; 4], [0; 4], word(FRAME_BYTES_MAX), word(1)].concat())?;
        for frame in self.frames() {
            let at = frame.at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            let seconds = u32::try_from(at.as_secs()).unwrap_or(u32::MAX).to_ne_bytes();
            let len = word(frame.bytes.len());
            file.write_all(&[seconds, at.subsec_micros().to_ne_bytes(), len, len].concat())?;
            file.write_all(&frame.bytes)?;
        }
        file.flush()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(reader) = self.reader.take() {
            // A reader that panicked has nothing left to clean up.
            let _ = reader.join();
        }
    }
}

fn read(socket: &OwnedFd, kept: &Mutex<Kept>, stop: &AtomicBool) {
    let wait = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
    let mut buffer = vec![0; FRAME_BYTES_MAX];
    while !stop.load(Ordering::Relaxed) {
        match poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&wait)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => continue,
            Ok(_) => {}
            Err(_) => return,
        }
        // An interface that goes down is reported once and the socket stays good.
        let Ok((len, _)) = rustix::net::recv(socket, &mut buffer[..], RecvFlags::DONTWAIT) else { continue };
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.frames.len() < FRAMES_MAX {
            kept.frames.push(Frame { at: SystemTime::now(), bytes: buffer[..len].to_vec() });
        } else {
            kept.missed += 1;
        }
    }
}
