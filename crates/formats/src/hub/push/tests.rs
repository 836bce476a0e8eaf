mod fake;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::net::TcpListener;
use std::time::Duration;

use serde_json::json;
use sha2::{Digest, Sha256};

use self::fake::{FakeHub, Fault, Repository, TOKEN};
use super::*;

/// A directory with files of a model, one of them large.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let weights: Vec<u8> = (0..2500_u32).map(|i| (i * 31 % 251) as u8).collect();
        fs::write(root.path().join("weights"), weights).unwrap();
        Self(root)
    }

    fn weights(&self) -> Vec<u8> {
        fs::read(self.0.path().join("weights")).unwrap()
    }

    fn list(&self) -> Vec<PushFile> {
        let path = self.0.path().join("weights");
        vec![
            PushFile::of_bytes("README.md", b"# card".to_vec()),
            PushFile::of_path("sub/model.safetensors", path, 2500),
        ]
    }
}

fn name(name: &str) -> HubName {
    HubName::parse(name).unwrap()
}

fn options(hub: &FakeHub) -> PushOptions {
    PushOptions {
        endpoint: hub.endpoint.clone(),
        token: TOKEN.to_owned(),
        pause: Duration::from_millis(1),
    }
}

/// Looks and sends, as the program does.
fn push(hub: &FakeHub, to: &str, files: &[PushFile]) -> Result<Pushed, PushError> {
    push_with(hub, to, files, false, &mut ())
}

fn push_with(
    hub: &FakeHub,
    to: &str,
    files: &[PushFile],
    public: bool,
    progress: &mut dyn UploadProgress,
) -> Result<Pushed, PushError> {
    let (name, options) = (name(to), options(hub));
    let push = Push::new(&name, &options);
    let remote = push.look()?;
    push.send(files, remote.as_ref(), ("a message", public), progress)
}

fn expected(files: &Files) -> BTreeMap<String, Vec<u8>> {
    BTreeMap::from([
        (".gitattributes".to_owned(), b"x".to_vec()),
        ("README.md".to_owned(), b"# card".to_vec()),
        ("sub/model.safetensors".to_owned(), files.weights()),
    ])
}

#[derive(Default)]
struct Recorder(Vec<String>);

impl UploadProgress for Recorder {
    fn start(&mut self, file: &str, bytes: u64) {
        self.0.push(format!("start {file} {bytes}"));
    }
    fn advance(&mut self, bytes: u64) {
        if bytes > 0 {
            self.0.push(format!("advance {bytes}"));
        }
    }
    fn finish(&mut self, file: &str) {
        self.0.push(format!("finish {file}"));
    }
    fn present(&mut self, file: &str) {
        self.0.push(format!("present {file}"));
    }
    fn again(&mut self, what: &str, _: f64) {
        self.0.push(format!("again {what}"));
    }
}

#[test]
fn a_new_repository_is_private_and_gets_one_commit() {
    let (hub, files) = (FakeHub::new(), Files::new());
    let mut progress = Recorder::default();
    let pushed = push_with(&hub, "org/name", &files.list(), false, &mut progress).unwrap();
    assert_eq!(pushed.url, format!("{}/org/name", hub.endpoint));
    assert_eq!(pushed.commit.as_deref(), Some("commit-2"));
    assert!(pushed.created && pushed.present == 0 && pushed.ignored.is_empty());
    assert_eq!(hub.files("main"), expected(&files));
    assert!(
        hub.state
            .lock()
            .unwrap()
            .repository
            .as_ref()
            .unwrap()
            .private
    );
    let steps = [
        "start sub/model.safetensors 2500",
        "advance 2500",
        "finish sub/model.safetensors",
    ];
    assert_eq!(progress.0, steps);

    let requests = hub.requests();
    let hash = Sha256::digest(files.weights());
    let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    let lines: Vec<String> = requests.iter().map(fake::Request::line).collect();
    let put = format!("PUT /{hash}");
    let wanted = [
        "GET /api/models/org/name/revision/main",
        "GET /api/models/org/name",
        "POST /api/repos/create",
        "GET /api/models/org/name/revision/main",
        "POST /api/models/org/name/preupload/main",
        "POST /org/name.git/info/lfs/objects/batch",
        &put,
        "POST /verify",
        "POST /api/models/org/name/commit/main",
    ];
    assert_eq!(lines, wanted);
    assert_eq!(requests[2].json()["private"], true);
    let commit = String::from_utf8(requests[8].body.clone()).unwrap();
    let commit: Vec<serde_json::Value> = commit
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let header = json!({"summary": "a message", "description": "", "parentCommit": "commit-1"});
    assert_eq!(commit[0]["value"], header);
    let large =
        json!({"path": "sub/model.safetensors", "algo": "sha256", "oid": hash, "size": 2500});
    assert_eq!(commit[2], json!({"key": "lfsFile", "value": large}));

    // The token is in one header of the hub's requests, and nowhere else.
    for request in &requests {
        let authorised = request.headers.get("authorization").map(String::as_str);
        let bearer = format!("Bearer {TOKEN}");
        assert_eq!(authorised, (!request.storage).then_some(bearer.as_str()));
        let others = request
            .headers
            .iter()
            .filter(|(name, _)| *name != "authorization");
        assert!(!format!("{} {:?}", request.path, others.collect::<Vec<_>>()).contains(TOKEN));
        assert!(!String::from_utf8_lossy(&request.body).contains(TOKEN));
    }
}

#[test]
fn large_files_go_in_the_parts_that_the_hub_asks_for() {
    let (hub, files) = (FakeHub::new(), Files::new());
    hub.state.lock().unwrap().chunk = Some(1000);
    push(&hub, "org/name", &files.list()).unwrap();
    assert_eq!(hub.files("main"), expected(&files));
    let requests = hub.requests();
    let puts = requests.iter().filter(|request| request.method == "PUT");
    let lengths: Vec<usize> = puts.map(|request| request.body.len()).collect();
    assert_eq!(lengths, [1000, 1000, 500]);
}

#[test]
fn what_the_hub_has_is_not_sent_again() {
    let (hub, files) = (FakeHub::new(), Files::new());
    push(&hub, "org/name", &files.list()).unwrap();
    hub.requests();
    let mut progress = Recorder::default();
    let pushed = push_with(&hub, "org/name", &files.list(), false, &mut progress).unwrap();
    assert_eq!((pushed.created, pushed.present), (false, 1));
    assert_eq!(progress.0, ["present sub/model.safetensors"]);
    assert!(hub.requests().iter().all(|request| request.method != "PUT"));
}

#[test]
fn failures_that_pass_are_waited_for() {
    let (hub, files) = (FakeHub::new(), Files::new());
    let says = |status, headers| Fault::Says(status, headers, String::new());
    hub.fault("GET /api", 1, Fault::Cut);
    hub.fault(
        "POST /api/models/org/name/preupload",
        2,
        says("503 Service Unavailable", ""),
    );
    hub.fault(
        "POST /org",
        1,
        says("429 Too Many Requests", "Retry-After: 0\r\n"),
    );
    hub.fault("PUT", 1, Fault::CutEarly);
    hub.fault("PUT", 2, says("500 Internal Server Error", ""));
    hub.fault(
        "POST /api/models/org/name/commit",
        1,
        says("503 Service Unavailable", ""),
    );
    let mut progress = Recorder::default();
    push_with(&hub, "org/name", &files.list(), false, &mut progress).unwrap();
    assert_eq!(hub.files("main"), expected(&files));
    let again = progress.0.iter().filter(|line| line.starts_with("again"));
    assert_eq!(again.count(), 2 + 1 + 3 + 1);
}

#[test]
fn an_address_that_has_expired_is_asked_for_anew() {
    let (hub, files) = (FakeHub::new(), Files::new());
    hub.fault(
        "PUT",
        1,
        Fault::Says("403 Forbidden", "", "<Error>expired</Error>".to_owned()),
    );
    push(&hub, "org/name", &files.list()).unwrap();
    assert_eq!(hub.files("main"), expected(&files));
}

#[test]
fn refusals_are_told_apart_and_leave_the_repository_as_it_was() {
    let files = Files::new();
    let create = "POST /api/repos/create";
    let commit = "POST /api/models/org/name/commit";
    let batch = "POST /org/name.git";
    for (request, status, headers, body, said) in [
        (
            "GET",
            "401 Unauthorized",
            "",
            "",
            "does not accept the access token in HF_TOKEN (HTTP 401)",
        ),
        (
            create,
            "403 Forbidden",
            "",
            r#"{"error":"no\u001brights"}"#,
            "does not let the access token in HF_TOKEN do this: making the repository org/name (HTTP 403); it says: no rights",
        ),
        (create, "409 Conflict", "", "", "has something in the way"),
        (
            "POST /api/models/org/name/preupload",
            "404 Not Found",
            "",
            "",
            "does not know what this is about",
        ),
        (
            batch,
            "413 Payload Too Large",
            "",
            "",
            "too large: a place for sub/model.safetensors (HTTP 413)",
        ),
        (
            batch,
            "403 Forbidden",
            "",
            r#"{"error":"Private repository storage limit reached"}"#,
            "has no room left for",
        ),
        (
            commit,
            "402 Payment Required",
            "X-Error-Message: pay\r\n",
            "",
            "has no room left for the commit to org/name (HTTP 402); it says: pay",
        ),
        (
            commit,
            "422 Unprocessable Entity",
            "",
            r#"{"error":"bad hf_0123456789secret"}"#,
            "it says: bad (hidden)",
        ),
        (
            commit,
            "500 Internal Server Error",
            "",
            "",
            "failed: the commit to org/name (HTTP 500)",
        ),
        (
            "PUT",
            "507 Insufficient Storage",
            "",
            "",
            "has no room left for sub/model.safetensors",
        ),
        (
            "PUT",
            "503 Slow Down",
            "",
            "",
            "failed: sub/model.safetensors (HTTP 503, 5 times)",
        ),
        // Nobody waits an hour.
        (
            commit,
            "429 Too Many Requests",
            "Retry-After: 3600\r\n",
            "",
            "takes no more requests for now: the commit to org/name (HTTP 429)",
        ),
    ] {
        let hub = FakeHub::new();
        hub.fault(request, 99, Fault::Says(status, headers, body.to_owned()));
        let error = push(&hub, "org/name", &files.list()).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(said), "{status} of {request}: {text}");
        assert!(!text.contains(TOKEN) && !text.contains("s3cret"), "{text}");
        assert_eq!(error.is_quota(), said.contains("no room"), "{text}");
        let left: Vec<String> = hub.files("main").into_keys().collect();
        assert!(left.is_empty() || left == [".gitattributes"], "{left:?}");
    }
}

#[test]
fn a_commit_that_may_have_been_made_is_not_made_again() {
    let (hub, files) = (FakeHub::new(), Files::new());
    hub.fault("POST /api/models/org/name/commit", 9, Fault::Cut);
    let error = push(&hub, "org/name", &files.list()).unwrap_err();
    assert!(matches!(error, PushError::Uncertain { .. }), "{error}");
    let requests = hub.requests();
    let commits = requests
        .iter()
        .filter(|request| request.path.contains("/commit/"));
    assert_eq!(commits.count(), 1);
}

#[test]
fn a_hub_that_is_gone_is_asked_a_few_times() {
    let gone = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let hub = FakeHub::new();
    let options = PushOptions {
        endpoint: format!("http://{gone}"),
        ..options(&hub)
    };
    let name = name("org/name");
    let error = Push::new(&name, &options).look().unwrap_err();
    match &error {
        PushError::Network { attempts, .. } => assert_eq!(*attempts, 5),
        other => panic!("{other}"),
    }
    let said = format!("the connection to http://{gone} failed 5 times: a look at org/name");
    assert_eq!(error.to_string(), said);
}

#[test]
fn nothing_private_goes_where_everybody_reads() {
    let (hub, files) = (FakeHub::new(), Files::new());
    hub.state.lock().unwrap().repository = Some(Repository::new(false));
    let error = push(&hub, "org/name", &files.list()).unwrap_err();
    assert!(matches!(error, PushError::Public { .. }), "{error}");
    assert!(hub.requests().iter().all(|request| request.method == "GET"));
    push_with(&hub, "org/name", &files.list(), true, &mut ()).unwrap();
    assert_eq!(hub.files("main"), expected(&files));
    // A hub that does not do as it is told.
    let hub = FakeHub::new();
    hub.state.lock().unwrap().always_public = true;
    let error = push(&hub, "org/name", &files.list()).unwrap_err();
    assert!(matches!(error, PushError::Public { .. }), "{error}");
    assert!(
        hub.requests()
            .iter()
            .all(|request| !request.path.contains("preupload"))
    );
}

#[test]
fn a_commit_of_somebody_else_is_not_undone() {
    let (hub, files) = (FakeHub::new(), Files::new());
    hub.state.lock().unwrap().repository = Some(Repository::new(true));
    let (name, options) = (name("org/name"), options(&hub));
    let push = Push::new(&name, &options);
    let remote = push.look().unwrap().unwrap();
    assert_eq!(remote.files[0].name, ".gitattributes");
    assert_eq!(remote.files[0].bytes, Some(1));
    hub.state
        .lock()
        .unwrap()
        .repository
        .as_mut()
        .unwrap()
        .commits += 1;
    let error = push
        .send(&files.list(), Some(&remote), ("m", false), &mut ())
        .unwrap_err();
    assert!(matches!(error, PushError::Moved { .. }), "{error}");
    assert_eq!(hub.files("main").len(), 1);
}

#[test]
fn a_branch_is_made_where_there_is_none() {
    let (hub, files) = (FakeHub::new(), Files::new());
    hub.state.lock().unwrap().repository = Some(Repository::new(true));
    for _ in 0..2 {
        push(&hub, "org/name@try/one", &files.list()).unwrap();
    }
    assert_eq!(hub.files("try/one"), expected(&files));
    assert_eq!(hub.files("main").len(), 1);
    let requests = hub.requests();
    let made = requests
        .iter()
        .filter(|request| request.path.contains("/branch/"));
    assert_eq!(
        made.map(|request| request.path.as_str())
            .collect::<Vec<_>>(),
        ["/api/models/org/name/branch/try%2Fone"]
    );
}

#[test]
fn files_that_the_repository_ignores_are_named() {
    let hub = FakeHub::new();
    let files = [
        PushFile::of_bytes("a.log", vec![1]),
        PushFile::of_bytes("empty", vec![]),
    ];
    let pushed = push(&hub, "org/name", &files).unwrap();
    assert_eq!(pushed.ignored, ["a.log"]);
    assert_eq!(hub.files("main")["empty"], b"");
}

#[test]
fn answers_that_lead_astray_are_not_followed() {
    let files = Files::new();
    let batch = "POST /org/name.git";
    let object = |object: serde_json::Value| json!({"objects": [object]}).to_string();
    let hash = Sha256::digest(files.weights());
    let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    let upload = |header: serde_json::Value| {
        let upload = json!({"href": "http://127.0.0.1:9/x", "header": header});
        object(json!({"oid": hash, "actions": {"upload": upload}}))
    };
    for (request, body, said) in [
        ("GET", "<html>".to_owned(), "not JSON"),
        (
            "GET",
            r#"{"siblings": []}"#.to_owned(),
            "whether it is private",
        ),
        (
            "POST /api/models/org/name/preupload",
            r#"{"files": []}"#.to_owned(),
            "how to send README.md",
        ),
        (batch, object(json!({"oid": "other"})), "about another file"),
        (
            batch,
            object(json!({"oid": hash, "actions": {"upload": {}}})),
            "no address",
        ),
        (
            batch,
            object(json!({"oid": hash, "actions": {"upload": {"href": "ftp://x"}}})),
            "without https",
        ),
        (
            batch,
            upload(json!({"chunk_size": "0"})),
            "parts without a size",
        ),
        (
            batch,
            upload(json!({"chunk_size": 1000, "1": "x", "3": "y", "4": "z"})),
            "other parts",
        ),
        (
            batch,
            upload(json!({"chunk_size": 1000, "1": "x"})),
            "other parts",
        ),
        (
            batch,
            object(json!({"oid": hash, "error": {"code": 422, "message": "bad size"}})),
            "it says: bad size",
        ),
    ] {
        let hub = FakeHub::new();
        hub.fault(request, 99, Fault::Says("200 OK", "", body));
        let error = push(&hub, "org/name", &files.list())
            .unwrap_err()
            .to_string();
        assert!(error.contains(said), "{error}");
    }
    let hub = FakeHub::new();
    hub.fault(
        "GET",
        1,
        Fault::Says(
            "307 Temporary Redirect",
            "Location: /api/models/org/new\r\n",
            String::new(),
        ),
    );
    let error = push(&hub, "org/name", &files.list()).unwrap_err();
    assert!(matches!(error, PushError::Renamed { .. }), "{error}");
    let hub = FakeHub::new();
    let moved = Fault::Says(
        "307 Temporary Redirect",
        "Location: http://elsewhere/\r\n",
        String::new(),
    );
    hub.fault("POST /api/repos", 1, moved);
    let error = push(&hub, "org/name", &files.list()).unwrap_err();
    assert!(matches!(error, PushError::Renamed { .. }), "{error}");
}

#[test]
fn a_file_that_changes_on_the_way_is_named() {
    let (hub, files) = (FakeHub::new(), Files::new());
    let path = files.0.path().join("weights");
    for bytes in [2499, 2501] {
        let list = [PushFile::of_path("model.safetensors", &path, bytes)];
        let error = push(&hub, "org/name", &list).unwrap_err();
        assert!(matches!(error, PushError::Changed { .. }), "{error}");
    }
    fs::remove_file(&path).unwrap();
    let error = push(&hub, "org/name", &files.list()).unwrap_err();
    assert!(matches!(error, PushError::Read { .. }), "{error}");
    assert_eq!(hub.files("main").len(), 1);
}

#[test]
fn the_token_comes_from_the_environment_alone() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("token"), "from-file").unwrap();
    let options = |pairs: &[(&str, &str)]| {
        let mut map: BTreeMap<String, OsString> = pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.into()))
            .collect();
        map.insert("HF_HOME".to_owned(), home.path().into());
        PushOptions::from_variables("org/name", |name| map.get(name).cloned())
    };
    let said = |pairs: &[(&str, &str)]| options(pairs).unwrap_err().to_string();
    assert!(said(&[]).starts_with("HF_TOKEN is not set; https://huggingface.co takes files only"));
    assert!(said(&[("HF_TOKEN", " ")]).contains("is not set"));
    assert!(said(&[("HF_TOKEN", "a\nb: c")]).contains("no access token has"));
    assert!(said(&[("HF_TOKEN", "a"), ("HF_HUB_OFFLINE", "1")]).contains("HF_HUB_OFFLINE"));
    let options = options(&[("HF_TOKEN", "mine\n"), ("HF_ENDPOINT", "http://hub/")]).unwrap();
    assert_eq!(
        (options.token.as_str(), options.endpoint.as_str()),
        ("mine", "http://hub")
    );
    assert!(!format!("{options:?}").contains("mine"));
}
