//! What a Parquet file claims about itself, checked before the parquet crate believes it.
//!
//! Metadata and page headers are structs of Thrift's compact protocol. A list of booleans in a
//! field that the crate does not know takes no bytes there, whatever length it claims: a few bytes
//! keep the crate busy for minutes and more. Here a file may not claim more elements than it has bytes.
//!
//! # Source
//! `doc/specs/thrift-compact-protocol.md` of Apache Thrift; the layout of `parquet.thrift`.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;

/// Structs and lists inside each other, as the crate has it.
const MAX_DEPTH: usize = 64;
/// The field of a page header that holds the bytes of its page.
const COMPRESSED_PAGE_SIZE: i64 = 3;
/// Bytes that are read for a page header at first; they have some dozens.
const HEADER: u64 = 1 << 10;

/// Why a struct cannot be walked through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    /// It claims more elements than it has bytes.
    Claims(u64),
    /// It ends before its end, or is no struct: the crate has words for that.
    Unreadable,
}

/// Where the metadata lies, by the file's own words; `None` if that is nowhere inside it.
pub(super) fn metadata(file: &mut File, bytes: u64) -> io::Result<Option<Range<u64>>> {
    const TRAILER: u64 = 8;
    let Some(end) = bytes.checked_sub(TRAILER) else {
        return Ok(None);
    };
    let trailer = read(file, end..bytes)?;
    let length = u32::from_le_bytes([trailer[0], trailer[1], trailer[2], trailer[3]]);
    let start = end.checked_sub(u64::from(length));
    Ok(start.map(|start| start..end))
}

/// The elements that the metadata claims, where they cannot be there.
pub(super) fn false_claim(file: &mut File, bytes: u64) -> io::Result<Option<u64>> {
    let Some(place) = metadata(file, bytes)? else {
        return Ok(None);
    };
    let metadata = read(file, place)?;
    Ok(match Walk::new(&metadata).page_size() {
        Err(Stop::Claims(elements)) => Some(elements),
        Ok(_) | Err(Stop::Unreadable) => None,
    })
}

/// The elements that a page header of a column claims, where they cannot be there.
pub(super) fn false_claim_of_pages(
    file: &mut File,
    mut column: Range<u64>,
) -> io::Result<Option<u64>> {
    let mut window = HEADER;
    while !column.is_empty() {
        let end = column.end.min(column.start.saturating_add(window));
        let header = read(file, column.start..end)?;
        let mut walk = Walk::new(&header);
        match walk.page_size() {
            Ok(Some(size)) => {
                column.start += walk.at as u64 + size;
                window = HEADER;
            }
            // It may only be longer than the window.
            Err(_) if end < column.end => window = window.saturating_mul(16),
            Err(Stop::Claims(elements)) => return Ok(Some(elements)),
            Ok(None) | Err(Stop::Unreadable) => return Ok(None),
        }
    }
    Ok(None)
}

fn read(file: &mut File, part: Range<u64>) -> io::Result<Vec<u8>> {
    file.seek(SeekFrom::Start(part.start))?;
    let mut bytes = vec![0; usize::try_from(part.end - part.start).map_err(io::Error::other)?];
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}

struct Walk<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Elements that took no bytes.
    empty: u64,
}

impl<'a> Walk<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            at: 0,
            empty: 0,
        }
    }

    /// Goes through a struct; gives its third field where that is a number that a page size can be.
    fn page_size(&mut self) -> Result<Option<u64>, Stop> {
        let mut size = None;
        let mut field = 0;
        while let Some((kind, number)) = self.field(field)? {
            field = number;
            if (kind, number) == (5, COMPRESSED_PAGE_SIZE) {
                size = u64::try_from(zigzag(self.number()?)).ok();
            } else {
                self.skip(kind, MAX_DEPTH)?;
            }
        }
        Ok(size)
    }

    /// Type and number of the next field; `None` at the end of the struct.
    fn field(&mut self, before: i64) -> Result<Option<(u8, i64)>, Stop> {
        let header = self.byte()?;
        let kind = header & 0xf;
        if kind == 0 {
            return Ok(None);
        }
        let number = match header >> 4 {
            0 => zigzag(self.number()?),
            step => before.saturating_add(i64::from(step)),
        };
        Ok(Some((kind, number)))
    }

    fn skip(&mut self, kind: u8, depth: usize) -> Result<(), Stop> {
        let inside = depth.checked_sub(1).ok_or(Stop::Unreadable)?;
        match kind {
            1 | 2 => Ok(()),
            3 => self.pass(1),
            4..=6 => self.number().map(drop),
            7 => self.pass(8),
            8 => {
                let length = self.number()?;
                self.pass(length)
            }
            9 | 10 => {
                let header = self.byte()?;
                let size = match header >> 4 {
                    15 => self.number()?,
                    size => u64::from(size),
                };
                self.elements(size, &[header & 0xf], inside)
            }
            11 => match self.number()? {
                0 => Ok(()),
                size => {
                    let kinds = self.byte()?;
                    self.elements(size, &[kinds >> 4, kinds & 0xf], inside)
                }
            },
            12 => {
                while let Some((kind, _)) = self.field(0)? {
                    self.skip(kind, inside)?;
                }
                Ok(())
            }
            13 => self.pass(16),
            _ => Err(Stop::Unreadable),
        }
    }

    fn elements(&mut self, size: u64, kinds: &[u8], depth: usize) -> Result<(), Stop> {
        let left = (self.bytes.len() - self.at) as u64;
        if kinds.iter().all(|kind| matches!(kind, 1 | 2)) {
            self.empty = self.empty.saturating_add(size);
            return match self.empty > self.bytes.len() as u64 {
                true => Err(Stop::Claims(size)),
                false => Ok(()),
            };
        }
        if size > left {
            return Err(Stop::Claims(size));
        }
        for _ in 0..size {
            for kind in kinds {
                self.skip(*kind, depth)?;
            }
        }
        Ok(())
    }

    /// A number of seven bits a byte, lowest first.
    fn number(&mut self) -> Result<u64, Stop> {
        let mut number = 0u64;
        for shift in (0..).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f).wrapping_shl(shift);
            if byte & 0x80 == 0 {
                break;
            }
        }
        Ok(number)
    }

    fn byte(&mut self) -> Result<u8, Stop> {
        let byte = self.bytes.get(self.at).ok_or(Stop::Unreadable)?;
        self.at += 1;
        Ok(*byte)
    }

    fn pass(&mut self, bytes: u64) -> Result<(), Stop> {
        let end = (self.at as u64).saturating_add(bytes);
        if end > self.bytes.len() as u64 {
            return Err(Stop::Unreadable);
        }
        self.at = end as usize;
        Ok(())
    }
}

fn zigzag(number: u64) -> i64 {
    (number >> 1) as i64 ^ -((number & 1) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2³¹ − 1, seven bits a byte.
    const MANY: [u8; 5] = [0xff, 0xff, 0xff, 0xff, 0x07];

    fn walk(bytes: &[u8]) -> Result<Option<u64>, Stop> {
        Walk::new(bytes).page_size()
    }

    #[test]
    fn finds_the_size_of_a_page() {
        // Field 1: i32 0; field 2: i32 5; field 3: i32 100; field 5: a struct with an i32; the end.
        let header = [0x15, 0, 0x15, 10, 0x15, 200, 1, 0x2c, 0x15, 2, 0, 0];
        assert_eq!(walk(&header), Ok(Some(100)));
        for length in 0..header.len() {
            assert_eq!(walk(&header[..length]), Err(Stop::Unreadable));
        }
        let negative = [0x35, 1, 0];
        assert_eq!(walk(&negative), Ok(None));
    }

    #[test]
    fn no_collection_has_more_elements_than_the_file_has_bytes() {
        let many = u64::from(u32::MAX >> 1);
        let with = |kind: &[u8], after: &[u8]| [kind, &MANY, after, &[0]].concat();
        for claim in [
            with(&[0x19, 0xf1], &[]),
            with(&[0x1a, 0xf5], &[]),
            with(&[0x1b], &[0x11]),
            with(&[0x1b], &[0x15]),
        ] {
            assert_eq!(walk(&claim), Err(Stop::Claims(many)), "{claim:?}");
        }
        // Lists of lists of booleans: each is short, all together are not.
        let mut nested = vec![0x19, 0xe9];
        nested.extend([0xe1; 14]);
        nested.push(0);
        assert_eq!(walk(&nested), Err(Stop::Claims(14)));
        let deep = [[0x19].as_slice(), &[0x19; 100], &[0]].concat();
        assert_eq!(walk(&deep), Err(Stop::Unreadable));
        assert_eq!(walk(&[0x19, 0x21, 0]), Ok(None));
    }
}
