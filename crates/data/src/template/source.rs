//! Rewrites of a template's source that the engine needs.

/// The filter that stands for `{% generation %}`.
pub(super) const GENERATION_FILTER: &str = "backdraft_generation";

/// Replaces transformers' `{% generation %} … {% endgeneration %}` by a filter over the same text;
/// says whether there were any.
pub(super) fn with_generation_filters(source: &str) -> (String, bool) {
    let mut rest = source;
    let mut rewritten = String::with_capacity(source.len());
    let mut found = false;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = (&rest[..start], &rest[start + 2..]);
        // Behind the opening: `{%}` is no tag.
        let Some(length) = tag.find("%}") else {
            break;
        };
        let tag = &tag[..length];
        rewritten.push_str(before);
        rewritten.push_str("{%");
        match tag.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+') {
            "generation" => {
                found = true;
                let block = format!(" filter {GENERATION_FILTER} ");
                rewritten.push_str(&tag.replace("generation", &block));
            }
            "endgeneration" => rewritten.push_str(&tag.replace("endgeneration", " endfilter ")),
            _ => rewritten.push_str(tag),
        }
        rewritten.push_str("%}");
        rest = &rest[start + 2 + length + 2..];
    }
    rewritten.push_str(rest);
    (rewritten, found)
}

#[cfg(test)]
mod tests {
    use super::with_generation_filters;

    #[test]
    fn only_generation_tags_change() {
        let cases = [
            (
                "a{%- generation %}b{% endgeneration -%}c",
                "a{%-  filter backdraft_generation  %}b{%  endfilter  -%}c",
                true,
            ),
            (
                "{% if generation %}x{% endif %}",
                "{% if generation %}x{% endif %}",
                false,
            ),
            (
                "{{ 'generation' }}{% broken",
                "{{ 'generation' }}{% broken",
                false,
            ),
            ("{%generation%}", "{% filter backdraft_generation %}", true),
            ("", "", false),
            ("{%}", "{%}", false),
            ("{%}{% generation %}%}", "{%}{% generation %}%}", false),
        ];
        for (source, expected, found) in cases {
            assert_eq!(
                with_generation_filters(source),
                (expected.to_owned(), found)
            );
        }
    }
}
