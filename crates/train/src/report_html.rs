//! `report.html`: a run, or several side by side, as one file that needs nothing else.

mod svg;

use std::fmt::Write;
use std::path::{Path, PathBuf};

use backdraft_formats::{Existing, FormatError, write_file};
use serde_json::Value;

use crate::diagnosis::Diagnosis;
use crate::recipe::{Difference, Recipe};
use crate::records::Report;
use crate::report::StepReport;
use crate::run_files::RunFiles;
use svg::{Curve, Mark, figure, number};

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
figure{margin:0}figcaption{font-weight:600}svg{width:100%;height:auto}svg text{font-size:11px;fill:var(--ink)}\
.grid{stroke:var(--faint)}.line{fill:none;stroke-width:1.6}.ring{fill:none;stroke-width:2}.dot{stroke:none}\
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
        [run] => format!("{} → {}", run.text("/info/model"), run.name()),
        runs => format!("{} runs", runs.len()),
    };
    let title = escape(&title);
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <title>Backdraft: {title}</title>\n<style>{STYLE}</style></head>\n<body>\n<h1>{title}</h1>\n"
    );
    html.push_str(&table("Results", runs, results));
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
    html.push_str("</div>\n");
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
    let summed = |key: &str| run.summed_up(key).and_then(Value::as_f64);
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "–".to_owned());
    let done = steps(run).last().map_or(0, |step| step.step);
    let best = evals(run).min_by(|a, b| a.1.total_cmp(&b.1));
    let elapsed = steps(run).last().map(|step| step.elapsed);
    let end = match run.summed_up("stopped_early") {
        None => " (goes on, or was killed)",
        Some(Value::Bool(true)) => " (stopped early)",
        Some(_) if run.summed_up("interrupted") == Some(&Value::Bool(true)) => " (interrupted)",
        Some(_) => "",
    };
    vec![
        ("Model", run.text("/info/model").to_owned()),
        ("Device", run.text("/info/device").to_owned()),
        (
            "Trained weights",
            grouped(run.count("/info/trained_params")),
        ),
        (
            "Steps",
            format!("{done} of {}{end}", run.count("/info/total_steps")),
        ),
        ("Time", or_dash(elapsed.map(time))),
        (
            "Throughput",
            or_dash(summed("tokens_per_second").map(|rate| format!("{} tokens/s", number(rate)))),
        ),
        (
            "Final loss",
            or_dash(steps(run).last().map(|step| format!("{:.4}", step.loss))),
        ),
        (
            "Best eval loss",
            or_dash(best.map(|(step, loss)| {
                format!("{loss:.4} (perplexity {:.2}) after step {step}", loss.exp())
            })),
        ),
        ("Diagnosis", explained(&run.diagnosis)),
        ("Peak memory", or_dash(summed("peak_memory").map(bytes))),
    ]
}

/// Verdict, evidence and what to change.
fn explained(diagnosis: &Diagnosis) -> String {
    let join = |items: Vec<String>| items.join("; ");
    let evidence = join(diagnosis.evidence.iter().map(ToString::to_string).collect());
    let advice = join(diagnosis.advice.iter().map(ToString::to_string).collect());
    let mut text = diagnosis.verdict.to_string();
    if !evidence.is_empty() {
        let _ = write!(text, " ({evidence})");
    }
    if !advice.is_empty() {
        let _ = write!(text, ". Change: {advice}");
    }
    text
}

fn data(run: &RunFiles) -> Vec<(&'static str, String)> {
    let of = |part: &str, key: &str| run.count(&format!("/{part}/{key}"));
    let line = |part: &str| {
        if run.noted(&format!("/{part}")).is_none() {
            return "–".to_owned();
        }
        format!(
            "{} of {} rows, {} tokens, {} of them in the loss; longest row {} tokens; {} cut, {} dropped, {} twice",
            grouped(of(part, "kept")),
            grouped(of(part, "rows")),
            grouped(of(part, "tokens")),
            grouped(of(part, "supervised_tokens")),
            grouped(of(part, "longest")),
            grouped(of(part, "truncated")),
            grouped(of(part, "dropped")),
            grouped(of(part, "duplicates")),
        )
    };
    vec![("Train", line("train_data")), ("Eval", line("eval_data"))]
}

fn memory(run: &RunFiles, runs: &[RunFiles]) -> String {
    let Some(Value::Object(parts)) = run.noted("/info/memory") else {
        return String::new();
    };
    let parts: Vec<(&String, f64)> = parts
        .iter()
        .filter_map(|(name, value)| Some((name, value.as_f64()?)))
        .filter(|(_, bytes)| *bytes > 0.0)
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
        let name = escape(&name.replace('_', " "));
        let _ = write!(
            html,
            "<span class=\"c{}\">■</span> {name} {} ",
            i % 6,
            bytes(*part)
        );
    }
    let _ = writeln!(html, "; {} planned in all</p>", bytes(total));
    html
}

fn samples(runs: &[RunFiles]) -> String {
    let mut html = String::new();
    for run in runs.iter().filter(|run| !run.samples.is_empty()) {
        let _ = writeln!(
            html,
            "<h2>Answers {}</h2>",
            escape(&name_of(run, runs, "before and after"))
        );
        for sample in &run.samples {
            let _ = writeln!(
                html,
                "<div class=\"sample\"><pre>{}</pre><table><tr><th>in the data</th><td>{}</td></tr>\
                 <tr><th>before</th><td>{}</td></tr><tr><th>after</th><td>{}</td></tr></table></div>",
                escape(&sample.prompt),
                escape(&sample.expected),
                escape(&sample.before),
                escape(&sample.after)
            );
        }
    }
    html
}

fn recipes(runs: &[RunFiles]) -> String {
    let mut html = String::new();
    if let [first, rest @ ..] = runs
        && !rest.is_empty()
    {
        html.push_str("<h2>What sets the recipes apart</h2>\n<table>\n");
        for run in rest {
            for Difference { key, was, now } in differences(first, run) {
                let nothing = || "–".to_owned();
                let _ = writeln!(
                    html,
                    "<tr><th>{}</th><td>{}</td><td>{}: {}</td></tr>",
                    escape(&key),
                    escape(&was.unwrap_or_else(nothing)),
                    escape(&run.name()),
                    escape(&now.unwrap_or_else(nothing))
                );
            }
        }
        html.push_str("</table>\n");
    }
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

/// None where a recipe cannot be read, which another version may have written.
fn differences(a: &RunFiles, b: &RunFiles) -> Vec<Difference> {
    let read = |run: &RunFiles| Recipe::from_toml(&run.recipe, &run.directory, &[]).ok();
    match (read(a), read(b)) {
        (Some(a), Some(b)) => a.differences(&b).unwrap_or_default(),
        _ => Vec::new(),
    }
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

/// Digits in groups of three.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
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
            "model = \"org/a-model\"\n[lora]\nrank = {rank}\n[data]\ntrain = \"<t>.jsonl\"\n"
        );
        fs::write(directory.join("recipe.toml"), recipe).unwrap();
        let note = serde_json::json!({
            "info": { "model": "org/<model>", "total_steps": 50, "memory": { "base": 1u64 << 30, "optimizer": 1 << 20 } },
            "train_data": { "rows": 1234, "kept": 1200 },
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
            "40 of 50 (goes on, or was killed)",
            "1.0250 (perplexity 2.79) after step 40",
            "1 200 of 1 234 rows",
            "base 1.00 GiB",
            "Say &lt;b&gt;.",
            "a &amp; c",
            "rank = 16",
            "Loss, nats",
            "Gradient norm",
        ] {
            assert!(html.contains(part), "{part} is not in the page");
        }
        assert_eq!(html.matches("<svg").count(), 4);
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
    fn several_runs_stand_side_by_side() {
        let root = tempfile::tempdir().unwrap();
        let runs = [run(root.path(), "a", 16), run(root.path(), "b", 32)];
        let html = page(&runs);
        assert!(html.contains("What sets the recipes apart"));
        assert!(html.contains("<tr><th>lora.rank</th><td>16</td>"));
        assert_eq!(html.matches("<polyline").count(), 8);
        assert!(RunFiles::read(&root.path().join("nowhere")).is_err());
    }
}
