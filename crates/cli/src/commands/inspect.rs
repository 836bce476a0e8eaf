//! `inspect`: what a file or directory contains, and what training it would cost.

mod adapter;
mod run;
mod shown;

use std::collections::BTreeMap;
use std::path::Path;

use backdraft_arch::{
    BaseHome, Heads, LayerSpec, Mixer, RotaryPairs, StatePrecision, TargetModule,
};
use backdraft_data::source::{DataFile, RowReader};
use backdraft_formats::ModelSource;
use backdraft_lora::LoraConfig;
use backdraft_lora::base::scheme;
use backdraft_model::{ModelSpec, RopeScaling};
use backdraft_plan::cost::{CostModel, Roofline};
use backdraft_plan::memory::Memory;
use backdraft_plan::tensors::MemoryModel;
use backdraft_plan::{ActivationPlan, Setup};
use backdraft_quant::QuantizationPlan;
use backdraft_recipe::Recipe;
use backdraft_train::data::{plain, tokenize_options};
use clap::Args;
use serde_json::{Map, Value, json};

use crate::args::choice::{self, QuantizationArg};
use crate::commands::Context;
use crate::error::CliError;
use crate::session;
use shown::Shown;

/// Show what a model, adapter, run, recipe or data file contains, and what training would take
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  backdraft inspect model.gguf
  backdraft inspect outputs/adapter
  backdraft inspect train.jsonl --model model.gguf")]
pub(crate) struct InspectArgs {
    /// Model (directory, .gguf file, hub id), adapter directory, output directory of a run, recipe or data file
    #[arg(value_name = "WHAT")]
    pub(crate) what: String,

    /// Model whose tokenizer is used to count tokens of a data file
    #[arg(long, value_name = "MODEL")]
    pub(crate) model: Option<String>,

    /// LoRA rank, for the memory estimate
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) rank: u64,

    /// Rows per micro-batch, for the memory estimate
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) micro_batch_size: u64,

    /// Quantization of the linear layers, for the memory estimate
    #[arg(long, value_parser = choice::quantization(), value_name = "FORMAT")]
    pub(crate) quantization: Option<QuantizationArg>,

    /// Tokens per row, for the memory estimate
    #[arg(long, value_name = "N", default_value_t = 2048, value_parser = clap::value_parser!(u64).range(2..))]
    pub(crate) max_seq_length: u64,
}

pub(crate) fn run(args: &InspectArgs, context: Context) -> Result<(), CliError> {
    let path = Path::new(&args.what);
    let found = if path.join("adapter_config.json").is_file() {
        adapter::adapter(path)?
    } else if let Some(found) = run::run(path)? {
        found
    } else if has_extension(path, &["toml"]) {
        recipe(path)?
    } else if DataFile::by_name(path).is_some() {
        data(path, args, context)?
    } else {
        model(args, context)?
    };
    context.output.record("inspected", &found.to_json())?;
    for line in found.lines() {
        context.output.line(line)?;
    }
    Ok(())
}

fn has_extension(path: &Path, extensions: &[&str]) -> bool {
    path.extension()
        .and_then(|e| e.to_str())
        .is_some_and(|e| extensions.contains(&e))
}

fn model(args: &InspectArgs, context: Context) -> Result<Shown, CliError> {
    let source = session::open_model(&args.what, context.output)?;
    let spec = backdraft_model::check(&source)?;
    let plan = args.quantization.map(|asked| asked.plan(&source));
    let plan = plan.transpose()?.flatten();
    let base = base(&source, &spec, plan.as_ref());
    let tokenizer = source.tokenizer().ok();
    let layers = spec.layers.iter();
    let adapter = layers.map(|layer| layer.adapter_params(args.rank as usize));
    let adapter = adapter.sum();
    let first = &spec.layers[0];
    let setup = Setup {
        spec: spec.clone(),
        lora: LoraConfig {
            rank: args.rank as usize,
            target_modules: spec.targets(),
            ..LoraConfig::default()
        },
        tokens: 0,
        quantization: plan,
        base: Some(base.bytes as u64),
        dense_element: 4,
        memory: MemoryModel::cpu(),
        optimizer: StatePrecision::F32.into(),
        micro_batch_size: args.micro_batch_size as usize,
        max_seq_length: args.max_seq_length as usize,
        texts_per_row: 1,
        grad_accumulation_steps: 1,
        releases: false,
        masters: true,
        host: 0,
        home: BaseHome::Device,
    };
    let step = setup.step();
    let all = ActivationPlan::keep_all(step.layers.len());
    let cost = CostModel::Roofline(Roofline::CPU);
    let memory = Memory::of(&step.predict(&all, setup.pass(), &cost), adapter);
    let kind = match source {
        ModelSource::Gguf(_) => "GGUF model",
        _ => "Hugging Face model",
    };
    let heads = format!(
        "{} query, {} key-value, of {}",
        first.num_attention_heads, first.num_key_value_heads, first.head_dim
    );
    let context_is = format!(
        "f32, {} rows of {} tokens, AdamW in f32, nothing recomputed",
        args.micro_batch_size, args.max_seq_length
    );
    let (rope, rope_words) = rope(&spec);
    let types = base
        .types
        .iter()
        .map(|(name, count)| format!("{count} {name}"));
    let types = types.collect::<Vec<_>>().join(", ");
    Ok(Shown::default()
        .fact("kind", kind)
        .fact("path", source.path().display().to_string())
        .count("parameters", base.params)
        .told("tensors", json!(base.types), types)
        .fact("model_type", spec.family.model_type())
        .all(other_parts(&source))
        .fact("layers", spec.layers.len())
        .fact("hidden_size", spec.hidden_size)
        .fact("intermediate_size", first.intermediate_size)
        .told("heads", first.num_attention_heads, heads)
        .told(
            "key_value_heads",
            first.num_key_value_heads,
            first.num_key_value_heads.to_string(),
        )
        .told("head_dim", first.head_dim, first.head_dim.to_string())
        .all(windows(&spec))
        .all(full_heads(&spec))
        .all(unturned(&spec))
        .all(turned(&spec))
        .all(delta_nets(&spec))
        .all(factors(&spec))
        .all(caps(&spec))
        .all(query_scaling(&spec))
        .fact("vocab_size", spec.vocab_size)
        .fact("tied_head", spec.tie_word_embeddings)
        .told("rope", rope, rope_words)
        .fact("max_position_embeddings", spec.max_position_embeddings)
        .fact(
            "chat_template",
            tokenizer.is_some_and(|t| t.chat_template.is_some()),
        )
        .fact("eos_token_ids", source.eos_token_ids()?)
        .count("adapter_parameters", adapter)
        .fact("adapter_rank", args.rank)
        .fact("quantized_as", base.quantized_as)
        .fact(
            "quantized_bits_per_weight",
            base.bits.map(|bits| (bits * 1e3).round() / 1e3),
        )
        .bytes("memory_base", memory.base)
        .bytes("memory_adapter", memory.adapters)
        .bytes("memory_optimizer", memory.optimizer)
        .bytes("memory_activations", memory.activations)
        .bytes("memory_total", memory.total())
        .fact("memory_is_for", context_is))
}

/// The sliding window, where there is one.
fn windows(spec: &ModelSpec) -> Value {
    let layers = spec.layers.iter();
    let windows: Vec<usize> = layers.filter_map(|layer| layer.sliding_window).collect();
    match windows.first() {
        Some(window) => json!({"sliding_window": window, "layers_with_window": windows.len()}),
        None => json!({}),
    }
}

/// Heads of layers without a window where they are others, by the names of `config.json`; and how many layers take keys for
/// values, where some do.
fn full_heads(spec: &ModelSpec) -> Value {
    let (first, layers) = (&spec.layers[0], spec.layers.iter());
    let mut full = layers.clone().filter(|it| it.sliding_window.is_none());
    let mut shown = match full.find(|it| it.head_dim != first.head_dim) {
        None => json!({}),
        Some(full) => json!({
            "global_head_dim": full.head_dim,
            "num_global_key_value_heads": full.num_key_value_heads,
        }),
    };
    let keys = layers.filter(|layer| layer.values.are_keys()).count();
    if keys > 0 {
        shown["layers_without_v_proj"] = keys.into();
    }
    shown
}

/// How many layers are without RoPE, where some are.
fn unturned(spec: &ModelSpec) -> Value {
    let plain = |layer: &&LayerSpec| layer.heads == Heads::Plain;
    match spec.layers.iter().filter(plain).count() {
        0 => json!({}),
        count => json!({"layers_without_rope": count}),
    }
}

/// What turns of a head, where that is not all of it by halves.
fn turned(spec: &ModelSpec) -> Value {
    let rope = &spec.rope;
    let mut shown = Map::new();
    let turning = match rope.scaling {
        RopeScaling::Proportional { pairs, .. } => 2 * pairs,
        _ => rope.rotary_dim,
    };
    if turning < rope.head_dim {
        shown.insert("rotary_dim".to_owned(), turning.into());
    }
    if rope.pairs == RotaryPairs::Neighbours {
        shown.insert("rotary_pairs".to_owned(), "neighbours".into());
    }
    shown.into()
}

/// How many layers are DeltaNets, where some are.
fn delta_nets(spec: &ModelSpec) -> Value {
    let layers = spec.layers.iter();
    let sizes = layers.filter_map(|layer| match layer.mixer {
        Mixer::DeltaNet(sizes) => Some(sizes),
        Mixer::Attention | Mixer::GatedAttention => None,
    });
    let sizes: Vec<_> = sizes.collect();
    match sizes.first() {
        Some(first) => json!({
            "layers_with_delta_net": sizes.len(),
            "linear_num_key_heads": first.num_key_heads,
            "linear_num_value_heads": first.num_value_heads,
        }),
        None => json!({}),
    }
}

/// The factors of families that have their own, by the names of `config.json`.
fn factors(spec: &ModelSpec) -> Value {
    let first = spec.layers.first();
    match first.and_then(|layer| Some((layer, layer.attention_multiplier?))) {
        Some((layer, attention_multiplier)) => json!({
            "embedding_multiplier": spec.embedding_multiplier,
            "attention_multiplier": attention_multiplier,
            "residual_multiplier": layer.residual_multiplier,
            "logits_scaling": spec.logits_scaling,
        }),
        None => json!({}),
    }
}

/// The caps of scores and logits, and the rotary base of layers with a window, where it is another, by the names of
/// `config.json`.
fn caps(spec: &ModelSpec) -> Value {
    let first = spec.layers.first();
    let caps = [
        (
            "attn_logit_softcapping",
            first.and_then(|layer| layer.attention_softcap),
        ),
        ("final_logit_softcapping", spec.logits_softcap),
        (
            "rope_local_base_freq",
            spec.local_rope.as_ref().map(|rope| rope.theta),
        ),
    ];
    let there = caps.into_iter().filter(|(_, value)| value.is_some());
    there
        .map(|(key, value)| (key.to_owned(), json!(value)))
        .collect()
}

/// The factor on queries, by the names of `config.json`.
fn query_scaling(spec: &ModelSpec) -> Value {
    match spec.query_scaling {
        None => json!({}),
        Some(scaling) => json!({
            "llama_4_scaling_beta": scaling.beta,
            "original_max_position_embeddings": scaling.original_max_position_embeddings,
        }),
    }
}

/// What a model has beside its decoder: its own type, and the tensors that are not loaded.
fn other_parts(source: &ModelSource) -> Value {
    match source.is_wrapped() {
        false => json!({}),
        true => json!({
            "part_of": source.whole_config().get("model_type"),
            "tensors_not_loaded": source.other_names().count(),
            "parts_not_loaded": source.other_parts(),
        }),
    }
}

/// The rotary embedding as `rope_parameters` has it, and in words.
fn rope(spec: &ModelSpec) -> (Value, String) {
    let theta = spec.rope.theta;
    let kind = spec.rope.scaling.name();
    let factor = match &spec.rope.scaling {
        RopeScaling::Default
        | RopeScaling::Factors(_)
        | RopeScaling::LongRope { .. }
        | RopeScaling::Proportional { factor: 1.0, .. } => None,
        RopeScaling::Linear { factor }
        | RopeScaling::Llama3 { factor, .. }
        | RopeScaling::Proportional { factor, .. }
        | RopeScaling::Yarn { factor, .. } => Some(*factor),
    };
    let scaled = match (factor, &spec.rope.scaling) {
        (Some(factor), _) => format!(", factor {factor}"),
        (
            None,
            RopeScaling::LongRope {
                original_max_position_embeddings: original,
                ..
            },
        ) => format!(", other frequencies beyond {original} tokens"),
        (None, _) => String::new(),
    };
    let value = json!({"rope_type": kind, "rope_theta": theta, "factor": factor});
    (value, format!("{kind}, theta {theta}{scaled}"))
}

/// What a base model holds, and what it takes once it is loaded.
#[derive(Default)]
struct Base {
    params: usize,
    bytes: usize,
    /// Tensors by the type that they are stored in.
    types: BTreeMap<String, usize>,
    /// How the quantised weights are kept in memory.
    quantized_as: Option<String>,
    /// What each of their values takes, scales included.
    bits: Option<f64>,
}

fn base(source: &ModelSource, spec: &ModelSpec, plan: Option<&QuantizationPlan>) -> Base {
    let mut base = Base::default();
    let (mut params, mut bytes) = (0usize, 0usize);
    let mut kept: BTreeMap<String, usize> = BTreeMap::new();
    for name in source.tensor_names() {
        let (Some(info), Some(stored)) = (source.tensor_info(name), source.stored_type(name))
        else {
            continue;
        };
        let values = info.checked_elements().unwrap_or(0);
        base.params += values;
        let module = name
            .strip_suffix(".weight")
            .filter(|module| TargetModule::of_path(module).is_some());
        let scheme = match source.bnb_kind(name).map(scheme) {
            Some(kind) => Some(kind),
            None if source.quantization().is_some() => None,
            None => plan.and_then(|plan| match module {
                Some(module) => plan.scheme_for(module),
                None => plan.scheme_for_table(spec, name, false),
            }),
        };
        *base.types.entry(stored).or_default() += 1;
        match (scheme, &info.shape[..]) {
            (Some(scheme), &[out, input]) => {
                let size = scheme.num_bytes([out, input]);
                (params, bytes) = (params + values, bytes + size);
                base.bytes += size;
                *kept.entry(scheme.to_string()).or_default() += size;
            }
            _ => base.bytes += 4 * values,
        }
    }
    // What takes most, where there are several.
    let most = kept.into_iter().max_by_key(|(_, bytes)| *bytes);
    base.quantized_as = most.map(|(scheme, _)| scheme);
    base.bits = (params > 0).then(|| 8.0 * bytes as f64 / params as f64);
    base
}

fn recipe(path: &Path) -> Result<Shown, CliError> {
    let recipe = Recipe::load(path, &[])?;
    let resolved = serde_json::to_value(&recipe).map_err(CliError::internal)?;
    Ok(Shown::default()
        .fact("kind", "recipe")
        .fact("path", path.display().to_string())
        .all(resolved))
}

fn data(path: &Path, args: &InspectArgs, context: Context) -> Result<Shown, CliError> {
    // Any name passes as a model where none is looked at.
    let model = args.model.as_deref().unwrap_or("none/named");
    let length = [("max_seq_length", args.max_seq_length.to_string())];
    let recipe = session::recipe_for(&args.what, model, length)?;
    let found = session::find_data(&recipe.data, context.output)?;
    let shown = Shown::default()
        .fact("kind", "data")
        .fact("path", path.display().to_string())
        .fact(
            "format",
            found.train.first().map(|found| found.format.clone()),
        );
    let Some(name) = &args.model else {
        let mut rows = 0usize;
        let options = tokenize_options(&recipe)?;
        for source in plain(&found.train) {
            for row in RowReader::new(&source.files, options.limits) {
                row?;
                rows += 1;
            }
        }
        return Ok(shown.fact("rows", rows).told(
            "tokens",
            Value::Null,
            "name a tokenizer with --model to count them".to_owned(),
        ));
    };
    let source = session::open_model(name, context.output)?;
    let tokenizer = backdraft_train::data::tokenizer(&source)?;
    let (rows, outcome) = session::load_rows(&recipe, &tokenizer, context.output)?;
    let mut lengths = rows.lengths();
    lengths.sort_unstable();
    let last = lengths.len().saturating_sub(1) as f64;
    let at = |share: f64| lengths.get((last * share) as usize);
    let tokens = json!({ "median": at(0.5), "p90": at(0.9), "max": at(1.0) });
    let report = serde_json::to_value(&outcome.report).map_err(CliError::internal)?;
    Ok(shown.all(report).fact("tokens_per_row", tokens))
}
