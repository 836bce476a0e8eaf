//! Rewrites of a template's source that the engine needs.

/// Replaces transformers' `{% generation %} … {% endgeneration %}` by a block that is always
/// rendered: spans are found by rendering, so the marks themselves are not used.
pub(super) fn without_generation_tags(source: &str) -> String {
    let mut rest = source;
    let mut rewritten = String::with_capacity(source.len());
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else {
            break;
        };
        let (before, tag) = (&rest[..start], &rest[start + 2..start + length]);
        rewritten.push_str(before);
        rewritten.push_str("{%");
        match tag.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+') {
            "generation" => rewritten.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => rewritten.push_str(&tag.replace("endgeneration", "endif")),
            _ => rewritten.push_str(tag),
        }
        rewritten.push_str("%}");
        rest = &rest[start + length + 2..];
    }
    rewritten.push_str(rest);
    rewritten
}

#[cfg(test)]
mod tests {
    use super::without_generation_tags;

    #[test]
    fn only_generation_tags_change() {
        let cases = [
            (
                "a{%- generation %}b{% endgeneration -%}c",
                "a{%- if true %}b{% endif -%}c",
            ),
            (
                "{% if generation %}x{% endif %}",
                "{% if generation %}x{% endif %}",
            ),
            ("{{ 'generation' }}{% broken", "{{ 'generation' }}{% broken"),
            ("{%generation%}", "{%if true%}"),
            ("", ""),
        ];
        for (source, expected) in cases {
            assert_eq!(without_generation_tags(source), expected);
        }
    }
}
