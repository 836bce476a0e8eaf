//! What came of one pass of an evaluation: numbers on the host, which processes that share it tell each other.

use burn::tensor::TensorReadError;

use crate::metrics::EvalOutput;

/// What came of one pass.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Pass {
    pub(super) nll: f64,
    pub(super) tokens: usize,
    pub(super) policy: Vec<f64>,
    pub(super) reference: Vec<f64>,
    pub(super) divergence: Vec<f64>,
    /// Of each answer, a mean over its tokens.
    pub(super) entropies: Vec<f64>,
    pub(super) good: Vec<bool>,
    pub(super) lengths: Vec<usize>,
    pub(super) margins: Vec<f32>,
}

impl Pass {
    /// Reads it from the device.
    ///
    /// # Errors
    /// A device that failed.
    pub(crate) fn read(output: &EvalOutput) -> Result<Self, TensorReadError> {
        let (nll, tokens) = output.read()?;
        let mut pass = Self {
            nll,
            tokens,
            ..Self::default()
        };
        if let Some(answers) = output.answers() {
            let [policy, reference, divergence, entropies] = answers.read()?;
            let compared = &answers.compared;
            let means = entropies.iter().zip(&compared.lengths);
            let means = means.map(|(sum, length)| sum / (*length).max(1) as f64);
            pass.entropies = means.collect();
            pass.policy = policy;
            pass.reference = reference;
            pass.divergence = divergence;
            pass.good.clone_from(&compared.good);
            pass.lengths.clone_from(&compared.lengths);
            pass.margins.clone_from(&compared.margins);
        }
        Ok(pass)
    }

    /// All passes in one message.
    pub(crate) fn to_bytes(passes: &[Self]) -> Vec<u8> {
        let mut words = Vec::new();
        for pass in passes {
            words.extend([pass.nll.to_bits(), pass.tokens as u64]);
            let mut list = |numbers: &mut dyn ExactSizeIterator<Item = u64>| {
                words.push(numbers.len() as u64);
                words.extend(numbers);
            };
            for numbers in [
                &pass.policy,
                &pass.reference,
                &pass.divergence,
                &pass.entropies,
            ] {
                list(&mut numbers.iter().map(|number| number.to_bits()));
            }
            list(&mut pass.good.iter().map(|good| u64::from(*good)));
            list(&mut pass.lengths.iter().map(|length| *length as u64));
            list(
                &mut pass
                    .margins
                    .iter()
                    .map(|margin| u64::from(margin.to_bits())),
            );
        }
        words.into_iter().flat_map(u64::to_le_bytes).collect()
    }

    /// The passes of a message; `None` where it is none.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Vec<Self>> {
        let (words, rest) = bytes.as_chunks::<8>();
        if !rest.is_empty() {
            return None;
        }
        let words: Vec<u64> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
        let mut words = &words[..];
        let mut passes = Vec::new();
        while let [nll, tokens, rest @ ..] = words {
            words = rest;
            let mut list = || {
                let (length, rest) = words.split_first()?;
                let (numbers, rest) = rest.split_at_checked(usize::try_from(*length).ok()?)?;
                words = rest;
                Some(numbers)
            };
            let [policy, reference, divergence, entropies] = [list()?, list()?, list()?, list()?]
                .map(|numbers| numbers.iter().copied().map(f64::from_bits).collect());
            passes.push(Self {
                nll: f64::from_bits(*nll),
                tokens: *tokens as usize,
                policy,
                reference,
                divergence,
                entropies,
                good: list()?.iter().map(|good| *good != 0).collect(),
                lengths: list()?.iter().map(|length| *length as usize).collect(),
                margins: list()?
                    .iter()
                    .map(|bits| f32::from_bits(*bits as u32))
                    .collect(),
            });
        }
        words.is_empty().then_some(passes)
    }
}

#[cfg(test)]
mod tests {
    use super::Pass;

    #[test]
    fn passes_there_and_back() {
        let one = Pass {
            nll: 0.1 + 0.2,
            tokens: 7,
            ..Pass::default()
        };
        let other = Pass {
            nll: f64::MIN_POSITIVE / 2.0,
            tokens: 0,
            policy: vec![-1.5, 1e300],
            reference: vec![2.0],
            divergence: vec![],
            entropies: vec![0.25],
            good: vec![true, false, true],
            lengths: vec![usize::MAX, 1],
            margins: vec![-0.0, f32::INFINITY],
        };
        for passes in [vec![], vec![one.clone()], vec![other.clone(), one, other]] {
            let bytes = Pass::to_bytes(&passes);
            assert_eq!(Pass::from_bytes(&bytes), Some(passes.clone()));
            if !passes.is_empty() {
                assert_eq!(Pass::from_bytes(&bytes[..bytes.len() - 8]), None);
                assert_eq!(Pass::from_bytes(&bytes[1..]), None);
            }
        }
        let lying = [0, 0, u64::MAX, 1].map(u64::to_le_bytes).concat();
        assert_eq!(Pass::from_bytes(&lying), None);
    }
}
