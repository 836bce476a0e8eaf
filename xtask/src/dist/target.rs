//! What is built for, and what each kind of machine gets.

use clap::ValueEnum;

/// A platform that releases are made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Target {
    /// Linux with glibc on x86-64
    #[value(name = "x86_64-unknown-linux-gnu")]
    LinuxX86,
    /// Linux with glibc on 64-bit Arm
    #[value(name = "aarch64-unknown-linux-gnu")]
    LinuxArm,
    /// Windows on x86-64
    #[value(name = "x86_64-pc-windows-gnu")]
    Windows,
    /// macOS on Apple silicon; built there
    #[value(name = "aarch64-apple-darwin")]
    Mac,
}

impl Target {
    pub(super) const fn triple(self) -> &'static str {
        match self {
            Self::LinuxX86 => "x86_64-unknown-linux-gnu",
            Self::LinuxArm => "aarch64-unknown-linux-gnu",
            Self::Windows => "x86_64-pc-windows-gnu",
            Self::Mac => "aarch64-apple-darwin",
        }
    }

    /// The GPU backend of its releases. On Linux one file serves machines with NVIDIA's driver and without: libraries are
    /// opened at run time. On Windows CUDA was never run.
    pub(super) const fn backend(self) -> Option<&'static str> {
        match self {
            Self::LinuxX86 | Self::LinuxArm => Some("cuda"),
            Self::Windows => None,
            Self::Mac => Some("wgpu"),
        }
    }

    pub(super) const fn program(self) -> &'static str {
        match self {
            Self::Windows => "backdraft.exe",
            Self::LinuxX86 | Self::LinuxArm | Self::Mac => "backdraft",
        }
    }

    /// Debian's name of the architecture; `None` where there are no such packages.
    pub(super) const fn debian(self) -> Option<&'static str> {
        match self {
            Self::LinuxX86 => Some("amd64"),
            Self::LinuxArm => Some("arm64"),
            Self::Windows | Self::Mac => None,
        }
    }

    pub(super) const fn is_linux(self) -> bool {
        self.debian().is_some()
    }

    /// Whether its programs run on the machine that this is compiled for.
    pub(super) fn is_here(self) -> bool {
        let os = match self {
            Self::LinuxX86 | Self::LinuxArm => "linux",
            Self::Windows => "windows",
            Self::Mac => "macos",
        };
        let arch = match self {
            Self::LinuxX86 | Self::Windows => "x86_64",
            Self::LinuxArm | Self::Mac => "aarch64",
        };
        (os, arch) == (std::env::consts::OS, std::env::consts::ARCH)
    }
}
