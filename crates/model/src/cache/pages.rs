//! Which pages of a pool are whose.

/// Tokens of a page. Larger ones waste more of the last, smaller ones make longer tables.
pub(crate) const PAGE: usize = 32;

/// The pages of a pool: those that are free, and how many sequences hold each of the others.
///
/// Before a sequence begins, as many pages are promised to it as it can come to need, so that no sequence has to be
/// stopped halfway for want of memory. They are taken when they are needed.
#[derive(Debug)]
pub(crate) struct Pages {
    /// Sequences that hold each page made so far.
    holders: Vec<u32>,
    free: Vec<u32>,
    limit: usize,
    promised: usize,
}

impl Pages {
    /// At most so many pages.
    pub(crate) const fn new(limit: usize) -> Self {
        Self {
            holders: Vec::new(),
            free: Vec::new(),
            limit,
            promised: 0,
        }
    }

    /// Pages at most.
    pub(crate) const fn limit(&self) -> usize {
        self.limit
    }

    /// Pages that were ever held at a time: the rows that the pool must have.
    pub(crate) const fn made(&self) -> usize {
        self.holders.len()
    }

    /// Pages that some sequence holds.
    pub(crate) fn held(&self) -> usize {
        self.holders.len() - self.free.len()
    }

    /// Promises pages to a sequence; `false` where there are not so many.
    pub(crate) fn promise(&mut self, pages: usize) -> bool {
        let fits = self.promised + pages <= self.limit;
        if fits {
            self.promised += pages;
        }
        fits
    }

    /// Takes a promise back.
    pub(crate) fn forgive(&mut self, pages: usize) {
        self.promised -= pages;
    }

    /// A page that was promised.
    fn take(&mut self) -> u32 {
        let page = self.free.pop().unwrap_or_else(|| {
            self.holders.push(0);
            self.holders.len() as u32 - 1
        });
        self.holders[page as usize] = 1;
        page
    }

    fn let_go(&mut self, page: u32) {
        let holders = &mut self.holders[page as usize];
        *holders -= 1;
        if *holders == 0 {
            self.free.push(page);
        }
    }
}

/// Pages for so many tokens.
pub(crate) const fn pages_for(tokens: usize) -> usize {
    tokens.div_ceil(PAGE)
}

/// The pages of one sequence, and how many tokens are in them.
#[derive(Debug, Default)]
pub(crate) struct Table {
    held: Vec<u32>,
    len: usize,
}

impl Table {
    /// Makes room for `tokens` more.
    pub(crate) fn extend(&mut self, tokens: usize, pages: &mut Pages) {
        self.len += tokens;
        while self.held.len() < pages_for(self.len) {
            self.held.push(pages.take());
        }
    }

    /// The row of each token.
    pub(crate) fn rows(&self) -> Vec<u32> {
        let row = |token: usize| self.held[token / PAGE] * PAGE as u32 + (token % PAGE) as u32;
        (0..self.len).map(row).collect()
    }

    /// The table of a sequence that goes on from here by itself: full pages are shared, the tokens of a last one that is
    /// not full have to be copied from the first rows of the answer to the second.
    pub(crate) fn fork(&self, pages: &mut Pages) -> (Self, [Vec<u32>; 2]) {
        let full = self.len / PAGE;
        let shared = &self.held[..full];
        for &page in shared {
            pages.holders[page as usize] += 1;
        }
        let mut fork = Self {
            held: shared.to_vec(),
            len: full * PAGE,
        };
        fork.extend(self.len - full * PAGE, pages);
        let rest = [self.rows(), fork.rows()].map(|mut rows| rows.split_off(full * PAGE));
        (fork, rest)
    }

    /// Gives its pages back.
    pub(crate) fn release(self, pages: &mut Pages) {
        for page in self.held {
            pages.let_go(page);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_taken_shared_and_given_back() {
        let mut pages = Pages::new(4);
        let mut first = Table::default();
        first.extend(PAGE + 3, &mut pages);
        assert_eq!((pages.held(), first.rows().len()), (2, PAGE + 3));
        let (mut second, [from, to]) = first.fork(&mut pages);
        assert_eq!((pages.held(), from.len(), to.len()), (3, 3, 3));
        assert_eq!(first.rows()[..PAGE], second.rows()[..PAGE]);
        assert!(from.iter().all(|row| !to.contains(row)));
        second.extend(1, &mut pages);
        first.release(&mut pages);
        assert_eq!(pages.held(), 2, "the shared page is still held");
        second.release(&mut pages);
        assert_eq!(pages.held(), 0);
        let mut third = Table::default();
        third.extend(3 * PAGE, &mut pages);
        assert_eq!(pages.holders.len(), 3, "free pages are used again");
    }

    #[test]
    fn no_more_is_promised_than_there_is() {
        let mut pages = Pages::new(4);
        assert!(pages.promise(3));
        assert!(!pages.promise(2));
        pages.forgive(3);
        assert!(pages.promise(4));
    }
}
