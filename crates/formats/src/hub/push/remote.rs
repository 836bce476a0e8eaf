//! The repository on the hub: what it has, and how it comes to be.

use serde_json::{Value, json};

use super::answer::Answer;
use super::client::{Client, JSON, Repeat};
use super::error::PushError;
use crate::hub::name::HubName;

/// What a repository has before anything is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    /// Whether only those with a permission can read it.
    pub private: bool,
    /// The newest commit of the branch; `None` where there is no such branch, or nothing in it.
    pub commit: Option<String>,
    /// The files of the branch.
    pub files: Vec<RemoteFile>,
}

/// A file of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteFile {
    /// Its path.
    pub name: String,
    /// Its size, where the hub says it.
    pub bytes: Option<u64>,
}

/// The repository's path in the interface; branches go in whole, with their slashes escaped.
pub(super) fn api(name: &HubName, rest: &str) -> String {
    format!("/api/models/{}{rest}", name.repository())
}

pub(super) fn branch(name: &HubName) -> String {
    name.revision().replace('/', "%2F")
}

/// Looks at a repository; `None` if there is none, or the token may not see it.
pub(super) fn look(client: &Client<'_>, name: &HubName) -> Result<Option<Remote>, PushError> {
    let what = format!("a look at {name}");
    let path = api(name, &format!("/revision/{}?blobs=true", branch(name)));
    let answer = client.get(&what, &path)?;
    if answer.is_success() {
        return remote(client, &what, &answer).map(Some);
    }
    if answer.status != 404 {
        return Err(refusal(client, name, &what, &answer));
    }
    // No repository, or a repository without the branch.
    let answer = client.get(&what, &api(name, ""))?;
    match answer.status {
        404 => Ok(None),
        _ if answer.is_success() => {
            let whole = remote(client, &what, &answer)?;
            Ok(Some(Remote {
                commit: None,
                files: Vec::new(),
                ..whole
            }))
        }
        _ => Err(refusal(client, name, &what, &answer)),
    }
}

/// Makes a repository, and sees that it is as private as it should be.
pub(super) fn create(
    client: &Client<'_>,
    name: &HubName,
    public: bool,
) -> Result<Remote, PushError> {
    let what = format!("making the repository {}", name.repository());
    let (organisation, model) = name.repository().split_once('/').unwrap_or_default();
    let body = json!({
        "type": "model", "name": model, "organization": organisation, "private": !public,
    });
    let body = body.to_string();
    let answer = client.post(
        &what,
        "/api/repos/create",
        (JSON, body.as_bytes()),
        Repeat::Always,
    )?;
    // There by now: somebody was quicker, or the answer to an earlier attempt was lost.
    if !answer.is_success() && answer.status != 409 {
        return Err(refusal(client, name, &what, &answer));
    }
    let remote = look(client, name)?.ok_or_else(|| refusal(client, name, &what, &answer))?;
    match remote.private || public {
        true => Ok(remote),
        false => Err(PushError::Public {
            name: name.repository().to_owned(),
        }),
    }
}

/// Makes the branch, from what the main one has.
pub(super) fn create_branch(client: &Client<'_>, name: &HubName) -> Result<(), PushError> {
    let what = format!(
        "making the branch {} of {}",
        name.revision(),
        name.repository()
    );
    let path = api(name, &format!("/branch/{}", branch(name)));
    let answer = client.post(&what, &path, (JSON, b"{}"), Repeat::Always)?;
    match answer.is_success() || answer.status == 409 {
        true => Ok(()),
        false => Err(refusal(client, name, &what, &answer)),
    }
}

/// The error of a refused request to the hub; a repository that was renamed is no refusal.
pub(super) fn refusal(
    client: &Client<'_>,
    name: &HubName,
    what: &str,
    answer: &Answer,
) -> PushError {
    let options = client.options;
    match &answer.location {
        Some(to) if (300..400).contains(&answer.status) => PushError::Renamed {
            name: name.repository().to_owned(),
            place: options.endpoint.clone(),
            to: to.chars().filter(|c| !c.is_control()).take(200).collect(),
        },
        _ => answer.refusal(what, &options.endpoint, &options.token),
    }
}

fn remote(client: &Client<'_>, what: &str, answer: &Answer) -> Result<Remote, PushError> {
    let value = answer.json(what, &client.options.endpoint)?;
    let unusable = |problem: &str| PushError::Answer {
        what: what.to_owned(),
        place: client.options.endpoint.clone(),
        problem: problem.to_owned(),
    };
    let private = value["private"].as_bool();
    let private = private.ok_or_else(|| unusable("it does not say whether it is private"))?;
    let commit = value["sha"].as_str().map(str::to_owned);
    let siblings = value["siblings"].as_array();
    let siblings = siblings.map_or(&[][..], Vec::as_slice);
    let file = |value: &Value| {
        Some(RemoteFile {
            name: value["rfilename"].as_str()?.to_owned(),
            bytes: value["size"].as_u64(),
        })
    };
    let files = siblings.iter().map(file).collect::<Option<Vec<_>>>();
    Ok(Remote {
        private,
        commit,
        files: files.ok_or_else(|| unusable("a file without a name"))?,
    })
}
