//! What trials are made over: one base and its rows, read again only where a trial needs others.

use backdraft_recipe::Recipe;
use backdraft_train::data::{RunData, reads_the_same};
use backdraft_train::run::{Base, Start};
use burn::tensor::Device;

use crate::commands::train::{check_data, preflight};
use crate::error::CliError;
use crate::output::Output;
use crate::session;

/// A base and rows in memory.
pub(super) struct Bench {
    output: Output,
    device: Device,
    base: Option<Base>,
    /// And the recipe that they were read for.
    rows: Option<(Recipe, RunData)>,
    /// How often a base was read.
    pub(super) loads: usize,
}

impl Bench {
    /// Refuses what is known to be wrong with a recipe, and opens its device.
    pub(super) fn new(recipe: &Recipe, output: Output) -> Result<Self, CliError> {
        let device = preflight(recipe, &Start::New { force: true }, recipe.device, output)?;
        Ok(Self {
            output,
            device,
            base: None,
            rows: None,
            loads: 0,
        })
    }

    /// The rows of a recipe.
    pub(super) fn rows(&mut self, recipe: &Recipe) -> Result<RunData, CliError> {
        if let Some((_, data)) = self
            .rows
            .as_ref()
            .filter(|(was, _)| reads_the_same(was, recipe))
        {
            return Ok(data.dealt_as(recipe)?);
        }
        let source = session::open_trained(recipe, self.output)?;
        let data = check_data(recipe, &source, self.output)?;
        self.rows = Some((recipe.clone(), data.clone()));
        Ok(data)
    }

    /// Base and rows of a recipe.
    pub(super) fn ready(&mut self, recipe: &Recipe) -> Result<(Base, RunData), CliError> {
        let data = self.rows(recipe)?;
        if let Some(base) = &self.base {
            if base.serves(recipe, &data)? {
                return Ok((base.clone(), data));
            }
            self.output.progress("the next trial needs another base");
            // Two of them may not fit into the memory.
            self.base = None;
        }
        let source = session::open_trained(recipe, self.output)?;
        self.output
            .progress(format!("loading {}", source.path().display()));
        let base = Base::load(recipe, source, &data, &self.device)?;
        self.loads += 1;
        self.base = Some(base.clone());
        Ok((base, data))
    }
}
