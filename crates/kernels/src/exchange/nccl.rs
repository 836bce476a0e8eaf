//! Processes whose cards exchange through NCCL, on the stream that CubeCL launches its kernels on.
//!
//! Calls run on CubeCL's device thread, in order with all launches; nothing waits for them, and addresses are looked up at each. The
//! communicators live there, to the end of the process, and do not block: a call that is in progress is waited for on that thread, so
//! that no later launch overtakes it.

mod library;

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use burn::tensor::{DType, Device, Tensor};
use cubecl::cuda::CudaRuntime;
use cubecl::server::{BufferBinding, ServerError, ServerStorage};
use cubecl_common::device::DeviceId;
use cubecl_common::device_handle::DeviceHandle;
use cubecl_environment::backtrace::BackTrace;
use cubecl_environment::stream::StreamId;
use cubecl_server::runtime::Runtime;
use cubecl_server::stream::{ExecuteScope, WriteScoped};

use self::library::{Comm, Nccl, State, nccl};
use super::cube::add_rows_into;
use super::shares::Chunk;
use super::{Moves, NcclError, NcclLibrary, Piece, UniqueId};
use crate::cube::{CubeTensor, floats};
use crate::views::cube::cut;

type CudaServer = <CudaRuntime as Runtime>::Server;

/// Between looks at what is in progress.
const PAUSE: Duration = Duration::from_micros(20);

/// The NCCL of this process.
///
/// # Errors
/// There is none, or only older ones.
pub fn found() -> Result<NcclLibrary, NcclError> {
    nccl().map(|nccl| nccl.found.clone())
}

/// What a group meets by: for one of its processes to make, and to tell the others.
///
/// # Errors
/// There is no NCCL; it finds no network interface to meet at.
pub fn unique_id() -> Result<UniqueId, NcclError> {
    nccl()?.unique_id()
}

/// Processes whose cards exchange, as one of them sees them. Every one makes the same calls in the same order.
#[derive(Clone, Debug)]
pub struct Group {
    number: u64,
    device: DeviceId,
    rank: usize,
    size: usize,
}

thread_local! {
    /// Of the device thread, which alone calls NCCL.
    static COMMUNICATORS: RefCell<HashMap<u64, Communicator>> = RefCell::default();
}

impl Group {
    /// Joins the others on `device`, as process `rank` of `size`, and has every pair of them exchange a number, so that whatever
    /// NCCL needs is there from then on. Waiting ends after `timeout`.
    ///
    /// # Errors
    /// No NCCL, or no card of NVIDIA's; the others do not come; NCCL cannot connect them.
    pub fn join(
        device: &Device,
        id: &UniqueId,
        (rank, size): (usize, usize),
        timeout: Duration,
    ) -> Result<Self, NcclError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let nccl = nccl()?;
        let numbers = Tensor::<1>::full([2 * size], rank as f32, (device, DType::F32));
        let on_card = floats(&numbers).filter(|x| matches!(x.device, cubecl::Device::Cuda(_)));
        let numbers = on_card.ok_or(NcclError::NoCard)?;
        let group = Self {
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            device: numbers.client.service_id().device,
            rank,
            size,
        };
        let (number, id) = (group.number, *id);
        let join = move |_: &mut CudaServer| {
            let joined = Communicator::join(nccl, &id, (rank, size), timeout)?;
            COMMUNICATORS.with_borrow_mut(|all| all.insert(number, joined));
            Ok(())
        };
        let joined = group.handle().submit_blocking(join);
        joined.unwrap_or_else(|error| {
            let message = format!("{error:?}");
            Err(NcclError::Device { message })
        })?;
        group.try_out(&numbers)?;
        Ok(group)
    }

    /// Which process this is.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many there are.
    pub fn size(&self) -> usize {
        self.size
    }

    fn handle(&self) -> DeviceHandle<CudaServer> {
        DeviceHandle::new(self.device)
    }

    /// Everybody's number, of which `numbers` has one for each process, and room for as many.
    fn try_out(&self, numbers: &CubeTensor) -> Result<(), NcclError> {
        let piece = |start: usize| {
            let pieces = (0..self.size).map(|peer| Piece {
                peer,
                buffer: 0,
                start: start + peer,
                count: 1,
            });
            pieces.collect()
        };
        let moves = Moves {
            send: piece(0),
            receive: piece(self.size),
        };
        self.enqueue(moves, vec![numbers], 0);
        let data = crate::cube::tensor::<1>(numbers.clone()).try_into_data();
        let data = data.map_err(|error| NcclError::Device {
            message: error.to_string(),
        })?;
        let found: Vec<f32> = data.iter::<f32>().skip(self.size).collect();
        let expected: Vec<f32> = (0..self.size).map(|peer| peer as f32).collect();
        match found == expected {
            true => Ok(()),
            false => Err(NcclError::Garbled { expected, found }),
        }
    }

    /// One chunk of [`GroupSum::sum`](super::GroupSum::sum).
    pub(super) fn sum_chunk(
        &self,
        chunk: &Chunk,
        (sums, pairs): (&[usize], &[[usize; 2]]),
        mine: &[Tensor<1>],
        scratch: &Tensor<1>,
    ) {
        let on_card = |x: &Tensor<1>| match floats(x) {
            Some(x) => x,
            None => unreachable!("messages are on the card"),
        };
        let mine: Vec<CubeTensor> = mine.iter().map(on_card).collect();
        let scratch = on_card(scratch);
        let buffers = || mine.iter().chain([&scratch]).collect();
        self.enqueue(
            Moves::scatter(chunk, sums, self.rank),
            buffers(),
            mine.len(),
        );
        let share = &chunk.shares[self.rank];
        if !share.is_empty()
            && let Some(out) = floats(&cut(&mine[0], (share.start, [1, share.len()])))
        {
            add_rows_into(&scratch, (sums.iter().sum(), pairs), &out);
        }
        self.enqueue(Moves::gather(chunk, self.rank), buffers(), 0);
    }

    /// Puts moves in line on the device; those that come go to buffer `to`.
    fn enqueue(&self, moves: Moves, buffers: Vec<&CubeTensor>, to: usize) {
        if moves.send.is_empty() && moves.receive.is_empty() {
            return;
        }
        let (number, stream) = (self.number, StreamId::current());
        let buffers: Vec<BufferBinding> = buffers
            .into_iter()
            .map(|buffer| buffer.handle.clone().binding())
            .collect();
        let handle = self.handle();
        handle.submit(move |server: &mut CudaServer| {
            let located = Located::find(server, &buffers, stream);
            let written = vec![buffers[to].clone()];
            ExecuteScope::over(server, stream, written).execute(|_| {
                COMMUNICATORS.with_borrow_mut(|all| match all.get_mut(&number) {
                    Some(communicator) => communicator.exchange(located, &moves),
                    None => unreachable!("a group whose communicator is on this thread"),
                })
            });
        });
        // Tasks are handed over many at a time, and others wait for this one.
        handle.flush_queue();
    }
}

/// Device addresses of buffers, and the stream that they belong on.
struct Located {
    addresses: Vec<u64>,
    stream: cudarc::driver::sys::CUstream,
}

impl Located {
    fn find(
        server: &mut CudaServer,
        buffers: &[BufferBinding],
        stream: StreamId,
    ) -> Result<Self, ServerError> {
        let mut addresses = Vec::with_capacity(buffers.len());
        for buffer in buffers {
            let resource = server.get_resource(buffer.clone(), stream)?;
            addresses.push(resource.resource().ptr);
        }
        // The stream waits for whatever other streams wrote into these.
        let mut streams = server.write_streams().resolve(stream, buffers.iter())?;
        Ok(Self {
            addresses,
            stream: streams.current().sys,
        })
    }
}

/// A process's part in a group.
struct Communicator {
    nccl: &'static Nccl,
    /// `None` once something has failed: nobody goes on then.
    comm: Option<Comm>,
    timeout: Duration,
}

impl Communicator {
    fn join(
        nccl: &'static Nccl,
        id: &UniqueId,
        place: (usize, usize),
        timeout: Duration,
    ) -> Result<Self, NcclError> {
        let comm = nccl.begin(id, place)?;
        let mut joined = Self {
            nccl,
            comm: Some(comm),
            timeout,
        };
        let come = joined.wait(comm, "ncclCommInitRankConfig");
        come.inspect_err(|_| joined.give_up())?;
        Ok(joined)
    }

    /// Waits until what was begun is on the stream.
    fn wait(&self, comm: Comm, what: &'static str) -> Result<(), NcclError> {
        let began = Instant::now();
        while self.nccl.state_of(comm, what)? == State::InProgress {
            let waited = began.elapsed();
            if waited >= self.timeout {
                return Err(NcclError::Late { what, waited });
            }
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    fn give_up(&mut self) {
        if let Some(comm) = self.comm.take() {
            self.nccl.give_up(comm);
        }
    }

    /// Where the buffers cannot be had, the others would wait for ever: then the group is given up, and the process that this tells
    /// of it ends, which ends the others.
    fn exchange(
        &mut self,
        located: Result<Located, ServerError>,
        moves: &Moves,
    ) -> Result<(), ServerError> {
        let moved = located.and_then(|located| {
            let comm = self
                .comm
                .ok_or_else(|| failure("an exchange failed before"))?;
            self.begin(comm, &located, moves)
                .and_then(|()| self.wait(comm, "an exchange"))
                .map_err(|error| failure(&error.to_string()))
        });
        moved.inspect_err(|_| self.give_up())
    }

    fn begin(&self, comm: Comm, located: &Located, moves: &Moves) -> Result<(), NcclError> {
        let at = |piece: &Piece| {
            let start = (piece.start * size_of::<f32>()) as u64;
            (located.addresses[piece.buffer] + start, piece.count)
        };
        let stream = located.stream.cast();
        self.nccl.grouped(comm, || {
            for piece in &moves.send {
                #[expect(unsafe_code, reason = "hands addresses to NCCL")]
                // SAFETY: the address was just looked up, the buffer has as many numbers, and whoever uses them later comes
                // later on the stream.
                unsafe {
                    self.nccl.send(comm, at(piece), piece.peer, stream)?;
                }
            }
            for piece in &moves.receive {
                #[expect(unsafe_code, reason = "hands addresses to NCCL")]
                // SAFETY: as above; no piece that comes is one that goes.
                unsafe {
                    self.nccl.receive(comm, at(piece), piece.peer, stream)?;
                }
            }
            Ok(())
        })
    }
}

fn failure(what: &str) -> ServerError {
    ServerError::Generic {
        reason: what.to_owned(),
        backtrace: BackTrace::capture(),
    }
}
