//! Slurm's lists of machines.

/// The first machine of a list such as `node[01-03,07]-ib,gpu5`.
///
/// # Source
/// `scontrol(1)`, "show hostnames".
pub(super) fn first_node(list: &str) -> Option<String> {
    let mut rest = list.trim();
    let mut name = String::new();
    while let Some(at) = rest.find(['[', ',']) {
        name.push_str(&rest[..at]);
        if rest[at..].starts_with(',') {
            rest = "";
            break;
        }
        let (numbers, after) = rest[at + 1..].split_once(']')?;
        name.push_str(numbers.split([',', '-']).next()?);
        rest = after;
    }
    name.push_str(rest);
    (!name.is_empty()).then_some(name)
}
