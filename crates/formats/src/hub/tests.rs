use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use super::*;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A hub with one model, on a port of its own.
struct FakeHub {
    endpoint: String,
    requests: Arc<Mutex<Vec<String>>>,
    files: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
    cache: tempfile::TempDir,
}

impl FakeHub {
    fn new(files: &[(&str, &[u8])]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let files: BTreeMap<_, _> = files
            .iter()
            .map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec()))
            .collect();
        let hub = Self {
            endpoint: format!("http://{}", listener.local_addr().unwrap()),
            requests: Arc::default(),
            files: Arc::new(Mutex::new(files)),
            cache: tempfile::tempdir().unwrap(),
        };
        let (requests, files) = (hub.requests.clone(), hub.files.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (requests, files) = (requests.clone(), files.clone());
                std::thread::spawn(move || serve(stream, &requests, &files));
            }
        });
        hub
    }

    fn options(&self) -> HubOptions {
        HubOptions {
            cache: self.cache.path().into(),
            endpoint: self.endpoint.clone(),
            token: Some("secret".into()),
            offline: false,
        }
    }

    fn resolve(&self, name: &str) -> Result<PathBuf, HubError> {
        resolve_model(name, &self.options(), &mut ())
    }

    /// The files asked for since the last time.
    fn fetched(&self) -> Vec<String> {
        let requests = std::mem::take(&mut *self.requests.lock().unwrap());
        let mut files: Vec<_> = requests
            .iter()
            .filter_map(|path| Some(path.split_once("/resolve/")?.1.split_once('/')?.1.into()))
            .collect();
        files.dedup();
        files
    }
}

fn serve(
    mut stream: TcpStream,
    requests: &Mutex<Vec<String>>,
    files: &Mutex<BTreeMap<String, Vec<u8>>>,
) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        let path = line.split(' ').nth(1).unwrap().to_owned();
        let (mut from, mut authorised) = (0, false);
        loop {
            let mut header = String::new();
            reader.read_line(&mut header).unwrap();
            let header = header.trim().to_ascii_lowercase();
            if header.is_empty() {
                break;
            }
            if let Some(range) = header.strip_prefix("range: bytes=") {
                from = range.split('-').next().unwrap().parse().unwrap();
            }
            authorised |= header == "authorization: bearer secret";
        }
        requests.lock().unwrap().push(path.clone());
        let files = files.lock().unwrap();
        let answer = answer(&path, from, authorised, &files);
        if stream.write_all(&answer).is_err() {
            return;
        }
    }
}

fn answer(path: &str, from: usize, authorised: bool, files: &BTreeMap<String, Vec<u8>>) -> Vec<u8> {
    let status = |line: &str| format!("HTTP/1.1 {line}\r\nContent-Length: 0\r\n\r\n").into_bytes();
    if !authorised || path.contains("/gated/") {
        return status("401 Unauthorized");
    }
    let model = "/org/model";
    let dataset = "/datasets/org/model";
    let api = [
        "/api/models/org/model/revision/",
        "/api/datasets/org/model/revision/",
    ];
    if let Some(revision) = api.iter().find_map(|api| path.strip_prefix(api)) {
        if revision != "main" && revision != "v1" && revision != COMMIT {
            return status("404 Not Found");
        }
        let siblings: Vec<_> = files
            .keys()
            .map(|name| serde_json::json!({"rfilename": name}))
            .collect();
        let sha = if files.contains_key("bad-sha") {
            "../../x"
        } else {
            COMMIT
        };
        let body = serde_json::json!({"siblings": siblings, "sha": sha}).to_string();
        return format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .into_bytes();
    }
    let file = path
        .strip_prefix(dataset)
        .or(path.strip_prefix(model))
        .and_then(|path| {
            path.strip_prefix("/resolve/")?
                .strip_prefix(COMMIT)?
                .strip_prefix('/')
        });
    let Some(bytes) = file.and_then(|file| files.get(file)) else {
        return status("404 Not Found");
    };
    let etag = if bytes.starts_with(b"evil") {
        "../../../evil"
    } else {
        ""
    };
    let etag = format!("{etag}{}", file.unwrap().replace('/', "-"));
    let body = &bytes[from.min(bytes.len())..];
    let mut out = format!(
        "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\nContent-Range: bytes {from}-{}/{}\r\nETag: \"{etag}\"\r\nX-Repo-Commit: {COMMIT}\r\n\r\n",
        body.len(),
        bytes.len().saturating_sub(1),
        bytes.len(),
    )
    .into_bytes();
    out.extend(body);
    out
}

const SINGLE: &[(&str, &[u8])] = &[
    ("README.md", b"# text"),
    ("chat_template.jinja", b"{{ messages }}"),
    ("config.json", b"{}"),
    ("model.safetensors", b"weights"),
    ("onnx/model.onnx", b"other"),
    ("pytorch_model.bin", b"pickle"),
    ("tokenizer.json", b"{\"a\": 1}"),
    ("training_args.bin", b"pickle"),
];

#[derive(Default)]
struct Recorder(Vec<String>);

impl DownloadProgress for Recorder {
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
    fn using_cache(&mut self, _: &HubError) {
        self.0.push("cache".into());
    }
}

#[test]
fn only_safe_files_are_fetched_and_only_once() {
    let hub = FakeHub::new(SINGLE);
    let path = hub.resolve("org/model").unwrap();
    assert!(path.ends_with(format!("models--org--model/snapshots/{COMMIT}")));
    let expected = [
        "chat_template.jinja",
        "config.json",
        "tokenizer.json",
        "model.safetensors",
    ];
    assert_eq!(hub.fetched(), expected);
    for file in expected {
        let bytes = SINGLE.iter().find(|(name, _)| *name == file).unwrap().1;
        assert_eq!(fs::read(path.join(file)).unwrap(), bytes);
    }
    assert_eq!(fs::read_dir(&path).unwrap().count(), expected.len());
    assert_eq!(hub.resolve("org/model").unwrap(), path);
    assert!(hub.fetched().is_empty());
    let branch = hub.cache.path().join("models--org--model/refs/main");
    assert_eq!(fs::read_to_string(branch).unwrap(), COMMIT);
}

#[test]
fn progress_adds_up() {
    let hub = FakeHub::new(&[("config.json", b"{}"), ("model.safetensors", b"weights")]);
    let mut progress = Recorder::default();
    resolve_model("org/model", &hub.options(), &mut progress).unwrap();
    let expected = [
        "start config.json 2",
        "advance 2",
        "finish config.json",
        "start model.safetensors 7",
        "advance 7",
        "finish model.safetensors",
    ];
    assert_eq!(progress.0, expected);
}

#[test]
fn shards_are_those_of_the_index() {
    let index = br#"{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}"#;
    let hub = FakeHub::new(&[
        ("config.json", b"{}"),
        ("consolidated.safetensors", b"again"),
        ("model.safetensors.index.json", index),
        ("one.safetensors", b"1"),
        ("two.safetensors", b"2"),
    ]);
    hub.resolve("org/model").unwrap();
    assert_eq!(
        hub.fetched(),
        [
            "config.json",
            "model.safetensors.index.json",
            "one.safetensors",
            "two.safetensors"
        ]
    );
}

#[test]
fn hostile_answers_stay_inside_the_cache() {
    let index = br#"{"weight_map": {"a": "../one.safetensors"}}"#;
    let hub = FakeHub::new(&[
        ("config.json", b"{}"),
        ("model.safetensors.index.json", index),
    ]);
    assert!(matches!(
        hub.resolve("org/model"),
        Err(HubError::Index { .. })
    ));
    let hub = FakeHub::new(&[("config.json", b"evil"), ("model.safetensors", b"")]);
    assert!(matches!(
        hub.resolve("org/model"),
        Err(HubError::Answer { .. })
    ));
    let hub = FakeHub::new(&[("bad-sha", b""), ("model.safetensors", b"")]);
    assert!(matches!(
        hub.resolve("org/model"),
        Err(HubError::Answer { .. })
    ));
}

#[test]
fn offline_uses_the_cache_or_says_so() {
    let hub = FakeHub::new(SINGLE);
    let offline = HubOptions {
        offline: true,
        ..hub.options()
    };
    let missing = resolve_model("org/model", &offline, &mut ()).unwrap_err();
    assert!(matches!(missing, HubError::Offline { .. }), "{missing}");
    let path = hub.resolve("org/model").unwrap();
    hub.fetched();
    for name in ["org/model", &format!("org/model@{COMMIT}")] {
        assert_eq!(resolve_model(name, &offline, &mut ()).unwrap(), path);
    }
    assert!(resolve_model("org/model@v1", &offline, &mut ()).is_err());
    assert!(hub.requests.lock().unwrap().is_empty());
    fs::remove_file(path.join("model.safetensors")).unwrap();
    assert!(resolve_model("org/model", &offline, &mut ()).is_err());
}

#[test]
fn a_dead_hub_is_no_obstacle_where_there_is_a_copy() {
    let hub = FakeHub::new(SINGLE);
    let path = hub.resolve("org/model").unwrap();
    // A port that nothing listens on any more.
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let dead = HubOptions {
        endpoint: format!("http://{port}"),
        ..hub.options()
    };
    let mut progress = Recorder::default();
    assert_eq!(
        resolve_model("org/model", &dead, &mut progress).unwrap(),
        path
    );
    assert_eq!(progress.0, ["cache"]);
    let error = resolve_model("org/other", &dead, &mut ()).unwrap_err();
    assert!(matches!(error, HubError::Request { .. }), "{error}");
}

#[test]
fn refusals_are_told_apart() {
    let hub = FakeHub::new(SINGLE);
    let unknown = hub.resolve("org/nothing").unwrap_err();
    assert!(
        matches!(unknown, HubError::UnknownModel { .. }),
        "{unknown}"
    );
    let gated = hub.resolve("gated/model").unwrap_err();
    // The fake hub refuses whatever lies below that organisation.
    assert!(
        matches!(gated, HubError::Forbidden { status: 401, .. }),
        "{gated}"
    );
    assert!(gated.to_string().contains("HF_TOKEN"));
    assert!(hub.resolve("org/model@v1").is_ok());
    assert!(hub.resolve("org/model@v2").is_err());
    let pickle = FakeHub::new(&[("config.json", b"{}"), ("pytorch_model.bin", b"")]);
    let error = pickle.resolve("org/model").unwrap_err();
    assert!(
        error.to_string().contains("pickle (pytorch_model.bin)"),
        "{error}"
    );
    assert!(pickle.fetched().is_empty());
    let gguf = FakeHub::new(&[("m.gguf", b"")]);
    let error = gguf.resolve("org/model").unwrap_err();
    assert!(error.to_string().contains("GGUF"), "{error}");
}

#[test]
fn interrupted_download_is_taken_up_again() {
    let hub = FakeHub::new(&[("config.json", b"{}"), ("model.safetensors", b"weights")]);
    let blobs = hub.cache.path().join("models--org--model/blobs");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join("model.part"), b"wei").unwrap();
    let path = hub.resolve("org/model").unwrap();
    assert_eq!(
        fs::read(path.join("model.safetensors")).unwrap(),
        b"weights"
    );
}

#[test]
fn paths_are_taken_as_they_are() {
    let root = tempfile::tempdir().unwrap();
    let hub = FakeHub::new(SINGLE);
    let resolve = |path: &Path| hub.resolve(path.to_str().unwrap());
    let directory = root.path().join("my-model");
    fs::create_dir(&directory).unwrap();
    let gguf = root.path().join("m.GGUF");
    fs::write(&gguf, "").unwrap();
    assert_eq!(resolve(&directory).unwrap(), directory);
    assert_eq!(resolve(&gguf).unwrap(), gguf);
    fs::write(root.path().join("x.safetensors"), "").unwrap();
    let error = resolve(&root.path().join("x.safetensors")).unwrap_err();
    assert!(matches!(error, HubError::NotAModel { .. }));
    match resolve(&root.path().join("my-modle")).unwrap_err() {
        HubError::NotFound { nearest, .. } => assert_eq!(nearest, Some(directory)),
        other => panic!("{other:?}"),
    }
    assert!(hub.requests.lock().unwrap().is_empty());
}

#[test]
fn hub_names() {
    let name = HubName::parse("meta-llama/Llama-3.1-8B@refs/pr/1").unwrap();
    assert_eq!(name.repository(), "meta-llama/Llama-3.1-8B");
    assert_eq!(name.revision(), "refs/pr/1");
    assert_eq!(HubName::parse("a/b").unwrap().revision(), "main");
    for other in [
        "gpt2", "a/b/c", "./a", "../a", "/a/b", "~/a", "a/", "/b", "a/b@", "a/b@../x", "a b/c",
        "a/b.gguf", "a/..", "-a/b", "a/b@/x", "a\\b/c", "",
    ] {
        assert_eq!(HubName::parse(other), None, "{other}");
    }
}

#[test]
fn options_follow_the_environment() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("token"), "from-file\n").unwrap();
    let options = |pairs: &[(&str, &str)]| {
        let map: BTreeMap<_, _> = pairs.iter().copied().collect();
        HubOptions::from_variables(|name| map.get(name).map(OsString::from))
    };
    let plain = options(&[("HOME", "/home/x")]);
    assert_eq!(plain.cache, Path::new("/home/x/.cache/huggingface/hub"));
    assert_eq!(plain.endpoint, "https://huggingface.co");
    assert_eq!((plain.token, plain.offline), (None, false));
    let home = root.path().to_str().unwrap();
    let full = options(&[
        ("HF_HOME", home),
        ("HF_HUB_OFFLINE", "1"),
        ("HF_ENDPOINT", "http://mirror/"),
    ]);
    assert_eq!(full.cache, root.path().join("hub"));
    assert_eq!(full.endpoint, "http://mirror");
    assert_eq!(full.token.as_deref(), Some("from-file"));
    assert!(full.offline);
    let token = options(&[
        ("HF_HOME", home),
        ("HF_TOKEN", "mine"),
        ("HF_HUB_CACHE", "/c"),
    ]);
    assert_eq!(token.token.as_deref(), Some("mine"));
    assert_eq!(token.cache, Path::new("/c"));
    assert!(!format!("{token:?}").contains("mine"));
    assert!(!options(&[("HF_HUB_OFFLINE", "0")]).offline);
}

#[test]
fn data_sets_are_fetched_and_found_again_offline() {
    let hub = FakeHub::new(&[
        ("data/train-00000-of-00002.parquet", b"one"),
        ("data/train-00001-of-00002.parquet", b"two"),
        ("data/test-00000-of-00001.parquet", b"three"),
        ("script.py", b"import os"),
    ]);
    let resolve = |name: &str, options: &HubOptions| resolve_dataset(name, options, &mut ());
    let paths = resolve("org/model", &hub.options()).unwrap();
    let contents: Vec<_> = paths.iter().map(|path| fs::read(path).unwrap()).collect();
    assert_eq!(contents, [b"one", b"two"]);
    assert!(paths[0].to_str().unwrap().contains("datasets--org--model"));
    let mut fetched = hub.fetched();
    fetched.sort();
    fetched.dedup();
    assert_eq!(
        fetched,
        [
            "data/train-00000-of-00002.parquet",
            "data/train-00001-of-00002.parquet"
        ]
    );
    let offline = HubOptions {
        offline: true,
        ..hub.options()
    };
    assert_eq!(resolve("org/model", &offline).unwrap(), paths);
    assert!(matches!(
        resolve("org/model:test", &offline),
        Err(HubError::Offline { .. })
    ));
    // A part that is gone makes the copy useless.
    fs::remove_file(&paths[1]).unwrap();
    assert!(matches!(
        resolve("org/model", &offline),
        Err(HubError::Offline { .. })
    ));
    let nowhere = HubOptions {
        endpoint: "http://127.0.0.1:1".into(),
        ..hub.options()
    };
    assert!(matches!(
        resolve("org/model", &nowhere),
        Err(HubError::Request { .. })
    ));
    assert_eq!(resolve("org/model", &hub.options()).unwrap(), paths);
    assert_eq!(resolve("org/model", &nowhere).unwrap(), paths);
}

#[test]
fn data_sets_that_cannot_be_had_are_told_apart() {
    let hub = FakeHub::new(&[("train.jsonl", b"{}")]);
    let message = |name: &str| {
        let error = resolve_dataset(name, &hub.options(), &mut ()).unwrap_err();
        error.to_string().replace(&hub.endpoint, "HUB")
    };
    assert_eq!(
        message("org/other"),
        "HUB has no data set org/other; check its spelling (a private one needs HF_TOKEN)"
    );
    assert_eq!(
        message("no id"),
        "\"no id\" is no hub id of a data set; expected organisation/name, with :split or :config/split \
         behind where it has several"
    );
    let refused = HubOptions {
        token: None,
        ..hub.options()
    };
    let error = resolve_dataset("org/model", &refused, &mut ()).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("refuses datasets/org/model (HTTP 401)"),
        "{error}"
    );
}
