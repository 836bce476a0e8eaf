//! An answer as server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::http::{HeaderValue, Response, header};
use hyper::body::{Bytes, Frame};
use serde_json::Value;
use tokio::sync::mpsc::UnboundedReceiver;

use crate::answer::Answer;
use crate::api_error::failure;
use crate::job::Event;

/// A body that grows with the answer. When the client goes away, the connection drops it, and with it the receiver, at
/// whose absence the engine ends the sequences.
struct Events {
    answer: Answer,
    events: UnboundedReceiver<Event>,
    ready: VecDeque<Bytes>,
    include_usage: bool,
    timeout: u64,
    ended: bool,
}

/// The response to a request whose events come from `events`.
pub(crate) fn response(
    answer: Answer,
    events: UnboundedReceiver<Event>,
    include_usage: bool,
    timeout: u64,
) -> Response<Body> {
    let ready = answer.opening().iter().map(line).collect();
    let mut response = Response::new(Body::new(Events {
        answer,
        events,
        ready,
        include_usage,
        timeout,
        ended: false,
    }));
    let headers = response.headers_mut();
    let kind = HeaderValue::from_static("text/event-stream; charset=utf-8");
    headers.insert(header::CONTENT_TYPE, kind);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn line(value: &Value) -> Bytes {
    Bytes::from(format!("data: {value}\n\n"))
}

impl Events {
    fn hear(&mut self, event: Option<Event>) {
        if let Some(error) = failure(event.as_ref(), self.timeout) {
            self.ready.push_back(line(&error.to_json()));
            self.ended = true;
            return;
        }
        let Some(event) = event else { return };
        let piece = self.answer.take(event);
        self.ready
            .extend(self.answer.chunk(&piece).as_ref().map(line));
        if self.answer.is_complete() {
            if self.include_usage {
                self.ready.push_back(line(&self.answer.usage_chunk()));
            }
            self.ready
                .push_back(Bytes::from_static(b"data: [DONE]\n\n"));
            self.ended = true;
        }
    }
}

impl hyper::body::Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        loop {
            if let Some(bytes) = this.ready.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            if this.ended {
                return Poll::Ready(None);
            }
            match this.events.poll_recv(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(event) => this.hear(event),
            }
        }
    }
}
