//! Why a run does not start, or ends.

use std::collections::BTreeMap;
use std::path::PathBuf;

use backdraft_comm::CommError;
use backdraft_data::DataError;
use backdraft_formats::FormatError;
use backdraft_journal::text::with_causes;
use backdraft_kernels::exchange::NcclError;
use backdraft_lora::{LoraConfigError, MergeError};
use backdraft_model::LoadError;
use backdraft_recipe::{Difference, ObjectiveKind};

use crate::checkpoint::CheckpointError;

/// What goes wrong where a hub data set is fetched.
pub type FetchError = Box<dyn std::error::Error + Send + Sync>;

/// The rows that an objective learns from.
const fn expected_rows(kind: ObjectiveKind) -> &'static str {
    match kind {
        ObjectiveKind::Sft => "rows to imitate",
        ObjectiveKind::Dpo
        | ObjectiveKind::Orpo
        | ObjectiveKind::Simpo
        | ObjectiveKind::Cpo
        | ObjectiveKind::Reward => "rows of format \"preference\"",
        ObjectiveKind::Kto => "rows of format \"unpaired\" or \"preference\"",
    }
}

/// One on each line, with its causes.
fn all(problems: &[CheckpointError]) -> String {
    let lines: Vec<String> = problems.iter().map(|p| with_causes(p)).collect();
    list(&lines)
}

/// One on each line.
fn list(items: &[impl std::fmt::Display]) -> String {
    items.iter().map(|item| format!("\n  {item}")).collect()
}

/// Why a run does not start, or ends.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// The output directory holds a run already.
    #[error("{}: the output directory already holds a run", path.display())]
    OutputExists {
        /// The directory.
        path: PathBuf,
    },
    /// The output directory holds a recipe of the user's, in whose place the run would put its copy.
    #[error(
        "{}: the run would put its copy of the recipe in place of this one, which you wrote",
        path.display()
    )]
    RecipeInOutput {
        /// The recipe.
        path: PathBuf,
    },
    /// The output directory is a file, or lies below one.
    #[error(
        "output_dir = {}: {} is a file; name a directory",
        path.display(),
        if path == file { "it".into() } else { file.to_string_lossy() }
    )]
    OutputIsFile {
        /// The directory.
        path: PathBuf,
        /// The file.
        file: PathBuf,
    },
    /// The output directory cannot be written to.
    #[error("cannot write to the output directory {}", path.display())]
    OutputDir {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Another process writes to the output directory.
    #[error(
        "{}: another run writes to this directory ({})",
        path.display(),
        if owner.is_empty() { "which does not say who it is" } else { owner }
    )]
    Locked {
        /// The directory.
        path: PathBuf,
        /// The process and its machine.
        owner: String,
    },
    /// There is nothing to go on with.
    #[error("{}: there is no checkpoint and no recipe.toml of a run", path.display())]
    NothingToResume {
        /// The output directory.
        path: PathBuf,
    },
    /// Every checkpoint is corrupt or incomplete.
    #[error("{}: every checkpoint is corrupt or incomplete:{}", path.display(), all(problems))]
    NoGoodCheckpoint {
        /// The output directory.
        path: PathBuf,
        /// What is wrong with each, the newest first.
        problems: Vec<CheckpointError>,
    },
    /// A checkpoint that cannot be gone on from.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The run to go on with is another one by now.
    #[error("{}: the recipe or its files differ from the checkpoint's:{}", path.display(), list(differences))]
    Changed {
        /// The checkpoint.
        path: PathBuf,
        /// What differs, checkpoint → now.
        differences: Vec<Difference>,
    },
    /// A change that a checkpoint cannot follow.
    #[error("a run cannot be resumed with another {} ({difference})", difference.key)]
    CannotChange {
        /// The key, and its values.
        difference: Difference,
    },
    /// The sweep to go on with is another one by now.
    #[error("{}: the recipe or its files differ from the sweep's:{}", path.display(), list(differences))]
    SweepChanged {
        /// The sweep's file.
        path: PathBuf,
        /// What differs, then → now.
        differences: Vec<Difference>,
    },
    /// A recipe whose base is not the one that is in memory.
    #[error(
        "the recipe needs another base than the one that was read: of {model}, or kept in another precision"
    )]
    OtherBase {
        /// The model that was read.
        model: String,
    },
    /// A key that no recipe has.
    #[error(
        "unknown key `{key}`{}",
        nearest.as_ref().map_or(String::new(), |n| format!("; did you mean `{n}`?"))
    )]
    UnknownKey {
        /// The key.
        key: String,
        /// The one that was most likely meant.
        nearest: Option<String>,
    },
    /// The loss or the gradient is no number any more.
    #[error("step {step}: the {what} is {value}; its rows are {}", places(rows))]
    NotFinite {
        /// The optimiser step, counted from 1.
        step: usize,
        /// `loss` or `gradient norm`.
        what: &'static str,
        /// NaN or an infinity.
        value: f64,
        /// The training files, with the lines that the step consisted of.
        rows: BTreeMap<PathBuf, Vec<usize>>,
        /// The last checkpoint before it.
        last_good: Option<PathBuf>,
    },
    /// Something is wrong with rows; the error names their file.
    #[error(transparent)]
    Rows(Box<DataError>),
    /// Something is wrong with rows or a tokenizer, and the error does not name the file.
    #[error("cannot use {}", path.display())]
    Data {
        /// The file, or what the rows are known by.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<DataError>,
    },
    /// The model cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A file cannot be read or written.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// A model whose own tensors were trained cannot be written.
    #[error(transparent)]
    Write(#[from] MergeError),
    /// Tokens are added to tables that are not trained.
    #[error(
        "tokens.add: rows of `{module}` are added, which trainable does not take; name it there, such as trainable = \
         [\"embed_tokens\", \"lm_head\", …], or write trainable = \"all\""
    )]
    TokensNotTrained {
        /// The table.
        module: &'static str,
    },
    /// The settings of the adapter do not fit.
    #[error(transparent)]
    Lora(#[from] LoraConfigError),
    /// The adapter that the recipe goes on from does not fit the model.
    #[error("lora.adapter: cannot go on from {}", path.display())]
    Adapter {
        /// The adapter.
        path: PathBuf,
        /// What does not fit.
        source: Box<LoadError>,
    },
    /// The adapter that the recipe goes on from lies where the run would put its own.
    #[error(
        "lora.adapter: {} lies in output_dir, whose run the new one would replace; name another output_dir",
        path.display()
    )]
    AdapterInOutput {
        /// The adapter.
        path: PathBuf,
    },
    /// The adapter that the recipe goes on from has a factor that makes every output NaN.
    #[error(
        "lora.adapter: {}: the factors of `{module}` hold NaN or infinity: the training diverged, or the file is damaged; \
         take an earlier checkpoint",
        path.display()
    )]
    AdapterNotFinite {
        /// The adapter.
        path: PathBuf,
        /// The module.
        module: String,
    },
    /// The adapter that a run began with, which it compares answers with, cannot be read any more.
    #[error(
        "lora.adapter: {} is not there as it was when the run began, and its answers are compared with it; put it back, or \
         begin a new run",
        path.display()
    )]
    StartGone {
        /// The adapter.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<FormatError>,
    },
    /// The adapter that a run began with, which it compares answers with, has become another one.
    #[error(
        "lora.adapter: {} has changed since the run began, and its answers are compared with what it was (factors {}…, now \
         {}…); put it back, or begin a new run",
        path.display(),
        &was[..was.len().min(12)],
        &now[..now.len().min(12)]
    )]
    StartChanged {
        /// The adapter.
        path: PathBuf,
        /// SHA-256 over its factors when the run began.
        was: String,
        /// That of now.
        now: String,
    },
    /// A token whose row is to be trained, and that is not there.
    #[error(
        "lora.trainable_tokens and tokens.add: the model has no token {token:?}; write a new one into tokens.add, and take the \
         model through `tokens::with_tokens` before its rows are read"
    )]
    NoToken {
        /// The token's text.
        token: String,
    },
    /// A text that the row of a new token cannot start from.
    #[error("tokens.init: the row of {token:?} cannot start from its text: {reason}")]
    TokenText {
        /// The token's text.
        token: String,
        /// Why not.
        reason: String,
    },
    /// The adapter that the recipe goes on from has other modules than its settings say.
    #[error(
        "lora.adapter: {} {found} of rank {rank} for `{module}`, and the settings of the adapter say otherwise: was it \
         made for a model of other layers, or did it change?",
        path.display()
    )]
    AdapterModules {
        /// The adapter.
        path: PathBuf,
        /// `has factors` or `lacks factors`.
        found: &'static str,
        /// Their rank.
        rank: usize,
        /// The module.
        module: String,
    },
    /// The recipe cannot be written down.
    #[error(transparent)]
    Recipe(#[from] backdraft_recipe::RecipeError),
    /// A hub data set cannot be had.
    #[error("cannot get the data set {name}")]
    Fetch {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: FetchError,
    },
    /// The chat template of the recipe cannot be read.
    #[error("data.chat_template: cannot read {}", path.display())]
    ChatTemplate {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// There is no chat template, or none that could render anything.
    #[error(transparent)]
    Template(backdraft_data::TemplateError),
    /// The chat template of the recipe belongs to another family of models.
    #[error(
        "the chat template writes {}, which this model does not have as tokens: it belongs to models of another family, and the tuned model would not know where to stop",
        markers.join(", ")
    )]
    ForeignTemplate {
        /// Texts that stand for special tokens elsewhere.
        markers: Vec<String>,
    },
    /// A prompt template without rows that it is for.
    #[error(
        "data.prompt_template: expected alpaca rows beside it, found {}; take it out, or name the format",
        found.join(", ")
    )]
    NoAlpaca {
        /// How each source's format is known.
        found: Vec<String>,
    },
    /// Rows that the objective cannot learn from.
    #[error(
        "objective.kind = \"{kind}\" learns from {}, and {source_name} has {found}",
        expected_rows(*kind)
    )]
    Objective {
        /// What is minimised.
        kind: ObjectiveKind,
        /// The source as the recipe names it.
        source_name: String,
        /// How its format is known.
        found: String,
    },
    /// Rows say how far apart their answers are, and the objective does not ask.
    #[error("{pairs} of the rows have a `margin`, which objective.kind = \"{kind}\" does not use")]
    UnusedMargins {
        /// What is minimised.
        kind: ObjectiveKind,
        /// How many have one.
        pairs: usize,
    },
    /// Rows without a loss of their own.
    #[error(
        "the rows are answers to compare (format \"preference\" or \"unpaired\"), whose mean loss means nothing; a run evaluates them while it trains (data.eval), in metrics.jsonl and report.html"
    )]
    ComparedRows,
    /// The prompt template of the recipe.
    #[error("data.prompt_template: {0}")]
    PromptTemplate(#[source] backdraft_data::TemplateError),
    /// A row is longer than the model can take.
    #[error(
        "max_seq_length = {actual} is longer than the model's max_position_embeddings = {expected}"
    )]
    TooLong {
        /// What the recipe says.
        actual: usize,
        /// What the model was made for.
        expected: usize,
    },
    /// A step needs more memory than there is, whatever is recomputed.
    #[error("{}{exhausted}", if *step > 1 { format!("step {step}: ") } else { String::new() })]
    OutOfMemory {
        /// The optimiser step, counted from 1.
        step: usize,
        /// What is missing, and what to change.
        exhausted: backdraft_plan::Exhausted,
    },
    /// A base that is to stay in the host's memory, and a device that layers do not come to.
    #[error("base = \"host\" needs a GPU that layers come to by CUDA; this is {device}")]
    HostBase {
        /// What it calls itself.
        device: String,
    },
    /// A base that is to stay in the host's memory, which has no room for it.
    #[error(
        "base = \"host\" keeps {} of the base in host memory, of which {} are free and {} can be used",
        backdraft_plan::bytes::size(*needed), backdraft_plan::bytes::size(*free),
        backdraft_plan::bytes::size(backdraft_plan::memory::usable(*free))
    )]
    HostMemory {
        /// Bytes that the matrices of its layers take.
        needed: u64,
        /// Bytes that the process could get.
        free: u64,
    },
    /// Fewer bits than the smallest formats take.
    #[error(
        "quantization.bits = {bits}: {} take more even where every projection gets the smallest; raise bits, or add a smaller format",
        formats.iter().map(|format| format.name()).collect::<Vec<_>>().join(", ")
    )]
    TooFewBits {
        /// What the recipe says.
        bits: f64,
        /// What may be dealt out.
        formats: Vec<backdraft_arch::Precision>,
    },
    /// The base does not fit into the memory that the recipe gives it.
    #[error(transparent)]
    BaseTooSmall(#[from] backdraft_recipe::BaseTooSmall),
    /// A plan of how the base is stored that cannot be used.
    #[error("quantization.plan: {0}")]
    GivenPlan(#[from] crate::adapt::GivenPlanError),
    /// A checkpoint without what its adapters began with.
    #[error(
        "{}: lora.init = \"pissa\" leaves adapters of twice the rank, and this one is not; was it made by this run?",
        path.display()
    )]
    NoStart {
        /// The checkpoint.
        path: PathBuf,
    },
    /// The model's files hold codes, from which nothing can be measured.
    #[error(
        "{key}: the model is stored in codes already, and this needs its unquantized weights; name the unquantized model, or take {key} out"
    )]
    StoredInCodes {
        /// The key that asks for it.
        key: &'static str,
    },
    /// The device does not compute in that type.
    #[error(
        "dtype = \"{dtype}\": {device} does not compute in it; write dtype = \"auto\" or \"f32\""
    )]
    Dtype {
        /// What was asked for.
        dtype: backdraft_recipe::DType,
        /// The device's name.
        device: String,
    },
    /// A number could not be read from the device.
    #[error("step {step}: the device failed: {message}")]
    Device {
        /// The optimiser step, counted from 1.
        step: usize,
        /// What the device said.
        message: String,
    },
    /// Fewer blocks than processes.
    #[error(
        "train.gradient_blocks = {blocks}, and {processes} processes share the run: {} of them would have nothing to do; start \
         fewer, or raise gradient_blocks, which gives other bits",
        processes - blocks
    )]
    FewBlocks {
        /// Blocks of the recipe.
        blocks: usize,
        /// Processes.
        processes: usize,
    },
    /// Two processes use one card.
    #[error(
        "ranks {} and {} both use the card {card}: give each its own, which LOCAL_RANK and CUDA_VISIBLE_DEVICES choose, or set \
         BACKDRAFT_SHARE_GPU=1 to have them share it", ranks[0], ranks[1]
    )]
    SharedGpu {
        /// Who, at least two.
        ranks: Vec<usize>,
        /// What the driver calls it.
        card: String,
    },
    /// The user wants NCCL, and it cannot be had.
    #[error("BACKDRAFT_EXCHANGE=nccl, and gradients cannot be exchanged through NCCL: {why}")]
    NoNccl {
        /// Why not.
        why: String,
    },
    /// A variable that says nothing we know.
    #[error("BACKDRAFT_EXCHANGE is {found:?}: expected nccl, host or auto")]
    ExchangeVariable {
        /// What it is.
        found: String,
    },
    /// Cards do not come together.
    #[error(transparent)]
    Nccl(#[from] NcclError),
    /// Something that one process does alone.
    #[error("{what} with several processes or gradient blocks is not supported in this version")]
    NotShared {
        /// What.
        what: &'static str,
    },
    /// A way to train the base that another type than bf16 does not allow.
    #[error(
        "{key} needs bf16 on this device: write dtype = \"bf16\", or take the key out where the device has none"
    )]
    NeedsBf16 {
        /// The key and what it says.
        key: &'static str,
    },
    /// The processes that share the run do not come together, or part.
    #[error(transparent)]
    Ranks(#[from] CommError),
    /// burn-train stopped the run.
    #[error("the run was stopped by an error: {message}")]
    Learner {
        /// What it said.
        message: String,
    },
}

/// `lines 1, 2 of a.jsonl and line 7 of b.jsonl`
fn places(rows: &BTreeMap<PathBuf, Vec<usize>>) -> String {
    let of_file = |(path, lines): (&PathBuf, &Vec<usize>)| {
        let mut lines = lines.clone();
        lines.sort_unstable();
        let word = if lines.len() == 1 { "line" } else { "lines" };
        let lines: Vec<String> = lines.iter().map(ToString::to_string).collect();
        format!("{word} {} of {}", lines.join(", "), path.display())
    };
    rows.iter().map(of_file).collect::<Vec<_>>().join(" and ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_listed_in_order() {
        let rows = BTreeMap::from([
            (PathBuf::from("a.jsonl"), vec![68, 9, 61]),
            (PathBuf::from("b.jsonl"), vec![7]),
        ]);
        assert_eq!(
            places(&rows),
            "lines 9, 61, 68 of a.jsonl and line 7 of b.jsonl"
        );
    }
}
