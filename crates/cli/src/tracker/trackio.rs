//! A Trackio server.
//!
//! # Source
//! `trackio/server.py` of Trackio 0.43: `POST /api/bulk_log`, where an entry with a `log_id` that is known is not taken twice.

use std::time::{SystemTime, UNIX_EPOCH};

use backdraft_recipe::TrackerKind;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::client::{Client, Failure};
use super::{About, Ending, Numbers, Server};

pub(super) struct Trackio {
    client: Client,
    about: About,
    /// Name and id of the run.
    run: Option<(String, String)>,
}

impl Trackio {
    /// `variable` gives what the environment says.
    pub(super) fn new(about: About, variable: impl Fn(&str) -> Option<String>) -> Self {
        let token = variable("TRACKIO_WRITE_TOKEN").filter(|token| !token.is_empty());
        let headers = token.map(|token| ("X-Trackio-Write-Token", token));
        Self {
            client: Client::new(&about.url, headers.into_iter().collect()),
            about,
            run: None,
        }
    }

    fn log(&self, entries: &[Value]) -> Result<(), Failure> {
        let body = json!({ "logs": entries, "hf_token": null });
        let answer = self.client.post("/api/bulk_log", &body)?;
        match answer["error"].as_str() {
            Some(error) => Err(Failure::new(format!("Trackio says: {error}"))),
            None => Ok(()),
        }
    }
}

impl Server for Trackio {
    fn open(&mut self) -> Result<(), Failure> {
        let kind = TrackerKind::Trackio;
        let run = match self.about.known(kind) {
            Some(known) => (known.run_name, known.run_id),
            None => {
                let run = (self.about.run_name.clone(), new_id(&self.about));
                let noted = self.about.note(kind, &run.0, &run.1);
                noted.map_err(|error| Failure::new(error.to_string()))?;
                run
            }
        };
        self.run = Some(run);
        Ok(())
    }

    fn send(&mut self, batch: &[Numbers]) -> Result<(), Failure> {
        let Some((run, run_id)) = &self.run else {
            return Ok(());
        };
        let settings = self.about.settings.iter();
        let config: Map<String, Value> = settings
            .map(|(key, value)| (key.clone(), value.as_str().into()))
            .collect();
        let entries = batch.iter().map(|numbers| {
            let metrics: Map<String, Value> = (numbers.values.iter())
                .map(|(name, value)| (name.clone(), (*value).into()))
                .collect();
            // A step is told by its training loss, an evaluation is not.
            let what = match metrics.contains_key("eval/loss") {
                true => "eval",
                false => "step",
            };
            json!({
                "project": self.about.experiment,
                "run": run,
                "run_id": run_id,
                "metrics": metrics,
                "step": numbers.step,
                "config": config,
                "log_id": format!("{run_id}-{what}-{}", numbers.step),
            })
        });
        self.log(&entries.collect::<Vec<_>>())
    }

    /// Trackio's runs have no end of their own.
    fn close(&mut self, _: Ending) -> Result<(), Failure> {
        Ok(())
    }
}

/// An id that no other run has: 32 hexadecimal digits.
fn new_id(about: &About) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let mut hash = Sha256::new();
    hash.update(now.map_or(0, |now| now.as_nanos()).to_le_bytes());
    hash.update(std::process::id().to_le_bytes());
    hash.update(about.output_dir.to_string_lossy().as_bytes());
    let digest = hash.finalize();
    digest[..16]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
