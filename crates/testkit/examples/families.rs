//! Writes a random model of every family, as llama.cpp computes it, into folders of a directory. Weights are large enough for
//! every number of the family to matter. `scripts/gguf_judge.py --families` holds them against llama.cpp.
#![allow(clippy::print_stderr, reason = "a program")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use backdraft_arch::Family;
use backdraft_testkit::random_model::RandomModel;
use serde_json::{Value, json};

fn main() -> ExitCode {
    let Some(out) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: families DIRECTORY");
        return ExitCode::from(2);
    };
    for family in Family::ALL {
        write(&out, family, family.model_type(), &json!({}));
    }
    // What else a file says of rotary frequencies. llama.cpp takes LongRoPE's list by the size of its context, not of a text.
    let scaled = |scaling: Value| json!({ "rope_scaling": scaling });
    let llama3 = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    });
    let yarn = json!({"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16});
    let linear = json!({"rope_type": "linear", "factor": 4.0});
    for (family, name, change) in [
        (Family::Llama, "llama linear", scaled(linear)),
        (Family::Llama, "llama llama3", scaled(llama3)),
        (Family::Qwen2, "qwen2 yarn", scaled(yarn)),
        (
            Family::Phi3,
            "phi3 short",
            json!({"original_max_position_embeddings": 4096}),
        ),
    ] {
        write(&out, family, name, &change);
    }
    ExitCode::SUCCESS
}

/// One model, its config changed.
fn write(out: &Path, family: Family, name: &str, change: &Value) {
    // Other windows llama.cpp leaves out, or the program refuses to write.
    let windowed = matches!(family, Family::Olmo3 | Family::Gemma2 | Family::Gemma3);
    let model = RandomModel {
        family,
        window: windowed.then_some(9),
        hidden: 64,
        intermediate: 96,
        layers: 8,
        heads: 4,
        kv_heads: 2,
        vocab: 256,
    };
    let folder = out.join(name);
    model.write_in_bytes(&folder, 0.25);
    let path = folder.join("config.json");
    let changed = || -> Result<(), Box<dyn std::error::Error>> {
        let mut config: Value = serde_json::from_slice(&fs::read(&path)?)?;
        for (key, value) in change.as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
        Ok(fs::write(&path, config.to_string())?)
    };
    if let Err(error) = changed() {
        panic!("{}: {error}", path.display());
    }
}
