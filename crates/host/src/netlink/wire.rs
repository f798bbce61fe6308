//! Netlink messages as bytes: a header, a fixed part, and attributes that may nest. No sockets here.
//! Source of the layout: include/uapi/linux/netlink.h.

/// Flags of a message header.
pub const NLM_F_REQUEST: u16 = 0x01;
pub const NLM_F_ACK: u16 = 0x04;
pub const NLM_F_DUMP: u16 = 0x300;
pub const NLM_F_REPLACE: u16 = 0x100;
pub const NLM_F_EXCL: u16 = 0x200;
pub const NLM_F_CREATE: u16 = 0x400;
pub const NLM_F_APPEND: u16 = 0x800;

pub const NLMSG_ERROR: u16 = 2;
pub const NLMSG_DONE: u16 = 3;
/// The dump was disturbed by a change and must be repeated.
pub const NLM_F_DUMP_INTR: u16 = 0x10;

pub const HEADER_BYTES: usize = 16;
const ATTRIBUTE_HEADER_BYTES: usize = 4;
const NLA_F_NESTED: u16 = 0x8000;
const NLA_TYPE_MASK: u16 = 0x3fff;

/// A message under construction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    bytes: Vec<u8>,
}

impl Message {
    pub fn new(kind: u16, flags: u16) -> Message {
        let mut bytes = vec![0; HEADER_BYTES];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        Message { bytes }
    }

    /// The fixed part that follows the header.
    pub fn fixed(mut self, bytes: &[u8]) -> Message {
        self.bytes.extend_from_slice(bytes);
        self.pad();
        self
    }

    pub fn attr(mut self, kind: u16, payload: &[u8]) -> Message {
        self.put(kind, payload);
        self
    }

    pub fn nest(mut self, kind: u16, fill: impl FnOnce(Message) -> Message) -> Message {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; ATTRIBUTE_HEADER_BYTES]);
        let mut filled = fill(self);
        let len = u16::try_from(filled.bytes.len() - start).expect("callers bound what they nest, see ELEMENTS_MAX");
        filled.bytes[start..start + 2].copy_from_slice(&len.to_ne_bytes());
        filled.bytes[start + 2..start + 4].copy_from_slice(&(kind | NLA_F_NESTED).to_ne_bytes());
        filled
    }

    pub fn attr_u8(self, kind: u16, value: u8) -> Message {
        self.attr(kind, &[value])
    }

    /// Network byte order, as netfilter wants it.
    pub fn attr_be16(self, kind: u16, value: u16) -> Message {
        self.attr(kind, &value.to_be_bytes())
    }

    /// Network byte order, as netfilter wants it.
    pub fn attr_be32(self, kind: u16, value: u32) -> Message {
        self.attr(kind, &value.to_be_bytes())
    }

    /// Host byte order, as routing wants it.
    pub fn attr_u32(self, kind: u16, value: u32) -> Message {
        self.attr(kind, &value.to_ne_bytes())
    }

    /// With the final NUL.
    pub fn attr_str(self, kind: u16, text: &str) -> Message {
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0);
        self.attr(kind, &bytes)
    }

    /// Whatever `fill` adds, for every item.
    pub fn each<T>(self, items: impl IntoIterator<Item = T>, fill: impl Fn(Message, T) -> Message) -> Message {
        items.into_iter().fold(self, fill)
    }

    /// `fill` only where there is something.
    pub fn maybe<T>(self, item: Option<T>, fill: impl FnOnce(Message, T) -> Message) -> Message {
        match item {
            Some(item) => fill(self, item),
            None => self,
        }
    }

    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.len() == HEADER_BYTES
    }

    /// The finished bytes, with their length and this sequence number.
    pub fn finish(mut self, sequence: u32) -> Vec<u8> {
        let len = u32::try_from(self.bytes.len()).expect("a message is far below 4 GiB");
        self.bytes[..4].copy_from_slice(&len.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }

    /// Takes up a message again that [`Message::finish`] ended.
    pub(super) fn from_finished(bytes: Vec<u8>) -> Message {
        Message { bytes }
    }

    fn put(&mut self, kind: u16, payload: &[u8]) {
        let len = u16::try_from(payload.len() + ATTRIBUTE_HEADER_BYTES).expect("single attributes are short");
        self.bytes.extend_from_slice(&len.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(payload);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// A received message.
#[derive(Clone, Copy, Debug)]
pub struct Received<'a> {
    pub kind: u16,
    pub flags: u16,
    pub sequence: u32,
    pub payload: &'a [u8],
}

/// Splits a datagram into its messages; stops at the first that is cut short.
pub fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Received<'_>> {
    std::iter::from_fn(move || {
        let len = usize::try_from(u32_at(datagram, 0)?).ok()?;
        let payload = datagram.get(HEADER_BYTES..len)?;
        let received = Received {
            kind: u16_at(datagram, 4)?,
            flags: u16_at(datagram, 6)?,
            sequence: u32_at(datagram, 8)?,
            payload,
        };
        datagram = datagram.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some(received)
    })
}

/// Attributes of a payload, found by type. The kernel sends each at most once where we look.
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a>(pub &'a [u8]);

impl<'a> Attributes<'a> {
    /// Those that follow a fixed part of this many bytes.
    pub fn after(payload: &'a [u8], fixed_bytes: usize) -> Attributes<'a> {
        Attributes(payload.get(fixed_bytes..).unwrap_or(&[]))
    }

    pub fn iter(self) -> impl Iterator<Item = (u16, &'a [u8])> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let len = usize::from(u16_at(rest, 0)?);
            let kind = u16_at(rest, 2)? & NLA_TYPE_MASK;
            let payload = rest.get(ATTRIBUTE_HEADER_BYTES..len)?;
            rest = rest.get(len.next_multiple_of(4)..).unwrap_or(&[]);
            Some((kind, payload))
        })
    }

    pub fn get(self, kind: u16) -> Option<&'a [u8]> {
        self.iter().find(|(k, _)| *k == kind).map(|(_, payload)| payload)
    }

    pub fn nested(self, kind: u16) -> Option<Attributes<'a>> {
        self.get(kind).map(Attributes)
    }

    pub fn text(self, kind: u16) -> Option<String> {
        let bytes = self.get(kind)?;
        let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
        Some(String::from_utf8_lossy(&bytes[..end]).into_owned())
    }

    pub fn u32(self, kind: u16) -> Option<u32> {
        u32_at(self.get(kind)?, 0)
    }

    pub fn be16(self, kind: u16) -> Option<u16> {
        u16_at(self.get(kind)?, 0).map(u16::from_be)
    }

    pub fn be32(self, kind: u16) -> Option<u32> {
        u32_at(self.get(kind)?, 0).map(u32::from_be)
    }

    pub fn be64(self, kind: u16) -> Option<u64> {
        self.get(kind)?.get(..8)?.try_into().ok().map(u64::from_be_bytes)
    }
}

pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_back_nested_and_padded() {
        let bytes = Message::new(7, NLM_F_ACK)
            .fixed(&[1, 2, 3])
            .attr_str(1, "ens4")
            .nest(2, |m| m.attr_be32(1, 5).attr_be16(2, 6).attr_u8(3, 9))
            .attr_u32(3, 11)
            .finish(42);
        let all: Vec<_> = messages(&bytes).collect();
        assert_eq!((all.len(), all[0].kind, all[0].sequence), (1, 7, 42));
        let attributes = Attributes::after(all[0].payload, 4);
        assert_eq!(attributes.text(1).as_deref(), Some("ens4"));
        let inner = attributes.nested(2).unwrap();
        assert_eq!((inner.be32(1), inner.be16(2), inner.get(3)), (Some(5), Some(6), Some(&[9][..])));
        assert_eq!(attributes.u32(3), Some(11));
    }

    #[test]
    fn a_message_that_is_cut_short_ends_the_reading_instead_of_panicking() {
        let bytes = Message::new(7, 0).attr_str(1, "interface").finish(1);
        for cut in 0..bytes.len() {
            assert_eq!(messages(&bytes[..cut]).count(), 0);
            let _ = Attributes(&bytes[..cut]).iter().count();
        }
    }
}
