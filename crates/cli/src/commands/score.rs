//! `score`: logits and losses for given token ids.

use std::path::{Path, PathBuf};

use backdraft_formats::dtype::f32_bytes;
use backdraft_formats::{Dtype, SafetensorsWriter, TensorInfo};
use backdraft_model::{Targets, Tokens};
use clap::Args;

use crate::args::ModelArgs;
use crate::commands::{self, Context};
use crate::error::CliError;
use crate::session::Chosen;

/// Write logits and per-token losses for given token ids
///
/// The ids are a JSON list, or a list of lists of the same length. The output file holds `logits` [b, s, v] and
/// `nll` [b, s - 1], in float32.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  backdraft score --model model.gguf --ids ids.json --out scores.safetensors")]
pub(crate) struct ScoreArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,

    /// JSON file with the token ids
    #[arg(long, value_name = "FILE")]
    pub(crate) ids: PathBuf,

    /// safetensors file to write
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,

    /// Replace the output file if it exists
    #[arg(long)]
    pub(crate) force: bool,
}

pub(crate) fn run(args: &ScoreArgs, context: Context) -> Result<(), CliError> {
    let rows = read_ids(&args.ids)?;
    // Ids need no tokenizer.
    let chosen = Chosen::find(&args.model, context)?;
    let adapter = chosen.factors.as_ref().map(|adapter| adapter.path.clone());
    let inputs: Vec<PathBuf> = [args.ids.clone(), chosen.source.path().to_owned()]
        .into_iter()
        .chain(adapter)
        .collect();
    let existing = commands::new_file(&args.out, args.force, &inputs)?;
    let model = chosen.load(&args.model, context)?;
    let vocabulary = model.spec().vocab_size;
    if let Some(id) = rows.iter().flatten().find(|&&id| id as usize >= vocabulary) {
        return Err(CliError::user(format!(
            "{}: id {id} is not in the vocabulary of {vocabulary} tokens",
            args.ids.display()
        )));
    }
    let (b, s) = (rows.len(), rows[0].len());
    let infos = vec![
        TensorInfo::new("logits", Dtype::F32, [b, s, vocabulary]),
        TensorInfo::new("nll", Dtype::F32, [b, s - 1]),
    ];
    let mut writer = SafetensorsWriter::create(&args.out, infos, existing)?;
    let (mut logits, mut nll) = (Vec::new(), Vec::new());
    for row in &rows {
        let tokens = Tokens::from_sequences(&[row]);
        let hidden = model.forward_hidden(&tokens, None);
        logits.extend(model.logits(hidden).into_data().iter::<f32>());
        let labels: Vec<i64> = row.iter().map(|&id| i64::from(id)).collect();
        let targets = Targets::from_labels(&tokens.segments, &labels);
        nll.extend(model.nll(&tokens, &targets).into_data().iter::<f32>());
    }
    writer.write("logits", &f32_bytes(&logits))?;
    writer.write("nll", &f32_bytes(&nll))?;
    writer.finish()?;
    let mean = nll.iter().map(|&x| f64::from(x)).sum::<f64>() / nll.len() as f64;
    context.output.record(
        "scores",
        &serde_json::json!({
            "out": args.out, "mean_nll": mean, "tokens": nll.len(),
        }),
    )?;
    context.output.line(format!(
        "Wrote {}: logits [{b}, {s}, {vocabulary}], mean nll {mean:.6} over {} tokens",
        args.out.display(),
        nll.len()
    ))
}

/// A list of ids, or of lists of one length.
fn read_ids(path: &Path) -> Result<Vec<Vec<u32>>, CliError> {
    let shown = path.display();
    let text = std::fs::read_to_string(path)
        .map_err(|error| CliError::user(format!("cannot read {shown}")).because(error))?;
    let nested: Result<Vec<Vec<u32>>, _> = serde_json::from_str(&text);
    let rows = match (nested, serde_json::from_str::<Vec<u32>>(&text)) {
        (Ok(rows), _) => rows,
        (_, Ok(row)) => vec![row],
        (Err(error), _) => {
            return Err(CliError::user(format!(
                "{shown}: expected a JSON list of token ids, or a list of such lists"
            ))
            .because(error));
        }
    };
    let length = rows.first().map_or(0, Vec::len);
    if length < 2 || rows.iter().any(|row| row.len() != length) {
        return Err(CliError::user(format!(
            "{shown}: expected at least one list, all of one length of at least 2"
        )));
    }
    Ok(rows)
}
