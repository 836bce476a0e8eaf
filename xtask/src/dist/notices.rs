//! Licences of everything that is linked in, each text once.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::Context;

use super::dependencies::Package;

/// How far below a crate's folder sources of others lie, as mimalloc's in `c_src/mimalloc`.
const DEPTH: usize = 3;
/// Beginnings of the names of files that hold a licence or a notice.
const NAMES: [&str; 5] = ["license", "licence", "copying", "notice", "unlicense"];
const RULE: &str =
    "--------------------------------------------------------------------------------";

/// A list of crates with their licences, those whose packages have no text of it, then the texts.
///
/// # Errors
/// A crate's folder cannot be read.
pub(super) fn text(packages: &[Package]) -> anyhow::Result<String> {
    let others = packages.iter().filter(|package| package.source.is_some());
    let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut list = String::new();
    let mut bare = String::new();
    for package in others {
        let Package {
            name,
            version,
            licence,
            ..
        } = package;
        let from = package.repository.as_deref().unwrap_or("crates.io");
        writeln!(list, "{name} {version}: {licence}; {from}")?;
        let mut files = Vec::new();
        collect(&package.folder, DEPTH, &mut files)
            .with_context(|| package.folder.display().to_string())?;
        if files.is_empty() {
            writeln!(bare, "{name} {version}: {licence}")?;
        }
        for (file, text) in files {
            let place = Path::new(&file)
                .parent()
                .filter(|folder| !folder.as_os_str().is_empty());
            let place = place.map_or_else(String::new, |folder| format!(" ({})", folder.display()));
            texts
                .entry(text)
                .or_default()
                .push(format!("{name} {version}{place}"));
        }
    }
    let mut out = format!(
        "The program is made from these crates. Where a manifest offers several licences (OR, or a slash), it is used under\n\
         one that our own licence allows. Rust's standard library is under MIT OR Apache-2.0; https://github.com/rust-lang/rust\n\n\
         {list}"
    );
    if !bare.is_empty() {
        write!(
            out,
            "\nThese come without a text, only with the licence's SPDX name; <https://spdx.org/licenses/> has it:\n\n{bare}"
        )?;
    }
    let mut texts: Vec<_> = texts.into_iter().collect();
    // The order of the list, not of the texts.
    texts.sort_by(|(_, a), (_, b)| a.cmp(b));
    for (text, users) in texts {
        write!(
            out,
            "\n{RULE}\n{}\n{RULE}\n\n{}\n",
            users.join("\n"),
            text.trim_end()
        )?;
    }
    Ok(out)
}

/// Files with a licence in their names, by paths below `folder`, and their texts, in the order of the paths.
fn collect(folder: &Path, depth: usize, found: &mut Vec<(String, String)>) -> std::io::Result<()> {
    fn go(
        root: &Path,
        folder: &Path,
        depth: usize,
        found: &mut Vec<(String, String)>,
    ) -> std::io::Result<()> {
        let mut entries: Vec<_> = fs::read_dir(folder)?.collect::<std::io::Result<_>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let (path, kind) = (entry.path(), entry.file_type()?);
            if kind.is_dir() && depth > 0 {
                go(root, &path, depth - 1, found)?;
            } else if kind.is_file() && is_licence(&entry.file_name().to_string_lossy()) {
                let below = path
                    .strip_prefix(root)
                    .unwrap_or(&path)
                    .display()
                    .to_string();
                let text = String::from_utf8_lossy(&fs::read(&path)?).replace("\r\n", "\n");
                found.push((below, text));
            }
        }
        Ok(())
    }
    go(folder, folder, depth, found)
}

/// `LICENSE`, `LICENSE-MIT`, `license.txt`, `COPYING`; not `license.rs`.
fn is_licence(name: &str) -> bool {
    let name = name.to_lowercase();
    let source = [".rs", ".c", ".h", ".py", ".html", ".toml", ".json", ".sh"];
    NAMES.iter().any(|start| name.starts_with(start))
        && !source.iter().any(|ending| name.ends_with(ending))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_several_share_is_there_once() {
        let folder = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        put("a/LICENSE-MIT", "Permission is hereby granted\r\n");
        put("b/license.txt", "Permission is hereby granted\n");
        put("b/c_src/lib/COPYING", "Another text");
        put("b/src/license.rs", "fn license() {}");
        put("c/lib.rs", "");
        let package = |name: &str, source: Option<&str>| Package {
            name: name.to_owned(),
            version: "1.0.0".to_owned(),
            licence: "MIT".to_owned(),
            repository: None,
            source: source.map(str::to_owned),
            folder: folder.path().join(name),
            uses: Vec::new(),
        };
        let text = text(&[
            package("a", Some("r")),
            package("b", Some("r")),
            package("c", Some("r")),
            package("ours", None),
        ])
        .unwrap();
        assert_eq!(
            text.matches("Permission is hereby granted").count(),
            1,
            "{text}"
        );
        assert!(text.contains("\na 1.0.0\nb 1.0.0\n"), "{text}");
        assert!(text.contains("\nb 1.0.0 (c_src/lib)\n"), "{text}");
        assert!(!text.contains("fn license"), "{text}");
        let bare = text.split_once("without a text").unwrap().1;
        let bare = bare.split_once(RULE).unwrap().0;
        assert!(bare.ends_with("\n\nc 1.0.0: MIT\n\n"), "{bare}");
        assert!(!text.contains("ours"), "{text}");
    }
}
