//! Adapters as PEFT saves them: which modules they have, their losses, logits and gradients, and what becomes of them
//! when they are saved, merged, and trained further.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use backdraft::burn::module::Module;
use backdraft::data::Batch;
use backdraft::formats::{
    Existing, HfDirWriter, ModelSource, PeftDir, PeftWriteOptions, TensorInfo,
};
use backdraft::lora::{Adapter, AdapterGrads, AdapterWeights, MergeBase, merge};
use backdraft::model::{CausalLm, Tokens};
use backdraft::plan::ActivationPlan;
use backdraft::plan::tensors::MemoryModel;
use backdraft::recipe::Recipe;
use backdraft::train::step::{MicroBatch, forward_backward};
use backdraft_testkit::golden::{self, Folder, Tensors};
use backdraft_testkit::tolerance::{TINY_GRADIENT, TINY_LOGITS, TINY_LOSS, TINY_NORM};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::compare::{by_name, norm, scalar, values};
use super::place;
use super::support::chain;

/// What a case says of itself.
#[derive(Deserialize)]
struct Golden {
    base: String,
    options: Map<String, Value>,
    plain_loss: f64,
    plain_grad_norm: f64,
    padded_loss: f64,
    padded_grad_norm: f64,
    trained_tensors: BTreeMap<String, Vec<usize>>,
    #[serde(default)]
    merged_weights_plain_loss: Option<f64>,
    #[serde(default)]
    vocab_size_after_resizing: Option<usize>,
}

/// An adapter that is supported, on its base.
struct Case {
    name: String,
    folder: Folder,
    golden: Golden,
    tensors: Tensors,
    base: ModelSource,
    model: CausalLm,
    original: std::rc::Rc<Folder>,
    _resized: Option<tempfile::TempDir>,
}

/// Options beyond the promise, and what the refusal has to name.
const REFUSED: [(&str, &str); 1] = [("init_lora_weights", "init_lora_weights")];

const RESIZED: &str = "resized";

/// The base with the rows that it had after `resize_token_embeddings`.
fn resized_base(base: &ModelSource, tensors: &Tensors, rows: usize) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let more = |name: &str| {
        let module = name.strip_suffix(".weight")?;
        let new = format!("resized.{}.new_rows", module.rsplit('.').next()?);
        tensors.has(&new).then(|| tensors.bytes(&new))
    };
    let infos = base.tensor_names().map(|name| {
        let mut info = base.tensor_info(name).unwrap().clone();
        if more(name).is_some() {
            info.shape[0] = rows;
        }
        info
    });
    let infos: Vec<TensorInfo> = infos.collect();
    let mut writer = HfDirWriter::create(
        directory.path().join(RESIZED),
        infos.clone(),
        Existing::Refuse,
    )
    .unwrap();
    let mut config = base.config().clone();
    config["vocab_size"] = rows.into();
    let config = config.to_string();
    writer.companion("config.json", config.as_bytes()).unwrap();
    for info in infos {
        let mut bytes = base.raw(&info.name).unwrap().bytes.into_owned();
        bytes.extend(more(&info.name).unwrap_or_default());
        writer.write(&info.name, &bytes).unwrap();
    }
    writer.finish().unwrap();
    directory
}

/// Tokens by their ids; recipes have them by their texts.
const TOKENS: &str = "trainable_token_indices";
/// What recipes do not have: a tied head stays tied.
const TIED: &str = "ensure_weight_tying";

impl Case {
    /// Every supported case; the others are refused as they should be.
    fn all() -> Vec<Self> {
        let bases = golden::folders("adapters", "config.json").into_iter();
        let bases: BTreeMap<String, _> = bases
            .map(|base| (base.name(), std::rc::Rc::new(base)))
            .collect();
        let cases = golden::folders("adapters", "adapter_config.json").into_iter();
        cases.filter_map(|case| Self::open(case, &bases)).collect()
    }

    fn open(folder: Folder, bases: &BTreeMap<String, std::rc::Rc<Folder>>) -> Option<Self> {
        let name = folder.name();
        let golden: Golden = golden::json(&folder.join("golden.json"));
        let adapter = match AdapterWeights::read(&*folder, &place::device()) {
            Ok(adapter) => adapter,
            Err(error) => {
                let error = chain(&error);
                let beyond = REFUSED.iter().any(|(option, named)| {
                    golden.options.contains_key(*option) && error.contains(named)
                });
                assert!(beyond, "{name}: {error}");
                println!("{name}: refused, as it should be: {error}");
                return None;
            }
        };
        let base = bases.get(&golden.base);
        let at = base.unwrap_or_else(|| panic!("{name}: no {}", golden.base));
        let mut base = ModelSource::open(&***at).unwrap();
        let tensors = Tensors::open(folder.join("golden.safetensors"));
        let resized = golden.vocab_size_after_resizing;
        let resized = resized.map(|rows| resized_base(&base, &tensors, rows));
        if let Some(resized) = &resized {
            base = ModelSource::open(resized.path().join(RESIZED)).unwrap();
        }
        let model = CausalLm::load(&base, &place::device()).unwrap();
        let model = model.with_adapter(&adapter);
        Some(Self {
            tensors,
            model: model.unwrap_or_else(|error| panic!("{name}: {}", chain(&error))),
            original: std::rc::Rc::clone(at),
            _resized: resized,
            name,
            folder,
            golden,
            base,
        })
    }

    fn plain_rows(&self) -> Vec<Vec<u32>> {
        let [_, width] = self.tensors.shape("plain.input_ids");
        let ids = self.tensors.i64("plain.input_ids");
        let ids: Vec<u32> = ids.into_iter().map(|id| id as u32).collect();
        ids.chunks(width).map(<[u32]>::to_vec).collect()
    }

    fn plain(&self) -> MicroBatch {
        let [rows, _] = self.tensors.shape("plain.input_ids");
        let ids = self.tensors.i64("plain.input_ids");
        let batch = Batch::from_rectangular(rows, &ids, &vec![1; ids.len()], &ids);
        batch.unwrap().into()
    }

    fn padded(&self) -> MicroBatch {
        let [rows, _] = self.tensors.shape("padded.input_ids");
        let [ids, mask, labels] = ["input_ids", "attention_mask", "labels"]
            .map(|name| self.tensors.i64(&format!("padded.{name}")));
        Batch::from_rectangular(rows, &ids, &mask, &labels)
            .unwrap()
            .into()
    }

    /// A recipe with the options of the case, and `more` keys of `[lora]`.
    fn recipe(&self, more: &str) -> Recipe {
        let key = |name: &str| match name {
            "r" => "rank".to_owned(),
            "lora_alpha" => "alpha".to_owned(),
            other => other.to_owned(),
        };
        let options = self.golden.options.iter();
        let lora: String = options
            .filter(|(name, _)| !["layers_pattern", TOKENS, TIED].contains(&name.as_str()))
            .map(|(name, value)| format!("{} = {}\n", key(name), toml(value)))
            .collect();
        let text = format!("model = \"a/b\"\n[lora]\n{lora}{more}[data]\ntrain = \"t.jsonl\"\n");
        let recipe = Recipe::from_toml(&text, Path::new("/"), &[]);
        recipe.unwrap_or_else(|error| panic!("{}: {error}\n{text}", self.name))
    }

    /// Names and shapes of the trained tensors of a model.
    fn trained(model: &CausalLm) -> BTreeMap<String, Vec<usize>> {
        let params = model.trained_params();
        let named = params.map(|(path, param)| {
            let name = format!("{path}.{}", param.file_name);
            (name, param.dims.to_vec())
        });
        named.collect()
    }
}

/// A value of JSON as TOML, tables in their order.
fn toml(value: &Value) -> String {
    match value {
        Value::Object(fields) => {
            let fields: Vec<String> = fields
                .iter()
                .map(|(name, value)| format!("{name:?} = {}", toml(value)))
                .collect();
            format!("{{ {} }}", fields.join(", "))
        }
        other => other.to_string(),
    }
}

#[test]
fn golden_adapters_losses_logits_and_gradients() {
    for case in Case::all() {
        let Case {
            name,
            golden,
            tensors,
            model,
            ..
        } = &case;
        let logits = |tokens: &Tokens| values(&model.logits(model.forward_hidden(tokens, None)));
        let plain = logits(&Tokens::from_sequences(&case.plain_rows()));
        TINY_LOGITS.check(name, &plain, &tensors.f32("plain.logits"));
        let padded = logits(&case.padded().tokens);
        let expected = tensors.f32("padded.logits_at_real_positions");
        TINY_LOGITS.check(format!("{name}, padded"), &padded, &expected);
        for (kind, batch, [loss, total]) in [
            (
                "plain",
                case.plain(),
                [golden.plain_loss, golden.plain_grad_norm],
            ),
            (
                "padded",
                case.padded(),
                [golden.padded_loss, golden.padded_grad_norm],
            ),
        ] {
            let mut grads = AdapterGrads::new();
            let scale = 1.0 / batch.targets.len() as f32;
            let plan = ActivationPlan::keep_all(model.num_backward_layers());
            let sum = forward_backward(model, &batch, scale, None, &plan, &mut grads);
            TINY_LOSS.check_one(
                format!("{name}, {kind} loss"),
                scalar(&sum) * f64::from(scale),
                loss,
            );
            let grads = by_name(model, &grads);
            for (factor, grad) in &grads {
                let expected = tensors.f32(&format!("{kind}.grad.{factor}"));
                TINY_GRADIENT.check(format!("{name}, {kind}, {factor}"), grad, &expected);
            }
            assert_eq!(grads.len(), golden.trained_tensors.len(), "{name}");
            let found = norm(grads.iter().flat_map(|(_, grad)| grad));
            TINY_NORM.check_one(format!("{name}, {kind} norm"), found, total);
        }
    }
}

#[test]
fn golden_adapters_autodiff() {
    for case in Case::all() {
        let model = case.model.clone().train();
        let batch = case.padded();
        let loss = model.loss(&batch.tokens, &batch.targets, None) / batch.targets.len() as f32;
        let tape = loss.backward();
        let mut lengths = 0;
        for (layer, target, Adapter::Lora(lora)) in model.adapters() {
            let path = target.path(layer);
            let expected = |factor: &str| case.tensors.f32(&format!("padded.grad.{path}.{factor}"));
            for (factor, param) in [
                ("lora_A.weight", &lora.lora_a),
                ("lora_B.weight", &lora.lora_b),
            ] {
                let grad = values(&param.val().grad(&tape).unwrap());
                let what = format!("{}, {path}.{factor}", case.name);
                TINY_GRADIENT.check(what, &grad, &expected(factor));
            }
            if let Some(magnitude) = &lora.magnitude {
                let grad = values(&magnitude.vector.val().grad(&tape).unwrap());
                let what = format!("{}, {path}, lengths", case.name);
                TINY_GRADIENT.check(what, &grad, &expected("lora_magnitude_vector"));
                lengths += 1;
            }
        }
        for (table, adapter) in model.table_adapters() {
            for param in adapter.params() {
                let name = format!("{}.{}", table.path(), param.file_name);
                let Adapter::Lora(lora) = adapter;
                let factor = match param.id == lora.lora_a.id {
                    true => &lora.lora_a,
                    false => &lora.lora_b,
                };
                let grad = values(&factor.val().grad(&tape).unwrap());
                let expected = case.tensors.f32(&format!("padded.grad.{name}"));
                TINY_GRADIENT.check(format!("{}, {name}", case.name), &grad, &expected);
            }
        }
        let whole = case.model.whole();
        for place in model.whole() {
            let grad = values(&place.tensor.tracked().grad(&tape).unwrap());
            let name = format!("{}.{}", place.module(), place.param().file_name);
            let expected = case.tensors.f32(&format!("padded.grad.{name}"));
            TINY_GRADIENT.check(format!("{}, {name}", case.name), &grad, &expected);
        }
        let trained = case.golden.trained_tensors.keys();
        let others = trained.clone().filter(|name| !name.contains("lora_"));
        let tokens = case.model.tokens().len();
        assert_eq!(whole.len() + tokens, others.count(), "{}", case.name);
        let named = trained.filter(|name| name.ends_with("lora_magnitude_vector"));
        assert_eq!(lengths, named.count(), "{}", case.name);
    }
}

#[test]
fn golden_adapters_have_the_modules_that_their_options_name() {
    for case in Case::all() {
        let (name, expected) = (&case.name, &case.golden.trained_tensors);
        assert_eq!(&Case::trained(&case.model), expected, "{name}");
        // A fresh adapter of the same options has the same tensors, and takes the memory that is planned.
        let spec = case.model.spec();
        let recipe = case.recipe("");
        let config = recipe.trained(spec).unwrap();
        let fresh = CausalLm::load(&case.base, &place::device()).unwrap();
        let fresh = fresh.with_lora(&config, 1).unwrap();
        let setup = recipe.setup(spec.clone(), None, MemoryModel::cpu(), 0);
        let planned = setup.step().adapters as usize;
        assert_eq!(planned, 4 * fresh.num_trained(), "{name}");
        // Of tokens, rows of the embedding and of this base's head are planned, and the pass goes down to the first layer.
        let factors = fresh.num_trained();
        let fresh = fresh.with_tokens(case.model.tokens()).unwrap();
        if let [tokens] = fresh.tokens() {
            let rows = fresh.num_trained() - factors;
            let mut setup = setup;
            setup.tokens = tokens.ids().len();
            let step = setup.step();
            assert_eq!(step.adapters as usize, 4 * (factors + 2 * rows), "{name}");
            assert_eq!(step.token_gradients as usize, 4 * 2 * rows, "{name}");
            assert_eq!(step.layers.len(), fresh.num_backward_layers(), "{name}");
            assert!(step.layers[0].input_grad.is_needed(), "{name}");
        }
        assert_eq!(&Case::trained(&fresh), expected, "{name}");
        let starts = |name: &str| format!("init.{name}");
        let values = fresh.trained_params().map(|(path, param)| {
            let name = format!("{path}.{}", param.file_name);
            (name, values(&param.values))
        });
        for (factor, found) in values.filter(|(name, _)| case.tensors.has(&starts(name))) {
            let expected = case.tensors.f32(&starts(&factor));
            TINY_GRADIENT.check(format!("{name}, start of {factor}"), &found, &expected);
        }
        let scaled = |model: &CausalLm| {
            let adapters = model.adapters();
            let scale = |(_, _, Adapter::Lora(lora)): (_, _, &Adapter)| lora.scaling();
            adapters.map(scale).collect::<Vec<_>>()
        };
        assert_eq!(scaled(&fresh), scaled(&case.model), "{name}");
    }
}

#[test]
fn golden_adapters_are_saved_and_gone_on_from_as_they_are() {
    for case in Case::all() {
        let name = &case.name;
        let directory = tempfile::tempdir().unwrap();
        let [at, from] = ["saved", "theirs"].map(|name| directory.path().join(name));
        fs::create_dir(&from).unwrap();
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            fs::copy(case.folder.join(file), from.join(file)).unwrap();
        }
        let own = case.model.adapter().unwrap();
        let options = PeftWriteOptions::default();
        own.write(&at, &case.golden.base, &options).unwrap();
        let [theirs, ours] = [&*case.folder, &at].map(|path| PeftDir::read(path).unwrap());
        assert_eq!(theirs.tensors, ours.tensors, "{name}");
        for pair in ours.tensors.iter() {
            let [a, b] = [&theirs, &ours].map(|it| it.config.scaling_of(&pair.module));
            assert_eq!(a, b, "{name}, {}", pair.module);
        }
        assert_eq!(theirs.config.trainable_tokens, ours.config.trainable_tokens);
        let of_base = |it: &PeftDir| {
            let config = &it.config;
            let tied = config.ensure_weight_tying;
            (config.bias, config.modules_to_save.clone(), tied)
        };
        assert_eq!(of_base(&theirs), of_base(&ours), "{name}");
        if !ours.tensors.tokens().is_empty() {
            // Rows are loaded, merged and used, and not trained further.
            let adapter = format!("adapter = {:?}\n", at.display().to_string());
            let text = format!("model = \"a/b\"\n[lora]\n{adapter}[data]\ntrain = \"t\"\n");
            let refused = Recipe::from_toml(&text, Path::new("/"), &[]).unwrap_err();
            assert!(refused.to_string().contains(TOKENS), "{name}: {refused}");
            continue;
        }
        // Whoever goes on from either gets the settings of both, and may repeat those of the case.
        let spec = case.model.spec();
        let expected = case.recipe("").trained(spec).unwrap();
        for path in [&*case.folder, &at] {
            let adapter = format!("adapter = {:?}\n", path.display().to_string());
            let bare = format!("model = \"a/b\"\n[lora]\n{adapter}[data]\ntrain = \"t\"\n");
            let bare = Recipe::from_toml(&bare, Path::new("/"), &[]);
            let bare = bare.unwrap_or_else(|error| panic!("{name}: {error}"));
            let found = bare.trained(spec).unwrap();
            let both = [&found, &expected].map(|config| {
                let settings = config.adapted(spec).into_iter().map(|path| {
                    let rank = config.rank_of(&path);
                    (rank, config.scaling_of(&path, rank), path)
                });
                settings.collect::<Vec<_>>()
            });
            assert_eq!(both[0], both[1], "{name}");
            // What a run writes down reads back, with the adapter there and without.
            let written = bare.to_toml().unwrap();
            let again = Recipe::from_toml(&written, Path::new("/"), &[]);
            assert_eq!(again.unwrap(), bare, "{name}: {written}");
        }
        let adapter = format!("adapter = {:?}\n", from.display().to_string());
        let repeated = case.recipe(&adapter);
        assert_eq!(repeated.lora.rank, case.recipe("").lora.rank, "{name}");
        let written = repeated.to_toml().unwrap();
        // Nobody asks the adapter again, be it gone.
        fs::remove_dir_all(&from).unwrap();
        let stored = Recipe::from_stored(&written, Path::new("/")).unwrap();
        assert_eq!(stored, repeated, "{name}");
    }
}

#[test]
fn golden_adapters_merged() {
    for case in Case::all() {
        let Some(expected) = case.golden.merged_weights_plain_loss else {
            continue;
        };
        let directory = tempfile::tempdir().unwrap();
        let out = directory.path().join("merged");
        let adapter = PeftDir::read(&*case.folder).unwrap();
        merge(
            &case.base,
            MergeBase::Original,
            &adapter,
            &[],
            &out,
            Existing::Refuse,
            |_, _| (),
        )
        .unwrap();
        let merged = ModelSource::open(&out).unwrap();
        let merged = CausalLm::load(&merged, &place::device()).unwrap();
        let batch = case.plain();
        let nll = merged.nll(&batch.tokens, &batch.targets);
        TINY_LOSS.check_one(&case.name, scalar(&nll.mean()), expected);
    }
}

/// The rows of the resized head are nowhere in the adapter: its base without them is not the model that was trained.
#[test]
fn golden_adapters_lack_no_rows_in_silence() {
    for case in Case::all() {
        if case.golden.vocab_size_after_resizing.is_none() {
            continue;
        }
        let small = ModelSource::open(&**case.original).unwrap();
        let adapter = PeftDir::read(&*case.folder).unwrap();
        let grown = small.with_tokens_of(&adapter);
        if adapter.tensors.whole().len() > 0 {
            // Every row of every table is in the adapter.
            let grown = CausalLm::load(&grown.unwrap(), &place::device()).unwrap();
            let weights = AdapterWeights::from_peft(&adapter, &place::device());
            let grown = grown.with_adapter(&weights).unwrap();
            let tokens = Tokens::from_sequences(&case.plain_rows());
            let [found, expected] = [&grown, &case.model]
                .map(|it| values(&it.logits(it.forward_hidden(&tokens, None))));
            assert_eq!(found, expected, "{}", case.name);
        } else {
            let refused = chain(&grown.unwrap_err());
            assert!(refused.contains("no row of lm_head"), "{refused}");
        }
        // Over the resized base nothing is added.
        let base = ModelSource::open(case.base.path()).unwrap();
        let before = base.fingerprint().unwrap();
        let base = base.with_tokens_of(&adapter).unwrap();
        assert_eq!(base.fingerprint().unwrap(), before);
    }
}

/// Tables of another length are refused, and so is one that would come apart from the other that it is in the base.
#[test]
fn golden_adapters_with_tables_that_do_not_fit_are_refused() {
    let mut tied = 0;
    for case in Case::all() {
        let grown = case.golden.vocab_size_after_resizing.is_some();
        if !grown || case.model.whole().is_empty() {
            continue;
        }
        let mut weights = AdapterWeights::read(&*case.folder, &place::device()).unwrap();
        let small = ModelSource::open(&**case.original).unwrap();
        let small = CausalLm::load(&small, &place::device()).unwrap();
        let is_tied = small.spec().tie_word_embeddings;
        let shape = chain(&small.with_adapter(&weights).unwrap_err());
        assert!(shape.contains("more tokens"), "{shape}");
        if is_tied {
            weights.whole.remove("lm_head.weight");
            weights.config.ensure_weight_tying = false;
            let apart = chain(&case.model.with_adapter(&weights).unwrap_err());
            assert!(apart.contains("ensure_weight_tying"), "{apart}");
            tied += 1;
        }
    }
    assert_eq!(tied, 1);
}
