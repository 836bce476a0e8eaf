use backdraft_journal::diagnosis::{EvalPoint, Monitor, TrainPoint};
use backdraft_journal::report::AnswersReport;
use backdraft_plan::memory::Memory;
use insta::assert_snapshot;
use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::state::{Hands, View};
use super::*;
use crate::plain::{PlainLines, StepLine};

/// What a terminal of this size shows, without colour.
fn screen(state: &State, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| view::draw(frame, state)).unwrap();
    let text = terminal.backend().to_string();
    // Without the quotes that mark the ends of its lines.
    let lines = text.lines().map(|line| line.trim_matches('"').trim_end());
    lines.collect::<Vec<_>>().join("\n")
}

fn empty() -> State {
    let mut state = State::new("outputs".to_owned(), Hands::Own);
    state.model = "HuggingFaceTB/SmolLM2-135M-Instruct".to_owned();
    state.device = "cpu, 2 threads".to_owned();
    state.memory = Memory {
        base: 538 << 20,
        adapters: 37 << 20,
        optimizer: 37 << 20,
        activations: 900 << 20,
    };
    state.total_steps = 330;
    state.steps_per_epoch = 110;
    state.resident = Some(1200 << 20);
    state
}

/// A run after `steps` steps whose losses are what these functions say.
fn run(steps: usize, train: impl Fn(f64) -> f64, eval: impl Fn(f64) -> f64) -> State {
    let mut state = empty();
    let mut monitor = Monitor::new(330, 17);
    for step in 1..=steps {
        let at = step as f64 / 330.0;
        // Noise that is the same each time.
        let loss = train(at) + 0.05 * (step as f64 * 2.4).sin();
        let learning_rate = 2e-4 * (1.0 - at) * (step as f64 / 17.0).min(1.0);
        let report = StepReport {
            step,
            epoch: step as f64 / 110.0,
            loss,
            penalized_loss: None,
            grad_norm: 0.8 + 0.1 * (step as f64).cos(),
            learning_rate,
            tokens: 820,
            supervised_tokens: 200,
            seconds: 2.0,
            elapsed: 2.1 * step as f64,
            answers: None,
        };
        state.step(&report);
        let line = PlainLines::new(330, 10);
        if line.wants(step) {
            state.log(&line.step_to_wrap(&StepLine::of(&report, None)));
        }
        monitor.train(TrainPoint {
            step,
            loss,
            grad_norm: Some(report.grad_norm),
            learning_rate,
        });
        if step % 30 == 0 {
            let eval_loss = eval(at);
            let best = state.best.is_none_or(|(_, best)| eval_loss < best);
            state.eval(&EvalReport {
                step,
                epoch: report.epoch,
                eval_loss,
                perplexity: Some(eval_loss.exp()),
                tokens: 4000,
                best,
                seconds: 9.0,
                answers: None,
                sets: Vec::new(),
            });
            monitor.eval(EvalPoint {
                step,
                loss: eval_loss,
            });
            state.log(&format!("eval at step {step}: loss {eval_loss:.4}"));
            state.log(&format!(
                "saved checkpoint outputs/checkpoints/step-{step:06}"
            ));
        }
    }
    state.diagnosis = Some(monitor.conclude().clone());
    state
}

fn healthy(steps: usize) -> State {
    run(
        steps,
        |at| 0.9 + 1.1 * (-3.0 * at).exp(),
        |at| 1.0 + 1.1 * (-3.0 * at).exp(),
    )
}

/// The sizes that screens are looked at in: the least, the usual and a large one.
const SIZES: [(u16, u16); 3] = [(60, 16), (80, 24), (200, 50)];

/// The same state at each size.
fn screens(state: &State) -> String {
    let screens = SIZES.map(|(width, height)| {
        let mut state = state.clone();
        view::settle(&mut state, ratatui::layout::Size { width, height });
        format!("{width}×{height}\n{}\n", screen(&state, width, height))
    });
    screens.join("\n")
}

#[test]
fn before_the_first_step() {
    assert_snapshot!(screens(&empty()));
}

#[test]
fn a_healthy_run() {
    assert_snapshot!(screens(&healthy(140)));
}

#[test]
fn a_run_without_evaluation_has_no_empty_rows() {
    let mut state = healthy(140);
    (state.eval, state.best) = (Vec::new(), None);
    let text = screen(&state, 80, 24);
    assert!(
        !text.contains("eval") || text.contains("eval at step"),
        "{text}"
    );
    assert!(!text.contains(" -\n"), "{text}");
}

#[test]
fn numbers_keep_all_their_digits() {
    let mut state = healthy(140);
    state.best = Some((123_456, 0.782_7));
    let text = screen(&state, 80, 24);
    assert!(text.contains("best eval      0.7827\n"), "{text}");
}

/// What is not cut at any size: the ends of each line that has some.
#[test]
fn nothing_is_cut_at_the_least_size() {
    let mut state = healthy(140);
    state.output = "/home/someone/experiments/2026-11/first/outputs".to_owned();
    for (phase, hands) in [
        (Phase::Training, Hands::Own),
        (Phase::Evaluating(13, 200), Hands::Own),
        (Phase::Stopping, Hands::Own),
        (Phase::Paused, Hands::Own),
        (Phase::Training, Hands::Watching),
        (Phase::Over("stopped early"), Hands::Watching),
    ] {
        (state.phase, state.hands) = (phase, hands);
        let text = screen(&state, 60, 16);
        let lines: Vec<&str> = text.lines().collect();
        let ends = |line: &str, end: &str| {
            assert!(line.ends_with(end), "{end} is not at the end of\n{text}")
        };
        ends(lines[0], "]");
        assert!(lines[0].contains("outputs "), "{text}");
        assert!(
            lines[1].starts_with('█') && lines[1].contains("step 140/330"),
            "{text}"
        );
        let over = matches!(state.phase, Phase::Over(_));
        assert_eq!(lines[1].contains("left 0:06:20"), !over, "{text}");
        assert!(
            lines[2].contains("◆ best ") && lines[2].contains(" now "),
            "{text}"
        );
        let last = match hands {
            Hands::Own => "p pause  s save  q stop",
            Hands::Watching => "q quit viewer",
        };
        ends(lines[15], last);
    }
}

#[test]
fn an_over_fitting_run_has_its_best_evaluation_marked() {
    let state = run(
        300,
        |at| 0.3 + 1.7 * (-3.0 * at).exp(),
        |at| 1.0 + 2.0 * (at - 0.35).powi(2),
    );
    let text = screens(&state);
    assert_eq!(
        text.matches("over-fitting since step").count(),
        SIZES.len(),
        "{text}"
    );
    assert_snapshot!(text);
}

#[test]
fn a_loss_that_is_no_number() {
    let mut state = run(60, |at| if at > 0.17 { f64::NAN } else { 2.0 }, |_| 2.0);
    state.phase = Phase::Over("failed");
    let text = screens(&state);
    assert_eq!(
        text.matches("diverged at step 57").count(),
        SIZES.len(),
        "{text}"
    );
    assert_snapshot!(text);
}

#[test]
fn other_views() {
    let mut state = healthy(140);
    let mut views = String::new();
    for view in View::ALL.into_iter().skip(1) {
        state.view = view;
        views.push_str(&screens(&state));
        views.push('\n');
    }
    assert_snapshot!(views);
}

#[test]
fn a_run_that_compares_answers_has_a_view_of_them() {
    let mut state = healthy(140);
    let answers = |step: usize| {
        let at = step as f64 / 330.0;
        let rewards = [0.5 - at, -3.0 * at];
        let report = AnswersReport::new((&[0.6], &rewards, &rewards), &[true, false], None, None);
        Some(report)
    };
    for point in &mut state.points {
        point.answers = answers(point.step);
    }
    press(Key::Char('2'), &mut state, None);
    assert_eq!(state.view, View::Answers);
    let text = screen(&state, 80, 24);
    let parts = [
        "rewards  ── chosen  x rejected",
        "margin 1.3485",
        "accuracy 1.0000",
        "[2 answers]",
        " 5 log ",
    ];
    for part in parts {
        assert!(text.contains(part), "{part}: {text}");
    }
    press(Key::Left, &mut state, None);
    press(Key::Left, &mut state, None);
    assert_eq!(state.view, View::Log);
    // Others have none.
    let mut state = healthy(10);
    press(Key::Char('5'), &mut state, None);
    assert_eq!((state.view, state.views().len()), (View::Loss, 4));
}

#[test]
fn phases_are_named() {
    let mut state = healthy(60);
    let mut titles = Vec::new();
    for (phase, hands) in [
        (Phase::Evaluating(3, 20), Hands::Own),
        (Phase::Paused, Hands::Own),
        (Phase::Stopping, Hands::Own),
        (Phase::Training, Hands::Watching),
        (Phase::Over("finished"), Hands::Watching),
    ] {
        (state.phase, state.hands) = (phase, hands);
        let text = screen(&state, 80, 24);
        let lines: Vec<_> = text.lines().collect();
        titles.extend([lines[0].to_owned(), lines[23].to_owned()]);
    }
    assert_snapshot!(titles.join("\n"), @"
    backdraft  SmolLM2-135M-Instruct → outputs                     [evaluating 3/20]
    [1 loss] 2 rates  3 memory  4 log   p pause  s save now  q stop after step
    backdraft  SmolLM2-135M-Instruct → outputs                   [paused: p resumes]
    [1 loss] 2 rates  3 memory  4 log   p pause  s save now  q stop after step
    backdraft  SmolLM2-135M-Instruct → outputs            [stopping after this step]
    [1 loss] 2 rates  3 memory  4 log   p pause  s save now  q stop after step
    backdraft  SmolLM2-135M-Instruct → outputs                            [training]
    [1 loss] 2 rates  3 memory  4 log   q quit viewer (the run continues)
    backdraft  SmolLM2-135M-Instruct → outputs                            [finished]
    [1 loss] 2 rates  3 memory  4 log   q quit viewer
    ");
}

#[test]
fn the_log_is_wrapped_and_scrolls_to_its_beginning() {
    let (mut state, size) = (
        healthy(140),
        ratatui::layout::Size {
            width: 80,
            height: 24,
        },
    );
    state.view = View::Log;
    let shown = |state: &mut State| {
        view::settle(state, size);
        screen(state, 80, 24)
    };
    let end = shown(&mut state);
    // All of a step's numbers, and the last line of the log.
    for part in ["lr ", "grad_norm ", "tok/s ", "sup_tok/s ", "step 140/330"] {
        assert!(end.contains(part), "{part} is not in\n{end}");
    }
    for _ in 0..100 {
        press(Key::Up, &mut state, None);
        view::settle(&mut state, size);
    }
    let beginning = shown(&mut state);
    assert!(beginning.contains("step  10/330"), "{beginning}");
    // One down is one line further, however often up was pressed.
    press(Key::Down, &mut state, None);
    assert!(!shown(&mut state).contains("step  10/330"));
    // What is read stays, while the log grows.
    let before = shown(&mut state);
    state.log("another line");
    let rows = |text: &str| {
        text.lines()
            .skip(3)
            .take(14)
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(rows(&shown(&mut state)), rows(&before));
    press(Key::PageDown, &mut state, None);
    assert_ne!(rows(&shown(&mut state)), rows(&before));
    press(Key::End, &mut state, None);
    assert!(shown(&mut state).contains("another line"));
    press(Key::Home, &mut state, None);
    assert!(shown(&mut state).contains("step  10/330"));
    // Other views do not scroll.
    press(Key::End, &mut state, None);
    state.view = View::Loss;
    press(Key::Up, &mut state, None);
    assert_eq!(state.scroll, 0);
}

#[test]
fn every_size_can_be_drawn() {
    let mut state = healthy(200);
    for (width, height) in [(1, 1), (20, 5), (59, 24), (60, 16), (80, 15), (500, 200)] {
        for view in View::ALL {
            state.view = view;
            screen(&state, width, height);
        }
    }
    assert_snapshot!(screen(&state, 50, 4), @"
    step 200/330, training
    This terminal is too small for the dashboard,
    which needs 60×16.
    ");
}

#[test]
fn keys_do_what_the_last_line_says() {
    let interrupt = Key::Interrupt;
    let (mut state, control) = (healthy(10), Control::default());
    let own = Some(&control);
    press(Key::Tab, &mut state, own);
    assert_eq!(state.view, View::Rates);
    press(Key::Left, &mut state, own);
    press(Key::Left, &mut state, own);
    assert_eq!(state.view, View::Log);
    press(Key::Char('1'), &mut state, own);
    assert_eq!(state.view, View::Loss);
    press(Key::Char('p'), &mut state, own);
    assert!(control.paused() && state.phase == Phase::Paused);
    press(Key::Char('p'), &mut state, own);
    assert!(!control.paused() && state.phase == Phase::Training);
    press(Key::Char('s'), &mut state, own);
    assert!(control.take_save() && !control.take_save());
    assert!(!control.should_stop());
    press(Key::Char('q'), &mut state, own);
    assert!(control.should_stop() && !control.signalled());
    assert_eq!(press(interrupt, &mut state, own), Action::None);
    assert!(control.signalled());
    assert_eq!(press(interrupt, &mut state, own), Action::Abort);

    // Who only watches can leave, and touch nothing.
    let other = press(Key::Char('s'), &mut state, None);
    assert_eq!(other, Action::None);
    assert!(!control.take_save());
    assert_eq!(press(Key::Char('q'), &mut state, None), Action::Leave);
    assert_eq!(press(interrupt, &mut state, None), Action::Leave);
}
