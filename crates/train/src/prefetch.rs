//! The next item is made while the last one is used.

use std::panic::resume_unwind;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{JoinHandle, spawn};

/// An iterator on a thread of its own, at most one item ahead of whoever takes them.
#[derive(Debug)]
pub(crate) struct Prefetch<T> {
    items: Option<Receiver<T>>,
    thread: Option<JoinHandle<()>>,
}

impl<T: Send + 'static> Prefetch<T> {
    pub(crate) fn new(items: impl Iterator<Item = T> + Send + 'static) -> Self {
        // A channel without room: the item that is made waits at its end until it is taken.
        let (made, taken) = sync_channel(0);
        let thread = spawn(move || {
            for item in items {
                if made.send(item).is_err() {
                    return;
                }
            }
        });
        Self {
            items: Some(taken),
            thread: Some(thread),
        }
    }
}

impl<T> Iterator for Prefetch<T> {
    type Item = T;

    /// # Panics
    /// As the iterator did on its thread.
    fn next(&mut self) -> Option<T> {
        if let Ok(item) = self.items.as_ref()?.recv() {
            return Some(item);
        }
        self.items = None;
        if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join) {
            resume_unwind(panic);
        }
        None
    }
}

impl<T> Drop for Prefetch<T> {
    /// Waits for the item that is being made.
    fn drop(&mut self) {
        self.items = None;
        if let Some(thread) = self.thread.take() {
            // Nobody asks any more what came of it.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn one_item_is_made_ahead_and_no_more() {
        let made = Arc::new(AtomicUsize::new(0));
        let counted = made.clone();
        let mut items = Prefetch::new((0..5).inspect(move |_| {
            counted.fetch_add(1, Ordering::SeqCst);
        }));
        for i in 0..5 {
            let began = Instant::now();
            let ahead = (i + 1).min(5);
            while made.load(Ordering::SeqCst) < ahead {
                assert!(
                    began.elapsed() < Duration::from_secs(60),
                    "item {i} is not made"
                );
                std::thread::yield_now();
            }
            std::thread::sleep(Duration::from_millis(5));
            assert_eq!(made.load(Ordering::SeqCst), ahead);
            assert_eq!(items.next(), Some(i));
        }
        assert_eq!(items.next(), None);
        assert_eq!(items.next(), None);
    }

    #[test]
    fn the_thread_ends_with_the_iterator() {
        let held = Arc::new(());
        let inside = held.clone();
        let mut items = Prefetch::new((0..).inspect(move |_| assert_eq!(*inside, ())));
        assert_eq!(items.next(), Some(0));
        drop(items);
        assert_eq!(Arc::strong_count(&held), 1);
    }

    #[test]
    fn a_panic_reaches_whoever_takes() {
        let mut items = Prefetch::new((0..3).inspect(|&i| assert!(i < 1, "item {i}")));
        assert_eq!(items.next(), Some(0));
        let panic = catch_unwind(AssertUnwindSafe(|| items.next())).unwrap_err();
        assert_eq!(panic.downcast_ref::<String>().unwrap(), "item 1");
    }
}
