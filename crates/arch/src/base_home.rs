//! Where the matrices of a base's layers are while adapters are trained over them.

use crate::named;

named! {
    /// Where the matrices of a base's layers are while adapters are trained over them.
    BaseHome {
        /// In the device's memory.
        #[default]
        Device = "device",
        /// In the host's memory; each layer comes to the device when it is computed.
        Host = "host",
    }
}
