//! Where in a JSON text a scan stands: enough to find where a value ends, and no more.

/// Brackets that are open, and whether the scan is inside a string.
#[derive(Clone, Debug, Default)]
pub(super) struct Nest {
    open: Vec<u8>,
    in_string: bool,
    escaped: bool,
    /// The last byte outside strings that is no white space; a string counts as its quote.
    last: u8,
}

/// Brackets inside each other that are followed; the parser takes no more either.
pub(super) const MAX_DEPTH: usize = 128;

impl Nest {
    /// How many bytes belong to the value that began before or begins here, and whether it ends
    /// there.
    pub(super) fn advance(&mut self, bytes: &[u8]) -> (usize, bool) {
        for (at, &byte) in bytes.iter().enumerate() {
            if self.in_string {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => {
                        self.in_string = false;
                        if self.open.is_empty() {
                            return (at + 1, true);
                        }
                    }
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' => self.in_string = true,
                b'{' | b'[' => self.open.push(byte),
                b'}' | b']' if !self.open.is_empty() => {
                    self.open.pop();
                    if self.open.is_empty() {
                        return (at + 1, true);
                    }
                }
                b',' | b']' | b'}' if self.open.is_empty() => return (at, true),
                _ if byte.is_ascii_whitespace() => {
                    if self.open.is_empty() {
                        return (at, true);
                    }
                    continue;
                }
                _ => {}
            }
            self.last = byte;
        }
        (bytes.len(), false)
    }

    /// Whether a value that ends at a line's end may go on in the next line, which begins with
    /// `next`.
    pub(super) fn may_go_on(&self, next: u8) -> bool {
        if self.in_string || self.open.is_empty() || self.open.len() > MAX_DEPTH {
            return false;
        }
        // An object has keys, so a row can only begin inside it after a colon or in a list.
        next != b'{'
            || matches!(self.last, b'[' | b':')
            || self.last == b',' && self.open.last() == Some(&b'[')
    }
}
