//! The Debian package: an `ar` archive of two tar archives (deb(5)).

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use super::archive::{self, Entry};
use super::{GLIBC, Release, VERSION};

/// Makes the package of the archive's files, each where Debian has its kind.
///
/// # Errors
/// The file cannot be written.
pub(super) fn write(
    release: &Release,
    architecture: &str,
    files: &[Entry],
) -> anyhow::Result<PathBuf> {
    let suffix = release.suffix();
    let mut installed = Vec::new();
    for entry in files {
        if let Some(entry) = place(entry)? {
            installed.push(entry);
        }
    }
    installed.push(Entry::file(
        "usr/share/doc/backdraft/copyright",
        COPYRIGHT.as_bytes().to_vec(),
    ));
    let size: usize = installed.iter().map(|entry| entry.bytes.len()).sum();
    let glibc = GLIBC.replace('_', ".");
    // Both bring the same program.
    let replaces = if release.cpu {
        "Provides: backdraft\nConflicts: backdraft\nReplaces: backdraft\n"
    } else {
        ""
    };
    let control = format!(
        "Package: backdraft{suffix}\nVersion: {VERSION}\nArchitecture: {architecture}\n\
         Maintainer: The Backdraft authors <backdraft@users.noreply.github.com>\n\
         Installed-Size: {}\nDepends: libc6 (>= {glibc})\n{replaces}Section: science\nPriority: optional\n\
         Homepage: https://github.com/backdraft-rs/backdraft\n\
         Description: fine-tune language models with LoRA and QLoRA\n \
         One program that trains adapters over Hugging Face, bitsandbytes and GGUF models\n \
         on NVIDIA GPUs or on the processor, and exports them for llama.cpp and Ollama.\n",
        size.div_ceil(1024),
    );
    let parts = [
        ("debian-binary", b"2.0\n".to_vec()),
        (
            "control.tar.gz",
            packed(release, &[Entry::file("control", control.into_bytes())])?,
        ),
        ("data.tar.gz", packed(release, &installed)?),
    ];
    let path = release
        .out
        .join(format!("backdraft{suffix}_{VERSION}_{architecture}.deb"));
    let mut file = fs::File::create(&path)?;
    file.write_all(b"!<arch>\n")?;
    for (name, bytes) in parts {
        let (time, length) = (release.epoch, bytes.len());
        writeln!(
            file,
            "{name:<16}{time:<12}0     0     100644  {length:<10}`"
        )?;
        file.write_all(&bytes)?;
        if length % 2 == 1 {
            file.write_all(b"\n")?;
        }
    }
    Ok(path)
}

/// The file under its path in the system; `None` for what a system has already or gets otherwise.
fn place(entry: &Entry) -> anyhow::Result<Option<Entry>> {
    let Entry { path, bytes, mode } = entry;
    let (to, bytes) = match &**path {
        "backdraft" => ("usr/bin/backdraft".to_owned(), bytes.clone()),
        "completions/backdraft.bash" => (
            "usr/share/bash-completion/completions/backdraft".to_owned(),
            bytes.clone(),
        ),
        "completions/_backdraft" => (
            "usr/share/zsh/vendor-completions/_backdraft".to_owned(),
            bytes.clone(),
        ),
        "completions/backdraft.fish" => (
            "usr/share/fish/vendor_completions.d/backdraft.fish".to_owned(),
            bytes.clone(),
        ),
        "CHANGELOG.md" => (
            // Not `changelog.gz`, which has a form of its own.
            "usr/share/doc/backdraft/CHANGELOG.md.gz".to_owned(),
            gzip(bytes)?,
        ),
        "THIRD-PARTY.txt" => (
            "usr/share/doc/backdraft/THIRD-PARTY.txt.gz".to_owned(),
            gzip(bytes)?,
        ),
        "README.md" | "LICENSE-MIT" => (format!("usr/share/doc/backdraft/{path}"), bytes.clone()),
        page if page.starts_with("man/") => {
            let name = page.trim_start_matches("man/");
            (format!("usr/share/man/man1/{name}.gz"), gzip(bytes)?)
        }
        // Apache's licence is in Debian's base files; PowerShell is not Debian's.
        _ => return Ok(None),
    };
    Ok(Some(Entry {
        path: to,
        bytes,
        mode: *mode,
    }))
}

fn packed(release: &Release, files: &[Entry]) -> anyhow::Result<Vec<u8>> {
    let mut gzip = archive::gzip(Vec::new());
    archive::tar(&mut gzip, ".", files, release.epoch)?;
    Ok(gzip.finish()?)
}

fn gzip(bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut gzip = archive::gzip(Vec::new());
    gzip.write_all(bytes)?;
    Ok(gzip.finish()?)
}

const COPYRIGHT: &str = "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: backdraft
Source: https://github.com/backdraft-rs/backdraft

Files: *
Copyright: 2026 The Backdraft authors
License: Apache-2.0 or MIT
 The text of the Apache License 2.0 is in /usr/share/common-licenses/Apache-2.0, that of the
 MIT licence in /usr/share/doc/backdraft/LICENSE-MIT. Crates that are linked in, and their
 licences, are in /usr/share/doc/backdraft/THIRD-PARTY.txt.gz.
";
