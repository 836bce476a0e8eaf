//! A whole fine-tuning run: load a model, put adapters on it, train on chats, save, ask.
//!
//! ```text
//! cargo run --release -p backdraft --example finetune MODEL ROWS.jsonl OUTPUT
//! ```
//!
//! `MODEL` is a Hugging Face directory or a GGUF file with a chat template. Each line of `ROWS.jsonl` is a chat:
//! `{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}`.
#![allow(clippy::print_stdout, reason = "an example talks")]

use std::env;
use std::error::Error;
use std::path::Path;

use backdraft::burn::tensor::Device;
use backdraft::burn::train::{Interrupter, renderer::CliMetricsRenderer};
use backdraft::data::{Conversation, Message, Role};
use backdraft::formats::ModelSource;
use backdraft::journal::report::{Reporter, StepReport};
use backdraft::model::generate::GenerateConfig;
use backdraft::recipe::Recipe;
use backdraft::train::control::Control;
use backdraft::train::data;
use backdraft::train::run::{Start, Watch, prepare};

/// Everything that is not given has its default: `docs/recipe.md`.
const RECIPE: &str = r#"
max_seq_length = 1024
load_in_4bit = true

[lora]
rank = 16
alpha = 32
target_modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

[train]
micro_batch_size = 2
grad_accumulation_steps = 4
max_steps = 60
warmup_steps = 5
learning_rate = 2e-4
logging_steps = 1
optimizer = "adamw_8bit"
"#;

/// Hears of every step.
struct Steps;

impl Reporter for Steps {
    fn step(&mut self, step: &StepReport) {
        println!("step {:>3}  loss {:.4}", step.step, step.loss);
    }
}

/// Fine-tunes `model` on `rows`, leaves `output/adapter`, and answers `question` with it.
pub(crate) fn finetune(
    model: &str,
    rows: &str,
    output: &str,
    question: &str,
) -> Result<String, Box<dyn Error + Send + Sync>> {
    let device = Device::flex(); // or a GPU: backdraft::kernels::device::open
    let given = [
        ("model", model),
        ("output_dir", output),
        ("data.train", rows),
    ];
    let given = given.map(|(key, value)| format!("{key}={value:?}"));
    let recipe = Recipe::from_toml(RECIPE, Path::new("."), &given)?;

    let source = ModelSource::open(model)?;
    let tokenizer = data::tokenizer_of(&recipe.data, &source)?;
    let rows = data::read(&recipe, &source, &mut |_| ())?;
    let run = prepare(recipe, source, rows, &device)?;
    println!("{} trained values", run.model().num_trained());

    let (summary, model) = run.train(Watch {
        reporter: Box::new(Steps),
        renderer: Box::new(CliMetricsRenderer::new()),
        interrupter: Interrupter::default(),
        control: Control::default(),
        memory: None,
        start: Start::New { force: false },
    })?;
    println!(
        "{} steps in {:.0} s: {}",
        summary.steps,
        summary.seconds,
        summary.adapter.display()
    );

    let chat = Conversation::new(vec![Message::new(Role::User, question)]);
    let prompt = tokenizer.encode_chat(&chat)?;
    let config = GenerateConfig {
        max_new_tokens: 100,
        stop_ids: tokenizer.eos_token_ids().to_vec(),
        ..GenerateConfig::default()
    };
    let answers = model.generate(&[prompt], &config, |_, _| true);
    tokenizer.decode(&answers[0], true)
}

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let args: Vec<String> = env::args().skip(1).collect();
    let [model, rows, output] = &args[..] else {
        return Err("usage: finetune MODEL ROWS.jsonl OUTPUT".into());
    };
    println!("{}", finetune(model, rows, output, "Who are you?")?);
    Ok(())
}
