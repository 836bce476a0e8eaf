//! `cargo xtask dist`: what a release consists of, for one target at a time.
//!
//! maturin builds the program, with Zig as its linker, so that it runs where glibc is as old as [`GLIBC`], and puts it into a
//! wheel. The same file then goes into an archive and, for Linux, into a Debian package. Times, owners and orders of files
//! are set, paths of this machine are mapped away: two builds of a commit are the same bytes.

mod archive;
mod build;
mod debian;
mod dependencies;
mod notices;
mod sbom;
mod target;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::Args;
use sha2::{Digest, Sha256};

use archive::Entry;
use dependencies::Package;
use target::Target;

/// The oldest glibc that the program runs with: that of Debian 10, RHEL 8 and Ubuntu 18.10.
const GLIBC: &str = "2_28";
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Licences of what is linked in.
const NOTICES: &str = "THIRD-PARTY.txt";

/// For which targets, and where to.
#[derive(Args)]
pub(crate) struct DistArgs {
    /// Triples to build for, one after the other
    #[arg(long = "target", value_name = "TRIPLE", required = true)]
    targets: Vec<Target>,
    /// Leave the GPU backends out
    #[arg(long)]
    cpu: bool,
    /// Directory for what is made
    #[arg(long, value_name = "DIR", default_value = "dist")]
    out: PathBuf,
}

/// What all targets of one call share.
struct Release {
    root: PathBuf,
    out: PathBuf,
    /// When the commit was made, in seconds: the time of every file.
    epoch: u64,
    commit: String,
    cpu: bool,
}

/// Makes the files, and `SHA256SUMS` over all that is in the directory.
///
/// # Errors
/// A tool is missing, a build fails, a file cannot be written; changes that are not committed.
pub(crate) fn run(args: DistArgs) -> anyhow::Result<()> {
    let root = crate::ci::root();
    fs::create_dir_all(&args.out).with_context(|| args.out.display().to_string())?;
    let out = args.out.canonicalize()?;
    let release = Release {
        epoch: git(root, &["log", "-1", "--format=%ct"])?.parse()?,
        commit: git(root, &["rev-parse", "--short=10", "HEAD"])?,
        root: root.to_owned(),
        cpu: args.cpu,
        out,
    };
    let changed = git(root, &["status", "--porcelain", "--untracked-files=no"])?;
    ensure!(
        changed.is_empty(),
        "a release is made of a commit, and these changes are in none:\n{changed}"
    );
    for target in args.targets {
        release.make(target)?;
    }
    release.sums()
}

impl Release {
    fn make(&self, target: Target) -> anyhow::Result<()> {
        let packages = dependencies::of(self, target)?;
        let notices = notices::text(&packages)?;
        let program = build::program(self, target, &notices)?;
        self.pack(target, &program, &packages, notices)
    }

    /// All but the wheel, of a program that is built.
    fn pack(
        &self,
        target: Target,
        program: &Path,
        packages: &[Package],
        notices: String,
    ) -> anyhow::Result<()> {
        let files = self.files(target, program, notices)?;
        println!("{}", describe(program)?);
        let stem = format!("backdraft-{VERSION}-{}{}", target.triple(), self.suffix());
        let archive = self.out.join(format!("{stem}.tar.gz"));
        archive::write(&archive, &stem, &files, self.epoch)?;
        println!("{}", describe(&archive)?);
        let bill = self.out.join(format!("{stem}.cdx.json"));
        fs::write(&bill, sbom::json(packages, self, target)?)?;
        if let Some(architecture) = target.debian() {
            let package = debian::write(self, architecture, &files)?;
            println!("{}", describe(&package)?);
        }
        Ok(())
    }

    /// What the archive holds, by paths that the Debian package gives other places to.
    fn files(&self, target: Target, program: &Path, notices: String) -> anyhow::Result<Vec<Entry>> {
        let read = |path: &Path| fs::read(path).with_context(|| path.display().to_string());
        let mut files = vec![Entry::program(target.program(), read(program)?)];
        for name in ["README.md", "CHANGELOG.md", "LICENSE-APACHE", "LICENSE-MIT"] {
            files.push(Entry::file(name, read(&self.root.join(name))?));
        }
        files.push(Entry::file(NOTICES, notices.into_bytes()));
        let scratch = tempfile::tempdir()?;
        build::help(self, target, program, scratch.path())?;
        for folder in ["completions", "man"] {
            let mut names: Vec<_> = fs::read_dir(scratch.path().join(folder))?
                .map(|entry| Ok(entry?.path()))
                .collect::<std::io::Result<_>>()?;
            names.sort();
            for path in names {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                files.push(Entry::file(&format!("{folder}/{name}"), read(&path)?));
            }
        }
        Ok(files)
    }

    /// What tells a build without GPU backends from one with them.
    const fn suffix(&self) -> &'static str {
        if self.cpu { "-cpu" } else { "" }
    }

    /// `SHA256SUMS`, as `sha256sum --check` reads it.
    fn sums(&self) -> anyhow::Result<()> {
        let mut lines = Vec::new();
        for entry in fs::read_dir(&self.out)? {
            let path = entry?.path();
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if path.is_file() && name != "SHA256SUMS" {
                lines.push(format!("{}  {name}\n", sha256(&path)?));
            }
        }
        lines.sort_by(|a, b| a[64..].cmp(&b[64..]));
        fs::write(self.out.join("SHA256SUMS"), lines.concat())?;
        Ok(())
    }
}

/// Name, megabytes and SHA-256 of a file.
fn describe(path: &Path) -> anyhow::Result<String> {
    let bytes = fs::metadata(path)?.len();
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    #[expect(clippy::cast_precision_loss, reason = "two digits are shown")]
    let megabytes = bytes as f64 / 1e6;
    Ok(format!("{name}  {megabytes:.1} MB  {}", sha256(path)?))
}

fn sha256(path: &Path) -> anyhow::Result<String> {
    let digest = Sha256::digest(fs::read(path).with_context(|| path.display().to_string())?);
    Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn git(root: &Path, arguments: &[&str]) -> anyhow::Result<String> {
    let output = std::process::Command::new("git")
        .args(arguments)
        .current_dir(root)
        .output()
        .context("git")?;
    ensure!(
        output.status.success(),
        "git {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

#[cfg(all(test, target_os = "linux", target_arch = "x86_64"))]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// Answers `completions SHELL` and `man --out DIR` as the program does.
    const PROGRAM: &str = "#!/bin/sh\nset -e\ncase $1 in\n\
        completions) echo \"# $2\";;\n\
        man) mkdir \"$3\"; for page in backdraft backdraft-train; do echo page > \"$3/$page.1\"; done;;\nesac\n";

    fn packages() -> Vec<Package> {
        vec![Package {
            name: "serde".to_owned(),
            version: "1.0.0".to_owned(),
            licence: "MIT OR Apache-2.0".to_owned(),
            repository: None,
            source: Some("registry".to_owned()),
            folder: PathBuf::new(),
            uses: vec![],
        }]
    }

    /// Packs a release twice into folders of its own; returns the first.
    fn packed() -> tempfile::TempDir {
        let [first, second] = [(); 2].map(|()| {
            let folder = tempfile::tempdir().unwrap();
            let program = folder.path().join("program");
            fs::write(&program, PROGRAM).unwrap();
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
            let out = folder.path().join("out");
            fs::create_dir(&out).unwrap();
            let release = Release {
                root: crate::ci::root().to_owned(),
                out,
                epoch: 1_000_000_000,
                commit: "0123456789".to_owned(),
                cpu: true,
            };
            let notices = "licences".to_owned();
            release
                .pack(Target::LinuxX86, &program, &packages(), notices)
                .unwrap();
            release.sums().unwrap();
            folder
        });
        let sums = |folder: &tempfile::TempDir| {
            fs::read_to_string(folder.path().join("out/SHA256SUMS")).unwrap()
        };
        assert_eq!(sums(&first), sums(&second));
        first
    }

    #[test]
    fn a_release_has_its_files_and_their_sums() {
        let folder = packed();
        let out = folder.path().join("out");
        let sums = fs::read_to_string(out.join("SHA256SUMS")).unwrap();
        let names: Vec<&str> = sums
            .lines()
            .map(|line| line.split_once("  ").unwrap().1)
            .collect();
        let stem = format!("backdraft-{VERSION}-x86_64-unknown-linux-gnu-cpu");
        let deb = format!("backdraft-cpu_{VERSION}_amd64.deb");
        let [archive, bill] = ["tar.gz", "cdx.json"].map(|ending| format!("{stem}.{ending}"));
        assert_eq!(names, [&*bill, &*archive, &*deb]);

        let bill: serde_json::Value =
            serde_json::from_slice(&fs::read(out.join(bill)).unwrap()).unwrap();
        assert_eq!(bill["components"][0]["purl"], "pkg:cargo/serde@1.0.0");

        let archive = fs::File::open(out.join(archive)).unwrap();
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(archive));
        let paths: Vec<String> = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .map(|path| path.trim_start_matches(&format!("{stem}/")).to_owned())
            .filter(|path| !path.is_empty())
            .collect();
        let expected = [
            "backdraft",
            "README.md",
            "CHANGELOG.md",
            "LICENSE-APACHE",
            "LICENSE-MIT",
            "THIRD-PARTY.txt",
            "completions/",
            "completions/_backdraft",
            "completions/_backdraft.ps1",
            "completions/backdraft.bash",
            "completions/backdraft.fish",
            "man/",
            "man/backdraft-train.1",
            "man/backdraft.1",
        ];
        assert_eq!(paths, expected);
    }

    /// Sizes and padding of `ar`'s members are as they are said, and files lie where Debian looks for them.
    #[test]
    fn debian_finds_what_it_looks_for() {
        let folder = packed();
        let path = folder
            .path()
            .join(format!("out/backdraft-cpu_{VERSION}_amd64.deb"));
        let bytes = fs::read(path).unwrap();
        let mut rest = bytes.strip_prefix(b"!<arch>\n").unwrap();
        let mut members = Vec::new();
        while !rest.is_empty() {
            let (header, after) = rest.split_at(60);
            let header = std::str::from_utf8(header).unwrap();
            assert!(header.ends_with("`\n"), "{header:?}");
            let size: usize = header[48..58].trim().parse().unwrap();
            members.push((header[..16].trim(), &after[..size]));
            rest = &after[size + size % 2..];
        }
        let names: Vec<&str> = members.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["debian-binary", "control.tar.gz", "data.tar.gz"]);
        assert_eq!(members[0].1, b"2.0\n");
        let mut control = String::new();
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(members[1].1));
        let mut entries = archive.entries().unwrap().map(Result::unwrap);
        let mut file = entries
            .find(|entry| entry.path().unwrap().ends_with("control"))
            .unwrap();
        std::io::Read::read_to_string(&mut file, &mut control).unwrap();
        let version = format!("Version: {VERSION}");
        for line in ["Package: backdraft-cpu", &version, "Conflicts: backdraft"] {
            assert!(
                control.lines().any(|found| found == line),
                "{line} in {control}"
            );
        }
        let mut data = tar::Archive::new(flate2::read::GzDecoder::new(members[2].1));
        let modes: std::collections::BTreeMap<String, u32> = data
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let path = entry.path().unwrap().display().to_string();
                (path, entry.header().mode().unwrap())
            })
            .collect();
        for (path, mode) in [
            ("./usr/bin/backdraft", 0o755),
            ("./usr/share/man/man1/backdraft-train.1.gz", 0o644),
            ("./usr/share/bash-completion/completions/backdraft", 0o644),
            ("./usr/share/zsh/vendor-completions/_backdraft", 0o644),
            ("./usr/share/doc/backdraft/copyright", 0o644),
            ("./usr/share/doc/backdraft/THIRD-PARTY.txt.gz", 0o644),
        ] {
            // Paths of the standard library have no leading dot when they are shown.
            let found = modes.get(path).or_else(|| modes.get(&path[2..]));
            assert_eq!(found, Some(&mode), "{path} of {modes:?}");
        }
    }
}
