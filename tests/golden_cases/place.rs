//! Where the cases run.

use std::env;
use std::sync::OnceLock;

use backdraft::arch::DeviceChoice;
use backdraft::burn::tensor::Device;
use backdraft::kernels::device;

const VARIABLE: &str = "BACKDRAFT_TEST_DEVICE";

/// The device that `BACKDRAFT_TEST_DEVICE` names (`cpu`, `cuda:0`, `wgpu`), by default the processor.
///
/// # Panics
/// If it cannot be had.
pub(super) fn device() -> Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    let open = || {
        let name = env::var(VARIABLE).unwrap_or_else(|_| "cpu".to_owned());
        let choice: DeviceChoice = name.parse().unwrap_or_else(|e| panic!("{VARIABLE}: {e}"));
        assert_ne!(
            choice,
            DeviceChoice::Auto,
            "{VARIABLE} must name one device"
        );
        let device = device::open(choice).unwrap_or_else(|e| panic!("{VARIABLE}={name}: {e}"));
        println!("golden cases on {}", device::report(&device));
        device
    };
    DEVICE.get_or_init(open).clone()
}

/// Says that a case which trains the base itself is left out, where it is: its products are Burn's own under autodiff,
/// which CUDA's tensor cores round to TF32.
pub(super) fn leaves_out_full_training() -> bool {
    if on_gpu() {
        println!("nothing checked: products with a trained base are rounded to TF32 there");
    }
    on_gpu()
}

/// Whether they run elsewhere than on the processor.
pub(super) fn on_gpu() -> bool {
    device() != Device::flex()
}
