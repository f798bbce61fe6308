//! Forged packets: IPv4 with UDP or TCP, any source, right checksums (a wrong one would be dropped for being wrong and
//! prove nothing).

use std::net::SocketAddrV4;

/// A UDP datagram that claims to come from `src`.
pub fn udp(src: SocketAddrV4, dst: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(8 + payload.len()).expect("test payloads are short");
    let mut body = Vec::new();
    body.extend(src.port().to_be_bytes());
    body.extend(dst.port().to_be_bytes());
    body.extend(len.to_be_bytes());
    // Zero: the sender computed no checksum, which UDP allows.
    body.extend([0, 0]);
    body.extend(payload);
    ip(17, src, dst, &body)
}

/// A bare TCP segment with these flags.
pub fn tcp(src: SocketAddrV4, dst: SocketAddrV4, flags: u8) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend(src.port().to_be_bytes());
    body.extend(dst.port().to_be_bytes());
    body.extend(1_000_u32.to_be_bytes());
    body.extend(2_000_u32.to_be_bytes());
    body.extend([5 << 4, flags]);
    body.extend(64_000_u16.to_be_bytes());
    body.extend([0; 4]);
    let mut pseudo = [src.ip().octets(), dst.ip().octets()].concat();
    pseudo.extend([0, 6, 0, 20]);
    pseudo.extend(&body);
    let sum = checksum(&pseudo);
    body[16..18].copy_from_slice(&sum.to_be_bytes());
    ip(6, src, dst, &body)
}

fn ip(protocol: u8, src: SocketAddrV4, dst: SocketAddrV4, body: &[u8]) -> Vec<u8> {
    let len = u16::try_from(20 + body.len()).expect("test payloads are short");
    let mut packet = vec![0x45, 0];
    packet.extend(len.to_be_bytes());
    packet.extend([0x12, 0x34, 0, 0, 64, protocol, 0, 0]);
    packet.extend(src.ip().octets());
    packet.extend(dst.ip().octets());
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(body);
    packet
}

/// The Internet checksum, RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w.get(1).copied().unwrap_or(0)])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded above")
}
