//! Event files that TensorBoard opens.
//!
//! # Source
//! The record format of `tensorflow/core/lib/io/record_writer.h`; the messages `Event`, `Summary` and
//! `SessionLog` of `tensorflow/core/util/event.proto` and `framework/summary.proto`.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use backdraft_formats::{FormatError, fault};

use crate::text::host;

/// Directory of the event files in an output directory.
pub const DIRECTORY: &str = "tensorboard";

/// Whether a file of that directory is an event file.
#[must_use]
pub fn is_ours(file: &Path) -> bool {
    file.to_string_lossy().starts_with("events.out.tfevents.")
}

/// An event file, open for appending.
#[derive(Debug)]
pub struct EventWriter {
    file: File,
    path: PathBuf,
}

impl EventWriter {
    /// A new file in `directory`, which is made where it is missing. TensorBoard shows the files of one
    /// directory as one run; what earlier ones say of steps after `steps` is void.
    ///
    /// # Errors
    /// The system refuses.
    pub fn create(directory: &Path, steps: usize) -> Result<Self, FormatError> {
        fault::point("create", directory)?;
        fs::create_dir_all(directory).map_err(FormatError::io(directory, "create"))?;
        let seconds = wall_time() as u64;
        let (host, process) = (host(), std::process::id());
        // TensorBoard reads the files in the order of their names.
        let mut count = 0;
        let (path, file) = loop {
            let name = format!("events.out.tfevents.{seconds:010}.{host}.{process}.{count}");
            let path = directory.join(name);
            match OpenOptions::new().append(true).create_new(true).open(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => count += 1,
                file => {
                    break (
                        path.clone(),
                        file.map_err(FormatError::io(&path, "create"))?,
                    );
                }
            }
        };
        let mut writer = Self { file, path };
        let version = event(0, |message| message.bytes(3, b"brain.Event:2"));
        writer.append(&version)?;
        if steps > 0 {
            const START: u64 = 1;
            let session = Message::of(|session| session.varint(1, START));
            let first_new = steps as u64 + 1;
            writer.append(&event(first_new, |message| message.bytes(7, &session)))?;
        }
        Ok(writer)
    }

    /// Values after `step`, by their names; a `/` in a name makes a group.
    ///
    /// # Errors
    /// The system refuses.
    pub fn scalars(&mut self, step: usize, scalars: &[(&str, f64)]) -> Result<(), FormatError> {
        let summary = Message::of(|summary| {
            for (tag, value) in scalars {
                let value = Message::of(|message| {
                    message.bytes(1, tag.as_bytes());
                    message.float(2, *value as f32);
                });
                summary.bytes(1, &value);
            }
        });
        self.append(&event(step as u64, |message| message.bytes(5, &summary)))
    }

    fn append(&mut self, data: &[u8]) -> Result<(), FormatError> {
        fault::point("append to", &self.path)?;
        self.file
            .write_all(&record(data))
            .map_err(FormatError::io(&self.path, "append to"))
    }
}

/// Length, its checksum, the data, its checksum.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(data.len() + 16);
    record.extend(length);
    record.extend(masked_crc(&length).to_le_bytes());
    record.extend(data);
    record.extend(masked_crc(data).to_le_bytes());
    record
}

/// A checksum of checksums would be weak, so they are stored rotated and shifted.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data)
        .rotate_right(15)
        .wrapping_add(0xa282_ead8)
}

fn wall_time() -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0.0, |time| time.as_secs_f64())
}

fn event(step: u64, fill: impl FnOnce(&mut Message)) -> Vec<u8> {
    Message::of(|message| {
        message.double(1, wall_time());
        message.varint(2, step);
        fill(message);
    })
}

/// A protocol buffer being written.
struct Message(Vec<u8>);

impl Message {
    fn of(fill: impl FnOnce(&mut Self)) -> Vec<u8> {
        let mut message = Self(Vec::new());
        fill(&mut message);
        message.0
    }

    fn tag(&mut self, field: u64, kind: u64) {
        self.number(field << 3 | kind);
    }

    fn number(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn varint(&mut self, field: u64, value: u64) {
        self.tag(field, 0);
        self.number(value);
    }

    fn double(&mut self, field: u64, value: f64) {
        self.tag(field, 1);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.tag(field, 2);
        self.number(value.len() as u64);
        self.0.extend(value);
    }

    fn float(&mut self, field: u64, value: f32) {
        self.tag(field, 5);
        self.0.extend(value.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The data of every record, its checksums checked.
    fn records(mut bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut records = Vec::new();
        while !bytes.is_empty() {
            let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            let stored = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
            assert_eq!(stored(8), masked_crc(&bytes[..8]));
            let data = &bytes[12..12 + length];
            assert_eq!(stored(12 + length), masked_crc(data));
            records.push(data.to_vec());
            bytes = &bytes[16 + length..];
        }
        records
    }

    #[test]
    fn checksums_are_those_of_tensorflow() {
        // crc32c("123456789") is the check value of the algorithm; masked as in crc32c.h.
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(masked_crc(b"123456789"), 0xc78a_b0e5);
    }

    #[test]
    fn a_file_holds_its_version_and_its_values() {
        let root = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::create(root.path(), 0).unwrap();
        writer
            .scalars(300, &[("train/loss", 1.5), ("lr", 2.0)])
            .unwrap();
        let first = records(&fs::read(&writer.path).unwrap());
        assert_eq!(first.len(), 2);
        assert!(first[0].ends_with(b"\x1a\x0dbrain.Event:2"));
        // After the time: step 300, then the summary with a tag and a float in each value.
        let expected = [
            &b"\x10\xac\x02\x2a\x1e\x0a\x11\x0a\x0atrain/loss\x15\x00\x00\xc0\x3f"[..],
            b"\x0a\x09\x0a\x02lr\x15\x00\x00\x00\x40",
        ];
        assert_eq!(first[1][9..], expected.concat());

        // A resumed run has a file of its own, whose first step voids what came after.
        let again = EventWriter::create(root.path(), 128).unwrap();
        assert!(again.path > writer.path);
        let second = records(&fs::read(&again.path).unwrap());
        assert_eq!(second[1][9..], *b"\x10\x81\x01\x3a\x02\x08\x01");
    }
}
