//! A server on a loopback port, asked over HTTP.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Barrier, LazyLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use backdraft_arch::Family;
use backdraft_data::{ChatTokenizer, SpecialTokens};
use backdraft_formats::ModelSource;
use backdraft_lora::LoraConfig;
use backdraft_model::CausalLm;
use backdraft_model::generate::{GenerateConfig, SamplingConfig};
use backdraft_testkit::random_model::RandomModel;
use burn::tensor::{DType, Device};
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::{Engine, Model, Prompting, ServeError, Server, Settings};

const TEMPLATE: &str = "{% if messages[0].role == 'tool' %}{{ raise_exception('a tool never speaks first') }}{% endif %}\
    {% if tools %}w9 {{ tools | length }} {% endif %}\
    {% for m in messages %}w5 {{ m.content }} {% endfor %}{% if add_generation_prompt %}w6{% endif %}";

struct Tiny {
    base: CausalLm,
    adapted: CausalLm,
    tokenizer_json: Vec<u8>,
}

static TINY: LazyLock<Tiny> = LazyLock::new(|| {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model");
    let sizes = RandomModel {
        family: Family::Llama,
        window: None,
        hidden: 64,
        intermediate: 96,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        vocab: 256,
    };
    sizes.write(&path);
    let source = ModelSource::open(&path).unwrap();
    let base = CausalLm::load_as(&source, None, (&Device::flex(), DType::F32)).unwrap();
    let mut adapted = base.clone().with_lora(&LoraConfig::default(), 3).unwrap();
    for (_, _, adapter) in adapted.adapters_mut() {
        adapter.update(|param| param.values + 0.1);
    }
    Tiny {
        base,
        adapted,
        tokenizer_json: std::fs::read(path.join("tokenizer.json")).unwrap(),
    }
});

fn tokenizer() -> ChatTokenizer {
    let special = SpecialTokens {
        eos_token: Some("</s>".to_owned()),
        ..SpecialTokens::default()
    };
    ChatTokenizer::new(&TINY.tokenizer_json, special, Some(TEMPLATE)).unwrap()
}

fn models() -> Vec<Model> {
    let named = |name: &str, model: &CausalLm| Model {
        name: name.to_owned(),
        model: model.clone(),
        tokenizer: tokenizer(),
        prompting: Prompting::ChatTemplate,
    };
    vec![named("base", &TINY.base), named("org/tuned", &TINY.adapted)]
}

struct Running {
    address: SocketAddr,
    stop: Arc<Notify>,
    thread: Option<JoinHandle<Result<(), ServeError>>>,
}

impl Running {
    fn start(settings: Settings) -> Self {
        let server = Server::bind("127.0.0.1", 0, settings.clone()).unwrap();
        let address = server.address();
        let engine = Engine::start(models(), &settings).unwrap();
        let stop = Arc::new(Notify::new());
        let ends = stop.clone();
        let thread = std::thread::spawn(move || {
            let told = || {
                let ends = ends.clone();
                async move { ends.notified().await }
            };
            server.run_until(engine, told, || ())
        });
        Self {
            address,
            stop,
            thread: Some(thread),
        }
    }

    /// Sends a request of HTTP/1.0, whose answer ends with the connection.
    fn send(&self, head: &str, body: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        let host = self.address;
        write!(
            stream,
            "{head}\r\nHost: {host}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        )
        .unwrap();
        // The server may have answered and closed already.
        let _ = stream.write_all(body);
        stream
    }

    fn ask(&self, head: &str, body: &[u8]) -> (u16, String) {
        let mut answer = Vec::new();
        self.send(head, body).read_to_end(&mut answer).unwrap();
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, body.to_owned())
    }

    fn get(&self, path: &str) -> (u16, String) {
        self.ask(&format!("GET {path} HTTP/1.0"), b"")
    }

    fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let (status, answer) = self.ask(&head(path), body.to_string().as_bytes());
        (status, serde_json::from_str(&answer).unwrap())
    }

    fn chat(&self, body: Value) -> Value {
        let (status, answer) = self.post("/v1/chat/completions", &body);
        assert_eq!(status, 200, "{answer}");
        answer
    }

    /// The error of a chat that is refused.
    #[track_caller]
    fn refused(&self, body: Value, status: u16) -> Value {
        let (found, mut answer) = self.post("/v1/chat/completions", &body);
        assert_eq!(found, status, "{answer}");
        answer["error"].take()
    }

    fn health(&self) -> Value {
        serde_json::from_str(&self.get("/health").1).unwrap()
    }

    /// Waits until nothing runs and nothing is held.
    #[track_caller]
    fn settles(&self) -> Value {
        let began = Instant::now();
        loop {
            let health = self.health();
            if [
                &health["running"],
                &health["waiting"],
                &health["cached_tokens"],
            ]
            .iter()
            .all(|n| **n == 0)
            {
                return health;
            }
            assert!(began.elapsed() < Duration::from_secs(60), "{health}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn end(mut self) -> Result<(), ServeError> {
        self.stop.notify_one();
        self.thread.take().unwrap().join().unwrap()
    }
}

fn head(path: &str) -> String {
    format!("POST {path} HTTP/1.0")
}

fn chat(model: &str, said: &str, more: Value) -> Value {
    let mut body = json!({
        "model": model, "messages": [{"role": "user", "content": said}], "temperature": 0, "max_tokens": 12,
    });
    body.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    body
}

/// The data of server-sent events.
fn events(text: &str) -> Vec<String> {
    let events = text
        .split_terminator("\n\n")
        .map(|event| event.strip_prefix("data: ").unwrap().to_owned());
    events.collect()
}

fn text(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"].as_str().unwrap()
}

/// What the model says without any server.
fn expected(model: &CausalLm, said: &str, sampling: SamplingConfig, tokens: usize) -> String {
    let tokenizer = tokenizer();
    let prompt = tokenizer
        .encode_rendered(&format!("w5 {said} w6"))
        .unwrap()
        .ids;
    let config = GenerateConfig {
        max_new_tokens: tokens,
        stop_ids: tokenizer.eos_token_ids().to_vec(),
        sampling,
    };
    let ids = model.generate(&[prompt], &config, |_, _| true).remove(0);
    tokenizer.decode(&ids, true).unwrap()
}

#[test]
fn chats_are_answered_by_the_model_they_name() {
    let server = Running::start(Settings::default());
    for (name, model) in [("base", &TINY.base), ("org/tuned", &TINY.adapted)] {
        let answer = server.chat(chat(name, "w17 w30", json!({})));
        assert_eq!(
            text(&answer),
            expected(model, "w17 w30", SamplingConfig::default(), 12)
        );
        assert_eq!(answer["object"], "chat.completion");
        assert_eq!(answer["model"], name);
        assert_eq!(answer["choices"][0]["finish_reason"], "length");
        let usage = json!({"prompt_tokens": 4, "completion_tokens": 12, "total_tokens": 16});
        assert_eq!(answer["usage"], usage);
    }
    let warm = json!({"temperature": 1.5, "seed": 7, "top_k": 50, "top_p": 0.9});
    let sampling = SamplingConfig {
        temperature: 1.5,
        top_k: Some(50),
        top_p: Some(0.9),
        seed: 7,
    };
    let answer = server.chat(chat("base", "w17", warm));
    assert_eq!(text(&answer), expected(&TINY.base, "w17", sampling, 12));
    let (status, models) = server.get("/v1/models");
    let models: Value = serde_json::from_str(&models).unwrap();
    assert_eq!(status, 200);
    assert_eq!(models["data"][1]["id"], "org/tuned");
    assert_eq!(models["data"][1]["parent"], "base");
    assert_eq!(server.get("/v1/models/org/tuned").0, 200);
    assert_eq!(server.get("/v1/models/other").0, 404);
    let error = server.refused(chat("other", "w3", json!({})), 404);
    assert_eq!(error["code"], "model_not_found");
    assert_eq!(
        error["message"],
        "there is no model `other` here, but base, org/tuned"
    );
    server.end().unwrap();
}

#[test]
fn a_stream_is_the_answer_in_pieces() {
    let server = Running::start(Settings::default());
    let whole = server.chat(chat("base", "w40 w41", json!({})));
    let more = json!({"stream": true, "stream_options": {"include_usage": true}});
    let (status, body) = server.ask(
        &head("/v1/chat/completions"),
        chat("base", "w40 w41", more).to_string().as_bytes(),
    );
    assert_eq!(status, 200);
    let mut events = events(&body);
    assert_eq!(events.pop().unwrap(), "[DONE]");
    let events: Vec<Value> = events
        .iter()
        .map(|event| serde_json::from_str(event).unwrap())
        .collect();
    assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant");
    let pieces = events
        .iter()
        .filter_map(|event| event["choices"][0]["delta"]["content"].as_str());
    assert_eq!(pieces.collect::<String>(), text(&whole));
    assert_eq!(
        events[events.len() - 2]["choices"][0]["finish_reason"],
        "length"
    );
    assert_eq!(events[events.len() - 1]["usage"], whole["usage"]);
    server.end().unwrap();
}

#[test]
fn answers_end_before_stop_strings() {
    let server = Running::start(Settings::default());
    let warm = json!({"temperature": 2, "seed": 3});
    let whole = server.chat(chat("base", "w8", warm.clone()));
    let words: Vec<&str> = text(&whole).split(' ').collect();
    // It begins in one token and ends in another.
    let stop = format!("{} {}", &words[4][1..], &words[5][..2]);
    let mut more = warm;
    more["stop"] = json!(["never", stop]);
    let answer = server.chat(chat("base", "w8", more.clone()));
    let end = text(&whole).find(&stop).unwrap();
    assert_eq!(text(&answer), &text(&whole)[..end]);
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    more["stream"] = json!(true);
    let (_, body) = server.ask(
        &head("/v1/chat/completions"),
        chat("base", "w8", more).to_string().as_bytes(),
    );
    let pieces: String = events(&body)
        .iter()
        .filter_map(|event| serde_json::from_str::<Value>(event).ok())
        .filter_map(|event| {
            event["choices"][0]["delta"]["content"]
                .as_str()
                .map(str::to_owned)
        })
        .collect();
    assert_eq!(pieces, text(&answer));
    server.settles();
    server.end().unwrap();
}

#[test]
fn several_choices_and_how_likely_they_are() {
    let server = Running::start(Settings::default());
    let more = json!({"temperature": 1, "seed": 5, "n": 3, "logprobs": true, "top_logprobs": 2});
    let answer = server.chat(chat("base", "w12", more));
    let choices = answer["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 3);
    for (i, choice) in choices.iter().enumerate() {
        let sampling = SamplingConfig {
            temperature: 1.0,
            seed: 5 + i as u64,
            ..SamplingConfig::default()
        };
        let content = choice["message"]["content"].as_str().unwrap();
        assert_eq!(content, expected(&TINY.base, "w12", sampling, 12));
        let tokens = choice["logprobs"]["content"].as_array().unwrap();
        assert_eq!(tokens.len(), 12);
        for token in tokens {
            let top = token["top_logprobs"].as_array().unwrap();
            assert_eq!(top.len(), 2);
            assert!(token["logprob"].as_f64().unwrap() <= top[0]["logprob"].as_f64().unwrap());
        }
    }
    assert_eq!(answer["usage"]["completion_tokens"], 36);
    server.end().unwrap();
}

#[test]
fn completions_continue_texts_and_ids() {
    let server = Running::start(Settings::default());
    let ask = |prompt: Value| {
        let body = json!({"model": "base", "prompt": prompt, "temperature": 0, "max_tokens": 5, "logprobs": 1});
        let (status, answer) = server.post("/v1/completions", &body);
        assert_eq!(status, 200, "{answer}");
        answer
    };
    let one = ask(json!("w20 w21"));
    assert_eq!(one["object"], "text_completion");
    let ids = ask(json!([20, 21]));
    assert_eq!(one["choices"], ids["choices"]);
    let both = ask(json!(["w20 w21", "w3"]));
    assert_eq!(both["choices"][0], one["choices"][0]);
    assert_eq!(both["choices"][1]["index"], 1);
    let likely = &one["choices"][0]["logprobs"];
    assert_eq!(likely["tokens"].as_array().unwrap().len(), 5);
    assert_eq!(likely["text_offset"][0], 0);
    for (prompt, message) in [
        (json!(""), "is empty"),
        (json!([]), "of 1 to 64 prompts"),
        (json!([300]), "expected ids below 256, found 300"),
        (json!([[1], "w3", 2.5]), "found 2.5"),
    ] {
        let (status, answer) = server.post(
            "/v1/completions",
            &json!({"model": "base", "prompt": prompt}),
        );
        assert_eq!(status, 400);
        assert!(
            answer["error"]["message"]
                .as_str()
                .unwrap()
                .contains(message),
            "{answer}"
        );
    }
    server.end().unwrap();
}

#[test]
fn what_cannot_be_done_is_refused_by_name() {
    let server = Running::start(Settings {
        cached_tokens: 1024,
        ..Settings::default()
    });
    for (more, param, message) in [
        (
            json!({"frequency_penalty": 0.5}),
            "frequency_penalty",
            "`frequency_penalty` is not supported: leave it out or send 0",
        ),
        (
            json!({"response_format": {"type": "json_object"}}),
            "response_format",
            "`response_format` is not supported",
        ),
        (
            json!({"temperature": 3}),
            "temperature",
            "`temperature` must be a number from 0 to 2, found 3",
        ),
        (
            json!({"temperature": "hot"}),
            "temperature",
            "found a string",
        ),
        (
            json!({"max_tokens": 0}),
            "max_tokens",
            "`max_tokens` must be a whole number from 1",
        ),
        (json!({"max_tokens": 1e300}), "max_tokens", "found 1e"),
        (
            json!({"n": 100_000}),
            "n",
            "`n` must be a whole number from 1 to 128",
        ),
        (
            json!({"n": 65}),
            "n",
            "the server continues 64 texts at a time",
        ),
        (json!({"stop": [""]}), "stop", "`stop` must be a string"),
        (
            json!({"top_logprobs": 2}),
            "top_logprobs",
            "needs `logprobs`",
        ),
        (
            json!({"tool_choice": "required", "tools": []}),
            "tool_choice",
            "`tool_choice` must be",
        ),
        (json!({"messages": []}), "messages", "`messages` is empty"),
        (
            json!({"messages": "hi"}),
            "messages",
            "`messages` must be a list, found a string",
        ),
        (
            json!({"messages": [{"role": "king", "content": "x"}]}),
            "messages[0].role",
            "expected \"system\", \"user\"",
        ),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
            "messages[0].content",
            "expected a string, or a list of",
        ),
        (
            json!({"messages": [{"role": "tool", "content": "x"}]}),
            "messages",
            "a tool never speaks first",
        ),
        (
            json!({"max_tokens": 9000}),
            "messages",
            "the model takes 8192 tokens, but the prompt has 3 and 9000 more are asked for",
        ),
        (
            json!({"max_tokens": 2000}),
            "max_tokens",
            "need a cache of 2016 tokens, but the server has 1024",
        ),
        (
            json!({"wisdom": 1}),
            "wisdom",
            "`wisdom` is no parameter that this server knows",
        ),
    ] {
        let error = server.refused(chat("base", "w3", more.clone()), 400);
        assert_eq!(error["param"], param, "{more}: {error}");
        let said = error["message"].as_str().unwrap();
        assert!(said.contains(message), "{more}: {said}");
    }
    // What clients send without meaning anything by it.
    server.chat(chat("base", "w3", json!({
        "frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "user": "me", "store": false,
        "response_format": {"type": "text"}, "tool_choice": "none", "tools": [{"type": "function"}],
        "parallel_tool_calls": true, "metadata": {}, "seed": -1, "stop": null, "top_p": 1, "n": 1, "functions": null,
    })));
    let long = vec!["w3"; 8190].join(" ");
    let error = server.refused(chat("base", &long, json!({"max_tokens": null})), 400);
    assert_eq!(error["code"], "context_length_exceeded");
    server.end().unwrap();
}

#[test]
fn malformed_requests_end_nothing() {
    let server = Running::start(Settings {
        max_body: 1 << 16,
        patience: Duration::from_millis(300),
        ..Settings::default()
    });
    let deep = format!("{}{}", "[".repeat(30_000), "]".repeat(30_000));
    let nested = format!("{{\"model\": \"base\", \"messages\": {deep}}}");
    let bodies: [&[u8]; 12] = [
        b"",
        b"{",
        b"null",
        b"[]",
        b"\"x\"",
        b"{\"model\": NaN}",
        b"\xff\xfe",
        b"{\"model\": 1e999}",
        nested.as_bytes(),
        b"{}",
        b"{\"model\": {}}",
        b"{\"model\": \"base\", \"messages\": [null]}",
    ];
    for path in ["/v1/chat/completions", "/v1/completions"] {
        for body in bodies {
            let (status, answer) = server.ask(&head(path), body);
            assert_eq!(status, 400, "{answer}");
            assert!(answer.contains("\"error\""), "{answer}");
        }
    }
    assert_eq!(
        server.ask(&head("/v1/completions"), &vec![b' '; 1 << 17]).0,
        413
    );
    assert_eq!(server.get("/v1/chat/completions").0, 405);
    assert_eq!(server.get("/nothing").0, 404);
    let mut half = TcpStream::connect(server.address).unwrap();
    write!(
        half,
        "POST /v1/completions HTTP/1.0\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{{"
    )
    .unwrap();
    let mut answer = String::new();
    half.read_to_string(&mut answer).unwrap();
    assert!(answer.contains(" 408 "), "{answer}");
    let mut silent = TcpStream::connect(server.address).unwrap();
    write!(silent, "POST /v1").unwrap();
    answer.clear();
    silent
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    // Closed without a word, or with 408.
    let _ = silent.read_to_string(&mut answer);
    assert!(!answer.contains(" 200 "), "{answer}");
    server.chat(chat("base", "w3", json!({})));
    server.end().unwrap();
}

#[test]
fn more_than_may_wait_are_told_to_come_again() {
    let server = Arc::new(Running::start(Settings {
        max_batch: 1,
        queue: 1,
        ..Settings::default()
    }));
    let barrier = Arc::new(Barrier::new(12));
    let threads: Vec<_> = (0..12)
        .map(|i| {
            let (server, barrier) = (server.clone(), barrier.clone());
            std::thread::spawn(move || {
                barrier.wait();
                let body = chat("base", &format!("w{}", 3 + i), json!({"max_tokens": 400}));
                server.post("/v1/chat/completions", &body)
            })
        })
        .collect();
    let answers: Vec<(u16, Value)> = threads
        .into_iter()
        .map(|thread| thread.join().unwrap())
        .collect();
    let count = |status| answers.iter().filter(|(found, _)| *found == status).count();
    assert!(count(200) >= 1 && count(429) >= 1, "{answers:?}");
    assert_eq!(count(200) + count(429), 12);
    let (_, refused) = answers.iter().find(|(status, _)| *status == 429).unwrap();
    assert_eq!(refused["error"]["code"], "queue_full");
    server.settles();
    let again = chat("base", "w3", json!({}));
    server.chat(again);
    Arc::into_inner(server).unwrap().end().unwrap();
}

#[test]
fn a_client_that_goes_away_costs_no_more_tokens() {
    let server = Running::start(Settings::default());
    for stream in [true, false] {
        let before = server.health()["tokens"].as_u64().unwrap();
        let body = chat("base", "w30", json!({"stream": stream, "max_tokens": 8000}));
        let mut connection =
            server.send(&head("/v1/chat/completions"), body.to_string().as_bytes());
        if stream {
            connection.read_exact(&mut [0; 600]).unwrap();
        } else {
            while server.health()["running"] == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        drop(connection);
        let health = server.settles();
        let tokens = health["tokens"].as_u64().unwrap() - before;
        assert!(
            tokens < 8000,
            "stream {stream}: {tokens} tokens were made for nobody"
        );
    }
    server.end().unwrap();
}

#[test]
fn a_request_has_its_time() {
    let server = Running::start(Settings {
        timeout: Duration::from_millis(40),
        ..Settings::default()
    });
    let long = json!({"max_tokens": 8000});
    let error = server.refused(chat("base", "w30", long), 504);
    assert_eq!(error["code"], "timeout");
    let long = json!({"max_tokens": 8000, "stream": true});
    let (status, body) = server.ask(
        &head("/v1/chat/completions"),
        chat("base", "w30", long).to_string().as_bytes(),
    );
    assert_eq!(status, 200);
    assert!(
        events(&body).last().unwrap().contains("\"timeout\""),
        "{body}"
    );
    server.settles();
    server.end().unwrap();
}

#[test]
fn a_server_with_a_key_asks_for_it() {
    let server = Running::start(Settings {
        api_key: Some("open sesame".to_owned()),
        ..Settings::default()
    });
    let (status, answer) = server.get("/v1/models");
    assert_eq!(status, 401);
    assert!(answer.contains("invalid_api_key"));
    let with = |key: &str| {
        server
            .ask(
                &format!("GET /v1/models HTTP/1.0\r\nAuthorization: Bearer {key}"),
                b"",
            )
            .0
    };
    assert_eq!((with("open sesame"), with("open")), (200, 401));
    let (status, page) = server.get("/");
    assert_eq!(status, 200);
    assert!(page.contains("<title>backdraft</title>"));
    assert_eq!(server.health()["needs_key"], true);
    let foreign = server.ask("GET /v1/models HTTP/1.0\r\nOrigin: http://example.com", b"");
    assert_eq!(foreign.0, 403);
    server.end().unwrap();
    let open = Server::bind("0.0.0.0", 0, Settings::default());
    assert!(matches!(open, Err(ServeError::Unprotected { .. })));
}

#[test]
fn running_answers_are_finished_at_the_end() {
    let server = Running::start(Settings::default());
    let body = chat("base", "w30", json!({"stream": true, "max_tokens": 300}));
    let mut connection = server.send(&head("/v1/chat/completions"), body.to_string().as_bytes());
    let mut began = [0; 400];
    connection.read_exact(&mut began).unwrap();
    let address = server.address;
    let reader = std::thread::spawn(move || {
        let mut rest = String::new();
        connection.read_to_string(&mut rest).unwrap();
        rest
    });
    server.end().unwrap();
    let rest = reader.join().unwrap();
    assert!(rest.ends_with("data: [DONE]\n\n"), "{rest}");
    assert!(TcpStream::connect(address).is_err());
}

#[test]
fn what_takes_too_long_at_the_end_is_cut_off() {
    let server = Running::start(Settings {
        grace: Duration::from_millis(20),
        ..Settings::default()
    });
    let body = chat("base", "w30", json!({"stream": true, "max_tokens": 8000}));
    let mut connection = server.send(&head("/v1/chat/completions"), body.to_string().as_bytes());
    connection.read_exact(&mut [0; 400]).unwrap();
    server.end().unwrap();
    let mut rest = String::new();
    // The connection may be cut as well.
    let _ = connection.read_to_string(&mut rest);
    assert!(!rest.contains("[DONE]"));
}

#[test]
fn many_at_once_are_answered_as_each_alone() {
    let server = Arc::new(Running::start(Settings {
        max_batch: 8,
        ..Settings::default()
    }));
    let body = |i: usize| {
        let model = ["base", "org/tuned"][i % 2];
        let said: Vec<String> = (0..1 + i * 7 % 90)
            .map(|j| format!("w{}", 2 + (i * 31 + j * 17) % 250))
            .collect();
        let more = json!({"temperature": (i % 3) as f64 * 0.8, "seed": i, "max_tokens": 5 + i});
        chat(model, &said.join(" "), more)
    };
    let alone: Vec<Value> = (0..24)
        .map(|i| server.chat(body(i))["choices"].take())
        .collect();
    let threads: Vec<_> = (0..24)
        .map(|i| {
            let server = server.clone();
            let body = body(i);
            std::thread::spawn(move || server.chat(body)["choices"].take())
        })
        .collect();
    for (thread, alone) in threads.into_iter().zip(alone) {
        assert_eq!(thread.join().unwrap(), alone);
    }
    server.settles();
    Arc::into_inner(server).unwrap().end().unwrap();
}
