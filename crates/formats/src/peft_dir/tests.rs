use backdraft_arch::Bias;
use serde_json::{Value, json};

use super::*;
use crate::peft_config::PREFIX;
use crate::peft_config::{PeftConfigError, TargetModules};

const MODULE: &str = "model.layers.0.self_attn.q_proj";
const LORA_A: &str = ".lora_A.weight";
const LORA_B: &str = ".lora_B.weight";

fn pair(module: &str) -> LoraPair {
    LoraPair {
        module: module.into(),
        in_features: 3,
        out_features: 2,
        lora_a: (0_u8..12).map(f32::from).collect(),
        lora_b: (0_u8..8).map(f32::from).collect(),
        magnitude: None,
    }
}

fn adapter() -> (PeftConfig, AdapterTensors) {
    let mut config = PeftConfig::new(4, 8.0, ["q_proj", "v_proj"]);
    config.base_model_name_or_path = Some("org/base".into());
    let modules = [MODULE, "model.layers.0.self_attn.v_proj"];
    (config, modules.into_iter().map(pair).collect())
}

/// A written adapter, to be damaged.
struct Case(tempfile::TempDir);

impl Case {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let (config, tensors) = adapter();
        PeftDir::write(root.path(), &config, &tensors, &PeftWriteOptions::default()).unwrap();
        Self(root)
    }

    fn set(&self, field: &str, value: Value) -> &Self {
        let path = self.0.path().join(CONFIG);
        let mut config: Value = json::read(&path).unwrap();
        config[field] = value;
        fs::write(path, config.to_string()).unwrap();
        self
    }

    fn tensors(&self, tensors: &[(&str, [usize; 2])]) -> &Self {
        let path = self.0.path().join(WEIGHTS);
        let infos = tensors
            .iter()
            .map(|(name, shape)| TensorInfo::new(*name, Dtype::F32, *shape));
        let mut writer = SafetensorsWriter::create(path, infos, Existing::Replace).unwrap();
        for (name, shape) in tensors {
            writer
                .write(name, &vec![0; 4 * shape[0] * shape[1]])
                .unwrap();
        }
        writer.finish().unwrap();
        self
    }

    fn read(&self) -> Result<PeftDir> {
        PeftDir::read(self.0.path())
    }
}

#[test]
fn what_is_written_is_read_again() {
    for dtype in [Dtype::F32, Dtype::BF16] {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("adapter");
        let (config, tensors) = adapter();
        let options = PeftWriteOptions {
            dtype,
            companions: vec![("README.md".into(), b"text".to_vec())],
            ..Default::default()
        };
        PeftDir::write(&path, &config, &tensors, &options).unwrap();
        let read = PeftDir::read(&path).unwrap();
        assert_eq!((&read.config, &read.tensors), (&config, &tensors));
        assert_eq!(read.config.scaling(), 2.0);
        let again = PeftDir::write(&path, &config, &tensors, &options).unwrap_err();
        assert!(matches!(again, FormatError::TargetExists { .. }));
        let file = SafetensorsFile::open(path.join(WEIGHTS)).unwrap();
        assert_eq!(file.metadata().len(), 1);
        assert_eq!(file.metadata()["format"], "pt");
        let a = file.info("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight");
        assert_eq!(a.unwrap().shape, [4, 3]);
        assert_eq!(a.unwrap().dtype, dtype);
        assert_eq!(fs::read(path.join("README.md")).unwrap(), b"text");
    }
}

#[test]
fn written_config_has_exactly_the_keys_of_peft() {
    let (config, _) = adapter();
    let written = config.to_json();
    let keys: Vec<_> = written.as_object().unwrap().keys().collect();
    assert!(keys.is_sorted());
    let mut expected: Vec<_> = "peft_type task_type auto_mapping peft_version \
        base_model_name_or_path revision inference_mode r target_modules exclude_modules \
        lora_alpha lora_dropout fan_in_fan_out bias use_rslora modules_to_save init_lora_weights \
        layers_to_transform layers_pattern rank_pattern alpha_pattern megatron_config \
        megatron_core trainable_token_indices loftq_config eva_config corda_config \
        lora_ga_config use_dora velora_config alora_invocation_tokens use_qalora \
        qalora_group_size monteclora_config layer_replication lora_bias target_parameters \
        use_bdlora arrow_config kasa_config ensure_weight_tying"
        .split_whitespace()
        .collect();
    expected.sort_unstable();
    assert_eq!(keys, expected);
    assert_eq!(written["lora_alpha"].to_string(), "8");
}

#[test]
fn active_features_are_refused_by_name() {
    for (field, value) in [
        ("fan_in_fan_out", json!(true)),
        ("rank_pattern", json!({"(?!q)_proj": 4})),
        ("alpha_pattern", json!({"q_proj(": 4})),
        ("lora_bias", json!(true)),
        ("layer_replication", json!([[0, 4]])),
        ("trainable_token_indices", json!({"wte": [1]})),
        ("target_parameters", json!(["x"])),
        ("loftq_config", json!({"bits": 4})),
        ("use_qalora", json!(true)),
        ("alora_invocation_tokens", json!([1])),
        ("init_lora_weights", json!("pissa_niter_4")),
        ("peft_type", json!("LOHA")),
        ("task_type", json!("SEQ_CLS")),
        ("a_future_feature", json!(3)),
    ] {
        match Case::new().set(field, value).read().unwrap_err() {
            FormatError::PeftConfig {
                source: PeftConfigError::Feature { field: named, .. },
                ..
            } => assert_eq!(named, field),
            other => panic!("{field}: {other:?}"),
        }
    }
}

/// PEFT adds the names of other models' heads to that of this one's.
#[test]
fn an_adapter_that_scores_texts_names_its_head() {
    let case = Case::new();
    case.set("task_type", json!("SEQ_CLS"));
    case.set("modules_to_save", json!(["score", "classifier", "score"]));
    let config = PeftConfig::read(&case.0.path().join(CONFIG)).unwrap();
    assert_eq!(config.modules_to_save, ["score"]);
    assert!(config.scores());
    let written = config.to_json();
    assert_eq!(written["task_type"], "SEQ_CLS");
    assert_eq!(written["modules_to_save"], json!(["score"]));
    assert_eq!(adapter().0.to_json()["task_type"], "CAUSAL_LM");
    case.set("modules_to_save", json!(["classifier"]));
    let FormatError::PeftConfig { source, .. } = case.read().unwrap_err() else {
        panic!("a head that nothing is known of");
    };
    assert!(source.to_string().contains("`task_type`"), "{source}");
}

#[test]
fn inactive_and_harmless_fields_are_read() {
    let case = Case::new();
    for (field, value) in [
        ("a_future_feature", json!(null)),
        ("another", json!(false)),
        ("third", json!({})),
        ("init_lora_weights", json!("gaussian")),
        ("modules_to_save", json!([])),
        ("exclude_modules", json!("lm_head")),
        ("layers_pattern", json!("layers")),
        ("rank_pattern", json!({})),
        ("alpha_pattern", json!(null)),
        ("target_modules", json!("all-linear")),
        ("layers_to_transform", json!(0)),
        ("use_rslora", json!(true)),
    ] {
        case.set(field, value);
    }
    let config = case.read().unwrap().config;
    assert_eq!(config.scaling(), 4.0);
    assert_eq!(
        config.target_modules,
        TargetModules::Pattern("all-linear".into())
    );
    assert_eq!(config.layers_to_transform, Some(vec![0]));
}

#[test]
fn broken_fields_are_refused() {
    for (field, value) in [
        ("r", json!(0)),
        ("r", json!(1.5)),
        ("r", json!("16")),
        ("lora_alpha", json!(null)),
        ("lora_dropout", json!(2)),
        ("target_modules", json!([1])),
        ("target_modules", json!(null)),
        ("layers_to_transform", json!([-1])),
        ("rank_pattern", json!({"q_proj": 0})),
        ("rank_pattern", json!(["q_proj"])),
        ("alpha_pattern", json!({"q_proj": "8"})),
        ("use_rslora", json!("yes")),
        ("bias", json!("some")),
        ("bias", json!(true)),
        ("modules_to_save", json!("lm_head")),
        ("modules_to_save", json!([""])),
    ] {
        match Case::new().set(field, value).read().unwrap_err() {
            FormatError::PeftConfig {
                source: PeftConfigError::Invalid { field: named, .. },
                ..
            } => assert_eq!(named, field),
            other => panic!("{field}: {other:?}"),
        }
    }
}

#[test]
fn tensors_must_fit_together() {
    let a = &format!("{PREFIX}{MODULE}{LORA_A}");
    let b = &format!("{PREFIX}{MODULE}{LORA_B}");
    let case = Case::new();
    case.tensors(&[(a, [4, 3]), (b, [2, 4])]).read().unwrap();
    let message =
        |tensors: &[(&str, [usize; 2])]| case.tensors(tensors).read().unwrap_err().to_string();
    assert!(message(&[(a, [4, 3])]).contains(&format!("no tensor {b}")));
    assert!(message(&[(b, [2, 4])]).contains(&format!("no tensor {a}")));
    assert!(message(&[(a, [8, 3]), (b, [2, 8])]).contains("expected [4, in]"));
    assert!(message(&[(a, [4, 3]), (b, [4, 2])]).contains("expected [out, 4]"));
    assert!(message(&[]).contains("no tensor"));
    for (name, reason) in [
        ("model.layers.0.x.lora_a", "mlx-lm"),
        ("base_model.model.q_proj.lora_magnitude_vector", "use_dora"),
        (
            "base_model.model.model.per_layer.lora_embedding_A",
            "embeddings",
        ),
        ("base_model.model.lm_head.weight", "modules_to_save"),
        (
            "base_model.model.q_proj.bias",
            "bias of adapter_config.json",
        ),
    ] {
        assert!(message(&[(name, [4, 3])]).contains(reason), "{name}");
    }
    let other = format!("{PREFIX}model.layers.0.mlp.up_proj");
    let (a, b) = (format!("{other}{LORA_A}"), format!("{other}{LORA_B}"));
    assert!(message(&[(&a, [4, 3]), (&b, [2, 4])]).contains("target_modules"));
}

#[test]
fn whole_tensors_are_those_that_the_config_names() {
    let root = tempfile::tempdir().unwrap();
    let (mut config, tensors) = adapter();
    config.modules_to_save = vec!["norm".to_owned()];
    config.bias = Bias::LoraOnly;
    let tensor = |name: &str| WholeTensor {
        name: name.to_owned(),
        shape: vec![2],
        values: vec![0.5, -1.0],
    };
    let adapted = tensors.iter().next().unwrap().module.clone();
    let whole = [
        tensor("model.norm.weight"),
        tensor(&format!("{adapted}.bias")),
    ];
    let tensors = tensors.with_whole(whole);
    let options = PeftWriteOptions {
        existing: Existing::Replace,
        ..PeftWriteOptions::default()
    };
    for prefix in [AdapterPrefix::Text, AdapterPrefix::Wrapped] {
        let path = root.path().join("adapter");
        let options = PeftWriteOptions {
            prefix,
            ..options.clone()
        };
        PeftDir::write(&path, &config, &tensors, &options).unwrap();
        let read = PeftDir::read(&path).unwrap();
        assert_eq!((&read.tensors, read.config.bias), (&tensors, config.bias));
        assert_eq!(read.config.modules_to_save, config.modules_to_save);
        let file = SafetensorsFile::open(path.join("adapter_model.safetensors")).unwrap();
        let names: Vec<_> = file.tensors().map(|info| info.name.clone()).collect();
        let bias = prefix.name(&adapted);
        let bias = format!("base_model.model.{bias}.base_layer.bias");
        assert!(names.contains(&bias), "{names:?}");
    }
    // A name that the file has nothing of.
    config.modules_to_save.push("lm_head".to_owned());
    let path = root.path().join("lacking");
    PeftDir::write(&path, &config, &tensors, &options).unwrap();
    let lacking = PeftDir::read(&path).unwrap_err().to_string();
    assert!(lacking.contains("lm_head.weight"), "{lacking}");
}

#[test]
fn lengths_of_rows_come_with_every_pair_or_none() {
    let root = tempfile::tempdir().unwrap();
    let (mut config, _) = adapter();
    config.use_dora = true;
    let lengths = |module: &str, count: usize| LoraPair {
        magnitude: Some((0..count).map(|i| 1.5 + i as f32).collect()),
        ..pair(module)
    };
    let write = |pairs: Vec<LoraPair>| {
        let options = PeftWriteOptions {
            existing: Existing::Replace,
            ..PeftWriteOptions::default()
        };
        let tensors: AdapterTensors = pairs.into_iter().collect();
        PeftDir::write(root.path().join("a"), &config, &tensors, &options).map(|()| tensors)
    };
    let other = "model.layers.0.self_attn.v_proj";
    let written = write(vec![lengths(MODULE, 2), lengths(other, 2)]).unwrap();
    let read = PeftDir::read(root.path().join("a")).unwrap();
    assert_eq!(read.tensors, written);
    assert!(read.config.use_dora);
    assert_eq!(written.get(MODULE).unwrap().values().count(), 12 + 8 + 2);
    write(vec![lengths(MODULE, 2), pair(other)]).unwrap();
    let missing = PeftDir::read(root.path().join("a"))
        .unwrap_err()
        .to_string();
    assert!(
        missing.contains("v_proj.lora_magnitude_vector"),
        "{missing}"
    );
    assert!(write(vec![lengths(MODULE, 3)]).is_err());

    let case = Case::new();
    let (a, b) = (
        format!("{PREFIX}{MODULE}{LORA_A}"),
        format!("{PREFIX}{MODULE}{LORA_B}"),
    );
    let m = format!("{PREFIX}{MODULE}.lora_magnitude_vector");
    let wrong = case.set("use_dora", json!(true));
    let wrong = wrong
        .tensors(&[(&a, [4, 3]), (&b, [2, 4]), (&m, [1, 2])])
        .read();
    let wrong = wrong.unwrap_err().to_string();
    assert!(wrong.contains("[2], a number for each output"), "{wrong}");
}

#[test]
fn other_spellings_of_names_are_read() {
    let case = Case::new();
    for spelling in [
        "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.default.weight",
        "model.layers.0.self_attn.q_proj.lora_{}.weight",
        "base_model.model.layers.0.self_attn.q_proj.lora_{}.weight",
    ] {
        let [a, b] = ["A", "B"].map(|side| spelling.replace("{}", side));
        let read = case.tensors(&[(&b, [2, 4]), (&a, [4, 3])]).read().unwrap();
        let modules: Vec<_> = read.tensors.iter().map(|pair| &pair.module).collect();
        assert_eq!(modules, [MODULE], "{spelling}");
    }
    let message =
        |tensors: &[(&str, [usize; 2])]| case.tensors(tensors).read().unwrap_err().to_string();
    let name = |adapter: &str, side| format!("{PREFIX}{MODULE}.lora_{side}{adapter}.weight");
    let [a, b] = ["A", "B"].map(|side| name("", side));
    let [da, db] = ["A", "B"].map(|side| name(".default", side));
    let of = |name: &str, dims| (name.to_owned(), dims);
    let tensors = [
        of(&a, [4, 3]),
        of(&b, [2, 4]),
        of(&da, [4, 3]),
        of(&db, [2, 4]),
    ];
    let tensors: Vec<_> = tensors
        .iter()
        .map(|(n, dims)| (n.as_str(), *dims))
        .collect();
    assert!(message(&tensors).contains("several adapters"));
    let again = format!("{MODULE}{LORA_A}");
    let tensors = [(&*a, [4, 3]), (&b, [2, 4]), (&again, [4, 3])];
    assert!(message(&tensors).contains("under another name"));
}

#[test]
fn ranks_and_alphas_by_module() {
    let case = Case::new();
    case.set(
        "rank_pattern",
        json!({"k_proj": 9, "layers.0.self_attn.q_proj": 2}),
    )
    .set("alpha_pattern", json!({r".*\.q_proj": 3}))
    .set("use_rslora", json!(false));
    let a = &format!("{PREFIX}{MODULE}{LORA_A}");
    let b = &format!("{PREFIX}{MODULE}{LORA_B}");
    let other = "model.layers.0.self_attn.v_proj";
    let (other_a, other_b) = (
        format!("{PREFIX}{other}{LORA_A}"),
        format!("{PREFIX}{other}{LORA_B}"),
    );
    let others = [(&*other_a, [4, 3]), (&*other_b, [2, 4])];
    case.tensors(&[&others[..], &[(a, [2, 3]), (b, [2, 2])]].concat());
    let read = case.read().unwrap();
    let ranks: Vec<_> = read.tensors.iter().map(LoraPair::rank).collect();
    assert_eq!(ranks, [2, 4]);
    assert_eq!(read.config.scaling_of(MODULE), 1.5);
    assert_eq!(read.config.scaling_of(other), 2.0);
    // Written again it is the same, and a rank that is not that of the pattern is named.
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("again");
    PeftDir::write(
        &path,
        &read.config,
        &read.tensors,
        &PeftWriteOptions::default(),
    )
    .unwrap();
    let again = PeftDir::read(&path).unwrap();
    assert_eq!((again.config, again.tensors), (read.config, read.tensors));
    case.tensors(&[&others[..], &[(a, [4, 3]), (b, [2, 4])]].concat());
    let error = case.read().unwrap_err().to_string();
    assert!(error.contains("expected [2, in]"), "{error}");
}

#[test]
fn what_an_old_config_leaves_out_has_pefts_default() {
    let case = Case::new();
    let path = case.0.path().join(CONFIG);
    let config =
        json!({"peft_type": "LORA", "target_modules": ["q_proj"], "layers_to_transform": []});
    fs::write(path, config.to_string()).unwrap();
    let (a, b) = (
        format!("{PREFIX}{MODULE}{LORA_A}"),
        format!("{PREFIX}{MODULE}{LORA_B}"),
    );
    let config = case
        .tensors(&[(&a, [8, 3]), (&b, [2, 8])])
        .read()
        .unwrap()
        .config;
    assert_eq!(
        (config.r, config.lora_alpha, config.layers_to_transform),
        (8, 8.0, None)
    );
}

#[test]
fn wrong_sizes_are_not_written() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("adapter");
    let (config, _) = adapter();
    let mut wrong = pair(MODULE);
    wrong.lora_b.pop();
    let tensors = [wrong].into_iter().collect();
    let error = PeftDir::write(&path, &config, &tensors, &PeftWriteOptions::default());
    assert!(matches!(
        error.unwrap_err(),
        FormatError::TensorShape { .. }
    ));
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
}

#[test]
fn pickles_are_not_read() {
    let case = Case::new();
    fs::rename(case.0.path().join(WEIGHTS), case.0.path().join(PICKLE)).unwrap();
    assert!(matches!(
        case.read().unwrap_err(),
        FormatError::Pickle { .. }
    ));
}
