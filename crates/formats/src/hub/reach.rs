//! Whether the hub answers.

use std::time::{Duration, Instant};

use ureq::Agent;

use super::{HubOptions, NetworkError};

/// How long it may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Asks the hub for nothing in particular: how long it took to answer. What it answers does not matter.
///
/// # Errors
/// No answer within five seconds, or none at all.
pub fn reach(options: &HubOptions) -> Result<Duration, NetworkError> {
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .timeout_global(Some(TIMEOUT))
        .user_agent(concat!("backdraft/", env!("CARGO_PKG_VERSION")))
        .build();
    let began = Instant::now();
    let asked = Agent::from(config).head(&options.endpoint).call();
    asked.map_err(NetworkError::from)?;
    Ok(began.elapsed())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    fn options(port: u16) -> HubOptions {
        HubOptions {
            endpoint: format!("http://127.0.0.1:{port}"),
            cache: "cache".into(),
            token: None,
            offline: false,
        }
    }

    #[test]
    fn any_answer_is_one_and_none_is_an_error() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 1024]).unwrap();
            let answer = b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n";
            stream.write_all(answer).unwrap();
        });
        assert!(reach(&options(port)).is_ok());
        server.join().unwrap();
        // The listener is gone.
        assert!(reach(&options(port)).is_err());
    }
}
