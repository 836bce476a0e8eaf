use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;

use backdraft_recipe::Recipe;
use serde_json::{Value, json};

use super::*;

/// A request as it arrived.
#[derive(Clone, Debug)]
struct Request {
    line: String,
    headers: BTreeMap<String, String>,
    body: Value,
}

/// A server on this machine that answers as `answer` says, and keeps what it was asked.
struct Fake {
    url: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Fake {
    fn start(answer: impl Fn(usize, &Request) -> (u16, String) + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let kept = requests.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                while let Some(request) = read(&stream) {
                    let number = {
                        let mut kept = kept.lock().unwrap();
                        kept.push(request.clone());
                        kept.len() - 1
                    };
                    let (status, body) = answer(number, &request);
                    let text = format!(
                        "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                        body.len()
                    );
                    if (&stream).write_all(text.as_bytes()).is_err() {
                        break;
                    }
                }
            }
        });
        Self { url, requests }
    }

    fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// Method and path of each request.
    fn lines(&self) -> Vec<String> {
        self.requests().into_iter().map(|it| it.line).collect()
    }
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(stream);
    let mut first = String::new();
    reader.read_line(&mut first).ok().filter(|read| *read > 0)?;
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            break;
        };
        headers.insert(name.to_lowercase(), value.to_owned());
    }
    let length = headers.get("content-length").and_then(|it| it.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body).ok()?;
    Some(Request {
        line: first.rsplit_once(' ').map(|(line, _)| line.to_owned())?,
        headers,
        body: serde_json::from_slice(&body).unwrap_or(Value::Null),
    })
}

/// As MLflow 3 answers: its experiment is not there yet.
fn mlflow(_: usize, request: &Request) -> (u16, String) {
    let body = match request.line.as_str() {
        line if line.contains("get-by-name") => {
            let error =
                json!({ "error_code": "RESOURCE_DOES_NOT_EXIST", "message": "No Experiment" });
            return (404, error.to_string());
        }
        line if line.contains("experiments/create") => json!({ "experiment_id": "7" }),
        line if line.contains("runs/create") => json!({ "run": { "info": { "run_id": "abc" } } }),
        _ => json!({}),
    };
    (200, body.to_string())
}

fn about(url: &str, output_dir: &Path) -> About {
    let text = format!(
        "model = \"a/b\"\noutput_dir = \"{}\"\n[data]\ntrain = \"t.jsonl\"\n[tracker]\nkind = \"mlflow\"\nurl = \"{url}\"\n",
        output_dir.display()
    );
    let recipe = Recipe::from_toml(&text, Path::new("/r"), &[]).unwrap();
    About::of(&recipe, recipe.tracker.as_ref().unwrap())
}

fn step(step: usize) -> StepReport {
    StepReport {
        step,
        epoch: 0.5,
        loss: 2.0 / step as f64,
        penalized_loss: None,
        grad_norm: f64::NAN,
        learning_rate: 1e-4,
        tokens: 100,
        supervised_tokens: 50,
        seconds: 0.5,
        elapsed: 1.0,
        answers: None,
    }
}

/// What the run hears.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<String>>>);

impl Reporter for Heard {
    fn warn(&mut self, message: &str) {
        self.0.lock().unwrap().push(message.to_owned());
    }
}

/// Tells of a run of some steps, and gives the warnings.
fn tell(server: Box<dyn Server>, steps: usize, ending: Ending, patience: u64) -> Vec<String> {
    let tracking = Tracking::start(server, Duration::from_millis(patience));
    let heard = Heard::default();
    let inner = TrackedReporter {
        inner: Box::new(heard.clone()),
        queue: tracking.queue.clone(),
        notes: tracking.notes.clone(),
        full: false,
    };
    let mut reporter = inner;
    reporter.send(Told::Begun);
    for number in 1..=steps {
        reporter.step(&step(number));
    }
    drop(reporter);
    let mut notes = heard.0.lock().unwrap().clone();
    notes.extend(tracking.end(ending));
    notes
}

#[test]
fn mlflow_has_the_run_and_a_resumed_one_goes_on_in_it() {
    let root = tempfile::tempdir().unwrap();
    let fake = Fake::start(mlflow);
    let secret = |name: &str| (name == "MLFLOW_TRACKING_TOKEN").then(|| "s3cretToken".to_owned());
    let server = || Box::new(Mlflow::new(about(&fake.url, root.path()), secret));
    assert_eq!(tell(server(), 3, Ending::Stopped, 9000), [""; 0]);
    let first = fake.requests();
    let lines = fake.lines();
    assert!(
        lines[0]
            .starts_with("GET /api/2.0/mlflow/experiments/get-by-name?experiment_name=backdraft")
    );
    assert_eq!(lines[1], "POST /api/2.0/mlflow/experiments/create");
    assert_eq!(lines[2], "POST /api/2.0/mlflow/runs/create");
    assert!(
        first
            .iter()
            .all(|it| it.headers["authorization"] == "Bearer s3cretToken")
    );
    assert_eq!(first[2].body["experiment_id"], "7");
    assert_eq!(
        first[2].body["run_name"],
        root.path().file_name().unwrap().to_str().unwrap()
    );
    let of = |key: &str| -> Vec<Value> {
        let batches = first
            .iter()
            .filter(|it| it.line.ends_with("runs/log-batch"));
        batches
            .flat_map(|it| it.body[key].as_array().cloned().unwrap_or_default())
            .collect()
    };
    let parameters = of("params");
    let model = json!({ "key": "model", "value": "a/b" });
    assert!(parameters.contains(&model), "{parameters:?}");
    let metrics = of("metrics");
    // A norm that is no number is left out.
    assert!(metrics.iter().all(|it| it["key"] != "train/grad_norm"));
    let losses: Vec<(u64, f64)> = metrics
        .iter()
        .filter(|it| it["key"] == "train/loss")
        .map(|it| (it["step"].as_u64().unwrap(), it["value"].as_f64().unwrap()))
        .collect();
    assert_eq!(losses, [(1, 2.0), (2, 1.0), (3, 2.0 / 3.0)]);
    assert!(metrics[0]["timestamp"].as_u64().unwrap() > 1_600_000_000_000);
    let last = first.last().unwrap();
    assert_eq!(last.line, "POST /api/2.0/mlflow/runs/update");
    assert_eq!(
        (&last.body["run_id"], &last.body["status"]),
        (&json!("abc"), &json!("KILLED"))
    );

    // Nothing that lets one in is on the disk.
    let noted = std::fs::read_to_string(root.path().join("tracker.json")).unwrap();
    assert!(
        noted.contains("\"run_id\": \"abc\"") && !noted.contains("s3cret"),
        "{noted}"
    );
    assert_eq!(tell(server(), 1, Ending::Finished, 9000), [""; 0]);
    let again = &fake.requests()[first.len()..];
    assert_eq!(again[0].line, "POST /api/2.0/mlflow/runs/update");
    assert_eq!(
        (&again[0].body["run_id"], &again[0].body["status"]),
        (&json!("abc"), &json!("RUNNING"))
    );
    assert_eq!(again.last().unwrap().body["status"], "FINISHED");
    assert!(again.iter().all(|it| !it.line.contains("create")));
}

#[test]
fn a_name_and_a_password_come_from_the_environment() {
    let root = tempfile::tempdir().unwrap();
    let fake = Fake::start(mlflow);
    let secret = |name: &str| match name {
        "MLFLOW_TRACKING_USERNAME" => Some("Aladdin".to_owned()),
        "MLFLOW_TRACKING_PASSWORD" => Some("open sesame".to_owned()),
        _ => None,
    };
    let server = Box::new(Mlflow::new(about(&fake.url, root.path()), secret));
    tell(server, 0, Ending::Failed, 9000);
    // RFC 7617 has this pair.
    let expected = "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==";
    assert_eq!(fake.requests()[0].headers["authorization"], expected);
    assert_eq!(fake.requests().last().unwrap().body["status"], "FAILED");
}

#[test]
fn trackio_has_steps_once_and_a_resumed_run_goes_on_in_its_run() {
    let root = tempfile::tempdir().unwrap();
    let fake = Fake::start(|_, _| (200, json!({ "data": null }).to_string()));
    let secret = |name: &str| (name == "TRACKIO_WRITE_TOKEN").then(|| "w-token".to_owned());
    let server = || Box::new(Trackio::new(about(&fake.url, root.path()), secret));
    assert_eq!(tell(server(), 2, Ending::Finished, 9000), [""; 0]);
    assert_eq!(tell(server(), 1, Ending::Finished, 9000), [""; 0]);
    let requests = fake.requests();
    assert!(requests.iter().all(|it| it.line == "POST /api/bulk_log"));
    assert!(
        requests
            .iter()
            .all(|it| it.headers["x-trackio-write-token"] == "w-token")
    );
    let logs: Vec<Value> = requests
        .iter()
        .flat_map(|it| it.body["logs"].as_array().unwrap().clone())
        .collect();
    assert_eq!(logs.len(), 3);
    assert_eq!(
        (&logs[1]["step"], &logs[1]["metrics"]["train/loss"]),
        (&json!(2), &json!(1.0))
    );
    assert_eq!(logs[0]["project"], "backdraft");
    assert_eq!(logs[0]["config"]["model"], "a/b");
    // The step that is told again has the id that it had.
    assert_eq!(
        (&logs[2]["run_id"], &logs[2]["log_id"]),
        (&logs[0]["run_id"], &logs[0]["log_id"])
    );
    assert_ne!(logs[0]["log_id"], logs[1]["log_id"]);
    let noted = std::fs::read_to_string(root.path().join("tracker.json")).unwrap();
    assert!(!noted.contains("w-token"), "{noted}");
}

#[test]
fn what_a_server_refuses_is_said_once_and_without_the_secret() {
    let root = tempfile::tempdir().unwrap();
    let fake = Fake::start(|_, request| {
        let token = &request.headers["x-trackio-write-token"];
        (
            401,
            json!({ "error": format!("no such token: {token}") }).to_string(),
        )
    });
    let secret = |_: &str| Some("verysecret".to_owned());
    let server = Box::new(Trackio::new(about(&fake.url, root.path()), secret));
    let notes = tell(server, 3, Ending::Finished, 9000);
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert!(
        notes[0].contains("nothing more is sent to the tracker"),
        "{notes:?}"
    );
    assert!(
        notes[0].contains("answers 401") && notes[0].contains("no such token: …"),
        "{notes:?}"
    );
    assert!(!notes[0].contains("verysecret"), "{notes:?}");
}

#[test]
fn a_server_that_is_away_for_a_while_gets_everything_later() {
    let root = tempfile::tempdir().unwrap();
    let fake = Fake::start(|number, request| match number {
        0 | 2 => (503, "busy".to_owned()),
        number => mlflow(number, request),
    });
    let server = Box::new(Mlflow::new(about(&fake.url, root.path()), |_| None));
    let notes = tell(server, 2, Ending::Finished, 20_000);
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert!(
        notes[0].contains("answers 503: busy") && notes[0].contains("tried again"),
        "{notes:?}"
    );
    let requests = fake.requests();
    let metrics = requests
        .iter()
        .filter_map(|it| it.body["metrics"].as_array());
    let losses = metrics.flatten().filter(|it| it["key"] == "train/loss");
    assert_eq!(losses.count(), 2);
    assert_eq!(requests.last().unwrap().body["status"], "FINISHED");
}

#[test]
fn a_server_that_never_answers_costs_no_step_and_little_at_the_end() {
    let root = tempfile::tempdir().unwrap();
    // Connections are taken by the system, and nobody reads them.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = Box::new(Trackio::new(about(&url, root.path()), |_| None));
    let began = Instant::now();
    let notes = tell(server, 3 * QUEUE, Ending::Finished, 300);
    assert!(
        began.elapsed() < Duration::from_secs(8),
        "{:?}",
        began.elapsed()
    );
    let told = notes.join("\n");
    assert!(told.contains("slower than the run"), "{told}");
    assert!(told.contains("did not take everything within"), "{told}");
    assert_eq!(notes.len(), 2, "{told}");
}

#[test]
fn a_run_that_never_begins_is_told_nowhere() {
    let root = tempfile::tempdir().unwrap();
    let fake = Fake::start(mlflow);
    let server = Box::new(Mlflow::new(about(&fake.url, root.path()), |_| None));
    let tracking = Tracking::start(server, Duration::from_secs(9));
    assert!(tracking.end(Ending::Failed).is_empty());
    assert!(fake.requests().is_empty() && !root.path().join("tracker.json").exists());
}
