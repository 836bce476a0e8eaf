//! Tokens that a recipe adds to its model, and rows of tokens that it trains.

use std::collections::BTreeMap;

use backdraft_data::ChatTokenizer;
use backdraft_formats::{ModelSource, PeftDir, TokenTable};
use backdraft_lora::TrainedTokens;
use backdraft_model::CausalLm;
use backdraft_recipe::{Recipe, TokenInit};
use burn::tensor::{DType, Tensor};

use crate::data;
use crate::error::TrainError;

/// Rows that are summed at a time.
const ROWS: u32 = 4096;

/// The model that a recipe trains: with the tokens that it adds.
///
/// # Errors
/// [`FormatError::AddedTokens`](backdraft_formats::FormatError::AddedTokens) and its like: a token that the model has, a
/// model that cannot have more.
pub fn with_tokens(source: ModelSource, recipe: &Recipe) -> Result<ModelSource, TrainError> {
    let (source, _) = source.with_added_tokens(&recipe.tokens.add)?;
    Ok(source)
}

/// The tokenizer's files to lie beside the adapter of a recipe that adds tokens.
///
/// # Errors
/// A file that cannot be read.
pub(crate) fn files(
    recipe: &Recipe,
    source: &ModelSource,
) -> Result<Vec<(String, Vec<u8>)>, TrainError> {
    if recipe.tokens.is_empty() {
        return Ok(Vec::new());
    }
    let mut files = source.companion_files()?;
    files.retain(|(name, _)| PeftDir::TOKENIZER.contains(&name.as_str()));
    Ok(files)
}

/// Where the rows of a recipe's tokens start: new ones where it says, others as the base has them.
///
/// # Errors
/// A token that the tokenizer does not have, or `source` no row for: it has not been through [`with_tokens`]; a text that
/// has no tokens.
pub(crate) fn start(
    recipe: &Recipe,
    model: &CausalLm,
    (source, tokenizer): (&ModelSource, &ChatTokenizer),
) -> Result<Vec<TrainedTokens>, TrainError> {
    let (new, old) = (&recipe.tokens.add, &recipe.lora.trainable_tokens);
    if new.is_empty() && old.is_empty() {
        return Ok(Vec::new());
    }
    let id = |token: &String| {
        let id = tokenizer.token_to_id(token);
        let id = id.filter(|&id| (id as usize) < model.spec().vocab_size);
        id.ok_or_else(|| TrainError::NoToken {
            token: token.clone(),
        })
    };
    let mut ids: BTreeMap<u32, Option<&String>> = BTreeMap::new();
    for token in old {
        ids.insert(id(token)?, None);
    }
    for token in new {
        ids.insert(id(token)?, Some(token));
    }
    // New tokens come last, so what is before the first of them is the base's.
    let first = ids.iter().find(|(_, new)| new.is_some()).map(|(&id, _)| id);
    let parts = parts(recipe, source)?;
    let tables = match model.spec().tie_word_embeddings {
        true => &[TokenTable::Embedding][..],
        false => &TokenTable::ALL,
    };
    let trained = tables.iter().map(|&table| {
        let mean = match (first, recipe.tokens.init) {
            (Some(first), TokenInit::Mean) => Some(mean(model, table, 0..first)),
            _ => None,
        };
        let rows = ids.iter().map(|(&id, new)| match (new, &mean) {
            (None, _) => model.token_rows(table, &[id]).cast(DType::F32),
            (Some(_), Some(mean)) => mean.clone(),
            (Some(token), None) => {
                let parts = parts.get(*token).map_or(&[][..], Vec::as_slice);
                let rows = model.token_rows(table, parts).cast(DType::F32);
                rows.mean_dim(0)
            }
        });
        let keys: Vec<u32> = ids.keys().copied().collect();
        TrainedTokens::new(table, &keys, Tensor::cat(rows.collect(), 0))
    });
    Ok(trained.collect())
}

/// Tokens of the base that the texts of new ones are made of.
fn parts(recipe: &Recipe, source: &ModelSource) -> Result<BTreeMap<String, Vec<u32>>, TrainError> {
    let tokens = &recipe.tokens;
    if tokens.is_empty() || tokens.init != TokenInit::Subtokens {
        return Ok(BTreeMap::new());
    }
    // Without the new tokens, each of which would be one token.
    let base = data::tokenizer(&ModelSource::open(source.path())?)?;
    let parts = tokens.add.iter().map(|token| {
        let text = tokens.descriptions.get(token).unwrap_or(token);
        let ids = base.encode_rendered(text).map_err(|error| {
            let reason = error.to_string();
            TrainError::TokenText {
                token: token.clone(),
                reason,
            }
        })?;
        match ids.ids.is_empty() {
            true => Err(TrainError::TokenText {
                token: token.clone(),
                reason: format!("{text:?} has no tokens"),
            }),
            false => Ok((token.clone(), ids.ids)),
        }
    });
    parts.collect()
}

/// The mean of rows, in the order of their tokens.
fn mean(model: &CausalLm, table: TokenTable, ids: std::ops::Range<u32>) -> Tensor<2> {
    let count = ids.len();
    let ids: Vec<u32> = ids.collect();
    let sums = ids.chunks(ROWS as usize).map(|ids| {
        let rows = model.token_rows(table, ids).cast(DType::F32);
        rows.sum_dim(0)
    });
    let sum = sums.reduce(|sum, next| sum + next);
    let sum = sum.unwrap_or_else(|| unreachable!("new tokens follow others"));
    sum.div_scalar(count as f64)
}
