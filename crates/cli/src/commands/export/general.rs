//! What an exported file says of the model as a whole.

use backdraft_formats::gguf::{Entry, GgufMetadata};
use backdraft_formats::{CardHead, ModelSource};
use backdraft_model::ModelSpec;

use super::Named;
use super::title::Title;
use crate::error::CliError;
use crate::noted::NotedAdapter;
use crate::provenance;

const HUB: &str = "https://huggingface.co";
/// The most bases and data sets that are taken over from a file.
const MOST: u32 = 64;

/// Where the weights come from, as far as it is known here.
pub(super) struct Origin {
    /// What the card of the base says.
    card: CardHead,
    /// Hub ids of the data that the adapter was trained on.
    datasets: Vec<String>,
}

impl Origin {
    /// Looks into the base's directory, and at the run that an adapter lies in.
    pub(super) fn of(
        source: &ModelSource,
        adapter: Option<&NotedAdapter>,
    ) -> Result<Self, CliError> {
        let run = match adapter {
            Some(adapter) => provenance::run_of(&adapter.path)?,
            None => None,
        };
        Ok(Self {
            card: provenance::card_in(source),
            datasets: run.as_ref().map_or_else(Vec::new, provenance::datasets),
        })
    }
}

/// Name, size, licence, base and data.
pub(super) fn of_model(
    model: &Named,
    spec: &ModelSpec,
    (source, origin): (&ModelSource, &Origin),
    tuned: bool,
) -> Vec<Entry> {
    let weights: usize = spec.tensors().map(|tensor| tensor.num_values()).sum();
    let mut entries = vec![
        Entry::new("general.name", model.name.as_str()),
        Entry::new("general.size_label", size_label(weights as f64)),
    ];
    entries.extend(licence(&origin.card));
    match (tuned, source) {
        (true, _) => {
            entries.extend(bases([model.base.as_str()]));
            entries.extend(datasets(&origin.datasets));
        }
        // The model as it is: what it says itself.
        (false, ModelSource::Gguf(gguf)) => entries.extend(taken_over(gguf.file().metadata())),
        (false, _) => {
            let named = ["base_model", "base_models"].map(|key| origin.card.all(key));
            entries.extend(bases(named.concat().iter().map(String::as_str)));
            entries.extend(datasets(origin.card.all("datasets")));
        }
    }
    entries
}

/// Name, base and data.
pub(super) fn of_adapter(model: &Named, origin: &Origin) -> Vec<Entry> {
    let mut entries = vec![Entry::new("general.name", model.name.as_str())];
    entries.extend(bases([model.base.as_str()]));
    entries.extend(datasets(&origin.datasets));
    entries
}

fn licence(card: &CardHead) -> Vec<Entry> {
    let mut entries = Vec::new();
    let all = card.all("license");
    if !all.is_empty() {
        entries.push(Entry::new("general.license", all.join(",")));
    }
    for (key, field) in [
        ("general.license.name", "license_name"),
        ("general.license.link", "license_link"),
    ] {
        entries.extend(card.one(field).map(|text| Entry::new(key, text)));
    }
    entries
}

/// Bases; of a path, which is nobody else's business, the last part only.
fn bases<'a>(ids: impl IntoIterator<Item = &'a str>) -> Vec<Entry> {
    listed("base_model", ids, HUB)
}

fn datasets(ids: &[String]) -> Vec<Entry> {
    listed(
        "dataset",
        ids.iter().map(String::as_str),
        &format!("{HUB}/datasets"),
    )
}

fn listed<'a>(what: &str, ids: impl IntoIterator<Item = &'a str>, at: &str) -> Vec<Entry> {
    let mut entries = Vec::new();
    let mut count: u32 = 0;
    for id in ids {
        let is_hub_id = provenance::is_hub_id(id);
        // Its revision is no part of the name.
        let repository = id.split('@').next().unwrap_or(id);
        let title = match is_hub_id {
            true => Title::of(repository),
            false => Title::of(id.rsplit('/').next().unwrap_or_default()),
        };
        let key = |key: &str| format!("general.{what}.{count}.{key}");
        entries.push(Entry::new(key("name"), title.name));
        entries.extend(
            title
                .version
                .map(|version| Entry::new(key("version"), version)),
        );
        entries.extend(
            title
                .organisation
                .map(|name| Entry::new(key("organization"), name)),
        );
        if is_hub_id {
            entries.push(Entry::new(key("repo_url"), format!("{at}/{repository}")));
        }
        count += 1;
    }
    if count > 0 {
        entries.insert(0, Entry::new(format!("general.{what}.count"), count));
    }
    entries
}

/// Bases and data of a file that is written again in other types.
fn taken_over(metadata: GgufMetadata<'_>) -> Vec<Entry> {
    let mut entries = Vec::new();
    for what in ["base_model", "dataset"] {
        let mut taken = Vec::new();
        for number in 0..MOST {
            let of_one = [
                "name",
                "author",
                "version",
                "organization",
                "url",
                "doi",
                "repo_url",
            ];
            let keys = of_one.map(|key| format!("general.{what}.{number}.{key}"));
            let before = taken.len();
            for key in keys {
                if let Ok(Some(text)) = metadata.str(&key) {
                    let entry = Entry::new(key.as_str(), text);
                    taken.push(entry);
                }
            }
            if taken.len() == before {
                if number > 0 {
                    entries.push(Entry::new(format!("general.{what}.count"), number));
                }
                break;
            }
        }
        entries.extend(taken);
    }
    entries
}

/// `135M`, `1.2B`: two digits at least, as llama.cpp's tools write it.
fn size_label(weights: f64) -> String {
    let (scaled, unit) = match weights {
        w if w >= 1e12 => (w / 1e12, "T"),
        w if w >= 1e9 => (w / 1e9, "B"),
        w if w >= 1e6 => (w / 1e6, "M"),
        w => (w / 1e3, "K"),
    };
    match scaled.round() < 10.0 {
        true => format!("{scaled:.1}{unit}"),
        false => format!("{scaled:.0}{unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_as_llama_cpp_writes_them() {
        let labels = [134_515_008.0, 1_235_814_400.0, 8_030_261_248.0, 70.6e9, 9e3];
        let labels = labels.map(size_label);
        assert_eq!(labels, ["135M", "1.2B", "8.0B", "71B", "9.0K"]);
    }

    fn keys(entries: &[Entry]) -> Vec<String> {
        entries.iter().map(|entry| entry.key.clone()).collect()
    }

    #[test]
    fn only_names_of_the_hub_become_links() {
        let of = |base: &str| bases([base]);
        let whole = ["count", "0.name", "0.organization", "0.repo_url"];
        let whole = whole.map(|key| format!("general.base_model.{key}"));
        assert_eq!(keys(&of("org/name")), whole);
        assert_eq!(keys(&of("/models/tuned/model")), whole[..2]);
        assert_eq!(keys(&of("../model")), whole[..2]);
        assert_eq!(
            of("/models/tuned/my-model")[1],
            Entry::new("general.base_model.0.name", "My Model")
        );
    }

    #[test]
    fn data_sets_and_licences_are_said() {
        let card =
            CardHead::of("---\nlicense: other\nlicense_name: mine\nlicense_link: https://x\n---\n");
        let expected = [
            Entry::new("general.license", "other"),
            Entry::new("general.license.name", "mine"),
            Entry::new("general.license.link", "https://x"),
        ];
        assert_eq!(licence(&card), expected);
        let both = CardHead::of("---\nlicense: [mit, apache-2.0]\n---\n");
        assert_eq!(
            licence(&both),
            [Entry::new("general.license", "mit,apache-2.0")]
        );
        let ids = ["org/rows-v2".to_owned(), "org/more".to_owned()];
        let entries = datasets(&ids);
        assert_eq!(entries[0], Entry::new("general.dataset.count", 2));
        assert_eq!(entries[2], Entry::new("general.dataset.0.version", "v2"));
        let link = "https://huggingface.co/datasets/org/more";
        assert_eq!(
            entries.last(),
            Some(&Entry::new("general.dataset.1.repo_url", link))
        );
        assert!(datasets(&[]).is_empty());
    }
}
