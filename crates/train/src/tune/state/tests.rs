use backdraft_journal::tuning::Score;

use super::*;

const RECIPE: &str = "model = \"a/b\"\n[data]\ntrain = \"t.jsonl\"\neval = \"e.jsonl\"\n";

fn state(directory: &Path, recipe: &str, sweep: &str) -> TuneState {
    let path = directory.join("recipe.toml");
    std::fs::write(&path, format!("{recipe}[sweep]\n{sweep}")).unwrap();
    let (recipe, sweep) = Recipe::load_sweep(&path, &[]).unwrap();
    TuneState::new(&recipe, &sweep.unwrap(), directory).unwrap()
}

/// Trains as it says, with a score that the trial's number decides, until nothing is left; gives the order.
fn play(
    state: &mut TuneState,
    halving: Option<&Halving>,
    score: impl Fn(usize, usize) -> Option<f64>,
) -> Vec<(usize, usize)> {
    let mut order = Vec::new();
    while let Some(Next { index, until }) = state.next(halving) {
        let until = until.min(27);
        let trial = &mut state.trials[index];
        order.push((trial.trial, until));
        match score(trial.trial, until) {
            Some(value) => {
                trial.steps = until;
                trial.scores.push(Score { step: until, value });
                trial.score = trial.scores.last().copied();
                trial.standing = match until {
                    27 => Standing::Finished,
                    _ => Standing::Begun,
                };
            }
            None => trial.standing = Standing::Failed,
        }
        // As a process that was killed here reads it again.
        let text = serde_json::to_string(state).unwrap();
        *state = serde_json::from_str(&text).unwrap();
    }
    order
}

#[test]
fn halving_trains_the_best_further_and_leaves_failed_ones_out() {
    let root = tempfile::tempdir().unwrap();
    let sweep = "method = \"halving\"\nseed = [1, 2, 3, 4, 5, 6, 7, 8, 9]\n";
    let mut it = state(root.path(), RECIPE, sweep);
    let halving = Halving::new(&[(27, 1); 9], 3);
    // The higher the number, the better; 9 fails at once; 4 is good in the beginning only, but its adapter of then is kept.
    let score = |trial: usize, until: usize| match (trial, until) {
        (9, _) => None,
        (4, 3) => Some(0.0),
        (4, _) => Some(100.0),
        _ => Some(10.0 - trial as f64),
    };
    let order = play(&mut it, Some(&halving), score);
    let first: Vec<(usize, usize)> = (1..=9).map(|trial| (trial, 3)).collect();
    assert_eq!(order[..9], first);
    assert_eq!(order[9..], [(4, 9), (8, 9), (7, 9), (4, 27)]);
    let report = it.report("tune.html".into(), false);
    let standing: Vec<(usize, Standing)> = (report.ranking.trials.iter())
        .map(|trial| (trial.trial, trial.standing))
        .collect();
    assert_eq!(standing[0], (4, Standing::Finished));
    assert_eq!(standing[1], (8, Standing::Dropped));
    assert_eq!(standing[8], (9, Standing::Failed));
    assert_eq!(it.next(Some(&halving)), None);
}

#[test]
fn a_grid_goes_through_its_trials_one_by_one() {
    let root = tempfile::tempdir().unwrap();
    let mut it = state(root.path(), RECIPE, "\"lora.rank\" = [4, 8, 16]\n");
    let order = play(&mut it, None, |trial, _| (trial != 2).then_some(1.0));
    assert_eq!(order, [(1, 27), (2, 27), (3, 27)]);
    assert_eq!(it.trials[0].output_dir, root.path().join("trials/001"));
    it.write(root.path()).unwrap();
    assert_eq!(TuneState::read(root.path()).unwrap(), Some(it));
}

#[test]
fn a_sweep_goes_on_with_more_values_and_not_with_another_recipe() {
    let root = tempfile::tempdir().unwrap();
    let mut was = state(root.path(), RECIPE, "\"lora.rank\" = [4, 8, 16]\n");
    was.trials[0].standing = Standing::Finished;
    was.trials[1].standing = Standing::Begun;
    let more = state(root.path(), RECIPE, "\"lora.rank\" = [32, 8]\n");
    let on = was.clone().going_on_as(more, root.path()).unwrap();
    let trials: Vec<(usize, String)> = on
        .trials
        .iter()
        .map(|t| (t.trial, t.settings.to_string()))
        .collect();
    assert_eq!(
        trials,
        [
            (1, "lora.rank = 4".to_owned()),
            (2, "lora.rank = 8".to_owned()),
            (3, "lora.rank = 32".to_owned()),
        ]
    );
    // What is swept may have another value of its own; what is not may not.
    let other = format!("{RECIPE}[lora]\nrank = 2\nalpha = 4\n");
    let other = state(root.path(), &other, "\"lora.rank\" = [4, 8, 16]\n");
    let error = was
        .clone()
        .going_on_as(other, root.path())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("lora.alpha: 32.0 → 4.0") && !error.contains("lora.rank"),
        "{error}"
    );
    let halving = state(
        root.path(),
        RECIPE,
        "method = \"halving\"\n\"lora.rank\" = [4, 8]\n",
    );
    let error = was
        .going_on_as(halving, root.path())
        .unwrap_err()
        .to_string();
    assert!(error.contains("sweep.method: grid → halving"), "{error}");
    assert!(error.contains("sweep: 3 trials → 2 trials"), "{error}");
}

#[test]
fn other_rows_are_another_sweep() {
    let root = tempfile::tempdir().unwrap();
    let mut it = state(root.path(), RECIPE, "\"lora.rank\" = [4]\n");
    let content = Content {
        model: "m".repeat(64),
        train: "t".repeat(64),
        eval: None,
        sets: BTreeMap::new(),
    };
    it.check_content(content.clone(), root.path()).unwrap();
    it.check_content(content.clone(), root.path()).unwrap();
    let other = Content {
        train: "u".repeat(64),
        ..content
    };
    let error = it
        .check_content(other, root.path())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("data.train: content tttttttttttt… → content uuuuuuuuuuuu…"),
        "{error}"
    );
}

#[test]
fn the_state_of_another_version_is_refused_by_its_number() {
    let root = tempfile::tempdir().unwrap();
    let it = state(root.path(), RECIPE, "seed = [1, 2]\n");
    it.write(root.path()).unwrap();
    assert_eq!(TuneState::read(root.path()).unwrap(), Some(it));
    let path = root.path().join(TuneState::FILE);
    let text = std::fs::read_to_string(&path).unwrap();
    let other = text.replace("\"version\": 1", "\"version\": 2");
    assert_ne!(text, other);
    std::fs::write(&path, other).unwrap();
    let refused = TuneState::read(root.path()).unwrap_err();
    let said = std::error::Error::source(&refused).unwrap().to_string();
    assert!(
        said.starts_with("expected version 1 of a sweep's state, found 2"),
        "{said}"
    );
}
