//! How often an epoch visits the rows of each source, from what a recipe says.

use backdraft_data::{DataError, MOST_VISITS, SourceShare};
use backdraft_recipe::{Length, Recipe, SourceRecipe};

/// What an epoch visits of each source of `data.train`, which have so many rows.
///
/// With a temperature T, a source of n rows gets its part by n^(1/T) of as many rows as there are in all. A source with
/// `epochs` is visited so often by the run's epochs together, and one with a `share` s fills that part of an epoch, beside
/// what the others visit; both go through their rows in turn.
///
/// # Errors
/// A source that an epoch would visit no row of, or one row of too often.
pub fn shares(recipe: &Recipe, rows: &[usize]) -> Result<Vec<SourceShare>, DataError> {
    let sources = &recipe.data.train.0;
    let weights = match recipe.data.mixing_temperature {
        Some(temperature) => by_temperature(rows, temperature),
        None => own_weights(sources, rows, recipe.train.length),
    };
    let shares: Vec<SourceShare> = (sources.iter().zip(rows).zip(weights))
        .map(|((source, &rows), weight)| SourceShare {
            rows,
            weight,
            in_turn: source.epochs.is_some()
                || source.share.is_some()
                || recipe.data.mixing_temperature.is_some(),
        })
        .collect();
    for (source, share) in sources.iter().zip(&shares) {
        // Plain weights are the loader's to judge.
        if share.rows == 0 || !share.in_turn {
            continue;
        }
        let actual = match (share.visits(), share.weight) {
            (0, _) => "none of them".to_owned(),
            (_, weight) if weight > MOST_VISITS => format!("each of them {weight:.0} times"),
            _ => continue,
        };
        let option = match source {
            _ if recipe.data.mixing_temperature.is_some() => "data.mixing_temperature",
            SourceRecipe {
                epochs: Some(_), ..
            } => "data.train.epochs",
            _ => "data.train.share",
        };
        return Err(DataError::Option {
            option,
            expected: format!(
                "what visits the rows of {} (there are {}) at least once and at most {MOST_VISITS} times in an epoch",
                source.path, share.rows
            ),
            actual,
        });
    }
    Ok(shares)
}

/// Weights that visit as many rows as there are, each source by its rows to the power of 1 / temperature.
fn by_temperature(rows: &[usize], temperature: f64) -> Vec<f64> {
    let all = rows.iter().sum::<usize>() as f64;
    let part = |rows: usize| match rows {
        0 => 0.0,
        rows => (rows as f64).powf(1.0 / temperature),
    };
    let parts: f64 = rows.iter().map(|rows| part(*rows)).sum();
    let weight = |&rows: &usize| match rows {
        0 => 1.0,
        // What is exact stays so.
        _ if temperature == 1.0 => 1.0,
        rows => all * part(rows) / parts / rows as f64,
    };
    rows.iter().map(weight).collect()
}

fn own_weights(sources: &[SourceRecipe], rows: &[usize], length: Length) -> Vec<f64> {
    let epochs = match length {
        Length::Epochs(epochs) => epochs,
        // Beside these no source has epochs.
        Length::MaxSteps(_) => 1.0,
    };
    let of_one = |source: &SourceRecipe| source.epochs.map_or(source.weight, |it| it / epochs);
    let pairs = || sources.iter().zip(rows);
    let others = pairs().filter(|(source, _)| source.share.is_none());
    let others: usize = others
        .map(|(source, &rows)| SourceShare::from((rows, of_one(source))).visits())
        .sum();
    let shared: f64 = sources.iter().filter_map(|source| source.share).sum();
    let epoch = others as f64 / (1.0 - shared);
    let weight = |(source, &rows): (&SourceRecipe, &usize)| match source.share {
        Some(_) if rows == 0 => 1.0,
        Some(share) => share * epoch / rows as f64,
        None => of_one(source),
    };
    pairs().map(weight).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn visits(data: &str, train: &str, rows: &[usize]) -> Result<Vec<usize>, String> {
        let text = format!("model = \"a/b\"\n[data]\n{data}\n[train]\n{train}\n");
        let recipe = Recipe::from_toml(&text, Path::new("/r"), &[]).unwrap();
        let shares = shares(&recipe, rows).map_err(|error| error.to_string())?;
        Ok(shares.iter().map(SourceShare::visits).collect())
    }

    #[test]
    fn a_temperature_evens_sources_out() {
        let of = |temperature: &str, rows: &[usize]| {
            let data =
                format!("train = [\"a.jsonl\", \"b.jsonl\"]\nmixing_temperature = {temperature}");
            visits(&data, "", rows)
        };
        assert_eq!(of("1", &[900, 100]).unwrap(), [900, 100]);
        // 30 to 10.
        assert_eq!(of("2", &[900, 100]).unwrap(), [750, 250]);
        assert_eq!(of("1e9", &[900, 100]).unwrap(), [500, 500]);
        let error = of("1e9", &[9_000_000, 1]).unwrap_err();
        assert!(
            error.contains("data.mixing_temperature") && error.contains("/r/b.jsonl"),
            "{error}"
        );
    }

    #[test]
    fn a_source_has_epochs_or_a_share_of_its_own() {
        let data = "train = [\"a.jsonl\", { path = \"b.jsonl\", epochs = 1 }]";
        assert_eq!(visits(data, "epochs = 3", &[50, 30]).unwrap(), [50, 10]);
        assert_eq!(visits(data, "epochs = 0.5", &[50, 30]).unwrap(), [50, 60]);
        let error = visits(data, "epochs = 90", &[50, 30]).unwrap_err();
        assert!(
            error.contains("data.train.epochs") && error.contains("none of them"),
            "{error}"
        );
        let data = "train = [\"a.jsonl\", { path = \"b.jsonl\", share = 0.1 }, { path = \"c.jsonl\", share = 0.3 }]";
        // 60 are 60 % of an epoch.
        assert_eq!(visits(data, "", &[60, 1000, 5]).unwrap(), [60, 10, 30]);
    }
}
