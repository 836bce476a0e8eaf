//! The commit: the request after which a repository has all files, or none.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::client::{Client, JSON, LINES, Repeat};
use super::error::PushError;
use super::file::PushFile;
use super::remote::{api, branch, refusal};
use crate::hub::name::HubName;

/// Files of one question about how they are to be sent.
const GROUP: usize = 256;

/// How the hub wants a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// In the commit.
    Regular,
    /// In storage; the commit names its hash.
    Large,
    /// Not at all: the repository's `.gitignore` names it.
    Ignored,
}

/// Asks how each file is to be sent, in their order.
pub(super) fn modes(
    client: &Client<'_>,
    name: &HubName,
    files: &[PushFile],
) -> Result<Vec<Mode>, PushError> {
    let what = format!("how {} takes the files", name.repository());
    let path = api(name, &format!("/preupload/{}", branch(name)));
    let mut modes = Vec::new();
    for group in files.chunks(GROUP) {
        let mut listed = Vec::new();
        for file in group {
            let sample = STANDARD.encode(file.sample()?);
            listed.push(json!({"path": file.name, "size": file.bytes, "sample": sample}));
        }
        let body = json!({ "files": listed }).to_string();
        let answer = client.post(&what, &path, (JSON, body.as_bytes()), Repeat::Always)?;
        if !answer.is_success() {
            return Err(refusal(client, name, &what, &answer));
        }
        let value = answer.json(&what, &client.options.endpoint)?;
        let entries = value["files"].as_array().into_iter().flatten();
        let said: BTreeMap<&str, Mode> = entries
            .filter_map(|entry| Some((entry["path"].as_str()?, mode(entry)?)))
            .collect();
        for file in group {
            let mode = said.get(file.name.as_str()).copied();
            modes.push(mode.ok_or_else(|| PushError::Answer {
                what: what.clone(),
                place: client.options.endpoint.clone(),
                problem: format!("it does not say how to send {}", file.name),
            })?);
        }
    }
    Ok(modes)
}

fn mode(entry: &Value) -> Option<Mode> {
    if entry["shouldIgnore"] == true {
        return Some(Mode::Ignored);
    }
    match entry["uploadMode"].as_str()? {
        "regular" => Some(Mode::Regular),
        "lfs" => Some(Mode::Large),
        _ => None,
    }
}

/// A file of a commit: with its SHA-256 where storage has it.
pub(super) type Added<'a> = (&'a PushFile, Option<String>);

/// Commits; its id and address.
pub(super) fn commit(
    client: &Client<'_>,
    name: &HubName,
    (message, parent): (&str, Option<&str>),
    files: &[Added<'_>],
) -> Result<(Option<String>, Option<String>), PushError> {
    let what = format!("the commit to {name}");
    let path = api(name, &format!("/commit/{}", branch(name)));
    let body = lines(message, parent, files)?;
    // A commit that was made before its answer was lost would be made again.
    let answer = client.post(&what, &path, (LINES, &body), Repeat::IfNothingDone);
    let answer = answer.map_err(|error| match error {
        PushError::Network { place, source, .. } => PushError::Uncertain {
            name: name.to_string(),
            place,
            source,
        },
        other => other,
    })?;
    if answer.status == 412 {
        return Err(PushError::Moved {
            name: name.repository().to_owned(),
            branch: name.revision().to_owned(),
        });
    }
    if !answer.is_success() {
        return Err(refusal(client, name, &what, &answer));
    }
    let value = answer.json(&what, &client.options.endpoint)?;
    let text = |key: &str| value[key].as_str().map(str::to_owned);
    Ok((text("commitOid"), text("commitUrl")))
}

/// The commit as lines of JSON: its message, then each file.
fn lines(message: &str, parent: Option<&str>, files: &[Added<'_>]) -> Result<Vec<u8>, PushError> {
    let mut header = json!({"summary": message, "description": ""});
    if let Some(parent) = parent {
        header["parentCommit"] = parent.into();
    }
    let mut lines = vec![json!({"key": "header", "value": header}).to_string()];
    for (file, sha256) in files {
        let line = match sha256 {
            Some(sha256) => json!({"key": "lfsFile", "value": {
                "path": file.name, "algo": "sha256", "oid": sha256, "size": file.bytes,
            }}),
            None => json!({"key": "file", "value": {
                "path": file.name, "encoding": "base64", "content": STANDARD.encode(file.read()?),
            }}),
        };
        lines.push(line.to_string());
    }
    lines.push(String::new());
    Ok(lines.join("\n").into_bytes())
}
