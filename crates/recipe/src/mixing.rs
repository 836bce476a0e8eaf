//! How often an epoch visits the rows of each source: what `data.train` and `data.mixing_temperature` say together.

use crate::problem::ProblemKind;
use crate::reader::Reader;
use crate::{DataRecipe, EvalRecipe, Length, SourceRecipe, Sources};

pub(crate) const TEMPERATURE: &str = "data.mixing_temperature";

/// The temperature, which chooses the weights of all sources.
pub(crate) fn temperature(reader: &mut Reader<'_>, train: &Sources) -> Option<f64> {
    let expected = "a number, 1 or more: 1 mixes sources by their rows, large ones evenly";
    let before = reader.problem_count();
    let temperature: f64 = reader.optional(TEMPERATURE)?;
    if reader.problem_count() == before && !(temperature >= 1.0 && temperature.is_finite()) {
        reader.reject(TEMPERATURE, expected);
    }
    if train.0.len() < 2 {
        let instead = "name the sources that are mixed one by one, or take it out";
        reader.conflict(TEMPERATURE, "`data.train` with one source", instead);
    }
    for source in &train.0 {
        if let Some((name, _)) = said(source).first() {
            let other = format!("`{name}` of {}", source.path);
            let instead =
                "the temperature chooses how often each row is visited; keep one of the two";
            reader.conflict(TEMPERATURE, other, instead);
        }
    }
    Some(temperature)
}

/// Refuses what contradicts itself.
pub(crate) fn check(reader: &mut Reader<'_>, data: &DataRecipe, length: Length) {
    const TRAIN: &str = "data.train";
    let mut refuse = |name: &str, at: &str, other: String, instead| {
        let kind = ProblemKind::Conflict {
            key: format!("{at}.{name}"),
            other,
            instead,
        };
        reader.report_once(reader.place(at), kind);
    };
    for source in &data.train.0 {
        if let [(name, _), (other, _), ..] = said(source)[..] {
            let other = format!("`{other}` of the same source");
            refuse(
                name,
                TRAIN,
                other,
                "each says how often its rows are visited; keep one",
            );
        }
        if source.epochs.is_some() && matches!(length, Length::MaxSteps(_)) {
            let instead = "epochs of a source are those of the whole run, which train.epochs measures; write weight, or train.epochs";
            refuse("epochs", TRAIN, "`train.max_steps`".to_owned(), instead);
        }
    }
    let shares: f64 = data.train.0.iter().filter_map(|source| source.share).sum();
    if shares > 0.0 && data.train.0.iter().all(|source| source.share.is_some()) {
        let instead =
            "leave it out of one source or more: the others' rows are what it is a share beside";
        refuse("share", TRAIN, "no source without one".to_owned(), instead);
    } else if shares >= 1.0 {
        let instead = "leave room for the sources without one: shares add up to less than 1";
        refuse(
            "share",
            TRAIN,
            format!("shares of {shares} in all"),
            instead,
        );
    }
    let eval = match &data.eval {
        Some(EvalRecipe::Sources(sources)) => Some(("data.eval", sources)),
        Some(EvalRecipe::Fraction(_)) | None => None,
    };
    let sets = data
        .eval_sets
        .values()
        .map(|sources| ("data.eval_sets", sources));
    for (at, sources) in eval.into_iter().chain(sets) {
        for source in &sources.0 {
            let told = said(source).into_iter().find(|(name, _)| *name != "weight");
            if let Some((name, _)) = told {
                let other = "rows held out".to_owned();
                refuse(
                    name,
                    at,
                    other,
                    "each of them is measured once; take it out",
                );
            }
        }
    }
}

/// What a source says of how often its rows are visited.
fn said(source: &SourceRecipe) -> Vec<(&'static str, f64)> {
    let weight = (source.weight != 1.0).then_some(source.weight);
    let all = [
        ("weight", weight),
        ("epochs", source.epochs),
        ("share", source.share),
    ];
    let all = all.into_iter();
    all.filter_map(|(name, value)| Some((name, value?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::Recipe;

    fn read(data: &str, train: &str) -> Result<Recipe, String> {
        let text = format!("model = \"a/b\"\n[data]\n{data}\n[train]\n{train}\n");
        let found = Recipe::from_toml(&text, Path::new("/r"), &[]);
        found.map_err(|error| error.to_string())
    }

    #[test]
    fn sources_say_how_often_their_rows_come_in_one_way() {
        for (data, train) in [
            (
                "train = [\"a.jsonl\", \"b.jsonl\"]\nmixing_temperature = 2",
                "",
            ),
            (
                "train = [{ path = \"a.jsonl\", epochs = 1 }, \"b.jsonl\"]",
                "epochs = 3",
            ),
            (
                "train = [{ path = \"a.jsonl\", share = 0.1 }, { path = \"b.jsonl\", weight = 2 }]",
                "max_steps = 5",
            ),
        ] {
            let recipe = read(data, train).unwrap();
            let stored = recipe.to_toml().unwrap();
            assert_eq!(
                Recipe::from_stored(&stored, Path::new("/r")).unwrap(),
                recipe,
                "{stored}"
            );
        }
        let refused = |data: &str, train: &str, parts: &[&str]| {
            let found = read(data, train).unwrap_err();
            for part in parts {
                assert!(found.contains(part), "{part}: {found}");
            }
        };
        let two = "train = [\"a.jsonl\", \"b.jsonl\"]\n";
        refused(
            &format!("{two}mixing_temperature = 0.5"),
            "",
            &["data.mixing_temperature", "1 or more"],
        );
        refused(
            "train = \"a.jsonl\"\nmixing_temperature = 2",
            "",
            &["data.mixing_temperature", "`data.train` with one source"],
        );
        refused(
            "train = [\"a.jsonl\", { path = \"b.jsonl\", epochs = 2 }]\nmixing_temperature = 2",
            "",
            &["data.mixing_temperature", "`epochs` of /r/b.jsonl"],
        );
        refused(
            "train = [\"a.jsonl\", { path = \"b.jsonl\", epochs = 2, weight = 3 }]",
            "",
            &["data.train.weight", "`epochs` of the same source"],
        );
        refused(
            "train = { path = \"b.jsonl\", epochs = 2 }",
            "max_steps = 9",
            &["data.train.epochs", "`train.max_steps`"],
        );
        refused(
            "train = { path = \"b.jsonl\", epochs = 0 }",
            "",
            &["data.train.epochs", "above 0"],
        );
        refused(
            "train = { path = \"b.jsonl\", share = 1.0 }",
            "",
            &["data.train.share", "below 1"],
        );
        refused(
            "train = { path = \"b.jsonl\", share = 0.5 }",
            "",
            &["data.train.share", "no source without one"],
        );
        refused(
            "train = [\"a\", { path = \"b\", share = 0.5 }, { path = \"c\", share = 0.6 }]",
            "",
            &["data.train.share", "shares of 1.1 in all"],
        );
        refused(
            "train = \"a.jsonl\"\neval = { path = \"b.jsonl\", epochs = 2 }",
            "",
            &["data.eval.epochs", "rows held out"],
        );
        refused(
            "train = \"a.jsonl\"\nsplit_overlap = 8",
            "",
            &["data.split_overlap", "`overlong = \"truncate\"`"],
        );
        refused(
            "train = \"a.txt\"\noverlong = \"split\"\nsplit_overlap = 2048",
            "",
            &["data.split_overlap", "below max_seq_length"],
        );
        assert!(
            read(
                "train = \"a.txt\"\noverlong = \"split\"\nsplit_overlap = 64",
                ""
            )
            .is_ok()
        );
    }
}
