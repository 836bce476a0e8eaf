//! `[tokens]`: tokens that the model does not have, and those whose rows are trained.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::names::TokenInit;
use crate::reader::Reader;

const ADD: &str = "tokens.add";
const INIT: &str = "tokens.init";
const DESCRIPTIONS: &str = "tokens.descriptions";

/// `[tokens]`: tokens to add to the vocabulary.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct TokensRecipe {
    /// Their texts, each once, in the order of their ids.
    pub add: Vec<String>,
    /// Where their rows start.
    pub init: TokenInit,
    /// What some of them mean.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub descriptions: BTreeMap<String, String>,
}

impl TokensRecipe {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.add.is_empty()
    }
}

/// Beside tokens that are trained anyway, in a run that may go on from an adapter.
pub(crate) fn tokens(reader: &mut Reader<'_>, trained: &[String], goes_on: bool) -> TokensRecipe {
    let add = texts(reader, ADD);
    let init: TokenInit = reader.value(INIT);
    let descriptions: Option<BTreeMap<String, String>> = reader.optional(DESCRIPTIONS);
    let alone = [
        (INIT, init != TokenInit::Mean),
        (DESCRIPTIONS, descriptions.is_some()),
    ];
    for (key, _) in alone
        .into_iter()
        .filter(|(_, said)| *said && add.is_empty())
    {
        let instead = "write which tokens are new in tokens.add, or take it out";
        reader.conflict(key, "no `tokens.add`", instead);
    }
    if goes_on && !add.is_empty() {
        let instead = "rows of tokens are not gone on from: merge the adapter, and add the tokens to what that gives";
        reader.conflict(ADD, "`lora.adapter`", instead);
    }
    if add.iter().any(|token| trained.contains(token)) {
        let instead = "rows of new tokens are trained anyway; take those out of the list";
        reader.conflict("lora.trainable_tokens", "`tokens.add`", instead);
    }
    let descriptions = descriptions.unwrap_or_default();
    if !add.is_empty() && reader.has(DESCRIPTIONS) {
        let unknown = descriptions
            .iter()
            .any(|(token, text)| !add.contains(token) || text.is_empty());
        if init != TokenInit::Subtokens {
            let instead = "write init = \"subtokens\", or take the descriptions out";
            reader.conflict(DESCRIPTIONS, "tokens.init = \"mean\"", instead);
        } else if unknown {
            reader.reject(DESCRIPTIONS, "a table of tokens of tokens.add and texts");
        }
    }
    TokensRecipe {
        add,
        init,
        descriptions,
    }
}

/// Tokens of a list, each once.
pub(crate) fn texts(reader: &mut Reader<'_>, key: &str) -> Vec<String> {
    let before = reader.problem_count();
    let Some(texts) = reader.optional::<Vec<String>>(key) else {
        return Vec::new();
    };
    let distinct: BTreeSet<&String> = texts.iter().collect();
    let sound = !distinct.contains(&String::new()) && distinct.len() == texts.len();
    if reader.problem_count() == before && (texts.is_empty() || !sound) {
        reader.reject(
            key,
            "texts of tokens, at least one, each once; leave it out for none",
        );
    }
    texts
}
