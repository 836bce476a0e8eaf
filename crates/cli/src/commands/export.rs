//! `export`: a model, with its adapter, as GGUF files.

mod check;
mod general;
mod modelfile;
mod title;
mod told;
mod usual;

use std::path::{Path, PathBuf};
use std::time::Instant;

use backdraft_arch::Family;
use backdraft_data::ChatTokenizer;
use backdraft_formats::gguf::{
    Entry, GgufDecoder, GgufExport, GgufFileType, GgufFiles, VocabularyOptions, base_vocabulary,
    vocabulary, write_gguf_adapter,
};
use backdraft_formats::{Existing, FormatError, ModelSource, PeftDir, free_bytes, write_file};
use backdraft_lora::{MergeBase, gguf_decoder};
use backdraft_model::ModelSpec;
use backdraft_quant::QuantizationPlan;
use backdraft_recipe::ByteSize;
use clap::Args;

use self::check::Trained;
use self::general::Origin;
use self::told::megabytes;
use crate::args::DeviceArgs;
use crate::args::choice::{self, QuantizationArg};
use crate::commands::merge::{self, Base};
use crate::commands::{self, Context};
use crate::error::CliError;
use crate::noted;
use crate::session::Chosen;

/// Write a model, with an adapter merged in, as GGUF files for llama.cpp and Ollama
///
/// Blocks, mixtures of types by layer and metadata are those of llama.cpp's own tools. What was written is read back and
/// compared with the trained model: ids of texts must be equal, and the KL divergence of the next token and the share of equal
/// best tokens are printed.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  backdraft export --adapter outputs --to gguf --type q4_k_m,q8_0
  backdraft export --model HuggingFaceTB/SmolLM2-135M-Instruct --to gguf --type f16
  backdraft export --adapter outputs --to gguf --adapter-only")]
pub(crate) struct ExportArgs {
    /// Directory, .gguf file, or hub id (org/name) [default: the model that the adapter was trained over]
    #[arg(long, value_name = "MODEL")]
    pub(crate) model: Option<String>,

    /// PEFT adapter to merge: its directory, or the output directory of a run
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: Option<PathBuf>,

    /// Directory to write to
    #[arg(long, value_name = "DIR")]
    pub(crate) to: PathBuf,

    /// Types of the files, one file for each: f32, f16, bf16, q8_0, q6_k, q5_k_m, q5_k_s, q4_k_m, q4_k_s, q5_1, q5_0, q4_1, q4_0
    #[arg(long = "type", value_name = "TYPE,…", value_delimiter = ',', value_parser = file_type,
          required_unless_present = "adapter_only", conflicts_with = "adapter_only")]
    pub(crate) types: Vec<GgufFileType>,

    /// Write the adapter alone, for programs that put it on a base themselves
    #[arg(long, requires = "adapter")]
    pub(crate) adapter_only: bool,

    /// Name of the model and beginning of the files' names [default: the model's]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,

    /// Weights to merge the adapter into
    #[arg(long, value_enum, default_value = "original")]
    pub(crate) base: Base,

    /// How the base was quantized in training [default: as noted beside the adapter]
    #[arg(long, value_parser = choice::quantization(), value_name = "FORMAT")]
    pub(crate) quantization: Option<QuantizationArg>,

    /// Split files whose tensors take more than this
    #[arg(long, value_name = "SIZE")]
    pub(crate) split_size: Option<ByteSize>,

    /// Do not read the files back and compare them with the trained model
    #[arg(long)]
    pub(crate) no_check: bool,

    /// Rows to compare on: file, folder, glob, or hub data set [default: a few texts and chats]
    #[arg(long, value_name = "ROWS", conflicts_with = "no_check")]
    pub(crate) check_data: Option<String>,

    /// Replace files that exist
    #[arg(long)]
    pub(crate) force: bool,

    #[command(flatten)]
    pub(crate) device: DeviceArgs,
}

fn file_type(text: &str) -> Result<GgufFileType, String> {
    let known = GgufFileType::ALL.into_iter();
    let mut known = known.filter(|known| known.name().eq_ignore_ascii_case(text));
    known.next().ok_or_else(|| {
        let names = GgufFileType::ALL.map(GgufFileType::name);
        format!("expected one of {}", names.join(", "))
    })
}

/// The smallest part of a split file: below it there could be more parts than the format counts.
const MIN_PART: u64 = 1 << 20;

pub(crate) fn run(args: &ExportArgs, context: Context) -> Result<(), CliError> {
    let output = context.output;
    if let Some(ByteSize(size)) = args.split_size.filter(|size| size.0 < MIN_PART) {
        return Err(CliError::usage(format!(
            "--split-size is {size} bytes, expected at least 1MiB"
        )));
    }
    let chosen = Chosen::of(args.model.as_deref(), args.adapter.as_deref(), output)?;
    // A model that cannot be loaded should not be written either.
    let spec = backdraft_model::check(&chosen.source)?;
    let decoder = gguf_decoder(&spec)?;
    let model = Named::of(args, &chosen)?;
    let existing = match args.force {
        true => Existing::Replace,
        false => Existing::Refuse,
    };
    std::fs::create_dir_all(&args.to).map_err(FormatError::io(&args.to, "create"))?;
    match (&chosen.factors, args.adapter_only) {
        (Some(factors), true) => adapter_only(
            args,
            (&chosen, &model),
            (factors, &decoder),
            existing,
            context,
        ),
        (None, true) => Err(CliError::usage("there is no adapter")),
        (_, false) => whole(
            args,
            (&chosen, &model),
            (&spec, &decoder),
            existing,
            context,
        ),
    }
}

/// What a model is called.
pub(super) struct Named {
    /// The name in its files and of its files.
    pub(super) name: String,
    /// What the command line or the adapter calls the base.
    pub(super) base: String,
}

impl Named {
    fn of(args: &ExportArgs, chosen: &Chosen) -> Result<Self, CliError> {
        let noted = match (&args.model, &chosen.adapter) {
            (None, Some(adapter)) => adapter.model()?,
            _ => args.model.clone(),
        };
        let base = noted.unwrap_or_else(|| chosen.source.path().display().to_string());
        let last = Path::new(&base).file_name().unwrap_or_default();
        let last = last.to_string_lossy();
        let stem = last.strip_suffix(".gguf").unwrap_or(&last);
        let name = args.name.clone().unwrap_or_else(|| stem.to_owned());
        if name.is_empty() || name.contains(['/', '\\']) {
            return Err(
                CliError::usage(format!("{name:?} cannot begin the name of a file"))
                    .hint("--name names the model"),
            );
        }
        Ok(Self { name, base })
    }
}

fn adapter_only(
    args: &ExportArgs,
    (chosen, model): (&Chosen, &Named),
    (factors, decoder): (&PeftDir, &GgufDecoder),
    existing: Existing,
    context: Context,
) -> Result<(), CliError> {
    let path = args.to.join(format!("{}-lora.gguf", model.name));
    let modelfile = args.to.join("Modelfile");
    commands::new_file(&modelfile, args.force, &[])?;
    let origin = Origin::of(&chosen.source, chosen.adapter.as_ref())?;
    let general = general::of_adapter(model, &origin);
    let files = write_gguf_adapter(factors, decoder, &general, path, existing)?;
    let text = modelfile::of_adapter(chosen.source.path(), &files[0].path);
    write_file(&modelfile, text.as_bytes(), existing)?;
    told::adapter(factors, &files, &modelfile, context)
}

fn whole(
    args: &ExportArgs,
    (chosen, model): (&Chosen, &Named),
    (spec, decoder): (&ModelSpec, &GgufDecoder),
    existing: Existing,
    context: Context,
) -> Result<(), CliError> {
    let output = context.output;
    let source = &chosen.source;
    let tokenizer = chosen.tokenizer()?;
    let quantization = noted::plan(args.quantization, chosen.adapter.as_ref(), &chosen.source)?;
    let base = base(args, chosen, quantization.as_ref())?;
    let template = match &chosen.factors {
        Some(adapter) => PeftDir::chat_template(&adapter.path)?,
        None => None,
    };
    let vocabulary = metadata(source, spec, &tokenizer, template.as_deref())?;
    let origin = Origin::of(source, chosen.adapter.as_ref())?;
    let general = general::of_model(model, spec, (source, &origin), chosen.factors.is_some());
    let mut written = spec.clone();
    if let Some(adapter) = &chosen.factors {
        written.tie_word_embeddings &= !backdraft_lora::unties(source, adapter)?;
    }
    let tensors: Vec<_> = written.tensors().collect();
    let tensors = tensors
        .iter()
        .map(|tensor| (tensor.name.as_str(), tensor.shape.as_slice()));
    let plan =
        GgufExport::new(decoder, &general, vocabulary, tensors).map_err(FormatError::from)?;
    let targets = targets(args, model);
    let modelfile = args.to.join("Modelfile");
    let inputs = [source.path().to_owned()];
    for path in targets.iter().map(|(_, path)| path).chain([&modelfile]) {
        commands::new_file(path, args.force, &inputs)?;
    }
    check_room(args, &plan, &targets, context)?;
    let trained = match args.no_check {
        true => None,
        false => Some(Trained::of(args, chosen, quantization.as_ref(), context)?),
    };
    let part = args.split_size.map(|ByteSize(bytes)| bytes);
    let files = GgufFiles::create(&plan, targets, part, existing)?;
    let began = Instant::now();
    let factors = chosen.factors.as_ref();
    let report = backdraft_lora::export(source, base, factors, (&plan, files), |done, all| {
        if done % 50 == 0 || done == all {
            output.progress(format!(
                "{done} of {all} tensors, {:.0} s",
                began.elapsed().as_secs_f64()
            ));
        }
    })?;
    let first = report.files.first().and_then(|(_, files)| files.first());
    if let Some(first) = first {
        let text = modelfile::of_model(&first.path, &tokenizer);
        write_file(&modelfile, text.as_bytes(), existing)?;
    }
    told::whole(&report, trained.as_ref(), &modelfile, context)
}

fn base<'a>(
    args: &ExportArgs,
    chosen: &Chosen,
    plan: Option<&'a QuantizationPlan>,
) -> Result<MergeBase<'a>, CliError> {
    match (&chosen.adapter, args.base) {
        (Some(noted), base) => merge::base(base, &chosen.source, plan, noted),
        (None, Base::Original) => Ok(MergeBase::Original),
        (None, Base::Dequantized) => Err(CliError::usage(
            "--base dequantized is for merging an adapter, and none is named",
        )),
    }
}

/// The tokenizer's metadata: those of a GGUF base, or made from a `tokenizer.json`.
fn metadata(
    source: &ModelSource,
    spec: &ModelSpec,
    tokenizer: &ChatTokenizer,
    template: Option<&str>,
) -> Result<Vec<Entry>, CliError> {
    // The token that ends an answer comes before the others that the configuration names.
    let taught = tokenizer.end_of_turn().map(|end| end.token_id);
    let ends = taught
        .into_iter()
        .chain(tokenizer.eos_token_ids().iter().copied());
    let ends: Vec<u32> = ends.collect();
    let options = VocabularyOptions {
        rows: spec.vocab_size,
        ends: &ends,
        chat_template: template,
        keeps_merges: spec.family == Family::Gemma4,
    };
    let entries = match source {
        ModelSource::Gguf(gguf) => base_vocabulary(gguf.file().metadata(), &options),
        _ => vocabulary(&source.tokenizer()?, &options),
    };
    Ok(entries.map_err(FormatError::from)?)
}

/// One file for each type, in the order of the command line.
fn targets(args: &ExportArgs, model: &Named) -> Vec<(GgufFileType, PathBuf)> {
    let mut targets: Vec<(GgufFileType, PathBuf)> = Vec::new();
    for kind in &args.types {
        let name = format!("{}-{}.gguf", model.name, kind.name());
        if !targets.iter().any(|(known, _)| known == kind) {
            targets.push((*kind, args.to.join(name)));
        }
    }
    targets
}

/// Says how large the files will be, and refuses what the disk has no room for.
fn check_room(
    args: &ExportArgs,
    plan: &GgufExport,
    targets: &[(GgufFileType, PathBuf)],
    context: Context,
) -> Result<(), CliError> {
    let mut needed = 0;
    for (kind, _) in targets {
        let bytes = plan.bytes(*kind);
        needed += bytes;
        context
            .output
            .progress(format!("{}: {}", kind.name(), megabytes(bytes)));
    }
    match free_bytes(&args.to) {
        Some(free) if free < needed => Err(CliError::user(format!(
            "the files need {}, but {} has room for {}",
            megabytes(needed),
            args.to.display(),
            megabytes(free)
        ))
        .hint("free some space, name another directory with --to, or ask for fewer types")),
        _ => Ok(()),
    }
}
