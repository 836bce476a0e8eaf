//! MLflow's tracking server.
//!
//! # Source
//! MLflow's REST interface, version 2.0: `experiments/get-by-name`, `experiments/create`, `runs/create`, `runs/update`,
//! `runs/log-batch`.

use backdraft_recipe::TrackerKind;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::client::{Client, Failure};
use super::{About, Ending, Numbers, Server, now};

/// Of one request: metrics, parameters, and characters of a parameter.
const METRICS: usize = 1000;
const PARAMETERS: usize = 100;
const LONGEST_VALUE: usize = 6000;

pub(super) struct Mlflow {
    client: Client,
    about: About,
    run_id: Option<String>,
    /// How many of the settings it has.
    logged: usize,
}

impl Mlflow {
    /// `variable` gives what the environment says.
    pub(super) fn new(about: About, variable: impl Fn(&str) -> Option<String>) -> Self {
        let set = |name| variable(name).filter(|value| !value.is_empty());
        let authorization = match (
            set("MLFLOW_TRACKING_TOKEN"),
            set("MLFLOW_TRACKING_USERNAME"),
            set("MLFLOW_TRACKING_PASSWORD"),
        ) {
            (Some(token), ..) => Some(format!("Bearer {token}")),
            (None, Some(name), Some(password)) => Some(format!(
                "Basic {}",
                STANDARD.encode(format!("{name}:{password}"))
            )),
            _ => None,
        };
        let headers = authorization.map(|value| ("Authorization", value));
        Self {
            client: Client::new(&about.url, headers.into_iter().collect()),
            about,
            run_id: None,
            logged: 0,
        }
    }

    fn experiment(&self) -> Result<String, Failure> {
        let name = &self.about.experiment;
        let path = "/api/2.0/mlflow/experiments/get-by-name";
        let found = self.client.get(path, &[("experiment_name", name)]);
        let id = match found {
            Ok(found) => found["experiment"]["experiment_id"].clone(),
            Err(failure) if failure.status == Some(404) => {
                let path = "/api/2.0/mlflow/experiments/create";
                self.client.post(path, &json!({ "name": name }))?["experiment_id"].clone()
            }
            Err(failure) => return Err(failure),
        };
        text(&id).ok_or_else(|| Failure::new("the server tells no experiment: is it MLflow's?"))
    }

    /// Goes on with the run of an earlier process, or makes one.
    fn begin(&mut self) -> Result<(), Failure> {
        let kind = TrackerKind::Mlflow;
        if let Some(known) = self.about.known(kind) {
            match self.update(&known.run_id, "RUNNING", None) {
                Ok(()) => {
                    self.run_id = Some(known.run_id);
                    self.logged = self.about.settings.len();
                    return Ok(());
                }
                // It was removed there: another one begins.
                Err(failure) if failure.status == Some(404) => {}
                Err(failure) => return Err(failure),
            }
        }
        let experiment = self.experiment()?;
        let body = json!({
            "experiment_id": experiment,
            "run_name": self.about.run_name,
            "start_time": now(),
            "tags": [{ "key": "mlflow.source.name", "value": "backdraft" }],
        });
        let made = self.client.post("/api/2.0/mlflow/runs/create", &body)?;
        let run_id = text(&made["run"]["info"]["run_id"])
            .ok_or_else(|| Failure::new("the server tells no run: is it MLflow's?"))?;
        let noted = self.about.note(kind, &self.about.run_name, &run_id);
        noted.map_err(|error| Failure::new(error.to_string()))?;
        self.run_id = Some(run_id);
        Ok(())
    }

    fn update(&self, run_id: &str, status: &str, end: Option<u64>) -> Result<(), Failure> {
        let mut body = json!({ "run_id": run_id, "status": status });
        if let Some(end) = end {
            body["end_time"] = end.into();
        }
        self.client.post("/api/2.0/mlflow/runs/update", &body)?;
        Ok(())
    }

    fn log(&self, body: &Value) -> Result<(), Failure> {
        self.client.post("/api/2.0/mlflow/runs/log-batch", body)?;
        Ok(())
    }
}

impl Server for Mlflow {
    fn open(&mut self) -> Result<(), Failure> {
        if self.run_id.is_none() {
            self.begin()?;
        }
        while let Some(settings) = self
            .about
            .settings
            .get(self.logged..)
            .filter(|left| !left.is_empty())
        {
            let count = settings.len().min(PARAMETERS);
            let settings = settings[..count].iter().map(|(key, value)| {
                let value: String = value.chars().take(LONGEST_VALUE).collect();
                json!({ "key": key, "value": value })
            });
            let settings: Vec<Value> = settings.collect();
            self.log(&json!({ "run_id": self.run_id, "params": settings }))?;
            self.logged += count;
        }
        Ok(())
    }

    fn send(&mut self, batch: &[Numbers]) -> Result<(), Failure> {
        let metrics: Vec<Value> = batch
            .iter()
            .flat_map(|numbers| {
                numbers.values.iter().map(|(name, value)| {
                    json!({ "key": name, "value": value, "timestamp": numbers.at, "step": numbers.step })
                })
            })
            .collect();
        for metrics in metrics.chunks(METRICS) {
            self.log(&json!({ "run_id": self.run_id, "metrics": metrics }))?;
        }
        Ok(())
    }

    fn close(&mut self, ending: Ending) -> Result<(), Failure> {
        let status = match ending {
            Ending::Finished => "FINISHED",
            Ending::Stopped => "KILLED",
            Ending::Failed => "FAILED",
        };
        match &self.run_id {
            Some(run_id) => self.update(run_id, status, Some(now())),
            None => Ok(()),
        }
    }
}

/// An id, which some servers write as a number.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}
