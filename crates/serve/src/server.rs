//! A bound port, and the loop that accepts connections.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::sync::Semaphore;

use crate::connection::Patient;
use crate::engine::Engine;
use crate::error::ServeError;
use crate::guard::Guard;
use crate::routes::{App, router};
use crate::settings::Settings;

/// Bytes of a request's headers, at most.
const MAX_HEADERS: usize = 64 << 10;

/// A server that has its port and serves nothing yet.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    settings: Settings,
}

impl Server {
    /// Takes a port.
    ///
    /// # Errors
    /// The port cannot be had, or other machines could use the model without a key.
    pub fn bind(host: &str, port: u16, settings: Settings) -> Result<Self, ServeError> {
        let bind = |source| ServeError::Bind {
            address: format!("{host}:{port}"),
            source,
        };
        let listener = TcpListener::bind((host, port)).map_err(bind)?;
        let address = listener.local_addr().map_err(bind)?;
        let open = settings.api_key.is_none() && !settings.allow_unprotected;
        if open && !address.ip().is_loopback() {
            return Err(ServeError::Unprotected { address });
        }
        listener.set_nonblocking(true).map_err(bind)?;
        Ok(Self {
            listener,
            address,
            settings,
        })
    }

    /// What it allows, to be changed before it serves.
    pub const fn settings_mut(&mut self) -> &mut Settings {
        &mut self.settings
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until the program is told to end (Ctrl-C, SIGTERM). What runs then may finish within
    /// [`Settings::grace`], or until the program is told once more. `ready` is called once it can be told.
    ///
    /// # Errors
    /// The runtime cannot be started, or the engine has failed.
    pub fn run(self, engine: Engine, ready: impl FnOnce()) -> Result<(), ServeError> {
        self.run_until(engine, terminated, ready)
    }

    /// As [`run`](Self::run), until what `ends` makes resolves; it is called again for the second time.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_until<F: Future<Output = ()>>(
        self,
        engine: Engine,
        ends: impl Fn() -> F,
        ready: impl FnOnce(),
    ) -> Result<(), ServeError> {
        // One thread does for requests; the others compute.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .max_blocking_threads(4)
            .enable_all()
            .build()
            .map_err(ServeError::Start)?;
        let served = runtime.block_on(self.serve(engine, ends, ready));
        runtime.shutdown_timeout(Duration::from_secs(1));
        served
    }

    async fn serve<F: Future<Output = ()>>(
        self,
        mut engine: Engine,
        ends: impl Fn() -> F,
        ready: impl FnOnce(),
    ) -> Result<(), ServeError> {
        // A signal that comes as soon as somebody knows of the server is heard.
        let ended = ends();
        ready();
        let listener =
            tokio::net::TcpListener::from_std(self.listener).map_err(ServeError::Start)?;
        let guard = Guard::new(
            self.settings.api_key.as_deref(),
            self.address.ip().is_loopback(),
        );
        let engine_ended = engine.ended.take();
        let engine_ended = async {
            match engine_ended {
                // An error says that the other side was dropped, which is what a thread's end does.
                Some(ended) => drop(ended.await),
                None => std::future::pending().await,
            }
        };
        let (grace, patience) = (self.settings.grace, self.settings.patience);
        let room = Arc::new(Semaphore::new(self.settings.connections));
        let app = Arc::new(App::new(engine, self.settings, guard));
        let service = TowerToHyperService::new(router(app.clone()));
        let graceful = GracefulShutdown::new();
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(patience)
            .max_buf_size(MAX_HEADERS);
        let accept = async {
            loop {
                let Ok(place) = room.clone().acquire_owned().await else {
                    return;
                };
                let stream = match listener.accept().await {
                    Ok((stream, _)) => stream,
                    // Of this connection, or no descriptors are left: others will end.
                    Err(_) => {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        continue;
                    }
                };
                // Pieces of an answer are small, and are read as they come.
                let _ = stream.set_nodelay(true);
                let io = TokioIo::new(Patient::new(stream, patience));
                let connection = graceful.watch(http.serve_connection(io, service.clone()));
                tokio::spawn(async move {
                    // A client that breaks off is no news.
                    let _ = connection.await;
                    drop(place);
                });
            }
        };
        tokio::pin!(engine_ended);
        tokio::select! {
            () = accept => {}
            () = ended => {}
            () = &mut engine_ended => return Err(ServeError::EngineStopped),
        }
        app.ending.store(true, Ordering::Relaxed);
        drop(listener);
        let shutdown = graceful.shutdown();
        tokio::pin!(shutdown);
        tokio::select! {
            () = &mut shutdown => return Ok(()),
            () = tokio::time::sleep(grace) => {}
            () = ends() => {}
        }
        app.engine.abort();
        // Those that are cut off may still hear of it.
        let _ = tokio::time::timeout(Duration::from_secs(1), shutdown).await;
        Ok(())
    }
}

/// Resolves when the program is told to end from now on.
#[cfg(unix)]
fn terminated() -> impl Future<Output = ()> {
    use tokio::signal::unix::{Signal, SignalKind, signal};
    async fn heard(signal: std::io::Result<Signal>) {
        match signal {
            Ok(mut signal) => drop(signal.recv().await),
            // It cannot be heard; the program ends by what is not handled.
            Err(_) => std::future::pending().await,
        }
    }
    let [terminate, interrupt] = [SignalKind::terminate(), SignalKind::interrupt()].map(signal);
    async {
        tokio::select! {
            () = heard(terminate) => {}
            () = heard(interrupt) => {}
        }
    }
}

/// Resolves when the program is told to end.
#[cfg(not(unix))]
async fn terminated() {
    if tokio::signal::ctrl_c().await.is_err() {
        // No signal can be heard; the program ends by those that are not handled.
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests;
