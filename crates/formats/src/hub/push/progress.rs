//! What a program may show while files are sent.

/// Hears of an upload.
pub trait UploadProgress {
    /// A file of `bytes` bytes is sent from its beginning; again where the connection broke.
    fn start(&mut self, _file: &str, _bytes: u64) {}
    /// More bytes of it have gone.
    fn advance(&mut self, _bytes: u64) {}
    /// The hub has it.
    fn finish(&mut self, _file: &str) {}
    /// The hub had it before.
    fn present(&mut self, _file: &str) {}
    /// Something failed and is tried again after `seconds`.
    fn again(&mut self, _what: &str, _seconds: f64) {}
}

/// Shows nothing.
impl UploadProgress for () {}
