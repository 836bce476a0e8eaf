//! Open MPI's library, opened at run time, and the few of its calls that move bytes.
//!
//! # Source
//! MPI 4.0, A.2 (C bindings); Open MPI 4 and 5 `mpi.h` (what the names of MPI stand for: handles are addresses of the
//! library's own objects). MPICH's handles are numbers; its library lacks these objects and is refused.
#![expect(unsafe_code, reason = "calls into a C library")]

use std::ffi::{CStr, OsString, c_char, c_int, c_void};
use std::mem::ManuallyDrop;
use std::ptr;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

use crate::CommError;

/// Addresses of objects of the library.
pub(super) type Handle = *mut c_void;

/// Calls by several threads, one at a time (`MPI_THREAD_SERIALIZED`).
const SERIALIZED: c_int = 2;

/// `MPI_Status` is 24 bytes in Open MPI.
#[repr(C, align(16))]
pub(super) struct Status([u8; 64]);

/// `MPI_MAX_ERROR_STRING` is 256 in Open MPI.
const LONGEST: usize = 1024;

type InitThread =
    unsafe extern "C" fn(*mut c_int, *mut *mut *mut c_char, c_int, *mut c_int) -> c_int;
type Nothing = unsafe extern "C" fn() -> c_int;
type OfComm = unsafe extern "C" fn(Handle, *mut c_int) -> c_int;
type Dup = unsafe extern "C" fn(Handle, *mut Handle) -> c_int;
type SetHandler = unsafe extern "C" fn(Handle, Handle) -> c_int;
type Send =
    unsafe extern "C" fn(*const c_void, c_int, Handle, c_int, c_int, Handle, *mut Handle) -> c_int;
type Receive =
    unsafe extern "C" fn(*mut c_void, c_int, Handle, c_int, c_int, Handle, *mut Handle) -> c_int;
type Test = unsafe extern "C" fn(*mut Handle, *mut c_int, *mut Status) -> c_int;
type Count = unsafe extern "C" fn(*const Status, Handle, *mut c_int) -> c_int;
type ErrorText = unsafe extern "C" fn(c_int, *mut c_char, *mut c_int) -> c_int;

/// MPI, begun.
pub(super) struct Mpi {
    finalize: Nothing,
    rank: OfComm,
    size: OfComm,
    isend: Send,
    irecv: Receive,
    test: Test,
    get_count: Count,
    error_text: ErrorText,
    comm: Handle,
    byte: Handle,
}

// SAFETY: handles are addresses of objects that live as long as the library, which is never closed, and MPI was asked for,
// and granted, calls from several threads, one at a time, which `&mut` of the engine ensures.
unsafe impl std::marker::Send for Mpi {}

/// The library, by the first name that works.
fn open() -> Result<Library, CommError> {
    let named = std::env::var_os("BACKDRAFT_MPI").filter(|name| !name.is_empty());
    let names = match named {
        Some(name) => vec![name],
        None => ["libmpi.so.40", "libmpi.so"].map(OsString::from).to_vec(),
    };
    let mut tried = Vec::new();
    for name in names {
        // SAFETY: the library is the MPI that the user has installed or named; its initialisers are trusted with it. Its
        // plugins find its names only where these are global.
        let opened = unsafe { Library::open(Some(&name), RTLD_NOW | RTLD_GLOBAL) };
        match opened {
            // SAFETY: only the address is looked at.
            Ok(library) => match unsafe { library.get::<Handle>(b"ompi_mpi_comm_world\0") } {
                Ok(_) => return Ok(library),
                Err(_) => tried.push(format!("{}: not Open MPI's", name.display())),
            },
            Err(error) => tried.push(format!("{}: {error}", name.display())),
        }
    }
    Err(CommError::NoMpi { tried })
}

/// The address of `name`, as what it is said to be.
///
/// # Safety
/// `T` is a pointer of the type that `name` has in the library.
unsafe fn find<T: Copy>(library: &Library, name: &'static str) -> Result<T, CommError> {
    // SAFETY: the caller's.
    let found = unsafe { library.get::<T>(name.as_bytes()) };
    found
        .map(|symbol| *symbol)
        .map_err(|error| CommError::NoMpi {
            tried: vec![format!("{name}: {error}")],
        })
}

impl Mpi {
    /// Opens the library and begins MPI, with a communicator of our own whose errors come back.
    pub(super) fn begin() -> Result<Self, CommError> {
        // Never closed: what MPI leaves behind at exit is in it.
        let library = ManuallyDrop::new(open()?);
        // SAFETY: the types are those of the bindings; data is looked up as its address.
        let (mut mpi, init_thread, dup, set_handler, world, returns) = unsafe {
            let mpi = Self {
                finalize: find(&library, "MPI_Finalize")?,
                rank: find(&library, "MPI_Comm_rank")?,
                size: find(&library, "MPI_Comm_size")?,
                isend: find(&library, "MPI_Isend")?,
                irecv: find(&library, "MPI_Irecv")?,
                test: find(&library, "MPI_Test")?,
                get_count: find(&library, "MPI_Get_count")?,
                error_text: find(&library, "MPI_Error_string")?,
                comm: ptr::null_mut(),
                byte: find::<Handle>(&library, "ompi_mpi_byte")?,
            };
            (
                mpi,
                find::<InitThread>(&library, "MPI_Init_thread")?,
                find::<Dup>(&library, "MPI_Comm_dup")?,
                find::<SetHandler>(&library, "MPI_Comm_set_errhandler")?,
                find::<Handle>(&library, "ompi_mpi_comm_world")?,
                find::<Handle>(&library, "ompi_mpi_errors_return")?,
            )
        };
        let mut granted = 0;
        // SAFETY: begun once in a process (`MpiEngine::begin`); no arguments are passed on; the others point to locals.
        unsafe {
            let begun = init_thread(
                ptr::null_mut(),
                ptr::null_mut(),
                SERIALIZED,
                &raw mut granted,
            );
            mpi.check("MPI_Init_thread", begun)?;
            let dupped = dup(world, &raw mut mpi.comm);
            mpi.check("MPI_Comm_dup", dupped)?;
            mpi.check("MPI_Comm_set_errhandler", set_handler(mpi.comm, returns))?;
        }
        if granted < SERIALIZED {
            return Err(CommError::Mpi {
                call: "MPI_Init_thread",
                message: format!(
                    "calls from one thread only are granted ({granted}, of {SERIALIZED} needed)"
                ),
            });
        }
        Ok(mpi)
    }

    fn check(&self, call: &'static str, code: c_int) -> Result<(), CommError> {
        if code == 0 {
            return Ok(());
        }
        let (mut text, mut length) = ([0 as c_char; LONGEST], 0);
        // SAFETY: the text has room for four times what Open MPI writes.
        let named = unsafe { (self.error_text)(code, text.as_mut_ptr(), &raw mut length) };
        text[LONGEST - 1] = 0;
        // SAFETY: it ends with the zero just set, if not before.
        let text = unsafe { CStr::from_ptr(text.as_ptr()) }.to_string_lossy();
        let message = match named {
            0 => text.into_owned(),
            _ => format!("error {code}"),
        };
        Err(CommError::Mpi { call, message })
    }

    /// This process's rank, and how many there are.
    pub(super) fn place(&self) -> Result<(c_int, c_int), CommError> {
        let (mut rank, mut size) = (0, 0);
        // SAFETY: the communicator is ours, the others point to locals.
        unsafe {
            self.check("MPI_Comm_rank", (self.rank)(self.comm, &raw mut rank))?;
            self.check("MPI_Comm_size", (self.size)(self.comm, &raw mut size))?;
        }
        Ok((rank, size))
    }

    /// Begins to send.
    ///
    /// # Safety
    /// `bytes` stay where and as they are until the request has ended.
    pub(super) unsafe fn send(
        &self,
        bytes: &[u8],
        to: usize,
        tag: c_int,
    ) -> Result<Handle, CommError> {
        let mut request = ptr::null_mut();
        let (at, count) = (bytes.as_ptr().cast(), bytes.len() as c_int);
        // SAFETY: the caller keeps the bytes; the length fits (`PIECE`).
        let code = unsafe {
            (self.isend)(
                at,
                count,
                self.byte,
                to as c_int,
                tag,
                self.comm,
                &raw mut request,
            )
        };
        self.check("MPI_Isend", code)?;
        Ok(request)
    }

    /// Begins to receive.
    ///
    /// # Safety
    /// Nobody uses `bytes` until the request has ended, and they stay where they are.
    pub(super) unsafe fn receive(
        &self,
        bytes: &mut [u8],
        from: usize,
        tag: c_int,
    ) -> Result<Handle, CommError> {
        let mut request = ptr::null_mut();
        let (at, count) = (bytes.as_mut_ptr().cast(), bytes.len() as c_int);
        // SAFETY: the caller keeps the bytes; the length fits (`PIECE`).
        let code = unsafe {
            (self.irecv)(
                at,
                count,
                self.byte,
                from as c_int,
                tag,
                self.comm,
                &raw mut request,
            )
        };
        self.check("MPI_Irecv", code)?;
        Ok(request)
    }

    /// How many bytes the request moved, if it has ended; it is none any more then. Of a send the number means nothing.
    pub(super) fn ended(&self, request: &mut Handle) -> Result<Option<usize>, CommError> {
        let (mut ended, mut count) = (0, 0);
        let mut status = Status([0; 64]);
        // SAFETY: a request that `send` or `receive` made and that has not ended; the others point to locals.
        unsafe {
            let code = (self.test)(request, &raw mut ended, &raw mut status);
            self.check("MPI_Test", code)?;
            if ended == 0 {
                return Ok(None);
            }
            let code = (self.get_count)(&raw const status, self.byte, &raw mut count);
            self.check("MPI_Get_count", code)?;
        }
        Ok(Some(usize::try_from(count).unwrap_or(0)))
    }

    /// Ends MPI in this process; waits for the others to do so.
    pub(super) fn finish(&self) {
        // SAFETY: begun in `begin`, and ended once, when the engine is dropped.
        let _ = unsafe { (self.finalize)() };
    }
}
