//! A model small enough to train a run in the blink of an eye, with rows and a recipe for it.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, json};

/// Words that the tokenizer knows, `w3` to `w255`; ids 0 to 2 are `<unk>`, `<s>` and `</s>`.
const WORDS: std::ops::Range<u32> = 3..256;

/// Writes a model directory: the weights of the golden model `llama-untied`, which know nothing, and a
/// tokenizer of 253 words.
///
/// # Panics
/// If a file cannot be read or written.
pub fn model(directory: &Path) {
    let golden = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/golden/tiny/llama-untied"
    );
    make(directory);
    let entries = fs::read_dir(golden).unwrap_or_else(|e| panic!("{golden}: {e}"));
    for entry in entries.filter_map(Result::ok) {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("model") || name == "config.json" {
            let target = directory.join(&name);
            fs::copy(entry.path(), &target).unwrap_or_else(|e| panic!("{}: {e}", target.display()));
        }
    }
    let special = ["<unk>", "<s>", "</s>"];
    let mut vocabulary = Map::new();
    for (id, token) in special.iter().enumerate() {
        vocabulary.insert((*token).to_owned(), id.into());
    }
    for id in WORDS {
        vocabulary.insert(format!("w{id}"), id.into());
    }
    let added: Vec<_> = special
        .iter()
        .enumerate()
        .map(|(id, token)| {
            json!({ "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": true })
        })
        .collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": { "type": "WhitespaceSplit" }, "post_processor": null, "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>" },
    });
    write(&directory.join("tokenizer.json"), &tokenizer.to_string());
    let config = json!({ "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>" });
    write(
        &directory.join("tokenizer_config.json"),
        &config.to_string(),
    );
}

/// Writes `count` Alpaca rows, from a seed: the answer is the question's words again.
///
/// # Panics
/// If the file cannot be written.
pub fn rows(path: &Path, count: usize, seed: u32) {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut word = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        format!("w{}", 3 + (state >> 16) % 40)
    };
    let mut text = String::new();
    for row in 0..count {
        let words: Vec<String> = (0..3 + row % 4).map(|_| word()).collect();
        let words = words.join(" ");
        let object = json!({ "instruction": words, "output": words });
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{object}");
    }
    write(path, &text);
}

/// Writes `count` preference rows of texts, from a seed: the better answer is the prompt's words again, the worse one is
/// other words, as many or one more.
///
/// # Panics
/// If the file cannot be written.
pub fn pairs(path: &Path, count: usize, seed: u32) {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut words = |count: usize| {
        let mut text = String::new();
        for _ in 0..count {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // Writing to a string cannot fail.
            let _ = write!(text, " w{}", 5 + (state >> 16) % 40);
        }
        text
    };
    let mut text = String::new();
    for row in 0..count {
        let length = 3 + row % 4;
        let (chosen, rejected) = (words(length), words(length + row % 2));
        let object =
            json!({ "prompt": format!("w3{chosen} w4"), "chosen": chosen, "rejected": rejected });
        let _ = writeln!(text, "{object}");
    }
    write(path, &text);
}

/// Writes a model, 24 rows to learn, 6 held out, and `recipe.toml` with `more` at its end, which is
/// inside `[train]`; gives the path of the recipe.
///
/// # Panics
/// If a file cannot be written.
pub fn project(directory: &Path, more: &str) -> PathBuf {
    model(&directory.join("model"));
    rows(&directory.join("train.jsonl"), 24, 1);
    rows(&directory.join("eval.jsonl"), 6, 2);
    let recipe = format!(
        "model = \"model\"\noutput_dir = \"out\"\nmax_seq_length = 32\n[lora]\nrank = 64\nalpha = 64\n\
         dropout = 0.1\ntarget_modules = [\"q_proj\", \"down_proj\"]\nlayers_to_transform = [1]\n\
         [data]\ntrain = \"train.jsonl\"\neval = \"eval.jsonl\"\nformat = \"alpaca\"\ncache = \"off\"\n\
         prompt_template = \"w3 {{instruction}} w4 {{output}}\"\n[train]\nmicro_batch_size = 2\n\
         grad_accumulation_steps = 2\nlearning_rate = 5e-3\nlogging_steps = 1\nsample_rows = 0\n{more}"
    );
    let path = directory.join("recipe.toml");
    write(&path, &recipe);
    path
}

fn make(directory: &Path) {
    fs::create_dir_all(directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}
