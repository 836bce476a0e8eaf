//! What becomes of a file by its name: an adapter's, a model's and their papers are sent.

/// What becomes of a file by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Sent,
    /// Left out unless it is included.
    Apart(&'static str),
    /// Left out whatever is asked.
    Never(&'static str),
}

pub(super) const HIDDEN: &str = "hidden";
pub(super) const SECRET: &str = "its name is that of a secret";
pub(super) const OUTSIDE: &str = "a link that leads out of the directory";
pub(super) const STATE: &str = "training state";
pub(super) const ROWS: &str = "rows";
pub(super) const CACHE: &str = "a cache or a part of a file";
pub(super) const OF_RUN: &str = "a record of the run, with paths and rows of this machine";
pub(super) const PICKLE: &str = "a pickle, which can run code when loaded";
pub(super) const OTHER: &str = "no file of a model";

/// Why a folder stays here as a whole.
pub(super) fn folder_apart(name: &str) -> Option<&'static str> {
    let name = name.to_ascii_lowercase();
    let begins = |start: &str| name.starts_with(start);
    if begins("checkpoint") || begins("step-") || begins("global_step") {
        return Some(STATE);
    }
    match name.as_str() {
        "__pycache__" | "cache" | "tmp" => Some(CACHE),
        "tensorboard" | "runs" | "logs" | "wandb" | "mlruns" => Some(OF_RUN),
        _ => None,
    }
}

pub(super) fn verdict(name: &str) -> Verdict {
    use Verdict::{Apart, Never, Sent};
    if name.split('/').any(|part| part.starts_with('.')) {
        return Never(HIDDEN);
    }
    let file = name
        .rsplit('/')
        .next()
        .unwrap_or_default()
        .to_ascii_lowercase();
    let (stem, ending) = file.rsplit_once('.').unwrap_or((file.as_str(), ""));
    let begins = |starts: &[&str]| starts.iter().any(|start| file.starts_with(start));
    let secret_endings = [
        "pem", "key", "p12", "pfx", "jks", "keystore", "kdbx", "env", "netrc",
    ];
    let secret_names = [
        "token",
        "tokens",
        "credentials",
        "secret",
        "secrets",
        "password",
        "passwords",
        "api_key",
        "apikey",
    ];
    if secret_endings.contains(&ending)
        || secret_names.contains(&stem)
        || begins(&[
            "id_rsa",
            "id_dsa",
            "id_ecdsa",
            "id_ed25519",
            "hf_token",
            "access_token",
        ])
    {
        return Never(SECRET);
    }
    if file.contains(".partial-")
        || ["part", "incomplete", "tmp", "lock", "swp"].contains(&ending)
        || file.ends_with('~')
    {
        return Apart(CACHE);
    }
    let state = [
        "optimizer",
        "scheduler",
        "rng_state",
        "scaler",
        "training_args",
        "trainer_state",
        "loader_state",
        "global_step",
    ];
    if begins(&state) || ["state.json", "manifest.json", "zero_to_fp32.py"].contains(&&*file) {
        return Apart(STATE);
    }
    let of_run = [
        "metrics.jsonl",
        "run.json",
        "samples.json",
        "summary.json",
        "report.html",
        "recipe.toml",
        "skipped_rows.jsonl",
    ];
    if of_run.contains(&&*file) || file.contains("tfevents") || ending == "log" {
        return Apart(OF_RUN);
    }
    if ["jsonl", "ndjson", "parquet", "csv", "tsv", "arrow"].contains(&ending)
        || file.ends_with(".jsonl.gz")
        || file.ends_with(".jsonl.zst")
    {
        return Apart(ROWS);
    }
    if ["bin", "pt", "pth", "ckpt", "pkl", "pickle", "msgpack", "h5"].contains(&ending) {
        return Apart(PICKLE);
    }
    let names = [
        "config.json",
        "generation_config.json",
        "adapter_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "tokenizer.model",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "chat_template.jinja",
        "chat_template.json",
        "preprocessor_config.json",
        "processor_config.json",
        "trained_with.json",
        "trained_over.json",
        "modelfile",
        "readme.md",
    ];
    let papers = ["license", "licence", "notice", "use_policy", "copying"];
    match names.contains(&&*file)
        || ["safetensors", "gguf"].contains(&ending)
        || file.ends_with(".safetensors.index.json")
        || begins(&papers)
    {
        true => Sent,
        false => Apart(OTHER),
    }
}
