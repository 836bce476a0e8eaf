//! From keys and values as written to a checked [`Recipe`].

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use backdraft_arch::{
    AdapterStart, BaseHome, DeviceChoice, FourBitFormat, ModuleNames, Precision, Trainable,
};
use backdraft_data::{BuiltinTemplate, Format, Overlong, Supervision};
use backdraft_plan::ActivationPolicy;

use crate::bases::{Bases, Origin, is_hub_id};
use crate::data_format::DataFormat;
use crate::eval_metric::eval_metric;
use crate::kept;
use crate::mixing;
use crate::objective::objective;
use crate::precision::Bits;
use crate::problem::{Problem, ProblemKind};
use crate::raw::RawRecipe;
use crate::reader::Reader;
use crate::schedule::ScheduleKind;
use crate::scheduler::scheduler;
use crate::tokens;
use crate::tracker;
use crate::trainable;
use crate::whole;
use crate::{
    ByteSize, CacheRecipe, ChatTemplateRecipe, DataRecipe, Length, LoraRecipe, ObjectiveRecipe,
    Optimizer, QuantizationRecipe, Recipe, RowBatching, TrainRecipe, Warmup, adapter, groups,
    modules, sources,
};

pub(crate) fn resolve(
    raw: RawRecipe<'_>,
    problems: Vec<Problem>,
    (recipe, working_dir): (&Path, &Path),
    origin: Origin,
) -> Result<Recipe, Vec<Problem>> {
    let bases = Bases {
        recipe,
        working_dir,
    };
    let mut reader = Reader::new(raw, problems);
    let recipe = top(&mut reader, &bases, origin);
    let problems = reader.finish();
    if problems.is_empty() {
        Ok(recipe)
    } else {
        Err(problems)
    }
}

fn top(reader: &mut Reader<'_>, bases: &Bases<'_>, origin: Origin) -> Recipe {
    let load_in_4bit = reader.value("load_in_4bit");
    let load_in_8bit = reader.value("load_in_8bit");
    if load_in_4bit && load_in_8bit {
        reader.conflict(
            "load_in_8bit",
            "`load_in_4bit = true`",
            "keep the one you mean",
        );
    }
    let activation_policy: ActivationPolicy = reader.value("activation_policy");
    let memory_budget = reader.optional("memory_budget");
    if memory_budget.is_some() && activation_policy != ActivationPolicy::Smart {
        reader.conflict(
            "memory_budget",
            format!("activation_policy = \"{activation_policy}\""),
            "only \"smart\" goes by a budget; take one of the two out",
        );
    }
    let seed = |seed: &u64| i64::try_from(*seed).is_ok();
    let quantization = quantization(reader, bases, (load_in_4bit, load_in_8bit));
    let exact = match (load_in_4bit || load_in_8bit, quantization.keep_blocks) {
        (true, _) => None,
        (false, true) => Some("`keep_blocks = true`"),
        (false, false) => Some(DENSE),
    };
    let model = model(reader, bases);
    let trainable = trainable::trainable(reader);
    let lora = LoraRecipe {
        unused: trainable.is_full(),
        ..lora(reader, bases, exact, origin)
    };
    let tokens = tokens::tokens(reader, &lora.trainable_tokens, lora.adapter.is_some());
    let objective = objective(reader, &quantization, &lora);
    if objective.reference().is_some() && !(tokens.is_empty() && lora.trainable_tokens.is_empty()) {
        let key = match tokens.is_empty() {
            true => "lora.trainable_tokens",
            false => "tokens.add",
        };
        let other = format!("objective.kind = \"{}\"", objective.kind());
        let instead = "answers are compared with the base, which does not have these rows; train the tokens first, merge, and go on from that";
        reader.conflict(key, other, instead);
    }
    if objective.scores() && !tokens.is_empty() {
        let instead = "a reward model's adapter has no rows of tokens; train the tokens first, merge, and go on from that";
        reader.conflict("tokens.add", "objective.kind = \"reward\"", instead);
    }
    let (base, device) = (reader.value("base"), reader.value("device"));
    if base == BaseHome::Host {
        beside_host_base(reader, device, &trainable, &lora, &quantization);
    }
    let max_seq_length = reader.checked(
        "max_seq_length",
        "a whole number, 2 or more",
        |length: &usize| *length >= 2,
    );
    let data = data(reader, bases, max_seq_length);
    if objective != ObjectiveRecipe::Sft && data.batching == RowBatching::Padded {
        let instead =
            "answers are compared without padding; write batching = \"padding-free\" or \"packed\"";
        let other = format!("objective.kind = \"{}\"", objective.kind());
        reader.conflict("data.batching", other, instead);
    }
    let train = TrainRecipe {
        early_stopping_eval: early_stopping_eval(reader, &data),
        ..train(reader, &objective)
    };
    mixing::check(reader, &data, train.length);
    whole::check(reader, &lora, &objective, train.optimizer);
    trainable::check(
        reader,
        &trainable,
        (load_in_4bit, load_in_8bit),
        &quantization,
        (&objective, train.optimizer, train.loraplus_lr_ratio),
    );
    if lora.use_dora {
        without_dora(reader, &lora, &quantization, train.optimizer);
    }
    if objective != ObjectiveRecipe::Sft {
        only_sft(reader, objective, &train);
    }
    let dtype = reader.value("dtype");
    kept::check(reader, &trainable, &train, dtype);
    Recipe {
        objective,
        model,
        output_dir: path(reader, "output_dir", bases),
        seed: reader.checked("seed", "a whole number from 0 to 2^63 - 1", seed),
        dtype,
        load_in_4bit,
        load_in_8bit,
        max_seq_length,
        activation_policy,
        memory_budget,
        activation_offloading: reader.value("activation_offloading"),
        base,
        device,
        trainable,
        quantization,
        lora,
        tokens,
        data,
        train,
        tracker: tracker::tracker(reader),
        swept: Vec::new(),
    }
}

/// What does not go with a base that stays in the host's memory.
fn beside_host_base(
    reader: &mut Reader<'_>,
    device: DeviceChoice,
    trainable: &Trainable,
    lora: &LoraRecipe,
    quantization: &QuantizationRecipe,
) {
    const OTHER: &str = "`base = \"host\"`";
    if matches!(device, DeviceChoice::Cpu | DeviceChoice::Wgpu) {
        let instead = "layers come from the host's memory to a GPU by CUDA; take base out";
        reader.conflict("base", format!("`device = \"{device}\"`"), instead);
    }
    if trainable.is_full() {
        let instead = "what stays in the host's memory is frozen; train adapters, or take base out";
        reader.conflict("trainable", OTHER, instead);
    }
    if lora.init == AdapterStart::Pissa {
        let instead = "PiSSA changes the base, which would be on the device then; write init = \"default\", or take base out";
        reader.conflict("lora.init", OTHER, instead);
    }
    for key in quantization.dealing_keys() {
        let instead =
            "bits are dealt out anew while the base is on the device; take one of the two out";
        reader.conflict(key, OTHER, instead);
    }
}

/// What does not go with trained lengths of rows.
fn without_dora(
    reader: &mut Reader<'_>,
    lora: &LoraRecipe,
    quantization: &QuantizationRecipe,
    optimizer: Optimizer,
) {
    const OTHER: &str = "`lora.use_dora = true`";
    if !matches!(lora.init, AdapterStart::Default | AdapterStart::Orthogonal) {
        let instead = "DoRA starts at the lengths of the base's own rows; write init = \"default\", or take use_dora out";
        reader.conflict("lora.init", OTHER, instead);
    }
    for key in quantization.dealing_keys() {
        let instead = "dealing out bits changes the rows whose lengths DoRA starts from; take one of the two out";
        reader.conflict(key, OTHER, instead);
    }
    if optimizer == Optimizer::Muon {
        let instead =
            "Muon is for matrices, and lengths of rows are a vector; write optimizer = \"adamw\"";
        reader.conflict("train.optimizer", OTHER, instead);
    }
}

/// What belongs to plain fine-tuning alone.
fn only_sft(reader: &mut Reader<'_>, objective: ObjectiveRecipe, train: &TrainRecipe) {
    let keys = [
        (
            "train.label_smoothing_factor",
            train.label_smoothing_factor,
            "it smooths tokens, and comparisons have objective.label_smoothing; take it out, or write kind = \"sft\"",
        ),
        (
            "train.z_loss",
            train.z_loss,
            "answers are compared by their likelihoods alone; take it out, or write kind = \"sft\"",
        ),
        (
            "train.neftune_noise_alpha",
            train.neftune_noise_alpha,
            "answers are compared without noise; take it out, or write kind = \"sft\"",
        ),
    ];
    for (key, _, instead) in keys.into_iter().filter(|(_, value, _)| *value > 0.0) {
        let other = format!("objective.kind = \"{}\"", objective.kind());
        reader.conflict(key, other, instead);
    }
}

/// A path becomes absolute, a hub id stays as it is.
fn model(reader: &mut Reader<'_>, bases: &Bases<'_>) -> String {
    let before = reader.problem_count();
    let name: String = reader.required("model");
    if reader.problem_count() > before {
        return name;
    }
    let resolved = bases.of(&reader.place("model")).join(&name);
    let is_path = name.ends_with(".gguf") || name.starts_with(['.', '/']) || resolved.exists();
    if is_path && !name.is_empty() {
        return resolved.to_str().map_or(name, str::to_owned);
    }
    let looks_like_path = name.starts_with('~')
        || name.ends_with('/')
        || name.contains('\\')
        || name.matches('/').count() > 1;
    if looks_like_path && !is_hub_id(&name) {
        let problem = ProblemKind::NoSuchPath {
            key: "model".to_owned(),
            written: name.clone(),
            path: resolved,
        };
        reader.report(reader.place("model"), problem);
    } else if !is_hub_id(&name) {
        reader.reject(
            "model",
            "a hub id (org/name) or the path of a directory or .gguf file",
        );
    }
    name
}

fn path(reader: &mut Reader<'_>, key: &str, bases: &Bases<'_>) -> PathBuf {
    let name = reader.checked(key, "a path", |name: &String| !name.is_empty());
    bases.of(&reader.place(key)).join(name)
}

fn quantization(
    reader: &mut Reader<'_>,
    bases: &Bases<'_>,
    (load_in_4bit, load_in_8bit): (bool, bool),
) -> QuantizationRecipe {
    let quant_type: FourBitFormat = reader.value("quantization.quant_type");
    let block_size = reader.checked("quantization.block_size", "64 or 128", |size: &usize| {
        [64, 128].contains(size)
    });
    let double_quant: bool = reader.value("quantization.double_quant");
    // A run writes every key down, so that only another value than the default was meant.
    let four_bit = [
        ("quantization.quant_type", quant_type != FourBitFormat::Nf4),
        ("quantization.block_size", block_size != 64),
        ("quantization.double_quant", !double_quant),
    ];
    for (key, _) in four_bit
        .into_iter()
        .filter(|(_, meant)| load_in_8bit && *meant)
    {
        let instead = "8-bit weights have one scale for each row; take it out";
        reader.conflict(key, "`load_in_8bit = true`", instead);
    }
    let skip_modules: Vec<String> = reader.value("quantization.skip_modules");
    let keep_blocks = reader.value("quantization.keep_blocks");
    if keep_blocks {
        kept(reader, (load_in_4bit, load_in_8bit), &skip_modules);
    }
    let formats = formats(reader);
    QuantizationRecipe {
        bits: bits(reader, (load_in_4bit, keep_blocks), quant_type),
        base_memory: base_memory(reader, (load_in_4bit, keep_blocks), quant_type),
        plan: stored_plan(reader, (load_in_4bit, keep_blocks), bases),
        quant_type,
        block_size,
        double_quant,
        skip_modules,
        keep_blocks,
        formats,
        adapt_at: adapt_at(reader),
        calibration_tokens: reader.count("quantization.calibration_tokens"),
    }
}

/// What does not go with blocks that stay as the file has them.
fn kept(reader: &mut Reader<'_>, (four, eight): (bool, bool), skip_modules: &[String]) {
    const KEY: &str = "quantization.keep_blocks";
    for (asked, key) in [(four, "load_in_4bit"), (eight, "load_in_8bit")] {
        if asked {
            let instead =
                "blocks stay as the file has them, or are quantized anew; keep the one you mean";
            reader.conflict(KEY, format!("`{key} = true`"), instead);
        }
    }
    if skip_modules != ["lm_head"] {
        let instead = "what has blocks in the file keeps them; take skip_modules out";
        reader.conflict("quantization.skip_modules", "`keep_blocks = true`", instead);
    }
}

fn bits(reader: &mut Reader<'_>, loads: (bool, bool), quant_type: FourBitFormat) -> Option<Bits> {
    const KEY: &str = "quantization.bits";
    let bits = reader.optional(KEY)?;
    around_nf4(reader, KEY, loads, quant_type);
    if matches!(bits, Bits::Mean(bits) if !(1.0..=16.0).contains(&bits)) {
        reader.reject(
            KEY,
            "a number of bits from the least of `formats`, such as 4.5, to 16, or \"auto\"",
        );
    }
    Some(bits)
}

fn base_memory(
    reader: &mut Reader<'_>,
    loads: (bool, bool),
    quant_type: FourBitFormat,
) -> Option<ByteSize> {
    const KEY: &str = "quantization.base_memory";
    let size = reader.optional(KEY)?;
    around_nf4(reader, KEY, loads, quant_type);
    if reader.has("quantization.bits") {
        let instead = "both say how much the base may take; keep the one you mean";
        reader.conflict(KEY, "`quantization.bits`", instead);
    }
    Some(size)
}

/// Refuses `key` where the base is not in NF4 to begin with.
fn around_nf4(
    reader: &mut Reader<'_>,
    key: &str,
    (load_in_4bit, keep_blocks): (bool, bool),
    quant_type: FourBitFormat,
) {
    if keep_blocks {
        let instead = "precision is dealt out from unquantized weights, not from blocks; take one of the two out";
        reader.conflict(key, "`keep_blocks = true`", instead);
    } else if !load_in_4bit {
        let instead = "add load_in_4bit = true, or take the key out";
        reader.conflict(key, "`load_in_4bit = false`", instead);
    } else if quant_type != FourBitFormat::Nf4 {
        let instead = "precision is dealt out around NF4; take one of the two out";
        reader.conflict(key, format!("quant_type = \"{quant_type}\""), instead);
    }
}

fn stored_plan(reader: &mut Reader<'_>, loads: (bool, bool), bases: &Bases<'_>) -> Option<PathBuf> {
    const KEY: &str = "quantization.plan";
    if !reader.has(KEY) {
        return None;
    }
    around_nf4(reader, KEY, loads, FourBitFormat::Nf4);
    Some(path(reader, KEY, bases))
}

fn formats(reader: &mut Reader<'_>) -> Vec<Precision> {
    const KEY: &str = "quantization.formats";
    let before = reader.problem_count();
    let formats: Vec<Precision> = reader.list(KEY);
    let distinct: BTreeSet<&str> = formats.iter().map(|format| format.name()).collect();
    if reader.problem_count() == before && (formats.is_empty() || distinct.len() < formats.len()) {
        reader.reject(
            KEY,
            "at least one of nf3, nf4, nf5, nf6 and int8, each once",
        );
    }
    formats
}

fn adapt_at(reader: &mut Reader<'_>) -> Vec<f64> {
    const KEY: &str = "quantization.adapt_at";
    let before = reader.problem_count();
    let shares: Vec<f64> = reader.value(KEY);
    let rising = shares.is_sorted_by(|a, b| a < b);
    let inside = shares.iter().all(|share| (0.0..1.0).contains(share));
    if reader.problem_count() == before && !(rising && inside && !shares.is_empty()) {
        reader.reject(KEY, "rising shares of the run, from 0.0 to below 1.0");
    }
    shares
}

/// What keeps a base from having lost anything, where nothing is quantised at all.
const DENSE: &str = "a base that is not quantized";

/// `exact` is what keeps the base from having lost anything that a start could give back.
fn lora(
    reader: &mut Reader<'_>,
    bases: &Bases<'_>,
    exact: Option<&'static str>,
    origin: Origin,
) -> LoraRecipe {
    let init: AdapterStart = reader.value("lora.init");
    if let Some(exact) = exact.filter(|_| init.gives_back()) {
        let instead = "there is no quantization error to give back; take one of the two out";
        reader.conflict("lora.init", exact, instead);
    }
    if init == AdapterStart::Pissa && exact != Some(DENSE) {
        let instead = "PiSSA takes its start out of the unquantized weights; over codes, \"qera\" starts where it matters most";
        reader.conflict("lora.init", "a quantized base", instead);
    }
    let adapter = adapter::directory(reader, bases);
    if adapter.is_some() && init != AdapterStart::Default {
        let instead = "an adapter that is gone on from starts where it is; take one of the two out";
        reader.conflict("lora.init", "`lora.adapter`", instead);
    }
    let target_modules = modules::targets(reader);
    let layers_to_transform = layers(reader);
    if layers_to_transform.is_some() && matches!(target_modules, ModuleNames::Pattern(_)) {
        let instead = "a pattern is for whole paths, which have the layer in them; take layers_to_transform out";
        let other = format!("target_modules = {target_modules}");
        reader.conflict("lora.layers_to_transform", other, instead);
    }
    let numbers = "a table of names or patterns and whole numbers of 1 or more, such as { q_proj = 8, 'layers\\.[0-3]\\..*' = 32 }";
    let amounts = "a table of names or patterns and numbers above 0, such as { q_proj = 16 }";
    let lora = LoraRecipe {
        adapter,
        init,
        rank: reader.count("lora.rank"),
        alpha: positive(reader, "lora.alpha"),
        dropout: below_one(reader, "lora.dropout"),
        use_rslora: reader.value("lora.use_rslora"),
        use_dora: reader.value("lora.use_dora"),
        target_modules,
        exclude_modules: modules::excluded(reader),
        bias: reader.value("lora.bias"),
        modules_to_save: whole::modules(reader),
        key_prefix: reader.value("lora.key_prefix"),
        layers_to_transform,
        rank_pattern: modules::pattern(reader, "lora.rank_pattern", numbers, |rank| *rank > 0),
        alpha_pattern: modules::pattern(reader, "lora.alpha_pattern", amounts, |alpha: &f64| {
            *alpha > 0.0 && alpha.is_finite()
        }),
        trainable_tokens: tokens::texts(reader, "lora.trainable_tokens"),
        unused: false,
    };
    if init == AdapterStart::Orthogonal {
        even_ranks(reader, &lora);
    }
    if lora.adapter.is_some() && !lora.trainable_tokens.is_empty() {
        let instead = "rows of tokens are not gone on from: merge the adapter, and train the tokens over what that gives";
        reader.conflict("lora.trainable_tokens", "`lora.adapter`", instead);
    }
    adapter::taken_over(reader, lora, origin)
}

/// Half of the directions are for A, and half for B.
fn even_ranks(reader: &mut Reader<'_>, lora: &LoraRecipe) {
    const OTHER: &str = "`lora.init = \"orthogonal\"`";
    let instead = "its factors share the directions of a rank between them, half and half: write an even rank";
    let odd = lora
        .rank_pattern
        .iter()
        .any(|(_, rank)| !rank.is_multiple_of(2));
    for (key, odd) in [
        ("lora.rank", !lora.rank.is_multiple_of(2)),
        ("lora.rank_pattern", odd),
    ] {
        if odd {
            reader.conflict(key, OTHER, instead);
        }
    }
}

fn layers(reader: &mut Reader<'_>) -> Option<Vec<usize>> {
    const KEY: &str = "lora.layers_to_transform";
    let before = reader.problem_count();
    let layers: Vec<usize> = reader.optional(KEY)?;
    let distinct: BTreeSet<usize> = layers.iter().copied().collect();
    if reader.problem_count() == before && (layers.is_empty() || distinct.len() < layers.len()) {
        reader.reject(
            KEY,
            "at least one layer, each once; leave it out for all layers",
        );
    }
    Some(layers)
}

fn data(reader: &mut Reader<'_>, bases: &Bases<'_>, max_seq_length: usize) -> DataRecipe {
    let format: DataFormat = reader.value("data.format");
    let train = sources::train(reader, bases);
    let own_formats = train.0.iter().any(|source| source.format.is_some());
    let overlong = reader.value("data.overlong");
    DataRecipe {
        mixing_temperature: mixing::temperature(reader, &train),
        train,
        eval: sources::eval(reader, bases),
        eval_sets: sources::eval_sets(reader, bases),
        format,
        fields: reader.optional("data.fields"),
        chat_template: chat_template(reader, bases),
        prompt_template: template(reader, format, own_formats),
        train_on: train_on(reader, format),
        overlong,
        split_overlap: split_overlap(reader, overlong, max_seq_length),
        batching: reader.value("data.batching"),
        skip_bad_rows: reader.value("data.skip_bad_rows"),
        cache: cache(reader, bases),
    }
}

/// Tokens that parts have in common, where rows are split.
fn split_overlap(
    reader: &mut Reader<'_>,
    overlong: Overlong,
    max_seq_length: usize,
) -> Option<usize> {
    const KEY: &str = "data.split_overlap";
    let overlap = reader.optional(KEY)?;
    if overlong != Overlong::Split {
        let other = format!("`overlong = \"{}\"`", overlong.name());
        let instead =
            "only rows that are split have parts; write overlong = \"split\", or take it out";
        reader.conflict(KEY, other, instead);
    } else if !(1..max_seq_length).contains(&overlap) {
        reader.reject(KEY, "a whole number, at least 1 and below max_seq_length");
    }
    Some(overlap)
}

/// A built-in name, else a file.
fn chat_template(reader: &mut Reader<'_>, bases: &Bases<'_>) -> Option<ChatTemplateRecipe> {
    const KEY: &str = "data.chat_template";
    let name = reader.optional::<String>(KEY)?;
    if let Some(builtin) = BuiltinTemplate::from_name(&name) {
        return Some(ChatTemplateRecipe::Builtin(builtin));
    }
    let file = bases.of(&reader.place(KEY)).join(&name);
    if !file.is_file() {
        reader.reject(
            KEY,
            "a file with Jinja text, or a name that `backdraft init --templates` lists",
        );
    }
    Some(ChatTemplateRecipe::File(file))
}

fn cache(reader: &mut Reader<'_>, bases: &Bases<'_>) -> CacheRecipe {
    const KEY: &str = "data.cache";
    let expected = "\"auto\", \"off\" or a folder";
    let name = reader.checked(KEY, expected, |name: &String| !name.is_empty());
    match name.as_str() {
        "auto" => CacheRecipe::Auto,
        "off" => CacheRecipe::Off,
        folder => CacheRecipe::Folder(bases.of(&reader.place(KEY)).join(folder)),
    }
}

fn template(reader: &mut Reader<'_>, format: DataFormat, own_formats: bool) -> Option<String> {
    const KEY: &str = "data.prompt_template";
    let template = reader.optional::<String>(KEY)?;
    let instead = match format {
        DataFormat::Auto | DataFormat::Named(Format::Alpaca) => return Some(template),
        // Whether any of them is alpaca shows when they are read.
        _ if own_formats => return Some(template),
        DataFormat::Named(Format::Messages | Format::Sharegpt) => {
            "chats use a chat template; take it out, or write chat_template"
        }
        DataFormat::Named(Format::PromptCompletion) => {
            "prompt and completion stand one behind the other; take it out"
        }
        DataFormat::Named(Format::Preference | Format::Unpaired) => {
            "prompts are texts as they are, or messages for a chat template; take it out"
        }
        DataFormat::Named(Format::Text) => "text is used as it is; take it out",
    };
    reader.conflict(KEY, format!("format = \"{format}\""), instead);
    None
}

fn train_on(reader: &mut Reader<'_>, format: DataFormat) -> Supervision {
    const KEY: &str = "data.train_on";
    let given = reader.optional(KEY);
    if format != DataFormat::Named(Format::Text) {
        return given.unwrap_or_default();
    }
    if given.is_some_and(|given| given != Supervision::All) {
        reader.conflict(
            KEY,
            "format = \"text\"",
            r#"text has no responses; write train_on = "everything""#,
        );
    }
    Supervision::All
}

fn train(reader: &mut Reader<'_>, objective: &ObjectiveRecipe) -> TrainRecipe {
    let length = length(reader);
    let learning_rate = positive(reader, "train.learning_rate");
    let lr_scheduler = scheduler(reader, learning_rate);
    let optimizer: Optimizer = reader.value("train.optimizer");
    let [adam_beta1, adam_beta2, adam_epsilon] = adam(reader, optimizer);
    let grad_accumulation_steps = reader.count("train.grad_accumulation_steps");
    if optimizer == Optimizer::ScheduleFreeAdamw {
        schedule_free(reader, lr_scheduler, adam_beta1);
    }
    TrainRecipe {
        micro_batch_size: reader.count("train.micro_batch_size"),
        grad_accumulation_steps,
        gradient_blocks: gradient_blocks(reader, grad_accumulation_steps),
        gradients: reader.value("train.gradients"),
        master_weights: reader.value("train.master_weights"),
        length,
        learning_rate,
        lr_scheduler,
        warmup: warmup(reader, lr_scheduler),
        optimizer,
        layer_lr_decay: reader.checked(
            "train.layer_lr_decay",
            "a number above 0, at most 1",
            |decay: &f64| *decay > 0.0 && *decay <= 1.0,
        ),
        loraplus_lr_ratio: positive(reader, "train.loraplus_lr_ratio"),
        label_smoothing_factor: below_one(reader, "train.label_smoothing_factor"),
        z_loss: not_negative(reader, "train.z_loss"),
        neftune_noise_alpha: not_negative(reader, "train.neftune_noise_alpha"),
        weight_decay: not_negative(reader, "train.weight_decay"),
        momentum: momentum(reader, optimizer),
        ema_decay: ema_decay(reader, optimizer),
        adam_beta1,
        adam_beta2,
        adam_epsilon,
        max_grad_norm: not_negative(reader, "train.max_grad_norm"),
        logging_steps: reader.count("train.logging_steps"),
        eval_steps: eval_steps(reader),
        early_stopping_patience: patience(reader),
        early_stopping_metric: eval_metric(reader, objective),
        early_stopping_eval: None,
        early_stopping_min_improvement: min_improvement(reader),
        save_steps: reader.count("train.save_steps"),
        save_total_limit: reader.count("train.save_total_limit"),
        sample_rows: sample_rows(reader, objective),
        groups: groups::groups(reader),
    }
}

/// Rows that are answered, which a model that scores answers cannot.
fn sample_rows(reader: &mut Reader<'_>, objective: &ObjectiveRecipe) -> usize {
    const KEY: &str = "train.sample_rows";
    let rows: usize = reader.value(KEY);
    if !objective.scores() {
        return rows;
    }
    if reader.has(KEY) && rows > 0 {
        let instead = "a reward model generates no answers; take it out";
        reader.conflict(KEY, "objective.kind = \"reward\"", instead);
    }
    0
}

/// Blocks of micro-batches; one that is always empty would leave a process without work.
fn gradient_blocks(reader: &mut Reader<'_>, passes: usize) -> usize {
    const KEY: &str = "train.gradient_blocks";
    let blocks = reader.count(KEY);
    if blocks > passes {
        let other = format!("grad_accumulation_steps = {passes}");
        reader.conflict(KEY, other, "each block needs a micro-batch: raise grad_accumulation_steps, and lower micro_batch_size by as much");
    }
    blocks
}

/// β₁, β₂ and ε.
fn adam(reader: &mut Reader<'_>, optimizer: Optimizer) -> [f64; 3] {
    let values = [
        below_one(reader, "train.adam_beta1"),
        below_one(reader, "train.adam_beta2"),
        positive(reader, "train.adam_epsilon"),
    ];
    let (betas, epsilon) = match optimizer {
        Optimizer::Adamw | Optimizer::Adamw8bit | Optimizer::ScheduleFreeAdamw => (true, true),
        Optimizer::Lion => (true, false),
        Optimizer::Sgd | Optimizer::Adafactor | Optimizer::Muon => (false, false),
    };
    // A run writes every key down, so that only another value than the default was meant.
    let unused = [
        ("train.adam_beta1", betas, values[0] != 0.9),
        ("train.adam_beta2", betas, values[1] != 0.999),
        ("train.adam_epsilon", epsilon, values[2] != 1e-8),
    ];
    for (key, _, _) in unused
        .into_iter()
        .filter(|(_, used, meant)| !used && *meant)
    {
        let other = format!("optimizer = \"{optimizer}\"");
        reader.conflict(key, other, "this optimizer has no such number; take it out");
    }
    values
}

/// What a running mean in the place of a schedule does not go with.
fn schedule_free(reader: &mut Reader<'_>, scheduler: ScheduleKind, beta1: f64) {
    const KEY: &str = "train.optimizer";
    let constant = matches!(
        scheduler,
        ScheduleKind::Constant {} | ScheduleKind::ConstantWithWarmup {}
    );
    if !constant {
        let other = format!("lr_scheduler = \"{}\"", scheduler.name());
        let instead =
            "its mean takes the place of a schedule; write lr_scheduler = \"constant_with_warmup\"";
        reader.conflict(KEY, other, instead);
    }
    if beta1 == 0.0 {
        let instead = "gradients would be taken where nothing is averaged; write adam_beta1 = 0.9";
        reader.conflict(KEY, "adam_beta1 = 0", instead);
    }
}

fn ema_decay(reader: &mut Reader<'_>, optimizer: Optimizer) -> Option<f64> {
    const KEY: &str = "train.ema_decay";
    let given = reader.has(KEY).then(|| {
        reader.checked(KEY, "a number between 0 and 1", |decay: &f64| {
            *decay > 0.0 && *decay < 1.0
        })
    });
    if given.is_some() && optimizer == Optimizer::ScheduleFreeAdamw {
        let instead = "what it learns is a mean already";
        reader.conflict(KEY, format!("optimizer = \"{optimizer}\""), instead);
    }
    given
}

fn momentum(reader: &mut Reader<'_>, optimizer: Optimizer) -> Option<f64> {
    const KEY: &str = "train.momentum";
    let default = match optimizer {
        Optimizer::Sgd => 0.9,
        Optimizer::Muon => 0.95,
        Optimizer::Adamw
        | Optimizer::Adamw8bit
        | Optimizer::Lion
        | Optimizer::Adafactor
        | Optimizer::ScheduleFreeAdamw => {
            let given: Option<f64> = reader.optional(KEY);
            if given.is_some() {
                let instead =
                    "only \"sgd\" and \"muon\" have one; adam_beta1 is AdamW's and Lion's";
                reader.conflict(KEY, format!("optimizer = \"{optimizer}\""), instead);
            }
            return None;
        }
    };
    let given = reader.has(KEY).then(|| below_one(reader, KEY));
    Some(given.unwrap_or(default))
}

fn length(reader: &mut Reader<'_>) -> Length {
    let both = reader.has("train.epochs") && reader.has("train.max_steps");
    if both {
        reader.conflict("train.max_steps", "`train.epochs`", "keep the one you mean");
    }
    let epochs = positive(reader, "train.epochs");
    if reader.has("train.max_steps") {
        return Length::MaxSteps(reader.count("train.max_steps"));
    }
    Length::Epochs(epochs)
}

fn warmup(reader: &mut Reader<'_>, kind: ScheduleKind) -> Warmup {
    let steps = reader.optional::<usize>("train.warmup_steps");
    if steps.is_some() && reader.has("train.warmup_ratio") {
        reader.conflict(
            "train.warmup_steps",
            "`train.warmup_ratio`",
            "keep the one you mean",
        );
    }
    let share = |ratio: &f64| (0.0..=1.0).contains(ratio);
    let ratio = reader.checked("train.warmup_ratio", "a number from 0 to 1", share);
    let warmup = steps.map_or(Warmup::Ratio(ratio), Warmup::Steps);
    if kind.warms_up() {
        return warmup;
    }
    refuse_warmup(reader, warmup, kind);
    Warmup::Steps(0)
}

/// transformers ignores a warm-up under `constant`; here nothing is ignored.
fn refuse_warmup(reader: &mut Reader<'_>, warmup: Warmup, kind: ScheduleKind) {
    let key = match warmup {
        Warmup::Steps(0) => return,
        Warmup::Ratio(0.0) => return,
        Warmup::Steps(_) => "train.warmup_steps",
        Warmup::Ratio(_) => "train.warmup_ratio",
    };
    if reader.has(key) {
        reader.conflict(
            key,
            format!("lr_scheduler = \"{}\"", kind.name()),
            r#"it has no warm-up; write lr_scheduler = "constant_with_warmup", or a warm-up of 0"#,
        );
    }
}

fn eval_steps(reader: &mut Reader<'_>) -> Option<usize> {
    const KEY: &str = "train.eval_steps";
    let steps = reader.count(KEY);
    if reader.has("data.eval") {
        return Some(steps);
    }
    if reader.has(KEY) {
        reader.conflict(
            KEY,
            "a missing `data.eval`",
            "name the file to evaluate in [data], or take it out",
        );
    }
    None
}

fn patience(reader: &mut Reader<'_>) -> Option<usize> {
    const KEY: &str = "train.early_stopping_patience";
    if !reader.has(KEY) {
        return None;
    }
    if !reader.has("data.eval") {
        let instead = "name the file to evaluate in [data], or take it out";
        reader.conflict(KEY, "a missing `data.eval`", instead);
    }
    Some(reader.count(KEY))
}

/// The set that evaluations are compared by, which has to be one of those that are measured.
fn early_stopping_eval(reader: &mut Reader<'_>, data: &DataRecipe) -> Option<String> {
    const KEY: &str = "train.early_stopping_eval";
    let name: String = reader.optional(KEY)?;
    if !data.eval_sets.contains_key(&name) {
        let instead = "name one of the sets there, or take it out: data.eval decides";
        let other = match data.eval_sets.is_empty() {
            true => "a missing `data.eval_sets`".to_owned(),
            false => {
                let names: Vec<&str> = data.eval_sets.keys().map(String::as_str).collect();
                format!("`data.eval_sets`, which has {}", names.join(", "))
            }
        };
        reader.conflict(KEY, other, instead);
    }
    Some(name)
}

fn min_improvement(reader: &mut Reader<'_>) -> Option<f64> {
    const KEY: &str = "train.early_stopping_min_improvement";
    let value = not_negative(reader, KEY);
    if reader.has("train.early_stopping_patience") {
        return Some(value);
    }
    if reader.has(KEY) {
        let instead = "say after how many evaluations the run ends, or take it out";
        reader.conflict(KEY, "a missing `train.early_stopping_patience`", instead);
    }
    None
}

fn positive(reader: &mut Reader<'_>, key: &str) -> f64 {
    reader.checked(key, "a number above 0", |x: &f64| *x > 0.0 && x.is_finite())
}

fn not_negative(reader: &mut Reader<'_>, key: &str) -> f64 {
    reader.checked(key, "a number, 0 or more", |x: &f64| {
        *x >= 0.0 && x.is_finite()
    })
}

fn below_one(reader: &mut Reader<'_>, key: &str) -> f64 {
    reader.checked(key, "a number from 0 to below 1", |x: &f64| {
        (0.0..1.0).contains(x)
    })
}
