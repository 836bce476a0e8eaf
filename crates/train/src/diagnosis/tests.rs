use super::corpus::Corpus;
use super::*;

#[test]
fn generated_corpus() {
    let seed = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    let corpus = Corpus::generate(seed, 100);
    let confusion = Confusion::of(&corpus.specimens);
    println!("{confusion}\ndrawn {}", corpus.drawn);
    assert!(confusion.accuracy() >= 0.95);
}
