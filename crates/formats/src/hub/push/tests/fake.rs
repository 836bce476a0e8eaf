//! A hub on this machine that takes files, and its storage on another port. The program's tests use it too.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

pub(crate) const TOKEN: &str = "hf_0123456789secret";

/// A request as it arrived.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
    /// Whether it went to the storage's port.
    pub(crate) storage: bool,
}

impl Request {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub(crate) fn line(&self) -> String {
        let path = self.path.split('?').next().unwrap();
        format!("{} {path}", self.method)
    }
}

/// What is answered instead of the right thing, so many times.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// Status line, further headers, body.
    Says(&'static str, &'static str, String),
    /// The connection ends without an answer.
    Cut,
    /// The connection ends in the middle of the body.
    CutEarly,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) repository: Option<Repository>,
    pub(crate) storage: BTreeMap<String, Vec<u8>>,
    parts: BTreeMap<String, Vec<u8>>,
    /// Parts of this size, where files go into storage in parts.
    pub(crate) chunk: Option<u64>,
    /// Whether new repositories are public whatever is asked.
    pub(crate) always_public: bool,
    /// By the beginning of `METHOD path`.
    pub(crate) faults: Vec<(String, usize, Fault)>,
    pub(crate) requests: Vec<Request>,
}

#[derive(Clone, Debug)]
pub(crate) struct Repository {
    pub(crate) private: bool,
    pub(crate) commits: usize,
    /// Files by branch.
    pub(crate) branches: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
}

impl Repository {
    pub(crate) fn new(private: bool) -> Self {
        let main = BTreeMap::from([(".gitattributes".to_owned(), b"x".to_vec())]);
        Self {
            private,
            commits: 1,
            branches: BTreeMap::from([("main".to_owned(), main)]),
        }
    }
}

pub(crate) struct FakeHub {
    pub(crate) endpoint: String,
    pub(crate) state: Arc<Mutex<State>>,
}

impl FakeHub {
    pub(crate) fn new() -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let storage = listen(state.clone(), None);
        let endpoint = listen(state.clone(), Some(storage));
        Self { endpoint, state }
    }

    pub(crate) fn fault(&self, request: &str, times: usize, fault: Fault) {
        let mut state = self.state.lock().unwrap();
        state.faults.push((request.to_owned(), times, fault));
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.state.lock().unwrap().requests)
    }

    /// The files of a branch.
    pub(crate) fn files(&self, branch: &str) -> BTreeMap<String, Vec<u8>> {
        let state = self.state.lock().unwrap();
        let repository = state.repository.as_ref();
        repository.map_or_else(BTreeMap::new, |all| all.branches[branch].clone())
    }
}

/// A server on a port of its own; the hub knows where the storage is.
fn listen(state: Arc<Mutex<State>>, storage: Option<String>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (state, storage) = (state.clone(), storage.clone());
            std::thread::spawn(move || serve(stream, &state, storage.as_deref()));
        }
    });
    address
}

fn serve(mut stream: TcpStream, state: &Mutex<State>, storage: Option<&str>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    while let Some(request) = read(&mut reader, state, storage.is_none()) {
        let mut state = state.lock().unwrap();
        state.requests.push(request.clone());
        let answer = match fault(&mut state, &request) {
            Some(Fault::Says(status, headers, body)) => {
                format!(
                    "HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n{body}",
                    body.len()
                )
            }
            Some(Fault::Cut | Fault::CutEarly) => {
                let _ = stream.shutdown(Shutdown::Both);
                return;
            }
            None => match storage {
                Some(storage) => hub(&mut state, &request, storage),
                None => store(&mut state, &request),
            },
        };
        drop(state);
        if stream.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

fn fault(state: &mut State, request: &Request) -> Option<Fault> {
    let line = request.line();
    let found = state.faults.iter_mut();
    let found = found.filter(|(start, left, _)| *left > 0 && line.starts_with(start.as_str()));
    let (_, left, fault) = found.into_iter().next()?;
    *left -= 1;
    Some(fault.clone())
}

fn read(reader: &mut BufReader<TcpStream>, state: &Mutex<State>, storage: bool) -> Option<Request> {
    let mut line = String::new();
    if reader.read_line(&mut line).unwrap_or(0) == 0 {
        return None;
    }
    let mut words = line.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        let Some((name, value)) = header.trim().split_once(": ") else {
            break;
        };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    assert!(
        !headers.contains_key("transfer-encoding"),
        "object stores take no chunks"
    );
    let length = headers
        .get("content-length")
        .map_or(0, |text| text.parse().unwrap());
    let mut request = Request {
        method,
        path,
        headers,
        body: vec![0; length],
        storage,
    };
    let mut state = state.lock().unwrap();
    let line = request.line();
    let early = |(start, left, fault): &&mut (String, usize, Fault)| {
        *left > 0 && line.starts_with(start.as_str()) && matches!(fault, Fault::CutEarly)
    };
    if let Some((_, left, _)) = state.faults.iter_mut().find(early) {
        *left -= 1;
        drop(state);
        let mut half = vec![0; length / 2];
        let _ = reader.read_exact(&mut half);
        let _ = reader.get_ref().shutdown(Shutdown::Both);
        return None;
    }
    drop(state);
    reader.read_exact(&mut request.body).ok()?;
    Some(request)
}

fn says(status: &str, body: &Value) -> String {
    let body = body.to_string();
    format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn hub(state: &mut State, request: &Request, storage: &str) -> String {
    if request.headers.get("authorization") != Some(&format!("Bearer {TOKEN}")) {
        return says("401 Unauthorized", &json!({"error": "Invalid credentials"}));
    }
    let path = request.path.split('?').next().unwrap();
    let api = path.strip_prefix("/api/models/org/name");
    match (request.method.as_str(), path, api) {
        ("POST", "/api/repos/create", _) => {
            let body = request.json();
            assert_eq!(
                (&body["organization"], &body["name"]),
                (&"org".into(), &"name".into())
            );
            let private = body["private"] == true && !state.always_public;
            state.repository = Some(Repository::new(private));
            says("200 OK", &json!({"url": "x"}))
        }
        ("GET", _, Some("")) => match &state.repository {
            Some(repository) => says("200 OK", &info(repository, "main")),
            None => missing("RepoNotFound"),
        },
        ("GET", _, Some(rest)) => {
            let branch = rest.strip_prefix("/revision/").unwrap().replace("%2F", "/");
            match &state.repository {
                None => missing("RepoNotFound"),
                Some(repository) if !repository.branches.contains_key(&branch) => {
                    missing("RevisionNotFound")
                }
                Some(repository) => says("200 OK", &info(repository, &branch)),
            }
        }
        ("POST", "/org/name.git/info/lfs/objects/batch", _) => batch(state, request, storage),
        ("POST", "/verify", _) => {
            let body = request.json();
            let stored = state.storage.get(body["oid"].as_str().unwrap());
            match stored.is_some_and(|bytes| body["size"] == bytes.len()) {
                true => says("200 OK", &json!({})),
                false => says("404 Not Found", &json!({"message": "no such object"})),
            }
        }
        ("POST", _, Some(rest)) if rest.starts_with("/preupload/") => {
            let body = request.json();
            let files = body["files"].as_array().unwrap().iter();
            let modes = files.map(|file| {
                let size = file["size"].as_u64().unwrap();
                let sample = STANDARD.decode(file["sample"].as_str().unwrap()).unwrap();
                assert_eq!(sample.len() as u64, size.min(512));
                let mode = if size > 1000 { "lfs" } else { "regular" };
                let path = file["path"].as_str().unwrap();
                json!({"path": path, "uploadMode": mode, "shouldIgnore": path.ends_with(".log")})
            });
            says("200 OK", &json!({"files": modes.collect::<Vec<_>>()}))
        }
        ("POST", _, Some(rest)) if rest.starts_with("/branch/") => {
            let branch = rest.strip_prefix("/branch/").unwrap().replace("%2F", "/");
            let repository = state.repository.as_mut().unwrap();
            let main = repository.branches["main"].clone();
            repository.branches.insert(branch, main);
            says("200 OK", &json!({}))
        }
        ("POST", _, Some(rest)) if rest.starts_with("/commit/") => {
            let branch = rest.strip_prefix("/commit/").unwrap().replace("%2F", "/");
            commit(state, request, &branch)
        }
        _ => says("404 Not Found", &json!({"error": "no such address"})),
    }
}

fn missing(code: &str) -> String {
    format!("HTTP/1.1 404 Not Found\r\nX-Error-Code: {code}\r\nContent-Length: 0\r\n\r\n")
}

fn info(repository: &Repository, branch: &str) -> Value {
    let files = repository.branches[branch].iter();
    let files = files.map(|(name, bytes)| json!({"rfilename": name, "size": bytes.len()}));
    json!({
        "id": "org/name", "private": repository.private,
        "sha": format!("commit-{}", repository.commits), "siblings": files.collect::<Vec<_>>(),
    })
}

fn batch(state: &State, request: &Request, storage: &str) -> String {
    let body = request.json();
    assert_eq!(body["operation"], "upload");
    let (oid, size) = (
        body["objects"][0]["oid"].as_str().unwrap(),
        body["objects"][0]["size"].as_u64().unwrap(),
    );
    let mut object = json!({"oid": oid, "size": size});
    if !state.storage.contains_key(oid) {
        let mut header = json!({});
        let mut href = format!("{storage}/{oid}?signature=s3cret");
        if let Some(chunk) = state.chunk {
            header["chunk_size"] = chunk.to_string().into();
            for number in 1..=size.div_ceil(chunk) {
                header[format!("{number:05}")] =
                    format!("{storage}/{oid}/{number}?signature=s3cret").into();
            }
            href = format!("{storage}/{oid}/join");
        }
        // The hub's own address, as the client knows it.
        let host = &request.headers["host"];
        object["actions"] = json!({
            "upload": {"href": href, "header": header}, "verify": {"href": format!("http://{host}/verify")},
        });
    }
    says("200 OK", &json!({"transfer": "basic", "objects": [object]}))
}

fn store(state: &mut State, request: &Request) -> String {
    let path = request.path.split('?').next().unwrap();
    let oid = path.split('/').nth(1).unwrap().to_owned();
    let bytes = match path.split('/').nth(2) {
        None => request.body.clone(),
        Some("join") => {
            let parts = request.json()["parts"].as_array().unwrap().clone();
            let mut whole = Vec::new();
            for part in parts {
                let number = part["partNumber"].as_u64().unwrap();
                assert_eq!(part["etag"], format!("\"tag-{number}\""));
                whole.extend(&state.parts[&format!("{oid}/{number}")]);
            }
            whole
        }
        Some(number) => {
            state
                .parts
                .insert(format!("{oid}/{number}"), request.body.clone());
            return format!(
                "HTTP/1.1 200 OK\r\nETag: \"tag-{number}\"\r\nContent-Length: 0\r\n\r\n"
            );
        }
    };
    let hash: String = Sha256::digest(&bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    if hash != oid {
        return says("400 Bad Request", &json!({"error": "another hash"}));
    }
    state.storage.insert(oid, bytes);
    says("200 OK", &json!({}))
}

fn commit(state: &mut State, request: &Request, branch: &str) -> String {
    assert_eq!(request.headers["content-type"], "application/x-ndjson");
    let text = String::from_utf8(request.body.clone()).unwrap();
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines[0]["key"], "header");
    let State {
        repository,
        storage,
        ..
    } = state;
    let repository = repository.as_mut().unwrap();
    let parent = &lines[0]["value"]["parentCommit"];
    if !parent.is_null() && *parent != format!("commit-{}", repository.commits) {
        return says(
            "412 Precondition Failed",
            &json!({"error": "A commit has happened since"}),
        );
    }
    let mut files = repository.branches[branch].clone();
    for line in &lines[1..] {
        let value = &line["value"];
        let bytes = match line["key"].as_str().unwrap() {
            "file" => STANDARD.decode(value["content"].as_str().unwrap()).unwrap(),
            "lfsFile" => match storage.get(value["oid"].as_str().unwrap()) {
                Some(bytes) => bytes.clone(),
                None => return says("400 Bad Request", &json!({"error": "no such object"})),
            },
            other => panic!("{other}"),
        };
        files.insert(value["path"].as_str().unwrap().to_owned(), bytes);
    }
    repository.branches.insert(branch.to_owned(), files);
    repository.commits += 1;
    let id = format!("commit-{}", repository.commits);
    says(
        "200 OK",
        &json!({"commitOid": id, "commitUrl": format!("http://hub/org/name/commit/{id}")}),
    )
}
