use std::path::Path;

use backdraft_arch::ModulePattern;
use backdraft_formats::{LoraPair, PeftConfig, PeftWriteOptions};
use insta::assert_snapshot;

use super::*;
use crate::{Recipe, RecipeError};

/// An adapter of rank 4 on q_proj and v_proj of two layers, q_proj of the second one of rank 2.
fn write(path: &Path) {
    let mut config = PeftConfig::new(4, 8.0, ["v_proj", "q_proj"]);
    config.lora_dropout = 0.1;
    let ranks = [("layers.1.self_attn.q_proj", 2), ("o_proj", 9)];
    let ranks = ranks.map(|(key, rank)| (key.to_owned(), rank));
    config.rank_pattern = ModulePattern::new(ranks).unwrap();
    let pair = |layer: usize, name: &str| {
        let module = format!("model.layers.{layer}.self_attn.{name}");
        let rank = config.rank_of(&module);
        LoraPair {
            module,
            in_features: 3,
            out_features: 5,
            lora_a: vec![1.0; 3 * rank],
            lora_b: vec![1.0; 5 * rank],
            magnitude: None,
        }
    };
    let pairs = [(0, "q_proj"), (0, "v_proj"), (1, "q_proj"), (1, "v_proj")];
    let tensors = pairs.map(|(layer, name)| pair(layer, name));
    let tensors = tensors.into_iter().collect();
    PeftDir::write(path, &config, &tensors, &PeftWriteOptions::default()).unwrap();
}

fn read(base: &Path, lora: &str) -> Result<Recipe, RecipeError> {
    let text = format!("model = \"a/b\"\n[data]\ntrain = \"t\"\n[lora]\nadapter = \"run\"\n{lora}");
    Recipe::from_toml(&text, base, &[])
}

#[test]
fn settings_are_taken_over() {
    let root = tempfile::tempdir().unwrap();
    // That of a run, by the name of the run.
    let path = root.path().join("run/adapter");
    std::fs::create_dir(root.path().join("run")).unwrap();
    write(&path);
    let lora = read(root.path(), "").unwrap().lora;
    assert_eq!(lora.adapter, Some(path.clone()));
    assert_eq!((lora.rank, lora.alpha, lora.dropout), (4, 8.0, 0.1));
    let names = ["q_proj", "v_proj"].map(str::to_owned);
    assert_eq!(lora.target_modules, ModuleNames::List(names.into()));
    assert_eq!(lora.layers_to_transform, None);
    // A pattern that matches nothing is no business of whoever goes on.
    let ranks: Vec<_> = lora.rank_pattern.iter().collect();
    assert_eq!(ranks, [("layers.1.self_attn.q_proj", 2)]);
    // What says the same may stand there.
    let same = read(
        root.path(),
        "rank = 4\nalpha = 8.0\ndropout = 0.0\ntarget_modules = [\"v_proj\", \"q_proj\"]\nuse_rslora = false\nuse_dora = false\ninit = \"default\"\n\
         rank_pattern = { \"layers.1.self_attn.q_proj\" = 2, o_proj = 9 }\nexclude_modules = [\"o_proj\"]\n",
    );
    let same = same.unwrap().lora;
    assert_eq!(
        same,
        LoraRecipe {
            dropout: 0.0,
            ..lora
        }
    );
}

#[test]
fn contradictions_name_both_values() {
    let root = tempfile::tempdir().unwrap();
    write(&root.path().join("run"));
    let error = read(
        root.path(),
        "rank = 16\nalpha = 32\nuse_rslora = true\ntarget_modules = \"all-linear\"\nexclude_modules = \".*layers\\\\.1.*\"\n\
         rank_pattern = { q_proj = 3 }\nalpha_pattern = { q_proj = 3 }\ninit = \"pissa\"\n",
    );
    let error = error.unwrap_err().to_string();
    assert_snapshot!(error.replace(&root.path().display().to_string(), "ROOT"), @r#"
    8 problems in the recipe recipe.toml:
      line 6: `lora.rank = 16`, but the adapter ROOT/run has r = 4; its settings are taken over: take the key out
      line 7: `lora.alpha = 32`, but the adapter ROOT/run has lora_alpha = 8; its settings are taken over: take the key out
      line 8: `lora.use_rslora = true`, but the adapter ROOT/run has use_rslora = false; its settings are taken over: take the key out
      line 9: `lora.target_modules = "all-linear"`, but the adapter ROOT/run has target_modules = ["q_proj", "v_proj"]; its settings are taken over: take the key out
      line 10: `lora.exclude_modules = ".*layers\\.1.*"`, but the adapter ROOT/run has factors of model.layers.1.self_attn.q_proj; its settings are taken over: take the key out
      line 11: `lora.rank_pattern = { "q_proj" = 3 }`, but the adapter ROOT/run has rank_pattern = { "layers.1.self_attn.q_proj" = 2 }; its settings are taken over: take the key out
      line 12: `lora.alpha_pattern = { "q_proj" = 3 }`, but the adapter ROOT/run has alpha_pattern = {}; its settings are taken over: take the key out
      line 13: `lora.init` does not go with `lora.adapter`: an adapter that is gone on from starts where it is; take one of the two out
    "#);
    let error = read(root.path(), "layers_to_transform = [1]\n").unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains("`lora.layers_to_transform = [1]`, but the adapter"),
        "{error}"
    );
}

#[test]
fn what_is_no_adapter_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let said = |error: Result<Recipe, RecipeError>| {
        let error = error.unwrap_err().to_string();
        error.replace(&root.path().display().to_string(), "ROOT")
    };
    assert_snapshot!(said(read(root.path(), "")), @"
    one problem in the recipe recipe.toml:
      line 5: `lora.adapter`: ROOT/run/adapter_config.json does not exist
    ");
    std::fs::create_dir(root.path().join("run")).unwrap();
    std::fs::write(
        root.path().join("run/adapter_config.json"),
        "{\"peft_type\": \"IA3\"}",
    )
    .unwrap();
    assert_snapshot!(said(read(root.path(), "")), @r#"
    one problem in the recipe recipe.toml:
      line 5: `lora.adapter`: ROOT/run/adapter_config.json cannot be used: the adapter uses `peft_type` = "IA3", which is not supported
    "#);
    assert_snapshot!(said(read(root.path(), "layers_to_transform = [1]\ntarget_modules = '.*q_proj'\n")), @r#"
    2 problems in the recipe recipe.toml:
      line 5: `lora.adapter`: ROOT/run/adapter_config.json cannot be used: the adapter uses `peft_type` = "IA3", which is not supported
      line 6: `lora.layers_to_transform` does not go with target_modules = ".*q_proj": a pattern is for whole paths, which have the layer in them; take layers_to_transform out
    "#);
}
