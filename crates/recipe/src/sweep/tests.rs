use super::*;
use crate::recipe::Length;

const SMALLEST: &str = "model = \"a/b\"\n[data]\ntrain = \"t.jsonl\"\n";

fn read_with(rest: &str, overrides: &[&str]) -> Result<(Recipe, Sweep), String> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("recipe.toml");
    std::fs::write(&path, format!("{SMALLEST}{rest}")).unwrap();
    let overrides: Vec<String> = overrides.iter().map(|&text| text.to_owned()).collect();
    match Recipe::load_sweep(&path, &overrides) {
        Ok((recipe, Some(sweep))) => Ok((recipe, sweep)),
        Ok((_, None)) => Err("no sweep".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn read(rest: &str) -> Result<(Recipe, Sweep), String> {
    read_with(rest, &[])
}

fn settings(sweep: &Sweep) -> Vec<String> {
    let trials = sweep.trials.iter();
    trials
        .map(|trial| {
            let pairs = trial.settings.iter();
            let pairs: Vec<String> = pairs.map(|(key, value)| format!("{key}={value}")).collect();
            pairs.join(" ")
        })
        .collect()
}

#[test]
fn a_grid_tries_every_combination_in_the_order_of_the_file() {
    let (recipe, sweep) = read(
        "[sweep]\n\"train.learning_rate\" = [1e-4, 3e-4]\nlora.rank = { min = 8, max = 16, steps = 2 }\n\
         \"train.lr_scheduler\" = [\n  \"linear\", # a name\n  { kind = \"cosine_with_min_lr\", min_lr_rate = 0.1 },\n]\n",
    )
    .unwrap();
    assert_eq!(sweep.method, SweepMethod::Grid);
    assert_eq!(
        sweep.keys,
        ["train.learning_rate", "lora.rank", "train.lr_scheduler"]
    );
    assert_eq!(sweep.keys, recipe.swept);
    let tried = settings(&sweep);
    assert_eq!(tried.len(), 8);
    assert_eq!(
        tried[1],
        "train.learning_rate=1e-4 lora.rank=8 train.lr_scheduler={ kind = \"cosine_with_min_lr\", min_lr_rate = 0.1 }"
    );
    assert_eq!(
        tried[6],
        "train.learning_rate=3e-4 lora.rank=16 train.lr_scheduler=\"linear\""
    );
    // The recipe's own values are those of a run.
    assert_eq!((recipe.train.learning_rate, recipe.lora.rank), (2e-4, 16));
    assert!(!recipe.to_toml().unwrap().contains("sweep"));
}

#[test]
fn a_trial_is_the_recipe_that_set_gives() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("recipe.toml");
    let rest = "[train]\nepochs = 2\n[sweep]\nmethod = \"random\"\ntrials = 20\n\"train.max_steps\" = [10, 20]\n\
                \"train.learning_rate\" = { min = 1e-5, max = 1e-3, scale = \"log\" }\nseed = [1, 2]\n\
                \"train.lr_scheduler\" = [\"linear\", { kind = \"polynomial\", power = 2.0 }]\n";
    std::fs::write(&path, format!("{SMALLEST}{rest}")).unwrap();
    let overrides = vec!["lora.alpha=4".to_owned()];
    let (_, sweep) = Recipe::load_sweep(&path, &overrides).unwrap();
    let sweep = sweep.unwrap();
    assert_eq!(sweep.trials.len(), 20);
    for trial in &sweep.trials {
        let mut all = overrides.clone();
        all.extend(
            trial
                .settings
                .iter()
                .map(|(key, value)| format!("{key}={value}")),
        );
        let mut expected = Recipe::load(&path, &all).unwrap();
        assert!(!expected.swept.is_empty());
        expected.swept.clear();
        assert_eq!(trial.recipe, expected, "{:?}", trial.settings);
        assert_eq!(trial.recipe.lora.alpha, 4.0);
        assert!(matches!(trial.recipe.train.length, Length::MaxSteps(_)));
    }
}

#[test]
fn draws_differ_and_follow_from_the_seed() {
    let of = |rest: &str| {
        let text = format!(
            "[sweep]\nmethod = \"random\"\n\"lora.rank\" = [4, 8, 16]\n\"train.learning_rate\" = {{ min = 1e-5, max = 1e-2, scale = \"log\" }}\n{rest}"
        );
        settings(&read(&text).unwrap().1)
    };
    let six = of("trials = 6\n");
    let mut each = six.clone();
    each.sort();
    each.dedup();
    assert_eq!(each.len(), 6);
    // More trials go on where fewer stop.
    assert_eq!(six, of("trials = 9\n")[..6]);
    assert_eq!(six, of("trials = 6\nseed = 42\n"));
    assert_ne!(six, of("trials = 6\nseed = 43\n"));
    // As many as there are.
    let all = read("[sweep]\nmethod = \"random\"\ntrials = 3\n\"lora.rank\" = [4, 8, 16]\n");
    assert_eq!(all.unwrap().1.trials.len(), 3);
}

#[test]
fn halving_takes_a_grid_or_draws() {
    let halving = |rest: &str| {
        read(&format!("[sweep]\nmethod = \"halving\"\n{rest}"))
            .unwrap()
            .1
    };
    let grid = halving("\"lora.rank\" = [4, 8, 16]\nseed = [1, 2]\n");
    assert_eq!((grid.trials.len(), grid.reduction_factor), (6, 3));
    let drawn = halving(
        "trials = 4\nreduction_factor = 2\n\"train.learning_rate\" = { min = 1e-5, max = 1e-2 }\n",
    );
    assert_eq!((drawn.trials.len(), drawn.reduction_factor), (4, 2));
}

#[test]
fn overrides_reach_the_sweep_and_not_what_it_tries() {
    let text = "[sweep]\n\"lora.rank\" = [4, 8]\n";
    let more = ["sweep.train.learning_rate=[1e-4, 1e-3]", "lora.alpha=4"];
    let (_, sweep) = read_with(text, &more).unwrap();
    assert_eq!(sweep.trials.len(), 4);
    let found = read_with(text, &["lora.rank=16"]).unwrap_err();
    assert!(
        found.contains("line 5: `sweep.lora.rank` does not go with `--set lora.rank=…`"),
        "{found}"
    );
}

#[test]
fn every_problem_has_its_line_and_its_key() {
    for (text, parts) in [
        (
            "\"lora.rank\" = [8, -3]\n",
            &["line 5", "`lora.rank` takes a whole number"][..],
        ),
        (
            "\"lora.rank\" = 8\n",
            &[
                "line 5",
                "`sweep.lora.rank` takes a list of values",
                "not 8",
            ],
        ),
        ("\"lora.rank\" = []\n", &["line 5", "at least one value"]),
        (
            "\"optimizer.learning_rate\" = [1]\n",
            &["line 5", "did you mean `sweep.train.learning_rate`"],
        ),
        (
            "methd = \"random\"\n",
            &["line 5", "did you mean `sweep.method`"],
        ),
        (
            "method = \"gird\"\n\"lora.rank\" = [8]\n",
            &["line 5", "did you mean \"grid\""],
        ),
        (
            "\"lora.alpha\" = { min = 1 }\n",
            &["line 5", "`sweep.lora.alpha.max` is missing"],
        ),
        (
            "\"lora.alpha\" = { min = 2, max = 1, steps = 2 }\n",
            &["line 5", "min is below its max"],
        ),
        (
            "\"lora.alpha\" = { min = 0, max = 1, scale = \"log\" }\n",
            &["line 5", "above 0"],
        ),
        (
            "\"lora.alpha\" = { min = 1, max = 2, scale = \"lg\", steps = 1, stepz = 3 }\n",
            &[
                "line 5",
                "`sweep.lora.alpha.scale` takes \"linear\" or \"log\"",
                "`sweep.lora.alpha.steps`",
                "did you mean `sweep.lora.alpha.steps`",
            ],
        ),
        (
            "\"lora.alpha\" = { min = 1, max = 2 }\n",
            &["line 5", "`sweep.lora.alpha.steps` is missing"],
        ),
        (
            "method = \"random\"\n\"lora.rank\" = [8]\n",
            &["`sweep.trials` is missing"],
        ),
        (
            "method = \"random\"\ntrials = 3\n\"lora.rank\" = [8, 4]\n",
            &["`sweep.trials`", "3 of 2"],
        ),
        (
            "trials = 3\n\"lora.rank\" = [8, 4]\n",
            &[
                "line 5",
                "`sweep.trials` does not go with sweep.method = \"grid\"",
            ],
        ),
        (
            "reduction_factor = 1\nmethod = \"halving\"\n\"lora.rank\" = [8, 4]\n",
            &["line 5", "2 or more"],
        ),
        ("method = \"grid\"\n", &["is missing", "[1e-4, 3e-4, 1e-3]"]),
        (
            "output_dir = [\"a\", \"b\"]\n",
            &["line 5", "a directory of its own"],
        ),
        (
            "\"objective.beta\" = [0.1, 0.2]\n",
            &["line 5", "train.early_stopping_metric"],
        ),
        (
            "\"train.epochs\" = [1, 2]\n\"train.max_steps\" = [3]\n",
            &["line 6", "`sweep.train.epochs`"],
        ),
        (
            "\"lora.rank\" = { min = 1, max = 999, steps = 999 }\n\"lora.alpha\" = [1, 2]\n",
            &["at most 1000 trials, not 1998"],
        ),
    ] {
        let found = read(&format!("[sweep]\n{text}")).unwrap_err();
        for part in parts {
            assert!(
                found.contains(part),
                "{part} is not in\n{found}\nfor\n{text}"
            );
        }
    }
    // A value that is wrong in every trial is told once, beside what is wrong elsewhere.
    let found = read("[sweep]\n\"lora.rank\" = [0, 8]\nseed = [1, 2, 3]\n").unwrap_err();
    assert!(found.starts_with("one problem"), "{found}");
    let found = read_with("", &["sweep=3"]).unwrap_err();
    assert!(found.contains("`sweep` is a section"), "{found}");
}
