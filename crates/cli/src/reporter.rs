//! A run's events as plain lines, or as JSON lines.

use std::path::{Path, PathBuf};
use std::time::Duration;

use backdraft_formats::{ModelSource, PeftConfig};
use backdraft_journal::adaptation::AdaptationReport;
use backdraft_journal::diagnosis::{Diagnosis, Finding};
use backdraft_journal::records::Report;
use backdraft_journal::report::{
    AnswersReport, EvalReport, ReplanReport, Reporter, RunInfo, RunSummary, StepReport,
};
use backdraft_model::StoredShare;
use backdraft_plan::memory::{Measured, Memory};
use backdraft_train::trained_with::{Prompting, TrainedWith};
use burn::train::logger::{EvaluationProgressLogger, TrainingProgressLogger};
use burn::train::metric::MetricDefinition;
use burn::train::renderer::{
    EvaluationName, MetricState, MetricsRenderer, MetricsRendererEvaluation,
    MetricsRendererTraining,
};

use crate::dashboard::Shared;
use crate::output::Output;
use crate::plain::{Banner, PlainLines, StepLine, Summary, count};
use crate::shell::CommandLine;

/// Prints a run as it goes, or writes the same lines into the log of the dashboard.
pub(crate) struct PlainReporter {
    output: Output,
    output_dir: PathBuf,
    batch: (usize, usize),
    log: Option<Shared>,
    lines: PlainLines,
    total_steps: usize,
    /// Steps of this process, and the seconds they took.
    steps: usize,
    seconds: f64,
}

impl PlainReporter {
    pub(crate) fn new(
        output: Output,
        output_dir: PathBuf,
        batch: (usize, usize),
        log: Option<Shared>,
    ) -> Self {
        let lines = PlainLines::new(0, 1);
        Self {
            output,
            output_dir,
            batch,
            log,
            lines,
            total_steps: 0,
            steps: 0,
            seconds: 0.0,
        }
    }

    /// What cannot be written does not end a run.
    fn line(&self, text: impl AsRef<str>) {
        match &self.log {
            Some(shared) => shared.edit().log(text.as_ref()),
            None => self.output.go_on(self.output.line(text)),
        }
    }

    fn event(&self, event: &str, value: &impl serde::Serialize) {
        self.output.go_on(self.output.record(event, value));
    }

    /// Columns of the terminal; the dashboard wraps its log itself.
    fn columns(&self) -> Option<usize> {
        self.output.columns().filter(|_| self.log.is_none())
    }
}

impl Reporter for PlainReporter {
    fn start(&mut self, info: &RunInfo) {
        self.lines = PlainLines::new(info.total_steps, info.logging_steps);
        self.total_steps = info.total_steps;
        self.event("start", info);
        let banner = Banner {
            model: info.model.clone(),
            base_parameters: info.base_params as u64,
            trainable_parameters: info.trained_params as u64,
            full: info.full,
            base: stored(&info.base),
            memory: memory(&info.memory),
            device: info.device.clone(),
            train_rows: info.train_data.kept,
            train_tokens: info.train_data.tokens,
            supervised_tokens: info.train_data.supervised_tokens,
            eval_rows: info.eval_data.as_ref().map(|data| data.kept),
            batch: self.batch,
            total_steps: info.total_steps,
            output_dir: self.output_dir.clone(),
        };
        let text = self.lines.banner(&banner, self.columns());
        self.line(text.trim_end());
        let activations = &info.activations;
        self.line(format!(
            "activation policy {}: a step peaks at {} of {}; {:.1} % of its time is recomputation",
            activations.policy,
            size(activations.prediction.peak.total() as usize),
            match activations.budget {
                u64::MAX => "unlimited memory".to_owned(),
                budget => size(budget as usize),
            },
            100.0 * activations.prediction.recompute_share()
        ));
    }

    fn replanned(&mut self, report: &ReplanReport) {
        self.event("replanned", report);
        self.warn(&report.to_string());
    }

    fn adapting(&mut self, what: &str) {
        self.line(what);
    }

    fn adapted(&mut self, report: &AdaptationReport) {
        self.event("adaptation", report);
        self.line(report.to_string());
    }

    fn step(&mut self, report: &StepReport) {
        self.seconds += report.seconds;
        self.steps += 1;
        self.event("step", report);
        let mean = self.seconds / self.steps as f64;
        let left = self.total_steps.saturating_sub(report.step) as f64 * mean;
        let line = StepLine::of(report, Some(Duration::from_secs_f64(left)));
        if self.lines.wants(line.step) {
            self.line(match self.log {
                Some(_) => self.lines.step_to_wrap(&line),
                None => self.lines.step(&line),
            });
        }
    }

    fn eval(&mut self, report: &EvalReport) {
        self.event("eval", report);
        for line in eval_lines(report) {
            self.line(line);
        }
    }

    fn diagnosis(&mut self, step: usize, diagnosis: &Diagnosis) {
        self.event(
            "diagnosis",
            &serde_json::json!({ "step": step, "diagnosis": diagnosis }),
        );
        self.line(format!(
            "diagnosis at step {step}: {}",
            explained(diagnosis)
        ));
    }

    fn finding(&mut self, step: usize, finding: &Finding) {
        self.event(
            "finding",
            &serde_json::json!({ "step": step, "finding": finding }),
        );
        self.line(format!("answers at step {step}: {finding}"));
    }

    fn resumed(&mut self, step: usize, checkpoint: &Path, _: &[Report]) {
        self.event(
            "resumed",
            &serde_json::json!({ "step": step, "checkpoint": checkpoint }),
        );
        self.line(format!(
            "resumed at step {step}, from checkpoint {}",
            checkpoint.display()
        ));
    }

    fn stopped_early(&mut self, step: usize, best_step: usize) {
        self.event(
            "stopped_early",
            &serde_json::json!({ "step": step, "best_step": best_step }),
        );
        self.line(format!(
            "stopping early at step {step}: eval loss has not improved since step {best_step}"
        ));
    }

    fn saved(&mut self, step: usize, path: &Path) {
        self.event("saved", &serde_json::json!({ "step": step, "path": path }));
        self.line(format!("saved checkpoint {}", path.display()));
    }

    fn warn(&mut self, message: &str) {
        match &self.log {
            Some(_) => self.line(format!("warning: {message}")),
            None => self.output.warn(message),
        }
    }
}

/// An evaluation on one line, and one for each further set.
pub(crate) fn eval_lines(report: &EvalReport) -> Vec<String> {
    let loss = losses(report.eval_loss, report.perplexity, report.answers.as_ref());
    let line = format!(
        "eval at step {}: {loss}, {}, {:.0} s{}",
        report.step,
        count(report.tokens as u64, "token"),
        report.seconds,
        if report.best { " (best so far)" } else { "" }
    );
    let sets = report.sets.iter().map(|set| {
        let change = set.start_loss.zip(set.change());
        let change = change.map(|(start, change)| {
            format!(" ({change:+.4} since before the first step, {start:.4})")
        });
        format!(
            "  {}: {}{}, {}",
            set.name,
            losses(set.eval_loss, set.perplexity, set.answers.as_ref()),
            change.unwrap_or_default(),
            count(set.tokens as u64, "token")
        )
    });
    std::iter::once(line).chain(sets).collect()
}

/// What rows held out came to.
fn losses(loss: f64, perplexity: Option<f64>, answers: Option<&AnswersReport>) -> String {
    let mut text = format!("loss {loss:.4}");
    if let Some(perplexity) = perplexity {
        text.push_str(&format!(", perplexity {perplexity:.2}"));
    }
    if let Some(answers) = answers {
        if let Some(error) = answers.loss.error {
            text.push_str(&format!(" ± {error:.4}"));
        }
        text.push_str(&format!(", {answers}"));
    }
    text
}

/// A diagnosis with its evidence and what to change, on one line.
pub(crate) fn explained(diagnosis: &Diagnosis) -> String {
    diagnosis.to_string()
}

/// The end of a run, for people.
pub(crate) fn summary(
    summary: &RunSummary,
    model: String,
    output_dir: &Path,
    columns: Option<usize>,
) -> String {
    let end = if summary.stopped_early {
        let since = match summary.best_step {
            Some(step) => format!("eval loss has not improved since step {step}"),
            None => "eval loss has not improved".to_owned(),
        };
        Some(("stopped early", since))
    } else if summary.interrupted {
        let resume = CommandLine::new("train").flag("--resume", output_dir);
        Some(("interrupted", format!("resume with `{resume}`")))
    } else {
        None
    };
    let told = Summary {
        steps: summary.steps,
        total_steps: summary.total_steps,
        resumed_from: summary.resumed_from,
        end,
        diagnosis: summary.diagnosis.as_ref().map(explained),
        precision: summary.precision.as_ref().map(ToString::to_string),
        warnings: summary.no_effect.iter().map(ToString::to_string).collect(),
        report: output_dir.join(backdraft_journal::report_html::FILE),
        full: summary.full,
        adapter_step: summary.adapter_step,
        elapsed: Duration::from_secs_f64(summary.seconds),
        tokens_per_second: summary.tokens_per_second,
        supervised_tokens_per_second: summary.supervised_tokens_per_second,
        final_loss: summary.final_loss.unwrap_or(f64::NAN),
        answers: summary.final_answers.as_ref().map(ToString::to_string),
        best_eval: summary.best_eval_loss.zip(summary.best_step),
        predicted: memory(&summary.memory),
        measured: match (&summary.measured_memory, summary.device_memory) {
            (Some(measured), _) => measured_memory(measured),
            (None, Some(bytes)) => format!("{} taken by the device's allocator", size(bytes)),
            (None, None) => "not reported by this system".to_owned(),
        },
        adapter: summary.adapter.clone(),
        try_it: match summary.full {
            true => try_model(&summary.adapter),
            false => try_it(&model, &summary.adapter),
        },
    };
    PlainLines::new(summary.total_steps, 1).summary(&told, columns)
}

/// The command that shows what was learned.
fn try_it(model: &str, adapter: &Path) -> String {
    let config = PeftConfig::read(&adapter.join("adapter_config.json"));
    if config.is_ok_and(|config| config.scores()) {
        let eval = CommandLine::new("eval")
            .flag("--model", model)
            .flag("--adapter", adapter);
        return eval.flag("--data", "pairs.jsonl").to_string();
    }
    let generate = CommandLine::new("generate")
        .flag("--model", model)
        .flag("--adapter", adapter);
    // A model that never saw a template does not chat.
    let prompting = TrainedWith::read(adapter).ok().flatten();
    let generate = match prompting.map(|noted| noted.prompting) {
        Some(Prompting::Nothing) => generate.text("Once upon a time"),
        _ => generate.switch("--chat"),
    };
    generate.to_string()
}

/// The same for a model whose own tensors were trained.
fn try_model(model: &Path) -> String {
    let generate = CommandLine::new("generate").flag("--model", model);
    let template = ModelSource::open(model).and_then(|source| source.tokenizer());
    let generate = match template.is_ok_and(|files| files.chat_template.is_some()) {
        true => generate.switch("--chat"),
        false => generate.text("Once upon a time"),
    };
    generate.to_string()
}

/// How a base is stored: `nf4 (blocks of 64, double) 106.2 M at 4.13 bits, f32 28.3 M at 32.00 bits`.
fn stored(shares: &[StoredShare]) -> String {
    let share = |share: &StoredShare| {
        format!(
            "{} {:.1} M at {:.2} bits",
            share.stored_as,
            share.params as f64 / 1e6,
            share.bits_per_weight()
        )
    };
    shares.iter().map(share).collect::<Vec<_>>().join(", ")
}

fn memory(memory: &Memory) -> String {
    format!(
        "{}: base {}, adapters and gradients {}, optimizer {}, activations {}",
        size(memory.total()),
        size(memory.base),
        size(memory.adapters),
        size(memory.optimizer),
        size(memory.activations)
    )
}

fn measured_memory(measured: &Measured) -> String {
    format!(
        "{}; program and data {}; peak RSS {} training, {} loading",
        memory(&measured.parts),
        size(measured.before),
        size(measured.peak_training),
        size(measured.peak_loading)
    )
}

pub(crate) fn size(bytes: usize) -> String {
    const GIB: f64 = (1u64 << 30) as f64;
    let bytes = bytes as f64;
    if bytes < 0.1 * GIB {
        format!("{:.1} MiB", bytes / GIB * 1024.0)
    } else {
        format!("{:.2} GiB", bytes / GIB)
    }
}

/// burn-train's headless renderer prints progress but no metric; ours are printed by
/// [`PlainReporter`], so this one is silent.
pub(crate) struct NoDashboard;

impl MetricsRendererTraining for NoDashboard {
    fn update_train(&mut self, _: MetricState) {}
    fn update_valid(&mut self, _: MetricState) {}
}

impl MetricsRendererEvaluation for NoDashboard {
    fn update_test(&mut self, _: EvaluationName, _: MetricState) {}
}

impl TrainingProgressLogger for NoDashboard {
    fn start(&mut self, _: usize, _: usize, _: Option<usize>, _: Option<&str>) {}
    fn update_epoch(&mut self, _: usize) {}
    fn start_split(&mut self, _: &str, _: usize) {}
    fn update_split(&mut self, _: usize) {}
    fn end_split(&mut self) {}
    fn end(&mut self) {}
    fn log_event_training(&mut self, _: String) {}
}

impl EvaluationProgressLogger for NoDashboard {
    fn start_global_progress(&mut self, _: usize) {}
    fn start_test(&mut self, _: &str, _: usize) {}
    fn update_test_progress(&mut self, _: usize) {}
    fn end_test(&mut self) {}
    fn end_global_progress(&mut self) {}
    fn log_event_evaluation(&mut self, _: String) {}
}

impl MetricsRenderer for NoDashboard {
    fn manual_close(&mut self) {}
    fn register_metric(&mut self, _: MetricDefinition) {}
}
