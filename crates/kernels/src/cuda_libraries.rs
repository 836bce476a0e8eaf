//! NVIDIA's libraries and headers in Python's packages, for machines that have no CUDA toolkit.
//!
//! PyTorch brings NVRTC and cuBLASLt as packages of their own, and `pip install` brings the headers. They lie in
//! `site-packages/nvidia`, where no loader looks: [`prepare`] opens them by their paths, after which whoever asks for them by name
//! gets the ones that are open.

use std::collections::BTreeSet;
use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

/// The header without which a folder of headers is none.
const RUNTIME: &str = "cuda_runtime.h";

/// Whether NCCL adds in NVLink's switches.
#[cfg(feature = "cuda")]
const NVLS: &str = "NCCL_NVLS_ENABLE";

/// One CUDA version in a folder `nvidia`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Packages {
    major: u32,
    /// Folders of libraries.
    libraries: Vec<PathBuf>,
    /// Folders of headers, the one with `cuda_runtime.h` first.
    headers: Vec<PathBuf>,
}

impl Packages {
    /// All that `nvidia` holds: since CUDA 13 in one folder for each version, before in one for each package.
    fn of(nvidia: &Path) -> Vec<Self> {
        let versions = names(nvidia).into_iter().filter_map(|name| {
            let major = name.to_str()?.strip_prefix("cu")?.parse().ok()?;
            let root = nvidia.join(name);
            Some(Self {
                major,
                libraries: vec![root.join("lib")],
                headers: vec![root.join("include")],
            })
        });
        let each = |part: &str| {
            let packages = [
                "cuda_nvrtc",
                "cublas",
                "cuda_runtime",
                "cuda_nvcc",
                "cuda_cccl",
            ];
            packages.map(|package| nvidia.join(package).join(part))
        };
        let [nvrtc, cublas, ..] = each("lib");
        let [.., runtime, nvcc, cccl] = each("include");
        let before = version_of(&nvrtc, "libnvrtc.so.").map(|major| Self {
            major,
            libraries: vec![nvrtc, cublas],
            headers: vec![runtime, nvcc, cccl],
        });
        let mut all: Vec<Self> = versions.chain(before).collect();
        all.sort_by_key(|packages| std::cmp::Reverse(packages.major));
        all
    }

    /// Files of these folders whose name begins so.
    fn files(&self, prefix: &str) -> Vec<PathBuf> {
        let in_folder = |folder: &PathBuf| {
            let found = names(folder)
                .into_iter()
                .filter(|name| begins(name, prefix));
            let paths: Vec<PathBuf> = found.map(|name| folder.join(name)).collect();
            paths
        };
        self.libraries.iter().flat_map(in_folder).collect()
    }

    /// The headers that kernels ask for and these folders lack.
    fn missing_headers(&self) -> Vec<&'static str> {
        let has = |header: &str| {
            let inside = ["", "cccl"].map(|folder| Path::new(folder).join(header));
            let mut folders = self.headers.iter();
            folders.any(|folder| inside.iter().any(|header| folder.join(header).is_file()))
        };
        let needed = [RUNTIME, "crt/mma.h", "cuda/barrier", "nv/target"];
        needed.into_iter().filter(|header| !has(header)).collect()
    }

    /// A folder with `include` in it, as a toolkit is: that of the packages, or one of links beneath `cache`.
    fn toolkit(&self, cache: &Path) -> std::io::Result<PathBuf> {
        if let [one] = &self.headers[..]
            && let Some(root) = one.parent()
        {
            return Ok(root.to_owned());
        }
        let mut hasher = DefaultHasher::new();
        self.headers.hash(&mut hasher);
        let name = format!("cuda-{}-headers-{:016x}", self.major, hasher.finish());
        let root = cache.join(&name);
        let is_whole = || root.join("include").join(RUNTIME).is_file();
        if is_whole() {
            return Ok(root);
        }
        // Of an environment that is gone, or of none; made apart, since other processes may look for it.
        let _ = fs::remove_dir_all(&root);
        let partial = cache.join(format!("{name}.partial-{}", std::process::id()));
        let include = partial.join("include");
        fs::create_dir_all(&include)?;
        for folder in &self.headers {
            link(folder, &include)?;
        }
        match fs::rename(&partial, &root) {
            Err(error) if !is_whole() => Err(error),
            // Where another process was faster, its links are the same.
            _ => {
                let _ = fs::remove_dir_all(&partial);
                Ok(root)
            }
        }
    }
}

/// Puts links to what `from` holds into `to`; folders that both have are joined.
fn link(from: &Path, to: &Path) -> std::io::Result<()> {
    for name in names(from) {
        let (source, target) = (from.join(&name), to.join(&name));
        if source.is_dir() {
            fs::create_dir_all(&target)?;
            link(&source, &target)?;
        } else if !target.exists() {
            #[cfg(unix)]
            std::os::unix::fs::symlink(&source, &target)?;
            #[cfg(not(unix))]
            fs::copy(&source, &target)?;
        }
    }
    Ok(())
}

/// Names in a folder, in their order; none of one that cannot be read.
fn names(folder: &Path) -> BTreeSet<OsString> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name()).collect()
}

fn begins(name: &OsStr, prefix: &str) -> bool {
    name.to_str().is_some_and(|name| name.starts_with(prefix))
}

/// The number behind `prefix` in the name of a file of `folder`.
fn version_of(folder: &Path, prefix: &str) -> Option<u32> {
    let mut names = names(folder).into_iter();
    names.find_map(|name| name.to_str()?.strip_prefix(prefix)?.parse().ok())
}

/// The folders `nvidia` of Python environments: the active one, the one that this program is installed in, and those whose
/// interpreters are on the path, in this order.
pub(crate) fn environments() -> Vec<PathBuf> {
    let variable = |name| env::var_os(name).map(PathBuf::from);
    let program = env::current_exe().ok();
    let program = program.and_then(|program| Some(program.parent()?.parent()?.to_owned()));
    let path = env::var_os("PATH").unwrap_or_default();
    let of_path = env::split_paths(&path).filter(|bin| bin.join("python3").exists());
    let of_path = of_path.filter_map(|bin| Some(bin.parent()?.to_owned()));
    let user = variable("HOME").map(|home| home.join(".local"));
    let mut found = Vec::new();
    let active = [variable("VIRTUAL_ENV"), variable("CONDA_PREFIX"), program];
    for prefix in active.into_iter().flatten().chain(of_path).chain(user) {
        for nvidia in nvidia_in(&prefix) {
            if !found.contains(&nvidia) {
                found.push(nvidia);
            }
        }
    }
    found
}

/// Folders `nvidia` of the interpreters of one prefix, such as `/usr/local`.
fn nvidia_in(prefix: &Path) -> Vec<PathBuf> {
    let versions = ["lib", "lib64"].into_iter().flat_map(|lib| {
        let lib = prefix.join(lib);
        let python = names(&lib)
            .into_iter()
            .filter(|name| begins(name, "python3"));
        let folders: Vec<PathBuf> = python.map(|name| lib.join(name)).collect();
        folders
    });
    let packages = versions
        .flat_map(|version| ["site-packages", "dist-packages"].map(|name| version.join(name)));
    packages
        .map(|packages| packages.join("nvidia"))
        .filter(|nvidia| nvidia.is_dir())
        .collect()
}

/// NCCL's files of the packages in `nvidia`: one for all versions of CUDA, or one of each.
pub(crate) fn nccl_files(nvidia: &Path) -> Vec<PathBuf> {
    let folders = names(nvidia).into_iter();
    let folders = folders.filter(|name| name == "nccl" || begins(name, "cu"));
    let libraries = folders.map(|name| nvidia.join(name).join("lib"));
    let files = libraries.flat_map(|folder| {
        let files = names(&folder).into_iter();
        let files = files.filter(|name| begins(name, "libnccl.so."));
        files
            .map(|name| folder.join(name))
            .collect::<Vec<PathBuf>>()
    });
    files.collect()
}

/// What a machine lacks.
#[derive(Clone, Copy, Debug)]
struct Lacks {
    nvrtc: bool,
    cublas: bool,
    headers: bool,
    /// The newest CUDA that the driver serves.
    driver: u32,
}

/// What to open, and the folder that takes a toolkit's place.
#[derive(Debug, Default, PartialEq)]
struct Chosen {
    open: Vec<PathBuf>,
    toolkit: Option<PathBuf>,
}

/// Fills in what is lacking from the first packages that have it and that the driver serves.
fn choose(lacks: Lacks, nvidia: &[PathBuf], cache: &Path) -> Chosen {
    let Lacks {
        mut nvrtc,
        mut cublas,
        mut headers,
        driver,
    } = lacks;
    let mut chosen = Chosen::default();
    let served = |packages: &Packages| packages.major <= driver;
    let all = nvidia.iter().flat_map(|nvidia| Packages::of(nvidia));
    for packages in all.filter(served) {
        let compiler = packages.files("libnvrtc.so.");
        if nvrtc && !compiler.is_empty() {
            // The compiler asks for its built-in functions by name.
            chosen.open.extend(packages.files("libnvrtc-builtins.so."));
            chosen.open.extend(compiler);
            nvrtc = false;
        }
        let products = packages.files("libcublasLt.so.");
        if cublas && !products.is_empty() {
            chosen.open.extend(products);
            cublas = false;
        }
        if headers && packages.missing_headers().is_empty() {
            chosen.toolkit = packages.toolkit(cache).ok();
            headers = chosen.toolkit.is_none();
        }
    }
    chosen
}

/// Opens what the system does not have and a Python environment does, and sets `CUDA_PATH` where only that has headers. Keeps NCCL
/// from adding in a switch, which we have no use for and which takes memory, unless the user has said something else. Does nothing
/// without NVIDIA's driver.
///
/// `cache` is a folder for links to headers, made where CUDA 12's packages need one.
///
/// # Safety
/// No other thread may run: the environment is changed.
#[cfg(feature = "cuda")]
#[expect(unsafe_code, reason = "opens libraries, and tells CubeCL of a folder")]
pub(crate) unsafe fn prepare(cache: &Path) {
    // SAFETY: the initialisers of NVIDIA's libraries have no conditions.
    let [driver, nvrtc, cublas] = unsafe {
        [
            cudarc::driver::sys::is_culib_present(),
            cudarc::nvrtc::sys::is_culib_present(),
            cudarc::cublaslt::sys::is_culib_present(),
        ]
    };
    let lacks = Lacks {
        nvrtc: !nvrtc,
        cublas: !cublas,
        headers: system_headers().is_none(),
        driver: match driver {
            true => driver_version() / 1000,
            false => return,
        },
    };
    if env::var_os(NVLS).is_none() {
        // SAFETY: the caller promises that no other thread runs.
        unsafe { env::set_var(NVLS, "0") };
    }
    if !(lacks.nvrtc || lacks.cublas || lacks.headers) {
        return;
    }
    let chosen = choose(lacks, &environments(), cache);
    for path in &chosen.open {
        // SAFETY: as above.
        if let Ok(library) = unsafe { libloading::Library::new(path) } {
            // Open to the end of the process.
            std::mem::forget(library);
        }
    }
    if let Some(toolkit) = chosen.toolkit {
        // SAFETY: the caller promises that no other thread runs.
        unsafe { env::set_var("CUDA_PATH", toolkit) };
    }
}

/// The folder of headers that kernels are compiled with.
#[cfg(feature = "cuda")]
pub(crate) fn system_headers() -> Option<PathBuf> {
    let include = cubecl::cuda::install::cuda_path()?.join("include");
    include.join(RUNTIME).is_file().then_some(include)
}

/// The newest CUDA that the driver serves, such as 13000.
#[cfg(feature = "cuda")]
pub(crate) fn driver_version() -> u32 {
    let mut version = 0;
    #[expect(unsafe_code, reason = "calls the driver")]
    // SAFETY: the driver is open, and writes one number.
    let asked = unsafe { cudarc::driver::sys::cuDriverGetVersion(&raw mut version) };
    match asked {
        cudarc::driver::sys::CUresult::CUDA_SUCCESS => version as u32,
        _ => 0,
    }
}

/// Where the libraries of this process were found; none where the system does not tell.
#[cfg(feature = "cuda")]
pub(crate) fn places() -> Vec<(&'static str, PathBuf)> {
    #[expect(unsafe_code, reason = "opens libraries")]
    // SAFETY: their initialisers have no conditions. A question for one opens and closes it; from here on they stay.
    unsafe {
        if cudarc::nvrtc::sys::is_culib_present() {
            cudarc::nvrtc::sys::culib();
        }
        if crate::gemm::cublaslt::is_present() {
            cudarc::cublaslt::sys::culib();
        }
    }
    let named = [
        ("NVRTC", opened("libnvrtc.so")),
        ("cuBLASLt", opened("libcublasLt.so")),
        ("headers", system_headers()),
    ];
    let found = named.into_iter();
    found
        .filter_map(|(name, path)| Some((name, path?)))
        .collect()
}

/// The file of an open library whose name begins so; `None` where the system does not tell.
#[cfg(feature = "cuda")]
pub(crate) fn opened(prefix: &str) -> Option<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let paths = maps
        .lines()
        .filter_map(|line| line.find('/').map(|at| &line[at..]));
    let mut paths = paths.map(Path::new);
    let path = paths.find(|path| path.file_name().is_some_and(|name| begins(name, prefix)));
    path.map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(path: PathBuf) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
    }

    const HEADERS: [&str; 3] = ["cuda_runtime.h", "crt/mma.h", "cccl/cuda/barrier"];

    /// CUDA 13's packages as `pip` lays them out.
    fn thirteen(nvidia: &Path) {
        for library in [
            "libnvrtc.so.13",
            "libnvrtc-builtins.so.13.0",
            "libcublasLt.so.13",
        ] {
            touch(nvidia.join("cu13/lib").join(library));
        }
        for header in HEADERS.into_iter().chain(["nv/target"]) {
            touch(nvidia.join("cu13/include").join(header));
        }
    }

    /// CUDA 12's.
    fn twelve(nvidia: &Path) {
        touch(nvidia.join("cuda_nvrtc/lib/libnvrtc.so.12"));
        touch(nvidia.join("cuda_nvrtc/lib/libnvrtc-builtins.so.12.9"));
        touch(nvidia.join("cublas/lib/libcublasLt.so.12"));
        touch(nvidia.join("cuda_runtime/include/cuda_runtime.h"));
        touch(nvidia.join("cuda_runtime/include/crt/host_defines.h"));
        touch(nvidia.join("cuda_nvcc/include/crt/mma.h"));
        touch(nvidia.join("cuda_cccl/include/cuda/barrier"));
        touch(nvidia.join("cuda_cccl/include/nv/target"));
    }

    const ALL: Lacks = Lacks {
        nvrtc: true,
        cublas: true,
        headers: true,
        driver: 13,
    };

    #[test]
    fn packages_take_the_place_of_a_toolkit() {
        let root = tempfile::tempdir().unwrap();
        let packages = root.path().join("lib/python3.12/site-packages");
        let all = [packages.join("nvidia")];
        let [nvidia] = &all;
        thirteen(nvidia);
        assert_eq!(nvidia_in(root.path()), all);
        let cache = root.path().join("cache");
        let chosen = choose(ALL, &all, &cache);
        let lib = nvidia.join("cu13/lib");
        // The functions that the compiler asks for are open before it is.
        let open = [
            "libnvrtc-builtins.so.13.0",
            "libnvrtc.so.13",
            "libcublasLt.so.13",
        ];
        assert_eq!(chosen.open, open.map(|name| lib.join(name)));
        assert_eq!(chosen.toolkit, Some(nvidia.join("cu13")));
        assert!(!cache.exists());
        // What is there already is not looked for.
        let lacks = Lacks {
            nvrtc: false,
            headers: false,
            ..ALL
        };
        let chosen = choose(lacks, &all, &cache);
        assert_eq!(chosen.open, [lib.join("libcublasLt.so.13")]);
        assert_eq!(chosen.toolkit, None);
    }

    #[test]
    fn nccl_lies_in_a_package_of_its_own_or_with_a_version() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(nccl_files(root.path()), [] as [PathBuf; 0]);
        let files = ["cu13/lib", "nccl/lib"].map(|folder| root.path().join(folder));
        let files = files.map(|folder| folder.join("libnccl.so.2"));
        for file in &files {
            touch(file.clone());
        }
        touch(root.path().join("cublas/lib/libcublas.so.12"));
        assert_eq!(nccl_files(root.path()), files);
    }

    #[test]
    fn a_driver_gets_what_it_serves() {
        let root = tempfile::tempdir().unwrap();
        let nvidia = [root.path().join("a"), root.path().join("b")];
        thirteen(&nvidia[0]);
        twelve(&nvidia[1]);
        let old = Lacks { driver: 12, ..ALL };
        let cache = root.path().join("cache");
        let chosen = choose(old, &nvidia, &cache);
        assert!(chosen.open.iter().all(|path| path.starts_with(&nvidia[1])));
        assert_eq!(chosen.open.len(), 3);
        // Headers of several packages are joined, once.
        let toolkit = chosen.toolkit.unwrap();
        let again = choose(old, &nvidia, &cache).toolkit;
        assert_eq!(again.as_ref(), Some(&toolkit));
        assert_eq!(names(&cache).len(), 1);
        let include = toolkit.join("include");
        for header in [
            "cuda_runtime.h",
            "crt/mma.h",
            "crt/host_defines.h",
            "cuda/barrier",
        ] {
            assert!(include.join(header).is_file(), "{header}");
        }
        assert_eq!(
            choose(Lacks { driver: 11, ..ALL }, &nvidia, &cache),
            Chosen::default()
        );
    }

    #[test]
    fn headers_that_lack_one_are_none() {
        let root = tempfile::tempdir().unwrap();
        thirteen(root.path());
        fs::remove_file(root.path().join("cu13/include/crt/mma.h")).unwrap();
        let [packages] = &Packages::of(root.path())[..] else {
            panic!("one version")
        };
        assert_eq!(packages.missing_headers(), ["crt/mma.h"]);
        let chosen = choose(ALL, &[root.path().to_owned()], root.path());
        assert_eq!((chosen.open.len(), chosen.toolkit), (3, None));
    }
}
