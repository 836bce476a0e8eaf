//! Words for errors, machines and devices.

use std::fs;

use backdraft_data::count;

/// An error with what caused it, on one line.
#[must_use]
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

/// Lower-case hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The machine's name.
#[must_use]
pub fn host() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .or_else(|| std::env::var("HOSTNAME").ok())
        .or_else(|| std::env::var("COMPUTERNAME").ok())
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "this machine".to_owned())
}

/// The name of the processor in what earlier versions wrote.
const FLEX: &str = "Device<Flex(Cpu)>";

/// A device by its name now, whatever version wrote it.
#[must_use]
pub fn shown_device(written: &str) -> &str {
    if written == FLEX { "cpu" } else { written }
}

/// What computed, as a run says it, whatever version wrote it.
#[must_use]
pub fn shown_computer(written: &str) -> String {
    let Some(threads) = written.strip_prefix(FLEX) else {
        return written.to_owned();
    };
    let number = threads.trim_start_matches(", ").split(' ').next();
    let number = number.and_then(|number| number.parse().ok());
    format!("cpu, {}", count(number.unwrap_or(0), "thread"))
}
