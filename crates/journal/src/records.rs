//! `metrics.jsonl`: one object for each step, each evaluation and each change of the diagnosis.
//!
//! | `event` | keys |
//! | --- | --- |
//! | `step` | `step epoch loss grad_norm learning_rate tokens supervised_tokens seconds elapsed`, `penalized_loss` and `answers` |
//! | `eval` | `step epoch eval_loss perplexity tokens best seconds`, `answers` and `sets` |
//! | `diagnosis` | `step diagnosis` |
//! | `finding` | `step finding` |
//! | `replanned` | `step budget_before budget reason` |
//! | `adaptation` | `step precision start nll kl verification_tokens calibration_tokens seconds` |
//!
//! `penalized_loss` stands where labels are smoothed or there is a z-loss, `answers` where the objective compares answers, and `perplexity` where it does not.
//!
//! Every line has `event` and `schema_version` before these; files of earlier versions have neither, and are read by
//! their keys. Only `seconds` and `elapsed` depend on the clock. The file grows while the run goes on; a checkpoint
//! notes how long it was, and a resumed run goes on from there, so that nothing stands in it twice.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use backdraft_formats::{FormatError, fault};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::adaptation::AdaptationReport;
use crate::diagnosis::{EvalPoint, TrainPoint};
use crate::report::{EvalReport, StepReport};
use crate::text::hex;

/// Name of the file in an output directory.
pub const FILE: &str = "metrics.jsonl";

/// Version of the lines, in each of them: it rises when a key is renamed, removed or given another meaning.
pub const SCHEMA_VERSION: u32 = 1;

/// A line of the file.
#[derive(Serialize)]
struct Line<'a, T> {
    event: &'a str,
    schema_version: u32,
    #[serde(flatten)]
    report: &'a T,
}

/// What a checkpoint notes of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordsState {
    /// Its length.
    ///
    /// # Units
    /// Bytes.
    pub bytes: u64,
    /// Its SHA-256, in hexadecimal.
    pub sha256: String,
}

/// The file, open for appending.
pub struct Records {
    file: File,
    path: PathBuf,
    written: u64,
    hash: Sha256,
    /// Lines that the disk had no room for yet.
    pending: Vec<u8>,
}

impl Records {
    /// An empty file in place of whatever is there.
    ///
    /// # Errors
    /// The system refuses.
    pub fn create(path: &Path) -> Result<Self, FormatError> {
        fault::point("create", path)?;
        let file = File::create(path).map_err(FormatError::io(path, "create"))?;
        Ok(Self {
            file,
            path: path.to_owned(),
            written: 0,
            hash: Sha256::new(),
            pending: Vec::new(),
        })
    }

    /// The file as it was when a checkpoint of `step` noted `state`, what came after it cut off; and its
    /// text.
    ///
    /// Where the file is not what was noted, what it has of whole lines up to `step` is kept, and the
    /// third value says so.
    ///
    /// # Errors
    /// The system refuses.
    pub fn resume(
        path: &Path,
        state: &RecordsState,
        step: usize,
    ) -> Result<(Self, String, Option<String>), FormatError> {
        fault::point("open", path)?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(FormatError::io(path, "open"))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)
            .map_err(FormatError::io(path, "read"))?;
        let noted = usize::try_from(state.bytes)
            .ok()
            .and_then(|n| bytes.get(..n));
        let intact = noted.filter(|bytes| hex(&Sha256::digest(bytes)) == state.sha256);
        let (length, warning) = match intact {
            Some(kept) => (kept.len(), None),
            None => {
                let length = whole_lines(&bytes, step);
                let lines = bytes[..length].iter().filter(|b| **b == b'\n').count();
                let warning = format!(
                    "{} is not as it was at the checkpoint of step {step} ({} bytes of {}); kept of it: {} up to \
                     that step",
                    path.display(),
                    bytes.len(),
                    state.bytes,
                    backdraft_data::count(lines as u64, "whole line"),
                );
                (length, Some(warning))
            }
        };
        bytes.truncate(length);
        fault::point("truncate", path)?;
        file.set_len(length as u64)
            .and_then(|()| file.seek(SeekFrom::End(0)))
            .map_err(FormatError::io(path, "truncate"))?;
        let records = Self {
            file,
            path: path.to_owned(),
            written: length as u64,
            hash: Sha256::new_with_prefix(&bytes),
            pending: Vec::new(),
        };
        // Lossy: only a file that was damaged is no UTF-8.
        let text = String::from_utf8_lossy(&bytes).into_owned();
        Ok((records, text, warning))
    }

    /// Appends one object under the name of its event. What the disk has no room for is kept and tried again with the next.
    ///
    /// # Errors
    /// The system refuses.
    pub fn write(&mut self, event: &str, report: &impl Serialize) -> Result<(), FormatError> {
        let line = Line {
            event,
            schema_version: SCHEMA_VERSION,
            report,
        };
        let line = serde_json::to_vec(&line).map_err(FormatError::encode(&self.path))?;
        self.pending.extend(line);
        self.pending.push(b'\n');
        self.flush()
    }

    fn flush(&mut self) -> Result<(), FormatError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let io = FormatError::io(&self.path, "append to");
        fault::point("append to", &self.path)?;
        if let Err(error) = self.file.write_all(&self.pending) {
            // Half a line must not stay; where even that fails, a resume will cut it off.
            let _ = self.file.set_len(self.written);
            let _ = self.file.seek(SeekFrom::Start(self.written));
            return Err(io(error));
        }
        self.written += self.pending.len() as u64;
        self.hash.update(&self.pending);
        self.pending.clear();
        Ok(())
    }

    /// Makes everything so far durable, and says what it is.
    ///
    /// # Errors
    /// The system refuses.
    pub fn sync(&mut self) -> Result<RecordsState, FormatError> {
        self.flush()?;
        fault::point("flush", &self.path)?;
        self.file
            .sync_data()
            .map_err(FormatError::io(&self.path, "flush"))?;
        Ok(RecordsState {
            bytes: self.written,
            sha256: hex(&self.hash.clone().finalize()),
        })
    }
}

/// A line of the file that matters to whoever reads it later.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Record {
    /// A step.
    Train(TrainPoint),
    /// An evaluation.
    Eval(EvalPoint),
}

/// What a line may have of a step or an evaluation.
#[derive(Deserialize)]
struct Numbers {
    step: usize,
    loss: Option<f64>,
    eval_loss: Option<f64>,
    grad_norm: Option<f64>,
    learning_rate: Option<f64>,
}

/// The steps and evaluations of a file, in its order, with every bit; lines that are neither, or are broken, are left
/// out.
pub fn points(text: &str) -> impl Iterator<Item = Record> + '_ {
    let point = |line: &str| {
        let numbers: Numbers = serde_json::from_str(line).ok()?;
        let step = numbers.step;
        if let Some(loss) = numbers.eval_loss {
            return Some(Record::Eval(EvalPoint { step, loss }));
        }
        Some(Record::Train(TrainPoint {
            step,
            loss: numbers.loss?,
            grad_norm: numbers.grad_norm,
            learning_rate: numbers.learning_rate?,
        }))
    };
    let lines = text.lines().filter(|line| is_point(line));
    lines.filter_map(point)
}

/// A line of the file as it was reported.
#[derive(Clone, Debug)]
pub enum Report {
    /// A step.
    Step(StepReport),
    /// An evaluation.
    Eval(EvalReport),
}

/// The steps and evaluations of a file, to show them; lines that are neither, or are broken, are left out.
pub fn reports(text: &str) -> impl Iterator<Item = Report> + '_ {
    text.lines()
        .filter(|line| is_point(line))
        .filter_map(|line| {
            let eval = || serde_json::from_str(line).ok().map(Report::Eval);
            let step = || serde_json::from_str(line).ok().map(Report::Step);
            if line.contains("\"eval_loss\":") {
                eval()
            } else {
                step()
            }
        })
}

/// The points of adaptive precision of a file; lines that are broken are left out.
pub fn adaptations(text: &str) -> impl Iterator<Item = AdaptationReport> + '_ {
    let lines = text.lines();
    let lines = lines.filter(|line| line.starts_with("{\"event\":\"adaptation\","));
    lines.filter_map(|line| serde_json::from_str(line).ok())
}

/// Whether a line is a step or an evaluation, or does not say what it is, as those of earlier versions.
fn is_point(line: &str) -> bool {
    !line.starts_with("{\"event\":")
        || ["step", "eval"]
            .iter()
            .any(|event| line.starts_with(&format!("{{\"event\":\"{event}\",")))
}

/// Bytes of the whole lines of steps up to `step`.
fn whole_lines(bytes: &[u8], step: usize) -> usize {
    let mut length = 0;
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let object = serde_json::from_slice::<serde_json::Value>(line);
        let number = object.ok().and_then(|object| object["step"].as_u64());
        match number {
            Some(number) if line.ends_with(b"\n") && number <= step as u64 => length += line.len(),
            _ => break,
        }
    }
    length
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn three_steps(path: &Path) -> RecordsState {
        let mut records = Records::create(path).unwrap();
        let mut state = RecordsState::default();
        for step in 1..=3 {
            records
                .write(
                    "step",
                    &json!({ "step": step, "loss": 1.5, "grad_norm": 2, "learning_rate": 0.1 }),
                )
                .unwrap();
            if step == 2 {
                records
                    .write("eval", &json!({ "step": 2, "eval_loss": 1.25 }))
                    .unwrap();
                state = records.sync().unwrap();
            }
        }
        state
    }

    #[test]
    fn goes_on_where_the_checkpoint_was() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join(FILE);
        let state = three_steps(&path);
        let whole = fs::read(&path).unwrap();
        let (mut records, text, warning) = Records::resume(&path, &state, 2).unwrap();
        assert_eq!(warning, None);
        assert_eq!(text.lines().count(), 3);
        assert_eq!(
            points(&text).last(),
            Some(Record::Eval(EvalPoint {
                step: 2,
                loss: 1.25
            }))
        );
        records
            .write(
                "step",
                &json!({ "step": 3, "loss": 1.5, "grad_norm": 2, "learning_rate": 0.1 }),
            )
            .unwrap();
        assert_eq!(fs::read(&path).unwrap(), whole);
        let end = records.sync().unwrap();
        assert_eq!(end.sha256, hex(&Sha256::digest(&whole)));
    }

    #[test]
    fn says_so_where_lines_are_lost() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join(FILE);
        let state = three_steps(&path);
        let whole = fs::read(&path).unwrap();
        // Torn in the second line.
        fs::write(&path, &whole[..130]).unwrap();
        let (_, text, warning) = Records::resume(&path, &state, 2).unwrap();
        assert_eq!(text.lines().count(), 1);
        assert!(warning.unwrap().contains("kept of it: 1 whole line up"));
        assert_eq!(fs::read(&path).unwrap(), text.as_bytes());
        // Gone.
        fs::remove_file(&path).unwrap();
        let (_, text, warning) = Records::resume(&path, &state, 2).unwrap();
        assert_eq!((text.as_str(), warning.is_some()), ("", true));
    }
    proptest! {
        #[test]
        fn every_bit_comes_back(bits in any::<u64>()) {
            let loss = f64::from_bits(bits);
            prop_assume!(loss.is_finite());
            let step = json!({ "step": 3, "loss": loss, "grad_norm": null, "learning_rate": loss });
            let eval = json!({ "step": 3, "eval_loss": loss });
            let text = format!("{step}\n{{\"event\":\"diagnosis\"}}\n{eval}\n{{\"step\": 4, \"lo");
            let read: Vec<Record> = points(&text).collect();
            let [Record::Train(train), Record::Eval(eval)] = read[..] else {
                panic!("{text}: {read:?}");
            };
            prop_assert_eq!((train.step, train.grad_norm, eval.step), (3, None, 3));
            let read = [train.loss, train.learning_rate, eval.loss].map(f64::to_bits);
            prop_assert_eq!(read, [bits; 3]);
        }
    }
}
