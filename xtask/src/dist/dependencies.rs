//! Which crates are in a program: what is linked into it, not what builds it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::Value;

use super::Release;
use super::target::Target;

/// A crate that is linked in.
#[derive(Debug)]
pub(super) struct Package {
    pub(super) name: String,
    pub(super) version: String,
    /// SPDX.
    pub(super) licence: String,
    pub(super) repository: Option<String>,
    /// `None` for our own.
    pub(super) source: Option<String>,
    /// Its folder.
    pub(super) folder: PathBuf,
    /// Places in the list of what it uses.
    pub(super) uses: Vec<usize>,
}

impl Package {
    /// Its package URL.
    pub(super) fn purl(&self) -> String {
        // A plus of a version's build number is a space there.
        let version = self.version.replace('+', "%2B");
        format!("pkg:cargo/{}@{version}", self.name)
    }
}

/// The crates of the release's program, by name and version.
///
/// # Errors
/// cargo fails, or tells what this cannot read.
pub(super) fn of(release: &Release, target: Target) -> anyhow::Result<Vec<Package>> {
    let features: Vec<&str> = target
        .backend()
        .filter(|_| !release.cpu)
        .into_iter()
        .flat_map(|backend| ["--features", backend])
        .collect();
    let manifest = release.root.join("crates/cli/Cargo.toml");
    // Features and edges as in the build; but it tells no folders.
    let tree = cargo(
        &manifest,
        "tree --locked --edges normal,no-proc-macro --prefix none --format {p} --target",
        target,
        &features,
    )?;
    let linked: BTreeSet<(&str, &str)> = tree.lines().filter_map(name_and_version).collect();
    let metadata = cargo(
        &manifest,
        "metadata --locked --format-version 1 --filter-platform",
        target,
        &features,
    )?;
    let packages = read(&serde_json::from_str(&metadata)?, &linked)?;
    ensure!(
        packages.len() == linked.len(),
        "cargo's tree has {} crates, its metadata {} of them",
        linked.len(),
        packages.len()
    );
    Ok(packages)
}

fn cargo(
    manifest: &Path,
    arguments: &str,
    target: Target,
    features: &[&str],
) -> anyhow::Result<String> {
    let mut command: Command = crate::ci::cargo();
    let output = command
        .args(arguments.split(' '))
        .arg(target.triple())
        .args(features)
        .arg("--manifest-path")
        .arg(manifest)
        .output()
        .context("cargo")?;
    ensure!(
        output.status.success(),
        "cargo {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// Of a line `name v1.2.3 (where from)`.
fn name_and_version(line: &str) -> Option<(&str, &str)> {
    let mut words = line.split(' ');
    Some((words.next()?, words.next()?.strip_prefix('v')?))
}

/// Those of cargo's metadata that are linked in.
fn read(metadata: &Value, linked: &BTreeSet<(&str, &str)>) -> anyhow::Result<Vec<Package>> {
    let list = |value: &Value, what: &'static str| value.as_array().cloned().context(what);
    let mut found = Vec::new();
    for package in list(&metadata["packages"], "metadata without packages")? {
        let text = |key: &str| package[key].as_str().map(str::to_owned);
        let need =
            |key: &str| text(key).with_context(|| format!("a package without {key}: {package}"));
        let (name, version) = (need("name")?, need("version")?);
        if !linked.contains(&(&*name, &*version)) {
            continue;
        }
        let manifest = PathBuf::from(need("manifest_path")?);
        let read = Package {
            // Where a manifest names a file only, `deny.toml` has the licence, read by a person.
            licence: text("license").unwrap_or_else(|| "LicenseRef-see-text".to_owned()),
            repository: text("repository"),
            source: text("source"),
            folder: manifest
                .parent()
                .context("a manifest without a folder")?
                .to_owned(),
            uses: Vec::new(),
            name,
            version,
        };
        found.push((need("id")?, read));
    }
    found.sort_by(|(_, a), (_, b)| (&a.name, &a.version).cmp(&(&b.name, &b.version)));
    let place = |id: &str| found.iter().position(|(known, _)| known == id);
    let mut edges = vec![Vec::new(); found.len()];
    for node in list(&metadata["resolve"]["nodes"], "metadata without a graph")? {
        let Some(from) = node["id"].as_str().and_then(place) else {
            continue;
        };
        for used in list(&node["dependencies"], "a crate without dependencies")? {
            edges[from].extend(used.as_str().and_then(place));
        }
        edges[from].sort_unstable();
    }
    let packages = found.into_iter().zip(edges);
    Ok(packages
        .map(|((_, package), uses)| Package { uses, ..package })
        .collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_linked_is_found_with_what_it_uses() {
        let package = |name: &str, version: &str| {
            json!({"name": name, "version": version, "id": format!("{name}@{version}"), "license": "MIT",
                "manifest_path": format!("/src/{name}/Cargo.toml"), "source": null, "repository": null})
        };
        let metadata = json!({
            "packages": [package("b", "1.0.0"), package("a", "2.0.0"), package("cc", "1.1.0"), package("b", "2.0.0")],
            "resolve": {"nodes": [
                {"id": "a@2.0.0", "dependencies": ["b@2.0.0", "cc@1.1.0", "b@1.0.0"]},
                {"id": "b@1.0.0", "dependencies": []},
                {"id": "b@2.0.0", "dependencies": []},
                {"id": "cc@1.1.0", "dependencies": []},
            ]},
        });
        let tree = "a v2.0.0 (/src/a)\nb v1.0.0\nb v2.0.0 (*)\n\n";
        let linked = tree.lines().filter_map(name_and_version).collect();
        let found = read(&metadata, &linked).unwrap();
        let told: Vec<_> = found.iter().map(|p| (p.purl(), p.uses.clone())).collect();
        let expected = [
            ("pkg:cargo/a@2.0.0", vec![1, 2]),
            ("pkg:cargo/b@1.0.0", vec![]),
            ("pkg:cargo/b@2.0.0", vec![]),
        ];
        assert_eq!(told, expected.map(|(purl, uses)| (purl.to_owned(), uses)));
    }
}
