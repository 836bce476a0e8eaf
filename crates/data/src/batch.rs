//! Documents of a micro-batch laid end to end.

use crate::IGNORE_INDEX;
use crate::answers::Answer;
use crate::error::DataError;
use crate::row_set::RowSet;

/// A micro-batch without padding.
///
/// # Shapes
/// `t` tokens in `n` documents; document `i` is `cu_seqlens[i]..cu_seqlens[i + 1]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// Token ids, `[t]`.
    pub input_ids: Vec<u32>,
    /// The id where it is trained, else [`IGNORE_INDEX`], `[t]`. Not shifted: position `i` of a
    /// document predicts label `i + 1`.
    pub labels: Vec<i64>,
    /// Position inside the document, from 0, `[t]`.
    pub position_ids: Vec<u32>,
    /// Where documents begin, and `t` at the end, `[n + 1]`.
    pub cu_seqlens: Vec<u32>,
    /// The row of each document in its data set, `[n]`.
    pub rows: Vec<usize>,
    /// What each document is to the others, `[n]`: a pair is a good one and a bad one behind it.
    pub answers: Vec<Answer>,
    /// How much higher the chosen document of each one's pair should be rated by its row, 0 where that does not say, `[n]`.
    pub margins: Vec<f32>,
}

impl Batch {
    /// The batch of these rows of a set.
    ///
    /// # Errors
    /// [`DataError::Batch`] for a row that does not exist, or more than 2³² tokens.
    pub fn from_rows(data: &RowSet, rows: &[usize]) -> Result<Self, DataError> {
        let mut batch = Self::empty();
        for &row in rows {
            let view = data.row(row).ok_or_else(|| DataError::Batch {
                what: "row",
                expected: format!("a number below {}", data.len()),
                actual: row.to_string(),
            })?;
            let margin = view.answers.margin().unwrap_or_default();
            for (text, answer) in view.answers.texts(view.input_ids.len()) {
                let document = (&view.input_ids[text.clone()], &view.labels[text]);
                batch.push(document, (row, answer, margin))?;
            }
        }
        Ok(batch)
    }

    /// The same batch with every document padded on the right to the longest, for comparison with
    /// code that pads: `pad_id` without labels, positions counted on.
    ///
    /// # Errors
    /// [`DataError::Batch`] for more than 2³² tokens.
    pub fn padded(&self, pad_id: u32) -> Result<Self, DataError> {
        let documents = self.cu_seqlens.windows(2);
        let longest = documents
            .clone()
            .map(|ends| ends[1] - ends[0])
            .max()
            .unwrap_or(0) as usize;
        let mut batch = Self::empty();
        for (document, ends) in documents.enumerate() {
            let range = ends[0] as usize..ends[1] as usize;
            let mut ids = self.input_ids[range.clone()].to_vec();
            let mut labels = self.labels[range].to_vec();
            ids.resize(longest, pad_id);
            labels.resize(longest, IGNORE_INDEX);
            let of = (
                self.rows[document],
                self.answers[document],
                self.margins[document],
            );
            batch.push((&ids, &labels), of)?;
        }
        Ok(batch)
    }

    /// The batch of a rectangle `[rows, width]` as Python code makes it; right padding is cut away.
    ///
    /// # Errors
    /// [`DataError::Batch`] if the arrays differ in length, an id is no token id, a mask is not
    /// ones followed by zeros, or padding has a label.
    pub fn from_rectangular(
        rows: usize,
        input_ids: &[i64],
        attention_mask: &[i64],
        labels: &[i64],
    ) -> Result<Self, DataError> {
        let width = input_ids.len().checked_div(rows).unwrap_or(0);
        for (what, length) in [
            ("input_ids", input_ids.len()),
            ("attention_mask", attention_mask.len()),
            ("labels", labels.len()),
        ] {
            if width == 0 || length != rows * width {
                return Err(error(
                    what,
                    format!("{rows} rows of one width above 0"),
                    format!("{length} numbers"),
                ));
            }
        }
        let mut batch = Self::empty();
        for row in 0..rows {
            let range = row * width..(row + 1) * width;
            let (ids, mask, labels) = (
                &input_ids[range.clone()],
                &attention_mask[range.clone()],
                &labels[range],
            );
            let length = mask_length(mask)?;
            if labels[length..].iter().any(|label| *label != IGNORE_INDEX) {
                return Err(error(
                    "labels",
                    format!("{IGNORE_INDEX} on padding"),
                    format!("{:?}", &labels[length..]),
                ));
            }
            let ids: Vec<u32> = ids[..length]
                .iter()
                .map(|id| token_id(*id))
                .collect::<Result<_, _>>()?;
            batch.push((&ids, &labels[..length]), (row, Answer::Plain, 0.0))?;
        }
        Ok(batch)
    }

    /// Tokens.
    pub fn tokens(&self) -> usize {
        self.input_ids.len()
    }

    /// Documents.
    pub fn documents(&self) -> usize {
        self.rows.len()
    }

    /// Tokens of the longest document.
    pub fn max_seqlen(&self) -> usize {
        self.cu_seqlens
            .windows(2)
            .map(|edge| (edge[1] - edge[0]) as usize)
            .max()
            .unwrap_or(0)
    }

    /// The position and the target of everything that is predicted: position `i` predicts label
    /// `i + 1` of the same document where that is trained.
    pub fn targets(&self) -> impl Iterator<Item = (usize, u32)> + '_ {
        (1..self.labels.len()).filter_map(|next| {
            let same_document = self.position_ids[next] != 0;
            let target = u32::try_from(self.labels[next]).ok()?;
            same_document.then_some((next - 1, target))
        })
    }

    /// How many labels are predicted; the first label of a document never is.
    pub fn supervised_tokens(&self) -> usize {
        self.targets().count()
    }

    fn empty() -> Self {
        Self {
            cu_seqlens: vec![0],
            ..Self::default()
        }
    }

    fn push(
        &mut self,
        (ids, labels): (&[u32], &[i64]),
        (row, answer, margin): (usize, Answer, f32),
    ) -> Result<(), DataError> {
        if ids.len() != labels.len() {
            return Err(error(
                "labels",
                format!("{} of them", ids.len()),
                format!("{} of them", labels.len()),
            ));
        }
        if let Some(label) = labels
            .iter()
            .find(|label| **label != IGNORE_INDEX && u32::try_from(**label).is_err())
        {
            return Err(error(
                "label",
                format!("a token id or {IGNORE_INDEX}"),
                label.to_string(),
            ));
        }
        let end = u32::try_from(self.input_ids.len() + ids.len()).map_err(|_| {
            error(
                "batch",
                "fewer than 2^32 tokens".to_owned(),
                "more".to_owned(),
            )
        })?;
        self.input_ids.extend_from_slice(ids);
        self.labels.extend_from_slice(labels);
        self.position_ids.extend(0..ids.len() as u32);
        self.cu_seqlens.push(end);
        self.rows.push(row);
        self.answers.push(answer);
        self.margins.push(margin);
        Ok(())
    }
}

fn error(what: &'static str, expected: String, actual: String) -> DataError {
    DataError::Batch {
        what,
        expected,
        actual,
    }
}

fn token_id(id: i64) -> Result<u32, DataError> {
    u32::try_from(id).map_err(|_| error("input_ids", "a token id".to_owned(), id.to_string()))
}

/// The number of ones, which must come first.
fn mask_length(mask: &[i64]) -> Result<usize, DataError> {
    let length = mask.iter().take_while(|bit| **bit == 1).count();
    if length == 0 || mask[length..].iter().any(|bit| *bit != 0) {
        let expected = "ones, at least one, then zeros (right padding)".to_owned();
        return Err(error("attention_mask", expected, format!("{mask:?}")));
    }
    Ok(length)
}

#[cfg(test)]
mod tests;
