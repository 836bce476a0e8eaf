//! Text that ends before a stop string.

/// Lets text through piece by piece, but for what stands behind the first stop string, and for what may turn out to be
/// the beginning of one. The first is the one that is complete first, and of those complete together the longest: so
/// it does not matter in which pieces the text comes.
#[derive(Clone, Debug, Default)]
pub(crate) struct StopText {
    stops: Vec<String>,
    held: String,
}

impl StopText {
    pub(crate) fn new(stops: &[String]) -> Self {
        Self {
            stops: stops.to_vec(),
            held: String::new(),
        }
    }

    /// What may be shown now, and whether a stop string was found: nothing comes after that.
    pub(crate) fn push(&mut self, piece: &str) -> (String, bool) {
        if self.stops.is_empty() {
            return (piece.to_owned(), false);
        }
        self.held.push_str(piece);
        if let Some(at) = first_stop(&self.held, &self.stops) {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let shown = self.held.len() - self.may_begin();
        let rest = self.held.split_off(shown);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// What was held back, when nothing more comes.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Bytes of the longest end of the text that begins a stop string.
    fn may_begin(&self) -> usize {
        let begins = |at: &usize| {
            let end = &self.held[*at..];
            self.stops.iter().any(|stop| stop.starts_with(end))
        };
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let first = self.held.len().saturating_sub(longest);
        let mut places = (first..self.held.len()).filter(|at| self.held.is_char_boundary(*at));
        places.find(begins).map_or(0, |at| self.held.len() - at)
    }
}

/// Where the stop string begins that is complete first in `text`; of those that are complete together, the longest.
fn first_stop(text: &str, stops: &[String]) -> Option<usize> {
    let found = stops.iter().filter_map(|stop| {
        let at = text.find(stop)?;
        Some((at + stop.len(), at))
    });
    found.min().map(|(_, at)| at)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let stops: Vec<String> = stops.iter().map(|stop| (*stop).to_owned()).collect();
        let mut text = StopText::new(&stops);
        let mut shown = Vec::new();
        for piece in pieces {
            let (piece, stopped) = text.push(piece);
            shown.push(piece);
            if stopped {
                return (shown, true);
            }
        }
        shown.push(text.finish());
        (shown, false)
    }

    #[test]
    fn no_part_of_a_stop_string_is_shown() {
        let (shown, stopped) = run(&["END"], &["one E", "N", "D two"]);
        assert_eq!(
            (shown, stopped),
            (vec!["one ".into(), "".into(), "".into()], true)
        );
        let (shown, stopped) = run(&["END"], &["one E", "NX", " EN"]);
        assert_eq!(shown, ["one ", "ENX", " ", "EN"]);
        assert!(!stopped);
        // The first in the text counts, not the first in the list.
        assert_eq!(run(&["b", "a"], &["xab"]).0.concat(), "x");
        // Of one within another, the one that is complete first; of those complete together, the longest.
        for pieces in [["abcd", ""], ["abc", "d"]] {
            assert_eq!(run(&["abcd", "b"], &pieces).0.concat(), "a");
            assert_eq!(run(&["d", "bcd"], &pieces).0.concat(), "a");
        }
        assert_eq!(run(&["für"], &["fü", "r"]).0.concat(), "");
        assert_eq!(run(&["für"], &["fü", "nf"]).0.concat(), "fünf");
    }

    proptest! {
        #[test]
        fn what_is_shown_does_not_depend_on_the_pieces(
            text in "[abü]{0,24}",
            stops in prop::collection::vec("[abü]{1,4}", 0..3),
            cuts in prop::collection::vec(0usize..24, 0..6),
        ) {
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|at| text.is_char_boundary(*at)).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&str> = cuts.windows(2).map(|cut| &text[cut[0]..cut[1]]).collect();
            // Told the other way round: the shortest beginning of the text that ends with a stop string.
            let complete = (0..=text.len()).filter(|at| text.is_char_boundary(*at)).map(|at| &text[..at]);
            let ends = complete.filter_map(|read| {
                let longest = stops.iter().filter(|stop| read.ends_with(**stop)).map(|stop| stop.len()).max()?;
                Some(read.len() - longest)
            });
            let end = { ends }.next();
            let (shown, stopped) = run(&stops, &pieces);
            prop_assert_eq!(stopped, end.is_some());
            prop_assert_eq!(shown.concat(), &text[..end.unwrap_or(text.len())]);
        }
    }
}
