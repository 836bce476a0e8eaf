//! Every op against its reference: forward, and each gradient against Burn's autodiff of the
//! reference's forward, on every device that is there and in each of its dtypes.

mod attention;
mod delta;
mod dora;
mod exchange;
mod failures;
mod losses;
mod low_rank;
mod paged;
pub(crate) mod places;
mod pointwise;
mod products;
mod weights;
