//! Keys, read from the terminal by a thread that ends with it.
//!
//! crossterm's reader spins for ever once a terminal is closed, which a run outlives; and the few keys of
//! the dashboard are easily told apart.

use std::io::Read;
use std::sync::mpsc::{Receiver, channel};

/// A key of the dashboard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Key {
    /// A letter or digit.
    Char(char),
    Tab,
    BackTab,
    Left,
    Right,
    Up,
    Down,
    PageUp,
    PageDown,
    Home,
    End,
    Escape,
    /// Ctrl-C, which is no signal while the terminal is in raw mode.
    Interrupt,
}

/// The keys of the terminal from now on; it is closed when the terminal is.
pub(crate) fn listen() -> std::io::Result<Receiver<Key>> {
    let (sender, receiver) = channel();
    // Nobody waits for this thread: it sleeps in the system until there is a key.
    std::thread::Builder::new()
        .name("keys".to_owned())
        .spawn(move || {
            let mut bytes = [0; 64];
            while let Ok(count @ 1..) = std::io::stdin().read(&mut bytes) {
                for key in parse(&bytes[..count]) {
                    if sender.send(key).is_err() {
                        return;
                    }
                }
            }
        })?;
    Ok(receiver)
}

/// The keys that these bytes stand for; what the dashboard has no use for is left out.
fn parse(mut bytes: &[u8]) -> Vec<Key> {
    let mut keys = Vec::new();
    while let [first, rest @ ..] = bytes {
        let (key, rest) = match (first, rest) {
            (0x03, rest) => (Some(Key::Interrupt), rest),
            (b'\t', rest) => (Some(Key::Tab), rest),
            (0x1b, [b'[' | b'O', rest @ ..]) => escape(rest),
            (0x1b, rest) => (Some(Key::Escape), rest),
            (c, rest) if c.is_ascii_alphanumeric() => (Some(Key::Char(char::from(*c))), rest),
            (_, rest) => (None, rest),
        };
        keys.extend(key);
        bytes = rest;
    }
    keys
}

/// A sequence after `ESC [`: parameters, and a letter or `~` that ends it.
fn escape(bytes: &[u8]) -> (Option<Key>, &[u8]) {
    let end = bytes.iter().position(|byte| (0x40..0x7f).contains(byte));
    let Some(end) = end else {
        return (None, &[]);
    };
    let key = match bytes[end] {
        b'A' => Some(Key::Up),
        b'B' => Some(Key::Down),
        b'C' => Some(Key::Right),
        b'D' => Some(Key::Left),
        b'F' => Some(Key::End),
        b'H' => Some(Key::Home),
        b'Z' => Some(Key::BackTab),
        b'~' => match bytes[..end].split(|byte| *byte == b';').next() {
            Some(b"1" | b"7") => Some(Key::Home),
            Some(b"4" | b"8") => Some(Key::End),
            Some(b"5") => Some(Key::PageUp),
            Some(b"6") => Some(Key::PageDown),
            _ => None,
        },
        _ => None,
    };
    (key, &bytes[end + 1..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_told_apart() {
        use Key::{
            BackTab, Char, Down, End, Escape, Home, Interrupt, Left, PageDown, PageUp, Right, Tab,
            Up,
        };
        let check = |bytes: &[u8], keys: &[Key]| assert_eq!(parse(bytes), keys, "{bytes:?}");
        check(b"p1", &[Char('p'), Char('1')]);
        check(b"\t\x03", &[Tab, Interrupt]);
        check(b"\x1b[C\x1b[D\x1b[Z\x1bOC", &[Right, Left, BackTab, Right]);
        check(
            b"\x1b[A\x1b[B\x1bOA\x1b[H\x1b[F",
            &[Up, Down, Up, Home, End],
        );
        check(
            b"\x1b[5~\x1b[6~\x1b[1~\x1b[4~\x1b[5;5~",
            &[PageUp, PageDown, Home, End, PageUp],
        );
        check(b"\x1b", &[Escape]);
        // Delete, Ctrl-Right, a mouse, half a sequence, a letter of another alphabet.
        check(b"\x1b[3~q", &[Char('q')]);
        check(b"\x1b[1;5C", &[Right]);
        check(b"\x1b[<0;1;1M", &[]);
        check(b"\x1b[12", &[]);
        check("ä".as_bytes(), &[]);
        check(b"", &[]);
    }
}
