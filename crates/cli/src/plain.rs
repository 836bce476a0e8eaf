//! A training run as plain lines, where there is no terminal for the dashboard.
//!
//! Every step line has the same columns in the same places, each a name and a value, so that `grep`,
//! `awk` and a person find their way.

use std::path::PathBuf;
use std::time::Duration;

pub(crate) use backdraft_data::count;
pub(crate) use backdraft_data::count::group;
use backdraft_journal::report::StepReport;

/// What is known about a run before its first step.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Banner {
    /// The model as the recipe names it.
    pub(crate) model: String,
    /// Weights of the base.
    pub(crate) base_parameters: u64,
    /// Weights of the adapter, or of the base, that are trained.
    pub(crate) trainable_parameters: u64,
    /// Whether they are the base's own.
    pub(crate) full: bool,
    /// How the base is stored.
    pub(crate) base: String,
    /// Memory that the run will need.
    pub(crate) memory: String,
    /// What computes, and in which number format.
    pub(crate) device: String,
    /// Rows to learn from.
    pub(crate) train_rows: usize,
    /// Tokens of those rows.
    pub(crate) train_tokens: u64,
    /// Tokens of those rows that count in the loss.
    pub(crate) supervised_tokens: u64,
    /// Rows held out; `None` without evaluation.
    pub(crate) eval_rows: Option<usize>,
    /// Rows of one optimiser step: micro-batch and accumulation.
    pub(crate) batch: (usize, usize),
    /// Optimiser steps of the run.
    pub(crate) total_steps: usize,
    /// Where the run's files go.
    pub(crate) output_dir: PathBuf,
}

/// One optimiser step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct StepLine {
    /// Optimiser steps done, from 1.
    pub(crate) step: usize,
    /// Times through the rows so far.
    pub(crate) epoch: f64,
    /// Loss per supervised token.
    pub(crate) loss: f64,
    /// Learning rate of the step.
    pub(crate) learning_rate: f64,
    /// Global norm of the gradients before clipping.
    pub(crate) grad_norm: f64,
    /// Real tokens per second.
    pub(crate) tokens_per_second: f64,
    /// Supervised tokens per second.
    pub(crate) supervised_tokens_per_second: f64,
    /// Time since the first step began.
    pub(crate) elapsed: Duration,
    /// Mean margin of its pairs, and the share of them that are right, where answers are compared.
    pub(crate) margin: Option<f64>,
    /// The share.
    pub(crate) accuracy: Option<f64>,
    /// Time left; `None` for a step of the past.
    pub(crate) eta: Option<Duration>,
}

impl StepLine {
    /// A step as it was reported.
    pub(crate) fn of(report: &StepReport, eta: Option<Duration>) -> Self {
        let seconds = report.seconds.max(1e-9);
        Self {
            step: report.step,
            epoch: report.epoch,
            loss: report.loss,
            learning_rate: report.learning_rate,
            grad_norm: report.grad_norm,
            tokens_per_second: report.tokens as f64 / seconds,
            supervised_tokens_per_second: report.supervised_tokens as f64 / seconds,
            elapsed: Duration::try_from_secs_f64(report.elapsed).unwrap_or_default(),
            margin: report
                .answers
                .and_then(|answers| Some(answers.margin?.mean)),
            accuracy: report
                .answers
                .and_then(|answers| Some(answers.accuracy?.mean)),
            eta,
        }
    }
}

/// What is known after the last step.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Summary {
    /// Optimiser steps done.
    pub(crate) steps: usize,
    /// Optimiser steps planned.
    pub(crate) total_steps: usize,
    /// Steps that another process had done.
    pub(crate) resumed_from: usize,
    /// How and why it ended before its last step.
    pub(crate) end: Option<(&'static str, String)>,
    /// What the curve means.
    pub(crate) diagnosis: Option<String>,
    /// Why the run, or a part of it, trained nothing.
    pub(crate) warnings: Vec<String>,
    /// What adaptive precision came to.
    pub(crate) precision: Option<String>,
    /// The page about it.
    pub(crate) report: PathBuf,
    /// The step whose weights the adapter holds.
    /// Whether what it left is a model.
    pub(crate) full: bool,
    pub(crate) adapter_step: usize,
    /// Run time.
    pub(crate) elapsed: Duration,
    /// Real tokens per second over the run.
    pub(crate) tokens_per_second: f64,
    /// Supervised tokens per second over the run.
    pub(crate) supervised_tokens_per_second: f64,
    /// Loss of the last step.
    pub(crate) final_loss: f64,
    /// What came of the answers of the last step, where they are compared.
    pub(crate) answers: Option<String>,
    /// Best loss of the rows held out, and its step.
    pub(crate) best_eval: Option<(f64, usize)>,
    /// Memory that had been predicted.
    pub(crate) predicted: String,
    /// Memory that was needed.
    pub(crate) measured: String,
    /// Directory of the adapter.
    pub(crate) adapter: PathBuf,
    /// The command that uses the adapter.
    pub(crate) try_it: String,
}

/// Formats a run as lines.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PlainLines {
    total_steps: usize,
    logging_steps: usize,
}

impl PlainLines {
    /// Lines for a run of `total_steps`, one each `logging_steps`.
    pub(crate) const fn new(total_steps: usize, logging_steps: usize) -> Self {
        Self {
            total_steps,
            logging_steps,
        }
    }

    /// Whether a step gets a line: each `logging_steps`, and the last one.
    pub(crate) const fn wants(&self, step: usize) -> bool {
        step == self.total_steps
            || (self.logging_steps > 0 && step.is_multiple_of(self.logging_steps))
    }

    /// The lines before the first step, as wide as a terminal where there is one.
    pub(crate) fn banner(&self, banner: &Banner, columns: Option<usize>) -> String {
        let Banner {
            trainable_parameters: trainable,
            base_parameters: base,
            ..
        } = *banner;
        let share = 100.0 * trainable as f64 / (base as f64).max(1.0);
        let eval = match banner.eval_rows {
            Some(rows) => format!("{} held out", count(rows as u64, "row")),
            None => "none (data.eval is not set)".to_owned(),
        };
        let (micro_batch, accumulation) = banner.batch;
        let rows = [
            (
                "model",
                format!("{} ({} parameters)", banner.model, group(base)),
            ),
            (
                if banner.full { "trained" } else { "adapter" },
                format!("{} trainable parameters ({share:.2} %)", group(trainable)),
            ),
            ("base", banner.base.clone()),
            ("memory", banner.memory.clone()),
            ("device", banner.device.clone()),
            (
                "data",
                format!(
                    "{}, {}, {} supervised",
                    count(banner.train_rows as u64, "row"),
                    count(banner.train_tokens, "token"),
                    group(banner.supervised_tokens)
                ),
            ),
            ("evaluation", eval),
            (
                "steps",
                format!(
                    "{} × {} (micro-batch {micro_batch} × accumulation {accumulation})",
                    group(banner.total_steps as u64),
                    count((micro_batch * accumulation) as u64, "row"),
                ),
            ),
            ("output", banner.output_dir.display().to_string()),
        ];
        wrapped(&rows, columns)
    }

    /// One step, without a line break.
    pub(crate) fn step(&self, line: &StepLine) -> String {
        self.columns(line).join("  ")
    }

    /// The same where lines are wrapped: a value stays with its name.
    pub(crate) fn step_to_wrap(&self, line: &StepLine) -> String {
        let columns = self.columns(line);
        let columns: Vec<String> = columns
            .iter()
            .map(|column| column.replace(' ', "\u{a0}"))
            .collect();
        columns.join("  ")
    }

    /// Names and values.
    fn columns(&self, line: &StepLine) -> Vec<String> {
        let width = self.total_steps.to_string().len();
        let (step, total) = (line.step, self.total_steps);
        let mut columns = vec![
            format!("step {step:>width$}/{total}"),
            format!("epoch {:>6.2}", line.epoch),
            format!("loss {:>8}", fixed(line.loss)),
        ];
        columns.extend(
            line.margin
                .map(|margin| format!("margin {:>8}", fixed(margin))),
        );
        columns.extend(line.accuracy.map(|share| format!("accuracy {share:>4.2}")));
        columns.extend([
            format!("lr {:>9}", scientific(line.learning_rate)),
            format!("grad_norm {:>8}", fixed(line.grad_norm)),
            format!("tok/s {:>7}", rate(line.tokens_per_second)),
            format!("sup_tok/s {:>7}", rate(line.supervised_tokens_per_second)),
            format!("elapsed {:>9}", clock(line.elapsed)),
        ]);
        columns.extend(line.eta.map(|eta| format!("eta {:>9}", clock(eta))));
        columns
    }

    /// The lines after the last step, as wide as a terminal where there is one.
    pub(crate) fn summary(&self, summary: &Summary, columns: Option<usize>) -> String {
        let best = match summary.best_eval {
            Some((loss, step)) if summary.answers.is_some() => {
                format!("{} at step {step}", fixed(loss))
            }
            Some((loss, step)) => {
                format!(
                    "{} (perplexity {}) at step {step}",
                    fixed(loss),
                    fixed(loss.exp())
                )
            }
            None => "not evaluated".to_owned(),
        };
        let done = summary.steps.saturating_sub(summary.resumed_from);
        let mut time = format!(
            "{} for {}",
            clock(summary.elapsed),
            count(done as u64, "step")
        );
        if summary.resumed_from > 0 {
            time.push_str(&format!(
                " (resumed at step {})",
                group(summary.resumed_from as u64)
            ));
        }
        let mut rows = vec![("run time", time)];
        if let Some(end) = &summary.end {
            let (steps, total) = (
                group(summary.steps as u64),
                group(summary.total_steps as u64),
            );
            let (how, why) = end;
            rows.push(("ended", format!("{how} at step {steps} of {total}: {why}")));
        }
        rows.push((
            "throughput",
            format!(
                "{} tokens/s, {} supervised tokens/s",
                rate(summary.tokens_per_second),
                rate(summary.supervised_tokens_per_second)
            ),
        ));
        rows.push(("final loss", fixed(summary.final_loss)));
        rows.extend(
            summary
                .answers
                .iter()
                .map(|answers| ("answers", answers.clone())),
        );
        rows.push(("best eval loss", best));
        if let Some(diagnosis) = &summary.diagnosis {
            rows.push(("diagnosis", diagnosis.clone()));
        }
        if let Some(precision) = &summary.precision {
            rows.push(("precision", precision.clone()));
        }
        let warnings = summary.warnings.iter();
        rows.extend(warnings.map(|warning| ("warning", warning.clone())));
        rows.push(("memory predicted", summary.predicted.clone()));
        rows.push(("memory measured", summary.measured.clone()));
        let of = if summary.adapter_step == summary.steps {
            String::new()
        } else {
            format!(" (step {}, the best evaluation)", summary.adapter_step)
        };
        let result = if summary.full { "model" } else { "adapter" };
        rows.push((result, format!("{}{of}", summary.adapter.display())));
        rows.push(("report", summary.report.display().to_string()));
        rows.push((TRY, summary.try_it.clone()));
        wrapped(&rows, columns)
    }
}

/// The row of a command to paste, which stays on one line.
const TRY: &str = "try it";

/// Names and values in two columns.
pub(crate) fn lines(rows: &[(&str, String)]) -> String {
    wrapped(rows, None)
}

/// Names and values in two columns, values wrapped within theirs where there is a width.
pub(crate) fn wrapped(rows: &[(&str, String)], columns: Option<usize>) -> String {
    let width = rows
        .iter()
        .map(|(name, _)| name.len())
        .max()
        .unwrap_or_default();
    let indent = " ".repeat(width + 2);
    let line = |(name, value): &(&str, String)| {
        let line = format!("{name:<width$}  {value}");
        match columns {
            Some(columns) if *name != TRY && value.contains(' ') && columns > width + 20 => {
                format!("{}\n", textwrap::fill(&line, wrapping(columns, &indent)))
            }
            _ => format!("{line}\n"),
        }
    };
    rows.iter().map(line).collect()
}

/// How text is wrapped: at spaces only, so that paths and numbers stay whole.
fn wrapping(columns: usize, indent: &str) -> textwrap::Options<'_> {
    textwrap::Options::new(columns)
        .subsequent_indent(indent)
        .break_words(false)
        .word_separator(textwrap::WordSeparator::AsciiSpace)
        .word_splitter(textwrap::WordSplitter::NoHyphenation)
}

/// Lines no wider than a terminal where there is one, further rows of each set off.
pub(crate) fn filled(text: &str, columns: Option<usize>) -> String {
    let Some(columns) = columns else {
        return text.to_owned();
    };
    let options = wrapping(columns, "    ");
    let lines: Vec<String> = text
        .lines()
        .map(|line| match line.chars().count() > columns {
            true => textwrap::fill(line, &options),
            false => line.to_owned(),
        })
        .collect();
    lines.join("\n")
}

/// Four decimals while they fit into eight characters, else an exponent.
pub(crate) fn fixed(value: f64) -> String {
    if value.abs() < 1000.0 || !value.is_finite() {
        format!("{value:.4}")
    } else {
        format!("{value:.2e}")
    }
}

pub(crate) fn scientific(value: f64) -> String {
    if value == 0.0 {
        "0".to_owned()
    } else {
        format!("{value:.3e}")
    }
}

pub(crate) fn rate(value: f64) -> String {
    if value < 100.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.0}")
    }
}

/// Hours, minutes and seconds.
pub(crate) fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    format!(
        "{}:{:02}:{:02}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    )
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;

    use super::*;

    const LINES: PlainLines = PlainLines::new(330, 10);

    fn line(step: usize) -> StepLine {
        StepLine {
            step,
            epoch: step as f64 / 110.0,
            loss: 2.103_44,
            learning_rate: 1.176_470_588e-4,
            grad_norm: 1.234_56,
            tokens_per_second: 812.4,
            supervised_tokens_per_second: 99.96,
            elapsed: Duration::from_secs(72),
            margin: None,
            accuracy: None,
            eta: Some(Duration::from_secs(2_180)),
        }
    }

    #[test]
    fn columns_stay_in_their_places() {
        let first = StepLine {
            loss: f64::NAN,
            learning_rate: 0.0,
            ..line(1)
        };
        let wild = StepLine {
            loss: 12_345.6,
            grad_norm: f64::INFINITY,
            tokens_per_second: 1_234_567.0,
            elapsed: Duration::from_secs(3_599_999),
            ..line(330)
        };
        let text: Vec<String> = [first, line(10), wild]
            .iter()
            .map(|line| LINES.step(line))
            .collect();
        assert_snapshot!(text.join("\n"), @"
        step   1/330  epoch   0.01  loss      NaN  lr         0  grad_norm   1.2346  tok/s     812  sup_tok/s   100.0  elapsed   0:01:12  eta   0:36:20
        step  10/330  epoch   0.09  loss   2.1034  lr  1.176e-4  grad_norm   1.2346  tok/s     812  sup_tok/s   100.0  elapsed   0:01:12  eta   0:36:20
        step 330/330  epoch   3.00  loss   1.23e4  lr  1.176e-4  grad_norm      inf  tok/s 1234567  sup_tok/s   100.0  elapsed 999:59:59  eta   0:36:20
        ");
        let widths: Vec<usize> = text.iter().map(String::len).collect();
        assert!(
            widths.windows(2).all(|pair| pair[0] == pair[1]),
            "{widths:?}"
        );
    }

    #[test]
    fn values_follow_their_names() {
        let text = LINES.step(&line(10));
        let words: Vec<&str> = text.split_whitespace().collect();
        let value = |name: &str| words[words.iter().position(|word| *word == name).unwrap() + 1];
        assert_eq!(words.len() % 2, 0);
        assert_eq!(
            (value("loss"), value("grad_norm"), value("eta")),
            ("2.1034", "1.2346", "0:36:20")
        );
        assert_eq!(value("lr").parse::<f64>().unwrap(), 1.176e-4);
    }

    #[test]
    fn logs_every_so_many_steps_and_the_last() {
        let lines = PlainLines::new(25, 10);
        let logged: Vec<usize> = (1..=25).filter(|&step| lines.wants(step)).collect();
        assert_eq!(logged, [10, 20, 25]);
    }

    #[test]
    fn the_banner_says_what_will_happen() {
        let banner = Banner {
            model: "HuggingFaceTB/SmolLM2-135M-Instruct".into(),
            base_parameters: 134_515_008,
            trainable_parameters: 4_884_480,
            full: false,
            base: "f32 134.5 M at 32.00 bits".into(),
            memory: "1.50 GiB: base 513.1 MiB, …".into(),
            device: "cpu, f32, 2 threads".into(),
            train_rows: 880,
            train_tokens: 61_234,
            supervised_tokens: 9_876,
            eval_rows: Some(100),
            batch: (4, 2),
            total_steps: 330,
            output_dir: "outputs".into(),
        };
        assert_snapshot!(LINES.banner(&banner, None), @"
        model       HuggingFaceTB/SmolLM2-135M-Instruct (134,515,008 parameters)
        adapter     4,884,480 trainable parameters (3.63 %)
        base        f32 134.5 M at 32.00 bits
        memory      1.50 GiB: base 513.1 MiB, …
        device      cpu, f32, 2 threads
        data        880 rows, 61,234 tokens, 9,876 supervised
        evaluation  100 rows held out
        steps       330 × 8 rows (micro-batch 4 × accumulation 2)
        output      outputs
        ");
        let banner = Banner {
            eval_rows: None,
            ..banner
        };
        assert!(
            LINES
                .banner(&banner, None)
                .contains("evaluation  none (data.eval is not set)\n")
        );
    }

    #[test]
    fn the_summary_says_what_came_out() {
        let summary = Summary {
            steps: 330,
            total_steps: 330,
            resumed_from: 0,
            end: None,
            diagnosis: Some("healthy: the loss falls steadily".into()),
            warnings: Vec::new(),
            precision: None,
            report: "outputs/report.html".into(),
            full: false,
            adapter_step: 300,
            elapsed: Duration::from_secs(4_321),
            tokens_per_second: 812.4,
            supervised_tokens_per_second: 99.96,
            final_loss: 1.234_56,
            answers: None,
            best_eval: Some((1.781_6, 300)),
            predicted: "1.50 GiB: base 513.1 MiB, …".into(),
            measured: "1.94 GiB: base 540.0 MiB, …".into(),
            adapter: "outputs/adapter".into(),
            try_it: "backdraft generate --model model.gguf --adapter outputs/adapter --chat".into(),
        };
        assert_snapshot!(LINES.summary(&summary, None), @"
        run time          1:12:01 for 330 steps
        throughput        812 tokens/s, 100.0 supervised tokens/s
        final loss        1.2346
        best eval loss    1.7816 (perplexity 5.9394) at step 300
        diagnosis         healthy: the loss falls steadily
        memory predicted  1.50 GiB: base 513.1 MiB, …
        memory measured   1.94 GiB: base 540.0 MiB, …
        adapter           outputs/adapter (step 300, the best evaluation)
        report            outputs/report.html
        try it            backdraft generate --model model.gguf --adapter outputs/adapter --chat
        ");
        let summary = Summary {
            best_eval: None,
            steps: 120,
            resumed_from: 100,
            end: Some((
                "interrupted",
                "resume with `backdraft train --resume outputs`".into(),
            )),
            diagnosis: None,
            full: false,
            adapter_step: 120,
            ..summary
        };
        assert_snapshot!(LINES.summary(&summary, None), @"
        run time          1:12:01 for 20 steps (resumed at step 100)
        ended             interrupted at step 120 of 330: resume with `backdraft train --resume outputs`
        throughput        812 tokens/s, 100.0 supervised tokens/s
        final loss        1.2346
        best eval loss    not evaluated
        memory predicted  1.50 GiB: base 513.1 MiB, …
        memory measured   1.94 GiB: base 540.0 MiB, …
        adapter           outputs/adapter
        report            outputs/report.html
        try it            backdraft generate --model model.gguf --adapter outputs/adapter --chat
        ");
        assert!(
            LINES
                .summary(&summary, None)
                .contains("best eval loss    not evaluated\n")
        );
    }
    #[test]
    fn values_are_wrapped_within_their_column() {
        let rows = [
            (
                "diagnosis",
                "healthy: the loss falls steadily and nothing speaks against it".to_owned(),
            ),
            (
                "adapter",
                "a/path/that/is/longer/than/the/terminal/adapter".to_owned(),
            ),
            (
                "try it",
                "backdraft generate --model model.gguf --adapter outputs/adapter".to_owned(),
            ),
        ];
        assert_snapshot!(wrapped(&rows, Some(40)), @"
        diagnosis  healthy: the loss falls
                   steadily and nothing speaks
                   against it
        adapter    a/path/that/is/longer/than/the/terminal/adapter
        try it     backdraft generate --model model.gguf --adapter outputs/adapter
        ");
        assert_eq!(wrapped(&rows, None).lines().count(), 3);
    }
}
