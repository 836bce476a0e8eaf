//! What `deny.toml` asks of dependencies, as far as it can be told without the network: licences, banned crates,
//! several versions of one crate, sources. The file is cargo-deny's; advisories need its database and are for the forge.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use super::cargo;
use super::licence::satisfied;
use super::stage::Outcome;

/// The platform whose packages are looked at, as in `[graph]` of `deny.toml`.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// What `deny.toml` says.
struct Rules {
    licences: BTreeSet<String>,
    /// Licences of crates whose manifests name none, read by a person.
    read: BTreeMap<String, String>,
    banned: BTreeSet<String>,
    /// Crates that are there in more than one version, each known.
    twice: BTreeSet<String>,
    registries: BTreeSet<String>,
}

/// A crate of the lock file.
struct Package {
    name: String,
    version: String,
    licence: Option<String>,
    /// `None` for what lies in the workspace.
    source: Option<String>,
}

pub(crate) fn check() -> anyhow::Result<Outcome> {
    let rules = Rules::read(&fs::read_to_string("deny.toml").context("deny.toml")?)?;
    let packages = packages()?;
    let problems = rules.problems(&packages)?;
    for problem in &problems {
        println!("   {problem}");
    }
    ensure!(
        problems.is_empty(),
        "{} problems with dependencies",
        problems.len()
    );
    println!("   {} packages", packages.len());
    Ok(Outcome::Passed)
}

/// All packages of the workspace and below, with every feature.
fn packages() -> anyhow::Result<Vec<Package>> {
    let args = "metadata --format-version 1 --locked --offline --all-features --filter-platform";
    let mut command = cargo();
    let output = command
        .args(args.split(' '))
        .arg(TARGET)
        .output()
        .context("cargo metadata")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("cargo metadata failed; `cargo fetch --locked` brings what it lacks\n{said}");
    }
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"]
        .as_array()
        .context("cargo metadata lists no packages")?;
    let text = |package: &Value, key: &str| package[key].as_str().map(str::to_owned);
    packages
        .iter()
        .map(|package| {
            Ok(Package {
                name: text(package, "name").context("a package without a name")?,
                version: text(package, "version").context("a package without a version")?,
                licence: text(package, "license"),
                source: text(package, "source"),
            })
        })
        .collect()
}

impl Rules {
    fn read(text: &str) -> anyhow::Result<Self> {
        let file: toml::Table = toml::from_str(text).context("deny.toml")?;
        let list = |section: &str, key: &str| -> anyhow::Result<BTreeSet<String>> {
            let values = file.get(section).and_then(|section| section.get(key));
            let values = values
                .and_then(toml::Value::as_array)
                .with_context(|| format!("deny.toml lacks the list {key} in [{section}]"))?;
            let names = values.iter().map(|value| {
                let name = value
                    .get("crate")
                    .or_else(|| value.get("name"))
                    .unwrap_or(value);
                let name = name.as_str().map(str::to_owned);
                name.with_context(|| format!("{key} in [{section}]: {value} names nothing"))
            });
            names.collect()
        };
        let clarified = file
            .get("licenses")
            .and_then(|section| section.get("clarify"));
        let clarified = clarified
            .and_then(toml::Value::as_array)
            .into_iter()
            .flatten();
        let read = clarified.map(|entry| {
            let text = |key: &str| entry.get(key).and_then(toml::Value::as_str);
            let entry = text("crate").zip(text("expression"));
            let (name, licence) =
                entry.context("clarify in [licenses] needs crate and expression")?;
            Ok((name.to_owned(), licence.to_owned()))
        });
        Ok(Self {
            read: read.collect::<anyhow::Result<_>>()?,
            licences: list("licenses", "allow")?,
            banned: list("bans", "deny")?,
            twice: list("bans", "skip")?,
            registries: list("sources", "allow-registry")?,
        })
    }

    fn problems(&self, packages: &[Package]) -> anyhow::Result<Vec<String>> {
        let mut problems = Vec::new();
        let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for package in packages {
            let (name, version) = (&package.name, &package.version);
            versions.entry(name).or_default().insert(version);
            if self.banned.contains(name) {
                problems.push(format!("{name} {version} is banned"));
            }
            let Some(source) = &package.source else {
                continue;
            };
            let registry = source.strip_prefix("registry+").unwrap_or(source);
            if !self.registries.contains(registry) {
                problems.push(format!("{name} {version} comes from {source}"));
            }
            match package.licence.as_ref().or_else(|| self.read.get(name)) {
                None => problems.push(format!("{name} {version} names no licence")),
                Some(licence) => {
                    if !satisfied(licence, &self.licences)? {
                        problems.push(format!("{name} {version}: licence {licence}"));
                    }
                }
            }
        }
        for (name, versions) in &versions {
            if versions.len() > 1 && !self.twice.contains(*name) {
                let versions: Vec<&str> = versions.iter().copied().collect();
                problems.push(format!("{name} is there twice: {}", versions.join(", ")));
            }
        }
        for name in &self.twice {
            if versions
                .get(&**name)
                .is_none_or(|versions| versions.len() < 2)
            {
                problems.push(format!(
                    "{name} is no longer there twice: take it out of [bans] skip"
                ));
            }
        }
        Ok(problems)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    const RULES: &str = r#"
        [licenses]
        allow = ["MIT"]
        [[licenses.clarify]]
        crate = "f"
        expression = "MIT"
        [bans]
        deny = [{ crate = "openssl-sys", reason = "rustls" }]
        skip = ["rand"]
        [sources]
        allow-registry = ["https://registry"]
    "#;

    fn package(name: &str, version: &str, licence: Option<&str>, source: &str) -> Package {
        Package {
            name: name.to_owned(),
            version: version.to_owned(),
            licence: licence.map(str::to_owned),
            source: Some(source.to_owned()),
        }
    }

    #[test]
    fn each_rule_finds_its_problem() {
        let good = "registry+https://registry";
        let packages = [
            package("a", "1.0.0", Some("MIT OR GPL-3.0"), good),
            package("b", "1.0.0", Some("GPL-3.0"), good),
            package("c", "1.0.0", None, good),
            package("d", "1.0.0", Some("MIT"), "git+https://elsewhere"),
            package("e", "1.0.0", Some("MIT"), good),
            package("e", "2.0.0", Some("MIT"), good),
            package("f", "1.0.0", None, good),
            package("openssl-sys", "0.9.0", Some("MIT"), good),
        ];
        let problems = Rules::read(RULES).unwrap().problems(&packages).unwrap();
        assert_eq!(
            problems,
            [
                "b 1.0.0: licence GPL-3.0",
                "c 1.0.0 names no licence",
                "d 1.0.0 comes from git+https://elsewhere",
                "openssl-sys 0.9.0 is banned",
                "e is there twice: 1.0.0, 2.0.0",
                "rand is no longer there twice: take it out of [bans] skip",
            ]
        );
    }

    #[test]
    fn the_projects_own_rules_can_be_read() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../deny.toml");
        let rules = Rules::read(&fs::read_to_string(path).unwrap()).unwrap();
        assert!(rules.licences.contains("MIT") && rules.banned.contains("openssl-sys"));
    }

    #[test]
    fn a_list_that_is_missing_is_an_error() {
        assert!(Rules::read("[licenses]\nallow = []").is_err());
    }
}
