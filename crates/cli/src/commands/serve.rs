//! `serve`: an OpenAI-compatible server.

use std::path::{Path, PathBuf};
use std::time::Duration;

use backdraft_lora::AdapterWeights;
use backdraft_model::CausalLm;
use backdraft_recipe::DType;
use backdraft_serve::{Engine, Model, Prompting, ServeError, Server, Settings};
use backdraft_train::trained_with::Prompting as TrainedPrompting;
use clap::Args;
use serde_json::json;

use crate::args::choice::{self, QuantizationArg};
use crate::args::{DeviceArgs, positive};
use crate::commands::Context;
use crate::error::CliError;
use crate::noted::NotedAdapter;
use crate::session::{Chosen, template_source};

/// The variable that holds the key.
const KEY: &str = "BACKDRAFT_API_KEY";
const GIB: f64 = (1u64 << 30) as f64;

/// Serve a model and its adapters to OpenAI clients, with a page to chat in
///
/// Clients name the base or an adapter as `model`; all of them share one base in memory, and requests are answered
/// together. The address is http://HOST:PORT/v1; the page is at http://HOST:PORT. BACKDRAFT_API_KEY, where it is set, is the
/// key that clients must send. Ctrl-C or SIGTERM lets running requests finish; a second one ends the server at once.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  backdraft serve --model HuggingFaceTB/SmolLM2-135M-Instruct
  backdraft serve --adapter outputs
  backdraft serve --model model.gguf --adapter support=outputs --adapter tone=trial/adapter")]
pub(crate) struct ServeArgs {
    /// Directory, .gguf file, or hub id (org/name) [default: the model that the first adapter was trained over]
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,

    /// PEFT adapter to serve beside the base, under a name of its own [default: that of its directory]; repeatable
    #[arg(long, value_name = "[NAME=]DIR")]
    adapter: Vec<String>,

    /// Name of the base for clients [default: the hub id, else that of the directory or file]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,

    /// Quantize the linear layers on load [default: as the first adapter was trained, else as in the files]
    #[arg(long, value_parser = choice::quantization(), value_name = "FORMAT")]
    quantization: Option<QuantizationArg>,

    /// Data type to compute in [default: auto, bf16 or f16 on tensor cores, else f32]
    #[arg(long, value_parser = choice::dtype(), value_name = "DTYPE")]
    dtype: Option<DType>,

    #[command(flatten)]
    pub(crate) device: DeviceArgs,

    /// Built-in chat template, or a .jinja file [default: as each adapter was trained, else the model's own]
    #[arg(long, value_name = "NAME|FILE")]
    chat_template: Option<String>,

    /// Address to listen on; another machine reaches only one that is not loopback
    #[arg(long, default_value = "127.0.0.1")]
    host: String,

    /// Port to listen on; 0 takes any
    #[arg(long, default_value_t = 8080)]
    port: u16,

    /// Listen on an address that other machines reach without a key
    #[arg(long)]
    without_key: bool,

    /// Texts that are written together
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    max_batch: u32,

    /// Requests that may wait; one more is answered with status 429
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    queue: u32,

    /// Memory for keys and values of all texts together, in GiB; taken as it is needed
    #[arg(long, value_name = "GIB", default_value_t = 2.0, value_parser = positive)]
    cache_memory: f64,

    /// New tokens of a chat whose request sets no limit
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..))]
    max_new_tokens: u32,

    /// Largest body of a request, in KiB
    #[arg(long, value_name = "KIB", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..))]
    max_body: u32,

    /// Seconds that a request may take, waiting included
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..))]
    timeout: u32,

    /// Seconds that running requests have when the server is told to end
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    grace: u32,
}

pub(crate) fn run(args: &ServeArgs, context: Context) -> Result<(), CliError> {
    let output = context.output;
    // Before the weights are read: a port that cannot be had is heard of at once.
    let mut server = Server::bind(&args.host, args.port, settings(args)).map_err(cannot_serve)?;
    let (models, cached_tokens) = load(args, context)?;
    let names: Vec<String> = models.iter().map(|model| model.name.clone()).collect();
    server.settings_mut().cached_tokens = cached_tokens;
    let address = format!("http://{}", server.address());
    let engine = Engine::start(models, server.settings_mut()).map_err(cannot_serve)?;
    let tell = || {
        let names_in_words = names.join(", ");
        output.go_on(output.line(format!(
            "serving {names_in_words} at {address}/v1 (the page: {address})"
        )));
        let record = json!({ "address": address, "models": names, "cached_tokens": cached_tokens });
        output.go_on(output.record("serving", &record));
    };
    server.run(engine, tell).map_err(cannot_serve)?;
    output.progress("ended");
    Ok(())
}

fn settings(args: &ServeArgs) -> Settings {
    let seconds = |seconds: u32| Duration::from_secs(seconds.into());
    Settings {
        max_batch: args.max_batch as usize,
        queue: args.queue as usize,
        default_max_tokens: args.max_new_tokens as usize,
        max_body: (args.max_body as usize) << 10,
        timeout: seconds(args.timeout),
        grace: seconds(args.grace),
        api_key: std::env::var(KEY).ok().filter(|key| !key.is_empty()),
        allow_unprotected: args.without_key,
        ..Settings::default()
    }
}

/// The base and its adapters, and how many tokens' keys and values fit into the memory for them.
fn load(args: &ServeArgs, context: Context) -> Result<(Vec<Model>, usize), CliError> {
    let output = context.output;
    let mut found: Vec<(String, Chosen)> = Vec::new();
    let mut model = args.model.clone();
    for adapter in &args.adapter {
        let (name, path) = named(adapter);
        let chosen = Chosen::of(model.as_deref(), Some(&path), output)?;
        model.get_or_insert_with(|| chosen.source.path().display().to_string());
        found.push((name, chosen));
    }
    let base = Chosen::of(model.as_deref(), None, output)?;
    let shown = args
        .model
        .as_deref()
        .or(model.as_deref())
        .unwrap_or_default();
    let base_name = args.name.clone().unwrap_or_else(|| name_of(shown));
    let first = found.first().map_or(&base, |(_, chosen)| chosen);
    let kept = |chosen: &Chosen| chosen.adapter.as_ref().and_then(NotedAdapter::plan);
    for (name, chosen) in &found {
        if args.quantization.is_none() && kept(chosen) != kept(first) {
            output.warn(format!(
                "{name} was trained over a base in another precision than {}; --quantization chooses one",
                found[0].0
            ));
        }
    }
    let weights = first.load_base(args.quantization, args.dtype, context)?;
    let device = weights.device();
    let mut models = vec![served(args, base_name, &base, weights.clone())?];
    for (name, chosen) in &found {
        let mut model = weights.clone();
        if let Some(factors) = &chosen.factors {
            if !factors.tensors.tokens().is_empty() {
                let trained = format!(
                    "{name} has trained tokens, which are not served beside other adapters"
                );
                return Err(CliError::user(trained)
                    .hint("merge it with `backdraft merge`, and serve what that gives"));
            }
            if let Some(whole) = factors.tensors.whole().next() {
                let trained = format!(
                    "{name} has whole tensors of its base ({} …), which are not served beside other adapters",
                    whole.name
                );
                return Err(CliError::user(trained)
                    .hint("merge it with `backdraft merge`, and serve what that gives"));
            }
            model = model.with_adapter(&AdapterWeights::from_peft(factors, &device))?;
        }
        models.push(served(args, name.clone(), chosen, model)?);
    }
    let bytes = cache_bytes(&weights);
    let cached_tokens = (args.cache_memory * GIB / bytes as f64) as usize;
    output.progress(format!(
        "cache: {cached_tokens} tokens of {:.1} KiB in {} GiB",
        bytes as f64 / 1024.0,
        args.cache_memory
    ));
    Ok((models, cached_tokens))
}

fn served(
    args: &ServeArgs,
    name: String,
    chosen: &Chosen,
    model: CausalLm,
) -> Result<Model, CliError> {
    let mut tokenizer = chosen.tokenizer()?;
    let trained = chosen.adapter.as_ref().map(NotedAdapter::prompting);
    let mut prompting = match trained {
        Some(TrainedPrompting::Nothing) => Prompting::Nothing,
        _ => Prompting::ChatTemplate,
    };
    if let Some(template) = &args.chat_template {
        tokenizer = tokenizer.with_template(&template_source(template)?)?;
        prompting = Prompting::ChatTemplate;
    }
    Ok(Model {
        name,
        model,
        tokenizer,
        prompting,
    })
}

/// Bytes of the keys and values of a token.
fn cache_bytes(model: &CausalLm) -> usize {
    let layers = model.spec().layers.iter();
    let values: usize = layers
        .map(|layer| 2 * layer.num_key_value_heads * layer.head_dim)
        .sum();
    values * model.dtype().size()
}

/// `NAME=DIR`, or a directory that gives its name.
fn named(adapter: &str) -> (String, PathBuf) {
    match adapter.split_once('=') {
        Some((name, path)) if !name.is_empty() && !name.contains('/') => {
            (name.to_owned(), PathBuf::from(path))
        }
        _ => (name_of(adapter), PathBuf::from(adapter)),
    }
}

/// A hub id as it is; of a path its last part, and of a run's `adapter` the run's.
fn name_of(path: &str) -> String {
    let place = Path::new(path);
    if !place.exists() {
        return path.to_owned();
    }
    let place = place.canonicalize().unwrap_or_else(|_| place.to_owned());
    let named = match place.file_name() {
        Some(name) if name == "adapter" => place.parent().unwrap_or(&place),
        _ => &place,
    };
    let name = match named.extension().is_some_and(|end| end == "gguf") {
        true => named.file_stem(),
        false => named.file_name(),
    };
    name.map_or_else(
        || path.to_owned(),
        |name| name.to_string_lossy().into_owned(),
    )
}

fn cannot_serve(error: ServeError) -> CliError {
    match &error {
        ServeError::Unprotected { .. } => CliError::library(error).hint(format!(
            "set {KEY} to a key that clients must send, or pass --without-key"
        )),
        ServeError::Bind { .. } => {
            CliError::library(error).hint("another program may use the port; --port takes another")
        }
        ServeError::Names { .. } => CliError::library(error)
            .hint("--adapter NAME=DIR and --name give models names of their own"),
        ServeError::EngineStopped => CliError::internal(error),
        _ => CliError::library(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adapters_have_names() {
        let named = |text: &str| {
            let (name, path) = named(text);
            (name, path.display().to_string())
        };
        assert_eq!(named("tone=a/b"), ("tone".into(), "a/b".into()));
        assert_eq!(named("a/x=b"), ("a/x=b".into(), "a/x=b".into()));
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("outputs/adapter");
        std::fs::create_dir_all(&path).unwrap();
        assert_eq!(name_of(&path.display().to_string()), "outputs");
        assert_eq!(name_of("org/name-1.5"), "org/name-1.5");
    }
}
