//! In what order a file has the rows or columns of a tensor, where that is not Hugging Face's, and what it adds to its values.

use backdraft_arch::DeltaNetSpec;

/// A tensor's rows or columns in another order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arrangement {
    /// Rows; elements, of a vector.
    Rows(Order),
    /// Columns, each row the same way.
    Columns(Order),
}

/// Another order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// The two halves of each head side by side, for rotary embeddings that turn neighbours: a head's rows are
    /// `(pair, half)` in the file and `(half, pair)` in Hugging Face's.
    Pairs {
        /// Rows of a head.
        head_dim: usize,
    },
    /// Value heads of a DeltaNet by their place among those of a key head, then by key head; Hugging Face has those of one
    /// key head side by side.
    Tiled {
        /// What lies before them and stays: queries and keys.
        before: usize,
        /// Rows of a value head.
        head_dim: usize,
        /// Key heads.
        key_heads: usize,
        /// Value heads of each.
        group: usize,
    },
}

impl Order {
    /// That of a DeltaNet's value heads of `head_dim` rows each behind `before` others; `None` where it is Hugging Face's.
    pub(super) fn of_values(sizes: DeltaNetSpec, before: usize, head_dim: usize) -> Option<Self> {
        let key_heads = sizes.num_key_heads;
        let group = sizes.num_value_heads / key_heads;
        (group > 1 && key_heads > 1).then_some(Self::Tiled {
            before,
            head_dim,
            key_heads,
            group,
        })
    }

    /// The place in the file of what Hugging Face has at `index`.
    pub(super) fn place(self, index: usize) -> usize {
        match self {
            Self::Pairs { head_dim } => {
                let (head, within) = (index / head_dim, index % head_dim);
                let pairs = head_dim / 2;
                head * head_dim + within % pairs * 2 + within / pairs
            }
            Self::Tiled {
                before,
                head_dim,
                key_heads,
                group,
            } => match index.checked_sub(before) {
                None => index,
                Some(index) => {
                    let (head, within) = (index / head_dim, index % head_dim);
                    let (key, value) = (head / group, head % group);
                    before + (value * key_heads + key) * head_dim + within
                }
            },
        }
    }
}

impl Arrangement {
    /// Values in Hugging Face's order, of `rows` rows, in the file's.
    pub(super) fn to_file(self, values: &[f32], rows: usize) -> Vec<f32> {
        let width = (values.len() / rows.max(1)).max(1);
        let mut out = vec![0.0; values.len()];
        let rows = values.chunks_exact(width);
        match self {
            Self::Rows(order) => {
                for (row, values) in rows.enumerate() {
                    let to = order.place(row) * width;
                    out[to..to + width].copy_from_slice(values);
                }
            }
            Self::Columns(order) => {
                for (out, values) in out.chunks_exact_mut(width).zip(rows) {
                    for (column, value) in values.iter().enumerate() {
                        out[order.place(column)] = *value;
                    }
                }
            }
        }
        out
    }
}

/// Rows of `width` values as the file has them, each in Hugging Face's order.
pub(super) fn columns_from_file(values: &[f32], width: usize, order: Order) -> Vec<f32> {
    let mut out = Vec::with_capacity(values.len());
    for row in values.chunks_exact(width.max(1)) {
        out.extend((0..width).map(|column| row[order.place(column)]));
    }
    out
}

/// What becomes of values on the way into a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// Nothing.
    None,
    /// w is written as 1 + w.
    PlusOne,
    /// a is written as −eᵃ.
    MinusExp,
}

impl Change {
    /// Hugging Face's values as a file has them.
    pub(super) fn to_file(self, values: &mut [f32]) {
        match self {
            Self::None => {}
            Self::PlusOne => values.iter_mut().for_each(|value| *value += 1.0),
            Self::MinusExp => values.iter_mut().for_each(|value| *value = -value.exp()),
        }
    }

    /// A file's values as Hugging Face has them.
    pub(super) fn undo(self, values: &mut [f32]) {
        match self {
            Self::None => {}
            Self::PlusOne => values.iter_mut().for_each(|value| *value -= 1.0),
            Self::MinusExp => values.iter_mut().for_each(|value| *value = (-*value).ln()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_drawn_apart_within_heads() {
        let order = Order::Pairs { head_dim: 6 };
        let rows: Vec<_> = (0..12).map(|row| order.place(row)).collect();
        assert_eq!(rows, [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]);
    }

    /// llama.cpp repeats key heads one after the other, transformers each of them as often as it has value heads.
    #[test]
    fn value_heads_are_those_of_the_key_heads_in_turn() {
        let sizes = DeltaNetSpec {
            num_key_heads: 2,
            num_value_heads: 6,
            key_head_dim: 1,
            value_head_dim: 2,
            conv_kernel_dim: 4,
        };
        let order = Order::of_values(sizes, 2, 2).unwrap();
        let values: Vec<f32> = (0..14u8).map(f32::from).collect();
        let tiled = [0, 1, 2, 3, 8, 9, 4, 5, 10, 11, 6, 7, 12, 13u8].map(f32::from);
        assert_eq!(Arrangement::Rows(order).to_file(&values, 14), tiled);
        let columns = Arrangement::Columns(order).to_file(&values, 1);
        assert_eq!(columns, tiled);
        assert_eq!(columns_from_file(&columns, 14, order), values);
        let alone = DeltaNetSpec {
            num_key_heads: 6,
            ..sizes
        };
        assert_eq!(Order::of_values(alone, 2, 2), None);
    }

    #[test]
    fn changes_are_taken_back() {
        for (change, expected) in [
            (Change::None, [-1.0, 0.5]),
            (Change::PlusOne, [0.0, 1.5]),
            (Change::MinusExp, [-(-1f32).exp(), -(0.5f32).exp()]),
        ] {
            let mut values = [-1.0, 0.5];
            change.to_file(&mut values);
            assert_eq!(values, expected);
            change.undo(&mut values);
            assert!((values[0] + 1.0).abs() < 1e-6 && (values[1] - 0.5).abs() < 1e-6);
        }
    }
}
