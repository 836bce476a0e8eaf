//! Llama inside a module of your own: a classifier that trains adapters and a head together.
//!
//! ```text
//! cargo run --release -p backdraft --example embed [MODEL]
//! ```
//!
//! `MODEL` is a Hugging Face directory or a GGUF file; without it, a tiny random checkpoint serves.
#![allow(clippy::print_stdout, reason = "an example talks")]

use std::env;
use std::error::Error;

use backdraft::burn::module::Module;
use backdraft::burn::nn::loss::CrossEntropyLossConfig;
use backdraft::burn::nn::{Linear, LinearConfig};
use backdraft::burn::optim::{AdamWConfig, GradientsParams};
use backdraft::burn::tensor::{Device, Int, Tensor};
use backdraft::formats::ModelSource;
use backdraft::lora::{LoraConfig, TargetModule};
use backdraft::model::{CausalLm, Tokens};

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/tiny/llama-tied");

/// A Burn module as any other: `llama`'s adapters and `head` are its parameters, and the weights that
/// were loaded are none.
#[derive(Module, Debug)]
struct Classifier {
    llama: CausalLm,
    head: Linear,
}

impl Classifier {
    /// Class logits of each sequence, from the hidden state of its last token.
    ///
    /// # Shapes
    /// `[sequences, 2]`.
    fn forward(&self, tokens: &Tokens) -> Tensor<2> {
        let hidden = self.llama.forward_hidden(tokens, None);
        let ends = tokens.segments.iter().map(|(rows, _)| rows.end as i64 - 1);
        let ends = Tensor::<1, Int>::from_ints(&*ends.collect::<Vec<_>>(), &hidden.device());
        self.head.forward(hidden.select(0, ends))
    }
}

/// Does the first token come again? Sequences of several lengths, and 1 or 0 for each.
fn task() -> (Vec<Vec<u32>>, Vec<i64>) {
    let example = |i: u32| {
        let mut ids: Vec<u32> = (0..5 + i % 3).map(|j| 3 + (i * 7 + j * 11) % 97).collect();
        let again = i.is_multiple_of(2);
        if again {
            ids.push(ids[0]);
        }
        (ids, i64::from(again))
    };
    (0..32).map(example).unzip()
}

pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    let device = Device::flex();
    let source = ModelSource::open(env::args().nth(1).unwrap_or_else(|| TINY.to_owned()))?;
    let lora = LoraConfig {
        rank: 4,
        alpha: 8.0,
        target_modules: vec![TargetModule::QProj, TargetModule::VProj],
        ..LoraConfig::default()
    };
    let llama = CausalLm::load(&source, &device)?.with_lora(&lora, 42)?;
    let head = LinearConfig::new(llama.spec().hidden_size, 2).init(&device);
    // From here on the parameters are tracked by autodiff.
    let mut model = Classifier { llama, head }.train();
    println!("{} trained values", model.num_params());

    let (sequences, classes) = task();
    // Sequences stand end to end, without padding.
    let tokens = Tokens::from_sequences(&sequences);
    let classes = Tensor::<1, Int>::from_ints(&*classes, &device);

    let criterion = CrossEntropyLossConfig::new().init(&device);
    let mut optimizer = AdamWConfig::new().init();
    for step in 0..=30 {
        let loss = criterion.forward(model.forward(&tokens), classes.clone());
        if step % 5 == 0 {
            println!(
                "step {step:>2}  loss {:.4}",
                loss.clone().into_scalar::<f32>()
            );
        }
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        model = optimizer.step(5e-3, model, gradients);
    }
    Ok(())
}
