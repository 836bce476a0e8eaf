//! Where the documents of a padding-free batch begin and end.

/// Documents laid end to end: document `i` owns the query rows `q[i]..q[i + 1]` and the key rows
/// `k[i]..k[i + 1]`.
///
/// In training both are the same. With a key–value cache a document has more keys than queries; its
/// queries are then the last positions, so query `j` sees the keys up to
/// `keys - queries + j`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Segments {
    q: Vec<usize>,
    k: Vec<usize>,
}

impl Segments {
    /// From cumulative lengths, `[0, len₀, len₀ + len₁, …]`.
    ///
    /// # Panics
    /// If they do not start at 0 or are not increasing.
    pub fn from_cumulative(cu_seqlens: &[u32]) -> Self {
        let offsets: Vec<usize> = cu_seqlens.iter().map(|&o| o as usize).collect();
        assert!(
            offsets.first() == Some(&0) && offsets.is_sorted(),
            "cumulative lengths start at 0 and increase, found {cu_seqlens:?}"
        );
        Self {
            q: offsets.clone(),
            k: offsets,
        }
    }

    /// `batch` documents of `len` tokens.
    pub fn rectangular(batch: usize, len: usize) -> Self {
        let offsets: Vec<usize> = (0..=batch).map(|i| i * len).collect();
        Self {
            q: offsets.clone(),
            k: offsets,
        }
    }

    /// Documents given as (tokens in the cache, new tokens): only the new ones are queries.
    pub fn continuing(lengths: impl IntoIterator<Item = (usize, usize)>) -> Self {
        let (mut q, mut k) = (vec![0], vec![0]);
        for (past, new) in lengths {
            q.push(q[q.len() - 1] + new);
            k.push(k[k.len() - 1] + past + new);
        }
        Self { q, k }
    }

    /// The number of documents.
    pub fn len(&self) -> usize {
        self.q.len().saturating_sub(1)
    }

    /// Whether there is no document.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All query rows.
    pub fn queries(&self) -> usize {
        self.q.last().copied().unwrap_or(0)
    }

    /// All key rows.
    pub fn keys(&self) -> usize {
        self.k.last().copied().unwrap_or(0)
    }

    /// Query rows and key rows of each document.
    pub fn iter(&self) -> impl Iterator<Item = (std::ops::Range<usize>, std::ops::Range<usize>)> {
        self.q
            .windows(2)
            .zip(self.k.windows(2))
            .map(|(q, k)| (q[0]..q[1], k[0]..k[1]))
    }
}
