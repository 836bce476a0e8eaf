//! Rows of the embedding and the head that an adapter holds: PEFT's `trainable_token_indices`.

use backdraft_arch::TokenTable;
use serde_json::{Value, json};

use crate::json;
use crate::peft_config::PREFIX;

/// What PEFT calls the rows: the rows themselves, not a difference.
const DELTA: &str = ".token_adapter.trainable_tokens_delta";

/// The name of a table's rows in an adapter's file.
pub(crate) fn key(table: TokenTable) -> String {
    format!("{PREFIX}{}{DELTA}", table.path())
}

/// The table whose rows a tensor of an adapter's file holds; `None` for any other tensor.
pub(crate) fn of_key(name: &str) -> Option<TokenTable> {
    let name = name.strip_suffix(".default").unwrap_or(name);
    let module = name.strip_suffix(DELTA)?;
    TokenTable::of_name(module.strip_prefix(PREFIX).unwrap_or(module))
}

/// Rows of a table that stand in place of the base's.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenRows {
    /// Whose.
    pub table: TokenTable,
    /// Their tokens, ascending.
    pub ids: Vec<u32>,
    /// The rows, `[ids, width]`, row-major.
    pub values: Vec<f32>,
}

impl TokenRows {
    /// Rows of the given tokens, in the order of the tokens.
    pub(crate) fn sorted(table: TokenTable, ids: &[u32], values: &[f32]) -> Self {
        let width = values.len() / ids.len().max(1);
        let mut order: Vec<usize> = (0..ids.len()).collect();
        order.sort_by_key(|&i| ids[i]);
        let rows = order
            .iter()
            .flat_map(|&i| &values[i * width..(i + 1) * width]);
        Self {
            table,
            values: rows.copied().collect(),
            ids: order.iter().map(|&i| ids[i]).collect(),
        }
    }

    /// Values of a row.
    #[must_use]
    pub fn width(&self) -> usize {
        self.values.len() / self.ids.len().max(1)
    }
}

/// Why a list of tokens cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum BadTokens {
    /// It is no list of different ids, nor several of them.
    List(String),
    /// It is for a module that is no table of tokens.
    Module(String),
}

/// Whose rows an adapter has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrainableTokens {
    lists: Vec<(TokenTable, Vec<u32>)>,
}

impl TrainableTokens {
    /// Of tables with the tokens of their rows.
    #[must_use]
    pub fn new(lists: Vec<(TokenTable, Vec<u32>)>) -> Self {
        Self { lists }
    }

    /// Each table with the tokens of its rows, in the order of the rows.
    pub fn iter(&self) -> impl Iterator<Item = (TokenTable, &[u32])> {
        self.lists.iter().map(|(table, ids)| (*table, &**ids))
    }

    /// The tokens of one table's rows.
    #[must_use]
    pub fn get(&self, table: TokenTable) -> Option<&[u32]> {
        self.iter().find(|it| it.0 == table).map(|(_, ids)| ids)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lists.is_empty()
    }

    pub(crate) fn read(value: &Value) -> Result<Self, BadTokens> {
        let refuse = |value: &Value| BadTokens::List(json::shorten(value));
        let ids = |list: &Value| -> Option<Vec<u32>> {
            let id = |id: &Value| id.as_u64().and_then(|id| u32::try_from(id).ok());
            let ids: Vec<u32> = list.as_array()?.iter().map(id).collect::<Option<_>>()?;
            let mut sorted = ids.clone();
            sorted.sort_unstable();
            sorted.dedup();
            (sorted.len() == ids.len()).then_some(ids)
        };
        let lists = match value {
            Value::Null => Vec::new(),
            Value::Array(_) => {
                let ids = ids(value).ok_or_else(|| refuse(value))?;
                vec![(TokenTable::Embedding, ids)]
            }
            Value::Object(modules) => {
                let mut lists: Vec<(TokenTable, Vec<u32>)> = Vec::new();
                for (module, list) in modules {
                    let Some(table) = TokenTable::of_name(module) else {
                        return Err(BadTokens::Module(module.clone()));
                    };
                    if lists.iter().any(|(other, _)| *other == table) {
                        return Err(refuse(value));
                    }
                    lists.push((table, ids(list).ok_or_else(|| refuse(value))?));
                }
                lists.sort_by_key(|(table, _)| *table);
                lists
            }
            _ => return Err(refuse(value)),
        };
        let lists = lists.into_iter().filter(|(_, ids)| !ids.is_empty());
        Ok(Self::new(lists.collect()))
    }

    /// As PEFT writes it: a list where only the embedding has rows.
    pub(crate) fn to_json(&self) -> Value {
        match &self.lists[..] {
            [] => Value::Null,
            [(TokenTable::Embedding, ids)] => json!(ids),
            lists => {
                let lists = lists.iter();
                let lists = lists.map(|(table, ids)| (table.name().to_owned(), json!(ids)));
                Value::Object(lists.collect())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_tokens_read_back() {
        for value in [
            json!(null),
            json!([7, 3]),
            json!({"lm_head": [1]}),
            json!({"embed_tokens": [5], "lm_head": [5, 6]}),
        ] {
            assert_eq!(TrainableTokens::read(&value).unwrap().to_json(), value);
        }
        let read = |value: Value| TrainableTokens::read(&value);
        assert!(read(json!([])).unwrap().is_empty());
        let tokens = read(json!({"model.embed_tokens": [2]})).unwrap();
        assert_eq!(tokens.get(TokenTable::Embedding), Some(&[2][..]));
        for value in [
            json!([1, 1]),
            json!([-1]),
            json!("all"),
            json!({"lm_head": 3}),
        ] {
            assert!(matches!(read(value), Err(BadTokens::List(_))));
        }
        let other = read(json!({"wte": [3]}));
        assert_eq!(other, Err(BadTokens::Module("wte".to_owned())));
    }

    #[test]
    fn rows_go_by_their_tokens() {
        let rows = TokenRows::sorted(TokenTable::Head, &[9, 2], &[1.0, 2.0, 3.0, 4.0]);
        assert_eq!((rows.ids.as_slice(), rows.width()), (&[2, 9][..], 2));
        assert_eq!(rows.values, [3.0, 4.0, 1.0, 2.0]);
        let key = key(TokenTable::Embedding);
        assert_eq!(of_key(&key), Some(TokenTable::Embedding));
        assert_eq!(of_key("lm_head.weight"), None);
    }
}
