//! TensorBoard event files: the same tags as transformers' `TensorBoardCallback` (`train/loss`,
//! `train/learning_rate`, `eval/loss`, …).
//!
//! A file is a row of records in TensorFlow's framing: length, its checksum, an `Event` in
//! protocol-buffer form, its checksum. The messages are the parts that scalars need of
//! `tensorflow/core/util/event.proto` and `summary.proto`. A resumed run begins a new file; its
//! `SessionLog.START` event tells TensorBoard to forget later steps of the older ones.

use std::path::Path;

use prost::Message as _;

use super::{LogEntry, ReportError};
use crate::durable::{DurableFile, DurableFs, create_dirs};

#[derive(Clone, PartialEq, prost::Message)]
struct Event {
    /// Seconds since 1970.
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(oneof = "What", tags = "3, 5, 7")]
    what: Option<What>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum What {
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(Summary),
    #[prost(message, tag = "7")]
    SessionLog(SessionLog),
}

#[derive(Clone, PartialEq, prost::Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    /// In a oneof there, so that a 0 is written too.
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SessionLog {
    #[prost(enumeration = "SessionStatus", tag = "1")]
    status: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
enum SessionStatus {
    Unspecified = 0,
    Start = 1,
}

/// The version that makes TensorBoard heed `SessionLog.START`.
const FILE_VERSION: &str = "brain.Event:2";

/// What file names begin with; TensorBoard looks for it.
const FILE_PREFIX: &str = "events.out.tfevents.";

/// Who writes a file, for its name.
#[derive(Debug, Clone, Copy)]
pub struct Writer<'a> {
    /// The host's name.
    pub host: &'a str,
    /// The process number.
    pub pid: u32,
}

/// An event file, open for adding events.
pub struct TensorBoardLog<'a> {
    file: Box<dyn DurableFile + 'a>,
}

impl<'a> TensorBoardLog<'a> {
    /// Begins a new event file in `logging_dir` at the time `wall_time` (seconds since 1970). A
    /// run that resumed after step N passes `Some(N)`: what older files say about later steps no
    /// longer holds.
    ///
    /// # Errors
    /// [`ReportError::Io`].
    pub fn create(
        fs: &'a dyn DurableFs,
        logging_dir: &Path,
        writer: Writer<'_>,
        wall_time: f64,
        resumed_after: Option<u64>,
    ) -> Result<Self, ReportError> {
        create_dirs(fs, logging_dir)?;
        let name = file_name(fs, logging_dir, writer, wall_time)?;
        let mut log = Self { file: fs.create(&logging_dir.join(name))? };
        log.write(&Event {
            wall_time,
            step: 0,
            what: Some(What::FileVersion(FILE_VERSION.into())),
        })?;
        if let Some(step) = resumed_after {
            // TensorBoard forgets steps from this one on, so the one after the last that counts.
            let session = SessionLog { status: SessionStatus::Start.into() };
            let step = signed(step.saturating_add(1));
            log.write(&Event { wall_time, step, what: Some(What::SessionLog(session)) })?;
        }
        Ok(log)
    }

    /// Adds every value of `entry`, and its epoch, at the time `wall_time`.
    ///
    /// # Errors
    /// [`ReportError::Io`].
    pub fn log(&mut self, entry: &LogEntry, wall_time: f64) -> Result<(), ReportError> {
        let values = entry.values.iter().map(|(name, value)| (name.as_str(), *value));
        for (name, value) in values.chain([("epoch", entry.epoch)]) {
            let value = Value { tag: tag(name), simple_value: Some(value as f32) };
            let what = Some(What::Summary(Summary { value: vec![value] }));
            self.write(&Event { wall_time, step: signed(entry.step), what })?;
        }
        Ok(())
    }

    /// Returns once all events are on the disk.
    ///
    /// # Errors
    /// [`ReportError::Io`].
    pub fn sync(&mut self) -> Result<(), ReportError> {
        Ok(self.file.sync()?)
    }

    fn write(&mut self, event: &Event) -> Result<(), ReportError> {
        Ok(self.file.write(&record(&event.encode_to_vec()))?)
    }
}

/// transformers' `rewrite_logs`.
fn tag(name: &str) -> String {
    if let Some(name) = name.strip_prefix("eval_") {
        format!("eval/{name}")
    } else if let Some(name) = name.strip_prefix("test_") {
        format!("test/{name}")
    } else {
        format!("train/{name}")
    }
}

/// A name that sorts after those of the event files already there, whatever the clock says:
/// TensorBoard reads files in the order of their names.
fn file_name(
    fs: &dyn DurableFs,
    logging_dir: &Path,
    Writer { host, pid }: Writer<'_>,
    wall_time: f64,
) -> Result<String, ReportError> {
    let seconds = |name: &str| name.strip_prefix(FILE_PREFIX)?.get(..10)?.parse::<u64>().ok();
    let names = fs.list(logging_dir)?;
    let newest = names.iter().filter_map(|name| seconds(name.to_str()?)).max();
    let now = wall_time as u64;
    let begins = newest.map_or(now, |newest| now.max(newest.saturating_add(1)));
    Ok(format!("{FILE_PREFIX}{begins:010}.{host}.{pid}.0"))
}

fn signed(step: u64) -> i64 {
    i64::try_from(step).unwrap_or(i64::MAX)
}

/// TensorFlow's framing of one record.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut bytes = length.to_vec();
    bytes.extend_from_slice(&masked_crc32c(&length));
    bytes.extend_from_slice(data);
    bytes.extend_from_slice(&masked_crc32c(data));
    bytes
}

/// The checksum, turned and shifted so that a checksum of data with checksums in it stays strong.
fn masked_crc32c(data: &[u8]) -> [u8; 4] {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}
