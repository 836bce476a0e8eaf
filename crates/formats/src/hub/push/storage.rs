//! Large files, into the hub's storage by Git LFS.
//!
//! The hub says for each file where it wants it: nowhere (it has it), in one piece, or in parts of a size that it
//! chooses, after which it is told the parts' tags. Asked for one file at a time, since addresses expire.
//!
//! # Source
//! [Git LFS' batch interface](https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md), and the hub's transfer
//! `multipart` as `huggingface_hub` speaks it.

use serde_json::{Value, json};

use super::client::{Client, LFS, Repeat};
use super::error::PushError;
use super::file::PushFile;
use super::remote::refusal;
use crate::hub::name::HubName;

/// The most parts that a file may have, as object stores count them.
const MOST_PARTS: u64 = 10_000;

/// Puts a file into storage; `false` if the hub had it.
pub(super) fn put(
    client: &Client<'_>,
    name: &HubName,
    file: &PushFile,
    sha256: &str,
) -> Result<bool, PushError> {
    let Some(place) = place(client, name, file, sha256)? else {
        client.tell(|progress| progress.present(&file.name));
        return Ok(false);
    };
    match transfer(client, file, sha256, &place) {
        // Its address may have expired on the way.
        Err(PushError::Refused { status: 403, .. }) => {
            if let Some(place) = self::place(client, name, file, sha256)? {
                transfer(client, file, sha256, &place)?;
            }
        }
        other => other?,
    }
    client.tell(|progress| progress.finish(&file.name));
    Ok(true)
}

/// Where the hub wants a file, as it said; `None` if it has it.
fn place(
    client: &Client<'_>,
    name: &HubName,
    file: &PushFile,
    sha256: &str,
) -> Result<Option<Value>, PushError> {
    let what = format!("a place for {}", file.name);
    let path = format!("/{}.git/info/lfs/objects/batch", name.repository());
    let body = json!({
        "operation": "upload", "transfers": ["basic", "multipart"], "hash_algo": "sha256",
        "ref": {"name": name.revision()}, "objects": [{"oid": sha256, "size": file.bytes}],
    });
    let body = body.to_string();
    let answer = client.post(&what, &path, (LFS, body.as_bytes()), Repeat::Always)?;
    if !answer.is_success() {
        return Err(refusal(client, name, &what, &answer));
    }
    let answer = answer.json(&what, &client.options.endpoint)?;
    let unusable = |problem: &str| unusable(client, &what, problem);
    let object = &answer["objects"][0];
    if object["oid"] != *sha256 {
        return Err(unusable("it is about another file"));
    }
    if let Some(error) = object.get("error") {
        return Err(PushError::Refused {
            status: error["code"].as_u64().map_or(422, |code| code as u16),
            what,
            place: client.options.endpoint.clone(),
            attempts: 1,
            message: error["message"].as_str().map(str::to_owned),
        });
    }
    match object["actions"].clone() {
        Value::Null => Ok(None),
        actions if actions["upload"]["href"].is_string() => Ok(Some(actions)),
        _ => Err(unusable("no address to upload to")),
    }
}

fn transfer(
    client: &Client<'_>,
    file: &PushFile,
    sha256: &str,
    actions: &Value,
) -> Result<(), PushError> {
    let upload = &actions["upload"];
    let url = upload["href"].as_str().unwrap_or_default();
    let header = &upload["header"];
    match &header["chunk_size"] {
        Value::Null => {
            let fields = header.as_object().into_iter().flatten();
            let headers: Vec<(&str, &str)> = fields
                .filter_map(|(name, value)| Some((name.as_str(), value.as_str()?)))
                .collect();
            part(client, url, &headers, (file, 0, file.bytes))?;
        }
        size => parts(client, url, (header, size), (file, sha256))?,
    }
    let Some(url) = actions["verify"]["href"].as_str() else {
        return Ok(());
    };
    let body = json!({"oid": sha256, "size": file.bytes}).to_string();
    let what = format!("whether {} arrived", file.name);
    let answer = client.post_to(&what, url, (LFS, body.as_bytes()), Repeat::Always)?;
    match answer.is_success() {
        true => Ok(()),
        false => Err(answer.refusal(&what, url, &client.options.token)),
    }
}

/// One request's worth of a file; its tag in storage.
fn part(
    client: &Client<'_>,
    url: &str,
    headers: &[(&str, &str)],
    (file, from, length): (&PushFile, u64, u64),
) -> Result<Option<String>, PushError> {
    let answer = client.put(url, headers, (file, from, length))?;
    match answer.is_success() {
        true => Ok(answer.etag),
        false => Err(answer.refusal(&file.name, url, &client.options.token)),
    }
}

fn parts(
    client: &Client<'_>,
    url: &str,
    (header, size): (&Value, &Value),
    (file, sha256): (&PushFile, &str),
) -> Result<(), PushError> {
    let unusable = |problem: &str| unusable(client, &file.name, problem);
    let size = match size {
        Value::String(text) => text.parse().ok(),
        other => other.as_u64(),
    };
    let size = size.filter(|size| *size > 0);
    let size: u64 = size.ok_or_else(|| unusable("parts without a size"))?;
    let count = file.bytes.div_ceil(size);
    if count > MOST_PARTS {
        return Err(unusable("too many parts"));
    }
    // Their keys are numbers, counted from 1, with or without zeros in front.
    let fields = header.as_object().into_iter().flatten();
    let mut urls: Vec<(u64, &str)> = fields
        .filter_map(|(key, value)| Some((key.parse().ok()?, value.as_str()?)))
        .collect();
    urls.sort_unstable();
    let numbers = urls.iter().map(|(number, _)| *number);
    if !numbers.eq(1..=count) {
        return Err(unusable("other parts than the file has"));
    }
    let mut tags = Vec::new();
    for (number, url) in urls {
        let from = (number - 1) * size;
        let length = size.min(file.bytes - from);
        let tag = part(client, url, &[], (file, from, length))?;
        let tag = tag.ok_or_else(|| unusable("a part without a tag"))?;
        tags.push(json!({"partNumber": number, "etag": tag}));
    }
    let what = format!("joining the parts of {}", file.name);
    let body = json!({"oid": sha256, "parts": tags}).to_string();
    let answer = client.post_to(&what, url, (LFS, body.as_bytes()), Repeat::Always)?;
    match answer.is_success() {
        true => Ok(()),
        false => Err(answer.refusal(&what, url, &client.options.token)),
    }
}

fn unusable(client: &Client<'_>, what: &str, problem: &str) -> PushError {
    PushError::Answer {
        what: what.to_owned(),
        place: client.options.endpoint.clone(),
        problem: problem.to_owned(),
    }
}
