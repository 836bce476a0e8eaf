//! Numbers with their nouns, for messages.

/// `1 row`, `2 rows`, `3,290 tokens`: `noun` is one of them, in its last word.
#[must_use]
pub fn count(number: u64, noun: &str) -> String {
    let digits = group(number);
    if number == 1 {
        format!("{digits} {noun}")
    } else {
        format!("{digits} {}", plural(noun))
    }
}

/// Digits in groups of three.
#[must_use]
pub fn group(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Several of what `noun` is one of.
fn plural(noun: &str) -> String {
    let hisses = ["s", "x", "ch", "sh"].iter().any(|end| noun.ends_with(end));
    let stem = noun.strip_suffix('y');
    match stem.filter(|stem| !stem.ends_with(['a', 'e', 'o', 'u'])) {
        Some(stem) => format!("{stem}ies"),
        None if hisses => format!("{noun}es"),
        None => format!("{noun}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nouns_follow_their_number() {
        for (number, noun, text) in [
            (0, "row", "0 rows"),
            (1, "row", "1 row"),
            (2, "row", "2 rows"),
            (1_000, "micro-batch", "1,000 micro-batches"),
            (1, "micro-batch", "1 micro-batch"),
            (3_290, "supervised token", "3,290 supervised tokens"),
            (2, "entry", "2 entries"),
            (2, "key", "2 keys"),
            (2, "pass", "2 passes"),
        ] {
            assert_eq!(count(number, noun), text);
        }
    }

    #[test]
    fn digits_stand_in_groups() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1_000, "1,000"),
            (1_234_567, "1,234,567"),
        ] {
            assert_eq!(group(number), text);
        }
    }
}
