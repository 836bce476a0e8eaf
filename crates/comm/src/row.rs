//! What every rank tells the others after each step, and what all decide from it.

use crate::{CommError, Engine, LastWords};

/// Bytes of a row: one small message.
const BYTES: usize = 512;

/// Bytes before the message.
const HEAD: usize = 8 * 4 + 3 + 2;

/// What one rank says of a step.
///
/// Whatever a run decides between two steps, it decides from the rows of all ranks, so that all decide alike: a signal that
/// reaches one of them stops all after the same step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row {
    /// The step, from 1.
    pub step: u64,
    /// Of the trained factors before the update: equal in all ranks, while hardware and files are sound.
    pub checksum: u64,
    /// Seconds of its passes.
    pub computed: f64,
    /// Seconds that it waited for the others.
    pub waited: f64,
    /// The run is to end after this step.
    pub stop: bool,
    /// A checkpoint is wanted.
    pub save: bool,
    /// The run is to pause.
    pub pause: bool,
    /// Why this rank cannot go on. What does not fit into a row is cut off.
    pub failed: Option<String>,
}

/// What all ranks do next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// End the run.
    pub stop: bool,
    /// Write a checkpoint.
    pub save: bool,
    /// Wait, telling rows, until nobody asks for it.
    pub pause: bool,
}

impl Row {
    fn to_bytes(&self) -> Vec<u8> {
        let message = self.failed.as_deref().unwrap_or_default();
        let end = message.floor_char_boundary(BYTES - HEAD);
        let mut bytes = Vec::with_capacity(BYTES);
        bytes.extend(self.step.to_le_bytes());
        bytes.extend(self.checksum.to_le_bytes());
        bytes.extend(self.computed.to_le_bytes());
        bytes.extend(self.waited.to_le_bytes());
        bytes.extend([self.stop, self.save, self.pause].map(u8::from));
        // A length, and one more where there is a message, since one may be empty.
        let length = self.failed.as_ref().map_or(0, |_| end as u16 + 1);
        bytes.extend(length.to_le_bytes());
        bytes.extend(&message.as_bytes()[..end]);
        bytes.resize(BYTES, 0);
        bytes
    }

    /// Whatever the bytes are.
    fn from_bytes(bytes: &[u8; BYTES]) -> Self {
        let (numbers, rest) = bytes.split_at(32);
        let (numbers, _) = numbers.as_chunks::<8>();
        let (head, message) = rest.split_at(5);
        let length = usize::from(u16::from_le_bytes([head[3], head[4]]));
        let failed = length.checked_sub(1).map(|length| {
            let said = &message[..length.min(message.len())];
            String::from_utf8_lossy(said).into_owned()
        });
        Self {
            step: u64::from_le_bytes(numbers[0]),
            checksum: u64::from_le_bytes(numbers[1]),
            computed: f64::from_le_bytes(numbers[2]),
            waited: f64::from_le_bytes(numbers[3]),
            stop: head[0] != 0,
            save: head[1] != 0,
            pause: head[2] != 0,
            failed,
        }
    }

    /// The rows of all ranks, by rank.
    ///
    /// # Errors
    /// The engine's.
    pub fn exchange(&self, engine: &mut dyn Engine) -> Result<Vec<Self>, CommError> {
        let mut all = vec![vec![0; BYTES]; engine.size()];
        engine.all_gather(&self.to_bytes(), &mut all)?;
        let rows = all.iter().map(|bytes| match bytes.first_chunk() {
            Some(bytes) => Self::from_bytes(bytes),
            None => unreachable!("an engine keeps lengths"),
        });
        Ok(rows.collect())
    }

    /// What all do next: what any of them asks for.
    ///
    /// # Errors
    /// The same in every rank: one cannot go on; steps or checksums differ.
    pub fn decide(rows: &[Self]) -> Result<Decision, CommError> {
        let failed = rows.iter().enumerate();
        let mut failed = failed.filter_map(|(rank, row)| Some((rank, row, row.failed.as_ref()?)));
        if let Some((rank, row, message)) = failed.next() {
            return Err(CommError::Ended(LastWords {
                rank: Some(rank),
                host: String::new(),
                step: Some(row.step),
                message: message.clone(),
            }));
        }
        let odd = |of: fn(&Self) -> u64| -> Vec<usize> {
            let first = rows.first().map(of);
            let others = rows.iter().enumerate();
            let others = others.filter(|(_, row)| Some(of(row)) != first);
            others.map(|(rank, _)| rank).collect()
        };
        for (what, ranks) in [
            ("step", odd(|row| row.step)),
            ("factors", odd(|row| row.checksum)),
        ] {
            if !ranks.is_empty() {
                return Err(CommError::Parted {
                    what,
                    step: rows.first().map_or(0, |row| row.step),
                    ranks,
                });
            }
        }
        Ok(Decision {
            stop: rows.iter().any(|row| row.stop),
            save: rows.iter().any(|row| row.save),
            pause: rows.iter().any(|row| row.pause),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{BYTES, Decision, HEAD, Row};
    use crate::world::tests::together;

    fn row(step: u64) -> Row {
        Row {
            step,
            checksum: 7,
            ..Row::default()
        }
    }

    #[test]
    fn what_one_asks_for_all_do() {
        let found = together(3, |world| {
            let mut engine = world.store_engine().unwrap();
            let mine = Row {
                stop: world.rank() == 2,
                save: world.rank() == 1,
                computed: world.rank() as f64,
                ..row(5)
            };
            let rows = mine.exchange(&mut *engine).unwrap();
            world.leave().unwrap();
            rows
        });
        for rows in &found {
            assert_eq!(rows, &found[0]);
            assert_eq!(rows[2].computed, 2.0);
            let decision = Decision {
                stop: true,
                save: true,
                pause: false,
            };
            assert_eq!(Row::decide(rows).unwrap(), decision);
        }
    }

    #[test]
    fn ranks_that_part_or_fail_end_all_alike() {
        let mut rows = vec![row(5); 4];
        assert_eq!(Row::decide(&rows).unwrap(), Decision::default());
        rows[3].checksum = 8;
        assert_eq!(
            Row::decide(&rows).unwrap_err().to_string(),
            "at step 5 rank 3 has other factors than rank 0: a bad device, other devices, or another program"
        );
        rows[1].step = 6;
        rows[2].step = 6;
        let error = Row::decide(&rows).unwrap_err().to_string();
        assert!(
            error.starts_with("at step 5 ranks 1, 2 have another step than rank 0"),
            "{error}"
        );
        rows[2].failed = Some("no memory".to_owned());
        assert_eq!(
            Row::decide(&rows).unwrap_err().to_string(),
            "rank 2 ended at step 6: no memory"
        );
    }

    proptest! {
        #[test]
        fn rows_there_and_back(
            step: u64, checksum: u64, computed: f64, flags: [bool; 3],
            failed in proptest::option::of("[a-zé€]{0,300}"),
        ) {
            let [stop, save, pause] = flags;
            let row = Row { step, checksum, computed, waited: 1.5, stop, save, pause, failed };
            let bytes = row.to_bytes();
            prop_assert_eq!(bytes.len(), BYTES);
            let mut read = Row::from_bytes(bytes.first_chunk().unwrap());
            prop_assert_eq!(read.computed.to_bits(), row.computed.to_bits());
            read.computed = row.computed;
            if let (Some(read), Some(said)) = (&mut read.failed, &row.failed) {
                prop_assert!(said.starts_with(&**read) && said.len().min(BYTES - HEAD - 3) <= read.len());
                read.clone_from(said);
            }
            prop_assert_eq!(format!("{read:?}"), format!("{row:?}"));
        }

        #[test]
        fn any_bytes_are_a_row(bytes in proptest::collection::vec(any::<u8>(), BYTES)) {
            let row = Row::from_bytes(bytes.first_chunk().unwrap());
            prop_assert!(row.failed.is_none_or(|said| said.len() <= 3 * BYTES));
        }
    }
}
