//! The bill of materials, in CycloneDX 1.5 as JSON: <https://cyclonedx.org/docs/1.5/json/>.

use serde_json::{Value, json};

use super::dependencies::Package;
use super::target::Target;
use super::{Release, VERSION};

/// All crates with licences and who uses whom. It has no serial number and no time: a commit has one such file.
///
/// # Errors
/// None but serde's.
pub(super) fn json(
    packages: &[Package],
    release: &Release,
    target: Target,
) -> anyhow::Result<String> {
    let components: Vec<Value> = packages.iter().map(component).collect();
    let dependencies: Vec<Value> = packages
        .iter()
        .map(|package| {
            let uses: Vec<String> = package
                .uses
                .iter()
                .map(|&used| packages[used].purl())
                .collect();
            json!({"ref": package.purl(), "dependsOn": uses})
        })
        .collect();
    let bill = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": "backdraft",
                "name": "backdraft",
                "version": VERSION,
                "properties": [
                    {"name": "backdraft:commit", "value": release.commit},
                    {"name": "backdraft:target", "value": target.triple()},
                ],
            },
        },
        "components": components,
        "dependencies": dependencies,
    });
    Ok(serde_json::to_string_pretty(&bill)? + "\n")
}

fn component(package: &Package) -> Value {
    let mut component = json!({
        "type": "library",
        "bom-ref": package.purl(),
        "name": package.name,
        "version": package.version,
        "purl": package.purl(),
        // The old form has a slash for OR.
        "licenses": [{"expression": package.licence.replace('/', " OR ")}],
    });
    if let Some(repository) = &package.repository {
        component["externalReferences"] = json!([{"type": "vcs", "url": repository}]);
    }
    component
}
