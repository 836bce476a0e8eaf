//! The allocator of the programs; a library leaves that choice to whoever uses it.
//!
//! A step on the processor frees a GiB of tensors and takes as much again in the next one. mimalloc gives what was not used for
//! a second back to the system, which has to zero every page of it when it is taken again: that was a quarter of a step of
//! SmolLM2 on two cores (`LOG.md`). So memory is kept for much longer than a step takes, and in large pages where the system has
//! them.
//!
//! # Source
//! Options of mimalloc 3.3, `include/mimalloc.h`.

use libmimalloc_sys::{mi_option_large_os_pages, mi_option_set_default, mi_option_t};
use mimalloc::MiMalloc;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// `mi_option_purge_delay`, which the bindings do not name.
const PURGE_DELAY: mi_option_t = 15;

/// How long memory is kept that nobody uses, in milliseconds.
const KEPT: std::ffi::c_long = 60_000;

/// Sets the allocator up. `MIMALLOC_PURGE_DELAY` and `MIMALLOC_ALLOW_LARGE_OS_PAGES` win over what it sets.
///
/// # Safety
/// No other thread may run yet.
#[expect(unsafe_code, reason = "options of a C library")]
pub unsafe fn configure() {
    // SAFETY: the options are those of the library that is linked, and no other thread reads them.
    unsafe {
        mi_option_set_default(PURGE_DELAY, KEPT);
        mi_option_set_default(mi_option_large_os_pages, 1);
    }
}

#[cfg(test)]
mod tests {
    use libmimalloc_sys::{mi_option_get, mi_version};

    use super::*;

    #[test]
    fn options_have_the_numbers_that_they_are_given() {
        #[expect(unsafe_code, reason = "options of a C library")]
        // SAFETY: only this test uses the options.
        unsafe {
            // Another version may number them otherwise: look at `mi_option_e` of its header.
            assert_eq!(mi_version() / 100, 303);
            // Whatever else starts at a second?
            assert_eq!(mi_option_get(PURGE_DELAY), 1000);
            configure();
            assert_eq!(mi_option_get(PURGE_DELAY), KEPT);
            assert_eq!(mi_option_get(mi_option_large_os_pages), 1);
        }
    }
}
