//! `train.lr_scheduler`: a name, or a table with a kind and its options.

use crate::keys::{SCHEDULER, SCHEDULER_OPTIONS};
use crate::problem::ProblemKind;
use crate::reader::{Reader, name_problem};
use crate::schedule::ScheduleKind;

/// A name, or a table with a `kind` and the options of that kind.
pub(crate) fn scheduler(reader: &mut Reader<'_>, peak_lr: f64) -> ScheduleKind {
    let kind_key = option_key("kind");
    let key = if reader.has(&kind_key) {
        kind_key.as_str()
    } else {
        SCHEDULER
    };
    let before = reader.problem_count();
    let name: String = reader.value(key);
    if reader.problem_count() > before {
        reader.ignore(SCHEDULER_OPTIONS.map(option_key));
        return ScheduleKind::cosine();
    }
    let number = |reader: &mut Reader<'_>, option: &str, default: f64| {
        reader.optional(&option_key(option)).unwrap_or(default)
    };
    let kind = match name.as_str() {
        "constant" => ScheduleKind::Constant {},
        "constant_with_warmup" => ScheduleKind::ConstantWithWarmup {},
        "linear" => ScheduleKind::Linear {},
        "cosine" => ScheduleKind::Cosine {
            num_cycles: number(reader, "num_cycles", 0.5),
        },
        "cosine_with_restarts" => ScheduleKind::CosineWithRestarts {
            num_cycles: number(reader, "num_cycles", 1.0),
        },
        "cosine_with_min_lr" => ScheduleKind::CosineWithMinLr {
            min_lr_rate: min_lr_rate(reader, peak_lr),
            num_cycles: number(reader, "num_cycles", 0.5),
        },
        "polynomial" => ScheduleKind::Polynomial {
            power: number(reader, "power", 1.0),
            lr_end: number(reader, "lr_end", 1e-7),
        },
        "inverse_sqrt" => ScheduleKind::InverseSqrt {
            timescale: reader.optional(&option_key("timescale")),
        },
        "range_test" => ScheduleKind::RangeTest {
            lr_start: lr_start(reader),
        },
        _ => {
            let problem = name_problem(key.to_owned(), &ScheduleKind::NAMES, format!("\"{name}\""));
            reader.report(reader.place(key), problem);
            reader.ignore(SCHEDULER_OPTIONS.map(option_key));
            return ScheduleKind::cosine();
        }
    };
    check_options(reader, kind, peak_lr);
    kind
}

fn option_key(option: &str) -> String {
    format!("{SCHEDULER}.{option}")
}

fn min_lr_rate(reader: &mut Reader<'_>, peak_lr: f64) -> f64 {
    let (rate_key, lr_key) = (option_key("min_lr_rate"), option_key("min_lr"));
    let min_lr: Option<f64> = reader.optional(&lr_key);
    let rate: Option<f64> = reader.optional(&rate_key);
    match (rate, min_lr) {
        (Some(_), Some(_)) => {
            reader.conflict(&lr_key, "`min_lr_rate`", "keep the one you mean");
            0.0
        }
        (Some(rate), None) => rate,
        (None, Some(min_lr)) => min_lr / peak_lr,
        (None, None) => {
            let kind = ProblemKind::Missing {
                key: rate_key,
                meaning: "The lowest learning rate as a share of the peak.",
                example: "0.1",
            };
            reader.report(reader.place(&option_key("kind")), kind);
            0.0
        }
    }
}

fn lr_start(reader: &mut Reader<'_>) -> f64 {
    let key = option_key("lr_start");
    reader.optional(&key).unwrap_or_else(|| {
        let kind = ProblemKind::Missing {
            key,
            meaning: "The learning rate of the first step.",
            example: "1e-7",
        };
        reader.report(reader.place(&option_key("kind")), kind);
        0.0
    })
}

/// Options out of range, and options that belong to another kind.
fn check_options(reader: &mut Reader<'_>, kind: ScheduleKind, peak_lr: f64) {
    let mut check = |option: &str, valid: bool, expected: &'static str| {
        let key = option_key(option);
        if !valid && reader.has(&key) {
            reader.reject(&key, expected);
        }
    };
    match kind {
        ScheduleKind::Cosine { num_cycles } | ScheduleKind::CosineWithRestarts { num_cycles } => {
            check(
                "num_cycles",
                num_cycles > 0.0 && num_cycles.is_finite(),
                "a number above 0",
            );
        }
        ScheduleKind::CosineWithMinLr {
            min_lr_rate,
            num_cycles,
        } => {
            check(
                "num_cycles",
                num_cycles > 0.0 && num_cycles.is_finite(),
                "a number above 0",
            );
            let share = (0.0..=1.0).contains(&min_lr_rate);
            check("min_lr_rate", share, "a number from 0 to 1");
            check("min_lr", share, "a learning rate from 0 to the peak");
        }
        ScheduleKind::Polynomial { power, lr_end } => {
            check(
                "power",
                power > 0.0 && power.is_finite(),
                "a number above 0",
            );
            check(
                "lr_end",
                (0.0..peak_lr).contains(&lr_end),
                "a learning rate below the peak",
            );
        }
        ScheduleKind::RangeTest { lr_start } => {
            let below = lr_start > 0.0 && lr_start < peak_lr;
            check("lr_start", below, "a learning rate above 0, below the peak");
        }
        ScheduleKind::InverseSqrt { timescale } => {
            check(
                "timescale",
                timescale != Some(0),
                "a whole number, 1 or more",
            );
        }
        _ => {}
    }
    for key in SCHEDULER_OPTIONS.map(option_key) {
        if reader.has(&key) && !reader.has_read(&key) {
            reader.ignore([key.clone()]);
            let other = format!("kind = \"{}\"", kind.name());
            reader.conflict(
                &key,
                other,
                "take it out, or choose a kind that has this option",
            );
        }
    }
}
