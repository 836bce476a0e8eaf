//! Pages of one size, filled as CubeCL's allocator fills its own (`SlicedPool` in `cubecl-server`, 0.11.3): a tensor goes
//! into the first gap that is wide enough of the first page that has such a gap; pages come as they are needed and stay.

/// What sizes are multiples of.
const ALIGNMENT: u64 = 512;

/// A stretch of a page.
#[derive(Clone, Copy, Debug)]
struct Stretch {
    offset: u64,
    bytes: u64,
    free: bool,
}

/// Pages of one size.
#[derive(Debug)]
pub(crate) struct Heap {
    page: u64,
    /// The stretches of each page, in order; no two neighbours are free.
    pages: Vec<Vec<Stretch>>,
    /// The widest gap of each page, from [`leaves`](Self::leaves) on; before them, of each pair the wider one.
    widest: Vec<u64>,
}

impl Heap {
    pub(crate) fn new(page: u64) -> Self {
        Self {
            page,
            pages: Vec::new(),
            widest: vec![0; 2],
        }
    }

    /// Bytes of all pages.
    pub(crate) fn bytes(&self) -> u64 {
        self.page * self.pages.len() as u64
    }

    fn leaves(&self) -> usize {
        self.widest.len() / 2
    }

    /// The first page with a gap of `bytes`; a new one where there is none.
    fn page_for(&mut self, bytes: u64) -> usize {
        if self.widest[1] < bytes {
            return self.add_page(bytes);
        }
        let mut node = 1;
        while node < self.leaves() {
            node *= 2;
            if self.widest[node] < bytes {
                node += 1;
            }
        }
        node - self.leaves()
    }

    fn add_page(&mut self, bytes: u64) -> usize {
        let new = self.pages.len();
        if new == self.leaves() {
            let gaps = self.widest.split_off(self.leaves());
            self.widest = vec![0; 4 * gaps.len()];
            let leaves = self.leaves();
            self.widest[leaves..leaves + gaps.len()].copy_from_slice(&gaps);
            for node in (1..leaves).rev() {
                self.widest[node] = self.widest[2 * node].max(self.widest[2 * node + 1]);
            }
        }
        self.pages.push(vec![Stretch {
            offset: 0,
            // A tensor that no page holds has one of its own.
            bytes: self.page.max(bytes),
            free: true,
        }]);
        self.note(new);
        new
    }

    /// Whether nothing lies in any page.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.pages.iter().flatten().all(|stretch| stretch.free)
    }

    /// Brings the widest gap of a page up to date.
    fn note(&mut self, page: usize) {
        let gaps = self.pages[page].iter().filter(|stretch| stretch.free);
        let widest = gaps.map(|stretch| stretch.bytes).max().unwrap_or(0);
        let mut node = self.leaves() + page;
        self.widest[node] = widest;
        while node > 1 {
            node /= 2;
            self.widest[node] = self.widest[2 * node].max(self.widest[2 * node + 1]);
        }
    }

    /// The page and the offset of a new tensor.
    pub(crate) fn alloc(&mut self, bytes: u64) -> (usize, u64) {
        let bytes = bytes.next_multiple_of(ALIGNMENT);
        let number = self.page_for(bytes);
        let page = &mut self.pages[number];
        let gap = page.iter().position(|s| s.free && s.bytes >= bytes);
        let Some(gap) = gap else {
            unreachable!("the page has a gap that is wide enough")
        };
        let Stretch {
            offset,
            bytes: width,
            ..
        } = page[gap];
        page[gap] = Stretch {
            offset,
            bytes,
            free: false,
        };
        if width > bytes {
            let rest = Stretch {
                offset: offset + bytes,
                bytes: width - bytes,
                free: true,
            };
            page.insert(gap + 1, rest);
        }
        self.note(number);
        (number, offset)
    }

    /// Lets go of the tensor at that place.
    pub(crate) fn free(&mut self, number: usize, offset: u64) {
        let page = &mut self.pages[number];
        let Ok(mut at) = page.binary_search_by_key(&offset, |stretch| stretch.offset) else {
            unreachable!("a tensor that was placed")
        };
        page[at].free = true;
        if page.get(at + 1).is_some_and(|next| next.free) {
            page[at].bytes += page.remove(at + 1).bytes;
        }
        if at > 0 && page[at - 1].free {
            let bytes = page.remove(at).bytes;
            at -= 1;
            page[at].bytes += bytes;
        }
        self.note(number);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Every page from the first, every stretch from the first.
    fn first_fit(pages: &mut Vec<Vec<Stretch>>, page: u64, bytes: u64) -> (usize, u64) {
        for (number, stretches) in pages.iter_mut().enumerate() {
            for at in 0..stretches.len() {
                let Stretch {
                    offset,
                    bytes: width,
                    free,
                } = stretches[at];
                if free && width >= bytes {
                    stretches[at] = Stretch {
                        offset,
                        bytes,
                        free: false,
                    };
                    if width > bytes {
                        let rest = Stretch {
                            offset: offset + bytes,
                            bytes: width - bytes,
                            free,
                        };
                        stretches.insert(at + 1, rest);
                    }
                    return (number, offset);
                }
            }
        }
        pages.push(vec![Stretch {
            offset: 0,
            bytes: page,
            free: true,
        }]);
        first_fit(pages, page, bytes)
    }

    proptest! {
        #[test]
        fn a_tensor_goes_where_a_search_from_the_start_puts_it(
            steps in prop::collection::vec((1..64u64, any::<prop::sample::Index>(), any::<bool>()), 1..200),
        ) {
            let page = 64 * ALIGNMENT;
            let (mut heap, mut pages) = (Heap::new(page), Vec::new());
            let mut live: Vec<(usize, u64)> = Vec::new();
            for (size, which, frees) in steps {
                if frees && !live.is_empty() {
                    let (number, offset) = live.swap_remove(which.index(live.len()));
                    heap.free(number, offset);
                    let stretches: &mut Vec<Stretch> = &mut pages[number];
                    for stretch in stretches.iter_mut().filter(|s| s.offset == offset) {
                        stretch.free = true;
                    }
                    // Neighbours become one.
                    stretches.dedup_by(|next, last| {
                        let both = next.free && last.free;
                        if both {
                            last.bytes += next.bytes;
                        }
                        both
                    });
                } else {
                    let place = heap.alloc(size * ALIGNMENT);
                    prop_assert_eq!(place, first_fit(&mut pages, page, size * ALIGNMENT));
                    live.push(place);
                }
            }
            prop_assert_eq!(heap.pages.len(), pages.len());
        }
    }
}
