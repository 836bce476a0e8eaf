//! What all processes must have alike before they train.

use std::collections::{BTreeMap, BTreeSet};

/// Names of things with a short text each: a version, a number, a hash in hexadecimals.
///
/// What a run needs alike: version of the program, recipe as resolved, model, rows, gradient blocks, engine, threads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fingerprints(BTreeMap<String, String>);

impl Fingerprints {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// With `what` being `value`; tabs and line ends count as spaces.
    #[must_use]
    pub fn with(mut self, what: &str, value: &str) -> Self {
        let line = |text: &str| text.replace(['\t', '\n', '\r'], " ");
        self.0.insert(line(what), line(value));
        self
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let lines = self
            .0
            .iter()
            .map(|(what, value)| format!("{what}\t{value}\n"));
        lines.collect::<String>().into_bytes()
    }

    /// Whatever the bytes are: a line without a tab is a name without a value.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes);
        let pairs = text
            .lines()
            .map(|line| line.split_once('\t').unwrap_or((line, "")));
        Self(
            pairs
                .map(|(what, value)| (what.to_owned(), value.to_owned()))
                .collect(),
        )
    }

    /// For each thing that is not alike, its name and which ranks have what: `data: ranks 0, 1 and 3 have 5f2c…, rank 2 has
    /// 91ab…`. The same in every process.
    pub(crate) fn differences(all: &[Self]) -> Vec<String> {
        let names: BTreeSet<&String> = all.iter().flat_map(|prints| prints.0.keys()).collect();
        let mut differences = Vec::new();
        for what in names {
            let mut groups: BTreeMap<Option<&String>, Vec<usize>> = BTreeMap::new();
            for (rank, prints) in all.iter().enumerate() {
                groups.entry(prints.0.get(what)).or_default().push(rank);
            }
            if groups.len() > 1 {
                let mut groups: Vec<_> = groups.into_iter().collect();
                groups.sort_by_key(|(_, ranks)| ranks[0]);
                let said = groups.iter().map(|(value, ranks)| {
                    let (who, have) = match ranks[..] {
                        [only] => (format!("rank {only}"), "has"),
                        _ => (format!("ranks {}", listed(ranks)), "have"),
                    };
                    let value = value.map_or("none", |value| shown(value));
                    format!("{who} {have} {value}")
                });
                differences.push(format!("{what}: {}", said.collect::<Vec<_>>().join(", ")));
            }
        }
        differences
    }
}

/// Enough of a value to tell it from another.
fn shown(value: &str) -> &str {
    let end = value
        .char_indices()
        .nth(24)
        .map_or(value.len(), |(at, _)| at);
    &value[..end]
}

fn listed(ranks: &[usize]) -> String {
    let few: Vec<String> = ranks.iter().take(8).map(usize::to_string).collect();
    match ranks.len() - few.len() {
        0 => match few.split_last() {
            Some((last, rest)) if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
            _ => few.join(", "),
        },
        more => format!("{} and {more} more", few.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::Fingerprints;

    fn prints(data: &str, version: &str) -> Fingerprints {
        Fingerprints::new()
            .with("data", data)
            .with("version", version)
    }

    #[test]
    fn differences_name_things_and_ranks() {
        let same = prints("5f2c", "0.1.0");
        assert!(Fingerprints::differences(&[same.clone(), same.clone()]).is_empty());
        let other = prints("91ab", "0.1.0");
        let bare = Fingerprints::new().with("version", "0.1.0");
        let all = [same.clone(), same.clone(), other, bare, same];
        assert_eq!(
            Fingerprints::differences(&all),
            ["data: ranks 0, 1 and 4 have 5f2c, rank 2 has 91ab, rank 3 has none"]
        );
    }

    #[test]
    fn bytes_there_and_back() {
        let mut prints = prints("a\tb", "").with("two\nlines", "x");
        assert_eq!(Fingerprints::from_bytes(&prints.to_bytes()), prints);
        prints = Fingerprints::from_bytes(b"\xff\n\t\nname");
        assert_eq!(prints.0.len(), 3);
    }
}
