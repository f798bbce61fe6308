//! How entries lie in a file: records, each with its length and checksum, and file names that say what is inside.
//!
//! A record is its length (u32), a CRC-32 of the rest (u32), the timestamp (i64 ns) and the body: the parent
//! (`projects/P`), a line feed, the entry's JSON. All numbers are little-endian. A segment that is written to is called
//! `BASE.open`; a finished one `BASE_COUNT_MIN_MAX.seg`, so that nothing needs to be read to know its place in time.

use std::ops::RangeInclusive;

/// Length, checksum, timestamp.
const HEAD: usize = 16;

/// One entry as it lies in a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record<'a> {
    pub(super) timestamp: i64,
    pub(super) parent: &'a str,
    pub(super) json: &'a str,
}

pub(super) fn encode(record: Record<'_>, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(&record.timestamp.to_le_bytes());
    out.extend_from_slice(record.parent.as_bytes());
    out.push(b'\n');
    out.extend_from_slice(record.json.as_bytes());
    let length = u32::try_from(out.len() - start).expect("the door takes no entry of 4 GiB");
    let sum = crc32(&out[start + 8..]);
    out[start..start + 4].copy_from_slice(&length.to_le_bytes());
    out[start + 4..start + 8].copy_from_slice(&sum.to_le_bytes());
}

/// Reads records until the first that is not whole.
pub(super) struct Scan<'a> {
    rest: &'a [u8],
    /// Bytes of whole records so far.
    pub(super) read: usize,
}

impl<'a> Scan<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Scan<'a> {
        Scan { rest: bytes, read: 0 }
    }

    pub(super) fn is_at_end(&self) -> bool {
        self.rest.is_empty()
    }

    fn record(&self) -> Option<(Record<'a>, usize)> {
        let length = usize::try_from(u32::from_le_bytes(*self.rest.first_chunk()?)).ok()?;
        let record = self.rest.get(..length).filter(|r| r.len() >= HEAD)?;
        let sum = u32::from_le_bytes(*record[4..].first_chunk()?);
        if crc32(&record[8..]) != sum {
            return None;
        }
        let timestamp = i64::from_le_bytes(*record[8..].first_chunk()?);
        let (parent, json) = std::str::from_utf8(&record[HEAD..]).ok()?.split_once('\n')?;
        Some((Record { timestamp, parent, json }, length))
    }
}

impl<'a> Iterator for Scan<'a> {
    type Item = Record<'a>;

    fn next(&mut self) -> Option<Record<'a>> {
        let (record, length) = self.record()?;
        self.rest = &self.rest[length..];
        self.read += length;
        Some(record)
    }
}

/// What a segment holds, without looking inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// The number of its first entry; entries are numbered through all segments, in the order they came.
    pub(super) base: u64,
    pub(super) count: u64,
    pub(super) bytes: u64,
    /// The least and the greatest timestamp.
    pub(super) times: RangeInclusive<i64>,
}

impl Extent {
    pub(super) fn empty(base: u64) -> Extent {
        // A range that holds nothing and widens to the first thing added.
        Extent { base, count: 0, bytes: 0, times: RangeInclusive::new(i64::MAX, i64::MIN) }
    }

    pub(super) fn add(&mut self, count: u64, bytes: u64, times: &RangeInclusive<i64>) {
        self.count += count;
        self.bytes += bytes;
        self.times = *self.times.start().min(times.start())..=*self.times.end().max(times.end());
    }

    pub(super) fn end(&self) -> u64 {
        self.base + self.count
    }

    pub(super) fn overlaps(&self, times: &RangeInclusive<i64>) -> bool {
        self.times.start() <= times.end() && times.start() <= self.times.end()
    }

    pub(super) fn open_name(&self) -> String {
        format!("{:020}.open", self.base)
    }

    pub(super) fn sealed_name(&self) -> String {
        format!("{:020}_{}_{}_{}.seg", self.base, self.count, self.times.start(), self.times.end())
    }

    /// The number in the name of an unfinished segment.
    pub(super) fn parse_open(name: &str) -> Option<u64> {
        name.strip_suffix(".open")?.parse().ok()
    }

    pub(super) fn parse_sealed(name: &str, bytes: u64) -> Option<Extent> {
        let mut parts = name.strip_suffix(".seg")?.split('_');
        let base = parts.next()?.parse().ok()?;
        let count = parts.next()?.parse().ok()?;
        let times = parts.next()?.parse().ok()?..=parts.next()?.parse().ok()?;
        parts.next().is_none().then_some(Extent { base, count, bytes, times })
    }
}

/// CRC-32 as in IEEE 802.3, eight bytes at a time ("slicing-by-8"): a query sums all that it reads.
fn crc32(bytes: &[u8]) -> u32 {
    let at = |table: usize, byte: u8| CRC_TABLES[table][usize::from(byte)];
    let mut sum = !0_u32;
    let mut chunks = bytes.chunks_exact(8);
    for chunk in chunks.by_ref() {
        let [a, b, c, d] = sum.to_le_bytes();
        sum = at(7, a ^ chunk[0])
            ^ at(6, b ^ chunk[1])
            ^ at(5, c ^ chunk[2])
            ^ at(4, d ^ chunk[3])
            ^ at(3, chunk[4])
            ^ at(2, chunk[5])
            ^ at(1, chunk[6])
            ^ at(0, chunk[7]);
    }
    for byte in chunks.remainder() {
        sum = (sum >> 8) ^ at(0, sum.to_le_bytes()[0] ^ byte);
    }
    !sum
}

/// `CRC_TABLES[n][b]` is the sum of byte `b` followed by `n` zero bytes.
static CRC_TABLES: [[u32; 256]; 8] = crc_tables();

const fn crc_tables() -> [[u32; 256]; 8] {
    let mut tables = [[0; 256]; 8];
    let mut index = 0;
    let mut value: u32 = 0;
    while index < 256 {
        let mut sum = value;
        let mut bit = 0;
        while bit < 8 {
            sum = if sum & 1 == 1 { (sum >> 1) ^ 0xedb8_8320 } else { sum >> 1 };
            bit += 1;
        }
        tables[0][index] = sum;
        index += 1;
        value += 1;
    }
    let mut zeros = 1;
    while zeros < 8 {
        let mut index = 0;
        while index < 256 {
            let sum: u32 = tables[zeros - 1][index];
            let low = sum.to_le_bytes()[0];
            let mut row = 0;
            let mut number = 0_u8;
            // A const function cannot turn a byte into an index but by counting up to it.
            while number < low {
                number += 1;
                row += 1;
            }
            tables[zeros][index] = (sum >> 8) ^ tables[0][row];
            index += 1;
        }
        zeros += 1;
    }
    tables
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_one_everybody_has() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        assert_eq!(crc32(b"The quick brown fox jumps over the lazy dog"), 0x414f_a339);
        assert_eq!(crc32(b""), 0);
    }

    #[test]
    fn a_scan_ends_where_a_record_was_torn_or_changed() {
        let record = |n| Record { timestamp: n, parent: "projects/p", json: "{}" };
        let mut bytes = Vec::new();
        encode(record(1), &mut bytes);
        let whole = bytes.len();
        encode(record(-2), &mut bytes);
        assert_eq!(Scan::new(&bytes).collect::<Vec<_>>(), [record(1), record(-2)]);
        for cut in whole..bytes.len() {
            let mut scan = Scan::new(&bytes[..cut]);
            assert_eq!(scan.by_ref().collect::<Vec<_>>(), [record(1)], "{cut}");
            assert_eq!((scan.read, scan.is_at_end()), (whole, cut == whole));
        }
        for changed in whole..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[changed] ^= 1;
            assert_eq!(Scan::new(&bytes).count(), 1, "{changed}");
        }
    }

    #[test]
    fn a_name_says_what_is_inside() {
        let extent = Extent { base: 7, count: 3, bytes: 99, times: -5..=12 };
        assert_eq!(Extent::parse_sealed(&extent.sealed_name(), 99), Some(extent.clone()));
        assert_eq!(Extent::parse_open(&extent.open_name()), Some(7));
        for name in ["", "7.seg", "7_1_2.seg", "7_1_2_3_4.seg", "x_1_2_3.seg"] {
            assert_eq!(Extent::parse_sealed(name, 0), None, "{name}");
        }
    }
}
