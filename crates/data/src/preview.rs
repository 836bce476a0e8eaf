//! Rows as the model sees them.

mod html;
#[cfg(test)]
mod tests;
mod text;

pub use text::TextLook;

use std::ops::Range;

use serde::Serialize;

use crate::IGNORE_INDEX;
use crate::error::DataError;
use crate::findings::{Finding, RowPlace};
use crate::pipeline::{Overlong, TokenizeOptions, tokenize_row};
use crate::source::{RowReader, Source};
use crate::supervise::Supervised;
use crate::tokenizer::ChatTokenizer;

/// What the model does with a piece of text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// It reads it.
    Context,
    /// It learns to write it.
    Trained,
    /// It never sees it: beyond `max_seq_length`.
    Cut,
}

/// The first rows of some sources.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Preview {
    /// The rows.
    pub rows: Vec<PreviewRow>,
}

/// A row, or why there is none.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PreviewRow {
    /// Where it stands.
    pub place: RowPlace,
    /// What it became, or the message of the error.
    pub shown: Result<ShownRow, String>,
}

/// A row as text and tokens.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ShownRow {
    /// The rendered text.
    pub text: String,
    /// The text in pieces, one behind the other.
    pub parts: Vec<(Range<usize>, Part)>,
    /// The BOS token that stands before the text without being part of it.
    pub added_bos: Option<String>,
    /// Token ids before they are cut, `[s]`.
    pub input_ids: Vec<u32>,
    /// Bytes of the text that each token stands for, `[s]`.
    pub offsets: Vec<(usize, usize)>,
    /// Tokens that are left after the cut.
    pub kept_tokens: usize,
    /// Tokens among them that are predicted and trained.
    pub supervised_tokens: usize,
    /// What is wrong with the row, or worth knowing.
    pub findings: Vec<Finding>,
}

/// Renders and tokenises the first rows of some sources, as many of each, broken ones included.
///
/// # Errors
/// Anything about a whole file, and options that cannot work together.
pub fn preview(
    sources: &[Source],
    options: &TokenizeOptions,
    tokenizer: &ChatTokenizer,
    rows: usize,
) -> Result<Preview, DataError> {
    let mut preview = Preview::default();
    let of_each = rows.div_ceil(sources.len().max(1));
    for source in sources {
        let options = &*options.of(source);
        options.check()?;
        let mut reader = RowReader::new(&source.files, options.limits);
        let enough = rows.min(preview.rows.len() + of_each);
        while preview.rows.len() < enough {
            let Some(row) = reader.next() else { break };
            let row = match row {
                Ok(row) => {
                    let path = source.files[row.file].path.clone();
                    let line = row.line;
                    let shown = tokenize_row(&path, row, options, tokenizer)
                        .map(|(supervised, findings)| {
                            show(supervised, findings, options, tokenizer)
                        })
                        .map_err(|error| error.with_causes());
                    PreviewRow {
                        place: RowPlace { path, line },
                        shown,
                    }
                }
                Err(error) if error.is_about_a_row() => PreviewRow {
                    place: RowPlace {
                        path: error.path().map_or_else(Default::default, Into::into),
                        line: error.line().unwrap_or(0),
                    },
                    shown: Err(error.with_causes()),
                },
                Err(error) => return Err(error),
            };
            preview.rows.push(row);
        }
    }
    Ok(preview)
}

fn show(
    supervised: Supervised,
    mut findings: Vec<Finding>,
    options: &TokenizeOptions,
    tokenizer: &ChatTokenizer,
) -> ShownRow {
    let limit = options.data.max_seq_length;
    let Supervised {
        input_ids,
        labels,
        text,
        offsets,
        answers,
        ..
    } = supervised;
    let too_long = answers.longest(input_ids.len()) > limit;
    // Each text of a pair is cut by itself.
    let texts = answers.texts(input_ids.len());
    let kept: Vec<bool> = texts
        .flat_map(|(text, _)| {
            (0..text.len()).map(move |token| match options.overlong {
                Overlong::Truncate => token < limit,
                Overlong::Drop => !too_long,
                Overlong::Split => true,
            })
        })
        .collect();
    let kept_tokens = kept.iter().filter(|kept| **kept).count();
    let seen = labels.iter().zip(&kept);
    let seen: Vec<i64> = seen
        .map(|(label, kept)| if *kept { *label } else { IGNORE_INDEX })
        .collect();
    let supervised_tokens = answers.supervised_tokens(&seen);
    if too_long {
        findings.push(options.overlong.finding());
    }
    if supervised_tokens == 0 && kept_tokens > 0 {
        findings.push(Finding::WithoutSupervision);
    }
    let added_bos = match (input_ids.first(), offsets.first()) {
        (Some(id), Some((0, 0))) => tokenizer.id_to_token(*id),
        _ => None,
    };
    ShownRow {
        parts: parts(&text, &offsets, &labels, &kept),
        added_bos,
        text,
        input_ids,
        offsets,
        kept_tokens,
        supervised_tokens,
        findings,
    }
}

/// Cuts a text where what becomes of it changes.
fn parts(
    text: &str,
    offsets: &[(usize, usize)],
    labels: &[i64],
    kept: &[bool],
) -> Vec<(Range<usize>, Part)> {
    let mut parts: Vec<(Range<usize>, Part)> = Vec::new();
    let mut at = 0;
    let mut push = |end: usize, part: Part| {
        // A character in several tokens belongs to the first of them.
        if end <= at || !text.is_char_boundary(end) {
            return;
        }
        match parts.last_mut() {
            Some((range, last)) if *last == part => range.end = end,
            _ => parts.push((at..end, part)),
        }
        at = end;
    };
    for (token, (offset, label)) in offsets.iter().zip(labels).enumerate() {
        let part = match label {
            _ if !kept[token] => Part::Cut,
            &IGNORE_INDEX => Part::Context,
            _ => Part::Trained,
        };
        push(offset.1, part);
    }
    let rest = match kept.last() {
        Some(false) => Part::Cut,
        Some(true) | None => Part::Context,
    };
    push(text.len(), rest);
    parts
}
