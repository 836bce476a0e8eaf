//! `plan --measure`: what precision would cost, by the weights and some training rows.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Instant;

use backdraft_arch::{Precision, QuantizationPlan, Scheme};
use backdraft_formats::{Existing, ModelSource, write_file};
use backdraft_model::CausalLm;
use backdraft_recipe::Recipe;
use backdraft_train::adapt::{CalibrationRows, Offer, Survey};
use backdraft_train::device::dtype_on;
use serde_json::{Value, json};

use super::{PlanArgs, gib};
use crate::commands::{Context, train};
use crate::error::CliError;
use crate::session;

/// Bits that are shown beside those of the recipe.
const SHOWN: [f64; 4] = [4.25, 4.5, 5.0, 6.0];

pub(super) fn run(args: &PlanArgs, recipe: Recipe, context: Context) -> Result<(), CliError> {
    let began = Instant::now();
    let wanted = recipe.mean_bits();
    if recipe.has_open_bits() {
        return Err(
            CliError::user("bits are left to the memory that a run finds")
                .hint("give a number to measure for: --set quantization.bits=4.5"),
        );
    }
    if args.write.is_some() && wanted.is_none() {
        return Err(
            CliError::user("the recipe asks for no bits, so there is no plan to write")
                .hint("--set quantization.bits=4.5 asks for some"),
        );
    }
    let formats = &recipe.quantization.formats;
    if !formats.contains(&Precision::Nf4) {
        return Err(CliError::user(
            "quantization.formats lacks nf4, which the others are compared with",
        ));
    }
    let source = Arc::new(session::open_trained(&recipe, context.output)?);
    let (surveyed, mut model) = survey(&source, &recipe, (&nf4(&recipe)?, formats), context)?;
    let uniform = surveyed.uniform();
    let mut bits = SHOWN.to_vec();
    // As much as NF4 takes, and what the recipe says.
    bits.push((uniform.report.bits * 100.0).ceil() / 100.0);
    bits.extend(wanted);
    bits.sort_by(f64::total_cmp);
    bits.dedup();
    let offers: Vec<(f64, Offer)> = bits
        .into_iter()
        .filter_map(|bits| Some((bits, surveyed.deal(bits)?)))
        .collect();
    let chosen = wanted.and_then(|wanted| offers.iter().find(|(bits, _)| *bits == wanted));
    if let (Some(wanted), None) = (wanted, chosen) {
        return Err(CliError::user(format!(
            "quantization.bits = {wanted}: the smallest of quantization.formats take more"
        ))
        .hint("raise bits, or add a smaller format"));
    }
    let mut plans = vec![&uniform.plan];
    plans.extend(chosen.map(|(_, offer)| &offer.plan));
    context.output.progress("measuring the KL divergence");
    let kl = surveyed.check(&mut model, &plans)?;
    let shown = Shown {
        uniform: &uniform,
        offers: &offers,
        chosen: chosen.map(|(bits, offer)| (*bits, offer)),
        kl: &kl,
        tokens: surveyed.tokens(),
        seconds: began.elapsed().as_secs_f64(),
    };
    context.output.record("precision", &shown.to_json())?;
    context.output.line(shown.to_text())?;
    if let (Some(path), Some((_, offer))) = (&args.write, chosen) {
        let existing = match args.force {
            true => Existing::Replace,
            false => Existing::Refuse,
        };
        let text = format!("{:#}\n", json!(offer.plan));
        write_file(path, text.as_bytes(), existing)?;
        let line = format!("wrote {}; quantization.plan takes it", path.display());
        context.output.progress(line);
    }
    Ok(())
}

/// Loads the model of a recipe, which is `source`, in one format, and measures `formats` on its rows.
pub(crate) fn survey(
    source: &Arc<ModelSource>,
    recipe: &Recipe,
    (uniform, formats): (&QuantizationPlan, &[Precision]),
    context: Context,
) -> Result<(Survey, CausalLm), CliError> {
    let output = context.output;
    let device = session::open_device(context.global.device.unwrap_or(recipe.device), output)?;
    if source.quantization().is_some() {
        return Err(CliError::user(format!(
            "{} is stored in codes already, and this needs its unquantized weights",
            source.path().display()
        ))
        .hint("name the model that it was made from"));
    }
    let data = train::check_data(recipe, source, output)?;
    let dtype = dtype_on(recipe.dtype, &device)?;
    output.progress(format!("loading {} in {uniform}", source.path().display()));
    let model = CausalLm::load_as(source, Some(uniform), (&device, dtype))?;
    let tokens = recipe.quantization.calibration_tokens;
    output.progress(format!("measuring {tokens} tokens of training rows"));
    let pass = data.loader.largest_micro_batch().iter().sum();
    let rows = CalibrationRows::choose(&data.train, data.loader.clone(), tokens, pass)?;
    let surveyed = Survey::measure(source, &model, uniform, (rows, formats), recipe.seed)?;
    Ok((surveyed, model))
}

/// NF4 as a recipe has its blocks and what it skips.
fn nf4(recipe: &Recipe) -> Result<QuantizationPlan, CliError> {
    let mut uniform = recipe.clone();
    uniform.quantization.bits = None;
    uniform.quantization.base_memory = None;
    let plan = uniform.quantization_plan().filter(|_| recipe.load_in_4bit);
    let is_nf4 = |plan: &QuantizationPlan| plan.scheme.name() == Precision::Nf4.name();
    plan.filter(is_nf4).ok_or_else(|| {
        CliError::user("precision is measured around NF4, which the recipe does not load")
            .hint("--set load_in_4bit=true --set quantization.quant_type=nf4")
    })
}

/// What was found.
struct Shown<'a> {
    uniform: &'a Offer,
    offers: &'a [(f64, Offer)],
    chosen: Option<(f64, &'a Offer)>,
    /// Measured: of the uniform plan, and of the chosen one.
    kl: &'a [f64],
    tokens: usize,
    seconds: f64,
}

impl Shown<'_> {
    fn to_json(&self) -> Value {
        let offers: Vec<Value> = self
            .offers
            .iter()
            .map(|(bits, offer)| json!({ "asked": bits, "offer": offer.report }))
            .collect();
        json!({
            "uniform": self.uniform.report,
            "offers": offers,
            "bits": self.chosen.map(|(bits, _)| bits),
            "plan": self.chosen.map(|(_, offer)| &offer.plan),
            "kl": self.kl,
            "calibration_tokens": self.tokens,
            "seconds": self.seconds,
        })
    }

    fn to_text(&self) -> String {
        let mut text = format!(
            "{:>5}  {:>11}  {:>12}  {:>11}  {}\n",
            "bits", "projections", "predicted KL", "against NF4", "formats (share of weights)"
        );
        let price = |offer: &Offer| offer.report.predicted[1];
        let row = |offer: &Offer, here: bool| {
            format!(
                "{:>5.2}  {:>11}  {:>12.4}  {:>9.0} %  {}{}\n",
                offer.report.bits,
                gib(offer.report.bytes),
                price(offer),
                100.0 * price(offer) / price(self.uniform).max(f64::MIN_POSITIVE),
                offer.report.shares_in_words(),
                if here { "  <- the recipe" } else { "" }
            )
        };
        text += &row(self.uniform, self.chosen.is_none());
        let wanted = self.chosen.map(|(bits, _)| bits);
        for (bits, offer) in self.offers {
            text += &row(offer, Some(*bits) == wanted);
        }
        let _ = write!(
            text,
            "\nmeasured: KL {:.4} in {}",
            self.kl.first().copied().unwrap_or(f64::NAN),
            Scheme::name(self.uniform.plan.scheme)
        );
        if let (Some((bits, offer)), Some(kl)) = (self.chosen, self.kl.get(1)) {
            let _ = write!(text, ", {kl:.4} at {bits} bits");
            let layers = offer.report.by_layer.values().map(String::len).max();
            let last = layers.unwrap_or(1).saturating_sub(1);
            let _ = write!(text, "\n\nbits of each projection, layers 0 to {last}:\n");
            for (name, bits) in &offer.report.by_layer {
                let _ = writeln!(text, "  {name:<10} {bits}");
            }
        }
        text.trim_end().to_owned()
    }
}
