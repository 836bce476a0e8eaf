//! SmolLM2-135M-Instruct, the small real model of the tests.

use std::env;
use std::path::PathBuf;

const FILE: &str = "backdraft/models/SmolLM2-135M-Instruct.Q4_1.gguf";

/// Where its weights are: the file that the environment variable `BACKDRAFT_SMOLLM2` names, or the one
/// in the cache directory that `backdraft quickstart` fills. `Err` says where they were looked for.
///
/// # Errors
/// If they are not there.
pub fn find() -> Result<PathBuf, String> {
    let variable = |name| env::var_os(name).map(PathBuf::from);
    let path = variable("BACKDRAFT_SMOLLM2")
        .or_else(|| Some(variable("XDG_CACHE_HOME")?.join(FILE)))
        .or_else(|| Some(variable("HOME")?.join(".cache").join(FILE)))
        .ok_or("neither BACKDRAFT_SMOLLM2 nor HOME is set")?;
    if path.is_file() {
        Ok(path)
    } else {
        Err(format!("{} is not there", path.display()))
    }
}
