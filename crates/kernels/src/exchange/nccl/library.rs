//! NCCL's library, opened at run time, and the few of its calls that move bytes.
//!
//! # Source
//! `nccl.h` of NCCL 2.18 and 2.30: functions, `ncclConfig_t`, results. NCCL reads as much of a configuration as it says to hold, so the
//! oldest layout serves every version.
#![expect(unsafe_code, reason = "calls into a C library")]

use std::env;
use std::ffi::{CStr, OsString, c_char, c_int, c_void};
use std::mem::ManuallyDrop;
use std::path::PathBuf;
use std::sync::OnceLock;

use libloading::Library;

use crate::cuda_libraries::{environments, nccl_files, opened};
use crate::exchange::{NcclError, NcclLibrary, UniqueId};

/// An address of NCCL's: `ncclComm_t`.
pub(super) type Comm = *mut c_void;

/// The oldest version: configurations have had their layout since, and calls that do not block their present meaning.
const OLDEST: c_int = 21_800;

/// `ncclFloat32`.
const FLOAT32: c_int = 7;

/// `ncclSuccess` and `ncclInProgress`.
const SUCCESS: c_int = 0;
const IN_PROGRESS: c_int = 7;

/// `ncclUniqueId`, which is handed over by value.
#[repr(C)]
struct Id([c_char; 128]);

/// `ncclConfig_t` of 2.18, whose last four bytes were nothing then, and are the traffic class since.
#[repr(C)]
struct Config {
    size: usize,
    magic: u32,
    version: u32,
    blocking: c_int,
    cga_cluster_size: c_int,
    min_ctas: c_int,
    max_ctas: c_int,
    net_name: *const c_char,
    split_share: c_int,
    traffic_class: c_int,
}

/// `NCCL_CONFIG_UNDEF_INT`: as NCCL would have it.
const UNDEFINED: c_int = c_int::MIN;

type GetVersion = unsafe extern "C" fn(*mut c_int) -> c_int;
type GetUniqueId = unsafe extern "C" fn(*mut Id) -> c_int;
type InitRankConfig = unsafe extern "C" fn(*mut Comm, c_int, Id, c_int, *mut Config) -> c_int;
type GetAsyncError = unsafe extern "C" fn(Comm, *mut c_int) -> c_int;
type Abort = unsafe extern "C" fn(Comm) -> c_int;
type ErrorString = unsafe extern "C" fn(c_int) -> *const c_char;
type LastError = unsafe extern "C" fn(Comm) -> *const c_char;
type Group = unsafe extern "C" fn() -> c_int;
type Send = unsafe extern "C" fn(*const c_void, usize, c_int, c_int, Comm, *mut c_void) -> c_int;
type Receive = unsafe extern "C" fn(*mut c_void, usize, c_int, c_int, Comm, *mut c_void) -> c_int;

/// NCCL, open to the end of the process.
pub(super) struct Nccl {
    pub(super) found: NcclLibrary,
    get_unique_id: GetUniqueId,
    init_rank_config: InitRankConfig,
    get_async_error: GetAsyncError,
    abort: Abort,
    error_string: ErrorString,
    last_error: LastError,
    group_start: Group,
    group_end: Group,
    send: Send,
    receive: Receive,
}

/// Whether something that was begun has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Done,
    InProgress,
}

/// The library of this process, looked for once.
pub(super) fn nccl() -> Result<&'static Nccl, NcclError> {
    static NCCL: OnceLock<Result<Nccl, NcclError>> = OnceLock::new();
    NCCL.get_or_init(open).as_ref().map_err(Clone::clone)
}

fn open() -> Result<Nccl, NcclError> {
    let named = env::var_os("BACKDRAFT_NCCL").filter(|name| !name.is_empty());
    let names: Vec<OsString> = match named {
        Some(name) => vec![name],
        None => {
            let system = ["libnccl.so.2", "libnccl.so"].map(OsString::from);
            let packages = environments();
            let packages = packages.iter().flat_map(|nvidia| nccl_files(nvidia));
            system
                .into_iter()
                .chain(packages.map(PathBuf::into_os_string))
                .collect()
        }
    };
    let mut tried = Vec::new();
    for name in names {
        // SAFETY: NCCL's initialisers have no conditions; another file is the user's, who has named it.
        let library = unsafe { Library::new(&name) };
        // Never closed: what it starts lives as long as the process.
        let library = library.map(ManuallyDrop::new);
        let nccl = library.map_err(|error| reason(&error)).and_then(|library| {
            // SAFETY: whoever has these names has NCCL's functions.
            unsafe { Nccl::of(&library) }
        });
        match nccl {
            Ok(nccl) => return Ok(nccl),
            Err(why) => tried.push(format!("{}: {why}", name.display())),
        }
    }
    Err(NcclError::NotFound { tried })
}

/// What the system says.
fn reason(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

/// The address of `name`, as what it is said to be.
///
/// # Safety
/// `T` is a pointer of the type that `name` has in the library.
unsafe fn find<T: Copy>(library: &Library, name: &'static str) -> Result<T, String> {
    // SAFETY: the caller's.
    let found = unsafe { library.get::<T>(name.as_bytes()) };
    found.map(|symbol| *symbol).map_err(|error| reason(&error))
}

/// A version as people write it: 22703 is 2.27.3.
fn written(version: c_int) -> String {
    format!(
        "{}.{}.{}",
        version / 10_000,
        version / 100 % 100,
        version % 100
    )
}

impl Nccl {
    /// # Safety
    /// The library is NCCL, if it has these names.
    unsafe fn of(library: &Library) -> Result<Self, String> {
        let mut version = 0;
        // SAFETY: types as in the header; it writes one number.
        let asked = unsafe { find::<GetVersion>(library, "ncclGetVersion")?(&raw mut version) };
        if asked != SUCCESS {
            return Err(format!("ncclGetVersion gives {asked}"));
        }
        if version < OLDEST {
            // Versions before 2.9 are written otherwise, and are less than any of these.
            return Err(format!("version {version} is older than 2.18"));
        }
        // SAFETY: types as in the header.
        unsafe {
            Ok(Self {
                found: NcclLibrary {
                    version: written(version),
                    path: opened("libnccl"),
                },
                get_unique_id: find(library, "ncclGetUniqueId")?,
                init_rank_config: find(library, "ncclCommInitRankConfig")?,
                get_async_error: find(library, "ncclCommGetAsyncError")?,
                abort: find(library, "ncclCommAbort")?,
                error_string: find(library, "ncclGetErrorString")?,
                last_error: find(library, "ncclGetLastError")?,
                group_start: find(library, "ncclGroupStart")?,
                group_end: find(library, "ncclGroupEnd")?,
                send: find(library, "ncclSend")?,
                receive: find(library, "ncclRecv")?,
            })
        }
    }

    fn state(&self, call: &'static str, result: c_int, comm: Comm) -> Result<State, NcclError> {
        match result {
            SUCCESS => Ok(State::Done),
            IN_PROGRESS => Ok(State::InProgress),
            _ => Err(NcclError::Call {
                call,
                message: self.message(result, comm),
            }),
        }
    }

    /// What NCCL says of a result, and of what was behind it.
    fn message(&self, result: c_int, comm: Comm) -> String {
        let text = |text: *const c_char| {
            let there = !text.is_null();
            // SAFETY: NCCL's texts end with zero, and are not changed while nobody calls it.
            there.then(|| {
                unsafe { CStr::from_ptr(text) }
                    .to_string_lossy()
                    .into_owned()
            })
        };
        // SAFETY: any result has a text, and without a communicator the last error is that of the thread.
        let (of_result, last) = unsafe { ((self.error_string)(result), (self.last_error)(comm)) };
        let of_result = text(of_result).unwrap_or_default();
        match text(last).filter(|last| !last.is_empty()) {
            Some(last) => format!("{of_result}: {}", last.trim_end()),
            None => of_result,
        }
    }

    pub(super) fn unique_id(&self) -> Result<UniqueId, NcclError> {
        let mut id = Id([0; 128]);
        // SAFETY: it writes an id.
        let made = unsafe { (self.get_unique_id)(&raw mut id) };
        self.state("ncclGetUniqueId", made, std::ptr::null_mut())?;
        Ok(UniqueId(id.0.map(|byte| byte as u8)))
    }

    /// Begins to join a group; until it is [`state_of`](Self::state_of) `Done` nothing else may be asked of the communicator.
    pub(super) fn begin(
        &self,
        id: &UniqueId,
        (rank, size): (usize, usize),
    ) -> Result<Comm, NcclError> {
        let mut comm = std::ptr::null_mut();
        let mut config = Config {
            size: size_of::<Config>(),
            magic: 0xCAFE_BEEF,
            version: OLDEST as u32,
            blocking: 0,
            cga_cluster_size: UNDEFINED,
            min_ctas: UNDEFINED,
            max_ctas: UNDEFINED,
            net_name: std::ptr::null(),
            split_share: UNDEFINED,
            traffic_class: UNDEFINED,
        };
        let id = Id(id.0.map(|byte| byte as c_char));
        let (size, rank) = (size as c_int, rank as c_int);
        // SAFETY: the configuration says how long it is; NCCL copies it.
        let begun =
            unsafe { (self.init_rank_config)(&raw mut comm, size, id, rank, &raw mut config) };
        let call = "ncclCommInitRankConfig";
        let begun = self.state(call, begun, std::ptr::null_mut());
        if begun.is_err() && !comm.is_null() {
            self.give_up(comm);
        }
        begun.map(|_| comm)
    }

    /// What has become of what was begun.
    pub(super) fn state_of(&self, comm: Comm, call: &'static str) -> Result<State, NcclError> {
        let mut result = SUCCESS;
        // SAFETY: a communicator of ours; it writes one number.
        let asked = unsafe { (self.get_async_error)(comm, &raw mut result) };
        self.state("ncclCommGetAsyncError", asked, comm)?;
        self.state(call, result, comm)
    }

    /// Ends whatever the communicator does. It must not be used any more.
    pub(super) fn give_up(&self, comm: Comm) {
        // SAFETY: a communicator of ours, for the last time. There is nothing to do about an error.
        let _ = unsafe { (self.abort)(comm) };
    }

    /// What `calls` begin goes together.
    pub(super) fn grouped(
        &self,
        comm: Comm,
        calls: impl FnOnce() -> Result<(), NcclError>,
    ) -> Result<(), NcclError> {
        // SAFETY: no arguments; a group that was started is ended.
        let started = unsafe { (self.group_start)() };
        self.state("ncclGroupStart", started, comm)?;
        let called = calls();
        // SAFETY: as above.
        let ended = unsafe { (self.group_end)() };
        called?;
        self.state("ncclGroupEnd", ended, comm).map(drop)
    }

    /// # Safety
    /// `count` numbers of `f32` lie at `address` on the communicator's device, until what was begun on `stream` has ended.
    pub(super) unsafe fn send(
        &self,
        comm: Comm,
        (address, count): (u64, usize),
        peer: usize,
        stream: *mut c_void,
    ) -> Result<(), NcclError> {
        let from = address as *const c_void;
        // SAFETY: the caller's.
        let sent = unsafe { (self.send)(from, count, FLOAT32, peer as c_int, comm, stream) };
        self.state("ncclSend", sent, comm).map(drop)
    }

    /// # Safety
    /// As [`send`](Self::send); nobody else uses the numbers.
    pub(super) unsafe fn receive(
        &self,
        comm: Comm,
        (address, count): (u64, usize),
        peer: usize,
        stream: *mut c_void,
    ) -> Result<(), NcclError> {
        let to = address as *mut c_void;
        // SAFETY: the caller's.
        let received = unsafe { (self.receive)(to, count, FLOAT32, peer as c_int, comm, stream) };
        self.state("ncclRecv", received, comm).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_is_laid_out_as_in_c() {
        assert_eq!(size_of::<Config>(), 48);
        assert_eq!(std::mem::offset_of!(Config, net_name), 32);
        assert_eq!(std::mem::offset_of!(Config, traffic_class), 44);
        assert_eq!(size_of::<Id>(), 128);
        assert_eq!(written(22_703), "2.27.3");
    }

    /// Whatever machine this is: what was found is new enough, and what was not found is told.
    #[test]
    fn a_library_is_found_or_what_was_tried_is_said() {
        match nccl() {
            Ok(nccl) => assert!(nccl.found.version.starts_with("2."), "{:?}", nccl.found),
            Err(error) => {
                let said = error.to_string();
                assert!(said.contains("tried libnccl.so.2: "), "{said}");
            }
        }
    }
}
