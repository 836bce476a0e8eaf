//! PyTorch's TCPStore: keys and values that all processes see, at one address.
//!
//! torchrun's agent keeps one; elsewhere rank 0, or the parent of the processes, keeps ours. Either side speaks with
//! PyTorch's: the protocol is that of PyTorch 2.15, less its queues, its list of keys and its barrier.
//!
//! There is no password. Whoever reaches the port can read and write keys, as with PyTorch; so a [`Server`] listens on
//! loopback where that is enough.

mod client;
mod server;
#[cfg(test)]
mod tests;
mod wire;

pub use client::Client;
pub use server::Server;
pub use wire::{MAX_KEY, MAX_VALUE};
