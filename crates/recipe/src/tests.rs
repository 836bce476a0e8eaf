use std::path::Path;

use backdraft_arch::{AdapterStart, BaseHome, ModuleNames, NestedFormat, Scheme};
use backdraft_data::{Format, Supervision};
use insta::assert_snapshot;

use crate::schedule::ScheduleKind;
use crate::*;

const SMALLEST: &str = "model = \"org/name\"\n[data]\ntrain = \"rows.jsonl\"\n";

fn read(text: &str, overrides: &[&str]) -> Result<Recipe, RecipeError> {
    let overrides: Vec<String> = overrides.iter().map(|&text| text.to_owned()).collect();
    Recipe::from_toml(text, Path::new("/recipes"), &overrides)
}

/// The problems of the smallest recipe with `lines` after it, each line under its section.
fn problems(lines: &str) -> String {
    match read(&format!("{SMALLEST}{lines}"), &[]) {
        Ok(recipe) => panic!("expected problems, got {recipe:#?}"),
        Err(error) => error.to_string(),
    }
}

fn problems_of_override(text: &str) -> String {
    match read(SMALLEST, &[text]) {
        Ok(recipe) => panic!("expected problems, got {recipe:#?}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn recipes_of_the_repository_can_be_read() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes");
    let mut read = 0;
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path
            .extension()
            .is_some_and(|extension| extension == "toml")
        {
            Recipe::load(&path, &[]).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            read += 1;
        }
    }
    assert!(read > 0);
}

#[test]
fn defaults_are_the_starting_points() {
    assert_snapshot!(read(SMALLEST, &[]).unwrap().to_toml().unwrap(), @r#"
    model = "org/name"
    output_dir = "/recipes/outputs"
    seed = 42
    dtype = "auto"
    load_in_4bit = false
    load_in_8bit = false
    max_seq_length = 2048
    activation_policy = "smart"
    activation_offloading = true
    base = "device"
    device = "auto"
    trainable = "adapter"

    [quantization]
    quant_type = "nf4"
    block_size = 64
    double_quant = true
    skip_modules = ["lm_head"]
    keep_blocks = false
    formats = ["nf3", "nf4", "nf5", "nf6", "int8"]
    adapt_at = [0.0]
    calibration_tokens = 4096

    [lora]
    rank = 16
    alpha = 32.0
    dropout = 0.0
    use_rslora = false
    use_dora = false
    target_modules = "all-linear"
    init = "default"
    bias = "none"
    key_prefix = "auto"

    [objective]
    kind = "sft"

    [data]
    train = "/recipes/rows.jsonl"
    format = "auto"
    train_on = "responses"
    overlong = "truncate"
    batching = "padding-free"
    skip_bad_rows = 0
    cache = "auto"

    [train]
    micro_batch_size = 2
    grad_accumulation_steps = 4
    gradient_blocks = 1
    epochs = 3.0
    learning_rate = 0.0002
    warmup_ratio = 0.05
    optimizer = "adamw"
    loraplus_lr_ratio = 1.0
    label_smoothing_factor = 0.0
    z_loss = 0.0
    neftune_noise_alpha = 0.0
    layer_lr_decay = 1.0
    weight_decay = 0.01
    adam_beta1 = 0.9
    adam_beta2 = 0.999
    adam_epsilon = 0.00000001
    max_grad_norm = 1.0
    logging_steps = 10
    save_steps = 100
    save_total_limit = 3
    sample_rows = 3

    [train.lr_scheduler]
    kind = "cosine"
    num_cycles = 0.5
    "#);
}

#[test]
fn every_default_in_the_table_of_keys_is_valid() {
    // Keys that say nothing without another one.
    let dependent = [
        "train.eval_steps",
        "train.early_stopping_metric",
        "train.early_stopping_min_improvement",
    ];
    for key in KEYS.iter().filter(|key| !dependent.contains(&key.path)) {
        let Some(default) = key.default else { continue };
        let given = format!("{}={default}", key.path);
        let left_out = read(SMALLEST, &[]).unwrap();
        let recipe = read(SMALLEST, &[&given]).unwrap();
        let path = Path::new("/recipes").join("outputs");
        assert_eq!(
            Recipe {
                output_dir: path,
                ..recipe
            },
            left_out,
            "{given}"
        );
    }
}

#[test]
fn every_example_in_the_table_of_keys_is_valid() {
    let text = with_eval("format = \"alpaca\"\n");
    // Whether an adapter is there is looked up.
    for key in KEYS.iter().filter(|key| key.path != "lora.adapter") {
        let given = format!("{}={}", key.path, key.example);
        let alpaca = key.path == "data.format" || key.path == "data.train_on";
        let text = if alpaca { SMALLEST } else { &text };
        let mut given = vec![given.as_str()];
        if key.path == "train.early_stopping_min_improvement" {
            given.push("train.early_stopping_patience=3");
        }
        if ["bits", "base_memory", "plan"].contains(&key.name()) {
            given.push("load_in_4bit=true");
        }
        if key.path == "objective.loss_weights" {
            given.push("objective.loss=[\"sigmoid\", \"sft\"]");
        }
        if key.path == "tokens.descriptions" {
            given.extend(["tokens.add=[\"<tool>\"]", "tokens.init=\"subtokens\""]);
        }
        if ["experiment", "run_name"].contains(&key.name()) {
            given.extend(["tracker.kind=\"mlflow\"", "tracker.url=\"http://h\""]);
        }
        given.extend(match (key.section(), key.name()) {
            ("objective", "kind") => None,
            ("objective", "gamma") => Some("objective.kind=\"simpo\""),
            ("objective", "center_rewards_coefficient") => Some("objective.kind=\"reward\""),
            ("objective", name) if name.ends_with("able_weight") => Some("objective.kind=\"kto\""),
            ("objective", _) => Some("objective.kind=\"dpo\""),
            ("data", "mixing_temperature") => Some("data.train=[\"a.jsonl\", \"b.jsonl\"]"),
            ("data", "split_overlap") => Some("data.overlong=\"split\""),
            ("tracker", "kind") => Some("tracker.url=\"http://127.0.0.1:5000\""),
            ("tracker", "url") => Some("tracker.kind=\"mlflow\""),
            ("train", "early_stopping_eval") => Some("data.eval_sets={ general = \"g.jsonl\" }"),
            ("train", "momentum") => Some("train.optimizer=\"sgd\""),
            _ => None,
        });
        let read = read(text, &given);
        assert!(read.is_ok(), "{given:?}: {read:?}");
    }
}

fn one(path: &str) -> Sources {
    Sources(vec![source(path)])
}

fn source(path: &str) -> SourceRecipe {
    SourceRecipe {
        path: path.into(),
        weight: 1.0,
        epochs: None,
        share: None,
        format: None,
        fields: None,
    }
}

fn with_eval(rest: &str) -> String {
    format!("{SMALLEST}eval = \"held-out.jsonl\"\n{rest}")
}

#[test]
fn orthogonal_factors_have_even_ranks() {
    let recipe = |more: &str| {
        let text = format!(
            "model = \"a/b\"\ndata.train = \"rows.jsonl\"\nlora.init = \"orthogonal\"\n{more}\n"
        );
        Recipe::from_toml(&text, Path::new("/recipes"), &[])
    };
    recipe("lora.use_dora = true").unwrap();
    recipe("lora.rank_pattern = { q_proj = 2 }\nload_in_4bit = true").unwrap();
    for (key, more) in [
        ("lora.rank`", "lora.rank = 3"),
        ("lora.rank_pattern`", "lora.rank_pattern = { q_proj = 3 }"),
    ] {
        let refused = recipe(more).unwrap_err().to_string();
        assert!(
            refused.contains(key) && refused.contains("even rank"),
            "{refused}"
        );
    }
}

#[test]
fn what_a_base_in_host_memory_does_not_go_with_is_refused() {
    let recipe = |more: &str| {
        let text = format!("model = \"a/b\"\ndata.train = \"rows.jsonl\"\n{more}\n");
        Recipe::from_toml(&text, Path::new("/recipes"), &[])
    };
    let host = "base = \"host\"\ndevice = \"cuda:1\"\nload_in_4bit = true";
    assert_eq!(recipe(host).unwrap().base, BaseHome::Host);
    for (key, more) in [
        ("device", "device = \"cpu\""),
        ("device", "device = \"wgpu\""),
        ("trainable", "trainable = \"all\""),
        ("trainable", "trainable = [\"norm\"]"),
        ("lora.init", "lora.init = \"pissa\""),
        (
            "quantization.bits",
            "load_in_4bit = true\nquantization.bits = 4.5",
        ),
        (
            "quantization.base_memory",
            "load_in_4bit = true\nquantization.base_memory = \"1GiB\"",
        ),
    ] {
        recipe(more).unwrap();
        let refused = recipe(&format!("base = \"host\"\n{more}"));
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains(key), "{more}: {refused}");
        assert!(
            refused.contains("base = \"host\"") || refused.contains("take base out"),
            "{more}: {refused}"
        );
    }
}

#[test]
fn what_lengths_of_rows_do_not_go_with_is_refused() {
    for (key, more) in [
        ("lora.init", "load_in_4bit = true\nlora.init = \"qera\""),
        ("lora.init", "load_in_4bit = true\nlora.init = \"loftq\""),
        ("lora.init", "lora.init = \"pissa\""),
        (
            "quantization.bits",
            "load_in_4bit = true\nquantization.bits = 4.5",
        ),
        (
            "quantization.base_memory",
            "load_in_4bit = true\nquantization.base_memory = \"1GiB\"",
        ),
        ("train.optimizer", "train.optimizer = \"muon\""),
    ] {
        let recipe = |more: &str| {
            let text = format!("model = \"a/b\"\ndata.train = \"rows.jsonl\"\n{more}\n");
            Recipe::from_toml(&text, Path::new("/recipes"), &[])
        };
        recipe(more).unwrap();
        let refused = recipe(&format!("{more}\nlora.use_dora = true"))
            .unwrap_err()
            .to_string();
        assert!(refused.contains(key), "{more}: {refused}");
        assert!(
            refused.contains("lora.use_dora = true"),
            "{more}: {refused}"
        );
    }
}

#[test]
fn a_resolved_recipe_reads_back_as_itself() {
    let texts = [
        SMALLEST.to_owned(),
        with_eval("[train]\nmax_steps = 7\nwarmup_steps = 2\nlr_scheduler = \"polynomial\"\n"),
        with_eval("format = \"alpaca\"\nprompt_template = \"\"\"{output}\n\"quoted\" \\\\\"\"\"\n"),
        with_eval("format = \"text\"\n[train]\nlr_scheduler = \"constant\"\nepochs = 0.5\n"),
        with_eval(
            "[lora]\nlayers_to_transform = [3, 0]\nuse_rslora = true\nuse_dora = true\ntarget_modules = [\"k_proj\"]",
        ),
        with_eval(
            "[lora]\ntarget_modules = \"All-linear\"\nexclude_modules = '.*\\.mlp\\..*'\nrank_pattern = { v_proj = 9, 'layers\\.1\\..*' = 3, k_proj = 4 }\n[lora.alpha_pattern]\nq_proj = 2.5\n",
        ),
        with_eval("[lora]\ntarget_modules = '.*\\.q_proj'\nexclude_modules = [\"layers.0.self_attn.q_proj\"]\n"),
        with_eval("[train.lr_scheduler]\nkind = \"cosine_with_min_lr\"\nmin_lr = 2e-5\n"),
        with_eval("[train]\nlr_scheduler = { kind = \"inverse_sqrt\", timescale = 9 }\n"),
        format!("{SMALLEST}eval = 0.1\nbatching = \"packed\"\ncache = \"off\"\nchat_template = \"llama3\"\n"),
        with_eval("cache = \"here\"\nfields = { text = \"body\" }\nskip_bad_rows = 3\noverlong = \"drop\"\n"),
        SMALLEST.replace(
            "\"rows.jsonl\"",
            "[\"a/*.jsonl\", \"org/set:test\", { path = \"b\", weight = 0.25, format = \"alpaca\", fields = { output = \"o\" } }]",
        ),
        with_eval(
            "[data.eval_sets]\ngeneral = \"g.jsonl\"\ncode-2 = [\"c\", { path = \"d\", format = \"text\" }]\n[train]\nearly_stopping_eval = \"general\"\n",
        ),
        SMALLEST.replace("\"rows.jsonl\"", "[{ path = \"b\", weight = 2 }, { path = \"c\", weight = 3 }]"),
    ];
    for text in texts {
        let recipe = read(&text, &[]).unwrap();
        let written = recipe.to_toml().unwrap();
        let again = Recipe::from_toml(&written, Path::new("/elsewhere"), &[]).unwrap();
        assert_eq!(again, recipe, "{written}");
    }
}

#[test]
fn paths_start_at_the_recipe_and_hub_ids_stay() {
    let recipe = read(&with_eval(""), &["model=./local", "output_dir=\"/abs\""]).unwrap();
    assert_eq!(recipe.model, "/recipes/./local");
    assert_eq!(recipe.output_dir, Path::new("/abs"));
    assert_eq!(recipe.data.train, one("/recipes/rows.jsonl"));
    let held_out = EvalRecipe::Sources(one("/recipes/held-out.jsonl"));
    assert_eq!(recipe.data.eval, Some(held_out));
    assert_eq!(read(SMALLEST, &[]).unwrap().model, "org/name");
    assert_eq!(
        read(SMALLEST, &["model=m.gguf"]).unwrap().model,
        "/recipes/m.gguf"
    );
}

#[test]
fn a_recipe_file_is_read_from_its_own_directory() {
    let dir = std::env::temp_dir().join(format!("backdraft-recipe-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let path = dir.join("recipe.toml");
    std::fs::write(&path, SMALLEST).unwrap();
    let recipe = Recipe::load(&path, &["data.eval=here.jsonl".to_owned()]).unwrap();
    assert_eq!(
        recipe.data.train,
        one(dir.join("rows.jsonl").to_str().unwrap())
    );
    let here = std::env::current_dir().unwrap().join("here.jsonl");
    let here = EvalRecipe::Sources(one(here.to_str().unwrap()));
    assert_eq!(recipe.data.eval, Some(here));
    std::fs::remove_dir_all(&dir).unwrap();
    assert!(matches!(
        Recipe::load(&path, &[]),
        Err(RecipeError::Read { .. })
    ));
}

#[test]
fn overrides_take_the_place_of_the_file() {
    let text = with_eval("[train]\nepochs = 2\nwarmup_ratio = 0.1\nlr_scheduler = \"linear\"\n");
    let recipe = read(&text, &["train.max_steps=10", "train.warmup_steps=3"]).unwrap();
    assert_eq!(recipe.train.length, Length::MaxSteps(10));
    assert_eq!(recipe.train.warmup, Warmup::Steps(3));
    let set = |text: &str| read(SMALLEST, &[text]).unwrap();
    assert_eq!(
        set("train.lr_scheduler=linear").train.lr_scheduler,
        ScheduleKind::Linear {}
    );
    let table = "train.lr_scheduler={ kind = 'polynomial', power = 2 }";
    let polynomial = ScheduleKind::Polynomial {
        power: 2.0,
        lr_end: 1e-7,
    };
    assert_eq!(set(table).train.lr_scheduler, polynomial);
    assert_eq!(set(" lora.rank = 8 ").lora.rank, 8);
    assert_eq!(
        set("lora.target_modules=['q_proj']").lora.target_modules,
        ModuleNames::List(vec!["q_proj".to_owned()])
    );
    assert_eq!(read(SMALLEST, &["seed=1", "seed=2"]).unwrap().seed, 2);
}

#[test]
fn steps_and_schedule_follow_from_the_recipe() {
    let recipe = read(SMALLEST, &[]).unwrap();
    let total = recipe.train.length.total_steps(110);
    assert_eq!((recipe.train.rows_per_step(), total), (8, 330));
    let schedule = recipe.train.schedule(total);
    assert_eq!(
        (schedule.warmup_steps, schedule.at(0), schedule.at(17)),
        (17, 0.0, 2e-4)
    );
    assert_eq!(Length::Epochs(0.5).total_steps(3), 2);
}

#[test]
fn every_problem_is_reported_together() {
    let text = r#"
model = "HuggingFaceTB/SmolLM2-135M-Instruct"
load_in_4bit = true
max_sequence_length = 1024

[lora]
r = 16
alpha = -1
target_modules = ["q_proj", "lm_head", "qproj"]

[data]
format = "mesages"

[train]
learning_rate = "fast"
epochs = 3
max_steps = 100
optimizer = "adamw_8bit"
"#;
    assert_snapshot!(read(text, &["train.lr=1e-3", "nonsense"]).unwrap_err(), @r#"
    10 problems in the recipe recipe.toml:
      line 4: unknown key `max_sequence_length`; here it is `max_seq_length`: write `max_seq_length = 1024`
      line 7: unknown key `lora.r`; here it is `lora.rank`: write `lora.rank = 16`
      line 8: `lora.alpha` takes a number above 0, not -1
      line 9: `lora.target_modules` takes "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "qkv_proj", "gate_up_proj", "in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a" or "out_proj", not "qproj"; did you mean "q_proj"?
      line 12: `data.format` takes "auto", "messages", "alpaca", "sharegpt", "prompt_completion", "text", "preference" or "unpaired", not "mesages"; did you mean "messages"?
      line 15: `train.learning_rate` takes a number above 0, not "fast"
      line 17: `train.max_steps` does not go with `train.epochs`: keep the one you mean
      --set nonsense: an override is written section.key=value, for instance train.learning_rate=1e-4
      --set train.lr=1e-3: unknown key `train.lr`; here it is `train.learning_rate`: write `train.learning_rate = 1e-3`
      `data.train` is missing: Training rows: a file, a folder, a glob, a hub data set (org/name:split), a table with path, weight (or epochs, or share), format and fields, or a list of these. For instance `data.train = "train.jsonl"`
    "#);
}

#[test]
fn text_that_is_not_toml_is_reported_with_its_lines() {
    assert_snapshot!(read("model = \nseed = 4 2\n[lora\n", &[]).unwrap_err(), @"
    3 problems in the recipe recipe.toml:
      line 1: not valid TOML: string values must be quoted, expected literal string
      line 2: not valid TOML: string values must be quoted, expected literal string
      line 3: not valid TOML: unclosed table, expected `]`
    ");
    assert_snapshot!(read("seed = 1\nseed = 2\n", &[]).unwrap_err(), @"
    one problem in the recipe recipe.toml:
      line 2: not valid TOML: duplicate key
    ");
}

#[test]
fn missing_keys() {
    assert_snapshot!(read("", &[]).unwrap_err(), @r#"
    2 problems in the recipe recipe.toml:
      `model` is missing: The model to fine-tune: a hub id, a Hugging Face directory, or a .gguf file. For instance `model = "HuggingFaceTB/SmolLM2-135M-Instruct"`
      `data.train` is missing: Training rows: a file, a folder, a glob, a hub data set (org/name:split), a table with path, weight (or epochs, or share), format and fields, or a list of these. For instance `data.train = "train.jsonl"`
    "#);
}

#[test]
fn unknown_keys() {
    assert_snapshot!(problems("trian = 1\n[train]\nbatch_size = 4\nwarmup = 3\n[wandb]\nproject = \"x\"\n[lroa]\n"), @"
    5 problems in the recipe recipe.toml:
      line 4: unknown key `data.trian`; did you mean `data.train`?
      line 6: unknown key `train.batch_size`; here it is `train.micro_batch_size`: write `train.micro_batch_size = 4`
      line 7: unknown key `train.warmup`; here it is `train.warmup_steps`: write `train.warmup_steps = 3`
      line 8: unknown key `wandb`; not supported yet: trackers; every run writes tensorboard event files, metrics.jsonl and report.html into output_dir
      line 10: unknown section `[lroa]`; did you mean `[lora]`?
    ");
    assert_snapshot!(read("model = \"org/name\"\ntrain = \"rows.jsonl\"\nrank = 8\nlearning-rate = 1\n", &[]).unwrap_err(), @r#"
    4 problems in the recipe recipe.toml:
      line 2: `train` is a section: write `[train]` on its own line and its keys below, for instance `micro_batch_size = 2`
      line 3: unknown key `rank`; did you mean `lora.rank`?
      line 4: unknown key `learning-rate`; did you mean `train.learning_rate`?
      `data.train` is missing: Training rows: a file, a folder, a glob, a hub data set (org/name:split), a table with path, weight (or epochs, or share), format and fields, or a list of these. For instance `data.train = "train.jsonl"`
    "#);
    assert_snapshot!(problems_of_override("train.learning_rates=1"), @"
    one problem in the recipe recipe.toml:
      --set train.learning_rates=1: unknown key `train.learning_rates`; did you mean `train.learning_rate`?
    ");
}

#[test]
fn wrong_types() {
    assert_snapshot!(problems("eval = 3\n[lora]\nrank = 2.5\nuse_rslora = \"yes\"\ntarget_modules = \"q_proj\"\nlayers_to_transform = [-1]\n[train]\nepochs = [3]\nlogging_steps = -10\n"), @r#"
    7 problems in the recipe recipe.toml:
      line 4: `data.eval` takes a path or a list of them as data.train does, or a share of the training rows such as 0.05, not 3
      line 6: `lora.rank` takes a whole number, 1 or more, not 2.5
      line 7: `lora.use_rslora` takes true or false, not "yes"
      line 8: `lora.target_modules` takes a list of names, "all-linear", or a regular expression for whole paths (without look-around), such as '.*\.layers\.[0-3]\..*_proj', not "q_proj"
      line 9: `lora.layers_to_transform` takes a list of whole numbers, not [-1]
      line 11: `train.epochs` takes a number above 0, not [3]
      line 12: `train.logging_steps` takes a whole number, 1 or more, not -10
    "#);
    assert_snapshot!(problems_of_override("lora.target_modules=[1]"), @r#"
    one problem in the recipe recipe.toml:
      --set lora.target_modules=[1]: `lora.target_modules` takes a list of names, "all-linear", or a regular expression for whole paths (without look-around), such as '.*\.layers\.[0-3]\..*_proj', not [1]
    "#);
    assert_snapshot!(problems_of_override("model=17"), @"
    one problem in the recipe recipe.toml:
      --set model=17: `model` takes a string, not 17
    ");
}

#[test]
fn values_out_of_range() {
    assert_snapshot!(problems("[lora]\nrank = 0\nalpha = inf\ndropout = 1.0\ntarget_modules = []\nlayers_to_transform = [1, 1]\n[train]\nmicro_batch_size = 0\nlearning_rate = nan\nwarmup_ratio = 5\nweight_decay = -0.1\nadam_beta2 = 1.0\nadam_epsilon = 0\n"), @"
    11 problems in the recipe recipe.toml:
      line 5: `lora.rank` takes a whole number, 1 or more, not 0
      line 6: `lora.alpha` takes a number above 0, not inf
      line 7: `lora.dropout` takes a number from 0 to below 1, not 1.0
      line 8: `lora.target_modules` takes at least one projection, each once, not []
      line 9: `lora.layers_to_transform` takes at least one layer, each once; leave it out for all layers, not [1, 1]
      line 11: `train.micro_batch_size` takes a whole number, 1 or more, not 0
      line 12: `train.learning_rate` takes a number above 0, not nan
      line 13: `train.warmup_ratio` takes a number from 0 to 1, not 5
      line 14: `train.weight_decay` takes a number, 0 or more, not -0.1
      line 15: `train.adam_beta2` takes a number from 0 to below 1, not 1.0
      line 16: `train.adam_epsilon` takes a number above 0, not 0
    ");
    assert_snapshot!(problems_of_override("seed=9223372036854775808"), @"
    one problem in the recipe recipe.toml:
      --set seed=9223372036854775808: `seed` takes a whole number from 0 to 2^63 - 1, not 9223372036854775808
    ");
    assert_snapshot!(problems_of_override("max_seq_length=1"), @"
    one problem in the recipe recipe.toml:
      --set max_seq_length=1: `max_seq_length` takes a whole number, 2 or more, not 1
    ");
    assert_snapshot!(problems_of_override("model=no hub id"), @r#"
    one problem in the recipe recipe.toml:
      --set model=no hub id: `model` takes a hub id (org/name) or the path of a directory or .gguf file, not "no hub id"
    "#);
    assert_snapshot!(problems_of_override("output_dir="), @r#"
    one problem in the recipe recipe.toml:
      --set output_dir=: `output_dir` takes a path, not ""
    "#);
}

#[test]
fn values_of_other_programs_and_later_versions_are_refused_by_name() {
    let refused = |text: &str| problems_of_override(text);
    assert_snapshot!(refused("quantization.block_size=32"), @"
    one problem in the recipe recipe.toml:
      --set quantization.block_size=32: `quantization.block_size` takes 64 or 128, not 32
    ");
    assert_snapshot!(refused("dtype=float16"), @r#"
    one problem in the recipe recipe.toml:
      --set dtype=float16: `dtype = "float16"` is not supported: write dtype = "f16"
    "#);
    assert_snapshot!(refused("dtype=float32"), @r#"
    one problem in the recipe recipe.toml:
      --set dtype=float32: `dtype = "float32"` is not supported: write dtype = "f32"
    "#);
    assert_snapshot!(refused("activation_policy=offload"), @r#"
    one problem in the recipe recipe.toml:
      --set activation_policy=offload: `activation_policy = "offload"` is not supported: tensors wait in the host's memory where that pays under activation_policy = "smart", unless activation_offloading = false
    "#);
    assert_snapshot!(refused("memory_budget=12"), @r#"
    one problem in the recipe recipe.toml:
      --set memory_budget=12: `memory_budget` takes a size such as "12GiB", not 12
    "#);
    assert_snapshot!(refused("device=gpu"), @r#"
    one problem in the recipe recipe.toml:
      --set device=gpu: `device = "gpu"` is not supported: write device = "cuda" or device = "auto"
    "#);
    assert_snapshot!(refused("device=cuda:x"), @r#"
    one problem in the recipe recipe.toml:
      --set device=cuda:x: `device` takes auto, cpu, cuda, cuda:N or wgpu, not "cuda:x"
    "#);
    assert_snapshot!(refused("lora.bias=lora"), @r#"
    one problem in the recipe recipe.toml:
      --set lora.bias=lora: `lora.bias = "lora"` is not supported: write bias = "all", or "lora_only" for the biases of modules with an adapter
    "#);
    assert_snapshot!(refused("lora.target_modules=embed_tokens"), @r#"
    one problem in the recipe recipe.toml:
      --set lora.target_modules=embed_tokens: `lora.target_modules` takes a list of names, "all-linear", or a regular expression for whole paths (without look-around), such as '.*\.layers\.[0-3]\..*_proj', not "embed_tokens"
    "#);
    assert_snapshot!(refused("train.optimizer=paged_adamw_8bit"), @r#"
    one problem in the recipe recipe.toml:
      --set train.optimizer=paged_adamw_8bit: `train.optimizer = "paged_adamw_8bit"` is not supported: this version does not page the optimiser's state; write optimizer = "adamw_8bit" or "adamw"
    "#);
    assert_snapshot!(refused("train.optimizer=adam"), @r#"
    one problem in the recipe recipe.toml:
      --set train.optimizer=adam: `train.optimizer = "adam"` is not supported: AdamW is Adam where weight_decay = 0; write optimizer = "adamw"
    "#);
    assert_snapshot!(refused("train.lr_scheduler=reduce_lr_on_plateau"), @r#"
    one problem in the recipe recipe.toml:
      --set train.lr_scheduler=reduce_lr_on_plateau: `train.lr_scheduler = "reduce_lr_on_plateau"` is not supported: it does not follow from the step alone; write lr_scheduler = "cosine"
    "#);
}

#[test]
fn schedules_with_wrong_options() {
    let refused = |text: &str| problems_of_override(&format!("train.lr_scheduler={text}"));
    assert_snapshot!(refused("cosin"), @r#"
    one problem in the recipe recipe.toml:
      --set train.lr_scheduler=cosin: `train.lr_scheduler` takes "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "cosine_with_min_lr", "polynomial", "inverse_sqrt" or "range_test", not "cosin"; did you mean "cosine"?
    "#);
    assert_snapshot!(refused("{ kind = 'linear', min_lr_rate = 0.1 }"), @r#"
    one problem in the recipe recipe.toml:
      --set train.lr_scheduler={ kind = 'linear', min_lr_rate = 0.1 }: `train.lr_scheduler.min_lr_rate` does not go with kind = "linear": take it out, or choose a kind that has this option
    "#);
    assert_snapshot!(refused("{ min_lr_rate = 0.1 }"), @r#"
    one problem in the recipe recipe.toml:
      --set train.lr_scheduler={ min_lr_rate = 0.1 }: `train.lr_scheduler.min_lr_rate` does not go with kind = "cosine": take it out, or choose a kind that has this option
    "#);
    assert_snapshot!(refused("{ kind = 'cosine_with_min_lr' }"), @"
    one problem in the recipe recipe.toml:
      --set train.lr_scheduler={ kind = 'cosine_with_min_lr' }: `train.lr_scheduler.min_lr_rate` is missing: The lowest learning rate as a share of the peak. For instance `train.lr_scheduler.min_lr_rate = 0.1`
    ");
    assert_snapshot!(refused("{ kind = 'cosine_with_min_lr', min_lr = 1e-5, min_lr_rate = 0.1 }"), @"
    one problem in the recipe recipe.toml:
      --set train.lr_scheduler={ kind = 'cosine_with_min_lr', min_lr = 1e-5, min_lr_rate = 0.1 }: `train.lr_scheduler.min_lr` does not go with `min_lr_rate`: keep the one you mean
    ");
    assert_snapshot!(refused("{ kind = 'cosine_with_min_lr', min_lr = 1.0 }"), @"
    one problem in the recipe recipe.toml:
      --set train.lr_scheduler={ kind = 'cosine_with_min_lr', min_lr = 1.0 }: `train.lr_scheduler.min_lr` takes a learning rate from 0 to the peak, not 1.0
    ");
    assert_snapshot!(refused("{ kind = 'polynomial', power = -1, lr_end = 1.0 }"), @"
    2 problems in the recipe recipe.toml:
      --set train.lr_scheduler={ kind = 'polynomial', power = -1, lr_end = 1.0 }: `train.lr_scheduler.power` takes a number above 0, not -1
      --set train.lr_scheduler={ kind = 'polynomial', power = -1, lr_end = 1.0 }: `train.lr_scheduler.lr_end` takes a learning rate below the peak, not 1.0
    ");
    assert_snapshot!(refused("{ kind = 'cosine', num_cycle = 1 }"), @"
    one problem in the recipe recipe.toml:
      --set train.lr_scheduler={ kind = 'cosine', num_cycle = 1 }: unknown key `train.lr_scheduler.num_cycle`; did you mean `train.lr_scheduler.num_cycles`?
    ");
    assert_snapshot!(refused("{ kind = 'plateau', patience = 1 }"), @r#"
    2 problems in the recipe recipe.toml:
      --set train.lr_scheduler={ kind = 'plateau', patience = 1 }: `train.lr_scheduler.kind = 'plateau'` is not supported: it does not follow from the step alone; write lr_scheduler = "cosine"
      --set train.lr_scheduler={ kind = 'plateau', patience = 1 }: unknown key `train.lr_scheduler.patience`
    "#);
    assert_snapshot!(refused("[1]"), @"
    one problem in the recipe recipe.toml:
      --set train.lr_scheduler=[1]: `train.lr_scheduler` takes a string, not [1]
    ");
}

#[test]
fn keys_that_exclude_each_other() {
    assert_snapshot!(problems("format = \"messages\"\nprompt_template = \"{output}\"\n[train]\nepochs = 1\nmax_steps = 5\nwarmup_steps = 2\nwarmup_ratio = 0.1\neval_steps = 5\n"), @r#"
    4 problems in the recipe recipe.toml:
      line 5: `data.prompt_template` does not go with format = "messages": chats use a chat template; take it out, or write chat_template
      line 8: `train.max_steps` does not go with `train.epochs`: keep the one you mean
      line 9: `train.warmup_steps` does not go with `train.warmup_ratio`: keep the one you mean
      line 11: `train.eval_steps` does not go with a missing `data.eval`: name the file to evaluate in [data], or take it out
    "#);
    assert_snapshot!(problems("format = \"text\"\ntrain_on = \"responses\"\nprompt_template = \"x\"\n"), @r#"
    2 problems in the recipe recipe.toml:
      line 5: `data.train_on` does not go with format = "text": text has no responses; write train_on = "everything"
      line 6: `data.prompt_template` does not go with format = "text": text is used as it is; take it out
    "#);
    assert_snapshot!(problems("[train]\nlr_scheduler = \"constant\"\nwarmup_steps = 5\n"), @r#"
    one problem in the recipe recipe.toml:
      line 6: `train.warmup_steps` does not go with lr_scheduler = "constant": it has no warm-up; write lr_scheduler = "constant_with_warmup", or a warm-up of 0
    "#);
}

/// As transformers warms up: as far as it gets.
#[test]
fn a_warm_up_may_outlast_the_run() {
    let recipe = read(SMALLEST, &["train.max_steps=3", "train.warmup_steps=5"]).unwrap();
    let schedule = recipe.train.schedule(3);
    let rates: Vec<f64> = (0..3).map(|step| schedule.at(step)).collect();
    assert_eq!(rates, [0.0, 2e-4 / 5.0, 2.0 * 2e-4 / 5.0]);
}

#[test]
fn recipes_of_other_trainers_are_answered_key_by_key() {
    let said = problems(
        r#"
[train]
optim = "paged_adamw_8bit"
lr_scheduler_type = "linear"
[lora_parameters]
rank = 8
scale = 20.0
[dataset]
source = "org/name"
train_on_input = false
packed = true
[trl]
beta = 0.1
[training]
learning_rate = 1e-4
[[datasets]]
path = "rows.jsonl"
type = "alpaca"
"#,
    );
    for line in [
        "line 6: unknown key `train.optim`; here it is `train.optimizer`: this version does not page",
        "line 7: unknown key `train.lr_scheduler_type`; here it is `train.lr_scheduler`: write `train.lr_scheduler = \"linear\"`",
        "line 9: unknown key `lora_parameters.rank`; here it is `lora.rank`: write `lora.rank = 8`",
        "line 10: unknown key `lora_parameters.scale`; here it is `lora.alpha`: ",
        "line 12: unknown key `dataset.source`; here it is `data.train`: write `data.train = \"org/name\"`",
        "line 13: unknown key `dataset.train_on_input`; here it is `data.train_on`: write train_on = \"responses\"",
        "line 14: unknown key `dataset.packed`; here it is `data.batching`: write batching = \"packed\"",
        "unknown key `trl`; not supported yet: training on rewards",
        "line 18: unknown key `training.learning_rate`; did you mean `train.learning_rate`?",
        "unknown key `datasets`; here it is `data.train`: ",
    ] {
        assert!(said.contains(line), "{line}\n{said}");
    }
    let torchtune =
        "[model]\n_component_ = \"torchtune.models.llama3_2.lora_llama3_2_1b\"\nlora_rank = 64\n";
    let said = read(torchtune, &[]).unwrap_err().to_string();
    for part in [
        "line 2: unknown key `model._component_`; always so",
        "here it is `lora.rank`",
        "`model` is missing",
    ] {
        assert!(said.contains(part), "{part}\n{said}");
    }
}

#[test]
fn values_with_a_word_of_advice_are_values_that_no_key_takes() {
    let mut seen = 0;
    for (key, value, instead) in support::values() {
        let text = match key {
            "lora.target_modules" => format!("{key}=['{value}']"),
            _ => format!("{key}='{value}'"),
        };
        let said = problems_of_override(&text);
        assert!(said.contains(instead), "{text}: {said}");
        seen += 1;
    }
    assert!(seen > 100, "{seen}");
    let said = problems_of_override("lora.target_modules=all");
    assert!(
        said.contains("write target_modules = \"all-linear\""),
        "{said}"
    );
}

#[test]
fn the_template_reads_back_as_the_defaults() {
    let choices = Choices {
        model: "org/name".into(),
        train: "rows.jsonl".into(),
        ..Choices::default()
    };
    let template = Recipe::template(&choices);
    assert_eq!(read(&template, &[]).unwrap(), read(SMALLEST, &[]).unwrap());

    let choices = Choices {
        eval: Some("held \"out\".jsonl".into()),
        format: DataFormat::Named(Format::Text),
        output_dir: "runs\\1".into(),
        ..choices
    };
    let recipe = read(&Recipe::template(&choices), &[]).unwrap();
    let held_out = EvalRecipe::Sources(one("/recipes/held \"out\".jsonl"));
    assert_eq!(recipe.data.eval, Some(held_out));
    assert_eq!(recipe.data.train_on, Supervision::All);
    assert_eq!(recipe.train.eval_steps, Some(50));
    assert_eq!(recipe.output_dir, Path::new("/recipes/runs\\1"));

    let choices = Choices {
        load_in_4bit: true,
        ..Choices::default()
    };
    let recipe = read(&Recipe::template(&choices), &[]).unwrap();
    assert!(recipe.load_in_4bit);
    assert_eq!(recipe.quantization.bits, Some(Bits::Mean(4.5)));
    assert_eq!(recipe.lora.init, AdapterStart::Qera);
}

#[test]
fn the_template_names_every_key_once() {
    let template = Recipe::template(&Choices::default());
    for key in KEYS {
        let assigned = format!("{} = ", key.name());
        let lines = template
            .lines()
            .filter(|line| line.trim_start_matches("# ").starts_with(&assigned));
        let same_name = KEYS
            .iter()
            .filter(|other| other.name() == key.name())
            .count();
        assert_eq!(lines.count(), same_name, "{}", key.path);
    }
}

#[test]
fn the_template_as_a_whole() {
    assert_snapshot!(Recipe::template(&Choices::default()), @r#"
    # A Backdraft recipe. Run it with `backdraft train FILE`; `--set train.learning_rate=1e-4` beside it
    # changes a value for one run. Relative paths start at the directory of this file.
    # A line that begins with `# key =` shows a key that is not set.

    # The model to fine-tune: a hub id, a Hugging Face directory, or a .gguf file.
    model = "HuggingFaceTB/SmolLM2-135M-Instruct"

    # Where the adapter (or the model, see trainable), checkpoints and logs go.
    output_dir = "outputs"

    # Seed for shuffling, adapter initialization and dropout.
    seed = 42

    # Data type to compute in: auto, bf16, f16 or f32; auto is bf16 where tensor cores have it, f16
    # where they have only that, else f32.
    dtype = "auto"

    # Load the frozen linear layers in 4 bits (QLoRA); see [quantization]. Trains nearly as without,
    # where quantization.bits = 4.5 and lora.init = "qera" stand beside it: `init --load-in-4bit` writes
    # both.
    # Change: out of memory: true.
    load_in_4bit = false

    # Load the frozen linear layers in 8 bits, one scale per row.
    load_in_8bit = false

    # Maximum tokens per row; longer rows are truncated (see data.overlong), and counted in the report.
    # Change: out of memory: lower.
    max_seq_length = 2048

    # What the forward pass keeps for the backward pass: smart recomputes as little as the memory
    # allows, tensor by tensor; keep-all nothing; recompute-all every layer; sqrt keeps every √n-th
    # layer's input. The gradients are the same. `backdraft plan` shows what each costs.
    activation_policy = "smart"

    # Memory that a step may use under smart, base included. Left out: what is free, less a margin.
    # memory_budget = "12GiB"

    # Whether smart may offload activations to host memory between the forward and backward pass, where
    # the device copies while it computes (CUDA) and that costs less than recomputing.
    activation_offloading = true

    # Where the matrices of the base's layers stay while adapters are trained: device; or host, in
    # pinned host memory, from which each layer comes to the GPU while the one before computes (CUDA),
    # so that the GPU holds those of two layers only. The results are the same bits. `backdraft plan`
    # shows whether computing hides the copies.
    # Change: out of memory on a GPU: "host".
    base = "device"

    # Where to compute: auto, cpu, cuda, cuda:N or wgpu; auto is cuda:0 where there is one.
    device = "auto"

    # What is trained: adapter (LoRA, see [lora]); all, every tensor of the base (full fine-tuning); or
    # a list of modules by name, end of path or regular expression, such as ["norm", 'layers\.[0-3]'],
    # with what is inside them. Without adapters the result is a model, output_dir/model, and training
    # takes 16 bytes a value with adamw.
    # Change: with "all", start at learning_rate = 1e-5.
    trainable = "adapter"


    [quantization]
    # Data type of the 4-bit weights: nf4 or fp4. Only with load_in_4bit.
    quant_type = "nf4"

    # Quantization block size: 64 or 128 weights per scale. Only with load_in_4bit.
    block_size = 64

    # Double quantization: quantize the scales too, 4.13 bits per weight instead of 4.5. Only with
    # load_in_4bit.
    double_quant = true

    # Modules to leave unquantized: a path, or components of one such as "down_proj" or "layers.0".
    skip_modules = ["lm_head"]

    # Train over a GGUF file's own blocks (Q4_K, Q8_0 and so on), which stay in memory as the file has
    # them; otherwise they are dequantized, or quantized anew by load_in_4bit or load_in_8bit.
    # Change: out of memory over a .gguf file: true.
    keep_blocks = false

    # Adaptive precision: mean bits of a quantized weight, scales included. What an error of each
    # projection would cost is measured on training rows, and each gets one of formats so that the cost
    # is least. "auto" takes as many, up to 8, as make a step at most 5 % slower in the memory that
    # there is. Left out: every projection gets quant_type. Only with load_in_4bit.
    # Change: result worse than without quantization: raise; out of memory: lower.
    # bits = 4.5

    # Adaptive precision within a size: what the whole base may take, embeddings included, in place of
    # bits.
    # base_memory = "5GiB"

    # A file that says how each projection is stored, as `backdraft plan --measure --write` makes it:
    # nothing is measured before the first step. With bits, later points of adapt_at go on from it. Only
    # with load_in_4bit.
    # plan = "precision.json"

    # What bits may be dealt out as: nf3, nf4, nf5 and nf6 take their number and 0.13 with double_quant,
    # int8 takes 8. Only with bits or base_memory.
    formats = ["nf3", "nf4", "nf5", "nf6", "int8"]

    # When precision is dealt out: shares of the run, rising. 0.0 is before the first step; at a later
    # one everything is measured anew, and what does not improve the loss of rows kept for it is taken
    # back. Only with bits or base_memory.
    adapt_at = [0.0]

    # Tokens of training rows that are measured; half as many of others are looked at to see whether it
    # helped. Only with bits, base_memory or lora.init = "qera".
    calibration_tokens = 4096


    [lora]
    # An adapter to train further, made here or by PEFT: its directory, or that of a run. Its rank,
    # alpha, use_rslora, use_dora, modules and patterns are taken over (dropout too, where it is left
    # out), and a key that says otherwise is an error; the optimizer starts fresh. Left out: a new
    # adapter.
    # adapter = "outputs"

    # LoRA rank (r): more can learn more, and takes more memory.
    # Change: result too weak: raise; out of memory: lower.
    rank = 16

    # LoRA alpha: adapters are scaled by alpha / rank (alpha / sqrt(rank) with rsLoRA).
    alpha = 32

    # LoRA dropout: the share of an adapter's inputs set to zero in training, from 0 to below 1.
    # Change: over-fitting on few rows: 0.05 to 0.1.
    dropout = 0.0

    # Rank-stabilized LoRA: scale by alpha / sqrt(rank), which suits high ranks.
    use_rslora = false

    # Weight-decomposed LoRA (DoRA): train the length of each row of a weight beside its direction. A
    # step takes about half as much again. Not where init is loftq, qera or pissa, where bits are dealt
    # out, or with the optimizer muon.
    # Change: a low rank is too weak: true.
    use_dora = false

    # The linear layers that get an adapter, by name or end of path, and the tables embed_tokens and
    # lm_head where they are named; or "all-linear", which is every linear layer but the head; or a
    # regular expression for whole paths, such as '.*\.layers\.[0-3]\..*_proj'. As by PEFT.
    target_modules = "all-linear"

    # Modules that get no adapter, whatever else names them: names or ends of paths, or a regular
    # expression for whole paths.
    # exclude_modules = ["layers.0.self_attn.q_proj"]

    # Where adapters start: default changes nothing yet; loftq gives back the part of the quantization
    # error that fits into the rank; qera the part that matters most by measurement on training rows;
    # both only over a quantized base. pissa takes the largest part of the weights out of the base and
    # trains it; only over one that is not quantized. The adapter that it leaves fits the original base,
    # with twice the rank. orthogonal changes nothing yet either, but draws both factors, so that both
    # learn from the first step on, as by PEFT; it takes even ranks.
    init = "default"

    # Biases of the base to train beside the adapters, as by PEFT: all, or lora_only for those of
    # modules with an adapter. They are saved in the adapter.
    bias = "none"

    # Modules of the base to train whole beside the adapters, as by PEFT: each whose path ends in one of
    # these texts, so that "norm" takes every norm. Norms, embed_tokens and lm_head; a tied head is
    # trained with the embedding. They are saved in the adapter. Not where quantized, nor with the
    # optimizer muon.
    # modules_to_save = ["lm_head", "embed_tokens"]

    # Names in the adapter's file: auto has those of the base's class, which are
    # model.language_model.layers… where the language model is one part of several (Gemma 3 from 4B,
    # Mistral Small 3.1, Ministral 3); text has model.layers…, for serving the language model alone. An
    # adapter under the names of another class may load and do nothing.
    key_prefix = "auto"

    # Layers that get adapters, counted from 0. Left out: all of them.
    # layers_to_transform = [0, 1, 2]

    # Ranks of some modules: the first of the names or regular expressions that a module's path ends in.
    # Left out: lora.rank for all.
    # rank_pattern = { q_proj = 8, 'layers\.[0-3]\..*' = 32 }

    # The same for alpha. A module's adapter is scaled by its own alpha over its own rank.
    # alpha_pattern = { q_proj = 16 }

    # Tokens of the vocabulary whose rows of the embedding are trained beside the adapters, and their
    # rows of the head where that is a matrix of its own: PEFT's trainable_token_indices, by text.
    # Tokens of tokens.add are always among them.
    # trainable_tokens = ["<tool>"]


    [tokens]
    # New tokens: added to the tokenizer, which is saved beside the adapter, and to the vocabulary,
    # whose embedding and head get a row for each where they have too few. Only these rows are trained.
    # Needs a base in Hugging Face's format.
    # add = ["<tool>", "</tool>"]

    # Where rows of new tokens start: mean is the mean of all rows; subtokens is the mean of the rows of
    # the tokens that the text of tokens.descriptions, or else that of the token itself, is made of.
    # Only with tokens.add.
    # init = "mean"

    # What new tokens mean, in words. Only with tokens.init = "subtokens".
    # descriptions = { "<tool>" = "call of a tool" }


    [objective]
    # What is minimized: sft (the supervised tokens' mean loss); over rows of format preference: dpo,
    # orpo, simpo, cpo or reward (a reward model: a head with one row, score, is trained whole in place
    # of the one that predicts tokens); over unpaired or preference rows: kto. Those that compare
    # likelihoods take a learning rate of about a tenth of sft's.
    kind = "sft"

    # How much the margin between answers counts (dpo and kto: higher stays closer to the base); weight
    # of the odds ratio for orpo. Left out: 0.1, or 2.0 for simpo.
    # Change: answers degrade although accuracies rise: higher, or a lower learning rate.
    # beta = 0.1

    # Loss of a pair, for dpo: sigmoid, sigmoid_norm, ipo, hinge, robust, apo_zero, apo_down or
    # nca_pair, as by TRL, or a list of them, which are summed and each told of; sft in a list is what
    # sft_weight weighs. Left out: sigmoid.
    # loss = "sigmoid"

    # What each loss of objective.loss counts in the sum: a number above 0 for each. Left out: 1.0 each.
    # loss_weights = [1.0, 0.5]

    # Share of pairs that may be the wrong way round, from 0 to below 0.5: for simpo, cpo, and dpo's
    # sigmoid and robust. Left out: 0.
    # label_smoothing = 0.1

    # Weight of the mean loss of the chosen answers beside that of the pairs, for dpo, simpo and cpo.
    # Left out: 0, or 1.0 for cpo. orpo always has it with weight 1, over prompts too, as by TRL.
    # Change: chosen answers become unlikely too: raise.
    # sft_weight = 0.2

    # Margin that a pair should have, for simpo, subtracted after beta, and for reward, subtracted from
    # the difference of the rewards. Left out: 0.5, or 0 for reward.
    # gamma = 0.5

    # Weight of the squared sum of a pair's rewards, for reward, such as 0.01: keeps them around 0. Left
    # out: 0.
    # center_rewards_coefficient = 0.01

    # Weight of desirable answers, for kto. Left out: 1.0.
    # desirable_weight = 1.0

    # Weight of undesirable answers, for kto. Left out: 1.0.
    # undesirable_weight = 1.0

    # What dpo and kto compare answers with: start (the model that training begins with; with
    # lora.adapter a frozen copy of it is kept beside) or base (the base alone). Left out: start.
    # reference = "start"

    # Whether dpo asks the reference once, before the first step, and keeps what it said in data.cache,
    # two numbers a pair: no step and no evaluation has a reference pass, and with lora.adapter no copy
    # is kept. Left out: false.
    # precompute_reference = true


    [data]
    # Training rows: a file, a folder, a glob, a hub data set (org/name:split), a table with path,
    # weight (or epochs, or share), format and fields, or a list of these.
    train = "train.jsonl"

    # How sources of data.train are mixed: an epoch visits each by its rows to the power of 1 / this; 1
    # is as many rows as it has, large values as many rows of each. Left out: by the weight, epochs or
    # share of each.
    # mixing_temperature = 2.0

    # Rows held out, to see over-fitting: sources as in train, or a share of its rows such as 0.05,
    # chosen by the seed. Left out: no evaluation.
    # eval = "eval.jsonl"

    # Further rows held out, each set under a name: measured before the first step and at every
    # evaluation, to see what is forgotten. Sources as in train; only with data.eval.
    # eval_sets = { general = "general.jsonl" }

    # Format of the rows: messages, sharegpt (chats), alpaca (instruction, input, output),
    # prompt_completion, text, preference (prompt, chosen, rejected), unpaired (prompt, completion,
    # label), or auto: detected from the first rows.
    format = "auto"

    # Your names for the fields of the format. Left out: the format's own.
    # fields = { instruction = "question", output = "answer" }

    # Template for chats: a built-in one (`backdraft init --templates` lists them) or a .jinja file.
    # Left out: the model's own.
    # chat_template = "chatml"

    # Turns an alpaca row into text: {instruction}, {input}, {output}; the EOS token is added at the
    # end. Left out: the model's own chat template.
    # prompt_template = "Task: {instruction}\nAnswer: {output}"

    # Tokens that count in the loss: responses, last_turn, completion (after the prompt of rows that
    # have one) or everything (always so for text).
    train_on = "responses"

    # Rows longer than max_seq_length: truncate cuts their end, drop leaves them out, split makes
    # several of them (text only).
    overlong = "truncate"

    # Tokens that each part of a row repeats of the part before, as context that is not trained again;
    # only with overlong = "split". Left out: 1, which nothing predicts.
    # split_overlap = 64

    # Rows of a micro-batch: padding-free lays them end to end; packed does so with packs of rows that
    # fill max_seq_length, and counts packs as rows; padded fills up similar ones, for comparison. A
    # pair is one row: two texts, never in different micro-batches, and packs are twice as long.
    # Change: many short rows: packed, with fewer packs per step than rows before.
    batching = "padding-free"

    # How many bad rows may be skipped; they are listed in skipped_rows.jsonl. One more ends the run.
    skip_bad_rows = 0

    # Folder for tokenized rows, so that the next run starts at once: auto is backdraft/tokens in the
    # user's cache, off keeps them in memory.
    cache = "auto"


    [train]
    # Rows in one forward and backward pass.
    # Change: out of memory: lower it, and raise grad_accumulation_steps by as much.
    micro_batch_size = 2

    # Micro-batches per optimizer step: rows per step = micro_batch_size x this, 8 to 16 to start.
    # Change: unstable: larger.
    grad_accumulation_steps = 4

    # Sums that a step's gradient is added up from, in a fixed order. As many processes can share a
    # step, and their number, 1 to this, changes no bit of the run. At most grad_accumulation_steps.
    gradient_blocks = 1

    # How long gradients are kept where tensors of the base are trained: whole, until the update;
    # released, until those of a layer are complete, which they update at once: 4 bytes a value less,
    # without clipping (max_grad_norm = 0); two-passes does so with clipping, by a pass before that
    # finds the norm alone, and takes about twice the time. The last two take one micro-batch a step.
    # The update is the same.
    # Change: out of memory with trainable = "all": released.
    gradients = "whole"

    # The weights of full fine-tuning, beside what computes: f32, values that updates add up in; none,
    # bf16 alone, to which each update is rounded up or down by chance (stochastic rounding): 2 bytes a
    # value in place of 6 where dtype = "bf16"; a base in f32 is rounded before the first step.
    # Change: out of memory with trainable = "all": none.
    master_weights = "f32"

    # Passes over the training rows. Or give max_steps.
    # Change: eval loss starts to rise: fewer.
    epochs = 3

    # Optimizer steps of the run, instead of epochs.
    # max_steps = 100

    # Peak learning rate, reached after the warm-up.
    # Change: loss falls too slowly: raise; unstable: lower.
    learning_rate = 2e-4

    # Learning rate schedule: constant, constant_with_warmup, linear, cosine, or a table with a kind and
    # options.
    lr_scheduler = "cosine"

    # Steps over which the learning rate rises from 0, instead of warmup_ratio.
    # warmup_steps = 5

    # Share of the steps over which the learning rate rises from 0.
    # Change: loss jumps early on: more.
    warmup_ratio = 0.05

    # The optimizer: adamw; adamw_8bit, which keeps its state in 8 bits; lion (a learning rate of about
    # a tenth, adam_beta2 = 0.99 in its paper); sgd, with momentum; adafactor, which keeps next to
    # nothing; muon, which makes each update of A and B orthogonal; schedule_free_adamw, whose result is
    # a running mean, with lr_scheduler = "constant_with_warmup".
    # Change: out of memory with a high rank: adamw_8bit.
    optimizer = "adamw"

    # LoRA+: how many times as fast as A every B learns; learning_rate, and the rate that is reported,
    # are A's. 1 is plain LoRA. Weight decay goes by each one's own rate, as by PEFT's
    # loraplus_weight_decay.
    loraplus_lr_ratio = 1.0

    # Layer-wise learning rate decay: what each layer learns by, over the one above it, from above 0 to
    # 1; the last layer has the whole rate.
    layer_lr_decay = 1.0

    # A running mean of the adapter (EMA), in which the past has this share at every step: it is what
    # evaluations measure and what is saved, while the adapter itself goes on training. 0.99 looks back
    # over some 100 steps. Left out: none.
    # ema_decay = 0.99

    # Label smoothing: the share of each target that is spread over the whole vocabulary, from 0 to
    # below 1. The step minimizes penalized_loss; loss stays the mean nll, as in evaluations. Only with
    # objective.kind = "sft".
    label_smoothing_factor = 0.0

    # What the square of the logits' logsumexp counts in the loss of each token, such as 1e-4: keeps
    # logits from drifting. Reported as label smoothing is. Only with objective.kind = "sft".
    z_loss = 0.0

    # NEFTune: noise on the embeddings while training, uniform up to alpha / sqrt(tokens of the row x
    # hidden size); 5 to 15 where it is used, 0 is none. Evaluation has none. Only with objective.kind =
    # "sft".
    neftune_noise_alpha = 0.0

    # Weight decay (decoupled): applied at every step, times the learning rate.
    weight_decay = 0.01

    # Share of past gradients in the momentum of sgd and muon, from 0 to below 1. Left out: 0.9, or 0.95
    # for muon.
    # momentum = 0.9

    # AdamW's beta1: decay of the mean of gradients. Lion's: share of the past in an update.
    adam_beta1 = 0.9

    # AdamW's beta2: decay of the mean of squared gradients. Lion's: decay of the mean of gradients.
    adam_beta2 = 0.999

    # Added to AdamW's denominator.
    adam_epsilon = 1e-8

    # Gradient clipping: gradients are scaled down to this global norm; 0 turns it off.
    max_grad_norm = 1.0

    # Optimizer steps between log lines.
    logging_steps = 10

    # Optimizer steps between evaluations; only with data.eval.
    # eval_steps = 50

    # Evaluations in a row without an improvement after which the run ends; only with data.eval. Left
    # out: it runs to the last step.
    # Change: over-fitting: 2 to 5.
    # early_stopping_patience = 3

    # Which evaluation is the best one, whose adapter is kept and which a patience waits for: the lowest
    # loss, nll, reward_rejected, logp_rejected, entropy or kl, or the highest accuracy, margin,
    # reward_chosen or logp_chosen, where the objective has it; only with data.eval.
    # early_stopping_metric = "loss"

    # The set of data.eval_sets whose numbers tell which evaluation is the best one, and which a
    # patience waits for. Left out: data.eval.
    # early_stopping_eval = "general"

    # The eval loss, or what early_stopping_metric names, must become better by more than this to count
    # as an improvement; only with a patience.
    # early_stopping_min_improvement = 0.0

    # Optimizer steps between checkpoints; the best evaluation and the end of the run are always saved.
    save_steps = 100

    # Checkpoints to keep; older ones are deleted, the best one and the newest good one never.
    save_total_limit = 3

    # Held-out rows (else training rows) that are answered before and after the run, for report.html; 0
    # is none.
    sample_rows = 3

    # Modules whose adapters have a learning rate or a weight decay of their own, as [[train.groups]]
    # tables: match is a name, an end of a path or a regular expression, as in lora.rank_pattern, and
    # the first that matches counts. The schedule, loraplus_lr_ratio and layer_lr_decay go for them too.
    # groups = [{ match = "q_proj", learning_rate = 1e-4, weight_decay = 0.0 }]


    [tracker]
    # A server that is told of the run as well: mlflow, by its REST interface, or trackio. A run never
    # waits for it. Left out: none, and nothing is sent.
    # kind = "mlflow"

    # The server's address. What lets one in comes from the environment: MLFLOW_TRACKING_TOKEN, or
    # MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD; TRACKIO_WRITE_TOKEN.
    # url = "http://127.0.0.1:5000"

    # MLflow's experiment or Trackio's project, which is made where it is missing. Left out: backdraft.
    # experiment = "backdraft"

    # The run's name there. Left out: that of output_dir.
    # run_name = "first try"
    "#);
}

proptest::proptest! {
    #[test]
    fn no_text_and_no_override_makes_the_reader_panic(
        text in "([a-z_.]{0,12}( ?= ?|\\[|\\]|\"|\n|[-0-9.e]{1,4}|\\PC){0,6}){0,6}",
        set in "[a-z_.]{0,12}=?\\PC{0,12}",
    ) {
        let _ = read(&text, &[&set]);
        let _ = read(&format!("{SMALLEST}{text}"), &[&set]);
    }
}

#[test]
fn quantisation_keys() {
    let recipe = recipe_of_override("load_in_4bit=true");
    let plan = recipe.quantization_plan().unwrap();
    assert_eq!(plan.scheme, Scheme::NF4);
    assert_eq!(plan.skip_modules, ["lm_head"]);
    assert_eq!(recipe_of_override("seed=1").quantization_plan(), None);
    let recipe = recipe_of_override("load_in_8bit=true");
    assert_eq!(recipe.quantization_plan().unwrap().scheme, Scheme::Int8);
    // As a run writes it down, to be resumed.
    let again = Recipe::from_toml(&recipe.to_toml().unwrap(), Path::new("/r"), &[]).unwrap();
    assert_eq!(again, recipe);
    let text = "model = \"org/name\"\nload_in_4bit = true\nload_in_8bit = true\n\
                [quantization]\nquant_type = \"fp4\"\n[data]\ntrain = \"t.jsonl\"\n";
    let error = Recipe::from_toml(text, Path::new("/r"), &[]).unwrap_err();
    assert_snapshot!(error.to_string(), @"
2 problems in the recipe recipe.toml:
  line 3: `load_in_8bit` does not go with `load_in_4bit = true`: keep the one you mean
  line 5: `quantization.quant_type` does not go with `load_in_8bit = true`: 8-bit weights have one scale for each row; take it out
");
}

#[test]
fn blocks_that_are_kept_are_not_quantised() {
    let recipe = recipe_of_override("quantization.keep_blocks=true");
    assert!(recipe.quantization.keep_blocks);
    assert_eq!(recipe.quantization_plan(), None);
    // As a run writes it down.
    let again = Recipe::from_toml(&recipe.to_toml().unwrap(), Path::new("/r"), &[]).unwrap();
    assert_eq!(again, recipe);
    let text = "model = \"m/n\"\nload_in_4bit = true\n[quantization]\nkeep_blocks = true\nbits = 4.5\n\
                skip_modules = [\"down_proj\"]\n[data]\ntrain = \"t.jsonl\"\n";
    let error = Recipe::from_toml(text, Path::new("/r"), &[]).unwrap_err();
    assert_snapshot!(error.to_string(), @"
3 problems in the recipe recipe.toml:
  line 4: `quantization.keep_blocks` does not go with `load_in_4bit = true`: blocks stay as the file has them, or are quantized anew; keep the one you mean
  line 5: `quantization.bits` does not go with `keep_blocks = true`: precision is dealt out from unquantized weights, not from blocks; take one of the two out
  line 6: `quantization.skip_modules` does not go with `keep_blocks = true`: what has blocks in the file keeps them; take skip_modules out
");
    let text = text
        .replace("load_in_4bit = true\n", "")
        .replace("bits = 4.5\n", "");
    let text = text.replace("skip_modules = [\"down_proj\"]", "[lora]\ninit = \"loftq\"");
    let error = Recipe::from_toml(&text, Path::new("/r"), &[]).unwrap_err();
    assert_snapshot!(error.to_string(), @"
one problem in the recipe recipe.toml:
  line 5: `lora.init` does not go with `keep_blocks = true`: there is no quantization error to give back; take one of the two out
");
}

fn recipe_of_override(text: &str) -> Recipe {
    read(SMALLEST, &[text]).unwrap()
}

#[test]
fn sources_of_rows() {
    let text = |train: &str| SMALLEST.replace("\"rows.jsonl\"", train);
    let list = r#"["a/*.jsonl", "org/set@v1:cfg/test", { path = "./org/x", weight = 0.25, format = "alpaca", fields = { output = "o" } }]"#;
    let recipe = read(&text(list), &["data.eval=0.05"]).unwrap();
    let expected = [
        source("/recipes/a/*.jsonl"),
        source("org/set@v1:cfg/test"),
        SourceRecipe {
            weight: 0.25,
            format: Some(DataFormat::Named(Format::Alpaca)),
            fields: Some([("output".to_owned(), "o".to_owned())].into()),
            ..source("/recipes/./org/x")
        },
    ];
    assert_eq!(recipe.data.train.0, expected);
    assert_eq!(recipe.data.eval, Some(EvalRecipe::Fraction(0.05)));
    assert_eq!(recipe.train.eval_steps, Some(50));
    assert!(recipe.data.train.0[1].is_hub() && !recipe.data.train.0[0].is_hub());

    let refused = |train: &str| read(&text(train), &[]).unwrap_err().to_string();
    assert_snapshot!(refused("[]"), @r#"
    one problem in the recipe recipe.toml:
      line 3: `data.train` takes a path, a hub data set (org/name:split), a table { path = "…", weight = 0.5 }, or a list of these, not []
    "#);
    assert_snapshot!(refused("{ pat = 'a', weight = 0 }"), @r#"
    3 problems in the recipe recipe.toml:
      line 3: unknown key `data.train.pat`
      line 3: `data.train.weight` takes a number above 0, at most 1000, not 0
      line 3: `data.train.path` is missing: A file, a folder, a glob or a hub data set. For instance `data.train.path = "train.jsonl"`
    "#);
    assert_snapshot!(refused("['a', { path = 'b', format = 'sharegp', fields = 3 }, 4]"), @r#"
    3 problems in the recipe recipe.toml:
      line 3: `data.train.fields` takes a table of the format's names and yours, such as { instruction = "question" }, not 3
      line 3: `data.train.format` takes "auto", "messages", "alpaca", "sharegpt", "prompt_completion", "text", "preference" or "unpaired", not "sharegp"; did you mean "sharegpt"?
      line 3: `data.train` takes a path, a hub data set (org/name:split), a table { path = "…", weight = 0.5 }, or a list of these, not ['a', { path = 'b', format = 'sharegp', fields = 3 }, 4]
    "#);
    assert_snapshot!(problems_of_override("data.eval=1.5"), @"
    one problem in the recipe recipe.toml:
      --set data.eval=1.5: `data.eval` takes a path or a list of them as data.train does, or a share of the training rows such as 0.05, not 1.5
    ");
    assert_snapshot!(problems_of_override("data.chat_template=chatlm"), @r#"
    one problem in the recipe recipe.toml:
      --set data.chat_template=chatlm: `data.chat_template` takes a file with Jinja text, or a name that `backdraft init --templates` lists, not "chatlm"
    "#);
    assert_snapshot!(problems_of_override("data.train_on=all"), @r#"
    one problem in the recipe recipe.toml:
      --set data.train_on=all: `data.train_on = "all"` is not supported: write train_on = "everything"
    "#);
    assert_snapshot!(problems_of_override("data.packing=true"), @r#"
    one problem in the recipe recipe.toml:
      --set data.packing=true: unknown key `data.packing`; here it is `data.batching`: write batching = "packed"
    "#);
}

#[test]
fn tricks_of_the_step_belong_to_plain_fine_tuning() {
    let lines = "[objective]\nkind = \"orpo\"\n[train]\nlabel_smoothing_factor = 0.1\nz_loss = 1e-4\nneftune_noise_alpha = 5\n";
    let said = problems(lines);
    for (line, key) in [
        (7, "label_smoothing_factor"),
        (8, "z_loss"),
        (9, "neftune_noise_alpha"),
    ] {
        let part = format!("line {line}: `train.{key}` does not go with objective.kind = \"orpo\"");
        assert!(said.contains(&part), "{part}\n{said}");
    }
    let said = problems(
        "[train]\nlabel_smoothing_factor = 1.0\nz_loss = -1\nloraplus_lr_ratio = 0\nlayer_lr_decay = 1.5\n",
    );
    for line in 5..9 {
        assert!(said.contains(&format!("line {line}: ")), "{said}");
    }
}

#[test]
fn blocks_need_micro_batches() {
    let said = problems("[train]\ngrad_accumulation_steps = 2\ngradient_blocks = 4\n");
    let part = "`train.gradient_blocks` does not go with grad_accumulation_steps = 2";
    assert!(said.contains(part), "{said}");
    let said = problems("[train]\ngradient_blocks = 0\n");
    assert!(
        said.contains("`train.gradient_blocks` takes a whole number, 1 or more"),
        "{said}"
    );
}

#[test]
fn a_mean_is_kept_once() {
    let said = problems("[train]\nema_decay = 1.0\n");
    assert!(
        said.contains("`train.ema_decay` takes a number between 0 and 1, not 1.0"),
        "{said}"
    );
    let said = problems(
        "[train]\noptimizer = \"schedule_free_adamw\"\nlr_scheduler = \"constant\"\nema_decay = 0.9\n",
    );
    let part = "`train.ema_decay` does not go with optimizer = \"schedule_free_adamw\"";
    assert!(said.contains(part), "{said}");
}

#[test]
fn numbers_that_an_optimizer_lacks_are_refused() {
    let train = |overrides: &[&str]| read(SMALLEST, overrides).map(|recipe| recipe.train);
    let sgd = train(&["train.optimizer=sgd"]).unwrap();
    let muon = train(&["train.optimizer=muon", "train.adam_beta1=0.9"]).unwrap();
    assert_eq!((sgd.momentum, muon.momentum), (Some(0.9), Some(0.95)));
    assert!(train(&["train.optimizer=lion", "train.adam_beta2=0.99"]).is_ok());
    let refused = |overrides: &[&str]| train(overrides).unwrap_err().to_string();
    for (optimizer, other) in [
        ("adamw", "momentum=0.9"),
        ("lion", "adam_epsilon=1e-6"),
        ("sgd", "adam_beta1=0.8"),
        ("muon", "adam_beta2=0.99"),
        ("schedule_free_adamw", "lr_scheduler=cosine"),
    ] {
        let [optimizer, other] = [("optimizer", optimizer), other.split_once('=').unwrap()]
            .map(|(key, value)| format!("train.{key}={value}"));
        let said = refused(&[&optimizer, &other]);
        assert!(said.contains("does not go with"), "{said}");
    }
    let constant = [
        "train.optimizer=schedule_free_adamw",
        "train.lr_scheduler=constant_with_warmup",
    ];
    assert!(train(&constant).is_ok());
}

#[test]
fn precision_is_dealt_out_over_nf4_alone() {
    let four_bit = |rest: &str| {
        format!("model = \"org/name\"\nload_in_4bit = true\n{rest}[data]\ntrain = \"t\"\n")
    };
    let read = |text: &str| Recipe::from_toml(text, Path::new("/r"), &[]);
    let recipe = read(&four_bit("[quantization]\nbits = 4.5\n")).unwrap();
    assert_eq!(recipe.quantization.bits, Some(Bits::Mean(4.5)));
    // What the base is loaded in leaves room for nothing larger everywhere.
    assert_eq!(recipe.quantization_plan().unwrap().scheme, Scheme::NF4);
    let recipe = read(&four_bit("[quantization]\nbits = 3.5\n")).unwrap();
    let scheme = recipe.quantization_plan().unwrap().scheme;
    assert_eq!(scheme, Scheme::nested(NestedFormat::Nf3));

    for (text, expected) in [
        (
            four_bit("[quantization]\nbits = 4.5\nquant_type = \"fp4\"\n"),
            "precision is dealt out around NF4",
        ),
        (
            four_bit("[quantization]\nbits = 0.5\n"),
            "a number of bits from the least of `formats`",
        ),
        (
            four_bit("[quantization]\nbits = 4.5\nformats = [\"nf4\", \"nf4\"]\n"),
            "each once",
        ),
        (
            four_bit("[quantization]\nbits = 4.5\nadapt_at = [0.3, 0.1]\n"),
            "rising shares of the run",
        ),
        (
            "model = \"org/name\"\n[quantization]\nbits = 4.5\n[data]\ntrain = \"t\"\n".to_owned(),
            "add load_in_4bit = true",
        ),
        (
            "model = \"org/name\"\n[lora]\ninit = \"qera\"\n[data]\ntrain = \"t\"\n".to_owned(),
            "there is no quantization error to give back",
        ),
    ] {
        let error = read(&text).unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
}
