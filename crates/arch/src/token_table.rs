//! The matrices with a row for each token.

use crate::spec::{EMBEDDING, HEAD, ModelSpec};

/// A matrix with a row for each token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TokenTable {
    /// The embedding, and the head too where the model ties the two.
    Embedding,
    /// A head of its own.
    Head,
}

impl TokenTable {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Embedding, Self::Head];

    /// Their names, in the same order.
    pub const NAMES: [&'static str; 2] = ["embed_tokens", "lm_head"];

    /// The name that checkpoints and PEFT use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }

    /// Its module's path.
    #[must_use]
    pub const fn path(self) -> &'static str {
        match self {
            Self::Embedding => "model.embed_tokens",
            Self::Head => "lm_head",
        }
    }

    /// Its tensor in a checkpoint.
    #[must_use]
    pub const fn tensor(self) -> &'static str {
        match self {
            Self::Embedding => EMBEDDING,
            Self::Head => HEAD,
        }
    }

    /// The table at that path.
    #[must_use]
    pub fn of_path(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|table| table.path() == path)
    }

    /// The table whose module a path or the end of one names.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Self> {
        let named = |table: &Self| table.name() == name || table.path() == name;
        Self::ALL.into_iter().find(named)
    }

    /// Those that can carry an adapter: not a head that scores texts, which is trained whole.
    pub fn adaptable(spec: &ModelSpec) -> impl Iterator<Item = Self> + use<> {
        let scores = spec.scores;
        let tables = Self::ALL.into_iter();
        tables.filter(move |table| !(scores && *table == Self::Head))
    }

    /// Outputs and inputs of its adapter: an embedding's reads a token, and writes a row.
    #[must_use]
    pub const fn adapter_dims(self, spec: &ModelSpec) -> [usize; 2] {
        match self {
            Self::Embedding => [spec.hidden_size, spec.vocab_size],
            Self::Head => [spec.vocab_size, spec.hidden_size],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_paths_are_those_of_checkpoints() {
        for table in TokenTable::ALL {
            assert_eq!(TokenTable::of_name(table.name()), Some(table));
            assert_eq!(TokenTable::of_name(table.path()), Some(table));
            assert_eq!(TokenTable::of_path(table.path()), Some(table));
            assert_eq!(table.tensor(), format!("{}.weight", table.path()));
            assert!(table.path().ends_with(table.name()));
        }
        assert_eq!(TokenTable::of_path("embed_tokens"), None);
        assert_eq!(TokenTable::of_name("tokens"), None);
    }
}
