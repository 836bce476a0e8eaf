//! Who may ask.
//!
//! A server on loopback can be reached by every page that the user's browser shows. A page of another origin sends that
//! origin, and is refused; a page whose name was bound to a loopback address after it was loaded sends its own name as
//! host, and is refused too.

use std::net::IpAddr;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Response, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::IntoResponse;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::api_error::ApiError;

/// What requests must show.
#[derive(Clone, Debug)]
pub(crate) struct Guard {
    /// Hash of the API key: of one length whatever the key is.
    key: Option<[u8; 32]>,
    /// Whether only this machine can reach the server.
    loopback: bool,
}

impl Guard {
    pub(crate) fn new(api_key: Option<&str>, loopback: bool) -> Self {
        Self {
            key: api_key.map(hash),
            loopback,
        }
    }

    /// Whether clients need a key.
    pub(crate) const fn wants_key(&self) -> bool {
        self.key.is_some()
    }

    fn check(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), ApiError> {
        let forbidden = |message| Err(ApiError::new(StatusCode::FORBIDDEN, "forbidden", message));
        let host = uri.host().map(str::to_owned).or_else(|| {
            let host = headers.get(header::HOST)?.to_str().ok()?;
            Some(name_of(host).to_owned())
        });
        if self.loopback && !host.as_deref().is_some_and(is_loopback) {
            return forbidden(
                "the Host header names another machine: this server answers as localhost only",
            );
        }
        if let Some(origin) = headers.get(header::ORIGIN) {
            let here = origin.to_str().ok().and_then(|origin| {
                let authority = origin.split_once("://")?.1;
                let host = headers.get(header::HOST)?.to_str().ok()?;
                Some(authority.eq_ignore_ascii_case(host))
            });
            if here != Some(true) {
                return forbidden("pages of other origins may not use this server");
            }
        }
        if uri.path().starts_with("/v1/") {
            self.check_key(headers)?;
        }
        Ok(())
    }

    fn check_key(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let Some(expected) = &self.key else {
            return Ok(());
        };
        let given = headers.get(header::AUTHORIZATION);
        let given = given.and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
        match given {
            Some(given) if hash(given.trim()).ct_eq(expected).into() => Ok(()),
            Some(_) => Err(ApiError::new(
                StatusCode::UNAUTHORIZED,
                "invalid_api_key",
                "the API key is not this server's",
            )),
            None => Err(ApiError::new(
                StatusCode::UNAUTHORIZED,
                "invalid_api_key",
                "this server needs its API key, as `Authorization: Bearer KEY`",
            )),
        }
    }
}

fn hash(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

/// A host without its port.
fn name_of(host: &str) -> &str {
    match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.split(':').next().unwrap_or_default(),
    }
}

fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || host
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

/// Lets through what may ask.
pub(crate) async fn guard(
    State(guard): State<Guard>,
    request: Request,
    next: Next,
) -> Response<Body> {
    match guard.check(request.uri(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(guard: &Guard, path: &str, headers: &[(&str, &str)]) -> Option<u16> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            let name: axum::http::HeaderName = name.parse().unwrap();
            map.insert(name, value.parse().unwrap());
        }
        let checked = guard.check(&path.parse().unwrap(), &map);
        checked.err().map(|error| error.status.as_u16())
    }

    #[test]
    fn only_this_machine_and_its_own_page_may_ask() {
        let guard = Guard::new(None, true);
        for host in [
            "localhost",
            "localhost:8080",
            "127.0.0.1:80",
            "[::1]:8080",
            "LOCALHOST",
        ] {
            assert_eq!(check(&guard, "/", &[("host", host)]), None, "{host}");
        }
        for host in [
            "example.com",
            "127.0.0.1.example.com",
            "localhost.example.com:80",
            "",
            "192.168.1.2",
        ] {
            assert_eq!(check(&guard, "/", &[("host", host)]), Some(403), "{host}");
        }
        assert_eq!(check(&guard, "/", &[]), Some(403));
        let from = |origin| {
            check(
                &guard,
                "/v1/models",
                &[("host", "localhost:8080"), ("origin", origin)],
            )
        };
        assert_eq!(from("http://localhost:8080"), None);
        for origin in [
            "http://localhost:9",
            "http://example.com",
            "null",
            "http://localhost:8080.example.com",
        ] {
            assert_eq!(from(origin), Some(403), "{origin}");
        }
        let open = Guard::new(None, false);
        assert_eq!(check(&open, "/", &[("host", "example.com")]), None);
    }

    #[test]
    fn a_key_is_asked_for_where_models_are_used() {
        let guard = Guard::new(Some("secret"), false);
        let with = |path: &str, value: &str| check(&guard, path, &[("authorization", value)]);
        assert_eq!(with("/v1/models", "Bearer secret"), None);
        for value in [
            "Bearer secre",
            "Bearer secret2",
            "secret",
            "Basic secret",
            "Bearer ",
        ] {
            assert_eq!(with("/v1/models", value), Some(401), "{value}");
        }
        assert_eq!(check(&guard, "/v1/chat/completions", &[]), Some(401));
        assert_eq!(check(&guard, "/", &[]), None);
    }
}
