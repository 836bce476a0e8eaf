//! The model card: what somebody who finds the repository should know.

use backdraft_formats::hub::HubName;
use backdraft_formats::hub::push::PushFile;
use backdraft_formats::{CardHead, PeftConfig};
use backdraft_journal::records::Report;
use backdraft_journal::report::{EvalReport, RunSummary};
use backdraft_journal::run_files::{RunFiles, RunNote};
use backdraft_train::trained_with::{Prompting, TrainedWith};

use super::evaluation::Evaluation;
use super::recipe;
use crate::plain::{count, fixed};
use crate::provenance;
use crate::reporter::{explained, size};

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A PEFT adapter.
    Adapter,
    /// Weights as transformers loads them.
    Model,
    /// GGUF files.
    Gguf,
}

/// What a card is made of.
pub(super) struct Facts<'a> {
    pub(super) kind: Kind,
    pub(super) repository: &'a HubName,
    /// The base, by its hub id.
    pub(super) base: Option<&'a str>,
    /// What the base's card says.
    pub(super) of_base: CardHead,
    pub(super) adapter: Option<&'a PeftConfig>,
    pub(super) noted: Option<&'a TrainedWith>,
    pub(super) run: Option<&'a RunFiles>,
    pub(super) evaluation: Option<&'a Evaluation>,
    pub(super) files: &'a [PushFile],
}

const PROGRAM: &str = env!("CARGO_PKG_REPOSITORY");

/// The whole `README.md`.
pub(super) fn card(facts: &Facts<'_>) -> String {
    let sections = [
        Some(head(facts).to_yaml()),
        Some(title(facts)),
        Some(usage(facts)),
        facts.run.and_then(data),
        training(facts),
        facts.evaluation.map(Evaluation::section),
        facts.run.and_then(evaluation),
        facts.run.and_then(of_recipe),
    ];
    let sections: Vec<String> = sections.into_iter().flatten().collect();
    sections.join("\n")
}

fn head(facts: &Facts<'_>) -> CardHead {
    let (library, relation, tag) = match facts.kind {
        Kind::Adapter => ("peft", "adapter", "lora"),
        Kind::Model => ("transformers", "finetune", "finetuned"),
        Kind::Gguf => ("gguf", "quantized", "gguf"),
    };
    let task = match scores(facts) {
        true => "text-classification",
        false => "text-generation",
    };
    let of_base = &facts.of_base;
    let quantized = quantization(facts).is_some().then_some("qlora");
    let datasets = facts.run.map_or_else(Vec::new, provenance::datasets);
    CardHead::default()
        .with("base_model", facts.base)
        .with("base_model_relation", facts.base.map(|_| relation))
        .with("library_name", Some(library))
        .with("pipeline_tag", Some(task))
        .with("license", of_base.one("license"))
        .with("license_name", of_base.one("license_name"))
        .with("license_link", of_base.one("license_link"))
        .with_list("language", of_base.all("language"))
        .with_list("datasets", datasets)
        .with_list("tags", ["backdraft", tag].into_iter().chain(quantized))
}

/// Whether it is a reward model.
fn scores(facts: &Facts<'_>) -> bool {
    facts.adapter.is_some_and(PeftConfig::scores)
}

fn title(facts: &Facts<'_>) -> String {
    let (_, name) = facts
        .repository
        .repository()
        .split_once('/')
        .unwrap_or_default();
    let base = match facts.base {
        Some(base) => format!("[{base}](https://huggingface.co/{base})"),
        None => "a base that has no name on the hub".to_owned(),
    };
    let what = match facts.kind {
        Kind::Adapter if scores(facts) => "A reward model, as a LoRA adapter for",
        Kind::Adapter => "A LoRA adapter for",
        Kind::Model => "A fine-tune of",
        Kind::Gguf => "GGUF files of a fine-tune of",
    };
    let version = program(facts.run.and_then(|run| run.note.as_ref()));
    format!("# {name}\n\n{what} {base}, made with [{version}]({PROGRAM}).\n")
}

/// The program that trained, with its version.
fn program(note: Option<&RunNote>) -> String {
    let noted = note.and_then(|note| note.process.as_ref());
    let this = || format!("backdraft {}", env!("CARGO_PKG_VERSION"));
    noted.map_or_else(this, |process| process.program.clone())
}

fn usage(facts: &Facts<'_>) -> String {
    let repository = facts.repository.repository();
    let (_, name) = repository.split_once('/').unwrap_or_default();
    let base = facts.base.unwrap_or("BASE");
    let mut text = "## Use\n\n".to_owned();
    match facts.kind {
        Kind::Adapter if scores(facts) => text.push_str(&format!(
            "```python\nfrom peft import AutoPeftModelForSequenceClassification\nfrom transformers import AutoTokenizer\n\n\
             model = AutoPeftModelForSequenceClassification.from_pretrained(\"{repository}\", num_labels=1)\n\
             tokenizer = AutoTokenizer.from_pretrained(\"{base}\")\n```\n\n\
             ```sh\nhf download {repository} --local-dir {name}\n\
             backdraft eval --model {base} --adapter {name} --data pairs.jsonl\n```\n\n\
             The reward of an answer is the score of the last token of prompt and answer.\n"
        )),
        Kind::Adapter => text.push_str(&format!(
            "```python\nfrom peft import AutoPeftModelForCausalLM\nfrom transformers import AutoTokenizer\n\n\
             model = AutoPeftModelForCausalLM.from_pretrained(\"{repository}\")\n\
             tokenizer = AutoTokenizer.from_pretrained(\"{base}\")\n```\n\n\
             ```sh\nhf download {repository} --local-dir {name}\n\
             backdraft generate --model {base} --adapter {name} \"Hello\"\n\
             backdraft export --model {base} --adapter {name} --to gguf --type q4_k_m   # for llama.cpp and Ollama\n```\n"
        )),
        Kind::Model => text.push_str(&format!(
            "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n\
             model = AutoModelForCausalLM.from_pretrained(\"{repository}\")\n\
             tokenizer = AutoTokenizer.from_pretrained(\"{repository}\")\n```\n\n\
             ```sh\nbackdraft generate --model {repository} \"Hello\"\n\
             backdraft export --model {repository} --to gguf --type q4_k_m   # for llama.cpp and Ollama\n```\n"
        )),
        Kind::Gguf => {
            text.push_str(&format!("```sh\nollama run hf.co/{repository}\nllama-cli -hf {repository}\n```\n\n"));
            text.push_str("| file | size |\n| --- | --- |\n");
            let files = facts.files.iter().filter(|file| file.name.ends_with(".gguf"));
            for file in files {
                text.push_str(&format!("| `{}` | {:.1} MB |\n", file.name, file.bytes as f64 / 1e6));
            }
        }
    }
    if let Some(prompts) = facts.noted.and_then(prompts) {
        text.push_str(&format!("\n{prompts}\n"));
    }
    text
}

/// What prompts must be put into.
fn prompts(noted: &TrainedWith) -> Option<String> {
    match (noted.prompting, &noted.prompt_template) {
        (Prompting::ChatTemplate, _) => Some("Prompts go through the chat template.".to_owned()),
        (Prompting::Nothing, _) => {
            Some("Prompts go in as they are, without a template.".to_owned())
        }
        (Prompting::PromptTemplate, template) => {
            let template = template.as_deref()?;
            // Longer than any fence in the text.
            let longest = template
                .split(|c| c != '`')
                .map(str::len)
                .max()
                .unwrap_or_default();
            let fence = "`".repeat(longest.max(2) + 1);
            Some(format!(
                "Prompts go into this template, up to the answer:\n\n{fence}text\n{template}\n{fence}"
            ))
        }
    }
}

fn data(run: &RunFiles) -> Option<String> {
    let note = run.note.as_ref()?;
    let mut rows = vec![row("trained on", &note.train_data)];
    rows.extend(
        note.eval_data
            .as_ref()
            .map(|report| row("held out", report)),
    );
    let datasets = provenance::datasets(run);
    let from = match datasets.is_empty() {
        true => "Rows of their author's own.\n\n".to_owned(),
        false => {
            let links = datasets
                .iter()
                .map(|id| format!("[{id}](https://huggingface.co/datasets/{id})"));
            format!("From {}.\n\n", links.collect::<Vec<_>>().join(", "))
        }
    };
    Some(format!(
        "## Data\n\n{from}| | rows | tokens | supervised tokens |\n| --- | --- | --- | --- |\n{}",
        rows.concat()
    ))
}

fn row(what: &str, report: &backdraft_data::DataReport) -> String {
    format!(
        "| {what} | {} | {} | {} |\n",
        report.kept, report.tokens, report.supervised_tokens
    )
}

fn quantization(facts: &Facts<'_>) -> Option<String> {
    let plan = facts.noted?.over.quantization.as_ref()?;
    Some(plan.to_string())
}

fn training(facts: &Facts<'_>) -> Option<String> {
    let mut rows: Vec<(&str, String)> = Vec::new();
    if let Some(adapter) = facts.adapter {
        let variants = [
            (adapter.use_rslora, ", rsLoRA"),
            (adapter.use_dora, ", DoRA"),
        ];
        let variants = variants.into_iter().filter(|(used, _)| *used);
        let variants: String = variants.map(|(_, name)| name).collect();
        rows.push((
            "adapter",
            format!("rank {}, alpha {}{variants}", adapter.r, adapter.lora_alpha),
        ));
    }
    if let Some(plan) = quantization(facts) {
        rows.push(("base while training", plan));
    }
    if let Some(noted) = facts.noted {
        rows.push((
            "longest row",
            count(noted.rows.max_seq_length as u64, "token"),
        ));
        rows.push(("trained on", noted.rows.train_on.name().to_owned()));
    }
    if let Some(note) = facts.run.and_then(|run| run.note.as_ref()) {
        rows.push(("trained values", note.info.trained_params.to_string()));
        rows.push(("device", note.info.device.clone()));
    }
    if let Some(summary) = facts.run.and_then(|run| run.summary.as_ref()) {
        rows.extend(measured(summary));
    }
    if rows.is_empty() {
        return None;
    }
    let rows = rows
        .iter()
        .map(|(key, value)| format!("| {key} | {value} |\n"));
    let note = match facts.run.map(|run| explained(&run.diagnosis)) {
        Some(text) if !text.is_empty() => format!("\n{text}\n"),
        _ => String::new(),
    };
    Some(format!(
        "## Training\n\n| | |\n| --- | --- |\n{}{note}",
        rows.collect::<String>()
    ))
}

fn measured(summary: &RunSummary) -> Vec<(&'static str, String)> {
    let mut rows = vec![
        (
            "steps",
            format!(
                "{} of {}; weights of step {}",
                summary.steps, summary.total_steps, summary.adapter_step
            ),
        ),
        ("seconds", format!("{:.0}", summary.seconds)),
        (
            "tokens per second",
            format!("{:.0}", summary.tokens_per_second),
        ),
    ];
    if let Some(loss) = summary.final_loss {
        rows.push(("training loss of the last step", fixed(loss)));
    }
    let memory = match summary.peak_memory {
        Some(peak) => format!(
            "{} at most, {} predicted",
            size(peak),
            size(summary.memory.total())
        ),
        None => format!("{} predicted", size(summary.memory.total())),
    };
    rows.push(("memory", memory));
    rows
}

fn evaluation(run: &RunFiles) -> Option<String> {
    let evals = run.reports.iter().filter_map(|report| match report {
        Report::Eval(eval) => Some(eval),
        Report::Step(_) => None,
    });
    let evals: Vec<&EvalReport> = evals.collect();
    let (first, last) = (*evals.first()?, *evals.last()?);
    let finite = || evals.iter().filter(|eval| eval.eval_loss.is_finite());
    let marked = finite().rev().find(|eval| eval.best);
    let lowest = || finite().min_by(|a, b| a.eval_loss.total_cmp(&b.eval_loss));
    let best = *marked.or_else(lowest)?;
    let mut rows = vec![("before", first)];
    // A run whose first evaluation came after some steps has none of the base.
    if first.step > 0 {
        rows[0].0 = "first";
    }
    if best.step != first.step && best.step != last.step {
        rows.push(("best", best));
    }
    if last.step != first.step {
        let name = if best.step == last.step {
            "after, the best"
        } else {
            "after"
        };
        rows.push((name, last));
    }
    let rows = rows.iter().map(|(name, eval)| {
        format!(
            "| {name} | {} | {} | {} |\n",
            eval.step,
            fixed(eval.eval_loss),
            eval.perplexity.map_or_else(|| "–".to_owned(), fixed)
        )
    });
    Some(format!(
        "## Evaluation\n\nMean loss of {} that were held out, in nats.\n\n| | after step | loss | perplexity |\n\
         | --- | --- | --- | --- |\n{}",
        count(last.tokens as u64, "supervised token"),
        rows.collect::<String>()
    ))
}

fn of_recipe(run: &RunFiles) -> Option<String> {
    let text = recipe::public(&run.recipe)?;
    Some(format!("## Recipe\n\n```toml\n{text}```\n"))
}
