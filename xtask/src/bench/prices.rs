//! Predicted prices against measured ones: whether the order in which projections are given bits is the right one.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::bail;
use backdraft_arch::{Precision, QuantizationPlan};
use backdraft_formats::ModelSource;
use backdraft_kernels::device;
use backdraft_model::CausalLm;
use backdraft_recipe::Recipe;
use backdraft_train::adapt::{CalibrationRows, Survey};
use backdraft_train::data;
use burn::tensor::{DType, Device};
use clap::Args;

/// KL divergence of a model each of whose projections is NF4 alone, and of whole plans, against what was predicted.
#[derive(Args)]
pub(crate) struct PricesArgs {
    /// The model: a directory or a .gguf file, not quantised.
    #[arg(long)]
    model: PathBuf,
    /// Chat rows to measure on.
    #[arg(long)]
    train: PathBuf,
    /// Projections to measure, evenly spread over all.
    #[arg(long, default_value_t = 40)]
    matrices: usize,
    /// Mean bits of the plans.
    #[arg(long, value_delimiter = ',', default_value = "4.127,4.5,5.0")]
    bits: Vec<f64>,
    /// Tokens that prices are measured on; half as many of other rows for the KL.
    #[arg(long, default_value_t = 4096)]
    tokens: usize,
    /// cpu or cuda.
    #[arg(long, default_value = "cpu")]
    device: String,
}

pub(crate) fn run(args: &PricesArgs) -> anyhow::Result<()> {
    let (device, dtype) = match args.device.as_str() {
        "cpu" => (Device::flex(), DType::F32),
        "cuda" => (device::cuda(0)?, DType::BF16),
        other => bail!("--device takes cpu or cuda, not {other}"),
    };
    let quoted = |path: &PathBuf| toml::Value::from(path.to_string_lossy().as_ref()).to_string();
    let text = format!(
        "model = {}\nload_in_4bit = true\n[data]\ntrain = {}\ncache = \"off\"\n[train]\nmicro_batch_size = 8\n",
        quoted(&std::path::absolute(&args.model)?),
        quoted(&std::path::absolute(&args.train)?)
    );
    let recipe = Recipe::from_toml(&text, &std::env::current_dir()?, &[])?;
    let source = Arc::new(ModelSource::open(&args.model)?);
    let data = data::read(&recipe, &source, &mut |_| ())?;
    let pass = data.loader.largest_micro_batch().iter().sum();
    let rows = CalibrationRows::choose(&data.train, data.loader.clone(), args.tokens, pass)?;
    let nf4 = QuantizationPlan::new(Precision::Nf4.scheme(64, true));
    let mut model = CausalLm::load_as(&source, Some(&nf4), (&device, dtype))?;
    let formats = Precision::ALL;
    let survey = Survey::measure(&source, &model, &nf4, (rows, formats), recipe.seed)?;
    let all: Vec<String> = model
        .spec()
        .projections()
        .map(|(layer, target)| target.path(layer))
        .collect();
    let count = args.matrices.clamp(2, all.len());
    let chosen: Vec<&String> = (0..count).map(|i| &all[i * all.len() / count]).collect();
    let alone = |path: &String| {
        let others = all.iter().filter(|other| *other != path);
        let mut plan = nf4.clone();
        plan.skip_modules.extend(others.cloned());
        plan
    };
    let mut plans: Vec<QuantizationPlan> = chosen.iter().map(|path| alone(path)).collect();
    let mut names = vec!["NF4".to_owned()];
    plans.push(nf4.clone());
    for &bits in &args.bits {
        let Some(offer) = survey.deal(bits) else {
            bail!("{bits} bits are fewer than the smallest format takes");
        };
        names.push(format!("{:.3} bits", offer.report.bits));
        plans.push(offer.plan);
    }
    let predicted: Vec<f64> = plans.iter().map(|plan| survey.price(plan)).collect();
    let measured = survey.check(&mut model, &plans.iter().collect::<Vec<_>>())?;
    println!("| alone in NF4 | predicted KL | measured KL |\n| --- | --- | --- |");
    for (i, path) in chosen.iter().enumerate() {
        println!("| {path} | {:.2e} | {:.2e} |", predicted[i], measured[i]);
    }
    println!(
        "\nSpearman's ρ of {count} projections: {:.3}\n",
        spearman(&predicted[..count], &measured[..count])
    );
    println!("| whole model | predicted KL | measured KL | of NF4's |\n| --- | --- | --- | --- |");
    for (i, name) in names.iter().enumerate() {
        let (predicted, kl) = (predicted[count + i], measured[count + i]);
        println!(
            "| {name} | {predicted:.4} | {kl:.4} | {:.2} |",
            kl / measured[count]
        );
    }
    Ok(())
}

/// The correlation of ranks; no two values are expected to be equal.
fn spearman(a: &[f64], b: &[f64]) -> f64 {
    let ranks = |values: &[f64]| {
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_by(|&i, &j| values[i].total_cmp(&values[j]));
        let mut ranks = vec![0.0; values.len()];
        for (rank, i) in order.into_iter().enumerate() {
            ranks[i] = rank as f64;
        }
        ranks
    };
    let n = a.len() as f64;
    let apart = ranks(a).into_iter().zip(ranks(b));
    let squares: f64 = apart.map(|(x, y)| (x - y).powi(2)).sum();
    1.0 - 6.0 * squares / (n * (n * n - 1.0))
}

#[cfg(test)]
mod tests {
    use super::spearman;

    #[test]
    fn ranks_alone_count() {
        assert_eq!(spearman(&[1.0, 2.0, 9.0], &[0.1, 0.2, 0.3]), 1.0);
        assert_eq!(spearman(&[1.0, 2.0, 9.0], &[3.0, 2.0, -1.0]), -1.0);
        assert_eq!(spearman(&[1.0, 2.0, 3.0], &[1.0, 3.0, 2.0]), 0.5);
    }
}
