//! NVIDIA's cards, as their driver tells of them: nothing is opened, and nothing computes.

/// A card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Card {
    /// Its place among those that this process sees.
    pub number: usize,
    /// What it is called.
    pub name: String,
    /// Its memory.
    ///
    /// # Units
    /// Bytes.
    pub memory: u64,
    /// What `nvidia-smi -L` calls it.
    pub id: String,
    /// Its compute capability.
    pub capability: (u32, u32),
    /// Its ways to the others.
    pub links: Vec<Link>,
}

/// How a card reaches another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// The other one's number.
    pub to: usize,
    /// By which way.
    pub through: Through,
}

/// A way from a card to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Through {
    /// Each reads the other's memory, with atomic operations, as NVLink has them.
    NvLink,
    /// Each reads the other's memory.
    Peer,
    /// Through the host's memory.
    Host,
}

/// How many cards this process sees; 0 without NVIDIA's driver, or in a build that has no use for them.
pub fn count() -> usize {
    found::count()
}

/// The cards that this process sees.
pub fn all() -> Vec<Card> {
    (0..count()).filter_map(found::card).collect()
}

/// What the driver calls a card, as `nvidia-smi -L` writes it.
#[cfg(feature = "cuda")]
pub(crate) fn id(number: usize) -> Option<String> {
    found::id(number)
}

#[cfg(not(feature = "cuda"))]
mod found {
    pub(super) fn count() -> usize {
        0
    }

    pub(super) fn card(_: usize) -> Option<super::Card> {
        None
    }
}

#[cfg(feature = "cuda")]
mod found {
    use cudarc::driver::result::{self, device};
    use cudarc::driver::sys::{self, CUdevice_P2PAttribute, CUdevice_attribute};

    use super::{Card, Link, Through};

    pub(super) fn count() -> usize {
        #[expect(unsafe_code, reason = "opens a library")]
        // SAFETY: the driver's initialisers have no conditions.
        let there = unsafe { sys::is_culib_present() };
        if !there {
            return 0;
        }
        let count = result::init().and_then(|()| device::get_count());
        count.map_or(0, |count| usize::try_from(count).unwrap_or(0))
    }

    fn at(number: usize) -> Option<sys::CUdevice> {
        device::get(i32::try_from(number).ok()?).ok()
    }

    pub(super) fn id(number: usize) -> Option<String> {
        let bytes = device::get_uuid(at(number)?).ok()?.bytes;
        let mut id = "GPU-".to_owned();
        for (i, byte) in bytes.iter().enumerate() {
            if matches!(i, 4 | 6 | 8 | 10) {
                id.push('-');
            }
            id.push_str(&format!("{:02x}", *byte as u8));
        }
        Some(id)
    }

    pub(super) fn card(number: usize) -> Option<Card> {
        let card = at(number)?;
        let attribute = |which| {
            #[expect(unsafe_code, reason = "calls the driver")]
            // SAFETY: a card that the driver has named.
            let found = unsafe { device::get_attribute(card, which) };
            u32::try_from(found.ok()?).ok()
        };
        #[expect(unsafe_code, reason = "calls the driver")]
        // SAFETY: as above.
        let memory = unsafe { device::total_mem(card) };
        let others = (0..count()).filter(|other| *other != number);
        Some(Card {
            number,
            name: device::get_name(card).ok()?,
            memory: memory.ok()? as u64,
            id: id(number)?,
            capability: (
                attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
            links: others
                .filter_map(|to| {
                    let through = through(card, at(to)?)?;
                    Some(Link { to, through })
                })
                .collect(),
        })
    }

    fn through(from: sys::CUdevice, to: sys::CUdevice) -> Option<Through> {
        let has = |attribute| {
            let mut value = 0;
            #[expect(unsafe_code, reason = "calls the driver")]
            // SAFETY: cards that the driver has named; it writes one number.
            let asked =
                unsafe { sys::cuDeviceGetP2PAttribute(&raw mut value, attribute, from, to) };
            asked.result().ok().map(|()| value != 0)
        };
        use CUdevice_P2PAttribute as Attribute;
        Some(
            match (
                has(Attribute::CU_DEVICE_P2P_ATTRIBUTE_ACCESS_SUPPORTED)?,
                has(Attribute::CU_DEVICE_P2P_ATTRIBUTE_NATIVE_ATOMIC_SUPPORTED)?,
            ) {
                (true, true) => Through::NvLink,
                (true, false) => Through::Peer,
                (false, _) => Through::Host,
            },
        )
    }
}

#[cfg(test)]
mod tests {
    /// Whatever machine this is.
    #[test]
    fn a_card_is_told_of_as_often_as_it_is_seen() {
        let cards = super::all();
        assert_eq!(cards.len(), super::count());
        for (i, card) in cards.iter().enumerate() {
            assert_eq!(card.number, i);
            assert_eq!(card.id.len(), "GPU-".len() + 36, "{card:?}");
            assert!(
                card.memory > 0 && card.links.len() < cards.len(),
                "{card:?}"
            );
        }
    }
}
