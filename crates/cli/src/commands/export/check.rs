//! Whether a written file answers as the trained model does.

use std::path::Path;

use backdraft_data::{ChatTokenizer, Conversation, Message, Role};
use backdraft_formats::ModelSource;
use backdraft_lora::AdapterWeights;
use backdraft_model::CausalLm;
use backdraft_quant::QuantizationPlan;
use backdraft_train::data;
use backdraft_train::likeness::{Likeness, NextTokens};
use burn::tensor::{DType, Device};

use super::ExportArgs;
use crate::commands::Context;
use crate::error::CliError;
use crate::rows::{RowFlags, Rows};
use crate::session::{self, Chosen};

/// Tokens that are compared: their probabilities are kept, all of the vocabulary.
const TOKENS: usize = 256;
/// Rows that are looked at for them.
const ROWS: usize = 32;

/// Texts with what tokenizers differ in: case, digits, blanks, signs, accents, other scripts.
const TEXTS: [&str; 6] = [
    "The quick brown fox jumps over the lazy dog. It didn't stop; we're told it'll RETURN.",
    "In 2024, 3.14159 and 1234567890 were summed:  x=1;  y=22\n\n\tdone",
    "def area(r):\n    return 3.14 * r ** 2  # πr²\n",
    "naïve café – “quotes” … €5, Straße ÆØÅ",
    "日本語のテキスト, Привет, мир! مرحبا 🙂👩‍🚀",
    " leading and trailing  ",
];
const CHATS: [&[&str]; 3] = [
    &["What is the capital of France?"],
    &["Say hello.", "Hello! How can I help?", "Count to 3."],
    &["List two colours.\n- one\n- two"],
];

/// The trained model's next tokens, after it has been let go of.
pub(super) struct Trained {
    tokenizer: ChatTokenizer,
    ids: Vec<Vec<u32>>,
    next: NextTokens,
    device: Device,
}

/// What became of them in a file.
pub(super) struct Check {
    /// Texts whose ids were compared.
    pub(super) texts: usize,
    pub(super) likeness: Likeness,
}

impl Trained {
    /// Loads the trained model and notes what it says.
    pub(super) fn of(
        args: &ExportArgs,
        chosen: &Chosen,
        plan: Option<&QuantizationPlan>,
        context: Context,
    ) -> Result<Self, CliError> {
        let output = context.output;
        let tokenizer = chosen.tokenizer()?;
        let ids = match &args.check_data {
            Some(path) => rows(path, chosen, &tokenizer, context)?,
            None => texts(&tokenizer)?,
        };
        let device = session::open_device(context.global.device.unwrap_or_default(), output)?;
        output.progress("computing what the trained model says (--no-check does without)");
        let model = CausalLm::load_as(&chosen.source, plan, (&device, DType::F32))?;
        let model = match &chosen.factors {
            Some(factors) => model.with_adapter(&AdapterWeights::from_peft(factors, &device))?,
            None => model,
        };
        let next = NextTokens::of(&model, &ids)?;
        Ok(Self {
            tokenizer,
            ids,
            next,
            device,
        })
    }

    /// Reads a file as any other model, and compares.
    pub(super) fn compare(&self, path: &Path, context: Context) -> Result<Check, CliError> {
        let shown = path.display();
        context.output.progress(format!("reading {shown} back"));
        let source = ModelSource::open(path)?;
        let tokenizer = data::tokenizer(&source)?;
        let pairs = TEXTS.map(|text| {
            (
                text,
                encoded(&self.tokenizer, text),
                encoded(&tokenizer, text),
            )
        });
        for (text, ours, theirs) in pairs {
            same(text, &ours?, &theirs?, path)?;
        }
        let mut texts = TEXTS.len();
        if self.tokenizer.template().is_some() {
            for turns in CHATS {
                let chat = conversation(turns);
                let (ours, theirs) = (
                    self.tokenizer.encode_chat(&chat),
                    tokenizer.encode_chat(&chat),
                );
                same(turns[0], &ours?, &theirs?, path)?;
                texts += 1;
            }
        }
        let model = CausalLm::load(&source, &self.device)?;
        let likeness = self.next.likeness(&NextTokens::of(&model, &self.ids)?);
        if !likeness.mean_kl.is_finite() {
            return Err(CliError::user(format!(
                "{shown} answers with NaN or infinity: its weights are damaged, or too large for its type"
            ))
            .hint("export as bf16 to see whether the type is at fault"));
        }
        Ok(Check { texts, likeness })
    }
}

fn encoded(tokenizer: &ChatTokenizer, text: &str) -> Result<Vec<u32>, CliError> {
    let encoded = tokenizer.encode_text(text).map_err(CliError::boxed)?;
    Ok(encoded.ids)
}

fn same(text: &str, ours: &[u32], theirs: &[u32], path: &Path) -> Result<(), CliError> {
    if ours == theirs {
        return Ok(());
    }
    let pairs = ours.iter().zip(theirs);
    let at = pairs.take_while(|(ours, theirs)| ours == theirs).count();
    let at_most = |ids: &[u32]| ids.iter().skip(at).take(4).copied().collect::<Vec<_>>();
    Err(CliError::user(format!(
        "{} splits {text:?} into other tokens than the trained model: from token {at} on {:?}, expected {:?}",
        path.display(),
        at_most(theirs),
        at_most(ours)
    ))
    .hint("its tokenizer has no equal in GGUF; do not use the file"))
}

fn conversation(turns: &[&str]) -> Conversation {
    let role = |i: usize| match i % 2 {
        0 => Role::User,
        _ => Role::Assistant,
    };
    let turns = turns.iter().enumerate();
    Conversation::new(
        turns
            .map(|(i, text)| Message::new(role(i), *text))
            .collect(),
    )
}

/// The ids of the texts, chats first, up to the limit.
fn texts(tokenizer: &ChatTokenizer) -> Result<Vec<Vec<u32>>, CliError> {
    let mut all = Vec::new();
    if tokenizer.template().is_some() {
        for chat in CHATS {
            all.push(tokenizer.encode_chat(&conversation(chat))?);
        }
    }
    for text in TEXTS {
        all.push(encoded(tokenizer, text)?);
    }
    Ok(limited(all))
}

/// The ids of rows, up to the limit.
fn rows(
    path: &str,
    chosen: &Chosen,
    tokenizer: &ChatTokenizer,
    context: Context,
) -> Result<Vec<Vec<u32>>, CliError> {
    let noted = chosen
        .adapter
        .as_ref()
        .and_then(|adapter| adapter.with.as_ref());
    let model = chosen.source.path().display().to_string();
    let length = noted.is_none().then(|| "max_seq_length=2048".to_owned());
    let others = length.into_iter().collect();
    let rows = Rows::named(
        path,
        &model,
        &RowFlags::default(),
        noted,
        others,
        context.output,
    )?;
    let (rows, _) = rows.load(tokenizer, context.output)?;
    Ok(limited(
        rows.iter()
            .take(ROWS)
            .map(|row| row.input_ids.to_vec())
            .collect(),
    ))
}

fn limited(texts: Vec<Vec<u32>>) -> Vec<Vec<u32>> {
    let mut left = TOKENS;
    let mut kept = Vec::new();
    for mut text in texts {
        text.truncate(left);
        left -= text.len();
        if !text.is_empty() {
            kept.push(text);
        }
    }
    kept
}
