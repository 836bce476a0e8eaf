//! Against Python: `tests/make_facts.py` writes what transformers' Jinja answers.

use serde_json::{Map, Value as Json};

use super::*;

pub(super) fn limits() -> Limits {
    Limits {
        fuel: 10_000_000,
        max_bytes: 64 << 20,
        now: chrono::DateTime::UNIX_EPOCH.naive_utc(),
    }
}

fn render(source: &str, context: &Map<String, Json>) -> Result<String, Box<JinjaError>> {
    Template::parse(source)?.render(context, &limits())
}

/// What is left out on purpose: `self` is of no use without blocks, `lipsum` writes random words.
const KNOWN: [&str; 2] = [
    "{{ caller }}{{ varargs }}{{ kwargs }}{{ self }}",
    "{{ lipsum.__globals__ }}",
];

#[test]
fn renders_what_python_renders() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/facts.json");
    let facts: Json = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let context = facts["context"].as_object().unwrap();
    let facts = facts["facts"].as_array().unwrap();
    assert!(facts.len() > 5000);
    let mut wrong = Vec::new();
    for fact in facts {
        let source = fact[0].as_str().unwrap();
        let found = render(source, context);
        if found.as_ref().ok().map(String::as_str) != fact[1].as_str() && !KNOWN.contains(&source) {
            let found = found.map_err(|error| error.to_string());
            wrong.push(format!(
                "{source:?}\n  Python {}\n  here   {found:?}",
                fact[1]
            ));
        }
    }
    let (count, total) = (wrong.len(), facts.len());
    assert!(
        wrong.is_empty(),
        "{count} of {total}:\n{}",
        wrong.join("\n")
    );
}

/// `tests/make_renderings.py` says where the templates come from; only hashes are kept.
#[test]
fn public_templates_render_as_in_transformers() {
    use sha2::{Digest, Sha256};
    let sha = |text: &str| {
        let digest = Sha256::digest(text);
        digest
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    let Some(folder) = std::env::var_os("BACKDRAFT_TEMPLATES").map(std::path::PathBuf::from) else {
        return println!("nothing checked: BACKDRAFT_TEMPLATES names no folder of templates");
    };
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/renderings.json");
    let golden: Json = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let cases = golden["cases"].as_array().unwrap();
    let mut wrong = Vec::new();
    for template in golden["templates"].as_array().unwrap() {
        let name = template["name"].as_str().unwrap();
        let source = std::fs::read_to_string(folder.join(name)).unwrap();
        assert_eq!(sha(&source), template["sha256"], "{name}");
        let compiled = Template::parse(&source).unwrap();
        let outcomes = template["outcomes"].as_array().unwrap();
        for (index, (case, expected)) in cases.iter().zip(outcomes).enumerate() {
            let rendered = compiled.render(case.as_object().unwrap(), &limits());
            let outcome = match &rendered {
                Ok(text) => format!("text {text}"),
                Err(error) if error.kind == JinjaErrorKind::Raised => {
                    format!("raised {}", error.message)
                }
                Err(_) => "error".to_owned(),
            };
            let found = format!("{}{}", &outcome[..1], &sha(&outcome)[..16]);
            if found != expected.as_str().unwrap() {
                wrong.push(format!("{name} {index}: {rendered:?}"));
            }
        }
    }
    let count = wrong.len();
    wrong.truncate(40);
    assert!(wrong.is_empty(), "{count} wrong:\n{}", wrong.join("\n"));
}

/// What a hostile template asks for ends soon, in an error, on a stack of a worker's size.
#[test]
fn hostile_templates_end_in_an_error() {
    let deep = |open: &str, middle: &str, close: &str, depth: usize| {
        format!("{}{middle}{}", open.repeat(depth), close.repeat(depth))
    };
    let sources = [
        "{% for i in range(10**9) %}x{% endfor %}".to_owned(),
        "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}".to_owned(),
        "{{ 'a' * 10**10 }}".to_owned(),
        "{{ ('a' * 10**7) * 10**7 }}".to_owned(),
        "{{ [1] * 10**10 }}{{ (1,) * 10**10 }}".to_owned(),
        "{{ '%1000000000d' % 1 }}".to_owned(),
        "{{ '%*d' % (10**12, 1) }}".to_owned(),
        "{{ '%.1000000000f' % 1 }}".to_owned(),
        "{{ '{:1000000000}'.format(1) }}".to_owned(),
        "{{ '{:.60001f}'.format(1) }}".to_owned(),
        "{{ 'a'.center(10**12) }}{{ 'a'.zfill(10**12) }}".to_owned(),
        "{{ 'a'.ljust(10**10, 'é') }}".to_owned(),
        "{{ 'a'|center(10**12) }}".to_owned(),
        "{{ 'a\\nb'|indent(10**12) }}{{ [1]|tojson(indent=10**12) }}".to_owned(),
        "{{ ('a\\tb' * 1000).expandtabs(10**12) }}".to_owned(),
        "{{ ('a' * 10**6).replace('a', 'b' * 10**6) }}".to_owned(),
        "{{ ('b' * 10**6).join(['a'] * 10**6) }}".to_owned(),
        "{{ (['a'] * 10**6)|join('b' * 10**6) }}".to_owned(),
        "{{ [1]|batch(10**12, 'x')|list }}{{ [1]|slice(10**12)|list }}".to_owned(),
        "{{ ('a' * 1000).translate({97: 'b' * 10**6}) }}".to_owned(),
        "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}".to_owned(),
        "{% set ns = namespace(l=[1]) %}{% for i in range(60) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l }}".to_owned(),
        "{% set ns = namespace(l=[1]) %}{% for i in range(9999) %}{% set ns.l = [ns.l] %}{% endfor %}".to_owned(),
        "{% set ns = namespace() %}{% set ns.me = ns %}{{ ns }}".to_owned(),
        "{% set ns = namespace(t=(1,), u=(1,)) %}{% for i in range(90) %}{% set ns.t = (ns.t, ns.t) %}\
         {% set ns.u = (ns.u, ns.u) %}{% endfor %}{{ {ns.t: 1}[ns.u] }}".to_owned(),
        "{{ ('a ' * 10**7).split() }}{{ ('\\n' * 10**7).splitlines() }}".to_owned(),
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}".to_owned(),
        "{% macro m(x) %}{% if x %}{% for i in [1] %}{{ (m([x]) ~ '')|upper }}{% endfor %}{% endif %}{% endmacro %}{{ m([1]) }}".to_owned(),
        "{% for x in [[1]] recursive %}{{ loop([x]) }}{% endfor %}".to_owned(),
        "{% macro a(f) %}{{ f(f) }}{% endmacro %}{{ a(a) }}".to_owned(),
        format!("{{{{ {} }}}}", deep("(", "1", ")", 100_000)),
        format!("{{{{ {} }}}}", deep("[", "1", "]", 5_000)),
        format!("{{{{ {}1 }}}}", "-".repeat(100_000)),
        format!("{{{{ {}1 }}}}", "not ".repeat(100_000)),
        format!("{{{{ 1{} }}}}", "+1".repeat(100_000)),
        format!("{{{{ a{} }}}}", ".b".repeat(100_000)),
        format!("{{{{ a{} }}}}", "|upper".repeat(100_000)),
        format!("{{{{ 1{} }}}}", " if 1 else 2".repeat(100_000)),
        deep("{% if true %}", "x", "{% endif %}", 10_000),
        deep("{% for x in [1] %}", "x", "{% endfor %}", 10_000),
        format!("{{% set {}a{} = 1 %}}", "(".repeat(10_000), ")".repeat(10_000)),
        "{% include 'chat_template' %}".to_owned(),
        "{{ ''.__class__.__mro__ }}".to_owned(),
        "{{ [].append(1) }}{{ {}.update({}) }}".to_owned(),
        "{% generation %}".to_owned(),
    ];
    for source in sources {
        let shown: String = source.chars().take(80).collect();
        let few = Limits {
            fuel: 1_000_000,
            ..limits()
        };
        let began = std::time::Instant::now();
        let ended = Template::parse(&source).and_then(|it| it.render(&Map::new(), &few));
        assert!(ended.is_err(), "{shown}");
        assert!(began.elapsed().as_secs() < 20, "{shown}");
    }
}

#[test]
fn errors_have_lines_and_say_whose_fault_it_is() {
    let error = |source: &str| {
        let error = render(source, &Map::new()).unwrap_err();
        (error.kind, error.to_string())
    };
    let cases = [
        (
            "a\n{% if %}",
            JinjaErrorKind::Syntax,
            "line 2: Expected an expression, got 'end of statement block'",
        ),
        (
            "{% for x in y %}\n{{ x|nope }}{% endfor %}",
            JinjaErrorKind::Syntax,
            "line 2: No filter named 'nope'.",
        ),
        (
            "\n\n{{ helper(1) }}",
            JinjaErrorKind::Unknown,
            "line 3: 'helper' is undefined",
        ),
        (
            "{% if true %}{{ 1|nope }}{% endif %}",
            JinjaErrorKind::Unknown,
            "line 1: No filter named 'nope' found.",
        ),
        (
            "{% if false %}{% set x = 1 %}{% endif %}{{ x.y }}",
            JinjaErrorKind::Undefined,
            "line 1: 'x' is undefined",
        ),
        (
            "{% set d = {} %}\n{{ d.a.b }}",
            JinjaErrorKind::Undefined,
            "line 2: 'dict object' has no attribute 'a'",
        ),
        (
            "{{ 1 + 'a' }}",
            JinjaErrorKind::Runtime,
            "line 1: unsupported operand type(s) for +: 'int' and 'str'",
        ),
        (
            "{% macro m() %}\n{{ raise_exception('no') }}{% endmacro %}{{ m() }}",
            JinjaErrorKind::Raised,
            "line 2: no",
        ),
    ];
    for (source, kind, message) in cases {
        assert_eq!(error(source), (kind, message.to_owned()), "{source}");
    }
}
