use backdraft_train::diagnosis::{EvalPoint, Monitor, TrainPoint};
use insta::assert_snapshot;
use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::state::{Hands, View};
use super::*;
use backdraft_train::memory::Memory;

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
    state.device = "flex".to_owned();
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
            grad_norm: 0.8 + 0.1 * (step as f64).cos(),
            learning_rate,
            tokens: 820,
            supervised_tokens: 200,
            seconds: 2.0,
            elapsed: 2.1 * step as f64,
        };
        state.step(&report);
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
                perplexity: eval_loss.exp(),
                tokens: 4000,
                best,
                seconds: 9.0,
            });
            monitor.eval(EvalPoint {
                step,
                loss: eval_loss,
            });
            state.log(&format!("eval after step {step}: loss {eval_loss:.4}"));
            state.log(&format!("saved outputs/checkpoints/step-{step:06}"));
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

#[test]
fn before_the_first_step() {
    assert_snapshot!(screen(&empty(), 80, 24));
}

#[test]
fn a_healthy_run() {
    assert_snapshot!(screen(&healthy(140), 80, 24));
}

#[test]
fn a_healthy_run_on_a_large_terminal() {
    assert_snapshot!(screen(&healthy(260), 200, 50));
}

#[test]
fn an_over_fitting_run_has_its_best_evaluation_marked() {
    let state = run(
        300,
        |at| 0.3 + 1.7 * (-3.0 * at).exp(),
        |at| 1.0 + 2.0 * (at - 0.35).powi(2),
    );
    let text = screen(&state, 80, 24);
    assert!(text.contains("over-fitting since step"), "{text}");
    assert_snapshot!(text);
}

#[test]
fn a_loss_that_is_no_number() {
    let mut state = run(60, |at| if at > 0.17 { f64::NAN } else { 2.0 }, |_| 2.0);
    state.phase = Phase::Over("failed");
    let text = screen(&state, 80, 24);
    assert!(text.contains("diverged at step 57"), "{text}");
    assert_snapshot!(text);
}

#[test]
fn other_views() {
    let mut state = healthy(140);
    let mut views = String::new();
    for view in View::ALL.into_iter().skip(1) {
        state.view = view;
        views.push_str(&screen(&state, 80, 24));
        views.push_str("\n\n");
    }
    assert_snapshot!(views);
}

#[test]
fn phases_are_named() {
    let mut state = healthy(60);
    let mut titles = Vec::new();
    for (phase, hands) in [
        (Phase::Evaluating(3, 20), Hands::Own),
        (Phase::Paused, Hands::Own),
        (Phase::Stopping, Hands::Own),
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
    backdraft  SmolLM2-135M-Instruct → outputs                   [paused: p goes on]
    [1 loss] 2 rates  3 memory  4 log   p pause  s save now  q stop after step
    backdraft  SmolLM2-135M-Instruct → outputs            [stopping after this step]
    [1 loss] 2 rates  3 memory  4 log   p pause  s save now  q stop after step
    backdraft  SmolLM2-135M-Instruct → outputs                            [finished]
    [1 loss] 2 rates  3 memory  4 log   q leave (the run goes on)
    ");
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
