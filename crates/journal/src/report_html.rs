//! `report.html`: a run, or several side by side, as one file that needs nothing else.

mod answers;
mod precision;
mod sets;
mod svg;
mod tuning;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use backdraft_data::DataReport;
use backdraft_data::count::{count, group};
use backdraft_formats::{Existing, FormatError, write_file};
use backdraft_plan::memory::Memory;
use backdraft_recipe::{Difference, Recipe};
use svg::{Curve, Mark, figure};
pub use tuning::{range_page, tuning_page};

use crate::records::Report;
use crate::report::StepReport;
use crate::run_files::RunFiles;

/// Name of the file in an output directory.
pub const FILE: &str = "report.html";

/// Weight of the past in the smoothed loss.
const SMOOTHING: f64 = 0.9;

const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1b1f24;--paper:#fff;--faint:#d5dae0;--c0:#0b6bcb;--c1:#c2410c;--c2:#15803d;\
--c3:#7e22ce;--c4:#a16207;--c5:#be123c}\
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--paper:#0d1117;--faint:#30363d;--c0:#58a6ff;--c1:#f0883e;\
--c2:#3fb950;--c3:#bc8cff;--c4:#d29922;--c5:#ff7b72}}\
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:78rem;margin:2rem auto;\
padding:0 1rem}\
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}\
table{border-collapse:collapse;max-width:100%;display:block;overflow-x:auto}\
td,th{text-align:left;vertical-align:top;padding:.25rem .75rem .25rem 0;border-bottom:1px solid var(--faint)}\
th{font-weight:600;white-space:nowrap}\
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(30rem,100%),1fr));gap:1rem}\
figure{margin:0}figcaption{font-weight:600}svg{width:100%;height:auto}svg.key{width:2.2rem;vertical-align:middle}svg text{font-size:11px;fill:var(--ink)}\
.grid{stroke:var(--faint)}.line{fill:none;stroke-width:1.6}.faint{opacity:.35;stroke-width:1;stroke-dasharray:none}.ring{fill:none;stroke-width:2}.dot{stroke:none}\
.s0{stroke:var(--c0)}.s1{stroke:var(--c1);stroke-dasharray:7 3}.s2{stroke:var(--c2);stroke-dasharray:2 3}\
.s3{stroke:var(--c3);stroke-dasharray:9 3 2 3}.s4{stroke:var(--c4);stroke-dasharray:4 4}\
.s5{stroke:var(--c5);stroke-dasharray:12 4}\
.dot.s0{fill:var(--c0)}.dot.s1{fill:var(--c1)}.dot.s2{fill:var(--c2)}.dot.s3{fill:var(--c3)}.dot.s4{fill:var(--c4)}\
.dot.s5{fill:var(--c5)}.ring{stroke-dasharray:none}\
.c0{color:var(--c0)}.c1{color:var(--c1)}.c2{color:var(--c2)}.c3{color:var(--c3)}.c4{color:var(--c4)}.c5{color:var(--c5)}\
.legend{margin:.2rem 0;font-size:.85rem}pre{overflow-x:auto;background:color-mix(in srgb,var(--faint) 35%,transparent);\
padding:.75rem;font-size:.85rem;white-space:pre-wrap}\
.bar{display:flex;height:1.2rem;max-width:40rem;border:1px solid var(--faint)}.bar span{display:block}\
.sample td{white-space:pre-wrap}.sample{border-left:3px solid var(--faint);padding-left:1rem;margin:1rem 0}";

/// A number of a step.
type Rate = fn(&StepReport) -> f64;

/// Writes the report of the run in `directory` beside its other files, and gives its path.
///
/// # Errors
/// A directory without `metrics.jsonl`, or a system that refuses.
pub fn write(directory: &Path) -> Result<PathBuf, FormatError> {
    let run = RunFiles::read(directory)?;
    let path = directory.join(FILE);
    write_file(&path, page(&[run]).as_bytes(), Existing::Replace)?;
    Ok(path)
}

/// The page for these runs.
#[must_use]
pub fn page(runs: &[RunFiles]) -> String {
    let title = match runs {
        [run] => format!("{} → {}", short(model(run)), short(&run.name())),
        runs => format!("{} runs", runs.len()),
    };
    let title = escape(&title);
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <title>Backdraft: {title}</title>\n<style>{STYLE}</style></head>\n<body>\n<h1>{title}</h1>\n"
    );
    html.push_str(&table("Results", runs, results));
    html.push_str(&differing(runs));
    html.push_str("<h2>Curves</h2>\n<div class=\"figures\">\n");
    html.push_str(&figure("Loss, nats", &losses(runs)));
    let rates: [(&str, Rate); 3] = [
        ("Learning rate", |step| step.learning_rate),
        ("Gradient norm", |step| step.grad_norm),
        ("Tokens per second", |step| {
            step.tokens as f64 / step.seconds.max(1e-9)
        }),
    ];
    for (title, value) in rates {
        let curves: Vec<Curve> = runs
            .iter()
            .enumerate()
            .map(|(i, run)| Curve {
                name: name_of(run, runs, title),
                run: i,
                mark: Mark::Line,
                points: steps(run)
                    .map(|step| (step.step as f64, value(step)))
                    .collect(),
            })
            .collect();
        html.push_str(&figure(title, &curves));
    }
    html.push_str(&answers::figures(runs));
    html.push_str(&sets::figure_of(runs));
    html.push_str("</div>\n");
    html.push_str(&sets::table(runs));
    html.push_str(&precision::precision(runs));
    html.push_str(&table("Data", runs, data));
    html.push_str("<h2>Memory</h2>\n");
    for run in runs {
        html.push_str(&memory(run, runs));
    }
    html.push_str(&samples(runs));
    html.push_str(&recipes(runs));
    html.push_str("</body></html>\n");
    html
}

fn steps(run: &RunFiles) -> impl Iterator<Item = &StepReport> {
    run.reports.iter().filter_map(|report| match report {
        Report::Step(step) => Some(step),
        Report::Eval(_) => None,
    })
}

fn evals(run: &RunFiles) -> impl Iterator<Item = (f64, f64)> {
    run.reports.iter().filter_map(|report| match report {
        Report::Step(_) => None,
        Report::Eval(eval) => Some((eval.step as f64, eval.eval_loss)),
    })
}

/// The run's name where there are several, else what is drawn.
fn name_of(run: &RunFiles, runs: &[RunFiles], what: &str) -> String {
    match runs {
        [_] => what.to_lowercase(),
        _ => format!("{} ({})", run.name(), what.to_lowercase()),
    }
}

fn losses(runs: &[RunFiles]) -> Vec<Curve> {
    let mut curves = Vec::new();
    for (i, run) in runs.iter().enumerate() {
        let (mut sum, mut weight) = (0.0, 0.0);
        let smoothed = steps(run).filter(|step| step.loss.is_finite()).map(|step| {
            sum = SMOOTHING * sum + (1.0 - SMOOTHING) * step.loss;
            weight = SMOOTHING * weight + (1.0 - SMOOTHING);
            (step.step as f64, sum / weight)
        });
        curves.push(Curve {
            name: name_of(run, runs, "train, each step"),
            run: i,
            mark: Mark::Faint,
            points: steps(run)
                .map(|step| (step.step as f64, step.loss))
                .collect(),
        });
        curves.push(Curve {
            name: name_of(run, runs, "train, smoothed"),
            run: i,
            mark: Mark::Line,
            points: smoothed.collect(),
        });
        let points: Vec<(f64, f64)> = evals(run).collect();
        let best = points.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1));
        // One run has colours left for its evaluation.
        let color = if runs.len() == 1 { 1 } else { i };
        curves.push(Curve {
            name: name_of(run, runs, "eval"),
            run: color,
            mark: Mark::Dots,
            points,
        });
        curves.push(Curve {
            name: name_of(run, runs, "best eval"),
            run: color,
            mark: Mark::Best,
            points: best.into_iter().collect(),
        });
    }
    curves
}

/// A table with a column for each run and the rows that `rows` gives.
fn table(
    title: &str,
    runs: &[RunFiles],
    rows: fn(&RunFiles) -> Vec<(&'static str, String)>,
) -> String {
    let columns: Vec<_> = runs.iter().map(rows).collect();
    let Some(first) = columns.first() else {
        return String::new();
    };
    let mut html = format!("<h2>{}</h2>\n<table>\n", escape(title));
    if runs.len() > 1 {
        html.push_str("<tr><th></th>");
        for (i, run) in runs.iter().enumerate() {
            let _ = write!(
                html,
                "<th class=\"c{}\">{}</th>",
                i % 6,
                escape(&run.name())
            );
        }
        html.push_str("</tr>\n");
    }
    for (row, (name, _)) in first.iter().enumerate() {
        let _ = write!(html, "<tr><th>{}</th>", escape(name));
        for column in &columns {
            let value = column.get(row).map_or("", |(_, value)| value);
            let _ = write!(html, "<td>{}</td>", escape(value));
        }
        html.push_str("</tr>\n");
    }
    html.push_str("</table>\n");
    html
}

fn results(run: &RunFiles) -> Vec<(&'static str, String)> {
    let summary = run.summary.as_ref();
    let info = run.note.as_ref().map(|note| &note.info);
    let process = run.note.as_ref().and_then(|note| note.process.as_ref());
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "–".to_owned());
    let done = steps(run).last().map_or(0, |step| step.step);
    let best = evals(run).min_by(|a, b| a.1.total_cmp(&b.1));
    let end = match summary {
        None => " (not finished)",
        Some(summary) if summary.stopped_early => " (stopped early)",
        Some(summary) if summary.interrupted => " (interrupted)",
        Some(_) => "",
    };
    let no_effect = summary.into_iter().flat_map(|summary| &summary.no_effect);
    let warnings: Vec<String> = no_effect.map(ToString::to_string).collect();
    let mut rows = vec![
        ("Model", model(run).to_owned()),
        ("Output directory", run.name()),
        ("Date", or_dash(process.map(|process| date(process.began)))),
        (
            "Version",
            or_dash(process.map(|process| process.program.clone())),
        ),
        (
            "Command",
            or_dash(process.map(|process| process.command.join(" "))),
        ),
        ("Device", or_dash(info.map(|info| info.device.clone()))),
        (
            "Trained parameters",
            or_dash(info.map(|info| group(info.trained_params as u64))),
        ),
        (
            "Steps",
            format!(
                "{} of {}{end}",
                group(done as u64),
                group(run.total_steps() as u64)
            ),
        ),
        ("Run time", or_dash(run_time(run))),
        (
            "Throughput",
            or_dash(summary.map(|summary| {
                let rate = summary.tokens_per_second.round() as u64;
                format!("{} tokens/s", group(rate))
            })),
        ),
        (
            "Final loss",
            or_dash(steps(run).last().map(|step| loss(run, step.loss))),
        ),
        (
            "Best eval loss",
            or_dash(best.map(|(step, best)| format!("{} after step {step}", loss(run, best)))),
        ),
        ("Diagnosis", run.diagnosis.to_string()),
        (
            "Peak memory",
            or_dash(summary.and_then(|summary| Some(bytes(summary.peak_memory? as f64)))),
        ),
    ];
    if let Some(answers) = steps(run).last().and_then(|step| step.answers) {
        rows.push(("Answers of the last step", answers.to_string()));
    }
    let mut held_out = run.reports.iter().filter_map(|report| match report {
        Report::Step(_) => None,
        Report::Eval(eval) => eval.answers,
    });
    if let Some(answers) = held_out.next_back() {
        rows.push(("Answers held out", answers.to_string()));
    }
    rows.extend(answers::findings(run).map(|found| ("Findings", found)));
    if let Some(precision) = summary.and_then(|summary| summary.precision.as_ref()) {
        rows.push(("Precision", precision.to_string()));
    }
    if !warnings.is_empty() {
        rows.push(("Warnings", warnings.join("; ")));
    }
    rows
}

fn model(run: &RunFiles) -> &str {
    run.note.as_ref().map_or("", |note| &note.info.model)
}

/// The last part of a path, or all of a hub id.
fn short(name: &str) -> &str {
    match Path::new(name).is_absolute() {
        true => name
            .trim_end_matches('/')
            .rsplit('/')
            .next()
            .unwrap_or(name),
        false => name,
    }
}

/// A loss, with its perplexity where it is an nll.
fn loss(run: &RunFiles, loss: f64) -> String {
    match steps(run).any(|step| step.answers.is_some()) {
        true => format!("{loss:.4}"),
        false => format!("{loss:.4} (perplexity {:.2})", loss.exp()),
    }
}

/// As the terminal says it at the end; of a run that has not ended, the time of its steps.
fn run_time(run: &RunFiles) -> Option<String> {
    let Some(summary) = &run.summary else {
        return steps(run).last().map(|step| time(step.elapsed));
    };
    let steps = summary.steps.saturating_sub(summary.resumed_from);
    let resumed = match summary.resumed_from {
        0 => String::new(),
        step => format!(" (resumed at step {step})"),
    };
    Some(format!(
        "{} for {}{resumed}",
        time(summary.seconds),
        count(steps as u64, "step")
    ))
}

/// A day and a time of day in UTC.
///
/// # Source
/// Howard Hinnant, chrono-Compatible Low-Level Date Algorithms: `civil_from_days`.
fn date(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year_of_era + 400 * era + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02} UTC",
        second / 3600,
        second / 60 % 60
    )
}

fn data(run: &RunFiles) -> Vec<(&'static str, String)> {
    let note = run.note.as_ref();
    let line = |report: Option<&DataReport>| {
        let Some(report) = report else {
            return "–".to_owned();
        };
        let mut line = format!(
            "{} of {}, {}, {} of them in the loss; longest row {}; {} truncated, {} dropped",
            group(report.kept as u64),
            count(report.rows as u64, "row"),
            count(report.tokens, "token"),
            group(report.supervised_tokens),
            count(report.longest as u64, "token"),
            group(report.truncated as u64),
            group(report.dropped as u64),
        );
        match report.duplicates as u64 {
            0 => line.push_str(", no duplicates"),
            rows => {
                let _ = write!(line, ", {}", count(rows, "duplicate row"));
            }
        }
        line
    };
    vec![
        ("Train", line(note.map(|note| &note.train_data))),
        ("Eval", line(note.and_then(|note| note.eval_data.as_ref()))),
    ]
}

fn memory(run: &RunFiles, runs: &[RunFiles]) -> String {
    let Some(note) = &run.note else {
        return String::new();
    };
    let Memory {
        base,
        adapters,
        optimizer,
        activations,
    } = note.info.memory;
    let parts = [
        ("base", base),
        ("adapters and gradients", adapters),
        ("optimizer", optimizer),
        ("activations", activations),
    ];
    let parts: Vec<(&str, f64)> = parts
        .into_iter()
        .filter(|(_, bytes)| *bytes > 0)
        .map(|(name, bytes)| (name, bytes as f64))
        .collect();
    let total: f64 = parts.iter().map(|(_, bytes)| bytes).sum();
    let mut html = String::new();
    if runs.len() > 1 {
        let _ = writeln!(html, "<p>{}</p>", escape(&run.name()));
    }
    html.push_str("<div class=\"bar\">");
    for (i, (_, part)) in parts.iter().enumerate() {
        let share = 100.0 * part / total.max(1.0);
        let _ = write!(
            html,
            "<span style=\"width:{share:.2}%;background:var(--c{})\"></span>",
            i % 6
        );
    }
    html.push_str("</div>\n<p class=\"legend\">");
    for (i, (name, part)) in parts.iter().enumerate() {
        let _ = write!(
            html,
            "<span class=\"c{}\">■</span> {name} {} ",
            i % 6,
            bytes(*part)
        );
    }
    let _ = writeln!(html, "; {} predicted in total</p>", bytes(total));
    html
}

fn samples(runs: &[RunFiles]) -> String {
    let mut html = String::new();
    for run in runs.iter().filter(|run| !run.samples.is_empty()) {
        let _ = writeln!(
            html,
            "<h2>Answers {}</h2>",
            escape(&match runs {
                [_] => "before and after".to_owned(),
                _ => format!("before and after: {}", run.name()),
            })
        );
        for sample in &run.samples {
            let _ = writeln!(
                html,
                "<div class=\"sample\"><pre>{}</pre><table><tr><th>reference</th><td>{}</td></tr>\
                 <tr><th>base model</th><td>{}</td></tr><tr><th>fine-tuned</th><td>{}</td></tr></table></div>",
                escape(&sample.prompt),
                escape(&sample.expected),
                escape(&sample.before),
                escape(&sample.after)
            );
        }
    }
    html
}

/// A row for each key in which the recipes of several runs differ, a column for each run.
fn differing(runs: &[RunFiles]) -> String {
    if runs.len() < 2 {
        return String::new();
    }
    let mut html = "<h2>Differences between the recipes</h2>\n".to_owned();
    let read = |run: &RunFiles| Recipe::from_stored(&run.recipe, &run.directory).ok();
    let recipes: Option<Vec<Recipe>> = runs.iter().map(read).collect();
    let others = recipes.as_deref().and_then(|recipes| {
        let (first, rest) = recipes.split_first()?;
        let differences = rest.iter().map(|recipe| first.differences(recipe).ok());
        differences.collect::<Option<Vec<Vec<Difference>>>>()
    });
    let Some(others) = others else {
        html.push_str("<p>Not known: a recipe is missing or was written by another version.</p>\n");
        return html;
    };
    // What each of the others says where it is not what the first one says.
    let mut rows: BTreeMap<String, Vec<Option<Difference>>> = BTreeMap::new();
    let count = others.len();
    for (i, differences) in others.into_iter().enumerate() {
        for difference in differences {
            let row = rows.entry(difference.key.clone());
            row.or_insert_with(|| vec![None; count])[i] = Some(difference);
        }
    }
    rows.remove("output_dir");
    if rows.is_empty() {
        html.push_str("<p>None but output_dir.</p>\n");
        return html;
    }
    html.push_str("<table>\n<tr><th></th>");
    for (i, run) in runs.iter().enumerate() {
        let _ = write!(
            html,
            "<th class=\"c{}\">{}</th>",
            i % 6,
            escape(&run.name())
        );
    }
    html.push_str("</tr>\n");
    let shown =
        |value: Option<&String>| value.map_or_else(|| "–".to_owned(), |value| escape(value));
    for (key, row) in &rows {
        let was = row
            .iter()
            .flatten()
            .next()
            .and_then(|difference| difference.was.as_ref());
        let _ = write!(html, "<tr><th>{}</th><td>{}</td>", escape(key), shown(was));
        for difference in row {
            let now = difference
                .as_ref()
                .map_or(was, |difference| difference.now.as_ref());
            let _ = write!(html, "<td>{}</td>", shown(now));
        }
        html.push_str("</tr>\n");
    }
    html.push_str("</table>\n");
    html
}

fn recipes(runs: &[RunFiles]) -> String {
    let mut html = String::new();
    for run in runs {
        let _ = writeln!(
            html,
            "<h2>{}</h2>\n<pre>{}</pre>",
            escape(&match runs {
                [_] => "Recipe".to_owned(),
                _ => format!("Recipe of {}", run.name()),
            }),
            escape(&run.recipe)
        );
    }
    html
}

/// Text that means itself in HTML.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}

fn bytes(bytes: f64) -> String {
    const GIB: f64 = (1u64 << 30) as f64;
    if bytes < 0.1 * GIB {
        format!("{:.1} MiB", bytes / GIB * 1024.0)
    } else {
        format!("{:.2} GiB", bytes / GIB)
    }
}

fn time(seconds: f64) -> String {
    let seconds = seconds as u64;
    format!(
        "{}:{:02}:{:02}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    )
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::run_files::{Sample, write_json};

    fn run(root: &Path, name: &str, rank: usize) -> RunFiles {
        let directory = root.join(name);
        fs::create_dir_all(&directory).unwrap();
        let mut lines = String::new();
        for step in 1..=40 {
            let loss = 1.0 + 1.0 / step as f64;
            let _ = writeln!(
                lines,
                "{{\"step\":{step},\"epoch\":0.1,\"loss\":{loss},\"grad_norm\":1.0,\"learning_rate\":2e-4,\
                 \"tokens\":100,\"supervised_tokens\":10,\"seconds\":0.5,\"elapsed\":{step}.0}}"
            );
            if step % 10 == 0 {
                let _ = writeln!(
                    lines,
                    "{{\"step\":{step},\"epoch\":0.1,\"eval_loss\":{loss},\"perplexity\":3.0,\"tokens\":9,\
                     \"best\":true,\"seconds\":1.0}}"
                );
            }
        }
        // The end of a run that was killed.
        lines.push_str("{\"step\":41,\"ep");
        fs::write(directory.join("metrics.jsonl"), lines).unwrap();
        let recipe = format!(
            "model = \"org/a-model\"\n[lora]\nrank = {rank}\n[data]\ntrain = \"/<t>.jsonl\"\n"
        );
        fs::write(directory.join("recipe.toml"), recipe).unwrap();
        let note = serde_json::json!({
            "version": 1,
            "info": {
                "model": "org/<model>", "device": "Device<Flex(Cpu)>", "trained_params": 1000, "total_steps": 50,
                "steps_per_epoch": 10, "memory": { "base": 1u64 << 30, "optimizer": 1 << 20 },
            },
            "warmup_steps": 2,
            "train_data": { "rows": 1234, "kept": 1200, "tokens": 3290, "longest": 64, "duplicates": 1 },
            "eval_data": null,
            "process": {
                "began": 1_772_323_199, "program": "backdraft 0.1.0", "command": ["backdraft", "train", "recipe.toml"],
            },
        });
        write_json(&directory.join("run.json"), &note).unwrap();
        let sample = Sample {
            prompt: "Say <b>.".to_owned(),
            expected: "b".to_owned(),
            before: "a & c".to_owned(),
            after: "b".to_owned(),
        };
        write_json(&directory.join("samples.json"), &[sample]).unwrap();
        RunFiles::read(&directory).unwrap()
    }

    #[test]
    fn one_run_is_told_whole_and_needs_nothing_from_elsewhere() {
        let root = tempfile::tempdir().unwrap();
        let run = run(root.path(), "a", 16);
        write(&run.directory).unwrap();
        let html = fs::read_to_string(run.directory.join(FILE)).unwrap();
        for part in [
            "org/&lt;model&gt;",
            "40 of 50 (not finished)",
            "1.0250 (perplexity 2.79) after step 40",
            "1,200 of 1,234 rows, 3,290 tokens",
            "longest row 64 tokens",
            "1 duplicate row",
            "train, each step",
            "train, smoothed",
            "2026-02-28 23:59 UTC",
            "backdraft 0.1.0",
            "backdraft train recipe.toml",
            "<td>cpu</td>",
            "base 1.00 GiB",
            "Say &lt;b&gt;.",
            "a &amp; c",
            "rank = 16",
            "Loss, nats",
            "Gradient norm",
        ] {
            assert!(html.contains(part), "{part} is not in the page");
        }
        assert_eq!(html.matches("<svg viewBox").count(), 4);
        for foreign in ["http", "src=", "@import", "<script"] {
            assert!(!html.contains(foreign), "{foreign}");
        }
        // Every element that is opened is closed.
        for element in ["table", "figure", "svg", "pre", "div", "p", "h2", "tr"] {
            let opened = html.matches(&format!("<{element}>")).count()
                + html.matches(&format!("<{element} ")).count();
            let closed = html.matches(&format!("</{element}>")).count();
            assert_eq!(opened, closed, "{element}");
        }
    }

    #[test]
    fn further_sets_are_told_by_name() {
        let root = tempfile::tempdir().unwrap();
        let directory = run(root.path(), "a", 16).directory;
        let mut lines = String::new();
        for (step, loss) in [(10, 2.25), (20, 2.5)] {
            let _ = writeln!(
                lines,
                "{{\"event\":\"eval\",\"schema_version\":1,\"step\":{step},\"epoch\":0.1,\"eval_loss\":1.0,\"tokens\":9,\
                 \"best\":true,\"seconds\":1.0,\"sets\":[{{\"name\":\"general\",\"eval_loss\":{loss},\
                 \"start_loss\":2.0,\"tokens\":7}}]}}"
            );
        }
        fs::write(directory.join("metrics.jsonl"), lines).unwrap();
        let html = page(&[RunFiles::read(&directory).unwrap()]);
        for part in [
            "Loss of further held-out sets, nats",
            "<tr><th>general</th><td>2.0000</td><td>2.2500</td><td>2.5000 after step 20</td><td>+0.5000</td></tr>",
        ] {
            assert!(html.contains(part), "{part} is not in the page");
        }
        let one = page(&[run(root.path(), "b", 16)]);
        assert!(!one.contains("Further held-out sets"));
    }

    #[test]
    fn several_runs_stand_side_by_side() {
        let root = tempfile::tempdir().unwrap();
        let runs = [run(root.path(), "a", 16), run(root.path(), "b", 32)];
        let html = page(&runs);
        assert!(html.contains("Differences between the recipes"));
        assert!(html.contains("<tr><th>lora.rank</th><td>16</td><td>32</td></tr>"));
        assert!(!html.contains("<th>output_dir</th>"));
        // Each step and smoothed, and three rates.
        assert_eq!(html.matches("<polyline").count(), 2 * 5);
        let same = page(&[run(root.path(), "a", 16), run(root.path(), "c", 16)]);
        assert!(same.contains("None but output_dir."));
        assert!(RunFiles::read(&root.path().join("nowhere")).is_err());
    }

    #[test]
    fn days_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01 00:00 UTC"),
            (951_782_400, "2000-02-29 00:00 UTC"),
            (1_798_761_599, "2026-12-31 23:59 UTC"),
            (4_107_542_400, "2100-03-01 00:00 UTC"),
        ] {
            assert_eq!(date(seconds), expected);
        }
    }

    #[test]
    fn a_finished_run_shows_what_it_concluded() {
        use crate::diagnosis::{Advice, Diagnosis, Verdict};
        use crate::report::RunSummary;

        let root = tempfile::tempdir().unwrap();
        let directory = run(root.path(), "a", 16).directory;
        let stored = Diagnosis {
            verdict: Verdict::Stuck,
            evidence: Vec::new(),
            advice: vec![Advice::RaiseLearningRate],
        };
        let summary = RunSummary {
            steps: 40,
            resumed_from: 5,
            seconds: 3725.0,
            diagnosis: Some(stored.clone()),
            no_effect: vec![backdraft_recipe::no_effect::NoEffect::Untrained { step: 40 }],
            ..RunSummary::default()
        };
        write_json(&directory.join("summary.json"), &summary).unwrap();
        let read = RunFiles::read(&directory).unwrap();
        assert_eq!(read.diagnosis, stored);
        let html = page(&[read]);
        for part in [
            "1:02:05 for 35 steps (resumed at step 5)",
            "stuck: ",
            "nothing was trained",
        ] {
            assert!(html.contains(part), "{part} is not in the page");
        }
        fs::write(directory.join("run.json"), "{\"version\": 1}").unwrap();
        let error = RunFiles::read(&directory).unwrap_err().to_string();
        assert!(error.contains("run.json"), "{error}");
    }
}
